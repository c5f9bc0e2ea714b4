"""CSV files as columns of cells: their encodings and separators; and what a table is."""

import array
import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxvgg.files.addresses import named
from flaxvgg.files.foreign import AnyPath
from flaxvgg.files.remote import open_file

if TYPE_CHECKING:
    from flaxvgg.images.hugging_face import DatasetImages
    from flaxvgg.images.parquet_files import ImagesInside

BOX = ("left", "top", "right", "bottom")
COLUMNS = {"image", "label", "labels", *BOX}
_SEPARATORS = ",;\t|"


class DatasetError(ValueError):
    """A data set that cannot be used as it is; `problems` has one line for each."""

    def __init__(self, source: AnyPath, problems: Sequence[str]):
        self.source, self.problems = source, list(problems)
        shown = self.problems[:10]
        if len(self.problems) > len(shown):
            shown.append(f"and {len(self.problems) - len(shown)} more")
        many = f"{len(self.problems)} problems\n  " + "\n  ".join(shown)
        super().__init__(f"{named(source)}: {shown[0] if len(self.problems) == 1 else many}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.problems)


@dataclasses.dataclass(frozen=True)
class TableFile:
    """The columns that are known, `image` among them, unless the images are `inside` the file.

    `classes` are names that the file gives to class numbers. `lines` says where each row is, in
    lines, or whatever `line` says.
    """

    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[Any]
    line: str = "line"
    classes: tuple[str, ...] = ()
    inside: "ImagesInside | DatasetImages | None" = None

    def where(self, row: int) -> str:
        """A row as it is counted in the file."""
        return f"{self.line} {self.lines[row]}"


def read_csv(path: Path) -> TableFile:
    """A CSV file, whatever its suffix. Raises DatasetError where it is none, and OSError.

    It may be behind an address: GoneError and RemoteError then.
    """
    with open_file(path) as file:
        text = _text(path, file.read() or b"")
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
    known = [name for name in names if name in COLUMNS]
    if len(set(known)) < len(known):
        raise DatasetError(path, ["the first line has a column twice"])
    places = {name: i for i, name in enumerate(names) if name in COLUMNS}
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
