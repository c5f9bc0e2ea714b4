"""Pairs into a store: every one once, what broke named, and a run that goes on where one ended."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from PIL import Image, ImageFilter

import flaxvgg
import flaxvgg.commands.streaming
from flaxvgg.images.samples import sample_photos
from flaxvgg.perceptual.photos import PIXELS, pixel_metric
from flaxvgg.streaming import Store, compare_job, pairs_source, read_distances, run, stream
from helpers import REAL_WEIGHTS, check_refused, run_flaxvgg, tiny_vgg

# Distances by the network are slow: only the pixels are compared where they do not matter.
OF_PIXELS = ("psnr", "ssim")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photo, it blurred in seven ways, one of another size, no image; and the table of pairs."""
    image = flaxvgg.open_image(sample_photos(1)[0]).resize((64, 48))
    image.save(tmp_path / "photo.png")
    (tmp_path / "others").mkdir()
    for i in range(7):
        image.filter(ImageFilter.GaussianBlur(i)).save(tmp_path / "others" / f"{i}.png")
    image.resize((50, 40)).save(tmp_path / "others" / "small.png")
    (tmp_path / "others" / "broken.png").write_bytes(b"no image")
    names = [*(f"others/{i}.png" for i in range(7)), "others/small.png", "others/broken.png"]
    rows = [*(f"photo.png,{name}" for name in names), "others/broken.png,photo.png"]
    rows += [rows[0], f"photo.png,{tmp_path}/others/2.png"]  # twice, once by another path
    (tmp_path / "pairs.csv").write_text("\n".join(["reference,image", *rows]))
    return tmp_path


def _pairs(folder: Path, count: int = 7) -> list[tuple[Path, Path]]:
    return [(folder / "photo.png", folder / "others" / f"{i}.png") for i in range(count)]


@pytest.mark.slow
def test_a_table_of_pairs_goes_into_a_store(folder: Path):
    out, metrics = folder / "d.zarr", "lpips,dists,psnr,ssim"
    given = ["compare", folder / "pairs.csv", "--metric", metrics, "--size", "48x64", "--out", out]
    result = run_flaxvgg(*given)
    assert result.exit_code == 1  # for the broken ones
    assert "8 done, 2 broken, 0 left, at 48x64" in result.stdout
    assert "8 pairs" in result.stdout
    assert "left out: others/broken.png beside photo.png: no image" in result.stderr
    assert "left out: photo.png beside others/broken.png: its reference: no image" in result.stderr
    with xarray.open_zarr(out, consolidated=False) as stored:
        assert stored.photo.values.tolist()[:2] == ["others/0.png", "others/1.png"]
        assert stored.reference.values.tolist() == ["photo.png"] * 9 + ["others/broken.png"]
        assert np.isnan(stored.lpips.values[8:]).all()
        assert (np.diff(stored.lpips.values[:7]) > 0).all()
        found = {name: stored[name].values[:8] for name in metrics.split(",")}
    assert (found["lpips"][0], found["dists"][0], found["psnr"][0]) == (0, 0, np.inf)
    # The same as one pair at a time, whatever stood beside it in its batch.
    table = run_flaxvgg(*given[:-1], folder / "d.csv")
    assert table.exit_code == 1
    lines = (folder / "d.csv").read_text("utf-8").splitlines()[1:]
    names = [f"others/{name}.png" for name in (*range(7), "small")]
    for line in lines:
        _, name, *values = line.split(",")
        if Path(name).name != "broken.png":
            row = names.index(f"others/{Path(name).name}")
            stored_values = [found[metric][row] for metric in found]
            np.testing.assert_allclose(stored_values, np.array(values, float), rtol=1e-5)
    again = run_flaxvgg(*given)
    assert again.exit_code == 1
    assert "going on: 10 of 10 images are done" in again.stdout
    told = run_flaxvgg("info", out)
    assert "compare of vgg16" in told.stdout


def test_every_pair_once_and_on_from_where_it_was_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run, "_UNIT_BATCHES", 2)
    source = pairs_source([*_pairs(folder), _pairs(folder)[3]], folder)
    assert source.names == [f"others/{i}.png beside photo.png" for i in range(7)]
    job = compare_job(tiny_vgg(), OF_PIXELS)
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    out = folder / "d.zarr"
    options = {"size": None, "batch": 1}
    first = stream(job, source, out, stop=stop, **options)
    assert 0 < first.now < 7
    assert first.now + first.left == 7
    second = stream(job, source, out, **options)
    assert second.left == 0
    assert first.now + second.now == 7
    whole = stream(job, source, folder / "e.zarr", **options)
    assert whole.now == 7
    pixels = [np.asarray(flaxvgg.open_image(path)) for _, path in _pairs(folder)]
    for name in OF_PIXELS:
        expected = [pixel_metric(name, pixels[0], other) for other in pixels]
        for streamed in (second, whole):
            np.testing.assert_array_equal(read_distances(streamed.store)[name], expected)


