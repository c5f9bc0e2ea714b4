"""A store that is gone on with: the same images to the end, broken ones tried again, one run."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from streaming_jobs import means_job
from test_streaming import same_files

from flaxvgg.cam.photos import plan_maps
from flaxvgg.files.locking import LockedError
from flaxvgg.images.loading import ImageError
from flaxvgg.streaming import Source, Store, StoreError, find_source, localisation_job, stream
from flaxvgg.streaming import source as reading
from networks import TINY_GAP, tiny_vgg

COUNT, UNIT = 40, 32


@pytest.fixture(scope="module")
def job():
    job = means_job()
    return dataclasses.replace(job, model=jax.tree.map(jnp.asarray, job.model))


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
    names = {x.name for x in tmp_path.iterdir()}
    assert names == {"photos", "s.zarr", ".s.zarr.new-mine"}
