"""Lists of images, and what another parser makes of them."""

import io
import os
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pyarrow
from pyarrow import parquet

from flaxvgg.images.datasets import VOC_CLASSES, DatasetError, label_file, pascal_voc
from flaxvgg.images.table_files import BOX
from flaxvgg.streaming.manifest import read_manifest
from tests.fuzz.cases import Arrays, Seed, Target, in_place
from tests.fuzz.tables import class_names, csv_rows, numbered


def label_targets() -> list[Target]:
    """CSV files, manifests, and Pascal VOC."""
    rows = [("a.png", "cat;dog"), ("sub/b.png", ""), ("ä, b.png", " dog ")]
    table = "image,labels\n" + "\n".join(f'"{name}",{labels}' for name, labels in rows)
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{i + 1}</xmin>"
        f"<ymin>2</ymin><xmax>{i + 20}</xmax><ymax>30.6</ymax></bndbox></object>"
        for i, (name, difficult) in enumerate([("cat", 0), ("dog", 1), ("cat", 0), ("sofa", 0)])
    )
    size = "<size><width>41</width><height>37</height><depth>3</depth></size>"
    voc = f"<annotation><filename>a.jpg</filename>{size}{objects}</annotation>"

    def table_place(folder: Path, name: str, data: bytes) -> Path:
        (folder / "sub").mkdir()
        for image, _ in rows:
            (folder / image).touch()
        return in_place(folder, name, data)

    def voc_place(folder: Path, name: str, data: bytes) -> Path:
        for part in ("ImageSets/Main", "JPEGImages", "Annotations"):
            (folder / part).mkdir(parents=True)
        (folder / "ImageSets/Main/trainval.txt").write_text("a\n")
        (folder / "Annotations/a.xml").write_text(voc)
        (folder / "JPEGImages/a.jpg").touch()
        (folder / name).write_bytes(data)
        return folder

    tables = [Seed("labels.csv", table.encode()), Seed("labels.csv", table.encode("utf-8-sig"))]
    notes = [Seed("Annotations/a.xml", voc.encode())]
    notes += [
        Seed("Annotations/a.xml", f'<?xml version="1.0" encoding="utf-16"?>{voc}'.encode("utf-16"))
    ]
    notes += [Seed("ImageSets/Main/trainval.txt", b"a\n")]
    errors = (DatasetError,)
    return [
        Target("CSV", 5, tables, errors, _read_table, _true_table, table_place),
        Target("Pascal VOC", 5, notes, errors, _read_voc, _true_voc, voc_place),
        Target("manifest", 4, tables, errors, _read_manifest, _true_manifest, in_place),
        Target("Parquet", 4, _parquet(rows), errors, _read_manifest, _true_manifest, in_place),
    ]


def _parquet(rows: list[tuple[str, str]]) -> list[Seed]:
    columns = {"image": [name for name, _ in rows], "labels": [labels for _, labels in rows]}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file, write_page_checksum=True)
    return [Seed("list.parquet", file.getvalue())]


def _read_manifest(path: Path) -> Arrays:
    found = read_manifest(path)
    labels = np.zeros(0, bool) if found.labels is None else found.labels
    return {"labels": labels, "images": _text(*found.images), "classes": _text(*found.classes)}


def _true_manifest(data: bytes, path: Path, whole: bytes) -> Arrays:
    """Parquet has checksums: what is read is what was written."""
    rows, names = _rows(whole if path.suffix == ".parquet" else data)
    # `labels` may be damaged to a name that is none: then there are no labels.
    found, classes = numbered(rows, names)
    images = [_name(path.parent, i, row["image"]) for i, row in enumerate(rows)]
    if rows and rows[0].keys() >= set(BOX):  # a line for each box: an image may have several
        of_image: dict[str, set[int]] = {name: set() for name in images}
        for name, numbers in zip(images, found or [], strict=found is not None):
            of_image[name].update(numbers)
        images = list(of_image)
        found = None if found is None else [sorted(numbers) for numbers in of_image.values()]
    labels = np.zeros(0, bool)
    if found is not None and all(len(row) == 1 for row in found):
        labels = np.array([number for (number,) in found], np.int32)
    elif found is not None:
        labels = np.array([[i in row for i in range(len(classes))] for row in found], bool)
    return {"labels": labels, "images": _text(*images), "classes": _text(*classes)}


def _rows(data: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a table, and the names that it gives to class numbers."""
    if not data.startswith(b"PAR1"):
        return csv_rows(data), []
    table = parquet.read_table(io.BytesIO(data))  # whatever the suffix
    return table.to_pylist(), class_names(table.schema)


def _name(folder: Path, row: int, cell: Any) -> str:
    """The name of the image in a row: a path, or what images inside a table are called."""
    if isinstance(cell, str):
        return _path(folder, cell)
    return (cell["path"] if isinstance(cell, dict) else "") or str(row)


def _path(folder: Path, name: str) -> str:
    """Windows has other separators, and spaces around a name are not of it."""
    return name if os.path.lexists(folder / name) else name.strip().replace("\\", "/")


def _text(*lines: str) -> np.ndarray:
    return np.frombuffer("\n".join(lines).encode("utf-8", "surrogateescape"), np.uint8)


def _read_table(path: Path) -> Arrays:
    found = label_file(path)
    names = [os.path.relpath(p, path.parent) for p in found.paths]
    return {"labels": found.labels, "paths": _text(*names), "classes": _text(*found.classes)}


def _true_table(data: bytes, path: Path, whole: bytes) -> Arrays:
    rows, _ = _rows(data)
    key = "labels" if "labels" in rows[0] else "label"
    labels = [{x.strip() for x in row[key].split(";")} - {""} for row in rows]
    classes = sorted(set().union(*labels))
    table = np.array([[float(c in row) for c in classes] for row in labels], np.float32)
    names = [
        os.path.relpath(path.parent / _path(path.parent, row["image"]), path.parent) for row in rows
    ]
    return {"labels": table, "paths": _text(*names), "classes": _text(*classes)}


def _read_voc(path: Path) -> Arrays:
    found = pascal_voc(path)
    assert found.boxes is not None
    boxes = [
        (i, number, *box)
        for i, one in enumerate(found.boxes)
        for number, given in sorted(one.items())
        for box in given
    ]
    names = [p.stem for p in found.paths]
    return {"boxes": np.array(boxes, float), "names": _text(*names)}


def _true_voc(data: bytes, path: Path, whole: bytes) -> Arrays:
    names = (path / "ImageSets/Main/trainval.txt").read_text("utf-8").split()
    boxes = []
    for i, name in enumerate(names):
        document = minidom.parse(str(path / f"Annotations/{name}.xml"))

        def text(node: Any, tag: str) -> str:
            return node.getElementsByTagName(tag)[0].firstChild.data.strip()

        for item in document.getElementsByTagName("object"):
            if item.getElementsByTagName("difficult") and text(item, "difficult") == "1":
                continue
            number = VOC_CLASSES.index(text(item, "name"))
            left, top, right, bottom = (
                round(float(text(item, x))) for x in ("xmin", "ymin", "xmax", "ymax")
            )
            assert left <= right, "inside out"
            assert top <= bottom, "inside out"
            boxes.append((i, number, left - 1, top - 1, right, bottom))
    boxes.sort(key=lambda box: box[:2])
    return {"boxes": np.array(boxes, float), "names": _text(*names)}
