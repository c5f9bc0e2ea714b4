"""Pickles, read as data: nothing in one is imported, called or executed.

A pickle is a program that builds objects. This interprets it with a table of the few names that a
file of PyTorch's needs: dictionaries, storages, tensors. Whatever else it names becomes `Unread`,
which remembers the name alone, so that hyperparameters of any kind may stand beside the weights.
"""

import dataclasses
import io
import pickletools
import struct
from collections.abc import Callable
from typing import Any


class PickleError(ValueError):
    """No pickle, a damaged one, or one that is out to do harm; the message is a predicate."""


@dataclasses.dataclass(eq=False)
class Unread:
    """An object that was not made: what it would have been, and what was put into it by keys."""

    name: str
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function by its name, e.g. "torch.FloatStorage"."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of `size` numbers: its name in the file, and PyTorch's name of its type.

    In old files it can be a part of it that is meant: `length` numbers from `start`.
    """

    key: str
    kind: str
    size: int
    start: int
    length: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file has it: a storage, and where in it the elements lie.

    `unusual` says what makes it no plain array of numbers: "sparse", "quantised".
    """

    storage: Storage | None
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dtype: str = ""  # where it is not the storage's
    unusual: str = ""


def load_pickle(file: io.BufferedIOBase, storages: list[Storage] | None = None) -> Any:
    """The value of the pickle at the file's position, which is left behind its end.

    Gives numbers, texts, tuples, lists, dictionaries (subclasses too), `Global`, `StoredTensor`,
    `Storage` and `Unread`; every storage that is named is added to `storages`. Raises PickleError.
    """
    machine = _Machine([] if storages is None else storages)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
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


def _named(module: str, name: str) -> Global:
    root = module.partition(".")[0]
    harmful = root in _HARMFUL or (
        root in ("builtins", "__builtin__") and name in _HARMFUL_BUILTINS
    )
    if harmful:
        raise PickleError(
            f"would run {module}.{name}, as malicious files do; it was not executed: save "
            "model.state_dict() instead"
        )
    return Global(f"{module}.{name}")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        return StoredTensor(None, unusual="without a storage of its own")
    # rest: requires_grad, backward hooks, and flags of lazy conjugation or negation
    unusual = "lazily conjugated or negated" if len(rest) > 2 and rest[2] else ""
    return StoredTensor(storage, offset, tuple(shape), tuple(strides), unusual=unusual)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any
) -> StoredTensor:
    return dataclasses.replace(_tensor(storage, offset, shape, strides), dtype=dtype.name)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _wrapped(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, or of a subclass."""
    return _MADE[function.name](*arguments)


def _unusual(what: str) -> Callable[..., StoredTensor]:
    return lambda *arguments: StoredTensor(None, unusual=what)


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    if not arguments or not isinstance(arguments[-1], list):
        return {}
    # Python 2 wrote a list of pairs. Each is used once: a file cannot multiply it.
    pairs = [tuple(pair) for pair in arguments[-1]]
    arguments[-1].clear()
    return {key: value for key, value in pairs if _is_key(key)}


def _is_key(key: Any) -> bool:
    return isinstance(key, str | int | float | bytes | None)


_MADE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _wrapped,
    "torch._utils._rebuild_qtensor": _unusual("quantised"),
    "torch._utils._rebuild_sparse_tensor": _unusual("sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": _unusual("sparse"),
    "torch._utils._rebuild_nested_tensor": _unusual("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unusual("without data"),
}
_MARK = object()


class _Machine:
    """A stack and a memo, as in `pickle`."""

    def __init__(self, storages: list[Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                self.result = stack.pop()
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
            case "EMPTY_SET":
                stack.append(Unread("set"))
            case "FROZENSET":
                self._to_mark()
                stack.append(Unread("frozenset"))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(name[-1])
                stack[-n:] = [tuple(self._top(n))]
            case "TUPLE":
                stack.append(tuple(self._to_mark()))
            case "LIST":
                stack.append(self._to_mark())
            case "DICT":
                found: dict[Any, Any] = {}
                self._set(found, self._to_mark())
                stack.append(found)
            case "APPEND":
                self._append([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._append(self._to_mark())
            case "SETITEM":
                pair = self._top(2)
                del stack[-2:]
                self._set(stack[-1], pair)
            case "SETITEMS":
                pairs = self._to_mark()
                self._set(stack[-1], pairs)
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                module, attribute = self._top(2)
                stack[-2:] = [_named(str(module), str(attribute))]
            case "INST":
                arguments = tuple(self._to_mark())
                stack.append(_made(_named(*argument.split(" ", 1)), arguments))
            case "OBJ":
                function, *rest = self._to_mark()
                stack.append(_made(function, tuple(rest)))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self._top(2)
                stack[-2:] = [_made(function, arguments)]
            case "NEWOBJ_EX":
                function, arguments, _ = self._top(3)
                stack[-3:] = [_made(function, arguments)]
            case "BUILD":
                stack.pop()  # attributes of an object that was not made, or of a dictionary
            case "BINPERSID":
                self._reference(stack.pop())
            case _ if argument is not None and name not in _UNKNOWN:
                stack.append(argument)
            case _:
                raise PickleError(f"is no PyTorch file: its pickle has {name}")

    def _reference(self, pid: Any) -> None:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            self.stack.append(pid[1])  # of a whole network in an old file: a class, and its source
            return
        storage = _storage(pid)
        self.storages.append(storage)
        self.stack.append(storage)

    def _top(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise LookupError("an empty stack")
        return self.stack[-n:]

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
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Unread):
            raise TypeError("items for what is no list")

    def _set(self, target: Any, pairs: list[Any]) -> None:
        items = target.items if isinstance(target, Unread) else target
        if not isinstance(items, dict) or len(pairs) % 2:
            raise TypeError("entries for what is no dictionary")
        # Other keys name no tensor, and might not be hashable.
        items |= {k: v for k, v in zip(pairs[::2], pairs[1::2], strict=True) if _is_key(k)}


# Opcodes with an argument that is no value.
_UNKNOWN = {"PERSID", "EXT1", "EXT2", "EXT4"}


def _made(function: Any, arguments: Any) -> Any:
    if isinstance(function, Unread):
        return Unread(function.name)
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise TypeError("a call of what is no function")
    if function.name in _MADE:
        return _MADE[function.name](*arguments)
    return Unread(function.name)


def _storage(pid: Any) -> Storage:
    """The storage that ("storage", type, key, device, length, part of another) stands for."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
        raise TypeError("a reference that is no storage")
    _, kind, key, _, size, *view = pid
    start, length = view[0][1:] if view and view[0] is not None else (0, size)
    numbers = (start, length, size)
    if not isinstance(kind, Global) or not all(type(n) is int and n >= 0 for n in numbers):
        raise TypeError("a storage without type or size")
    key = key.decode("ascii") if isinstance(key, bytes) else str(key)
    return Storage(key, kind.name, size, start, length)
