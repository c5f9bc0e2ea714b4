"""CSV and Parquet files as columns of cells: encodings, separators, images inside a table."""

import array
import bisect
import csv
import dataclasses
import io
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxvgg.files.foreign import AnyPath
from flaxvgg.files.nesting import parse_json
from flaxvgg.images.finding import ImageError

BOX = ("left", "top", "right", "bottom")
_COLUMNS = {"image", "label", "labels", *BOX}
_SEPARATORS = ",;\t|"


class DatasetError(ValueError):
    """A data set that cannot be used as it is; `problems` has one line for each."""

    def __init__(self, source: AnyPath, problems: Sequence[str]):
        self.problems = list(problems)
        shown = self.problems[:10]
        if len(self.problems) > len(shown):
            shown.append(f"and {len(self.problems) - len(shown)} more")
        many = f"{len(self.problems)} problems\n  " + "\n  ".join(shown)
        super().__init__(f"{source}: {shown[0] if len(self.problems) == 1 else many}")


@dataclasses.dataclass(frozen=True)
class TableFile:
    """The columns that are known, `image` among them, unless the images are `inside` the file.

    `classes` are names that the file gives to class numbers. `lines` says where each row is.
    """

    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]
    line: str = "line"
    classes: tuple[str, ...] = ()
    inside: "ImagesInside | None" = None

    def where(self, row: int) -> str:
        """A row as it is counted in the file."""
        return f"{self.line} {self.lines[row]}"


def read_table_file(path: Path) -> TableFile:
    """A table, whatever its suffix. Raises DatasetError where it is none, and OSError."""
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1" or path.suffix.lower() == ".parquet":
        return _parquet(path)
    return _csv(path, path.read_bytes())


def _csv(path: Path, data: bytes) -> TableFile:
    text = _text(path, data)
    first = text.lstrip().split("\n", 1)[0]
    # The separator is the one around the word `image`: a label may hold any of the others.
    around = re.search(rf'(^|[{_SEPARATORS}])[ "]*image[ "]*([{_SEPARATORS}]|\s*$)', first, re.I)
    beside = [x for x in around.group(2, 1) if x and x in _SEPARATORS] if around else []
    try:
        reader = csv.reader(
            io.StringIO(text, newline=""),
            strict=True,
            delimiter=(beside or [","])[0],
            skipinitialspace=True,
        )
        header = next(filter(any, reader), [])
        columns, lines = _cells(path, [x.strip() for x in header], reader)
    except csv.Error as error:
        raise DatasetError(path, [f"no CSV file: {error}"]) from None
    return TableFile(columns, lines)


def _cells(
    path: Path, header: list[str], reader: Any
) -> tuple[dict[str, list[str]], Sequence[int]]:
    names = [name.lower() for name in header]
    if "image" not in names:
        shown = ", ".join(header)[:200] or "nothing"
        raise DatasetError(
            path,
            [
                f"the first line must be image,labels, not {shown}: it names the columns, "
                "`image` among them"
            ],
        )
    known = [name for name in names if name in _COLUMNS]
    if len(set(known)) < len(known):
        raise DatasetError(path, ["the first line has a column twice"])
    places = {name: i for i, name in enumerate(names) if name in _COLUMNS}
    columns: dict[str, list[str]] = {name: [] for name in places}
    lines = array.array("q")
    problems = []
    for row in reader:
        if not any(row):  # as spreadsheets leave behind
            continue
        if any(row[len(header) :]):
            problems.append(
                f"line {reader.line_num}: more columns than in the first line; between labels "
                "there are semicolons"
            )
        for name, place in places.items():
            columns[name].append(row[place] if place < len(row) else "")
        lines.append(reader.line_num)
    if problems:
        raise DatasetError(path, problems)
    return columns, lines


