"""One run at a time on one output: an advisory lock, which ends with the process that holds it."""

import contextlib
import errno
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from flaxvgg.files.replacing import followed

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

_LONGEST = 240  # bytes of a name: with what goes around it, a file system allows 255
# What a file system answers that knows no locks, or a folder that cannot be written to.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EROFS)


class LockedError(ValueError):
    """Another run is writing the same output; the message is one line that says which."""


def alone_in(folder: Path) -> contextlib.AbstractContextManager[bool]:
    """`alone` for a folder of results, with the lock in it."""
    return alone(folder, followed(folder) / ".lock")


def alone_beside(output: Path) -> contextlib.AbstractContextManager[bool]:
    """`alone` for a file or a store, with the lock beside it."""
    name = output.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return alone(output, output.with_name(f".{name}.lock"))


@contextlib.contextmanager
def alone(output: Path, lock: Path) -> Iterator[bool]:
    """Hold the lock of an output, the file `lock`; whether it can be held here at all.

    The system lets go of it when the process ends, however that happens: a file that a killed run
    has left is taken over. Folders above it are made, and removed again where nothing came into
    them. A file system without locks, and a folder that cannot be written to, have none. Raises
    LockedError where another run holds it.
    """
    made = _folders(lock.parent)
    try:
        file = _locked(output, lock)
        try:
            yield file is not None
        finally:
            if file is not None:
                lock.unlink(missing_ok=True)  # before it is free: nobody may wait for this file
                os.close(file)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()


def _folders(folder: Path) -> list[Path]:
    """Make a folder, and those above it; the ones that were made, the lowest first."""
    missing = [x for x in (folder, *folder.parents) if not x.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _locked(output: Path, lock: Path) -> int | None:
    while fcntl is not None:
        try:
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return file
            os.close(file)  # the run before has just removed it: another one may have a new file
        except FileNotFoundError:
            os.close(file)
        except BlockingIOError:
            holder = os.read(file, 200).decode("utf-8", "replace") or "another process"
            os.close(file)
            raise LockedError(
                f"{output} is being written by another run ({holder}): wait until it ends, or "
                "choose another --out"
            ) from None
        except OSError as error:
            os.close(file)
            if error.errno in _NO_LOCKS:
                return None
            raise
    return None
