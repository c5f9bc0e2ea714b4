"""Whether images and weights are still those that a run began with, and what differs if not.

An image's content is a digest of its bytes: all of them up to 128 KiB; above that 4 KiB of every
32 KiB, the first and the last included. Sizes and times would be cheaper, and say nothing of what
is in a file; every byte of a million photos is 100 GB, which takes longer than to train on them. So
of what is compressed (JPEG, PNG, WebP) any change is seen, since it changes all that follows; of
pixels stored as they are (BMP, PPM, TIFF), a change within fewer than 32 KiB in a row may not be.
"""

import collections
import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from flaxvgg.images.inside import Inside
from flaxvgg.network.model import VGG
from flaxvgg.weights.mapping import model_arrays

T = TypeVar("T")
R = TypeVar("R")

UNKNOWN = 0  # the content of what could not be read, or was read before contents were noted
_WHOLE = 128 * 1024
_EVERY, _PIECE = 32 * 1024, 4 * 1024
_NAMED = 3  # images or classes that a line names


class Known(NamedTuple):
    """What a run knows of an image: its content, and the names of its classes."""

    content: int
    labels: tuple[str, ...]


def content_of_file(path: str | os.PathLike[str]) -> int:
    """The content of a regular file. Raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would have no end
        raise OSError(errno.EINVAL, "no regular file", os.fspath(path))
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _WHOLE:
            return content_of(file.read(_WHOLE + 1))
        return _digest(size, (_read_at(file.fileno(), place) for place in _places(size)))


def _places(size: int) -> list[int]:
    return [*range(0, size - _PIECE, _EVERY), size - _PIECE]


def content_of(data: bytes | np.ndarray, label: Any = None) -> int:
    """The content of bytes, or of an array, and of the label that came with them."""
    blocks = [data if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).data]
    if isinstance(data, np.ndarray):
        blocks.append(f"{data.dtype} {data.shape}".encode())
    if label is not None:
        blocks.append(f"label {np.asarray(label).tolist()}".encode())
    return _digest(len(data), blocks)


def content_of_photo(photo: Path | Inside) -> int:
    """The content of a file, or of one inside another: the same. Raises OSError and ImageError."""
    found = photo.read() if isinstance(photo, Inside) else photo
    if not isinstance(found, bytes):
        return content_of_file(found)
    size = len(found)
    if size <= _WHOLE:
        return content_of(found)
    return _digest(size, (found[place : place + _PIECE] for place in _places(size)))


def _digest(size: int, blocks: Iterable[Any]) -> int:
    digest = hashlib.blake2b(f"{size} ".encode(), digest_size=8)
    for block in blocks:
        digest.update(block)
    return int.from_bytes(digest.digest(), "little") or 1  # 0 is UNKNOWN


def _read_at(file: int, place: int) -> bytes:
    os.lseek(file, place, os.SEEK_SET)
    return os.read(file, _PIECE)


def model_digest(model: VGG, rooms: Collection[str] = ("conv_stack", "head")) -> str:
    """The SHA-256 of a model's arrays, or of those in some of its rooms."""
    digest = hashlib.sha256()
    for path, array in sorted(model_arrays(model).items()):
        if path[0] in rooms:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def what_differs(before: Mapping[str, Known], now: Mapping[str, Known]) -> str:
    """In words, in which images and labels two data sets differ; "" where they do not.

    Where a content is not known, images are held to be the same by their names.
    """
    added = [name for name in now if name not in before]
    removed = [name for name in before if name not in now]
    both = [(name, before[name], now[name]) for name in now if name in before]
    changed = [
        name
        for name, a, b in both
        if UNKNOWN not in (a.content, b.content) and a.content != b.content
    ]
    relabelled = [name for name, a, b in both if a.labels != b.labels and name not in changed]
    parts = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in {
            "added": added,
            "removed": removed,
            "changed": changed,
            "with other labels": relabelled,
        }.items()
        if names
    ]
    moved = _moved(before, now)
    if moved:
        parts.append(f"by content, classes {_some(moved)}")
    return ", ".join(parts)


def _moved(before: Mapping[str, Known], now: Mapping[str, Known]) -> list[str]:
    """Which classes have become which, by the contents that are in both; the commonest first."""
    labels = {x.content: x.labels for x in before.values() if x.content != UNKNOWN}
    found = collections.Counter(
        (";".join(labels[x.content]), ";".join(x.labels))
        for x in now.values()
        if x.labels != labels.get(x.content, x.labels)
    )
    return [f"{a or 'none'} -> {b or 'none'}" for (a, b), _ in found.most_common()]


def _some(names: Collection[str]) -> str:
    shown = list(names)[:_NAMED]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def relative_name(path: Path, root: Path) -> str:
    """A file's name below a data set's folder, as text."""
    return os.path.relpath(path, root).encode("utf-8", "backslashreplace").decode()
