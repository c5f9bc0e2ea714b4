"""Data sets into stores: every row where it belongs, exactly once, on any number of devices."""

import dataclasses
import filecmp
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import grain
import numpy as np
import pyarrow
import pytest
import tensorstore
import xarray
import zarr
from PIL import Image

import flaxvgg
from flaxvgg.cam.photos import plan_maps
from flaxvgg.evaluation.localisation import max_box_acc, max_box_acc_v2, pointing_game
from flaxvgg.images.datasets import DatasetError, label_file
from flaxvgg.images.fingerprint import UNKNOWN
from flaxvgg.images.loading import fit_boxes, fit_image, load_images, open_image
from flaxvgg.images.orientation import upright_boxes
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming import (
    Source,
    Store,
    StoreError,
    features_job,
    find_source,
    localisation_job,
    maps_job,
    read_localisation,
    read_sparsity,
    run,
    sparsity_job,
    stream,
    zeros_by_photo,
)
from helpers import TINY_GAP, tiny_vgg
from networks import noise_photos

HERE = Path(__file__).parent
SIZES = [(40, 48), (33, 64)]  # height, width
BROKEN = "cats/07.png"


@pytest.fixture(scope="module")
def model():
    return tiny_vgg()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 12 and 9 images of two sizes, one of them broken."""
    root = tmp_path_factory.mktemp("photos")
    return noise_photos(root, {"cats": 12, "dogs": 9}, lambda i: SIZES[i % 2], BROKEN)


@pytest.fixture(scope="module")
def whole(model, folder, tmp_path_factory):
    """Features of the folder at one size, in a store."""
    out = tmp_path_factory.mktemp("stores") / "features.zarr"
    job = features_job(model, ["pool2", "relu1_1", "logits"])
    return stream(job, find_source(folder), out, size=(32, 32), batch=4)


def good_paths(folder: Path) -> list[Path]:
    return [path for path in flaxvgg.find_images(folder) if path != folder / BROKEN]


def same_files(a: Path, b: Path) -> bool:
    found = filecmp.dircmp(a, b)
    different = filecmp.cmpfiles(a, b, found.common_files, shallow=False)
    assert not different[1] + different[2] + found.left_only + found.right_only
    return all(same_files(a / name, b / name) for name in found.common_dirs)


def test_every_row_is_what_the_model_gives(model, folder, whole):
    images = load_images(good_paths(folder), (32, 32), model.preprocessing)
    taps = model.activations(images, ["pool2", "relu1_1"])
    expected = {**taps, "gap": model.gap(images), "logits": model(images)}
    stored = xarray.open_zarr(whole.store.path, consolidated=False)
    good = (stored.status == 1).values
    assert good.sum() == 20
    assert good.sum() + 1 == len(good) == whole.now
    assert not whole.left
    for name, values in expected.items():
        np.testing.assert_allclose(stored[name].values[good], values, rtol=2e-6, atol=2e-6)
        assert np.isnan(stored[name].values[~good]).all(), name
    assert stored["pool2"].dims == ("image", "pool2_y", "pool2_x", "pool2_channel")


def test_the_index_says_what_each_row_is(folder, whole):
    names = [path.relative_to(folder).as_posix() for path in flaxvgg.find_images(folder)]
    stored = zarr.open_group(whole.store.path, mode="r")
    assert list(stored["name"][:]) == names
    assert stored["label"][:].tolist() == [0 if name.startswith("cats") else 1 for name in names]
    assert whole.store.settings["classes"] == ["cats", "dogs"]
    broken = names.index(BROKEN)
    problem = str(stored["problem"][broken])
    assert np.flatnonzero(stored["status"][:] == 2).tolist() == [broken]
    assert whole.problems == {BROKEN: problem}
    assert "truncated" in problem
    assert str(folder) not in problem
    sizes = [list(SIZES[int(Path(name).stem) % 2]) for name in names]
    sizes[broken] = [-1, -1]
    assert stored["size"][:].tolist() == sizes


def test_tensorstore_reads_it(whole):
    kvstore = {"driver": "file", "path": str(whole.store.path / "pool2")}
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
    np.testing.assert_array_equal(array[3].read().result(), whole.store.read("pool2")[3])


def test_images_at_their_own_sizes_are_in_a_group_for_each(model, folder, tmp_path):
    source = find_source(folder)
    store = stream(features_job(model, ["pool2"]), source, tmp_path / "n.zarr", size=None).store
    assert store.arrays().keys() == {
        f"{x}/{name}" for x in ("40x48", "33x64") for name in ("pool2", "gap")
    }
    for size in SIZES:
        rows = np.flatnonzero((store.read("size") == size).all(axis=1))
        images = load_images([folder / source.names[i] for i in rows], None, model.preprocessing)
        found = store.read("{}x{}/pool2".format(*size))
        np.testing.assert_allclose(found[rows], model.features(images), rtol=2e-6, atol=2e-6)
        assert np.isnan(np.delete(found, rows, axis=0)).all()
        # What has the same shape at every size is put together.
        np.testing.assert_array_equal(
            store.read("gap")[rows], store.read("{}x{}/gap".format(*size))[rows]
        )
    with pytest.raises(StoreError, match="pool2 of several shapes: read 33x64/pool2, 40x48/pool2"):
        store.read("pool2")
    with pytest.raises(StoreError, match="has no pool9"):
        store.read("pool9")


def test_zeros_are_those_of_measure_sparsity(model, folder, tmp_path):
    store = stream(
        sparsity_job(model, None), find_source(folder), tmp_path / "s.zarr", size=(32, 32), batch=4
    ).store
    images = load_images(good_paths(folder), (32, 32), model.preprocessing)
    report = read_sparsity(store)
    # The last batch and the broken image are fillers: nothing of them is counted.
    names = ["relu1_1", "pool1", "relu2_1", "pool2", "relu6"]
    expected = sum(flaxvgg.measure_sparsity(model, images[i : i + 4]) for i in range(0, 20, 4))
    assert report.layers == tuple(names)
    assert report.images == 20
    for found, wanted in zip(report, expected, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    counts = zeros_by_photo(store)
    for name in names:
        assert counts[name].mean() == pytest.approx(report.layer(name).zero_fraction)


def test_a_unit_without_any_whole_image_adds_nothing(model, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    source = Source.of_grain([{"image": x} for x in [b"broken"] * 33 + list(images)])
    job = sparsity_job(model, ["relu1_1", "pool2"])
    store = stream(job, source, tmp_path / "s.zarr", size=None, batch=1).store
    assert store.units == 2
    report = read_sparsity(store)
    given = flaxvgg.normalise(images, model.preprocessing)
    expected = sum(flaxvgg.measure_sparsity(model, x[None], report.layers) for x in given)
    assert report.to_json() == expected.to_json()
    none = Source.of_grain([{"image": b"broken"}])
    store = stream(job, none, tmp_path / "n.zarr", size=(32, 32)).store
    with pytest.raises(StoreError, match="no image in it has been counted"):
        read_sparsity(store)


def test_maps_are_those_of_explain(folder, tmp_path):
    model = tiny_vgg(TINY_GAP)
    plan = plan_maps(model, ("cam", "grad_cam"), "top2", None, "paper", (32, 32))
    source = find_source(folder)
    store = stream(maps_job(model, plan), source, tmp_path / "m.zarr", size=(32, 32), batch=4).store
    good = store.status == 1
    images = load_images(good_paths(folder), (32, 32), model.preprocessing)
    best = np.argsort(-np.asarray(model(images)), axis=1)[:, :2]
    np.testing.assert_array_equal(store.read("class")[good], best)
    for method in plan.methods:
        found = flaxvgg.explain(model, images, best, method)
        np.testing.assert_allclose(store.read(method)[good], found.maps, rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(store.read(f"{method}_flag")[good], found.flags)
    assert (store.read("class")[~good] == -1).all()


def boxes_manifest(folder: Path) -> Path:
    """Every image with one or two boxes of one or two of five classes."""
    rng = np.random.default_rng(1)
    lines = ["image,labels,left,top,right,bottom"]
    for path in [*good_paths(folder)[:6], folder / BROKEN]:
        for label in rng.choice(5, 1 + len(lines) % 2, replace=False):
            left, top = rng.integers(0, [30, 20])
            right, bottom = left + rng.integers(2, 18), top + rng.integers(2, 13)
            lines.append(f"{path.relative_to(folder)},{label},{left},{top},{right},{bottom}")
    (folder / "boxes.csv").write_text("\n".join(lines))
    return folder / "boxes.csv"


def test_localisation_is_that_of_the_metrics(folder, tmp_path):
    model = tiny_vgg(TINY_GAP)
    source = find_source(boxes_manifest(folder))
    assert source.boxes is not None
    plan = plan_maps(model, ("cam",), "top1", None, "paper", (32, 32))
    store = stream(
        localisation_job(model, source, plan, (32, 32)),
        source,
        tmp_path / "l.zarr",
        size=(32, 32),
        batch=4,
    ).store
    heat, boxes, labels = [], [], []
    for name, given in zip(source.names, source.boxes, strict=True):
        if name == BROKEN:
            continue
        image = open_image(folder / name)
        pixels = fit_image(image, (32, 32), model.preprocessing)
        for label in sorted(given):
            shape = image.height, image.width
            kept = fit_boxes(np.array(given[label]), shape, (32, 32), model.preprocessing)
            if len(kept):
                found = flaxvgg.explain(model, flaxvgg.normalise(pixels[None]), [label], "cam")
                heat.append(np.asarray(found.heatmaps()[0, 0]))
                boxes.append(kept)
                labels.append(label)
    heat, labels = np.stack(heat), np.array(labels)
    hits = [pointing_game(heat[i][None], boxes[i : i + 1], 15) for i in range(len(boxes))]
    expected = np.mean([np.mean(np.array(hits)[labels == x]) for x in np.unique(labels)])
    assert read_localisation(store) == {
        "cam": {
            "pointing game": pytest.approx(expected),
            "MaxBoxAcc": pytest.approx(max_box_acc(heat, boxes)),
            "MaxBoxAccV2": pytest.approx(max_box_acc_v2(heat, boxes)),
            "maps": len(boxes),
        }
    }
    assert store.arrays().keys() == {"class", "cam_hit"}  # no map is kept


def test_boxes_follow_the_image():
    # torchvision: 400x800 is scaled to 256x512, and 224x224 are cut out at (144, 16).
    box = np.array([[300, 50, 500, 150], [0, 0, 800, 400], [700, 0, 800, 10]])
    expected = [[48, 16, 176, 80], [0, 0, 224, 224]]
    np.testing.assert_array_equal(fit_boxes(box, (400, 800)), expected)
    stretched = fit_boxes(box, (400, 800), (224, 224), "keras")
    np.testing.assert_array_equal(
        stretched, [[84, 28, 140, 84], [0, 0, 224, 224], [196, 0, 224, 6]]
    )
    np.testing.assert_array_equal(fit_boxes(box, (400, 800), None), box)


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("said", ["stored", "upright", None])
def test_boxes_turn_with_the_photo(tmp_path, turned, said):
    """A white box in a black photo is where the boxes say, however a camera held it."""
    pixels = np.zeros((40, 64, 3), np.uint8)
    box = left, top, right, bottom = 5, 10, 20, 18
    pixels[top:bottom, left:right] = 255
    other = 50, 2, 63, 5  # one that is not in the image turned
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = open_image(tmp_path / "a.png")
    size = None
    if said:
        size = (40, 64) if said == "stored" else (upright.height, upright.width)
    if said == "upright" and turned > 4:
        rows, columns = np.nonzero(np.asarray(upright)[..., 0])
        box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        other = 2, 50, 5, 63
    boxes = {3: (box,), 1: (other,)}
    source = Source(["a.png"], ["a.png"], tmp_path, boxes=[boxes], box_sizes=[size])
    item = source.read(0, None, tiny_vgg().preprocessing)
    ((left, top, right, bottom),) = source.boxes_on(item, 3)
    assert (item.pixels[top:bottom, left:right] == 255).all()
    assert item.pixels.sum() == 3 * 255 * (right - left) * (bottom - top)
    assert len(source.boxes_on(item, 1)) == 1


def test_boxes_that_are_upright_by_where_they_are():
    boxes = np.array([[0, 30, 10, 60]])  # in 64x40, and not in 40x64 (height x width)
    np.testing.assert_array_equal(upright_boxes(boxes, (64, 40), 6), boxes)
    stored = np.array([[30, 0, 60, 10]])
    np.testing.assert_array_equal(upright_boxes(stored, (64, 40), 6), [[30, 30, 40, 60]])
    np.testing.assert_array_equal(upright_boxes(stored, (64, 40), 6, (1, 1)), [[30, 30, 40, 60]])


def test_grain_and_manifests_give_the_rows_of_the_folder(model, folder, whole, tmp_path):
    names = [str(name) for name in whole.store.read("name")]
    rows = [(name, name.partition("/")[0]) for name in names]
    (folder / "list.csv").write_text("image,label\n" + "\n".join(map(",".join, rows)) + "\n")
    from pyarrow import parquet

    table = pyarrow.table({"image": names, "label": [label for _, label in rows], "other": names})
    parquet.write_table(table, folder / "list.parquet")
    elements = grain.MapDataset.range(len(names)).map(
        lambda i: {"image": (folder / names[i]).read_bytes(), "label": i // 12}
    )
    sources = {
        "csv": find_source(folder / "list.csv"),
        "parquet": find_source(folder / "list.parquet"),
        "grain": Source.of_grain(elements, names),
    }
    for kind, source in sources.items():
        job = features_job(model, ["logits"])
        store = stream(job, source, tmp_path / f"{kind}.zarr", size=(32, 32), batch=4).store
        for name in ("name", "label", "status", "logits", "gap"):
            np.testing.assert_array_equal(store.read(name), whole.store.read(name), err_msg=kind)


def test_what_grain_may_give(folder, tmp_path):
    path = good_paths(folder)[0]
    image = Image.open(path)
    given = [image, np.asarray(image), path.read_bytes(), path, str(path), np.zeros((40, 48))]
    source = Source.of_grain([{"image": x, "label": [1, 0, 1]} for x in given])
    items = [source.read(i, (32, 32), tiny_vgg().preprocessing) for i in range(len(given))]
    for item in items[1:-1]:
        np.testing.assert_array_equal(item.pixels, items[0].pixels)
    assert items[-1].problem == "8-bit RGB (H, W, 3) is needed, not float64 (40, 48)"
    assert source.label_shape == (3,)
    with pytest.raises(ValueError, match="empty"):
        Source.of_grain([])
    with pytest.raises(ValueError, match=r"must be .*image"):
        Source.of_grain([1, 2])
    with pytest.raises(ValueError, match="unique"):
        Source.of_grain([{"image": path}] * 2, ["a", "a"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\na.png,x", "`image` among them"),
        ("image,label\n", "no images in it"),
        ("image,label\na.png,x\na.png,y", "line 3: a.png for the second time"),
        ("image,label\n,x", "line 2: no image"),
        ("image,label,left\na.png,x,1", "a box has left, top, right and bottom"),
        ("image,label,left,top,right,bottom\na.png,x,5,5,5,9", "line 2: the box (5, 5, 5, 9)"),
        ("image,label,left,top,right,bottom\na.png,x,a,5,5,9", "four whole numbers"),
        ("image,label,left,top,right,bottom\na.png,x;y,1,1,5,9", "a box needs one label"),
        ("image,labels\na.png,1;99999999999\nb.png,2", "are to be below 65536"),
        ('image,label\n"a.png,x', "no CSV file"),
    ],
)
def test_a_wrong_manifest_is_one_clear_error(tmp_path, text, says):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DatasetError) as error:
        find_source(tmp_path / "list.csv")
    assert says in str(error.value)


def test_what_a_manifest_names_is_read_as_an_image_or_not_at_all(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "secret.txt").write_text("secret")
    good = os.path.relpath(good_paths(folder)[0], tmp_path)
    names = ["pipe", "secret.txt", "/dev/zero", "..", "missing.png", 256 * "n", "a\0b.png", good]
    (tmp_path / "list.csv").write_text("\n".join(["image", *names]))
    source, recipe = find_source(tmp_path / "list.csv"), tiny_vgg().preprocessing
    items = [source.read(i, (32, 32), recipe) for i in range(len(names))]
    says = ["no regular file", "no image", "no regular file", "a folder", "no such file"]
    says += ["cannot be read: File name too long", "no path: a NUL", ""]
    for item, words in zip(items, says, strict=True):
        assert item.problem.startswith(words)
    assert not items[-1].problem
    # And the run that meets them ends, with a store that has them all.
    model = tiny_vgg()
    done = stream(features_job(model, ["gap"]), source, tmp_path / "f.zarr", size=(32, 32))
    assert done.now == len(names)
    assert list(done.store.status == 1) == [False] * 7 + [True]


def test_images_inside_a_parquet_file(model, folder, tmp_path):
    from pyarrow import parquet

    paths = good_paths(folder)[:5]
    (tmp_path / "out.png").write_bytes(paths[4].read_bytes())
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths[:4]]
    cells += [{"bytes": None, "path": "out.png"}, {"bytes": None, "path": None}]
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"image": cells, "label": [0, 1, 1, 0, -1, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    parquet.write_table(table, tmp_path / "train.parquet", row_group_size=2)
    source = find_source(tmp_path / "train.parquet")
    assert source.classes == ("cat", "dog")
    assert source.labels.argmax(1).tolist() == [0, 1, 1, 0, 0, 1]
    assert source.labels.sum(1).tolist() == [1, 1, 1, 1, 0, 1]
    assert list(source.names) == [*(path.name for path in paths[:4]), "out.png", "5"]
    items = [source.read(i, (32, 32), model.preprocessing) for i in (4, 0, 3, 1, 2, 5)]
    for item in items[:-1]:
        expected = fit_image(open_image(paths[item.row]), (32, 32), model.preprocessing)
        np.testing.assert_array_equal(item.pixels, expected)
    assert items[-1].problem.startswith("no image that Pillow reads")
    # Plain bytes, without names or labels.
    table = pyarrow.table({"image": [path.read_bytes() for path in paths]})
    parquet.write_table(table, tmp_path / "bytes.parquet")
    job = features_job(model, ["logits"])
    done = stream(job, find_source(tmp_path / "bytes.parquet"), tmp_path / "b.zarr", size=(32, 32))
    assert done.store.read("name").tolist() == list("01234")
    images = load_images(paths, (32, 32), model.preprocessing)
    np.testing.assert_allclose(done.store.read("logits"), model(images), rtol=2e-6, atol=2e-6)
    with pytest.raises(DatasetError, match="its images are inside it"):
        label_file(tmp_path / "bytes.parquet")
    table = table.replace_schema_metadata({"huggingface": b'{"info": {"fe\xac'})
    parquet.write_table(table, tmp_path / "note.parquet")
    with pytest.raises(DatasetError, match=r"its note of the classes is damaged .*: get it again"):
        find_source(tmp_path / "note.parquet")
    parquet.write_table(pyarrow.table({"image": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(DatasetError, match="the column image is int64: it holds paths"):
        find_source(tmp_path / "numbers.parquet")


def test_programs_are_kept_for_a_few_sizes_only(model, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    heights = [32, 33, 34, 32, 35, 36, 32, 33]
    images = [random.integers(0, 256, (h, 32, 3), np.uint8) for h in heights]
    source = Source.of_grain([{"image": image} for image in images])
    job = features_job(model, ["pool2"])
    stream(job, source, tmp_path / "all.zarr", size=None, batch=1)
    programs = []

    class Program(run._Program):
        def __call__(self, batches):
            found = super().__call__(batches)
            programs.append([size[1] for size in self._compiled])
            return found

    monkeypatch.setattr(run, "_Program", Program)
    monkeypatch.setattr(run, "_PROGRAMS", 2)
    monkeypatch.setattr(run, "_TRACES", 3)
    stream(job, source, tmp_path / "few.zarr", size=None, batch=1)
    assert max(map(len, programs)) == 2
    assert all(32 in kept for kept in programs)  # what is met most often
    assert same_files(tmp_path / "all.zarr", tmp_path / "few.zarr")


def test_a_damaged_store_is_an_error(whole, tmp_path):
    for name, data in ("zarr.json", b"{}"), ("zarr.json", b"none"), ("status/c/0", b"none"):
        shutil.copytree(whole.store.path, tmp_path / "d.zarr")
        (tmp_path / "d.zarr" / name).write_bytes(data)
        with pytest.raises(StoreError, match=r"damaged|no store of flaxvgg"):
            _ = Store(tmp_path / "d.zarr").status
        shutil.rmtree(tmp_path / "d.zarr")


def test_labels_of_manifests(tmp_path):
    def labels(text: str):
        (tmp_path / "list.csv").write_text(text)
        source = find_source(tmp_path / "list.csv")
        return source.labels, source.classes

    found, classes = labels("image,labels\na.png,dog;cat\nb.png,\nc.png,ape")
    assert classes == ("ape", "cat", "dog")
    np.testing.assert_array_equal(found, [[False, True, True], [False] * 3, [True, False, False]])
    found, classes = labels("image,label\na.png,7\nb.png,3")
    assert classes == tuple("01234567")
    assert found.tolist() == [7, 3]
    found, classes = labels("image\na.png")
    assert found is None
    assert classes == ()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(DatasetError, match="no Parquet file"):
        find_source(tmp_path / "broken.parquet")


def test_stopped_and_gone_on_with_it_is_the_same_store(model, folder, whole, tmp_path):
    job, source, out = (
        features_job(model, ["pool2", "relu1_1", "logits"]),
        find_source(folder),
        tmp_path / "f.zarr",
    )
    asked = iter([False, True])
    first = stream(job, source, out, size=(32, 32), batch=4, stop=lambda: next(asked))
    assert 0 < first.now == len(source) - first.left < len(source)
    assert not first.store.status.any()  # no unit is whole
    told = []
    again = stream(
        job, source, out, size=(32, 32), batch=4, advance=lambda *counts: told.append(counts)
    )
    assert not again.left
    assert told[0][0] == first.now
    assert np.sum(told, axis=0).tolist() == [21, 1]
    assert max(done for done, _ in told[1:]) <= 4  # a batch, and not a whole unit
    assert same_files(whole.store.path, out)
    # Once more there is nothing to do; and a unit that is lost is made again.
    assert stream(job, source, out, size=(32, 32), batch=4).now == 0
    shutil.rmtree(out / "status" / "c")
    assert stream(job, source, out, size=(32, 32), batch=4).now == 21
    assert same_files(whole.store.path, out)


def test_a_store_of_another_run_is_left_alone(model, folder, whole, tmp_path):
    source, out = find_source(folder), whole.store.path
    layers = ["pool2", "relu1_1", "logits"]

    def refused(says: str, job=None, source=source, **options):
        options = {"size": (32, 32), "batch": 4} | options
        with pytest.raises(StoreError) as error:
            stream(job or features_job(model, layers), source, out, **options)
        assert says in str(error.value)
        assert "delete this one" in str(error.value)

    refused("batch was 4, and is 2", batch=2)
    refused("size was [32, 32], and is None", size=None)
    refused("layers was", features_job(model, ["pool2"]))
    refused("job was 'features', and is 'sparsity'", sparsity_job(model, None))
    refused("weights.sha256", features_job(tiny_vgg(seed=1), layers))
    refused("12 added (00.png, ", source=find_source(folder / "cats"))
    refused("the classes were cats, dogs, and are none", source=find_source(folder / "cats"))
    turned = dataclasses.replace(source, labels=source.labels[::-1])
    refused("the same names, with other labels or in another order", source=turned)
    renamed = shutil.copytree(folder, tmp_path / "photos")
    (renamed / "cats").rename(renamed / "zebras")
    refused("by content, classes cats -> zebras", source=find_source(renamed))
    with pytest.raises(StoreError, match="no store of flaxvgg"):
        stream(features_job(model, layers), source, folder)
    with pytest.raises(StoreError, match="is no directory"):
        stream(features_job(model, layers), source, tmp_path / "missing" / "a.zarr")
    with pytest.raises(StoreError, match="has features, and no sparsity"):
        read_sparsity(whole.store)


def start(*command: object) -> subprocess.Popen:
    """A process of its own, with this one's path to the tests."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return told


