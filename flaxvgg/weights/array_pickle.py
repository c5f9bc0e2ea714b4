"""Nested dictionaries of NumPy arrays in a pickle, as Flax's users keep parameters.

Two dozen instructions and three names are known: those that arrays of float32 need, in the one form
in which NumPy writes them. Nothing is called.
"""

import io
import math
from typing import Any

import numpy as np

from flaxvgg.weights.pickles import Global, PickleError, Unread, load_pickle

_PROTOCOL = b"\x80\x03"
_NEEDED = """
EMPTY_DICT MARK BINUNICODE SHORT_BINBYTES BINBYTES BININT1 BININT2 BININT NONE NEWTRUE NEWFALSE
TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL BINPUT LONG_BINPUT BINGET LONG_BINGET REDUCE BUILD SETITEM
SETITEMS STOP numpy.core.multiarray._reconstruct numpy.ndarray numpy.dtype
"""


def read_arrays(data: bytes) -> dict[str, Any]:
    """The dictionary in a pickle: its values are dictionaries of the same kind, or arrays.

    Arrays are little-endian float32 in C order, and views of `data`; nothing is copied. Raises
    PickleError for every other instruction, name, argument or value, and where bytes are missing or
    left over.
    """
    if not data.startswith(_PROTOCOL):
        raise PickleError("is no pickle of protocol 3")
    file = _Views(data)
    file.seek(len(_PROTOCOL))
    value = load_pickle(file, {}, only=frozenset(_NEEDED.split()))
    if file.tell() != len(data):
        raise PickleError("has something left over at its end")
    return _dictionary(value, set())


class _Views(io.BytesIO):
    """A file of bytes: what is long is given as a view of them."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self._view = memoryview(data)

    def read(self, size: int | None = -1, /) -> Any:
        if size is None or size < 256:
            return super().read(size)
        part = self._view[self.tell() :][:size]
        self.seek(len(part), io.SEEK_CUR)
        return part


def _dictionary(value: Any, seen: set[int], depth: int = 0) -> dict[str, Any]:
    """The dictionary with arrays for what stands for them, at most three levels deep."""
    if not isinstance(value, dict):
        raise PickleError(f"holds a {type(value).__name__} where a dictionary was expected")
    # Dictionaries that are shared would unfold to any size, and one in itself has no end.
    if id(value) in seen or depth > 2:
        raise PickleError("has dictionaries that are nested too deeply, or shared")
    seen.add(id(value))
    if not all(isinstance(name, str) for name in value):
        raise PickleError("has names that are no texts")
    return {
        name: _array(x) if isinstance(x, Unread) else _dictionary(x, seen, depth + 1)
        for name, x in value.items()
    }


def _array(unread: Unread) -> np.ndarray:
    match unread:
        case Unread(
            "numpy.core.multiarray._reconstruct",
            (Global("numpy.ndarray"), (0,), b"b"),
            (
                1,
                tuple(shape),
                Unread(
                    "numpy.dtype",
                    ("f4", False, True),
                    (3, "<", None, None, None, -1, -1, 0),
                ),
                False,
                bytes() | memoryview() as data,
            ),
        ) if all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 8:
            if len(data) != 4 * math.prod(shape):
                raise PickleError(f"has an array {shape} without its bytes")
            return np.frombuffer(data, "<f4").reshape(shape)
    raise PickleError("has an array that is no little-endian float32 in C order")
