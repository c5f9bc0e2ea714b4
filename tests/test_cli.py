"""The command line as a user meets it: features, demo, info, and what it says to bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from typer.testing import CliRunner

import flaxvgg
from convert.__main__ import app as convert
from flaxvgg.commands.cli import app
from flaxvgg.commands.options import parse_size
from flaxvgg.images.samples import sample_photos
from flaxvgg.plotting.demo import demo_figure
from helpers import REAL_WEIGHTS, check_refused, run_flaxvgg, small_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The real VGG16 convolutions, converted."""
    path = tmp_path_factory.mktemp("weights") / "real"
    result = CliRunner().invoke(convert, [REAL_WEIGHTS, "--out", str(path)])
    assert result.exit_code == 0, result.output
    yield path
    shutil.rmtree(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in sample_photos(3):
        shutil.copy(photo, folder)
    return folder


def test_features_of_a_folder(tmp_path, weights, photos):
    out = tmp_path / "features.npz"
    layers = "block5_pool,features.29,conv1_1"
    options = "--weights", weights, "--size", "64x96", "--layers", layers, "--out", out
    result = run_flaxvgg("features", photos, *options)
    assert result.exit_code == 0, result.output
    with np.load(out) as arrays:
        assert set(arrays) == {"block5_pool", "features.29", "conv1_1", "gap", "photos"}
        assert arrays["block5_pool"].shape == (3, 2, 3, 512)
        assert arrays["conv1_1"].shape == (3, 64, 96, 64)
        names = sorted(photo.name for photo in sample_photos(3))
        assert [path.rpartition("/")[2] for path in arrays["photos"]] == names
        model = flaxvgg.load(weights)
        images = flaxvgg.load_images(list(arrays["photos"]), (64, 96), model.preprocessing)
        expected = np.asarray(jax.jit(lambda model, x: model.features(x))(model, images))
        np.testing.assert_allclose(arrays["block5_pool"], expected, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(arrays["gap"], expected.mean((1, 2)), rtol=1e-4, atol=1e-3)
        zeros = f"{(arrays['block5_pool'][0] == 0).mean():.1%}"
    assert zeros in result.stdout


def test_a_last_batch_that_is_not_full(tmp_path, weights, photos):
    for i in range(7):
        shutil.copy(photos / "coffee.png", photos / f"more{i}.png")
    out = tmp_path / "features.npz"
    run_flaxvgg("features", photos, "--weights", weights, "--size", "32x32", "--out", out)
    with np.load(out) as arrays:
        assert arrays["pool5"].shape == (10, 1, 1, 512)
        copies = ["more" in path or "coffee" in path for path in arrays["photos"]]
        assert sum(copies) == 8
        same = arrays["pool5"][copies]
        np.testing.assert_allclose(same, same[:1].repeat(8, 0), rtol=1e-5, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".npz"] == ["features.npz"]


@pytest.mark.usefixtures("small_sums")
def test_demo(tmp_path, weights, photos):
    out = tmp_path / "demo"
    result = run_flaxvgg("demo", photos, "--weights", weights, "--size", "64x64", "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["demo.png", "features.npz", "zeros.json"]
    with Image.open(out / "demo.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 600
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5000  # photos, maps and curves
    zeros = json.loads((out / "zeros.json").read_text())["zero_fraction"]
    assert list(zeros)[:3] == ["relu1_1", "relu1_2", "pool1"]
    assert len(zeros) == 18
    assert set(zeros["pool5"]) == {"astronaut", "chelsea", "coffee"}
    with np.load(out / "features.npz") as arrays:
        for i, path in enumerate(arrays["photos"]):
            name = path.rpartition("/")[2].partition(".")[0]
            assert zeros["pool5"][name] == pytest.approx((arrays["pool5"][i] == 0).mean())


@pytest.fixture
def small_sums(monkeypatch):
    """The demo counts the zeros of its first photo at smaller sizes: those of one test are real."""
    monkeypatch.setattr("flaxvgg.commands.demonstration.SIZES", ((32, 32), (64, 64), (48, 96)))


@pytest.fixture
def maps(monkeypatch):
    """The rows of heat maps that the demo draws."""
    found = []

    def draw(names, pictures, alike, maps, zeros, sums, title):
        found.extend(maps)
        return demo_figure(names, pictures, alike, maps, zeros, sums, title)

    monkeypatch.setattr("flaxvgg.commands.demonstration.demo_figure", draw)
    return found


def test_demo_names_what_is_in_photos_that_the_sample_head_knows(tmp_path, weights, photos, maps):
    result = run_flaxvgg("demo", photos, "--weights", weights, "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    eigen, cams = maps
    assert eigen.caption.startswith("Eigen-CAM of relu5_3")
    assert "fitted to" not in cams.caption  # these are copies: whose photos they are is not known
    assert [title.split()[0] for title in cams.titles] == ["astronaut", "cat", "cup"]
    sizes = json.loads((tmp_path / "demo" / "zeros.json").read_text())["sizes"]["astronaut"]
    assert [size["values"] for size in sizes.values()] == [25_088, 131_072, 214_016]
    assert list(sizes) == ["224x224", "512x512", "1242x375"]
    assert all(0.8 < size["zeros"] / size["values"] < 0.9 for size in sizes.values())
    assert cams.heats.shape == (3, 224, 224)
    assert cams.heats.max() == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.usefixtures("small_sums")
def test_demo_of_a_gap_network_without_pool5(tmp_path, photos, maps):
    path = tmp_path / "gap.safetensors"
    model = flaxvgg.with_gap(small_model(), 3, channels=16, rngs=nnx.Rngs(0))
    flaxvgg.save(model, path)
    out = tmp_path / "demo"
    # Names that would end the drawing, and two that are called alike.
    (photos / "astronaut.png").rename(photos / "$^$ [red]\n\udce9.png")
    (photos / "more").mkdir()
    (photos / "chelsea.png").rename(photos / "more" / "coffee.png")
    result = run_flaxvgg("demo", photos, "--weights", path, "--size", "64x64", "--out", out)
    assert result.exit_code == 0, result.output
    assert [row.caption.partition(":")[0] for row in maps] == [
        "Eigen-CAM of relu5_2"
    ]  # no sample head
    with np.load(out / "features.npz") as arrays:
        assert set(arrays) == {"relu6", "gap", "photos"}
        assert arrays["relu6"].shape == (3, 4, 4, 16)
        np.testing.assert_allclose(arrays["gap"], arrays["relu6"].mean((1, 2)), rtol=1e-4)
    zeros = json.loads((out / "zeros.json").read_text())["zero_fraction"]
    assert set(zeros["relu1_1"]) == {"$^$ [red]__", "coffee", "coffee-2"}
    assert (out / "demo.png").exists()


def test_info(weights):
    environment = run_flaxvgg("info").stdout
    assert flaxvgg.ARCHITECTURES[0] in environment
    assert "flaxvgg" in environment
    record = " ".join(run_flaxvgg("info", weights).stdout.split())
    assert "architecture vgg16" in record
    assert "14,714,688" in record
    assert "preprocessing torchvision" in record
    assert "no logits: these weights come without a classifier" in record


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, weights, photos):
    out = tmp_path / "features.npz"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    for arguments, words in [
        ((tmp_path / "nothing",), "no such file or folder"),
        ((broken,), "broken.jpg"),
        ((photos, "--size", "large"), "--size is HxW"),
        ((photos, "--size", "16x16"), "at least 32x32"),
        ((photos, "--layers", "conv9_9"), "has no layer 'conv9_9'"),
        ((photos, "--layers", "fc6"), "no layer 'fc6': these weights come without a classifier"),
        ((photos, "--arch", "vgg17"), "unknown architecture 'vgg17'"),
        ((photos, "--weights", tmp_path / "none.pth"), "none.pth does not exist"),
        ((photos, "--weights", photos), "is a directory"),
    ]:
        check_refused(
            run_flaxvgg("features", "--weights", weights, "--out", out, *arguments), words
        )
        assert not out.exists()
    for name, words in [("out.txt", ".npz"), ("no/out.npz", "create it first")]:
        result = run_flaxvgg("features", photos, "--weights", weights, "--out", tmp_path / name)
        assert result.exit_code == 2
        assert words in result.stderr
    result = run_flaxvgg("demo", photos, "--weights", weights, "--out", broken)
    assert result.exit_code == 2
    assert broken.read_bytes() == b"no photo"
    assert run_flaxvgg("info", broken).exit_code == 2


@pytest.mark.slow
@pytest.mark.usefixtures("small_sums")
def test_a_broken_photo_among_good_ones_is_left_out_and_named(tmp_path, photos):
    weights, out = tmp_path / "vgg11.safetensors", tmp_path / "features.npz"
    flaxvgg.save(small_model(), weights)
    broken = photos / "b\udce9.png"
    broken.write_bytes(b"no photo")
    options = ["--weights", weights, "--size", "32x32", "--out"]
    for command, written in ("features", out), ("demo", tmp_path / "demo"):
        result = run_flaxvgg(command, photos, *options, written)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith(f"left out: {photos}/b\\xe9.png: no image")
        with np.load(out if written == out else written / "features.npz") as arrays:
            names = [Path(path).name for path in arrays["photos"]]
            assert names == ["astronaut.png", "chelsea.png", "coffee.png"]
            assert len(arrays["gap"]) == 3
    assert (tmp_path / "demo" / "demo.png").exists()
    for command, written in ("features", tmp_path / "no.npz"), ("demo", tmp_path / "no"):
        result = run_flaxvgg(command, broken, *options, written)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {photos}/b\\xe9.png: no image")
        assert not written.exists()


def test_demo_without_photos_says_what_to_do(tmp_path, weights, monkeypatch):
    monkeypatch.setattr("flaxvgg.commands.demonstration.sample_photos", list)
    result = run_flaxvgg("demo", "--weights", weights, "--out", tmp_path / "demo")
    assert result.exit_code == 2
    assert "install scikit-image" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_pictures_without_matplotlib_say_what_to_do(tmp_path, weights, photos, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = run_flaxvgg(
        "demo", photos, "--weights", weights, "--size", "32x32", "--out", tmp_path / "demo"
    )
    assert result.exit_code == 2
    assert "pip install matplotlib" in result.stderr


def test_parse_size():
    assert parse_size("375x1242") == (375, 1242)
    assert parse_size("224X224") == (224, 224)
    for text in ("224", "x224", "224x", "-1x224", "2.5x3", ""):
        with pytest.raises(ValueError, match="HxW"):
            parse_size(text)


def test_help_names_every_command():
    result = run_flaxvgg("--help")
    assert result.exit_code == 0
    commands = ("features", "demo", "sparsity", "cam", "train", "info")
    assert all(command in result.stdout for command in commands)


_COMPILE = """
import sys
from flaxvgg.commands.console import keep_compiled
keep_compiled()
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 3 + 1)(2.0)
sys.stdout.write("hit" if "/jax/compilation_cache/cache_hits" in events else "miss")
"""


@pytest.mark.slow
def test_the_command_line_keeps_what_it_compiled(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = kept | {"XDG_CACHE_HOME": str(tmp_path)}

    def compiled(**extra: str) -> str:
        command = [sys.executable, "-c", _COMPILE]
        return subprocess.check_output(command, env=environment | extra, text=True)

    assert [compiled(), compiled()] == ["miss", "hit"]
    (folder,) = (tmp_path / "flaxvgg").iterdir()
    assert folder.name.startswith("xla-")
    elsewhere = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}
    assert compiled(**elsewhere) == "miss"


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.filterwarnings("always::flaxvgg.images.finding.PassedOver")
@pytest.mark.usefixtures("small_sums")
def test_demo_of_odd_names(tmp_path, weights, photos):
    """What is no UTF-8, a formula to matplotlib, of another script, and the same name twice."""
    data = (photos / sorted(os.listdir(photos))[0]).read_bytes()
    odd = tmp_path / "odd"
    for name in (b"caf\xe9.png", b"a $^$ [red]b.png", "写真.png".encode(), b"c\nd.png"):
        (odd / "deep").mkdir(parents=True, exist_ok=True)
        Path(os.fsdecode(os.fsencode(odd) + b"/" + name)).write_bytes(data)
    (odd / "deep" / "写真.png").write_bytes(data)
    (odd / "e.heic").touch()
    options = ["--weights", str(weights), "--size", "64x64", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["demo", str(odd), *options])
    assert result.exit_code == 0, result.output
    said = f"{odd}: 1 file passed over: 1 .heic (convert it to JPEG or PNG)"
    assert said in result.stderr
    assert "Warning" not in result.output
    assert sorted(os.listdir(tmp_path / "out")) == ["demo.png", "features.npz", "zeros.json"]
    zeros = json.loads((tmp_path / "out" / "zeros.json").read_text())["zero_fraction"]
    assert set(zeros["pool5"]) == {"caf_", "c_d", "a $^$ [red]b", "写真", "写真-2"}
