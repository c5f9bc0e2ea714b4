"""A store that is gone on with: the same images to the end, broken ones tried again, one run."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from streaming_jobs import Drawn, means_job, on_device
from test_streaming import same_files

from flaxvgg.cam.photos import plan_maps
from flaxvgg.files.locking import LockedError
from flaxvgg.images.loading import ImageError
from flaxvgg.streaming import (
    Looked,
    Source,
    Store,
    StoreError,
    find_source,
    localisation_job,
    stream,
)
from flaxvgg.streaming import run as streaming
from flaxvgg.streaming import source as reading
from flaxvgg.streaming.places import Folder
from networks import TINY_GAP, tiny_vgg

COUNT, UNIT = 40, 32


@pytest.fixture(scope="module")
def job():
    return on_device(means_job())


@pytest.fixture
def photos(tmp_path):
    """Forty images, and a list of them: two units of a store."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    (folder / "list.csv").write_text("\n".join(["image", *(f"{i:02}.png" for i in range(COUNT))]))
    return folder


def run(job, source, out: Path, steps: int = 1000, notes: list[str] | None = None):
    """Stream, with one image at a time on each of two devices, for so many steps."""
    asked = iter(range(1000))
    note = (lambda line: notes.append(line)) if notes is not None else pytest.fail
    options = {"size": (32, 32), "batch": 1, "stop": lambda: next(asked) >= steps, "note": note}
    return stream(job, source, out, **options)


