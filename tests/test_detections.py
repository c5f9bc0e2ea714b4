"""Boxes inside Parquet, as the hub's detection data sets have them: the same as a manifest's."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from test_archives import image
from test_shards import cells, write

from flaxvgg.images.datasets import DatasetError
from flaxvgg.images.detections import objects_column, told_of_classes
from flaxvgg.images.labelled import read_labelled
from flaxvgg.streaming import Source, find_source

# Class and [x, y, w, h] in pixels of the objects of each of four images.
OBJECTS = [
    [(1, [3.0, 4.0, 10.0, 8.0]), (0, [0.5, 0.25, 2.25, 2.5])],
    [],
    [(2, [7.0, 1.0, 4.0, 5.0]), (2, [-1.5, 0.0, 9.0, 3.0]), (1, [5.0, 5.0, 0.0, 3.0])],
    [(0, [0.1, 0.2, 0.3, 0.4])],
]
NAMES = ["cat", "dog", "owl"]
BOXES = [
    {1: ((3, 4, 13, 12),), 0: ((0, 0, 3, 3),)},
    {},
    {2: ((7, 1, 11, 6), (0, 0, 8, 3))},
    {0: ((0, 0, 1, 1),)},
]
LABELS = [[True, True, False], [False] * 3, [False, False, True], [True, False, False]]
CLASS = {"names": NAMES, "_type": "ClassLabel"}
SIDES = {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "Sequence"}


def struct_of_lists(key: str = "category") -> list[dict[str, Any]]:
    return [{"bbox": [b for _, b in found], key: [c for c, _ in found]} for found in OBJECTS]


def list_of_structs(key: str = "category") -> list[list[dict[str, Any]]]:
    return [[{"bbox": b, key: c, "id": 9} for c, b in found] for found in OBJECTS]


def check(source: Source) -> None:
    assert source.classes == tuple(NAMES)
    assert source.boxes is not None
    assert [dict(found) for found in source.boxes] == BOXES
    assert source.labels.tolist() == LABELS


FORMS = {
    "Sequence of a dict, as datasets had it": (
        struct_of_lists(),
        {"feature": {"bbox": SIDES, "category": CLASS}, "_type": "Sequence"},
    ),
    "a dict of lists": (
        struct_of_lists("category_id"),
        {"bbox": {"feature": SIDES}, "category_id": {"feature": CLASS, "_type": "List"}},
    ),
    "a list of dicts": (list_of_structs("label"), [{"bbox": SIDES, "label": CLASS}]),
    "List of a dict": (
        list_of_structs(),
        {"feature": {"bbox": SIDES, "category": CLASS}, "_type": "List"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_hub(tmp_path, form):
    given, told = FORMS[form]
    columns = {"image_id": [1, 2, 3, 4], "image": cells(0, 4), "objects": given}
    features = {"objects": told, "image": {"_type": "Image"}}
    check(find_source(write(tmp_path / "a.parquet", columns, features)))


def test_shards_and_another_name(tmp_path):
    told = {"feature": {"bbox": SIDES, "category": CLASS}, "_type": "Sequence"}
    for i, part in enumerate((slice(0, 1), slice(1, 4))):
        rows = struct_of_lists()[part]
        columns = {"image": cells(part.start, len(rows)), "faces": rows}
        write(tmp_path / f"train-0000{i}-of-00002.parquet", columns, {"faces": told})
    check(find_source(tmp_path))
    found = read_labelled(tmp_path)
    assert found.boxes is None  # nobody trains on boxes
    np.testing.assert_array_equal(found.labels, LABELS)


def test_a_data_set_in_memory(tmp_path):
    kind = {"bbox": datasets.Sequence(datasets.Value("float32"), 4)}
    kind |= {"category": datasets.ClassLabel(names=NAMES)}
    for objects in datasets.Sequence(kind), datasets.List(kind):
        features = datasets.Features({"image": datasets.Image(), "objects": objects})
        rows = {"image": cells(0, 4), "objects": list_of_structs()}
        if not isinstance(objects, datasets.List):
            rows["objects"] = struct_of_lists()
        rows["objects"] = [
            {k: v for k, v in x.items() if k != "id"}
            if isinstance(x, dict)
            else [{k: v for k, v in y.items() if k != "id"} for y in x]
            for x in rows["objects"]
        ]
        check(Source.of_hugging_face(datasets.Dataset.from_dict(rows, features=features)))


def test_they_are_the_boxes_of_a_manifest(tmp_path):
    """By the same words, in a table with a line for each."""
    lines = ["image,label,left,top,right,bottom"]
    for i, found in enumerate(BOXES):
        lines += [
            f"n{i}.png,{NAMES[c]},{','.join(map(str, b))}" for c, bs in found.items() for b in bs
        ]
        lines += [] if found else [f"n{i}.png,,,,,"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    check(find_source(tmp_path / "list.csv"))


def test_images_on_disk_and_boxes_of_one_class(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(image(i))
    columns = {
        "image": ["0.png", "1.png"],
        "label": ["cat", "dog"],
        "objects": [{"bbox": [[1, 2, 3, 4]]}, {"bbox": None}],
    }
    source = find_source(write(tmp_path / "a.parquet", columns))
    assert [dict(x) for x in source.boxes or ()] == [{0: ((1, 2, 4, 6),)}, {}]
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1])


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ([1.0, 2.0, 3.0], "row 1: a box is four whole numbers"),
        ([1.0, float("nan"), 3.0, 1.0], "row 1: a box is four whole numbers"),
        (["a", "b", "c", "d"], "row 1: a box is four whole numbers"),
    ],
)
def test_what_is_no_box_is_a_line(tmp_path, box, says):
    columns = {"image": cells(0, 1), "objects": [{"bbox": [box], "category": [1]}]}
    with pytest.raises(DatasetError, match=says):
        find_source(write(tmp_path / "a.parquet", columns))


def test_which_column_has_objects():
    boxes = pyarrow.struct({"bbox": pyarrow.list_(pyarrow.list_(pyarrow.float32(), 4))})
    other = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})

    def chosen(**kinds: pyarrow.DataType) -> str | None:
        return objects_column(pyarrow.schema(list(kinds.items())))

    assert chosen(image=other, x=boxes) == "x"
    assert chosen(image=other, x=pyarrow.list_(boxes)) == "x"
    assert chosen(image=other, x=boxes, y=boxes) is None
    assert chosen(image=other, Objects=boxes, y=boxes) == "Objects"
    assert chosen(image=other) is None
    assert told_of_classes(None) is None
    assert told_of_classes({"feature": [], "_type": "List"}) is None


def test_photos_inside_are_trained_on_once_read(tmp_path, monkeypatch):
    """In any order each group of rows is read once: of two that are kept, most would be gone."""
    from flaxvgg.images.parquet_files import ImagesInside

    read, found = ImagesInside._read, []
    monkeypatch.setattr(ImagesInside, "_read", lambda s, g: found.append(g.number) or read(s, g))
    columns = {"image": [*cells(0, 11), {"bytes": None, "path": "x.png"}], "label": [0, 1] * 6}
    photos = read_labelled(write(tmp_path / "a.parquet", columns)).paths
    for i in np.random.default_rng(0).permutation(12).tolist() * 2:
        expected = Path(tmp_path / "x.png") if i == 11 else image(i)
        assert photos[i].read() == expected
    assert sorted(found) == list(range(6))
    assert str(photos[3]) == "n3.png"
