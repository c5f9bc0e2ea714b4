"""Parquet shards: every image once, read group by group, and what does not go together refused."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from streaming_jobs import means_job, on_device
from test_archives import image, tar

from flaxvgg.images.datasets import DatasetError
from flaxvgg.images.finding import ImageError
from flaxvgg.images.parquet_files import ImagesInside
from flaxvgg.images.shards import shards_below
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming import Source, StoreError, find_source, stream

RECIPE = PREPROCESSING["torchvision"]
CLASSES = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
ROWS = [(0, 1, 1), (1, 0), (0, 1, 0, 1)]  # labels of the images of each shard
COUNT = sum(map(len, ROWS))


def write(path: Path, columns: dict, features: dict | None = None, **options) -> Path:
    table = pyarrow.table(columns)
    if features is not None:
        note = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": note})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **{"row_group_size": 2} | options)
    return path


def cells(start: int, count: int) -> list[dict]:
    return [{"bytes": image(i), "path": f"n{i}.png"} for i in range(start, start + count)]


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three shards of 3, 2 and 4 images in groups of two, as the hub has them."""
    start = 0
    for i, labels in enumerate(ROWS):
        columns = {"image": cells(start, len(labels)), "label": labels}
        write(tmp_path / "set" / "data" / f"train-{i:05}-of-00003.parquet", columns, CLASSES)
        start += len(labels)
    (tmp_path / "set" / "README.md").write_text("about it")
    return tmp_path / "set" / "data"


def check(source: Source, names: list[str]) -> None:
    """The images 0, 1, 2, ..., under these names, each as it is in its file."""
    assert list(source.names) == names
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [x for labels in ROWS for x in labels]
    for row in np.random.default_rng(0).permutation(len(source)).tolist():
        item = source.read(row, None, RECIPE)
        expected = Source([image(row)], ["one"]).read(0, None, RECIPE)
        np.testing.assert_array_equal(item.pixels, expected.pixels)
        assert item.label == source.labels[row]


def test_shards_by_a_pattern_by_numbers_by_folder_and_one_by_one(shards):
    paths = sorted(shards.glob("*.parquet"))
    names = [
        f"train-{shard:05}-of-00003.parquet/n{i}.png"
        for i, shard in enumerate(np.repeat([0, 1, 2], list(map(len, ROWS))))
    ]
    given = [
        shards / "train-*.parquet",
        shards / "train-{00000..00002}-of-00003.parquet",
        shards,
        shards.parent,  # as the hub's folders are, and with other files in them
        paths,
    ]
    for one in given:
        check(find_source(one), names)
    (shards.parent / "tars").mkdir()
    tars = [tar(shards.parent / "tars" / f"a-{i}.tar", {f"{i}.png": image(i)}) for i in range(2)]
    for one in (tars[0].parent, tars[0].parent / "a-*.tar"):
        assert list(find_source(one).names) == ["a-0.tar/0.png", "a-1.tar/1.png"]


def test_each_group_of_rows_is_read_once(shards, monkeypatch):
    """By threads that are a few rows apart, at every border of a group or shard."""
    read, found = ImagesInside._read, []

    def counted(self, group):
        found.append((group.path.name[:11], group.number))
        return read(self, group)

    monkeypatch.setattr(ImagesInside, "_read", counted)
    source = find_source(shards)
    assert not found  # only names are read before
    order = [1, 0, *range(2, COUNT)]
    for row in [*order[:4], 5, 4, *order[6:]]:
        source.read(row, None, RECIPE)
    groups = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert found == [(f"train-{shard:05}", number) for shard, number in groups]
    found.clear()
    source = find_source(shards)
    with ThreadPoolExecutor(2) as pool:
        for row in range(0, COUNT, 2):  # at the same time, and never further apart
            rows = range(row, min(row + 2, COUNT))
            list(pool.map(lambda row: source.read(row, None, RECIPE), rows))
    assert len(found) == len(set(found)) == len(groups)


def test_the_store_of_shards_is_that_of_the_files_and_notices_others(shards, tmp_path):
    for i in range(COUNT):
        (tmp_path / "files" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / "x" / f"n{i}.png").write_bytes(image(i))
    job, out = on_device(means_job()), tmp_path / "shards.zarr"

    def run(given, out=out):
        return stream(job, find_source(given), out, size=(32, 32))

    done = run(shards)
    assert (done.now, done.left, done.problems) == (COUNT, 0, {})
    folder = run(tmp_path / "files", tmp_path / "files.zarr")
    np.testing.assert_array_equal(done.store.read("mean"), folder.store.read("mean"))
    assert done.store.read("label").tolist() == [x for labels in ROWS for x in labels]
    assert run(shards).now == 0
    kept = (shards / "train-00001-of-00003.parquet").read_bytes()
    name = "train-00001-of-00003.parquet"
    write(shards / name, {"image": [cells(7, 1)[0] | {"path": "n3.png"}, *cells(4, 1)],
                          "label": ROWS[1]}, CLASSES)  # fmt: skip
    with pytest.raises(StoreError, match=rf"1 of those that are done.*changed.*\({name}/n3.png\)"):
        run(shards)
    write(shards / name, {"image": cells(3, 1), "label": ROWS[1][:1]}, CLASSES)
    with pytest.raises(StoreError, match=rf"1 removed \({name}/n4.png\)"):
        run(shards)
    (shards / name).write_bytes(kept)
    assert run(shards).now == 0
    extra = write(shards / "train-00003.parquet", {"image": cells(9, 1), "label": [0]}, CLASSES)
    with pytest.raises(StoreError, match=r"1 added \(train-00003.parquet/n9.png\)"):
        run([*sorted(shards.glob("*-of-*")), extra])


