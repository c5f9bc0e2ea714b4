"""Several shards of one set, of which one is damaged: what is whole is read, or one line says why.

Tar, Parquet and ArrayRecord alike: a shard that cannot be opened is named, since without it nobody
knows which images are missing; damage within one is a problem of the images that lie there.
"""

import contextlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from flaxvgg.images.table_files import DatasetError
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming.source import find_source
from tests.fuzz.cases import Arrays, Seed, Target
from tests.records import IMAGE, describe, example, label, write_records

_COUNT = 3  # images of a shard


def shard_targets() -> list[Target]:
    """The second of two shards, damaged anywhere."""
    seeds = [
        Seed("set-00001-of-00002.tar", _tar(_COUNT)),
        Seed("set-00001-of-00002.parquet", _parquet(_COUNT)),
        Seed("set.array_record-00001-of-00002", _records(_COUNT)),
    ]
    return [Target("shards", 4, seeds, (DatasetError,), _read, _truth, _beside_whole)]


def _png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (33 + number, 35), (40 * number, 9, 200)).save(file, "PNG")
    return file.getvalue()


def _tar(first: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i in range(first, first + _COUNT):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(_png(i))
            archive.addfile(info, io.BytesIO(_png(i)))
    return file.getvalue()


def _parquet(first: int) -> bytes:
    file = io.BytesIO()
    table = pyarrow.table({"image": [_png(i) for i in range(first, first + _COUNT)]})
    parquet.write_table(table, file, write_page_checksum=True, row_group_size=2)
    return file.getvalue()


def _records(first: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        records = [example({"image": [_png(i)], "label": [i % 2]}) for i in range(first, first + 3)]
        return write_records(Path(folder, "x.array_record"), records).read_bytes()


def _beside_whole(folder: Path, name: str, data: bytes) -> Path:
    """The first shard of the same kind, as it was written, and the damaged one."""
    root = folder / "set"
    root.mkdir()
    kind = "array_record" if "array_record" in name else name.rpartition(".")[2]
    make: Callable[[int], bytes] = {"tar": _tar, "parquet": _parquet, "array_record": _records}[
        kind
    ]
    (root / name.replace("-00001", "-00000")).write_bytes(make(0))
    (root / name).write_bytes(data)
    if kind == "array_record":
        describe(root, {"image": IMAGE, "label": label(2)}, {"label": ["cat", "dog"]})
    return root


def _read(root: Path) -> Arrays:
    source = find_source(root)
    items = [source.read(i, None, PREPROCESSING["torchvision"]) for i in range(len(source))]
    assert all(item.problem or item.pixels.size for item in items)
    assert all("\n" not in item.problem for item in items)
    assert [item.problem for item in items[:_COUNT]] == [""] * _COUNT
    return {str(i): item.pixels for i, item in enumerate(items) if not item.problem}


def _truth(data: bytes, root: Path, whole: bytes) -> Arrays:
    """The images of the first shard, and those that other readers find in the second."""
    kind = next(path.name for path in root.iterdir() if "00001-of" in path.name)
    if kind.endswith(".tar"):
        found = list(_of_tar(data))
    elif kind.endswith(".parquet"):
        found = list(_of_parquet(data))
    else:  # which has checksums of everything: what is read is what was written, or nothing is
        found = [_png(i) for i in range(_COUNT, 2 * _COUNT)]
        readable = _read(root).keys()
        found = [x if str(_COUNT + i) in readable else b"" for i, x in enumerate(found)]
    images = [*(_png(i) for i in range(_COUNT)), *found]
    decoded = {str(i): _decoded(data) for i, data in enumerate(images)}
    return {i: pixels for i, pixels in decoded.items() if pixels is not None}


def _of_tar(data: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            if member.isreg() and member.name.lower().endswith(".png"):
                yield data[member.offset_data :][: member.size]


def _of_parquet(data: bytes) -> Iterator[bytes]:
    file = parquet.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    for i in range(file.num_row_groups):
        count, found = file.metadata.row_group(i).num_rows, []
        with contextlib.suppress(OSError, pyarrow.ArrowException):
            found = file.read_row_group(i, columns=["image"]).column("image").to_pylist()
        yield from found if len(found) == count else [b""] * count


def _decoded(data: bytes | None) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data or b""), formats=["PNG"]) as opened:
            opened.verify()
        with Image.open(io.BytesIO(data or b"")) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None
    return pixels if min(pixels.shape[:2]) >= 32 else None
