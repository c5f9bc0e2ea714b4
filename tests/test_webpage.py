"""The web page of a survey, opened in a real browser, on a phone and on a desk."""

import dataclasses
from html import escape
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from pages import DESK, PHONE, choose, opened, settled, text
from PIL import Image

import flaxvgg
from flaxvgg.plotting.webpage import Looks, survey_page
from flaxvgg.sparsity.summary import explanation, headline
from flaxvgg.sparsity.survey import survey_photos
from helpers import small_model

# A name that would do harm in HTML.
EVIL = "<img src=x onerror=alert(1)>&amp;.png"


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, name in enumerate((EVIL, "a_name_that_is_" + "very_" * 20 + "long.png", "third.png")):
        pixels = rng.integers(0, 80 * i + 10, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    layers = ["relu1_1", "pool1", "relu3_2", "relu5_2", "pool5"]
    looks = Looks()
    paths = flaxvgg.find_images(folder)
    survey = survey_photos(small_model(), paths, layers, (32, 64), each=looks.add)
    return survey, looks


@pytest.fixture(scope="module")
def survey(surveyed):
    return surveyed[0]


@pytest.fixture(scope="module")
def looks(surveyed):
    return surveyed[1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(survey, looks, tmp_path):
    """The page with all that it can say: a part of 5,000 photos, some of them broken."""
    problems = (f"{EVIL}: an empty file: get it again", "no-spaces-to-break-at" * 20)
    path = tmp_path / "sparsity.html"
    path.write_text(survey_page(dataclasses.replace(survey, problems=problems, left=4995), looks))
    return path


def widths(browser, selector):
    """How wide what is in an element is, and how much of it can be seen."""
    element = f"document.querySelector({selector!r})"
    return browser.evaluate(f"[{element}.scrollWidth, {element}.clientWidth]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_the_page_in_a_browser(browser, page, survey, size, scheme):
    opened(browser, page, size, scheme)
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.complaints == []
    width, visible = widths(browser, "html")
    assert width == visible == size[0]
    width, visible = widths(browser, ".scroll")
    assert (width > visible) == (size == PHONE)  # the table scrolls in its own box
    assert browser.evaluate("document.querySelectorAll('[onerror]').length") == 0
    assert browser.evaluate("document.querySelectorAll('script').length") == 2

    text = browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.querySelector('h1').innerText") == headline(survey.report)
    assert all(sentence in text for sentence in explanation(survey.report))
    # In both lists of photos, over its maps, and among the problems.
    assert text.count(EVIL) == 4
    assert "5 of 5,000 photos were looked at" in text
    assert "2 of the photos could not be read" in text
    assert "partial: 3 of 5000 photos at 32x64" in text
    settled(browser)
    headings = browser.evaluate(
        "[...document.querySelectorAll('h1,h2:not(.name)')].map(h => h.innerText)"
    )
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


def test_the_table_sorts(browser, page, survey):
    browser.open(page, *DESK)

    def column(press: int, of: int) -> list[str]:
        return browser.evaluate(
            f"""(() => {{
            document.querySelectorAll("thead button")[{press}].click();
            return [...document.querySelectorAll("tbody tr")].map((x) => x.cells[{of}].innerText);
            }})()"""
        )

    layers = list(survey.report.layers)
    zeros = {layer.name: layer.zero_fraction for layer in survey.report}
    assert column(2, 0) == sorted(layers, key=lambda name: -zeros[name])
    head = "document.querySelectorAll('thead th')[2].getAttribute('aria-sort')"
    assert browser.evaluate(head) == "descending"
    assert column(2, 0) == sorted(layers, key=lambda name: zeros[name])
    assert browser.evaluate(head) == "ascending"
    assert column(2, 0) == layers
    values = [int(x.replace(",", "")) for x in column(1, 1)]
    assert values == sorted(values, reverse=True)
    assert column(5, 5)[-2:] == ["", ""]  # poolings, which have none, come last


def test_the_layer_slider_and_the_channels(browser, page, survey):
    opened(browser, page, DESK)
    example = survey.examples[0]
    assert "zeros by place at relu5_2: colours from" in text(browser, ".told")
    choose(browser, "depth", 0)
    assert "at relu1_1" in text(browser, ".told")
    assert text(browser, ".depth output") == "relu1_1"
    share = example.where["relu1_1"]
    facts = text(browser, ".facts")
    assert f"{100 * share.mean():.1f} % zero" in facts
    choose(browser, "sort", "zeros")
    browser.evaluate("new Promise(requestAnimationFrame)")
    shown = browser.evaluate(
        "[...document.querySelectorAll('.photos small')].map((x) => parseFloat(x.innerText))"
    )
    expected = sorted((100 * e.where["relu1_1"].mean() for e in survey.examples), reverse=True)
    assert shown == pytest.approx(expected, abs=0.06)

    name = browser.evaluate("document.querySelector('.viewer .name').innerText")
    example = next(x for x in survey.examples if x.photo.name == name)
    largest = example.maps.max(axis=(0, 1))
    order = sorted(range(512), key=lambda c: (-largest[c], c))
    silent = int((example.maps == 0).all(axis=(0, 1)).sum())
    assert f"512 channels of relu5_2: {silent} zero everywhere" in text(browser, ".heading")

    def told(channel: int) -> str:
        share = 100 * (example.maps[..., channel] == 0).mean()
        return (
            f"Channel {channel}: rank {order.index(channel) + 1} of 512 by its largest value",
            f"{share:.1f} % of it is zero",
        )

    browser.evaluate(
        """(() => {
        const input = document.querySelector('.channels input');
        input.value = 100;
        input.dispatchEvent(new Event("input"));
        })()"""
    )
    found = text(browser, ".channels .note")
    assert all(part in found for part in told(100))
    browser.evaluate(
        """(() => {
        const select = document.querySelector('.channels select');
        select.value = "largest";
        select.dispatchEvent(new Event("change"));
        const sheet = document.querySelector('.sheet canvas');
        const { left, top, width, height } = sheet.getBoundingClientRect();
        const [clientX, clientY] = [left + width * 2.5 / 32, top + height * 1.5 / 16];
        sheet.dispatchEvent(new MouseEvent("click", { clientX, clientY, bubbles: true }));
        })()"""
    )
    found = text(browser, ".channels .note")
    assert all(part in found for part in told(order[32 + 2]))


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


def test_names_are_text(survey, looks):
    page = survey_page(dataclasses.replace(survey, problems=(EVIL,)), looks)
    assert EVIL not in page
    assert "<img src=x" not in page
    assert escape(EVIL) in page
    assert "http" not in page.replace("http-equiv", "")


def test_of_many_photos_both_ends_are_listed(survey, looks):
    count = 1000
    photos = tuple(Path(f"photo{i}.png") for i in range(count))
    zeros = {name: np.linspace(0, 1, count) for name in survey.zeros}
    page = survey_page(dataclasses.replace(survey, photos=photos, zeros=zeros), looks)
    listed = [i for i in range(count) if f"photo{i}.png" in page]
    assert listed == [*range(12), *range(988, 1000)]
    assert page.index("photo999.png") < page.index("photo988.png") < page.index("photo11.png")
    assert "976 photos between these" in page


def test_one_photo_has_no_spread(survey, looks):
    zeros = {name: fractions[:1] for name, fractions in survey.zeros.items()}
    page = survey_page(dataclasses.replace(survey, photos=survey.photos[:1], zeros=zeros), looks)
    assert "From photo to photo" not in page
    assert "lowest to highest photo" not in page
