"""Parquet files as columns of cells, with the images inside them: one file, or shards of one set.

The Hugging Face hub has data sets in this form: a struct of bytes and path for each image, class
numbers, and a note beside the schema of what the columns are and what the classes are called.
"""

import bisect
import itertools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxvgg.files.addresses import address, below, folder_of
from flaxvgg.files.nesting import parse_json
from flaxvgg.files.remote import THREADS, Object, Ranges
from flaxvgg.files.threads import in_threads
from flaxvgg.images.detections import OBJECTS, objects_column, told_of_classes
from flaxvgg.images.finding import ImageError
from flaxvgg.images.objects import Deferred
from flaxvgg.images.table_files import COLUMNS, DatasetError, TableFile

# Groups of rows in memory: threads that read one row after the other are in two of them at once.
_GROUPS = 2


def read_parquet(*paths: Path) -> TableFile:
    """A Parquet file as a table, or several that are shards of one, in this order.

    Of the images only their names are read. Raises DatasetError for files that are none, that are
    damaged, or do not go together.
    """
    if any(map(address, paths)):
        tables = list(in_threads(_read_one, paths, THREADS))
    else:
        tables = [_read_one(path) for path in paths]
    return tables[0] if len(tables) == 1 else _joined(paths, tables)


class _Group(NamedTuple):
    """Rows of a file that are read at once: which, and the column of the images.

    `remote` is the object that the file is, where it is behind an address.
    """

    path: Path
    number: int
    rows: range
    column: str
    remote: Object | None


class ImagesInside:
    """Images that lie in Parquet files themselves, by number.

    `names` are unique: the paths beside the images, or numbers, behind the name of their file where
    there are several. An element is {"image": ...}: the bytes of an image file, or its path;
    ImageError where its group of rows is damaged. Two groups are in memory at a time.
    """

    def __init__(self, groups: Sequence[_Group], names: list[str]):
        self.groups, self.names = groups, names
        self._starts = [0, *itertools.accumulate(len(group.rows) for group in groups)]
        self._kept: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.groups, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> dict[str, Any]:
        number = bisect.bisect_right(self._starts, row) - 1
        group, at = self.groups[number], row - self._starts[number]
        root = folder_of(group.path)

        def read() -> Any:
            return image_in(self._cells(number)[at].as_py(), root)

        def fetch() -> bytes:
            found = read()
            url = None if isinstance(found, bytes) else below(root, str(found))
            return Object(url).fetch()[0] if url else found

        if group.remote is None:
            return {"image": read()}
        return {"image": Deferred(group.remote, f"row {group.rows.start + at}", fetch)}

    def group_of(self, row: int) -> range:
        """The images that are read together with one."""
        number = bisect.bisect_right(self._starts, row) - 1
        return range(self._starts[number], self._starts[number + 1])

    def _cells(self, number: int) -> Any:
        found = self._kept.get(number)
        if found is None:
            with self._lock:  # one thread reads a group, and the others wait for it
                found = self._kept.get(number)
                if found is None:
                    if len(self._kept) >= _GROUPS:
                        del self._kept[next(iter(self._kept))]
                    found = self._kept[number] = self._read(self.groups[number])
        return found

    def _read(self, group: _Group) -> Any:
        import pyarrow
        from pyarrow import parquet

        try:
            path = Ranges(group.remote) if group.remote else group.path
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                columns = [group.column]
                found = file.read_row_group(group.number, columns=columns).column(group.column)
            if len(found) != len(group.rows):
                raise pyarrow.ArrowInvalid(f"{len(found)} of {len(group.rows)} rows")
            return found
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            reason = str(error).splitlines()[0]
            rows = f"rows {group.rows.start + 1} to {group.rows.stop} of {group.path.name}"
            raise ImageError(f"{rows} are damaged ({reason}): get it again") from error


def image_in(cell: Any, root: Path) -> Any:
    """The bytes of an image file, or its path, in a cell that holds a struct of both or bytes."""
    if isinstance(cell, dict):
        data, path = cell.get("bytes"), cell.get("path")
        cell = data if data is not None or not path else root / path
    return b"" if cell is None else cell


def known_columns(source: Any, names: Sequence[str], told: Mapping[str, Any]) -> dict[str, str]:
    """The columns that a table of images has a use for, by the names that we know.

    Where none is called `image` it is the only one of images by what is `told` of the columns
    (`datasets.Features.to_dict`), and so for `label`. Raises DatasetError where there is none, and
    for one that is there twice.
    """
    known = {name: name.strip().lower() for name in names}
    known = {name: as_known for name, as_known in known.items() if as_known in COLUMNS}
    if "image" not in known.values():
        images = [x for x in names if x in told and _type_of(told[x]) == "Image"]
        if len(images) != 1:
            shown = ", ".join(names)[:200] or "none"
            raise DatasetError(source, [f"no column `image` in it: its columns are {shown}"])
        known[images[0]] = "image"
    if not {"label", "labels"} & set(known.values()):
        labels = [x for x in names if x in told and class_names(told[x])]
        known |= {labels[0]: "label"} if len(labels) == 1 else {}
    found = {as_known: name for name, as_known in known.items()}
    if len(found) < len(known):
        raise DatasetError(source, ["it has a column twice"])
    return found


