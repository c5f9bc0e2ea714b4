"""Names of files as text: some are no UTF-8, or hold what would end a line."""

import os

AnyPath = str | os.PathLike[str]


def shown(path: AnyPath) -> str:
    r"""A name or path as a line of text, for pictures, JSON and stores.

    What is no text in it is written as its bytes, and what cannot be printed as Python would write
    it: b"caf\xe9.png" is "caf\xe9.png" in twelve characters. Where the path itself is needed,
    `os.fsencode(path)` gives its bytes.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
