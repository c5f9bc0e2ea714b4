"""Pickles, read as data: nothing in one is imported, called or executed.

A pickle is a program for a stack machine that builds objects. Of what it calls, only what the
caller has a maker for is made; `torch_pickle` has PyTorch's. All else becomes `Unread`, which
remembers what it would have been: enough for NumPy's arrays, in `array_pickle`.
"""

import dataclasses
import io
import pickletools
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any

_PROTOCOL = 5  # the last there is
_STEPS = 10_000_000  # instructions, some seconds; weights take ten or twenty a tensor
_DEPTH = 500_000  # values on the stack; a tuple has all of its own there


class PickleError(ValueError):
    """No pickle, a damaged one, or one that is out to do harm; the message is a predicate."""


@dataclasses.dataclass(eq=False)
class Unread:
    """An object that was not made: what would have been called, and what was put into it."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)  # by keys


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function by its name, e.g. "torch.FloatStorage"."""

    name: str


Makers = Mapping[str, Callable[..., Any]]


def load_pickle(
    file: io.BufferedIOBase,
    makers: Makers,
    refer: Callable[[Any], Any] | None = None,
    only: Collection[str] = (),
) -> Any:
    """The value of the pickle at the file's position, which is left behind its end.

    Gives numbers, texts, bytes, tuples, lists, dictionaries (subclasses too), `Global`, `Unread`,
    what the `makers` give for calls of the names that they stand under, and what `refer` gives for
    what lies outside of the pickle. Objects of any kind may stand beside the weights; but where
    `only` is given, names and instructions (as in pickletools) that are not in it are refused. Time
    and memory are bounded by the size of the file. Raises PickleError.
    """
    machine = _Machine(makers, refer, only)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if only and opcode.name not in only:
                raise PickleError(f"has the instruction {opcode.name}, which it does not need")
            machine.step(opcode.name, argument)
            if count > _STEPS or len(machine.stack) > _DEPTH:
                raise PickleError("nests too deeply, or is too long, in its pickle")
    except PickleError:
        raise
    except _DAMAGE as error:
        raise PickleError(f"is damaged or truncated, in its pickle: {_reason(error)}") from None
    return machine.result


# What the interpretation of random bytes runs into.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error)
_DAMAGE += (MemoryError, RecursionError)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:100]


# No weights and no hyperparameters have any business with these: such a file is an attack.
_HARMFUL = {"os", "posix", "nt", "sys", "subprocess", "pty", "runpy", "shutil", "socket", "ctypes"}
_HARMFUL |= {"importlib", "webbrowser", "code", "signal", "multiprocessing"}
_HARMFUL_BUILTINS = {"exec", "eval", "compile", "open", "__import__", "execfile", "breakpoint"}


def _is_harmful(module: str, name: str) -> bool:
    root = module.partition(".")[0]
    return root in _HARMFUL or (root in ("builtins", "__builtin__") and name in _HARMFUL_BUILTINS)


def is_key(key: Any) -> bool:
    """Whether something may be the name of a tensor, or of a dictionary with some."""
    return isinstance(key, str | int | float | bytes | None)


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_UNKNOWN = {"PERSID", "EXT1", "EXT2", "EXT4"}  # with an argument that is no value


class _Machine:
    """A stack and a memo, as in `pickle`."""

    def __init__(
        self, makers: Makers, refer: Callable[[Any], Any] | None, only: Collection[str]
    ) -> None:
        self.makers = makers
        self.refer = refer
        self.only = only
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" if argument > _PROTOCOL:
                raise ValueError(f"protocol {argument}")
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (self.result,) = self._pop(1)
                if stack:
                    raise LookupError("values left over")
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._to_mark()
            case "DUP":
                stack.append(self._top())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self._top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self._top()
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append(_EMPTY[name]())
            case "EMPTY_SET":
                stack.append(Unread("set"))
            case "FROZENSET":
                self._to_mark()
                stack.append(Unread("frozenset"))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(self._to_mark()))
            case "LIST":
                stack.append(self._to_mark())
            case "DICT":
                pairs = self._to_mark()
                stack.append({})
                self._set(pairs)
            case "APPEND":
                self._append(self._pop(1))
            case "APPENDS" | "ADDITEMS":
                self._append(self._to_mark())
            case "SETITEM":
                self._set(self._pop(2))
            case "SETITEMS":
                self._set(self._to_mark())
            case "GLOBAL":
                stack.append(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self._named(*map(str, self._pop(2))))
            case "INST":
                arguments = tuple(self._to_mark())
                stack.append(self._made(self._named(*argument.split(" ", 1)), arguments))
            case "OBJ":
                function, *rest = self._to_mark()
                stack.append(self._made(function, tuple(rest)))
            case "REDUCE" | "NEWOBJ":
                stack.append(self._made(*self._pop(2)))
            case "NEWOBJ_EX":
                function, arguments, _ = self._pop(3)
                stack.append(self._made(function, arguments))
            case "BUILD":
                (state,) = self._pop(1)
                target = self._top()
                if isinstance(target, Unread) and target.state is None:
                    target.state = state
                elif self.only:  # elsewhere it has attributes of a dictionary or a tensor
                    raise TypeError("a state for what has none")
            case "BINPERSID" if self.refer is not None:
                stack.append(self.refer(*self._pop(1)))
            case _ if argument is not None and name not in _UNKNOWN:
                stack.append(argument)
            case _:
                raise PickleError(f"is no PyTorch file: its pickle has {name}")

    def _top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise LookupError("a mark for a value")
        return self.stack[-1]

    def _pop(self, n: int) -> list[Any]:
        found = self.stack[-n:]
        if len(found) < n or any(value is _MARK for value in found):
            raise LookupError("an empty stack")
        del self.stack[-n:]
        return found

    def _to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise LookupError("no mark")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Unread):
            raise TypeError("items for what is no list")

    def _set(self, pairs: list[Any]) -> None:
        target = self._top()
        items = target.items if isinstance(target, Unread) else target
        if not isinstance(items, dict) or len(pairs) % 2:
            raise TypeError("entries for what is no dictionary")
        size = len(items) + len(pairs) // 2
        # Other keys name no tensor, and might not be hashable.
        items |= {k: v for k, v in zip(pairs[::2], pairs[1::2], strict=True) if is_key(k)}
        if self.only and len(items) < size:
            raise TypeError("a key that is no name, or is there twice")

    def _named(self, module: str, name: str) -> Global:
        named = f"{module}.{name}"
        if self.only and named not in self.only:
            raise PickleError(f"asks for {named[:64]!a}, which is not called")
        if _is_harmful(module, name):
            raise PickleError(
                f"would run {named}, as malicious files do; it was not executed: save "
                "model.state_dict() instead"
            )
        return Global(named)

    def _made(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Unread) and not self.only:
            return Unread(function.name)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise TypeError("a call of what is no function")
        if function.name in self.makers:
            return self.makers[function.name](*arguments)
        return Unread(function.name, arguments)