def half(job, source, out: Path) -> Store:
    """A store whose first unit is done."""
    store = run(job, source, out, UNIT // 2 + 3).store
    assert [store.status[i] for i in (0, UNIT - 1, UNIT)] == [1, 1, 0]
    return store


def other_image(path: Path) -> None:
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def test_images_that_have_changed_are_not_mixed_in(job, photos, tmp_path):
    source = find_source(photos / "list.csv")
    whole = run(job, source, tmp_path / "whole.zarr").store
    out = half(job, source, tmp_path / "half.zarr").path
    for number in (3, 35):  # done, and not done yet
        other_image(photos / f"{number:02}.png")
    with pytest.raises(StoreError, match=r"1 of those that are done have changed since \(03.png\)"):
        run(job, source, out)
    with pytest.raises(StoreError, match=r"2 of those that are done have .* \(03.png, 35.png\)"):
        run(job, source, whole.path)
    for number in (3, 35):
        other_image(photos / f"{number:02}.png")
    run(job, source, out)
    assert same_files(whole.path, out)
    (photos / "05.png").unlink()
    notes = []
    assert run(job, source, out, notes=notes).now == 0
    assert notes == ["1 images that are done cannot be read any more, and were not compared"]


@pytest.mark.parametrize("changed", ["image", "label"])
def test_what_grain_gives_is_compared_with_its_labels(job, tmp_path, changed):
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    given = [{"image": x, "label": i % 3} for i, x in enumerate(pixels)]
    source = Source.of_grain(given)
    out = half(job, source, tmp_path / "g.zarr").path
    given[7] = given[7] | ({"image": 255 - pixels[7]} if changed == "image" else {"label": 0})
    with pytest.raises(StoreError, match=r"are done, or their labels, have .* \(7\); restore"):
        run(job, source, out)
    given[7] = {"image": pixels[7], "label": 1}
    assert not run(job, source, out).left


def test_boxes_are_those_that_the_store_began_with(photos, tmp_path):
    model = tiny_vgg(TINY_GAP)
    plan = plan_maps(model, ("cam",), "top1", None, "paper", (32, 32))
    table = "image,label,left,top,right,bottom\n00.png,1,5,5,{},30\n"

    def start():
        source = find_source(photos / "boxes.csv")
        job = localisation_job(model, source, plan, (32, 32))
        return run(job, source, tmp_path / "b.zarr", 0)

    (photos / "boxes.csv").write_text(table.format(20))
    assert start().left == 1
    (photos / "boxes.csv").write_text(table.format(21))
    with pytest.raises(StoreError, match="is of other images: their boxes; choose another store"):
        start()


def test_what_could_not_be_read_or_was_replaced_is_tried_again(job, photos, tmp_path, monkeypatch):
    source = find_source(photos / "list.csv")
    whole = run(job, source, tmp_path / "whole.zarr").store
    out, apart = tmp_path / "again.zarr", tmp_path / "apart"
    apart.mkdir()
    opened = reading.open_turned

    def full(path):
        if Path(path).name == "11.png":
            error = OSError(errno.EMFILE, "Too many open files")
            raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
        return opened(path)

    (photos / "02.png").rename(apart / "02.png")
    shutil.copy(photos / "36.png", apart)
    (photos / "36.png").write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr(reading, "open_turned", full)
        first = run(job, source, out)
        assert list(first.problems) == ["02.png", "11.png", "36.png"]
        # Files that nobody has touched are as broken as they were.
        (photos / "11.png").rename(apart / "11.png")
        assert run(job, source, out).now == 0
    for name in ("11.png", "02.png"):
        (apart / name).rename(photos / name)
    again = run(job, source, out)
    assert again.now == UNIT
    assert list(again.problems) == ["36.png"]
    assert run(job, source, out).now == 0
    (apart / "36.png").rename(photos / "36.png")
    # Stopped in the middle, it is as if the unit had never been done.
    assert run(job, source, out, 0).left == COUNT - UNIT
    assert not run(job, source, out).problems
    assert run(job, source, out).now == 0
    assert same_files(whole.path, out)


def test_a_unit_is_not_done_again_where_an_image_of_it_is_gone(job, photos, tmp_path):
    source = find_source(photos / "list.csv")
    (photos / "02.png").rename(tmp_path / "02.png")
    out = half(job, source, tmp_path / "h.zarr").path
    (tmp_path / "02.png").rename(photos / "02.png")
    (photos / "03.png").unlink()
    notes = []
    assert list(run(job, source, out, notes=notes).problems) == ["02.png"]
    assert len(notes) == 1


def test_a_store_from_before_contents_goes_on(job, photos, tmp_path):
    source = find_source(photos / "list.csv")
    whole = run(job, source, tmp_path / "whole.zarr").store
    out = half(job, source, tmp_path / "old.zarr").path
    shutil.rmtree(out / "content")
    table = json.loads((out / "zarr.json").read_text())
    del table["attributes"]["flaxvgg"]["settings"]["images"]["boxes"]
    (out / "zarr.json").write_text(json.dumps(table))
    other_image(photos / "03.png")
    notes = []
    store = run(job, source, out, notes=notes).store
    assert len(notes) == 1
    assert "32 images in" in notes[0]
    assert "whether they are still the same cannot be checked" in notes[0]
    np.testing.assert_array_equal(store.read("mean"), whole.read("mean"))
    assert (store.contents() != 0).tolist() == [False] * UNIT + [True] * (COUNT - UNIT)
    other_image(photos / "35.png")
    with pytest.raises(StoreError, match=r"\(35.png\)"):
        run(job, source, out)


def test_one_run_at_a_time_and_its_files_stay(job, photos, tmp_path):
    source, out = find_source(photos / "list.csv"), tmp_path / "s.zarr"
    (tmp_path / ".s.zarr.new-123").mkdir()  # what killed runs have left
    (tmp_path / ".s.zarr.lock").touch()
    (tmp_path / ".s.zarr.new-mine").mkdir()
    store = half(job, source, out)
    left = store.path / "mean" / "c" / "1.__lock"
    left.touch()
    with Store.lock(out) as held:
        assert held
        for use in (store.sweep, lambda: run(job, source, out)):
            with pytest.raises(LockedError, match=r"s\.zarr is being written by another run"):
                use()
    assert left.exists()
    run(job, source, out)
    assert not left.exists()
    assert not (store.path / "status" / "unfinished").exists()
    names = {x.name for x in tmp_path.iterdir()}
    assert names == {"photos", "s.zarr", ".s.zarr.new-mine"}


def mixed_job(job):
    """A job whose rows tell which images were in a batch with them, and in which place."""

    def look(model, images, valid, asked) -> Looked:
        place = jnp.arange(1, len(images) + 1)
        of_batch = (images.sum(axis=(1, 2, 3)) * place.astype(images.dtype)).sum()
        rows = {"batch": jnp.broadcast_to(of_batch, (len(images),)), "place": place}
        return Looked(rows, {"sum": jnp.where(valid, place, 0).sum()[None]})

    return dataclasses.replace(job, name="mixed", look=look)


class Crash(Exception):
    pass


def crash_after(images: int):
    """An `advance` that ends the run, as nobody expects it, once so many images are done."""
    told = []

    def advance(done: int, broken: int) -> None:
        told.append(done)
        if len(told) > 1 and sum(told[1:]) >= images:
            raise Crash

    return advance


MIXED = Drawn(71, 32)  # of two sizes; every seventh is broken
STEP = 2 * 2  # images: two devices with a batch each


def of_mixed(job, out, monkeypatch, advance=lambda *_: None, steps=1000, images=MIXED):
    """A run in units of sixteen batches, of images at their own sizes."""
    monkeypatch.setattr(streaming, "_UNIT_BATCHES", 16)
    monkeypatch.setattr(Folder, "save_every", 0.0)
    asked = iter(range(1000))
    options = {"size": None, "batch": 2, "stop": lambda: next(asked) >= steps}
    source = Source.of_grain(images)
    return stream(mixed_job(job), source, out, advance=advance, note=pytest.fail, **options)


@pytest.fixture
def undisturbed(job, tmp_path, monkeypatch):
    store = of_mixed(job, tmp_path / "whole.zarr", monkeypatch).store
    assert store.unit == 32
    assert not (store.path / "status" / "unfinished").exists()
    return store


def test_a_stop_loses_nothing(job, tmp_path, monkeypatch, undisturbed):
    """Every batch that was begun is kept, and those behind it are what they would have been."""
    out, runs = tmp_path / "stopped.zarr", 0
    left = len(MIXED)
    while left:
        told: list[tuple[int, int]] = []
        tell = lambda *counts, told=told: told.append(counts)  # noqa: E731
        done = of_mixed(job, out, monkeypatch, tell, steps=runs + 1)
        assert told[0][0] == len(MIXED) - left
        assert sum(x for x, _ in told[1:]) == done.now >= min(left, runs + 1)
        assert done.left == left - done.now == done.store.left()
        left, runs = done.left, runs + 1
    assert runs > 4
    assert same_files(undisturbed.path, out)


@pytest.mark.parametrize("images", [1, 23, 40])
def test_a_crash_loses_what_the_devices_had(job, tmp_path, monkeypatch, undisturbed, images):
    out = tmp_path / "crashed.zarr"
    with pytest.raises(Crash):
        of_mixed(job, out, monkeypatch, crash_after(images))
    kept = len(MIXED) - Store(out).left()
    assert images - 3 * STEP <= kept <= images + STEP
    again = of_mixed(job, out, monkeypatch)
    assert (again.now, again.left) == (len(MIXED) - kept, 0)
    assert same_files(undisturbed.path, out)


def stopped(job, tmp_path, monkeypatch) -> Path:
    """A store with one unit, and a second that is begun."""
    out = tmp_path / "stopped.zarr"
    store = of_mixed(job, out, monkeypatch, steps=14).store
    assert [store.status[i] for i in (0, 31, 32)] == [2 if i % 7 == 3 else 1 for i in (0, 31)] + [0]
    assert store.unfinished.numbers() == [1]
    assert len(list((out / "status" / "unfinished").iterdir())) > 1
    return out


@pytest.mark.parametrize("damage", ["cut", "missing", "other arrays", "half-written"])
def test_what_is_damaged_of_an_unfinished_unit_is_done_again(
    job, tmp_path, monkeypatch, undisturbed, damage
):
    out = stopped(job, tmp_path, monkeypatch)
    before = Store(out).left()
    part = out / "status" / "unfinished" / "1-1.npz"
    match damage:
        case "cut":
            part.write_bytes(part.read_bytes()[:-30])
        case "missing":
            part.unlink()
        case "other arrays":
            np.savez(part, at=np.array([1000]), status=np.array([1]), problem=np.array([""]))
        case "half-written":
            part.with_name("1-9.npz.partial").write_bytes(b"half")
    again = of_mixed(job, out, monkeypatch)
    assert (again.now > before) == (damage != "half-written")
    assert same_files(undisturbed.path, out)


@pytest.mark.parametrize("row", [33, 38])
def test_an_unfinished_unit_of_other_images_is_begun_anew(job, tmp_path, monkeypatch, row):
    """One that was done, and one that was broken: nothing of before is mixed in."""
    out = stopped(job, tmp_path, monkeypatch)
    assert isinstance(MIXED[row]["image"], bytes) == (row == 38)

    class Changed(Drawn):
        def __getitem__(self, i: int) -> dict:
            return super().__getitem__(1 if i == row else i) | {"label": i % 5}

    changed = Changed(len(MIXED), 32)
    again = of_mixed(job, out, monkeypatch, images=changed)
    assert again.now == len(MIXED) - 32
    whole = of_mixed(job, tmp_path / "changed.zarr", monkeypatch, images=changed)
    assert same_files(whole.store.path, out)


def test_a_unit_that_takes_no_second_is_written_at_once(job, photos, tmp_path, monkeypatch):
    """No part of it is saved: on a fast device nothing is written twice."""
    monkeypatch.setattr(Folder, "save_every", 1e9)
    saved = []
    monkeypatch.setattr(Store, "save", lambda *given: saved.append(given))
    run(job, find_source(photos / "list.csv"), tmp_path / "a.zarr")
    assert not saved
