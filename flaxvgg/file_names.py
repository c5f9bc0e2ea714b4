"""Names of files as text: some are no UTF-8, or hold what would end a line."""

import os

AnyPath = str | os.PathLike[str]


def shown(path: AnyPath) -> str:
    r"""A name or path as a line of text, for pictures, JSON and stores.

    What is no text in it is written as its bytes, and what cannot be printed as Python would write
    it: b"caf\xe9.png" is "caf\xe9.png" in twelve characters. Where the path itself is needed,
    `os.fsencode(path)` gives its bytes.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in os.fspath(path))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # Python's way of keeping a byte that is no text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]
