"""flaxvgg compare: the right order, files that are whole, and one line for what cannot be used."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from pages import PHONE, choose, opened, settled, text
from PIL import Image, ImageFilter

import flaxvgg
from flaxvgg.images.samples import sample_photos
from helpers import REAL_WEIGHTS, check_refused, run_flaxvgg


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photo, blurred a little and a lot, and one of another size."""
    image = flaxvgg.open_image(sample_photos(1)[0]).resize((64, 48))
    image.save(tmp_path / "photo.png")
    (tmp_path / "others").mkdir()
    for name, radius in {"much": 3, "little": 1, "not": 0}.items():
        image.filter(ImageFilter.GaussianBlur(radius)).save(tmp_path / "others" / f"{name}.png")
    return tmp_path


def test_photos_are_sorted_and_written(folder: Path):
    out, metrics = folder / "out", "lpips,dists,psnr,ssim"
    given = [folder / "photo.png", folder / "others", "--metric", metrics, "--out", out]
    result = run_flaxvgg("compare", *given)
    assert result.exit_code == 0, result.output
    told = json.loads((out / "compare.json").read_text("utf-8"))
    names = [Path(pair["image"]).stem for pair in told["pairs"]]
    assert names == ["not", "little", "much"]
    first, second, third = told["pairs"]
    assert (first["lpips"], first["dists"], first["psnr"], first["ssim"]) == (0, 0, None, 1)
    for metric, sign in {"lpips": 1, "dists": 1, "psnr": -1, "ssim": -1}.items():
        assert sign * second[metric] < sign * third[metric]
    model = flaxvgg.vgg16(weights=REAL_WEIGHTS)
    photos = folder / "photo.png", folder / "others" / "much.png"
    pixels = [np.asarray(flaxvgg.open_image(photo)) for photo in photos]
    expected = flaxvgg.lpips(model, *pixels, value_range=(0, 255))
    assert third["lpips"] == pytest.approx(float(expected), rel=1e-6)
    assert flaxvgg.open_image(out / "compare.png").size[0] > 300
    assert result.output.index("little.png") < result.output.index("much.png")


def test_a_page_with_a_swipe(folder: Path, tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    out = folder / "out"
    given = [folder / "photo.png", folder / "others", "--metric", "lpips,psnr", "--out", out]
    result = run_flaxvgg("compare", *given, "--html")
    assert result.exit_code == 0, result.output
    page = out / "compare.html"
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        opened(browser, page, PHONE, "dark")
        assert browser.complaints == []
        sent = [url for url in browser.requests if not url.startswith("data:")]
        assert sent == [page.as_uri()]
        names = "[...document.querySelectorAll('.photos span')].map((x) => x.innerText)"
        assert browser.evaluate(names) == ["not.png", "little.png", "much.png"]
        told = json.loads((out / "compare.json").read_text("utf-8"))["pairs"]
        assert f"{told[0]['lpips']:.4g}" in text(browser, ".facts")
        browser.evaluate("document.querySelectorAll('.photos button')[2].click()")
        settled(browser)
        sides = "[...document.querySelectorAll('.stage > .pane img')].map((x) => x.src)"
        reference, photo = browser.evaluate(sides)
        assert reference != photo
        assert "distance over the image: colours from 0" in text(browser, ".told")
        choose(browser, "swipe", 80)
        clip = browser.evaluate("getComputedStyle(document.querySelector('.over')).clipPath")
        assert clip == "inset(0px 0px 0px 80%)"
        choose(browser, "sort", "psnr")
        browser.evaluate("new Promise(requestAnimationFrame)")
        assert browser.evaluate(names)[1:] == ["much.png", "not.png"]  # infinity is no number
    check_refused(run_flaxvgg("compare", *given[:2], "--html"), "add --out DIR")


def test_a_table_of_pairs_becomes_a_table_of_distances(folder: Path):
    table = "reference,image\nphoto.png,others/much.png\nphoto.png,others/not.png\n"
    (folder / "pairs.csv").write_text(table)
    result = run_flaxvgg("compare", folder / "pairs.csv", "--out", folder / "found.csv")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((folder / "found.csv").read_text("utf-8").splitlines()))
    assert [Path(row["image"]).stem for row in rows] == ["not", "much"]
    assert float(rows[0]["lpips"]) == 0


def test_what_cannot_be_compared_is_named(folder: Path):
    Image.new("RGB", (50, 50)).save(folder / "others" / "small.png")
    (folder / "others" / "broken.png").write_bytes(b"no image")
    result = run_flaxvgg("compare", folder / "photo.png", folder / "others")
    assert result.exit_code == 1
    assert "small.png" in result.stderr
    assert "broken.png" in result.stderr
    assert "much.png" in result.stdout
    result = run_flaxvgg(
        "compare", folder / "photo.png", folder / "others/small.png", "--size", "32x32"
    )
    assert result.exit_code == 0, result.output


def test_bad_requests_get_a_line(folder: Path):
    photo, others = folder / "photo.png", folder / "others"
    check_refused(run_flaxvgg("compare", photo), "no photos to compare it with")
    check_refused(run_flaxvgg("compare", photo.with_name("no.csv")), "no such file: check the path")
    check_refused(run_flaxvgg("compare", photo, others, "--metric", "mse"), "no metric 'mse'")
    check_refused(run_flaxvgg("compare", photo, others, "--size", "big"), "--size is HxW")
    check_refused(run_flaxvgg("compare", photo, folder / "none.png"), "no such file")
    (folder / "pairs.csv").write_text("a,b\n1,2\n")
    check_refused(run_flaxvgg("compare", folder / "pairs.csv"), "line 2 has no reference")