def _text(path: Path, data: bytes) -> str:
    """The text of a CSV file: UTF-8, or UTF-16 that says so. Others cannot be told apart."""
    said = "no CSV file: "
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise DatasetError(path, [f"{said}it is UTF-32: save it as UTF-8"])
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DatasetError(path, [f"{said}damaged UTF-16 ({error.reason})"]) from None
        if not text:
            raise DatasetError(path, [f"{said}it has the mark of UTF-16, and nothing else"])
        return text
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DatasetError(path, [f"{said}a spreadsheet: save it as CSV, in UTF-8"])
    if b"\0" in data[:4] and len(data) > 3:
        raise DatasetError(path, [f"{said}UTF-16 without its mark, or no text: save it as UTF-8"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            path,
            [
                f"{said}line {line} is no UTF-8 (byte {data[error.start]:#04x}). If it is Latin-1, "
                f"or Windows's cp1252: iconv -f CP1252 -t UTF-8 {path.name} > utf8.csv"
            ],
        ) from None


class ImagesInside:
    """Images that lie in a Parquet file themselves, by number, as the Hugging Face hub has them.

    `names` are unique: the paths beside the images, or numbers. An element is {"image": ...}: the
    bytes of an image file, or its path; ImageError where its group of rows is damaged. One group is
    in memory at a time.
    """

    def __init__(self, path: Path, table: Any, field: str):
        self._path, self._lock, self._root = path, threading.Lock(), path.absolute().parent
        self._group: tuple[int, list[Any]] = -1, []
        counts = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        self._starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
        self._field = field
        paths: list[Any] = [None] * self._starts[-1]
        if field:
            paths = table.read(columns=[f"image.{field}"]).column("image").combine_chunks()
            paths = paths.field(field).to_pylist()
        given = [str(name) if name else str(i) for i, name in enumerate(paths)]
        if len(set(given)) < len(given):
            given = [f"{i}-{name}" for i, name in enumerate(given)]
        self.names: list[str] = given

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> dict[str, Any]:
        number = bisect.bisect_right(self._starts, row) - 1
        with self._lock:
            if self._group[0] != number:
                self._group = number, self._read(number)
            cell = self._group[1][row - self._starts[number]].as_py()
        if isinstance(cell, dict):
            data, path = cell.get("bytes"), cell.get("path")
            cell = data if data is not None or not path else self._root / path
        return {"image": b"" if cell is None else cell}

    def _read(self, number: int) -> Any:
        import pyarrow
        from pyarrow import parquet

        first, last = self._starts[number] + 1, self._starts[number + 1]
        try:
            with parquet.ParquetFile(self._path, page_checksum_verification=True) as file:
                found = file.read_row_group(number, columns=["image"]).column("image")
            if len(found) != last - first + 1:
                raise pyarrow.ArrowInvalid(f"{len(found)} of {last - first + 1} rows")
            return found
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ImageError(
                f"rows {first} to {last} of {self._path.name} are damaged ({reason}): get it again"
            ) from error


def _parquet(path: Path) -> TableFile:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            names = {name: name.strip().lower() for name in schema.names}
            if "image" not in schema.names:
                shown = ", ".join(schema.names)[:200] or "none"
                raise DatasetError(path, [f"no column `image` in it: its columns are {shown}"])
            known = [name for name in names.values() if name in _COLUMNS]
            if len(set(known)) < len(known):
                raise DatasetError(path, ["it has a column twice"])
            inside = _inside(path, file, schema.field("image").type)
            wanted = [name for name in names if names[name] in _COLUMNS]
            wanted = [name for name in wanted if name != "image" or inside is None]
            for name in wanted:
                if _is_binary(schema.field(name).type):
                    raise DatasetError(path, [f"the column {name} is bytes: save it as text"])
            found = file.read(columns=wanted).to_pydict() if wanted else {}
            columns = {names[name]: column for name, column in found.items()}
            count = file.metadata.num_rows
            classes = _class_names(path, schema.metadata or {})
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(path, [f"no Parquet file: {str(error).splitlines()[0]}"]) from None
    return TableFile(columns, range(1, count + 1), "row", classes, inside)


def _inside(path: Path, file: Any, kind: Any) -> ImagesInside | None:
    """The images in a column of this type; None where it holds paths."""
    from pyarrow import types

    if types.is_struct(kind):
        fields = {field.name for field in kind}
        if "bytes" not in fields:
            raise DatasetError(path, ["the column image holds neither paths nor image files"])
        return ImagesInside(path, file, "path" if "path" in fields else "")
    if _is_binary(kind):
        return ImagesInside(path, file, "")
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DatasetError(path, [f"the column image is {kind}: it holds paths, or image files"])
    return None


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in (*tests, types.is_binary_view))


def _class_names(path: Path, metadata: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """The names of class numbers that Hugging Face's `datasets` notes beside a schema.

    Raises DatasetError for a note that is damaged: Parquet has no checksum for it.
    """
    try:
        note = parse_json(metadata.get(b"huggingface", b"{}"))
    except ValueError as error:
        raise DatasetError(
            path, [f"its note of the classes is damaged ({error}): get it again"]
        ) from None
    try:
        features = note["info"]["features"]
        labels = features["labels" if "labels" in features else "label"]
        names = labels.get("names") or labels["feature"]["names"]
        return tuple(map(str, names))
    except (LookupError, TypeError, AttributeError):
        return ()
