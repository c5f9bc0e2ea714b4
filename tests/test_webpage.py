"""The web page of a survey, opened in a real browser, on a phone and on a desk."""

import dataclasses
from html import escape
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from PIL import Image

import flaxvgg
from flaxvgg.plotting.webpage import survey_page
from flaxvgg.sparsity.summary import explanation, headline
from flaxvgg.sparsity.survey import survey_photos
from helpers import small_model

PHONE, DESK = (390, 844), (1280, 900)
# A name that would do harm in HTML.
EVIL = "<img src=x onerror=alert(1)>&amp;.png"


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, name in enumerate((EVIL, "a_name_that_is_" + "very_" * 20 + "long.png", "third.png")):
        pixels = rng.integers(0, 80 * i + 10, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    layers = ["relu1_1", "pool1", "relu3_2", "relu5_2", "pool5"]
    return survey_photos(small_model(), flaxvgg.find_images(folder), layers, (32, 64))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(survey, tmp_path):
    """The page with all that it can say: a part of 5,000 photos, some of them broken."""
    problems = (f"{EVIL}: an empty file: get it again", "no-spaces-to-break-at" * 20)
    path = tmp_path / "sparsity.html"
    path.write_text(survey_page(dataclasses.replace(survey, problems=problems, left=4995)))
    return path


def widths(browser, selector):
    """How wide what is in an element is, and how much of it can be seen."""
    element = f"document.querySelector({selector!r})"
    return browser.evaluate(f"[{element}.scrollWidth, {element}.clientWidth]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_the_page_in_a_browser(browser, page, survey, size, scheme):
    browser.open(page, *size, scheme)
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.complaints == []
    width, visible = widths(browser, "html")
    assert width == visible == size[0]
    width, visible = widths(browser, ".scroll")
    assert (width > visible) == (size == PHONE)  # the table scrolls in its own box
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    photo_places_and_sheet = 1 + 3 + 1
    assert browser.evaluate("document.images.length") == 3 * photo_places_and_sheet
    assert browser.evaluate("document.querySelectorAll('[onerror], script').length") == 0

    text = browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.querySelector('h1').innerText") == headline(survey.report)
    assert all(sentence in text for sentence in explanation(survey.report))
    assert text.count(EVIL) == 3  # in the list of photos, over its maps, and among the problems
    assert "5 of 5,000 photos were looked at" in text
    assert "2 of the photos could not be read" in text
    assert "partial: 3 of 5000 photos at 32x64" in text
    headings = browser.evaluate("[...document.querySelectorAll('h1,h2')].map(h => h.innerText)")
    assert headings == [
        headline(survey.report),
        "Zeros by layer",
        "The numbers",
        "From photo to photo",
        "Where the zeros are",
        "Photos that could not be read",
        "How it was counted",
    ]
    assert all(version in text for version in (flaxvgg.__version__, "jax ", "torchvision: RGB"))


def test_the_numbers_on_the_page(browser, page, survey):
    browser.open(page, *DESK)
    rows = browser.evaluate(
        "[...document.querySelectorAll('tbody tr')]"
        ".map(row => [...row.children].map(cell => cell.innerText))"
    )
    assert [row[0] for row in rows] == list(survey.report.layers)
    for row, layer in zip(rows, survey.report, strict=True):
        zeros = survey.zeros[layer.name]
        assert row[1:3] == [f"{layer.values.sum():,}", f"{100 * layer.zero_fraction:.1f} %"]
        assert row[3:5] == [f"{100 * zeros.min():.1f} %", f"{100 * zeros.max():.1f} %"]
        if layer.kind == "relu":
            negative = 100 * layer.negatives_before.sum() / layer.values.sum()
            assert row[5:7] == [f"{negative:.1f} %", f"{layer.zeros_before.sum():,}"]
        else:
            assert row[5:7] == ["", ""]
        assert row[7] == str(layer.channels)
        assert row[9] == str(layer.dead.sum())
    assert int(rows[-1][9]) >= 20
    # The bars are as long as the numbers say, and the mark is at the end of a ReLU's bar.
    bars = browser.evaluate(
        "[...document.querySelectorAll('.bars:not(.names) .bar')].map(bar => "
        "bar.getBoundingClientRect().width / bar.parentNode.getBoundingClientRect().width)"
    )
    assert bars == pytest.approx([layer.zero_fraction for layer in survey.report], abs=0.002)
    marks = browser.evaluate(
        "[...document.querySelectorAll('.track .neg')].map(mark => "
        "mark.getBoundingClientRect().left + 2 - mark.parentNode.getBoundingClientRect().left)"
    )
    ends = browser.evaluate(
        "[...document.querySelectorAll('.bar.relu')].map(bar => bar.getBoundingClientRect().width)"
    )
    assert marks == pytest.approx(ends[: len(marks)], abs=1)


def test_light_and_dark(browser, page):
    colours = []
    for scheme in ("light", "dark"):
        browser.open(page, *PHONE, scheme)
        colours.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 22, 26)"]


def test_the_browser_would_see_what_is_wrong(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<meta name="viewport" content="width=device-width"><p style="width: 600px">'
        '<img src="https://flaxvgg.invalid/a.png"><script>console.error("no")</script>'
    )
    browser.open(page, *PHONE)
    assert widths(browser, "html")[0] > PHONE[0]
    assert "https://flaxvgg.invalid/a.png" in browser.requests
    assert len(browser.complaints) >= 2


def test_names_are_text(survey):
    page = survey_page(dataclasses.replace(survey, problems=(EVIL,)))
    assert EVIL not in page
    assert "<img src=x" not in page
    assert escape(EVIL) in page
    assert "http" not in page.replace("http-equiv", "")


def test_of_many_photos_both_ends_are_listed(survey):
    count = 1000
    photos = tuple(Path(f"photo{i}.png") for i in range(count))
    zeros = {name: np.linspace(0, 1, count) for name in survey.zeros}
    page = survey_page(dataclasses.replace(survey, photos=photos, zeros=zeros))
    listed = [i for i in range(count) if f"photo{i}.png" in page]
    assert listed == [*range(12), *range(988, 1000)]
    assert page.index("photo999.png") < page.index("photo988.png") < page.index("photo11.png")
    assert "976 photos between these" in page


def test_one_photo_has_no_spread(survey):
    zeros = {name: fractions[:1] for name, fractions in survey.zeros.items()}
    page = survey_page(dataclasses.replace(survey, photos=survey.photos[:1], zeros=zeros))
    assert "From photo to photo" not in page
    assert "lowest to highest photo" not in page