def test_pairs_of_their_own_sizes(folder: Path):
    small = folder / "others" / "small.png"
    turned = Image.open(small).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.save(folder / "others" / "turned.png")
    pairs = [*_pairs(folder, 2), (folder / "photo.png", small)]
    pairs += [(small, folder / "others" / "turned.png")]
    source = pairs_source(pairs, folder)
    found = stream(compare_job(tiny_vgg(), OF_PIXELS), source, folder / "d.zarr", size=None)
    name = "others/small.png beside photo.png"
    problem = "it has 40x50 pixels, and its reference 48x64: give a --size"
    assert found.problems == {name: problem}
    assert set(found.store.arrays()) == {
        f"{size}/{metric}" for size in ("48x64", "40x50") for metric in OF_PIXELS
    }
    distances = read_distances(found.store)["ssim"]
    assert distances[0] == 1
    assert len(distances) == 3
    assert distances[2] < 1


def test_another_reference_is_another_store(folder: Path):
    job = compare_job(tiny_vgg(), ["psnr"])
    source = pairs_source(_pairs(folder, 2), folder)
    out = folder / "d.zarr"
    stream(job, source, out, size=(32, 32))
    flaxvgg.open_image(folder / "others" / "6.png").save(folder / "photo.png")
    with pytest.raises(ValueError, match="2 of those that are done have changed"):
        stream(job, source, out, size=(32, 32))
    swapped = pairs_source([pair[::-1] for pair in _pairs(folder, 2)], folder)
    with pytest.raises(ValueError, match="is of other images: 2 added"):
        stream(job, swapped, out, size=(32, 32))
    # One that is broken is done again once it can be read.
    other = folder / "others" / "broken.png"
    source = pairs_source([(folder / "photo.png", other), *_pairs(folder, 1)], folder)
    out = folder / "e.zarr"
    assert len(stream(job, source, out, size=(32, 32)).problems) == 1
    flaxvgg.open_image(folder / "photo.png").save(other)
    assert not stream(job, source, out, size=(32, 32)).problems
    assert list(zarr.open_group(out, mode="r")["status"][:]) == [1, 1]


def test_distances_by_the_network_are_those_of_the_library(folder: Path):
    model = flaxvgg.vgg16(weights=REAL_WEIGHTS)
    source = pairs_source(_pairs(folder, 2), folder)
    job = compare_job(model, ["lpips"])
    found = stream(job, source, folder / "d.zarr", size=None, batch=2)
    pixels = np.stack([np.asarray(flaxvgg.open_image(path)) for _, path in _pairs(folder, 2)])
    expected = flaxvgg.lpips(model, pixels[[0, 0]], pixels, value_range=PIXELS)
    np.testing.assert_allclose(read_distances(found.store)["lpips"], expected, rtol=1e-6)
    assert Store(found.store.path).settings["preprocessing"]["fit"] == "stretch"


def test_bad_requests_get_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch):
    table, out = folder / "pairs.csv", folder / "d.zarr"
    check_refused(run_flaxvgg("compare", table, "--batch", "2"), "--batch is for a store")
    check_refused(run_flaxvgg("compare", table, "--distributed"), "--distributed is for a store")
    check_refused(run_flaxvgg("compare", table, folder, "--out", out), "leave the others out")
    check_refused(
        run_flaxvgg("compare", table, "--size", "0x0", "--out", out), "--size is at least 32x32"
    )
    monkeypatch.setattr(flaxvgg.commands.streaming, "load_model", lambda *_: tiny_vgg())
    refused = run_flaxvgg("compare", table, "--out", out)
    check_refused(refused, "LPIPS is defined on the convolutions of vgg16, not of vgg11")
    assert not out.exists()


def test_json_of_a_store_of_pairs(folder: Path):
    given = [folder / "photo.png", *(folder / "others" / f"{i}.png" for i in range(3))]
    options = ["--metric", "psnr", "--size", "48x64", "--out", folder / "d.zarr", "--json"]
    result = run_flaxvgg("compare", *given, *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["pairs"] == 3
    psnr = found["distances"]["psnr"]
    assert psnr["most"] is None  # of equal images it is infinite
    assert 0 < psnr["least"] < psnr["median"]