def test_columns_by_what_the_hub_says_of_them(tmp_path):
    features = {"img": {"_type": "Image"}, "fine": CLASSES["label"], "id": {"_type": "Value"}}
    columns = {"id": [5, 6], "img": cells(0, 2), "fine": [1, 0]}
    source = find_source(write(tmp_path / "a.parquet", columns, features))
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert source.read(1, None, RECIPE).pixels.shape == (36, 40, 3)
    # Of two columns of classes none is taken for the labels.
    both = {**columns, "coarse": [0, 0]}
    told = {**features, "coarse": CLASSES["label"]}
    assert find_source(write(tmp_path / "b.parquet", both, told)).labels is None
    several = {"image": cells(0, 2), "labels": [[0, 1], []]}
    lists = {"labels": {"feature": CLASSES["label"], "_type": "List"}}
    source = find_source(write(tmp_path / "c.parquet", several, lists))
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [[True] * 2, [False] * 2])
    two = {"img": cells(0, 1), "other": cells(1, 1)}
    path = write(tmp_path / "d.parquet", two, {x: {"_type": "Image"} for x in two})
    with pytest.raises(DatasetError, match="no column `image` in it: its columns are img, other"):
        find_source(path)


def test_plain_bytes_and_names_of_classes(tmp_path):
    """Names are numbers then, of each shard; classes are numbered over all of them."""
    for i, labels in enumerate((["dog", "ape"], ["cat;dog"])):
        columns = {"image": [image(2 * i + j) for j in range(len(labels))], "labels": labels}
        write(tmp_path / f"{i}.parquet", columns)
    source = find_source(tmp_path)
    assert list(source.names) == ["0.parquet/0", "0.parquet/1", "1.parquet/0"]
    assert source.classes == ("ape", "cat", "dog")
    assert source.labels.astype(int).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 1]]
    np.testing.assert_array_equal(
        source.read(2, None, RECIPE).pixels,
        Source([image(2)], ["x"]).read(0, None, RECIPE).pixels,
    )


def test_a_damaged_shard_is_named_and_what_is_whole_is_kept(shards, tmp_path):
    path = shards / "train-00001-of-00003.parquet"
    whole = path.read_bytes()
    write(path, {"image": cells(3, 2), "label": ROWS[1]}, CLASSES, row_group_size=1,
          write_page_checksum=True, use_dictionary=False, write_statistics=False)  # fmt: skip
    data = bytearray(path.read_bytes())
    data[data.index(b"IHDR") + 5] ^= 1
    path.write_bytes(data)
    done = stream(on_device(means_job()), find_source(shards), tmp_path / "d.zarr", size=(32, 32))
    assert list(done.problems) == [f"{path.name}/n3.png"]
    says = f"rows 1 to 1 of {path.name} are damaged ("
    assert done.problems[f"{path.name}/n3.png"].startswith(says)
    assert int((done.store.status == 1).sum()) == COUNT - 1
    path.write_bytes(whole[:200])
    with pytest.raises(DatasetError, match=rf"{path.name}: no Parquet file"):
        find_source(shards)


@pytest.mark.parametrize(
    ("name", "columns", "features", "says"),
    [
        ("b.parquet", {"image": ["a.png"], "label": [0]}, CLASSES, "it holds paths: a table of"),
        (
            "b.parquet",
            {"image": [b"1"]},
            CLASSES,
            "in this, or in a.parquet, and not in both: label",
        ),
        ("b.parquet", {"image": [b"1"], "label": [0]}, None, "classes are not those of a.parquet"),
        ("c/a.parquet", {"image": [b"1"], "label": [0]}, CLASSES, "two of one name: rename one"),
        ("b.csv", None, None, "it goes, alone, into a store"),
        ("b.png", None, None, "it goes, alone, into a store"),
    ],
)
def test_shards_that_do_not_go_together(tmp_path, name, columns, features, says):
    first = write(tmp_path / "a.parquet", {"image": cells(0, 1), "label": [1]}, CLASSES)
    if columns is None:
        (tmp_path / name).write_bytes(b"image\n")
    else:
        write(tmp_path / name, columns, features)
    with pytest.raises((DatasetError, ImageError)) as error:
        find_source([first, tmp_path / name])
    assert says in str(error.value)


def test_patterns_and_folders_that_are_no_set_of_shards(shards):
    with pytest.raises(DatasetError, match=r"val-\*.parquet: no file is called so: check the"):
        find_source(shards / "val-*.parquet")
    (shards / "train-00001-of-00003.parquet").unlink()
    missing = "2 of 3 shards are there, and not 1: get them, or name the others one by one"
    for given in (shards, shards.parent, shards / "train-*.parquet"):
        with pytest.raises(DatasetError, match=missing):
            find_source(given)
    assert len(find_source(sorted(shards.glob("*.parquet")))) == 7
    columns = {"image": cells(0, 1), "label": [1]}
    write(shards / "test-00000-of-00001.parquet", columns, CLASSES)
    with pytest.raises(DatasetError, match=r"2 sets in it: name one of .*test-0.*train-\*.parquet"):
        find_source(shards)
    (shards / "empty").mkdir()
    with pytest.raises(ImageError, match="no image in this folder"):
        find_source(shards / "empty")


def test_names_of_shards(tmp_path):
    """Also those of the hub's earlier years, and numbers alone; photos are no shards."""
    for name in ("train-00000-of-00002-0123456789abcdef", "train-00001-of-00002-fedcba9876543210"):
        (tmp_path / f"{name}.parquet").touch()
    assert len(shards_below(tmp_path)) == 2
    shutil.rmtree(tmp_path)
    for name in ("0000.parquet", "0001.parquet", "a.png", ".hidden.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in shards_below(tmp_path)] == ["0000.parquet", "0001.parquet"]
    assert list(find_source(tmp_path).names) == ["a.png"]