_FULL = """
import resource, sys
from pathlib import Path
from flaxvgg.streaming import Source, StoreError, stream
from tests.streaming_jobs import Drawn, means_job

def run(name):
    source = Source.of_grain(Drawn(70, 32))
    return stream(means_job(), source, Path(sys.argv[1], name), size=(32, 32), batch=1)

resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
try:
    run("full.zarr")
except StoreError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("went on with", run("full.zarr").now, run("whole.zarr").now)
"""


def test_no_room_stops_it_with_a_store_that_is_whole(tmp_path):
    """A unit's file is larger than files may be here, which is to it as if the disk were full."""
    told = finished(start("-c", _FULL, tmp_path))
    assert "make room, and rerun the command" in told
    assert "went on with 70 70" in told
    assert same_files(tmp_path / "full.zarr", tmp_path / "whole.zarr")


@pytest.mark.slow
def test_eight_devices_and_two_processes_of_one_give_the_same_stores(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name in ("eight", "two"):
        (tmp_path / name).mkdir()
    worker = "-m", "tests.streaming_worker"
    running = [start(*worker, tmp_path / "two", 1, i, 2, port) for i in range(2)]
    running.append(start(*worker, tmp_path / "eight", 8))
    for process in running:
        finished(process)
    assert Store(tmp_path / "two" / "f.zarr").units > 1  # or there was nothing to share
    assert same_files(tmp_path / "eight", tmp_path / "two")


def test_killed_at_any_moment():
    """8 kills here; `python -m tests.kill_trials` makes 50."""
    assert "killed 8 times" in finished(start("-m", "tests.kill_trials", "--count", 8))


def test_memory_does_not_grow_with_the_images():
    """1,000 images here; `python -m tests.memory_trial` takes 10,000."""
    peaks = json.loads(finished(start("-m", "tests.memory_trial", "--count", 1000)))
    assert peaks["all"] < 1.05 * peaks["quarter"], peaks


def test_damaged_rows_of_a_parquet_file_are_broken_images(folder, tmp_path):
    from pyarrow import parquet

    data = (folder / "cats" / "00.png").read_bytes()
    table = pyarrow.table({"image": [data] * 6})
    path = tmp_path / "images.parquet"
    parquet.write_table(
        table, path, row_group_size=3, write_page_checksum=True, use_dictionary=False
    )
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"IHDR") + 5] ^= 1
    path.write_bytes(damaged)
    source = find_source(path)
    problems = [source.read(i, None, PREPROCESSING["torchvision"]).problem for i in range(6)]
    assert all(x.startswith("rows 1 to 3 of images.parquet are damaged (") for x in problems[:3])
    assert problems[3:] == [""] * 3
    assert source.content(0) == UNKNOWN != source.content(3)
