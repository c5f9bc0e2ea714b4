"""Files and folders that are replaced whole: written beside, and put into place in one step.

A writer has a folder of its own beside what it replaces, `.flaxvgg-saving-...`, locked as long as
the process lives. One that was killed leaves it behind, and the next `sweep` removes it. Where the
system cannot exchange two names, a folder is replaced in two steps; between them nothing is under
the name, and `restore` puts back what was.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from flaxvgg.files.addresses import address

T = TypeVar("T")

_PREFIX = ".flaxvgg-saving-"
_NAME = re.compile(re.escape(_PREFIX) + r"([0-9a-f]{8})-\d+-\d+")
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_RACES = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
_TRIES = 100
_PATIENCE = 5.0  # seconds for a live writer between two renames
_numbers = itertools.count()


class WriteError(ValueError):
    """A path that cannot be written; the message is one line that says why."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file as `replace_whole` does. Raises WriteError where it is none, too."""
    if check_place(path) == "directory":
        raise WriteError(f"{path} is a directory: choose another name for the file")
    replace_whole(path, write)


def replace_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a path beside `path`, and put what it wrote into place when it returns.

    A symbolic link stays one: what it points to is replaced. Whatever goes wrong, what was there is
    as it was. Raises WriteError where nothing can be written, also where `write` raises OSError.
    """
    target = followed(path)
    try:
        with _workshop(target) as folder:
            # np.savez adds a suffix to names without it.
            suffix = path.suffix if len(os.fsencode(path.suffix)) <= 20 else ""
            new = folder / f"new{suffix}"
            write(new)
            _put(new, target, folder)
    except OSError as error:
        raise WriteError(cannot_be_written(path, error)) from None


def check_place(path: Path) -> str:
    """What is to be replaced: a "file", a "directory", or "" for nothing.

    Raises WriteError where that is something else, or the folder for it does not exist.
    """
    try:
        target = followed(path)
        kind = kind_of(target)
    except OSError as error:
        raise WriteError(cannot_be_written(path, error)) from None
    if kind == "other":
        raise WriteError(f"{path} is neither a file nor a directory: choose another name")
    if not target.parent.is_dir():
        raise WriteError(f"{target.parent} is no directory: create it first")
    return kind


def kind_of(path: Path) -> str:
    """Whether a "file", a "directory" or something "other" is there; "" for nothing.

    Raises OSError where there can be nothing.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except ValueError:
        raise OSError(errno.EINVAL, "a name cannot hold a zero byte") from None
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"


def cannot_be_written(path: Path, error: OSError) -> str:
    """What is wrong with a path, in one line: no permission, no room, a name that is too long."""
    advice = {
        errno.EACCES: ": choose a place that you may write to",
        errno.EPERM: ": choose a place that you may write to",
        errno.EROFS: ": choose another place",
        errno.ENOSPC: ": make room, or choose another place",
        errno.EDQUOT: ": make room, or choose another place",
        errno.EFBIG: ": make room, or choose another place",
        errno.ENAMETOOLONG: ": choose a shorter name",
    }.get(error.errno or 0, "")
    why = error.strerror or str(error) or type(error).__name__
    return f"{path} cannot be written ({why}), and is as it was{advice}"


def followed(path: Path) -> Path:
    """What a path points to, also where that does not exist yet.

    Raises WriteError for a circle of links, and for an address.
    """
    if url := address(path):
        raise WriteError(
            f"{url}: only models, training runs and .zarr stores can be there: choose a place on "
            "this machine"
        )
    target = Path(os.path.realpath(path)) if os.path.islink(path) else path
    if os.path.islink(target):
        raise WriteError(f"{path} is a symbolic link that leads back to itself: remove it")
    return target


def exchange(a: Path, b: Path) -> bool:
    """Let two paths change their names in one step; False where the system has no such step."""
    function = _exchange()
    if function is None:
        return False
    if function(os.fsencode(a), os.fsencode(b)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(b))


