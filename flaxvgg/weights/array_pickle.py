"""Nested dictionaries of NumPy arrays in a pickle, read without Python's unpickler.

Flax's users keep parameters like that. A pickle is a program for a stack machine; this one knows
the two dozen instructions that NumPy's arrays of float32 need, in the one form in which NumPy
writes them, and exactly three names: `numpy.core.multiarray._reconstruct`, `numpy.ndarray` and
`numpy.dtype`. None of them is imported or called.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

_NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
_STEPS = 100_000  # instructions; vgg16's thirteen convolutions take a thousand
_DEPTH = 10_000  # values on the stack
_TEXT = 1024  # bytes in a name
_MARK = object()


class ArrayPickleError(ValueError):
    """The bytes are no pickle of nested dictionaries of float32 arrays; the message says why."""


@dataclasses.dataclass(frozen=True)
class _Name:
    name: str


class _DType:
    """numpy.dtype("f4"), of which the byte order comes later."""

    little_endian = False


@dataclasses.dataclass(eq=False)
class _Array:
    """An array, of which shape and bytes come later."""

    value: np.ndarray | None = None


def read_arrays(data: bytes) -> dict[str, Any]:
    """The dictionary in a pickle: its values are dictionaries of the same kind, or arrays.

    Arrays are little-endian float32 in C order, and views of `data`; nothing is copied, so that
    memory and time are bounded by the size of `data`. Raises ArrayPickleError for every other
    instruction, name, argument or value, and where bytes are missing or left over.
    """
    try:
        return _plain(_Machine(data).run(), set())
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ArrayPickleError(f"it is damaged ({type(error).__name__}: {error})") from None


def _plain(value: Any, seen: set[int], depth: int = 0) -> dict[str, Any]:
    """The dictionary with arrays for their placeholders, at most three levels deep."""
    if not isinstance(value, dict):
        raise ArrayPickleError(f"it holds a {_kind(value)} where a dictionary was expected")
    # Dictionaries that are shared would unfold to any size, and one in itself has no end.
    if id(value) in seen or depth > 2:
        raise ArrayPickleError("its dictionaries are nested too deeply, or shared")
    seen.add(id(value))
    found = {}
    for name, one in value.items():
        if isinstance(one, _Array):
            if one.value is None:
                raise ArrayPickleError(f"the array {name!r} has no content")
            found[name] = one.value
        else:
            found[name] = _plain(one, seen, depth + 1)
    return found


def _kind(value: Any) -> str:
    return type(value).__name__.strip("_").lower()


class _Machine:
    """The stack machine: a stack, a memory, and a place in the bytes."""

    def __init__(self, data: bytes):
        self.data = memoryview(data)
        self.at = 0
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_STEPS):
            code = self.take(1)[0]
            if code == ord("."):
                break
            step = _INSTRUCTIONS.get(code)
            if step is None:
                raise ArrayPickleError(
                    f"its byte {self.at - 1} asks for instruction {code:#04x}, which no array needs"
                )
            step(self)
            if len(self.stack) > _DEPTH:
                raise ArrayPickleError("it nests too deeply")
        else:
            raise ArrayPickleError(f"it has more than {_STEPS} instructions")
        if self.at != len(self.data) or len(self.stack) != 1:
            raise ArrayPickleError("something is left over at its end")
        return self.stack[0]

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise ArrayPickleError("it is truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        """Text up to the end of a line, as the names are written."""
        start, limit = self.at, self.at + 64
        while self.take(1)[0] != ord("\n"):
            if self.at > limit:
                raise ArrayPickleError("it names something that is no part of an array")
        return bytes(self.data[start : self.at - 1]).decode("ascii")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ArrayPickleError("it takes more values than it has")
        return value

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ArrayPickleError("it takes more values than it has")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def protocol(self) -> None:
        if self.at != 1 or self.number(1) != 3:
            raise ArrayPickleError("its protocol is not 3")

    def text(self) -> None:
        size = self.number(4)
        if size > _TEXT:
            raise ArrayPickleError(f"it has a text of {size} bytes")
        self.push(bytes(self.take(size)).decode())

    def name(self) -> None:
        name = f"{self.line()} {self.line()}"
        if name not in _NAMES:
            raise ArrayPickleError(f"it asks for {name.replace(' ', '.')!a}, which is not called")
        self.push(_Name(name))

    def memorise(self) -> None:
        self.memory[self.number(1)] = self.top()

    def memorise_far(self) -> None:
        self.memory[self.number(4)] = self.top()

    def top(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    def pack(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        match function, arguments:
            case _Name("numpy dtype"), ("f4", False, True):
                self.push(_DType())
            case _Name("numpy.core.multiarray _reconstruct"), (_Name("numpy ndarray"), (0,), b"b"):
                self.push(_Array())
            case _:
                raise ArrayPickleError("it calls something that makes no array of float32")

    def build(self) -> None:
        state, target = self.pop(), self.top()
        match target, state:
            case _DType(), (3, "<", None, None, None, -1, -1, 0):
                target.little_endian = True
            case _Array(value=None), (
                1,
                tuple(shape),
                _DType() as dtype,
                False,
                memoryview() as data,
            ):
                target.value = _view(shape, dtype, data)
            case _:
                raise ArrayPickleError("it has an array that is no float32 in C order")

    def set_item(self) -> None:
        value, name = self.pop(), self.pop()
        self.set_all([name, value])

    def set_all(self, pairs: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ArrayPickleError("it fills something that is no dictionary")
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(name, str):
                raise ArrayPickleError(f"it has a {_kind(name)} as a name")
            target[name] = value


def _view(shape: tuple[Any, ...], dtype: _DType, data: Any) -> np.ndarray:
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8:
        raise ArrayPickleError("it has an array whose shape is no shape")
    whole = isinstance(data, memoryview) and len(data) == 4 * math.prod(shape)
    if not dtype.little_endian or not whole:
        raise ArrayPickleError(f"it has an array {shape} without its bytes")
    return np.frombuffer(data, "<f4").reshape(shape)


_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    ord("}"): lambda m: m.push({}),
    ord("("): lambda m: m.push(_MARK),
    ord("X"): _Machine.text,
    ord("C"): lambda m: m.push(m.take(m.number(1))),
    ord("B"): lambda m: m.push(m.take(m.number(4))),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    ord("J"): lambda m: m.push(m.number(4, signed=True)),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("t"): lambda m: m.push(tuple(m.pop_to_mark())),
    0x85: lambda m: m.pack(1),
    0x86: lambda m: m.pack(2),
    0x87: lambda m: m.pack(3),
    ord("c"): _Machine.name,
    ord("q"): _Machine.memorise,
    ord("r"): _Machine.memorise_far,
    ord("h"): lambda m: m.push(m.memory[m.number(1)]),
    ord("j"): lambda m: m.push(m.memory[m.number(4)]),
    ord("R"): _Machine.call,
    ord("b"): _Machine.build,
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.set_all(m.pop_to_mark()),
}
