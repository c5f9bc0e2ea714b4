"""Objects in buckets and behind URLs: the one place through which all remote access goes.

obstore finds credentials as each provider's tools do (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...) and
repeats requests that fail for a moment. One that fails for good is one `RemoteError`.
"""

import contextlib
import dataclasses
import datetime
import fnmatch
import functools
import glob
import io
import os
import posixpath
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from flaxvgg.files.addresses import address, named, split
from flaxvgg.files.foreign import plain

T = TypeVar("T")

THREADS = 32  # that wait for a server: its answers take long, and little of a processor
_BLOCK = 16 * 1024  # bytes that are read at least: a header of a tar, and those close behind it
_TRIES = 5  # of an answer that breaks off, besides what obstore repeats
# A server that has answered may be away for so long before a run ends: a restart is waited for. One
# that has not is asked a few times, in seconds: there is no network, or the address is wrong.
_SECOND = datetime.timedelta(seconds=1)
_BACKOFF = {"init_backoff": _SECOND / 10, "max_backoff": 5 * _SECOND, "base": 2}
_PATIENCE = 90 * _SECOND
_RETRIES = {"max_retries": 1000, "retry_timeout": _PATIENCE, "backoff": _BACKOFF}
_FIRST = {"max_retries": 5, "retry_timeout": _PATIENCE, "backoff": _BACKOFF}
_answered: set[str] = set()  # roots
# A large object may take minutes; a server that is there answers at once.
_CLIENT = {"timeout": "300s", "connect_timeout": "5s"}


