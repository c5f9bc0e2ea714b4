"""Tables of images as people export them: encodings, separators, numbers, boxes, images inside."""

import contextlib
import csv
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from flaxvgg.images.label_tables import MOST_CLASSES, read_label_table
from flaxvgg.images.loading import ImageError
from flaxvgg.images.table_files import DatasetError
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming.source import find_source
from tests.fuzz.cases import Arrays, Seed, Target, in_place

_BOX = ("left", "top", "right", "bottom")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)


def table_targets() -> list[Target]:
    """Texts with separators, and Parquet files that hold the images."""
    texts = [Seed("labels.csv", data) for data in _texts()]
    packed = [Seed("images.parquet", data) for data in _packed()]
    errors = (DatasetError, ImageError)
    return [
        Target("table", 6, texts, errors, _read_table, _true_table, in_place),
        Target("Parquet, images", 5, packed, errors, _read_packed, _true_packed, in_place),
    ]


def _texts() -> list[bytes]:
    names = "Image\tLabels\na.png\tcat;dog\nb ä.png\t\n\nc.png\t dog \n"
    numbers = 'id,image,label\n1,a.png,3\n2,"b, c.png",\n3,d.png,-1\n4,e.png,3.0\n'
    boxes = (
        "image;label;left;top;right;bottom\na.png;cat;1;2;30;40.0\na.png;dog;0;0;5;5\nb.png;;;;;\n"
    )
    return [
        names.encode(),
        names.encode("utf-16"),
        b"\xfe\xff" + numbers.encode("utf-16-be"),
        numbers.encode("utf-8-sig"),
        numbers.replace("\n", "\r\n").encode(),
        boxes.encode(),
        b"image|labels\nc\\a.png|1;2\nd.png|0\n",
    ]


def _packed() -> list[bytes]:
    images = []
    for i in range(4):
        file = io.BytesIO()
        Image.new("RGB", (36 + i, 34), (50 * i, 9, 200)).save(file, "PNG")
        images.append(file.getvalue())
    inside = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    kind = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    told = {b"huggingface": json.dumps({"info": {"features": kind}}).encode()}
    tables = [
        pyarrow.table({"image": inside, "label": [1, 0, -1, 1]}).replace_schema_metadata(told),
        pyarrow.table({"image": images, "labels": ["cat", None, "dog;cat", "dog"]}),
        pyarrow.table({"image": [b"broken", *images[1:]]}),
    ]
    found = []
    for table in tables:
        file = io.BytesIO()
        parquet.write_table(table, file, write_page_checksum=True, row_group_size=3)
        found.append(file.getvalue())
    return found


def _lines(*lines: str) -> np.ndarray:
    return np.frombuffer("\0".join(lines).encode("utf-8", "surrogatepass"), np.uint8)


def _read_table(path: Path) -> Arrays:
    found = read_label_table(path)
    names = found.classes or {n: str(n) for x in found.labels or () for n in x}
    labels = [";".join(sorted({names[n] for n in x})) for x in found.labels or ()]
    boxes = [
        f"{i} {names[label]} {box}"
        for i, here in enumerate(found.boxes or ())
        for label, given in here.items()
        for box in given
    ]
    return {
        "images": _lines(*found.images),
        "labels": _lines(*labels),
        "boxes": _lines(*sorted(boxes)),
    }


def _true_table(data: bytes, path: Path, whole: bytes) -> Arrays:
    """The same with dictionaries, row by row."""
    if data.startswith(b"PAR1"):  # whatever the suffix: the other target's
        return _read_table(path)
    rows = csv_rows(data)
    key = "labels" if "labels" in rows[0] else "label"
    parts = [[x.strip() for x in (row.get(key) or "").split(";") if x.strip()] for row in rows]
    every = {x for found in parts for x in found}
    if all(map(_NUMBER.fullmatch, every)):
        parts = [[str(int(float(x))) for x in found if float(x) >= 0] for found in parts]
    images: dict[str, set[str]] = {}
    boxes = []
    for row, found in zip(rows, parts, strict=True):
        name = row["image"]
        if "\\" in name or name != name.strip():
            name = name.strip().replace("\\", "/")
        images.setdefault(name, set()).update(found)
        corners = [row[x] for x in _BOX if x in row]
        if any(corners):
            box = tuple(int(float(x)) for x in corners)
            boxes.append(f"{list(images).index(name)} {found[0]} {box}")
    labels = [";".join(sorted(x)) for x in images.values()] if key in rows[0] else []
    return {
        "images": _lines(*images),
        "labels": _lines(*labels),
        "boxes": _lines(*sorted(boxes)),
    }