def class_names(told: Any) -> tuple[str, ...]:
    """The names of class numbers by what is told of their column; empty where it does not say."""
    try:
        return tuple(map(str, told.get("names") or told["feature"]["names"]))
    except (LookupError, TypeError, AttributeError):
        return ()


def classes_of(columns: Mapping[str, str], told: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of class numbers by what is told of all columns: of objects, or of the labels."""
    if OBJECTS in columns and (of_objects := told_of_classes(told.get(columns[OBJECTS]))):
        return class_names(of_objects)
    label = columns.get("labels") or columns.get("label")
    return class_names(told.get(label)) if label else ()


def holds_images(source: Any, column: str, kind: Any) -> bool:
    """Whether a column of this type holds images, and not paths. Raises DatasetError for others."""
    from pyarrow import types

    if types.is_struct(kind):
        if "bytes" not in {field.name for field in kind}:
            raise DatasetError(source, [f"the column {column} holds neither paths nor image files"])
        return True
    if _is_binary(kind):
        return True
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DatasetError(
            source, [f"the column {column} is {kind}: it holds paths, or image files"]
        )
    return False


def unique_names(paths: Sequence[Any]) -> list[str]:
    """Names of images: the paths beside them, or numbers where there is none."""
    given = [str(name) if name else str(i) for i, name in enumerate(paths)]
    if len(set(given)) < len(given):
        given = [f"{i}-{name}" for i, name in enumerate(given)]
    return given


def _read_one(path: Path) -> TableFile:
    import pyarrow
    from pyarrow import parquet

    url = address(path)
    try:
        opened = Ranges(Object(url)) if url else path
        with parquet.ParquetFile(opened, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            told = _told(path, schema.metadata or {})
            columns = known_columns(path, schema.names, told)
            columns |= {OBJECTS: name} if (name := objects_column(schema)) else {}
            image = columns.pop("image")
            inside = None
            if holds_images(path, image, schema.field(image).type):
                remote = opened.object if isinstance(opened, Ranges) else None
                inside = _inside(path, remote, file, image)
            else:
                columns["image"] = image
            for name in columns.values():
                if _is_binary(schema.field(name).type):
                    raise DatasetError(path, [f"the column {name} is bytes: save it as text"])
            found = file.read(columns=list(columns.values())).to_pydict() if columns else {}
            cells = {as_known: found[name] for as_known, name in columns.items()}
            classes = classes_of(columns, told)
            count = file.metadata.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(path, [f"no Parquet file: {str(error).splitlines()[0]}"]) from None
    return TableFile(cells, range(1, count + 1), "row", classes, inside)


def _inside(path: Path, remote: Object | None, file: Any, column: str) -> ImagesInside:
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    starts = [0, *itertools.accumulate(counts)]
    groups = [
        _Group(path, i, range(*ends), column, remote)
        for i, ends in enumerate(itertools.pairwise(starts))
    ]
    paths: list[Any] = [None] * starts[-1]
    kind = file.schema_arrow.field(column).type
    if not _is_binary(kind) and "path" in {field.name for field in kind}:
        found = file.read(columns=[f"{column}.path"]).column(column).combine_chunks()
        paths = found.field("path").to_pylist()
    return ImagesInside(groups, unique_names(paths))


class _Places(Sequence[str]):
    """Where a row of several shards is, in words."""

    def __init__(self, paths: Sequence[Path], tables: Sequence[TableFile]):
        self._paths = paths
        self._starts = [0, *itertools.accumulate(len(table.lines) for table in tables)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: Any) -> Any:
        number = bisect.bisect_right(self._starts, row) - 1
        return f"{row - self._starts[number] + 1} of {self._paths[number].name}"


def _joined(paths: Sequence[Path], tables: Sequence[TableFile]) -> TableFile:
    first = tables[0]
    parts = []
    for path, table in zip(paths, tables, strict=True):
        if table.inside is None:
            alone = "it holds paths: a table of paths goes alone; shards hold the images themselves"
            raise DatasetError(path, [alone])
        odd = sorted(table.columns.keys() ^ first.columns.keys())
        if odd:
            beside = f"in this, or in {paths[0].name}, and not in both"
            raise DatasetError(path, [f"a column {beside}: {', '.join(odd)}"])
        if table.classes != first.classes:
            raise DatasetError(path, [f"its classes are not those of {paths[0].name}"])
        parts.append(table.inside)
    names = [
        f"{path.name}/{name}"
        for path, part in zip(paths, parts, strict=True)
        for name in part.names
    ]
    if len({path.name for path in paths}) < len(paths):
        raise DatasetError(paths[0], ["a shard twice, or two of one name: rename one"])
    groups = [group for part in parts for group in part.groups]
    columns = {
        name: list(itertools.chain.from_iterable(table.columns[name] for table in tables))
        for name in first.columns
    }
    inside = ImagesInside(groups, names)
    return TableFile(columns, _Places(paths, tables), "row", first.classes, inside)


def _told(path: Path, metadata: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    """What Hugging Face's `datasets` notes of the columns beside a schema; empty without a note.

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
    except (LookupError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _type_of(told: Any) -> Any:
    return told.get("_type") if isinstance(told, Mapping) else None


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in (*tests, types.is_binary_view))