class RemoteError(Exception):
    """An address that cannot be reached, read or written: `reason`, and `advice` what to do.

    No ValueError or OSError: nothing takes it for a damaged file, or for one image that is broken.
    """

    def __init__(self, address: str, reason: str, advice: str):
        self.address, self.reason, self.advice = address, reason, advice
        super().__init__(f"{address}: {reason}: {advice}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.address, self.reason, self.advice)


class GoneError(ValueError):
    """There is no such object, or it is another one by now; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Version:
    """What tells one state of an object from another: its length, and its ETag or its time.

    `number` is what a server besides calls it by, where it does; Google's wants it to be replaced.
    """

    size: int
    tag: str
    number: str | None = dataclasses.field(default=None, compare=False, repr=False)


class Object:
    """An object at an address; `version` is the one that is meant, None for whichever is there."""

    def __init__(self, url: str, version: Version | None = None):
        self.url, self.version = url, version

    @property
    def name(self) -> str:
        """The last part of the address."""
        return posixpath.basename(self.url)

    def pinned(self) -> "Object":
        """The object in the version that is there now. Raises GoneError and RemoteError."""
        import obstore

        if self.version is not None:
            return self
        root, key = split(self.url)
        found = _request(self.url, lambda: obstore.head(_client(root), key))
        return Object(self.url, _version(found))

    def fetch(self) -> tuple[bytes, Version]:
        """All of it, and the version that this is. Raises GoneError and RemoteError."""
        return self._get({})

    def read(self, start: int, size: int) -> bytes:
        """Some bytes from a place on, fewer at its end. Raises GoneError and RemoteError."""
        version = self.pinned().version
        end = min(start + size, version.size if version else 0)
        return self._get({"range": (start, end)})[0] if start < end else b""

    def _get(self, options: dict[str, Any]) -> tuple[bytes, Version]:
        import obstore

        root, key = split(self.url)

        def get() -> tuple[bytes, Version]:
            found = obstore.get(_client(root), key, options=options)
            return bytes(found.bytes()), _version(found.meta)

        data, version = _request(self.url, get)
        if self.version not in (None, version):
            raise GoneError(f"{self.url}: it has changed since the run began: run it again")
        return data, version


class Ranges(io.RawIOBase):
    """An object as a file to be read in pieces: of each only the bytes that are asked for.

    The version is that which was there when it was opened. Raises GoneError where that is another
    one by now, and RemoteError.
    """

    def __init__(self, source: Object):
        self.object = source.pinned()
        self._size = self.object.version.size if self.object.version else 0
        self._place = 0
        self._kept = threading.local()  # each thread's last piece, and where it begins

    def fetch(self, start: int, size: int) -> None:
        """Get a piece in one request; what this thread reads of it next comes from there."""
        self._kept.piece = start, self.object.read(start, size)

    def readinto(self, buffer: Any) -> int:
        """As many bytes as there is room for, fewer only at the end."""
        wanted = max(0, min(len(buffer), self._size - self._place))
        start, piece = getattr(self._kept, "piece", (0, b""))
        if not start <= self._place <= self._place + wanted <= start + len(piece):
            self.fetch(self._place, max(wanted, _BLOCK))
            start, piece = self._kept.piece
        at = self._place - start
        buffer[:wanted] = piece[at : at + wanted]
        self._place += wanted
        return wanted

    def readall(self) -> bytes:
        """All that is left, in one request."""
        return self.read(max(0, self._size - self._place)) or b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, as files do."""
        self._place = max(0, offset + {0: 0, 1: self._place, 2: self._size}[whence])
        return self._place

    def tell(self) -> int:
        """The place where the next byte is read."""
        return self._place

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    seekable = readable


def open_file(path: Path) -> IO[bytes] | Ranges:
    """A file of this machine, or an object, to be read. Raises OSError; GoneError, RemoteError."""
    url = address(path)
    return Ranges(Object(url)) if url else path.open("rb")


def objects_below(url: str) -> list[tuple[str, Object]]:
    """What lies below an address, by its name from there on; sorted as paths of a folder are.

    Raises RemoteError, also where the server does not list what it has.
    """
    root, key = split(url)
    key = key.rstrip("/")
    found = [(meta["path"].removeprefix(key).lstrip("/"), meta) for meta in _listed(root, key)]
    return [
        (name, Object(f"{root}/{meta['path']}", _version(meta)))
        for name, meta in sorted(found, key=lambda pair: pair[0].split("/"))
        if name
    ]


def matching(pattern: Path) -> list[Path]:
    """The objects whose last part of the address fits a pattern such as `train-*.parquet`."""
    folder = named(pattern.parent)
    if glob.has_magic(folder):
        raise RemoteError(named(pattern), "a pattern for a folder", "name the folder itself")
    names = [name for name, _ in objects_below(folder) if "/" not in name]
    return [Path(pattern.parent, name) for name in fnmatch.filter(names, pattern.name)]


def write(url: str, data: bytes | Path, *, create: bool = False) -> bool:
    """Put an object there, or a file as one, whole or not at all.

    To `create` one, False where one is there: of an answer that was lost, ours. RemoteError.
    """
    return _put(url, data, "create" if create else None)


def replace(url: str, data: bytes, version: Version) -> bool:
    """Put an object there in the place of this version of it; False where it is another by now.

    As in `write`, that may be ours. Raises RemoteError.
    """
    number = {} if version.number is None else {"version": version.number}
    return _put(url, data, {"e_tag": version.tag, **number})


def _put(url: str, data: bytes | Path, mode: Any) -> bool:
    import obstore

    root, key = split(url)
    whole = None if mode is None else False  # only an object in one piece goes with a condition
    try:
        _request(
            url,
            lambda: obstore.put(_client(root), key, data, mode=mode, use_multipart=whole),
        )
    except FileExistsError:
        return False
    return True


def remove(url: str) -> None:
    """Remove an object, if there is one. Raises RemoteError."""
    import obstore

    root, key = split(url)
    with contextlib.suppress(GoneError):
        _request(url, lambda: obstore.delete(_client(root), key))


def age(url: str, beside: str) -> float:
    """Seconds since an object was written, by the server's clock: `beside` is written and removed.

    Raises GoneError and RemoteError.
    """
    import obstore

    def written(url: str) -> datetime.datetime:
        root, key = split(url)
        return _request(url, lambda: obstore.head(_client(root), key)["last_modified"])

    write(beside, b"")
    found = (written(beside) - written(url)).total_seconds()
    remove(beside)
    return found


def zarr_store(url: str) -> Any:
    """What lies below an address for Zarr, which raises RemoteError as all here does."""
    from zarr.storage import ObjectStore

    class Told(ObjectStore):
        """`ObjectStore`, with our errors."""

        async def get(self, key: str, *args: Any, **options: Any) -> Any:
            get = super().get
            return await _awaited(f"{url}/{key}", lambda: get(key, *args, **options))

        async def exists(self, key: str) -> bool:
            exists = super().exists
            return await _awaited(f"{url}/{key}", lambda: exists(key))

        async def set(self, key: str, value: Any) -> None:
            set_ = super().set
            await _awaited(f"{url}/{key}", lambda: set_(key, value))

        async def set_if_not_exists(self, key: str, value: Any) -> None:
            set_ = super().set_if_not_exists
            await _awaited(f"{url}/{key}", lambda: set_(key, value))

        async def delete(self, key: str) -> None:
            delete = super().delete
            await _awaited(f"{url}/{key}", lambda: delete(key))

        async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
            list_dir = super().list_dir

            async def listed() -> list[str]:
                return [name async for name in list_dir(prefix)]

            for name in await _awaited(f"{url}/{prefix}", listed):
                yield name

    return Told(_client(*split(url)))  # rooted there: Zarr makes a group of all above a group


def _request(url: str, request: Callable[[], T]) -> T:
    """What a request gives, sent again where its answer breaks off, which obstore does not."""
    with told(url):
        for last in [False] * (_TRIES - 1) + [True]:
            with contextlib.nullcontext() if last else _unless_it_broke_off():
                found = request()
                _answered.add(split(url)[0])
                return found
    raise AssertionError


async def _awaited(url: str, request: Callable[[], Awaitable[T]]) -> T:
    with told(url):
        for _ in range(_TRIES - 1):
            with _unless_it_broke_off():
                return await request()
        return await request()


@contextlib.contextmanager
def _unless_it_broke_off() -> Iterator[None]:
    from obstore.exceptions import GenericError

    try:
        yield
    except GenericError as error:
        if not re.search(r"body|message length", str(error).partition("<Error>")[0]):
            raise


@contextlib.contextmanager
def told(url: str) -> Iterator[None]:
    """Say in one line what obstore tells of an address.

    Raises GoneError where there is no object, FileExistsError where there is one that was not to be
    there, RemoteError for all else.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise FileExistsError from None
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise GoneError(f"{url}: no such object: check the address") from None
        raise _error(url, error) from None
    except BaseError as error:
        raise _error(url, error) from None


def _error(url: str, error: Exception) -> RemoteError:
    text = str(error).partition("Debug source:")[0]
    code, status = re.search(r"<Code>(\w+)</Code>", text), re.search(r"status code: (\d+)", text)
    said = " ".join(match[1] for match in (status, code) if match)
    root, _ = split(url)
    is_s3 = url.startswith("s3:")
    keys = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
    keys = keys if is_s3 else "GOOGLE_APPLICATION_CREDENTIALS"
    at = "the network, and AWS_ENDPOINT_URL" if is_s3 else "the network"
    again = "rerun the command to resume"
    if "NoSuchBucket" in text:
        return RemoteError(root, "no such bucket", "create it, or check its name")
    if "169.254.169.254" in text or "metadata.google" in text:
        return RemoteError(url, "there are no credentials", f"set {keys}")
    if re.search(r"507|quota|insufficientstorage", f"{said} {text}", re.IGNORECASE):
        return RemoteError(url, f"no room ({said})", "make room")
    if "privileges" in text or "credentials" in text or re.match(r"40[13]\b", said):
        return RemoteError(url, f"access is denied ({said})", f"check {keys}, and what they may do")
    if root.startswith("http") and "PROPFIND" in text:
        cure = "name them, list them in a table, or write shards as name-{000..146}.tar"
        return RemoteError(url, "a web server does not list its files", cure)
    if status is None:
        why = text.strip().splitlines()[0].rpartition(" - ")[2] if text.strip() else "no answer"
        return RemoteError(url, f"no connection ({plain(why)})", f"check {at}, and {again}")
    return RemoteError(url, f"the server answers {said}", again)


def _client(root: str, prefix: str = "") -> Any:
    return _made(root, prefix, root in _answered)


@functools.cache
def _made(root: str, prefix: str, is_patient: bool) -> Any:
    from obstore.store import GCSStore, HTTPStore, S3Store

    scheme, _, name = root.partition("://")
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    plain_http = (endpoint if scheme == "s3" else root).startswith("http:")
    client = {**_CLIENT, **({"allow_http": True} if plain_http else {})}
    options = {"client_options": client, "retry_config": _RETRIES if is_patient else _FIRST}
    if scheme in ("http", "https"):
        return HTTPStore(root, **options)
    store = S3Store if scheme == "s3" else GCSStore
    return store(name, prefix=prefix or None, **options)


def _listed(root: str, key: str) -> list[Any]:
    import obstore

    found = _request(f"{root}/{key}", lambda: list(obstore.list(_client(root), key or None)))
    return [meta for batch in found for meta in batch]


def _version(meta: Any) -> Version:
    tag = meta["e_tag"] or meta["last_modified"].isoformat()
    return Version(meta["size"], tag, meta["version"])
