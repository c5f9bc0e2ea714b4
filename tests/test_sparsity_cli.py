"""flaxvgg sparsity as a user meets it: numbers, files, broken photos, and Ctrl-C."""

import dataclasses
import json
import signal
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

import flaxvgg
from flaxvgg.commands.sparsity_files import write_survey
from flaxvgg.plotting.sparsity import map_sheet
from flaxvgg.plotting.webpage import Looks
from flaxvgg.sparsity.survey import survey_photos
from helpers import check_refused, run_flaxvgg, small_model

SIZE = (32, 64)
FILES = ["maps.png", "sparsity.json", "sparsity.png", "where.png"]
# A name that would do harm in HTML, in matplotlib's formulas, in rich's markup and in a terminal.
EVIL = "$\\bad$[red]\x1b[31m\n\udce9<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    flaxvgg.save(model, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine photos in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    names = [*(f"{i}.png" for i in range(7)), EVIL, "more/8.png"]
    for i, name in enumerate(names):
        pixels = rng.integers(0, 30 * i + 10, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def survey(model, photos):
    return survey_photos(model, flaxvgg.find_images(photos), None, SIZE)


run = partial(run_flaxvgg, "sparsity")


@pytest.fixture
def loaded(model, monkeypatch):
    """The model is there, as it compiles faster than one that was loaded."""
    monkeypatch.setattr("flaxvgg.commands.sparsity.load_model", lambda *_: model)


@pytest.fixture
def no_model(monkeypatch):
    """Nothing may be loaded: what is wrong is seen before."""

    def load(*_):
        pytest.fail("the model was loaded")

    monkeypatch.setattr("flaxvgg.commands.sparsity.load_model", load)


def test_numbers_are_those_of_the_activations(survey, model, photos):
    """Nine photos are one full batch and one that is filled up, which must not be counted."""
    paths = flaxvgg.find_images(photos)
    assert list(survey.photos) == paths
    assert not survey.partial
    images = flaxvgg.load_images(paths, SIZE, model.preprocessing)
    names = ["relu1_1", "pool1", "conv2_1", "relu2_1", "relu5_2", "pool5"]
    taps = jax.jit(lambda model, x: model.activations(x, names))(model, images)
    assert survey.report.images == 9
    for name in set(names) - {"conv2_1"}:
        layer, tap = survey.report.layer(name), np.asarray(taps[name])
        assert layer.values.sum() == tap.size
        # Another batch size rounds otherwise where a value is next to zero.
        assert abs(layer.zeros.sum() - (tap == 0).sum()) <= 2
        expected = (tap == 0).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(survey.zeros[name], expected, atol=2.5 / tap[0].size)
    assert survey.report.layer("pool5").dead.sum() >= 20
    negatives = survey.report.layer("relu2_1").negatives_before
    assert abs(negatives.sum() - (np.asarray(taps["conv2_1"]) < 0).sum()) <= 2
    for i, example in enumerate(survey.examples):
        expected = (np.asarray(taps["relu5_2"][i]) == 0).mean(axis=-1)
        np.testing.assert_allclose(example.where["relu5_2"], expected, atol=2.5 / 512)
        np.testing.assert_allclose(example.maps, taps["relu5_2"][i], rtol=1e-3, atol=1e-5)
    assert survey.mapped == "relu5_2"
    assert list(survey.examples[0].where) == ["relu1_1", "relu2_1", "relu3_2", "relu4_2", "relu5_2"]
    assert [example.photo for example in survey.examples] == paths[:3]


def test_a_broken_photo_among_good_ones(tmp_path, loaded, photos):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    out = tmp_path / "made" / "here"
    layers = "block5_pool,features.0,relu5_2"
    result = run(broken, photos, "--size", "32x64", "--out", out, "--html", "--layers", layers)
    assert result.exit_code == 1, result.output
    assert f"left out: {broken}: no image" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "sparsity.html"])
    found = json.loads((out / "sparsity.json").read_text())
    assert not found["partial"]
    assert found["problems"] == [result.stderr.strip().removeprefix("left out: ")]
    assert found["images"] == len(found["photos"]) == 9
    assert found["size"] == list(SIZE)
    assert [layer["layer"] for layer in found["layers"]] == layers.split(",")
    pool5 = found["layers"][0]
    by_photo = found["zero_fraction_by_photo"]["block5_pool"]
    assert np.mean(by_photo) == pytest.approx(pool5["zeros"] / pool5["values"])
    percent = f"{100 * pool5['zeros'] / pool5['values']:.1f} %"
    assert f"{percent} of block5_pool is zero" in result.stdout
    assert f"{percent} of block5_pool is zero" in (out / "sparsity.html").read_text()
    for name in FILES:
        if name.endswith(".png"):
            with Image.open(out / name) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            assert min(pixels.shape[:2]) > 300
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def interrupt_at(monkeypatch, *calls):
    """Press Ctrl-C when the photos of these numbers are read."""
    load_pixels, count = flaxvgg.images.batches.load_pixels, 0

    def load(*arguments):
        nonlocal count
        count += 1
        if count in calls:
            signal.raise_signal(signal.SIGINT)
        return load_pixels(*arguments)

    monkeypatch.setattr("flaxvgg.images.batches.load_pixels", load)


