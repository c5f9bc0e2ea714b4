"""Text that others wrote, as it can be shown: names of files and classes, notes, other libraries.

Such a text may hold what a terminal or a page obeys (escapes, returns, marks that turn the reading
order round), or bytes that are no text. All of it is made visible here, and nowhere else.
"""

import os
import re
import unicodedata

AnyPath = str | os.PathLike[str]

# Controls, what is not seen but changes what is, and the surrogates that Python makes of bytes.
_KINDS = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # in the names of people and in emoji
_SUSPECT = re.compile(r"[^ -~]")


def plain(text: str, lines: bool = False) -> str:
    r"""The text with everything visible that is no character to look at: `\x1b`, `\n`, `\u202e`.

    Bytes that are no text are shown as `\xe9`. With `lines` line breaks stay what they are.
    """
    return _SUSPECT.sub(lambda match: _shown(match[0], lines), text)


def shown(path: AnyPath) -> str:
    r"""A name or path as a line of text, for pictures, JSON and stores.

    b"caf\xe9.png" is "caf\xe9.png" in twelve characters. Where the path itself is needed,
    `os.fsencode(path)` gives its bytes.
    """
    return plain(os.fspath(path))


def _shown(character: str, lines: bool) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # what os.fsdecode makes of a byte
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) not in _KINDS or character in _JOINERS:
        return character
    if lines and character == "\n":
        return character
    return character.encode("unicode_escape").decode()
