"""Files and folders in a bucket, each whole or not there.

A file is one object, which a server puts whole or not at all. A folder is many: they lie below a
name of their own, `ADDRESS/<digest>/...`, and the object `ADDRESS/flaxvgg.json`, put last and by a
conditional write, says under which, with the length and the SHA-256 of each file. What is saved in
the place of another is put beside it, that object is replaced, and the other is removed: who reads
gets the old one or the new one, and what a killed save has left goes with the next.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from flaxvgg.files.addresses import address, split
from flaxvgg.files.locking import LockedError
from flaxvgg.files.nesting import parse_json
from flaxvgg.files.remote import GoneError, Object, objects_below, remove, replace, write
from flaxvgg.files.remote_locking import alone_at
from flaxvgg.files.replacing import WriteError
from flaxvgg.files.threads import in_threads

T = TypeVar("T")

_TABLE = "flaxvgg.json"
_FORMAT = 1
_DIGEST = re.compile(r"[0-9a-f]{16}")
_PIECE = 32 << 20  # bytes that are fetched at once
_THREADS = 8
_TRIES = 5


def bucket_address(path: object) -> str | None:
    """The address of a place in a bucket that a path or text is, without a slash at its end."""
    url = address(path) if isinstance(path, str | os.PathLike) else None
    return url.rstrip("/") if url and not url.startswith("http") else None


def check_address(url: str) -> None:
    """Raise WriteError for an address that is no place in a bucket."""
    if url.startswith("http"):
        raise WriteError(
            f"{url}: a web server is read only: choose s3://, gs:// or a place on this machine"
        )
    if not split(url)[1]:
        raise WriteError(f"{url} is a whole bucket: add a name, {url}/NAME")


def check_place_at(url: str, is_file: bool) -> None:
    """Raise WriteError where no file, or folder, can be saved at an address; RemoteError."""
    url = url.rstrip("/")
    check_address(url)
    for name, _ in objects_below(url):
        if is_file:
            raise WriteError(f"{url} is a folder, with {name} in it: choose another name")
        if name != _TABLE and not _DIGEST.fullmatch(name.partition("/")[0]):
            raise WriteError(
                f"{url} also holds {name}, and is no saved folder: choose another name"
            )


def save_at(url: str, save: Callable[[Path], None]) -> None:
    """Call `save` with a path of this machine, and put the file or folder that it wrote there.

    Raises LockedError while another is being saved there, and RemoteError; what was there is as it
    was then.
    """
    url = url.rstrip("/")
    with tempfile.TemporaryDirectory(prefix="flaxvgg-") as folder:
        path = Path(folder, posixpath.basename(url))
        save(path)
        if path.is_file():
            write(url, path)
        else:
            with alone_at(url):
                put_folder(path, url)


@contextlib.contextmanager
def brought(path: T) -> Iterator[T | Path]:
    """What lies at the address of a bucket, on this machine while it is needed.

    Anything else is given as it is. Errors (ValueError) of the files there name the address. Raises
    GoneError where nothing is there or its contents are not those that were saved; RemoteError.
    """
    url = bucket_address(path)
    if url is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="flaxvgg-") as folder:
        here = Path(folder, posixpath.basename(url))
        with named_as(here, url):
            if not posixpath.basename(url) or not _fetch_file(Object(url), here):
                fetch_folder(url, here)
            yield here


@contextlib.contextmanager
def named_as(here: Path, url: str) -> Iterator[None]:
    """Let errors (ValueError) of files that are copies name the address of what they are of."""
    try:
        yield
    except ValueError as error:
        error.args = tuple(
            x.replace(str(here), url) if isinstance(x, str) else x for x in error.args
        )
        raise


def put_folder(folder: Path, url: str) -> None:
    """Put a folder there, in the place of any that is, for one who writes there alone.

    Of one that has been put in part, only the rest is. Raises LockedError where another has put
    its own meanwhile, OSError, and RemoteError.
    """
    files = {x.relative_to(folder).as_posix(): x for x in folder.rglob("*") if x.is_file()}
    told = {name: _told(path) for name, path in sorted(files.items())}
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    table = json.dumps({"format": _FORMAT, "below": digest, "files": told}, indent=1).encode()
    before = None
    with contextlib.suppress(GoneError):
        before = Object(f"{url}/{_TABLE}").fetch()
    if before and before[0] == table:
        return
    there = {name: found.version for name, found in objects_below(url)}

    def put(name: str) -> None:
        found = there.get(f"{digest}/{name}")
        if found is None or found.size != told[name]["size"]:
            write(f"{url}/{digest}/{name}", files[name])

    _all(put, list(files))
    at = f"{url}/{_TABLE}"
    is_put = replace(at, table, before[1]) if before else write(at, table, create=True)
    if not is_put and Object(at).fetch()[0] != table:  # and not ours, of a lost answer
        raise LockedError(f"{url} was saved by another run meanwhile: save it again")
    _remove_all(url, [x for x in there if x != _TABLE and not x.startswith(f"{digest}/")])


def fetch_folder(url: str, folder: Path) -> None:
    """Fetch a folder that was put at an address, and check every file of it.

    Raises GoneError where none is there, or a damaged one; OSError and RemoteError.
    """
    for last in [False] * (_TRIES - 1) + [True]:
        below, files = _table_at(url)
        try:
            _all(lambda name, below=below: _fetch_file(Object(below + name), folder / name), files)
            wrong = [name for name in files if not (folder / name).is_file()]
            wrong = wrong or [name for name in files if _told(folder / name) != files[name]]
            if wrong:
                raise GoneError(f"{url} is damaged: {wrong[0]} is missing or not what was saved")
        except GoneError:  # another may have been saved in its place
            if last or _table_at(url)[0] == below:
                raise
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return


def folders_below(url: str) -> tuple[set[str], set[str]]:
    """The names of folders below an address: of all, and of those that are whole."""
    names = [name.split("/") for name, _ in objects_below(url)]
    return {x[0] for x in names if x[1:]}, {x[0] for x in names if x[1:] == [_TABLE]}


def remove_folder(url: str) -> None:
    """Remove a folder that was put there, what makes it one first. Raises RemoteError."""
    remove(f"{url}/{_TABLE}")
    _remove_all(url, [name for name, _ in objects_below(url)])


def _table_at(url: str) -> tuple[str, dict[str, dict[str, object]]]:
    """What the names of a folder begin with, and what is known of each file."""
    try:
        text = Object(f"{url}/{_TABLE}").fetch()[0]
    except GoneError:
        raise GoneError(
            f"{url}: no file, and no whole folder, was saved there (it has no {_TABLE}): check the "
            "address"
        ) from None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        told = parse_json(text)
        files, digest = dict(told["files"]), told["below"]
        if told["format"] == _FORMAT and _DIGEST.fullmatch(digest) and all(map(_is_name, files)):
            return f"{url}/{digest}/", files
    raise GoneError(f"{url} is damaged, or of a newer flaxvgg: its {_TABLE} cannot be read")


def _is_name(name: str) -> bool:
    """Whether a name leads to nowhere but below a folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not re.search(r"[\\:\0]|^/", name) and not {"..", "."} & set(parts)


def _told(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _fetch_file(source: Object, path: Path) -> bool:
    """Fetch an object, piece by piece; False where there is none."""
    try:
        source = source.pinned()
    except GoneError:
        return False
    size = source.version.size if source.version else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, _PIECE):
            file.write(source.read(start, _PIECE))
    return True


def _remove_all(url: str, names: list[str]) -> None:
    _all(lambda name: remove(f"{url}/{name}"), names)


def _all(work: Callable[[str], object], names: Iterable[str]) -> None:
    for _ in in_threads(work, names, _THREADS):
        pass