def test_ctrl_c_leaves_a_partial_report(tmp_path, loaded, photos, monkeypatch):
    interrupt_at(monkeypatch, 5)
    handler = signal.getsignal(signal.SIGINT)
    out = tmp_path / "out"
    result = run(photos, "--size", "32x32", "--out", out, "--html", "--layers", "relu1_1")
    assert result.exit_code == 130, result.output
    assert signal.getsignal(signal.SIGINT) is handler
    assert "stopped: 1 of the photos" in result.stderr
    assert "partial: 8 of 9 photos" in " ".join(result.stdout.split())
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "sparsity.html"])
    found = json.loads((out / "sparsity.json").read_text())
    assert found["partial"]
    assert found["photos_not_looked_at"] == 1
    assert found["images"] == len(found["photos"]) == 8
    assert found["layers"][0]["values"] == 8 * 32 * 32 * 64  # the whole batch, and no other
    assert "Partial." in (out / "sparsity.html").read_text()


def test_a_second_ctrl_c_stops_at_once(tmp_path, loaded, photos, monkeypatch):
    interrupt_at(monkeypatch, 3, 4)
    result = run(photos, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "is as it was" in result.stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_pictures_are_made_leaves_the_folder(tmp_path, survey, monkeypatch):
    def where_figure(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("flaxvgg.commands.sparsity_files.where_figure", where_figure)
    (tmp_path / "maps.png").write_text("an older one")
    with pytest.raises(KeyboardInterrupt):
        write_survey(survey, tmp_path, Looks())
    assert [path.name for path in tmp_path.iterdir()] == ["maps.png"]
    assert (tmp_path / "maps.png").read_text() == "an older one"


def test_bad_input_is_one_line_before_the_model_is_loaded(tmp_path, photos, no_model):
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.touch()
    for arguments, words in [
        ((empty,), "no image in this folder"),
        ((tmp_path / "nothing",), "no such file or folder"),
        ((photos, "--size", "16x16"), "at least 32x32"),
        ((photos, "--size", "large"), "--size is HxW"),
        ((photos, "--html"), "add --out DIR"),
        ((photos, "--out", file), "is a file: choose a folder"),
        ((photos, "--out", photos), "where pictures will be: choose another folder"),
    ]:
        check_refused(run(*arguments), words)
    assert run().exit_code == 2  # no photo


def test_pictures_need_matplotlib(tmp_path, photos, no_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = run(photos, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install matplotlib" in result.stderr


def test_nothing_is_written_where_nothing_can_be_counted(tmp_path, weights, photos):
    broken = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for path in broken:
        path.write_bytes(b"no photo")
    result = run(*broken, "--weights", weights, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert all(str(path) in result.stderr for path in broken)
    result = run(photos, "--weights", weights, "--out", tmp_path / "out", "--layers", "fc6")
    assert result.exit_code == 2
    assert "no layer 'fc6': these weights come without" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_sheet_of_maps_tells_zeros_from_silence():
    maps = np.zeros((2, 3, 4), np.float32)
    maps[0, 1, 2] = 5  # channel 2 fires in one place; the others are silent
    sheet = map_sheet(maps)
    zoom = 5  # so that these maps are about 16 pixels large
    height, width = 2 * zoom + 1, 3 * zoom + 1  # with a line above and left of each
    assert sheet.shape == (2 * height, 2 * width, 3)
    tiles = sheet.reshape(2, height, 2, width, 3).swapaxes(1, 2).reshape(4, height, width, 3)
    tiles = tiles[:, 1 + zoom // 2 :: zoom, 1 + zoom // 2 :: zoom]
    assert (tiles[[0, 1, 3]] == (62, 98, 140)).all()
    bright = (tiles[2].sum(axis=-1) > 300).tolist()
    assert bright == [[False, True, False], [False] * 3]
    assert (tiles[2].sum(axis=-1) == 0).sum() == 5  # exact zeros are black
    assert map_sheet(np.ones((100, 60, 64), np.float32)).max() == 255  # thinned out, not refused


def test_a_report_plots_without_photos(survey):
    figure = survey.report.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")  # by which a notebook shows it
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    expected = [100 * layer.zero_fraction for layer in survey.report]
    assert sorted(heights) == pytest.approx(sorted(expected))
    negative = figure.axes[0].lines[0].get_ydata()
    relus = [layer for layer in survey.report if layer.kind == "relu"]
    share = [100 * layer.negatives_before.sum() / layer.values.sum() for layer in relus]
    assert list(negative) == pytest.approx(share)


def test_titles_say_what_is_partial(survey):
    assert survey.title == "vgg11, random initialisation: 9 photos at 32x64"
    some = dataclasses.replace(survey, left=31)
    assert some.title == "vgg11, random initialisation: partial: 9 of 40 photos at 32x64"
    assert some.partial
