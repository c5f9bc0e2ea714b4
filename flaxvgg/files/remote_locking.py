"""One run at a time on a store in a bucket: an object that only one run can make.

The lock is an object beside the store, `.name.zarr.lock`. It says who holds it, and is written anew
every ten seconds. It is made by a conditional write (If-None-Match), and written anew or taken over
by another (If-Match): of two runs that try at once one succeeds.

A run that was killed leaves it behind. It counts as left when its process is no longer there, which
only its own machine can see, or when it is a minute old by the server's clock, which takes no clock
of ours. A run that was away for longer asks whether it still holds the lock before it writes on.
"""

import contextlib
import json
import os
import platform
import posixpath
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxvgg.files.foreign import plain
from flaxvgg.files.locking import LockedError
from flaxvgg.files.nesting import parse_json
from flaxvgg.files.remote import GoneError, Object, RemoteError, age, remove, replace, write

_BEAT = 10.0  # seconds
_EXPIRES = 60.0
_TRIES = 5

_held: dict[str, "_Lock"] = {}  # by the address of what is written


@contextlib.contextmanager
def alone_at(url: str) -> Iterator[bool]:
    """Hold the lock of what is written to an address.

    Raises LockedError where another run holds it, and RemoteError.
    """
    folder, _, name = url.rpartition("/")
    lock = _Lock(url, posixpath.join(folder, f".{name}.lock"))
    lock.acquire()
    _held[url] = lock
    try:
        yield True
    finally:
        del _held[url]
        lock.release()


def check(url: str) -> None:
    """Raise LockedError where this process has lost the lock of what it writes to an address."""
    if url in _held:
        _held[url].check()


class _Lock:
    def __init__(self, output: str, url: str):
        self._output, self._url = output, url
        self._token, self._count = uuid.uuid4().hex, 0
        self._lost = False
        self._seen = time.monotonic()
        self._ended = threading.Event()
        self._renewing = threading.Lock()

    def acquire(self) -> None:
        for _ in range(_TRIES):
            self._seen = time.monotonic()
            if write(self._url, self._body(), create=True) or self._take_over():
                if write(self._url, self._body(), create=True):
                    why = "the server takes no conditional writes (If-None-Match)"
                    raise RemoteError(self._url, why, "write to one that does")
                threading.Thread(target=self._beat, daemon=True).start()
                return
        raise LockedError(f"{self._output} is being written by other runs: choose another --out")

    def check(self) -> None:
        if not self._lost and time.monotonic() - self._seen > _EXPIRES:
            self._renew()
        if self._lost:
            raise LockedError(
                f"{self._output} was taken over by another run while this one could not reach it: "
                "what is in it is whole; wait until that run ends"
            )

    def release(self) -> None:
        self._ended.set()
        # Where the server is away the lock stays, and ends by itself.
        with contextlib.suppress(RemoteError, GoneError), self._renewing:
            if self._holder()[0].get("token") == self._token:
                remove(self._url)

    def _take_over(self) -> bool:
        """Whether the lock is ours by now, since it was left, or was ours all the time."""
        try:
            holder, version = self._holder()
            if holder.get("token") == self._token:  # an answer that did not arrive
                return True
            if not _is_gone(holder):
                heard = age(self._url, f"{self._url}.{self._token}")
                if heard < _EXPIRES:
                    raise LockedError(
                        f"{self._output} is being written by another run ({_words(holder)}, heard "
                        f"of {heard:.0f} s ago): wait until it ends, or choose another --out; the "
                        f"lock of a run that was killed elsewhere ends after {_EXPIRES:.0f} s"
                    )
            return replace(self._url, self._body(), version)
        except GoneError:  # it has just ended
            return False

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            with contextlib.suppress(RemoteError):  # `check` sees how long that has been so
                self._renew()

    def _renew(self) -> None:
        with self._renewing:
            now = time.monotonic()
            if self._ended.is_set() or self._lost:
                return
            try:
                holder, version = self._holder()
                self._count += 1
                ours = holder.get("token") == self._token
                if not ours or not replace(self._url, self._body(), version):
                    # Refused where an answer did not arrive, too: it is written then.
                    self._lost = self._holder()[0].get("token") != self._token
            except GoneError:
                self._lost = True
            if not self._lost:
                self._seen = now

    def _holder(self) -> tuple[dict[str, Any], Any]:
        data, version = Object(self._url).fetch()
        try:
            found = parse_json(data)
        except ValueError:
            found = None
        return (found if isinstance(found, dict) else {}), version

    def _body(self) -> bytes:
        told = {"token": self._token, "count": self._count, "host": platform.node()}
        told |= {"pid": os.getpid(), "machine": _machine(), "began": _began(os.getpid())}
        return json.dumps(told).encode()


def _words(holder: dict[str, Any]) -> str:
    return plain(f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"[:100])


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the process that holds a lock was on this machine, and is no longer there."""
    here, pid = _machine(), holder.get("pid")
    is_here = bool(here) and holder.get("machine") == here and isinstance(pid, int)
    return is_here and _began(pid) != holder.get("began")


def _machine() -> str:
    """What processes with one set of numbers have in common; empty where nothing tells it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """When a process of this machine began; empty for one that has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]
