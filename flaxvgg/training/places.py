"""Where a run lies: a folder of this machine, or an address in a bucket.

Orbax writes a checkpoint beside its place and moves it, which a bucket cannot. So a run in a bucket
works in a folder of this machine, and what is whole there is put into the bucket: first the rows of
the course so far, then the checkpoint (`flaxvgg.files.remote_folders`), then those that it has
replaced are removed. Who goes on, on any machine, begins with what the bucket has. The folder is
removed when the bucket has all of it. One that is left, of a run that was killed or could not reach
its bucket, is gone on with where its last checkpoint is later than the bucket's.
"""

import contextlib
import hashlib
import os
import posixpath
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from flaxvgg.files import remote_locking
from flaxvgg.files.addresses import address
from flaxvgg.files.folders import check_folder
from flaxvgg.files.foreign import AnyPath
from flaxvgg.files.locking import alone_in
from flaxvgg.files.remote import GoneError, Object, RemoteError, objects_below, write
from flaxvgg.files.remote_folders import (
    check_address,
    check_place_at,
    fetch_folder,
    folders_below,
    named_as,
    put_folder,
    remove_folder,
)
from flaxvgg.images.datasets import is_pascal_voc
from flaxvgg.training.settings import Data
from flaxvgg.watching import Watcher
from flaxvgg.weights.checkpoint import check_target
from flaxvgg.weights.packaged import cache_folder

CHECKPOINTS, MODEL, DATA, CONFUSION = "checkpoints", "model", "data.csv", "confusion.csv"
_TABLES = (DATA, "metrics.csv")  # without which nothing goes on as it was
_OURS = {CHECKPOINTS, MODEL, CONFUSION, "curves.png", "tensorboard", *_TABLES}


class Folder:
    """A run in a folder of this machine."""

    def __init__(self, folder: Path):
        self.folder = folder

    def named(self, name: str) -> str:
        """What lies in it, as people find it."""
        return str(self.folder / name)

    def check(self, data: Data) -> None:
        """Raise ValueError, before any work is done, where no run can be."""
        check_folder(self.folder)
        for folder in filter(None, (data.train, data.validation)):
            has_classes = folder.is_dir() and not is_pascal_voc(folder)
            if has_classes and self.folder.resolve().is_relative_to(folder.resolve()):
                raise ValueError(
                    f"{self.folder} is in {folder}, where every folder is a class: choose another "
                    "--out"
                )
        if self.folder.is_dir():  # what is in the way is said now, and not behind the last step
            check_target(self.folder / MODEL)

    def alone(self, watch: Watcher) -> contextlib.AbstractContextManager[object]:
        """The lock of the run. Raises LockedError."""
        return alone_in(self.folder)

    def keep(self) -> None:
        """What has been written stays where it is."""


class Bucket:
    """A run at an address, and the folder in which it works. All may raise RemoteError."""

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        digest = hashlib.sha256(self._url.encode()).hexdigest()[:8]
        name = f"{posixpath.basename(self._url)[:100]}-{digest}"
        self.folder = cache_folder().with_name("runs") / name
        self._kept: dict[str, tuple[int, int]] = {}  # files, as they were put there
        self._is_ours = False  # what is in the folder is what goes on

    def named(self, name: str) -> str:
        """What lies there, as people find it."""
        return f"{self._url}/{name}"

    def check(self, data: Data) -> None:
        """Raise ValueError, before any work is done, where no run can be."""
        if jax.process_count() > 1:
            raise ValueError(
                f"--out {self._url}: several processes write into a folder that all of them see: "
                "name one, and copy it there"
            )
        check_address(self._url)
        check_place_at(self.named(MODEL), is_file=False)
        others = {name.partition("/")[0] for name, _ in objects_below(self._url)} - _OURS
        if others:
            raise ValueError(
                f"{self._url} also holds {min(others)}, and is no run: choose another --out"
            )
        for folder in filter(None, (data.train, data.validation)):
            if f"{self._url}/".startswith(f"{address(folder) or self._url + '//'}/"):
                raise ValueError(f"{self._url} is among the images: choose another --out")
        check_folder(self.folder)

    @contextlib.contextmanager
    def alone(self, watch: Watcher) -> Iterator[None]:
        """Hold the lock of the run, and have in the folder what the bucket has of it.

        Raises LockedError, and OSError.
        """
        with remote_locking.alone_at(self._url), alone_in(self.folder):
            if self._is_behind():
                watch.say(f"resuming with what {self.folder} has, and {self._url} has not")
                copied = contextlib.nullcontext()
            else:
                self._fetch()
                copied = named_as(self.folder, self._url)
            try:
                with copied:
                    yield
                self.keep()
            except ValueError:  # training cannot go on
                if self._is_ours:
                    with contextlib.suppress(ValueError, RemoteError):
                        self.keep()
                        self._clear()
                elif not isinstance(copied, contextlib.nullcontext):
                    self._clear()
                raise
            self._clear()

    def keep(self) -> None:
        """Put into the bucket what is whole in the folder. Raises LockedError where it is lost."""
        self._is_ours = True
        try:
            remote_locking.check(self._url)
            self._keep()
        except RemoteError as error:
            kept = f"{error.advice}; until then the run is kept in {self.folder}"
            raise RemoteError(error.address, error.reason, kept) from None

    def _keep(self) -> None:
        files = [x for x in self.folder.iterdir() if x.name in _OURS and x.is_file()]
        files += [x for x in self.folder.glob("tensorboard/*") if x.is_file()]
        for path in files:
            now = os.stat(path)
            name, known = path.relative_to(self.folder).as_posix(), (now.st_size, now.st_mtime_ns)
            if self._kept.get(name) != known:
                write(self.named(name), path.read_bytes())
                self._kept[name] = known
        here = self._steps()
        begun, whole = folders_below(self.named(CHECKPOINTS))
        for step in sorted(here - whole, key=int):
            put_folder(self.folder / CHECKPOINTS / step, self.named(f"{CHECKPOINTS}/{step}"))
        for step in begun - here if here else ():
            remove_folder(self.named(f"{CHECKPOINTS}/{step}"))
        if (self.folder / MODEL).is_dir():
            put_folder(self.folder / MODEL, self.named(MODEL))

    def _is_behind(self) -> bool:
        """Whether the folder has a later checkpoint than the bucket."""
        steps = (self._steps(), folders_below(self.named(CHECKPOINTS))[1])
        here, there = (max(map(int, filter(str.isdecimal, x)), default=-1) for x in steps)
        return here > there

    def _fetch(self) -> None:
        self._clear()
        for step in folders_below(self.named(CHECKPOINTS))[1]:
            if step.isdecimal():
                fetch_folder(self.named(f"{CHECKPOINTS}/{step}"), self.folder / CHECKPOINTS / step)
        for name in _TABLES:
            with contextlib.suppress(GoneError):
                (self.folder / name).write_bytes(Object(self.named(name)).fetch()[0])

    def _clear(self) -> None:
        """Empty the folder, but for its lock; who holds that removes the folder."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()

    def _steps(self) -> set[str]:
        """The checkpoints that are whole in the folder: Orbax calls others by other names."""
        return {x.name for x in (self.folder / CHECKPOINTS).glob("*") if x.name.isdecimal()}


def place_of(out: AnyPath) -> Folder | Bucket:
    """The place that a path or address is."""
    url = address(out)
    return Bucket(url) if url else Folder(Path(out))
