"""Addresses of objects: s3://bucket/key, gs://bucket/key, https://host/path.

Also as pathlib writes them (s3:/bucket/key): a command line hands paths on, and this undoes it.
"""

import os
import posixpath
import re
from pathlib import Path

from flaxvgg.files.foreign import AnyPath

_ADDRESS = re.compile(r"(s3|gs|https?):/{1,2}([^/].*)", re.DOTALL)


def address(path: AnyPath) -> str | None:
    """The address that a text or path is; None for a path of this machine.

    >>> address(Path("s3://bucket/photos")), address("photos/s3.png")
    ('s3://bucket/photos', None)
    """
    match = _ADDRESS.fullmatch(os.fspath(path))
    return f"{match[1]}://{match[2]}" if match else None


def named(path: AnyPath) -> str:
    """A path or address as people write it."""
    return address(path) or os.fspath(path)


def below(root: AnyPath, name: str) -> str | None:
    """The address of what a table in the folder `root` calls `name`; None for one on this machine.

    A table names no address of http://: what only this network sees, such as a machine's own keys,
    is mostly there.

    >>> below("s3://bucket/tables", "../photos/a.png"), below("tables", "gs://bucket/a.png")
    ('s3://bucket/photos/a.png', 'gs://bucket/a.png')
    """
    found = address(name)
    if found and not found.startswith("http:"):
        return found
    if not (folder := address(root)):
        return None
    scheme, _, rest = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(f'{rest}/{name}')}"


def folder_of(path: Path) -> Path:
    """The folder that a file is in: absolute, on this machine."""
    return path.parent if address(path) else path.absolute().parent


def split(url: str) -> tuple[str, str]:
    """The root of an address, "s3://bucket", and the key there."""
    scheme, _, rest = url.partition("://")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}", key
