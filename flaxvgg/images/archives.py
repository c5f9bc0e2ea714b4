"""Images inside archives, by number: tar shards, as WebDataset has them, and zip files.

Nothing is unpacked: a tar is looked through once, from header to header, and every image is read
where it lies. A gzipped tar cannot be read from the middle; its plain form goes into a temporary
file, which is gone when the images are.
"""

import bisect
import gzip
import os
import re
import shutil
import tarfile
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from flaxvgg.files.addresses import address
from flaxvgg.files.remote import THREADS, GoneError, Ranges, open_file
from flaxvgg.files.threads import in_threads
from flaxvgg.images.finding import SUFFIXES, ImageError, by_folder, is_hidden
from flaxvgg.images.objects import Deferred
from flaxvgg.images.table_files import DatasetError

# What a damaged archive, or a member under a password, comes to: zipfile has no error of its own
# for names that are no text, or are empty.
_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, IndexError)


_SMALL = 64  # bytes: a class number


class _Member(NamedTuple):
    """A file in an archive: its name, and the class number that lies beside it (-1: none)."""

    name: str
    place: Any
    label: int


class Archives:
    """The images of one or several archives, by number; an element is {"image": bytes}.

    `names` are unique: those of the members, behind that of their archive where there are several.
    `labels` are the class numbers that lie beside the images (`0001.jpg`, `0001.cls`), -1 for none;
    None where no image has one. An image that cannot be read is an ImageError.
    """

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths
        if any(map(address, paths)):
            self._archives = list(in_threads(_open, paths, THREADS))
        else:
            self._archives = [_open(path) for path in paths]
        counts = [len(archive.members) for archive in self._archives]
        self._starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
        several = len(self._archives) > 1
        self.names = [
            f"{archive.path.name}/{member.name}" if several else member.name
            for archive in self._archives
            for member in archive.members
        ]
        if len(set(self.names)) < len(self.names):
            raise DatasetError(
                paths[0], ["archives of one name, or an archive with one name twice: rename one"]
            )
        labels = [member.label for archive in self._archives for member in archive.members]
        self.labels = labels if max(labels) >= 0 else None

    def classes(self) -> tuple[list[tuple[int, ...]] | None, tuple[str, ...]]:
        """The class numbers of each image and the classes' names, from what lies beside the images.

        Where nothing does, the topmost folders are the classes; None where an image is in none.
        """
        if self.labels is not None:
            names = tuple(map(str, range(max(self.labels) + 1)))
            return [(x,) if x >= 0 else () for x in self.labels], names
        several = len(self._archives) > 1
        numbers, names = by_folder([x.split("/", 1)[-1] if several else x for x in self.names])
        return None if numbers is None else [(x,) for x in numbers], names

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._paths, self.names, self._versions())

    def _versions(self) -> list[Any]:
        return [archive.remote and archive.remote.version for archive in self._archives]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> dict[str, Any]:
        number = bisect.bisect_right(self._starts, row) - 1
        archive = self._archives[number]
        member = archive.members[row - self._starts[number]]

        def read() -> bytes:
            try:
                return archive.read(member.place)
            except GoneError:
                raise
            except _DAMAGE as error:
                reason = str(error) or "it ends too soon"
                raise ImageError(
                    f"{member.name} in {archive.path.name} is damaged ({reason}): get it again"
                ) from error

        if archive.remote is None:
            return {"image": read()}
        return {"image": Deferred(archive.remote, member.name, read)}


def _again(paths: Sequence[Path], names: list[str], versions: list[Any]) -> Archives:
    """Archives in another process. Raises GoneError where they are others by now."""
    found = Archives(paths)
    if found.names != names or found._versions() != versions:
        raise GoneError(f"{paths[0]}: it has changed since the run began: run it again")
    return found


def _open(path: Path) -> "_Zip | _Tar":
    """Raises DatasetError for what is no archive, a damaged one, and one without images."""
    try:
        archive = _Zip(path) if path.suffix.lower() == ".zip" else _Tar(path)
    except OSError as error:
        raise DatasetError(path, [error.strerror or str(error)]) from None
    if not archive.members:
        raise DatasetError(path, [f"no image in it ({' '.join(sorted(SUFFIXES))})"])
    return archive


