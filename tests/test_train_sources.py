"""What is trained on is the same, wherever the images lie: folders, tars, zips, Parquet, TFDS."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from records import IMAGE, describe, example, label, write_records
from test_archives import tar
from test_shards import write

from flaxvgg.images.datasets import DatasetError, LabelledImages
from flaxvgg.images.labelled import read_labelled
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.training.data import batches
from flaxvgg.training.inventory import take_inventory
from flaxvgg.training.run import train
from flaxvgg.training.settings import Data, Model, Run
from networks import COLOURS, TINY_GAP, coloured_photos, tiny_vgg

RECIPE = PREPROCESSING["torchvision"]
NAMES = sorted(COLOURS)
KINDS = ("tar", "shards of tar", "zip", "Parquet", "shards of Parquet", "table", "TFDS")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return coloured_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def packed(photos, tmp_path_factory) -> dict[str, Path]:
    """The photos in each kind of file, in the order that a folder has them."""
    root = tmp_path_factory.mktemp("packed")
    files = [(path.relative_to(photos).as_posix(), path.read_bytes()) for path in _in(photos)]
    numbers = [NAMES.index(name.partition("/")[0]) for name, _ in files]
    tar(root / "all.tar", dict(files))
    (root / "tars").mkdir()
    for i, part in enumerate((files[:15], files[15:])):
        tar(root / "tars" / f"part-{i}.tar", dict(part))
    shutil.make_archive(str(root / "all"), "zip", photos)
    told = {"label": {"names": NAMES, "_type": "ClassLabel"}}
    cells = [{"bytes": data, "path": name} for name, data in files]
    write(root / "all.parquet", {"image": cells, "label": numbers}, told, row_group_size=5)
    for i, part in enumerate((slice(0, 20), slice(20, 36))):
        columns = {"image": cells[part], "label": numbers[part]}
        write(root / "hub" / f"train-{i:05}-of-00002.parquet", columns, told, row_group_size=5)
    names = [str(photos / name) for name, _ in files]
    write(root / "list.parquet", {"image": names, "label": [NAMES[n] for n in numbers]})
    (root / "tfds").mkdir()
    records = [
        example({"image": [data], "label": [number]})
        for (_, data), number in zip(files, numbers, strict=True)
    ]
    write_records(root / "tfds" / "c-train.array_record-00000-of-00001", records)
    describe(root / "tfds", {"image": IMAGE, "label": label(3)}, {"label": NAMES})
    places = "all.tar", "tars", "all.zip", "all.parquet", "hub", "list.parquet", "tfds"
    return {kind: root / place for kind, place in zip(KINDS, places, strict=True)}


def _in(folder: Path) -> list[Path]:
    found = read_labelled(folder).paths
    return [path for path in found if isinstance(path, Path)]


def a_run(place: Path) -> Run:
    return Run(Data(place, size=(32, 32), batch=6, crop=0.4), epochs=1)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_folder(photos, packed, kind):
    wanted, found = read_labelled(photos), read_labelled(packed[kind])
    assert found.classes == wanted.classes
    if kind == "zip":  # whose order is that of the archive
        assert sorted(map(str, found.paths)) == sorted(map(str, _relative(wanted, photos)))
        order = np.argsort(list(map(str, found.paths)))
        by_name = np.argsort(list(map(str, _relative(wanted, photos))))
        found, wanted = found.of(order), wanted.of(by_name)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    run = a_run(packed[kind])
    seen, expected = (batches(x, run.data, RECIPE, epochs=1, seed=0) for x in (found, wanted))
    for i in (5, 0):
        for name, array in expected[i].items():
            np.testing.assert_array_equal(seen[i][name], array)


def _relative(images: LabelledImages, root: Path) -> list[str]:
    return [Path(str(path)).relative_to(root).as_posix() for path in images.paths]


def test_the_inventory_names_what_is_inside_and_what_is_broken(packed, tmp_path):
    found = read_labelled(packed["shards of tar"])
    run = a_run(packed["shards of tar"])
    entries = take_inventory(run, found, found.of(np.arange(0)), RECIPE)
    assert entries[0].image == "part-0.tar/blue/0.png"
    assert entries[0].known.labels == ("blue",)
    assert len({entry.known.content for entry in entries}) == 36
    tar(tmp_path / "a.tar", {"cat/0.png": b"none", "dog/1.png": found.paths[0].read()})
    broken = read_labelled(tmp_path / "a.tar")
    with pytest.raises(DatasetError) as error:
        take_inventory(a_run(tmp_path / "a.tar"), broken, broken.of(np.arange(0)), RECIPE)
    says = "cat/0.png: no image that Pillow reads: its bytes are to be those of a whole file"
    assert str(error.value) == f"{tmp_path / 'a.tar'}: {says}"


@pytest.mark.slow
def test_a_run_on_shards_is_that_on_the_folder(photos, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(Model, "with_head", lambda self, model, classes, seed: model)
    head = (*TINY_GAP[:-1], dataclasses.replace(TINY_GAP[-1], outputs=3))
    rows = []
    for place in photos, packed["shards of Parquet"], packed["TFDS"]:
        out = tmp_path / place.name
        load = lambda: tiny_vgg(head, precision="default")  # noqa: E731
        rows.append(train(load, a_run(place), out).rows)
        assert train(load, a_run(place), out).steps == len(rows[-1])
    assert rows[0] == rows[1] == rows[2]


def test_a_pattern_without_files_and_a_tar_without_classes(packed, tmp_path):
    with pytest.raises(DatasetError, match="no file is called so"):
        read_labelled(tmp_path / "train-*.parquet")
    with pytest.raises(DatasetError, match="no such folder or file"):
        read_labelled(tmp_path / "missing.parquet")
    tar(tmp_path / "flat.tar", {"0.png": read_labelled(packed["tar"]).paths[0].read()})
    with pytest.raises(DatasetError, match="no column `labels` in it"):
        read_labelled(tmp_path / "flat.tar")
