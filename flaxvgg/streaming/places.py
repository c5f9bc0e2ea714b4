"""Where a store lies: a folder of this machine, or a prefix in a bucket.

In a folder TensorStore writes numbers and zarr-python texts. Both put a chunk under a temporary
name and move it, so a chunk is whole or missing; a new store is made beside its place and moved.

A bucket has no rename. What it has instead: an object is put there whole or not at all, whoever
reads it next sees it (S3 since 2020, Google's from the start), and a write may be on the condition
that there is none yet (If-None-Match). So zarr-python writes all arrays, one object a chunk, by
obstore; a unit's `status` is put when all its other chunks are acknowledged; the store's own
zarr.json, without which there is no store, is put last and conditionally; and the lock is an object
(`flaxvgg.files.remote_locking`). A request that arrives twice, or late, puts the same bytes.
"""

import contextlib
import glob
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import zarr
from zarr.storage import MemoryStore

from flaxvgg.files import remote, remote_locking
from flaxvgg.files.addresses import address
from flaxvgg.files.foreign import AnyPath
from flaxvgg.files.locking import alone_beside
from flaxvgg.files.remote import GoneError

_WRITING = 8  # chunks at once


class Folder:
    """A store in a folder of this machine, or the place for one."""

    save_every = 1.0  # seconds of work that are on no disk: a unit may take a minute

    def __init__(self, path: Path):
        self.path = path.absolute()

    @property
    def zarr(self) -> Path:
        """What Zarr opens."""
        return self.path

    def problem(self) -> str:
        """Why there can be no store here; empty where there can."""
        parent = self.path.parent
        return "" if parent.is_dir() else f"{parent} is no directory: create it first"

    def exists(self) -> bool:
        """Whether something is here, which need not be a store."""
        return self.path.exists()

    def lock(self) -> contextlib.AbstractContextManager[bool]:
        """The lock of the store, for one run at a time: beside it."""
        return alone_beside(self.path)

    def check(self) -> None:
        """Nothing takes a lock away from a process that lives."""

    def make(self, build: Callable[[Any], None], held: bool) -> None:
        """Build a store, and put it into place whole. Raises OSError.

        Who holds its lock removes half-made ones that killed runs have left beside it.
        """
        path = self.path
        for left in path.parent.glob(f".{glob.escape(path.name)}.new-*") if held else ():
            if left.is_dir() and left.suffix.removeprefix(".new-").isdecimal():
                shutil.rmtree(left, ignore_errors=True)
        new = path.with_name(f".{path.name}.new-{os.getpid()}")
        try:
            build(new)
            new.rename(path)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed runs have left half-written beside chunks."""
        for pattern in ("*.partial", "*.__lock"):
            for path in self.path.rglob(pattern):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # of images that are broken no longer, if it is empty
            (self.path / "problem" / "c").rmdir()

    def array(self, path: str, metadata: Mapping[str, Any]) -> Any:
        """An array, which is made where there is none yet; writes begin at once."""
        kvstore = {"driver": "file", "path": f"{self.path / path}/"}
        spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata}
        return ts.open(spec, create=True, open=True).result()


class Bucket:
    """A store behind an address, or the place for one. All may raise RemoteError."""

    save_every = 10.0  # what is saved goes over the network besides what is written in the end

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._threads = ThreadPoolExecutor(_WRITING)

    @property
    def zarr(self) -> Any:
        """What Zarr opens."""
        return remote.zarr_store(self.url)

    def problem(self) -> str:
        """Why there can be no store here; empty where there can."""
        if self.url.startswith("http"):
            return f"{self.url}: a web server is read only: choose s3://, gs:// or this machine"
        return ""

    def exists(self) -> bool:
        """Whether a store is here."""
        try:
            remote.Object(f"{self.url}/zarr.json").fetch()
        except GoneError:
            return False
        return True

    def lock(self) -> contextlib.AbstractContextManager[bool]:
        """The lock of the store, for one run at a time: an object beside it."""
        return remote_locking.alone_at(self.url)

    def check(self) -> None:
        """Raise LockedError where another run has taken the store over."""
        remote_locking.check(self.url)

    def make(self, build: Callable[[Any], None], held: bool) -> None:
        """Build a store in memory, and put it there, what makes it one last. Raises OSError."""
        objects: dict[str, Any] = {}
        build(MemoryStore(objects))
        ours = {key.partition("/")[0] for key in objects}
        for name, _ in remote.objects_below(self.url):
            if name.partition("/")[0] not in ours:  # a run that was killed here leaves only ours
                raise FileExistsError(0, f"{name} is there, and no store: choose another name")
        table = objects.pop("zarr.json").to_bytes()
        for written in [self._put(key, x.to_bytes()) for key, x in objects.items()]:
            written.result()
        if not remote.write(f"{self.url}/zarr.json", table, create=True):
            there = remote.Object(f"{self.url}/zarr.json").fetch()[0]
            if there != table:  # and not our own, of a request that was answered twice
                raise FileExistsError(0, "another run has just made it: run it again")

    def sweep(self) -> None:
        """Nothing is half-written in a bucket."""

    def array(self, path: str, metadata: Mapping[str, Any]) -> Any:
        """An array, which is made where there is none yet; writes begin at once."""
        try:
            remote.Object(f"{self.url}/{path}/zarr.json").pinned()
        except GoneError:
            table = {"zarr_format": 3, "node_type": "array", "attributes": {}, **metadata}
            table["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
            remote.write(f"{self.url}/{path}/zarr.json", json.dumps(table).encode(), create=True)
        return _Array(zarr.open_array(self.zarr, path=path, mode="r+"), self._threads)

    def _put(self, key: str, data: bytes) -> Future[bool]:
        return self._threads.submit(remote.write, f"{self.url}/{key}", data)


class _Array:
    """An array of Zarr that is written as one of TensorStore is."""

    def __init__(self, array: Any, threads: ThreadPoolExecutor):
        self._array, self._threads = array, threads

    def __getitem__(self, place: Any) -> "_Part":
        return _Part(self._array, place, self._threads)

    def read(self) -> Future[np.ndarray]:
        return self._threads.submit(lambda: np.asarray(self._array[...]))


class _Part:
    def __init__(self, array: Any, place: Any, threads: ThreadPoolExecutor):
        self._array, self._place, self._threads = array, place, threads

    def write(self, values: Any) -> Future[None]:
        return self._threads.submit(self._array.__setitem__, self._place, values)


def place_of(path: AnyPath) -> Folder | Bucket:
    """The place that a path or address is."""
    url = address(path)
    return Bucket(url) if url else Folder(Path(path))


class FolderBox:
    """Files in a folder, which is made when it is needed. All raise OSError."""

    def __init__(self, folder: Path):
        self._folder = folder

    def names(self) -> list[str]:
        """The files that are there."""
        return [path.name for path in self._folder.glob("*.npz")]

    def open(self, name: str) -> io.BufferedIOBase:
        """A file, to be read."""
        return (self._folder / name).open("rb")

    def write(self, name: str, write: Callable[[io.BufferedIOBase], None]) -> None:
        """Write a file, all or nothing."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / name
        new = path.with_name(f"{path.name}.partial")
        with new.open("wb") as file:
            write(file)
        new.replace(path)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self._folder / name).unlink(missing_ok=True)

    def end(self) -> None:
        """Remove the folder, where it is empty."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class BucketBox:
    """Objects below an address. All raise RemoteError."""

    def __init__(self, url: str):
        self._url = url

    def names(self) -> list[str]:
        """The objects that are there."""
        return [name for name, _ in remote.objects_below(self._url)]

    def open(self, name: str) -> io.BufferedIOBase:
        """An object, to be read."""
        return io.BytesIO(remote.Object(f"{self._url}/{name}").fetch()[0])

    def write(self, name: str, write: Callable[[io.BufferedIOBase], None]) -> None:
        """Write an object, all or nothing."""
        file = io.BytesIO()
        write(file)
        remote.write(f"{self._url}/{name}", file.getvalue())

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        remote.remove(f"{self._url}/{name}")

    def end(self) -> None:
        """There are no folders."""


def box_of(path: AnyPath) -> FolderBox | BucketBox:
    """The box in a folder, or below an address."""
    url = address(path)
    return BucketBox(url) if url else FolderBox(Path(path))
