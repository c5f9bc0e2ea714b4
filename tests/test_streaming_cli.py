"""The commands that stream, as a user meets them: what they show, and what they refuse."""

import numpy as np
import pytest
import xarray
from PIL import Image

import flaxvgg.commands.streaming
from flaxvgg.streaming import Store
from helpers import TINY_GAP, run_flaxvgg, tiny_vgg


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A tiny network in the place of the one that is asked for."""
    monkeypatch.setattr(
        flaxvgg.commands.streaming, "load_model", lambda weights, arch: tiny_vgg(TINY_GAP)
    )


@pytest.fixture
def photos(tmp_path):
    """Five images, one of them broken, and a manifest with boxes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes(b"none")
    lines = [f"{i}.png,{i % 3},5,5,30,30" for i in range(5)]
    (folder / "boxes.csv").write_text("\n".join(["image,label,left,top,right,bottom", *lines]))
    return folder


def test_features_into_a_store(tmp_path, photos):
    out = tmp_path / "f.zarr"
    command = ("features", photos, "--layers", "pool2,logits", "--size", "32x32", "--out", out)
    result = run_flaxvgg(*command)
    assert result.exit_code == 1  # for the broken one
    assert "4 done, 1 broken, 0 left" in result.stdout
    assert "pool2 (5, 8, 8, 12)" in result.stdout
    assert "left out: 4.png: no image that Pillow reads" in result.stderr
    with xarray.open_zarr(out, consolidated=False) as stored:
        assert stored.name.values.tolist() == [f"{i}.png" for i in range(5)]
        assert stored.logits.shape == (5, 5)
    again = run_flaxvgg(*command)
    assert again.exit_code == 1
    assert "going on: 5 of 5 images are done" in again.stdout
    told = run_flaxvgg("info", out)
    assert told.exit_code == 0
    assert "features of vgg11" in told.stdout


def test_native_sizes(tmp_path, photos):
    Image.new("RGB", (64, 33)).save(photos / "5.png")
    options = "--layers", "pool2", "--size", "native"
    result = run_flaxvgg("features", photos, *options, "--out", tmp_path / "n.zarr")
    assert "40x48/pool2 (6, 10, 12, 12)" in result.stdout
    assert "33x64/pool2 (6, 8, 16, 12)" in result.stdout


def test_sparsity_into_a_store(tmp_path, photos):
    result = run_flaxvgg("sparsity", photos, "--size", "32x32", "--out", tmp_path / "s.zarr")
    assert result.exit_code == 1
    assert "of pool2 is zero" in result.stdout
    assert "vgg11, random initialisation: 4 photos" in result.stdout
    assert "4.png" in result.stderr


def test_sparsity_of_native_sizes(tmp_path, photos):
    Image.new("RGB", (64, 33)).save(photos / "5.png")
    result = run_flaxvgg("sparsity", photos, "--size", "native", "--out", tmp_path / "s.zarr")
    assert "vgg11, random initialisation: 5 photos" in result.stdout


def test_maps_and_localisation(tmp_path, photos):
    options = "--size", "32x32", "--method", "cam,grad_cam"
    boxes = photos / "boxes.csv"
    maps = run_flaxvgg("cam", boxes, *options, "--classes", "0,2", "--out", tmp_path / "m.zarr")
    assert "grad_cam (5, 2, 16, 16)" in maps.stdout
    assert "cam (5, 2, 8, 8)" in maps.stdout
    found = run_flaxvgg("cam", boxes, *options, "--localise", "--out", tmp_path / "l.zarr")
    assert "do the maps find the objects?" in found.stdout
    assert "MaxBoxAccV2" in found.stdout
    assert set(Store(tmp_path / "l.zarr").arrays()) == {"class", "cam_hit", "grad_cam_hit"}


GAP = ("--layers", "gap")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["features", "PHOTOS", "--batch", "4"], "--batch is for a store: add --out NAME.zarr"),
        (["features", "PHOTOS", "--distributed"], "--distributed is for a store"),
        (["features", "PHOTOS", "--size", "native"], "--size is HxW"),
        (["features", "PHOTOS", "--layers", "pool9", "--out", "OUT.zarr"], "pool9"),
        (["features", "PHOTOS", *GAP, "--batch", "0", "--out", "OUT.zarr"], "at least 1, not 0"),
        (["features", "missing", "--out", "OUT.zarr"], "no such file or folder"),
        (["features", "missing.csv", "--out", "OUT.zarr"], "No such file"),
        (["features", "PHOTOS", *GAP, "--out", "missing/OUT.zarr"], "is no directory: create it"),
        (["sparsity", "PHOTOS", "--html", "--out", "OUT.zarr"], "needs a folder for the page"),
        (["cam", "PHOTOS", "--localise"], "--localise is for a store"),
        (["cam", "PHOTOS", "--localise", "--out", "OUT.zarr"], "there are no boxes"),
        (["cam", "PHOTOS", "--classes", "7", "--out", "OUT.zarr"], "no class 7"),
        (["info", "OUT.zarr"], "OUT.zarr does not exist"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, photos, monkeypatch, command, says):
    monkeypatch.chdir(tmp_path)
    result = run_flaxvgg(*(photos if part == "PHOTOS" else part for part in command))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