class _Tar:
    """A tar file, of which each image is read from its place."""

    def __init__(self, path: Path):
        self.path = path
        opened = open_file(path)
        self.remote = opened.object if isinstance(opened, Ranges) else None
        self._file = _unzipped(path, opened) if path.name.lower().endswith("gz") else opened
        weakref.finalize(self, self._file.close)
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        self._lock = threading.Lock()  # where a system cannot read at a place
        places: list[tuple[str, tuple[int, int]]] = []
        self._beside: dict[tuple[int, int], bytes] = {}  # what came with a header
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        place = member.offset_data, member.size
                        places.append((member.name, place))
                        if isinstance(self._file, Ranges) and place[1] <= _SMALL:
                            self._file.seek(place[0])
                            self._beside[place] = self._file.read(place[1])
        except (tarfile.TarError, *_DAMAGE) as error:
            self._file.close()
            whole = f"whole up to {places[-1][0]}; " if places else ""
            raise DatasetError(
                path, [f"no tar archive, or a damaged one ({whole}{error}): get it again"]
            ) from None
        if places and sum(places[-1][1]) > size:
            self._file.close()
            raise DatasetError(path, [f"it ends within {places[-1][0]}: get it again"])
        self.members = _images(path, places, self.read)

    def read(self, place: tuple[int, int]) -> bytes:
        start, size = place
        if isinstance(self._file, Ranges):
            data = self._beside.get(place) or self._file.object.read(start, size)
        elif hasattr(os, "pread"):
            data = os.pread(self._file.fileno(), size, start)
        else:
            with self._lock:
                self._file.seek(start)
                data = self._file.read(size)
        if len(data) < size:
            raise EOFError
        return data


class _Zip:
    """A zip file; its members carry a checksum, which is looked at."""

    def __init__(self, path: Path):
        self.path = path
        opened = open_file(path)  # what the system says of it comes first
        self._ranges = opened if isinstance(opened, Ranges) else None
        self.remote = self._ranges.object if self._ranges else None
        if self._ranges is None:
            opened.close()
        try:
            self._file = zipfile.ZipFile(self._ranges or path)
            found = [(info.filename, info) for info in self._file.infolist() if not info.is_dir()]
        except _DAMAGE as error:
            raise DatasetError(path, [f"no zip archive, or a damaged one: {error}"]) from None
        self.members = _images(path, found, self.read)

    def read(self, place: zipfile.ZipInfo) -> bytes:
        if self._ranges is not None:
            # Its header has the name again, and fields that may be longer than the directory's.
            around = 30 + 2 * len(place.orig_filename) + len(place.extra) + 1024
            self._ranges.fetch(place.header_offset, around + place.compress_size)
        return self._file.read(place)


def _unzipped(path: Path, opened: Any) -> IO[bytes]:
    """The plain form of a gzipped file, in a file that nobody else sees."""
    plain = tempfile.TemporaryFile()  # noqa: SIM115  (who reads from it closes it)
    try:
        with opened, gzip.open(opened) as file:
            shutil.copyfileobj(file, plain, 2**20)
    except _DAMAGE as error:
        plain.close()
        raise DatasetError(path, [f"no gzip file, or a damaged one ({error})"]) from None
    plain.seek(0)
    return plain


def _images(
    path: Path, found: Sequence[tuple[str, Any]], read: Callable[[Any], bytes]
) -> list[_Member]:
    """The images among the files, with the class numbers in .cls files of the same key.

    The key is the name up to the first dot behind the last slash, as WebDataset has it.
    """
    classes = {_key(name): place for name, place in found if name.lower().endswith(".cls")}
    members = []
    for name, place in found:
        inside = PurePosixPath(name)
        hidden = any(part != ".." and is_hidden(part) for part in inside.parts)
        if inside.suffix.lower() in SUFFIXES and not hidden:
            label = -1
            if _key(name) in classes:
                try:
                    label = _number(read(classes[_key(name)]))
                except _DAMAGE as error:
                    line = f"the .cls of {inside} is no class number, or damaged ({error})"
                    raise DatasetError(path, [line]) from None
            members.append(_Member(str(inside), place, label))
    return members


def _key(name: str) -> str:
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _number(data: bytes) -> int:
    if not re.fullmatch(rb"\s*\d{1,9}\s*", data):
        raise ValueError(repr(data[:20]))
    return int(data)