def csv_rows(data: bytes) -> list[dict[str, str]]:
    """The lines of a table by the names in its first one, in whatever is around `image` there."""
    marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16" if marked else "utf-8-sig").lstrip("\r\n")
    head, separator = text.split("\n", 1)[0], ","
    cells = re.split(r"([,;\t|])", head)
    for i in range(0, len(cells), 2):
        if cells[i].strip(' "\r').lower() == "image" and len(cells) > 1:
            separator = cells[i + 1] if i + 1 < len(cells) else cells[i - 1]
            break
    file = io.StringIO(text, newline="")
    first, *lines = filter(any, csv.reader(file, delimiter=separator, skipinitialspace=True))
    names = [name.strip().lower() for name in first]
    return [dict(itertools.zip_longest(names, line, fillvalue="")) for line in lines]


def numbered(
    rows: list[dict[str, Any]], names: list[str]
) -> tuple[list[list[int]] | None, list[str]]:
    """Every row's class numbers, None without any, and the classes' names.

    `names` are those of class numbers.
    """
    key = next((x for x in ("labels", "label") if rows and x in rows[0]), None)
    if key is None:
        return None, []
    cells = ["" if row[key] is None else str(row[key]) for row in rows]
    parts = [{x.strip() for x in cell.split(";")} - {""} for cell in cells]
    every = sorted(set().union(*parts))
    if not all(map(_NUMBER.fullmatch, every)):
        return [[every.index(x) for x in sorted(found)] for found in parts], every
    numbers = [sorted({int(float(x)) for x in found if float(x) >= 0}) for found in parts]
    count = max((n for found in numbers for n in found), default=-1) + 1
    return numbers, names or [str(n) for n in range(count if count <= MOST_CLASSES else 0)]


def class_names(schema: pyarrow.Schema) -> list[str]:
    """The names of class numbers that stand beside a Parquet file's schema."""
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return told.get("info", {}).get("features", {}).get("label", {}).get("names", [])


def _read_packed(path: Path) -> Arrays:
    source = find_source(path)
    items = [source.read(i, None, PREPROCESSING["torchvision"]) for i in range(len(source))]
    told = source.labels
    labels: list[Any] = [] if told is None else told.tolist()
    if told is not None and told.ndim == 2:
        labels = [np.flatnonzero(row).tolist() for row in told]
    pixels = [item.pixels.tobytes() for item in items]
    assert all(item.problem or item.pixels.size for item in items)
    return {
        "labels": _lines(*map(str, labels)),
        "classes": _lines(*source.classes),
        "pixels": np.frombuffer(b"".join(pixels), np.uint8),
    }


def _true_packed(data: bytes, path: Path, whole: bytes) -> Arrays:
    """Columns and groups of rows as PyArrow has them; images of a damaged group are broken."""
    file = parquet.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    schema = file.schema_arrow
    others = [name for name in schema.names if name != "image"]
    rows = file.read(columns=others).to_pylist()
    pixels = []
    images: list[Any] = []
    for i in range(file.num_row_groups):
        count, found = file.metadata.row_group(i).num_rows, []
        with contextlib.suppress(OSError, pyarrow.ArrowException):
            found = file.read_row_group(i, columns=["image"]).column("image").to_pylist()
        images += found if len(found) == count else [None] * count
    for image in images:
        cell = image["bytes"] if isinstance(image, dict) else image
        if isinstance(cell, str):  # a path, of a file that is not there
            cell = b""
        try:
            with Image.open(io.BytesIO(cell or b""), formats=["PNG"]) as opened:
                opened.verify()
            with Image.open(io.BytesIO(cell)) as opened:
                found = np.asarray(opened.convert("RGB"))
            pixels.append(found.tobytes() if min(found.shape[:2]) >= 32 else b"")
        except (OSError, SyntaxError, ValueError):
            pixels.append(b"")
    found, classes = numbered(rows, class_names(schema))
    labels: list[Any] = found or []
    if labels and all(len(x) == 1 for x in labels):
        labels = [x[0] for x in labels]
    return {
        "labels": _lines(*map(str, labels)),
        "classes": _lines(*classes),
        "pixels": np.frombuffer(b"".join(pixels), np.uint8),
    }