@functools.cache
def _exchange() -> Callable[[bytes, bytes], int] | None:
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        swap = getattr(library, "renamex_np", None)
        return None if swap is None else lambda a, b: swap(a, b, 2)  # RENAME_SWAP
    rename = getattr(library, "renameat2", None)
    here = -100  # AT_FDCWD; the last argument is RENAME_EXCHANGE
    return None if rename is None else lambda a, b: rename(here, a, here, b, 2)


def sweep(folder: Path) -> list[Path]:
    """Remove what writers that were killed have left in a folder, and give what was removed.

    Only what a process of this machine wrote that no longer runs. What it took away without putting
    anything in its place is put back.
    """
    removed = []
    for left in _workshops(folder):
        with _locked(left) as is_ours:
            if is_ours:
                _put_back(left)
                shutil.rmtree(left, ignore_errors=True)
                removed += [left] * (not left.exists())
    return removed


def read_whole(path: Path, read: Callable[[], T], damage: type[Exception]) -> T:
    """What `read` gives of one and the same file or directory, whoever replaces it meanwhile.

    It is called again where something else was put there. Raises `damage` as it does, and where
    that happens every time.
    """
    for _ in range(_TRIES):
        before = _identity(path)
        try:
            found = read()
        except damage:
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return found
    raise damage(f"{path} was replaced {_TRIES} times while it was read: wait for who is saving it")


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def restore(path: Path) -> None:
    """Where nothing is under the name, put back what a writer that was killed took away.

    A writer that lives is waited for. Raises WriteError where it cannot be put back.
    """
    end = time.monotonic() + _PATIENCE
    while not os.path.lexists(path):
        left_here = _workshops(path.parent)
        taken = [left for left in left_here if os.path.lexists(left / "old" / path.name)]
        if not taken or time.monotonic() > end:
            return
        for left in taken:
            with _locked(left) as is_ours:
                try:
                    if is_ours:
                        _put_back(left)
                except OSError as error:
                    raise WriteError(
                        f"a save of {path} was interrupted, and what it was is in {left / 'old'}: "
                        f"move it back ({error.strerror})"
                    ) from None
        time.sleep(0.01)


def _put_back(left: Path) -> None:
    for old in left.glob("old/*"):
        if not os.path.lexists(left.parent / old.name):
            old.rename(left.parent / old.name)


def _put(new: Path, path: Path, folder: Path) -> None:
    for last in [False] * _TRIES + [True]:
        try:
            if not path.is_dir():
                new.replace(path)
            elif not exchange(new, path):  # what was there is now in the folder, and goes with it
                _put_in_two_steps(new, path, folder)
            return
        except OSError as error:  # another process was faster
            if last or error.errno not in _RACES:
                raise


def _put_in_two_steps(new: Path, path: Path, folder: Path) -> None:
    old = folder / "old" / path.name
    old.parent.mkdir(exist_ok=True)
    # What an earlier try took away: another writer has put its own there since.
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)  # a directory cannot be renamed over another
    try:
        new.replace(path)
    except BaseException:  # an interruption between the two
        if old.exists() and not path.exists():
            old.rename(path)
        raise


@contextlib.contextmanager
def _workshop(path: Path) -> Iterator[Path]:
    """A folder of this writer's beside the path, locked, and removed at the end."""
    while True:
        name = f"{_PREFIX}{_machine()}-{os.getpid()}-{next(_numbers)}"
        folder = path.with_name(name)
        try:
            folder.mkdir()
        except FileExistsError:  # of a process that had the same number
            continue
        with _locked(folder, wait=True):
            if not folder.exists():  # somebody swept before it was locked
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def _workshops(folder: Path) -> list[Path]:
    """What writers of this machine have in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [(entry.name, _NAME.fullmatch(entry.name)) for entry in entries]
        return [folder / name for name, match in found if match and match[1] == _machine()]
    return []


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a writer's folder, which a process holds as long as it lives, or not."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    try:
        place = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError:  # somebody holds it, or this file system has no locks
            held = False
        yield held
    finally:
        os.close(place)


@functools.cache
def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
