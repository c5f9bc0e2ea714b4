"""Pickles of PyTorch's files: dictionaries, and tensors by where their elements lie."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

from flaxvgg.weights.pickles import Global, is_key, load_pickle


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


def load_torch_pickle(file: io.BufferedIOBase, storages: list[Storage] | None = None) -> Any:
    """`load_pickle` of a pickle by `torch.save`: `Storage` and `StoredTensor` are values too.

    Every storage that is named is added to `storages`. Raises PickleError.
    """

    def refer(pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]  # of a whole network in an old file: a class, and its source
        storage = _storage(pid)
        if storages is not None:
            storages.append(storage)
        return storage

    return load_pickle(file, _MADE, refer)


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
    return {key: value for key, value in pairs if is_key(key)}


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
