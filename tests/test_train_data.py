"""What a run is trained on: the same images to the end, all whole, of more than one class."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

from flaxvgg.commands.console import Shown
from flaxvgg.files.locking import LockedError, alone
from flaxvgg.images.datasets import DatasetError
from flaxvgg.training.inventory import read_csv
from flaxvgg.training.run import train
from flaxvgg.training.settings import Data, Model, Run
from flaxvgg.training.trainer import Optimisation
from flaxvgg.weights.checkpoint import CheckpointError
from networks import TINY_GAP, coloured_photos, tiny_vgg


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The network of a run is the one that is loaded."""
    monkeypatch.setattr(Model, "with_head", lambda self, model, classes, seed: model)


def load():
    return tiny_vgg(TINY_GAP, precision="default")


def a_run(photos: Path, **options) -> Run:
    data = {"size": (32, 32), "batch": 4} | options
    return Run(Data(photos, **data), Model(), Optimisation(learning_rate=1e-2), epochs=1)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Photos in five classes, and a run of them that was stopped at once."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "photos").mkdir()
    photos = coloured_photos(folder / "photos")
    for other, name in ("blue", "pink"), ("red", "teal"):
        (photos / name).mkdir()
        for path in (photos / other).glob("?.png"):
            Image.open(path).rotate(90).save(photos / name / path.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "with_head", lambda self, model, classes, seed: model)
        train(load, a_run(photos), folder / "run", lambda: True)
    return folder


@pytest.fixture
def again(begun, tmp_path):
    """The same photos and the same run elsewhere, to be changed: places make no difference."""
    for name in "photos", "run":
        shutil.copytree(begun / name, tmp_path / name)
    return tmp_path


def swap(a: Path, b: Path) -> None:
    a.rename(a.with_name("between"))
    b.rename(a)
    a.with_name("between").rename(b)


def change_pixel(path: Path) -> None:
    pixels = np.array(Image.open(path))
    pixels[0, 0] = 255 - pixels[0, 0]
    Image.fromarray(pixels).save(path)


CHANGES = {
    "renamed": (
        lambda photos: (photos / "blue").rename(photos / "zebra"),
        [
            "12 added (zebra/0.png, ",
            "12 removed (blue/0.png, ",
            "by content, classes blue -> zebra",
            "the classes were blue, green, pink, red, teal, and are green, pink, red, teal, zebra",
        ],
    ),
    "swapped": (
        lambda photos: swap(photos / "blue", photos / "red"),
        ["24 changed (blue/", "blue -> red", "red -> blue"],
    ),
    "replaced": (lambda photos: change_pixel(photos / "red" / "3.png"), ["1 changed (red/3.png)"]),
    "added": (
        lambda photos: Image.new("RGB", (40, 40)).save(photos / "red" / "new.png"),
        ["differ: 1 added (red/new.png):"],
    ),
    "removed": (
        lambda photos: (photos / "green" / "5.png").unlink(),
        ["differ: 1 removed (green/5.png):"],
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_run_goes_on_with_its_own_images_only(again, kind):
    change, says = CHANGES[kind]
    change(again / "photos")
    before = (again / "run" / "data.csv").read_bytes()
    with pytest.raises(CheckpointError) as error:
        train(load, a_run(again / "photos"), again / "run")
    said = str(error.value)
    assert all(text in said for text in says), said
    assert said.endswith(": restore them, or choose another folder (--out)")
    assert "\n" not in said
    assert (again / "run" / "data.csv").read_bytes() == before
    assert not (again / "run" / "model").exists()


def test_a_run_goes_on_with_its_own_weights_only(again):
    with pytest.raises(CheckpointError, match="IMAGENET1K_V1 has other weights: restore"):
        train(lambda: tiny_vgg(TINY_GAP, seed=1), a_run(again / "photos"), again / "run")


def test_a_finished_run_is_as_particular(again):
    done = train(load, a_run(again / "photos"), again / "run")
    assert done.steps == done.of
    assert [entry.image for entry in read_csv(again / "run" / "data.csv")].count("red/3.png") == 1
    (again / "photos" / "blue").rename(again / "photos" / "zebra")
    saved = {p: p.stat().st_mtime_ns for p in (again / "run" / "model").rglob("*")}
    with pytest.raises(CheckpointError, match="blue -> zebra"):
        train(load, a_run(again / "photos"), again / "run")
    assert saved == {p: p.stat().st_mtime_ns for p in (again / "run" / "model").rglob("*")}


def test_without_its_list_a_run_still_knows_that_images_differ(again):
    (again / "run" / "data.csv").write_text("spoiled")
    change_pixel(again / "photos" / "red" / "3.png")
    with pytest.raises(CheckpointError, match=r"which, data\.csv does not tell any more"):
        train(load, a_run(again / "photos"), again / "run")
    change_pixel(again / "photos" / "red" / "3.png")  # back again
    assert train(load, a_run(again / "photos"), again / "run", lambda: True).steps == 0
    assert len(read_csv(again / "run" / "data.csv")) == 56


def test_a_run_from_before_goes_on_and_says_what_cannot_be_checked(again, capsys, monkeypatch):
    save = ocp.training.Checkpointer.save_async

    def as_before(self, *args, custom_metadata, **options):
        del custom_metadata["learns_from"]
        return save(self, *args, custom_metadata=custom_metadata, **options)

    monkeypatch.setattr(ocp.training.Checkpointer, "save_async", as_before)
    for _ in range(2):
        train(load, a_run(again / "photos"), again / "old", lambda: True, watch=Shown())
        said = capsys.readouterr().err
    assert "whether they are still the same cannot be checked" in said


def test_all_broken_images_are_named_before_the_first_step(again, tmp_path):
    photos = again / "photos"
    for i in range(12):
        (photos / "blue" / f"{i}.png").write_bytes(b"broken")
    (photos / "red" / "0.png").write_bytes((photos / "red" / "0.png").read_bytes()[:200])
    with pytest.raises(DatasetError) as error:
        train(load, a_run(photos), tmp_path / "new")
    assert len(error.value.problems) == 13
    assert "and 3 more" in str(error.value)
    assert f"{photos / 'red' / '0.png'}: damaged or truncated" in "\n".join(error.value.problems)
    assert not (tmp_path / "new").exists()


def test_a_class_that_is_not_tested_is_said_and_one_alone_is_refused(again, capsys):
    photos = again / "photos"
    for path in (photos / "teal").glob("[1-9].png"):
        path.unlink()
    train(load, a_run(photos), again / "few", lambda: True, watch=Shown())
    assert "no validation image is of class teal: the mAP does not" in capsys.readouterr().err
    for name in "blue", "green", "red", "teal":
        shutil.rmtree(photos / name)
    with pytest.raises(ValueError, match="every image to train on is of class pink: there is noth"):
        train(load, a_run(photos), again / "one")
    assert not (again / "one").exists()


def test_one_run_at_a_time(again):
    with (
        alone(again / "run", again / "run" / ".lock"),
        pytest.raises(LockedError, match=r"run is being written by another run \(process \d+ on"),
    ):
        train(load, a_run(again / "photos"), again / "run")
    assert train(load, a_run(again / "photos"), again / "run", lambda: True).steps == 0
    assert not (again / "run" / ".lock").exists()


def test_what_is_in_the_way_of_the_model_is_said_before_the_first_step(again):
    (again / "run" / "model").mkdir()
    (again / "run" / "model" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"run/model is a directory and no checkpoint"):
        train(load, a_run(again / "photos"), again / "run")
    assert (again / "run" / "model" / "notes.txt").read_text() == "mine"
