"""Python's own pickle, for PyTorch's own reader, with every foreign object an inert one.

`torch.load(..., pickle_module=this)` so reads the tensors of a file whatever stands beside them,
and imports nothing that the file names but what makes tensors.
"""

import pickle
from collections import OrderedDict, defaultdict
from typing import IO, Any

import torch

# What PyTorch's reader looks for in such a module.
dump, dumps, Pickler = pickle.dump, pickle.dumps, pickle.Pickler
HIGHEST_PROTOCOL = pickle.HIGHEST_PROTOCOL
UnpicklingError = pickle.UnpicklingError

_MAKERS = (
    *("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"),
    *("_rebuild_parameter", "_rebuild_parameter_with_state"),
)
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("torch", "Size"): torch.Size,
    **{("torch._utils", name): getattr(torch._utils, name) for name in _MAKERS},
    **{("torch", str(x)[6:]): x for x in vars(torch).values() if isinstance(x, torch.dtype)},
    **{
        ("torch", name): x
        for name, x in vars(torch).items()
        if isinstance(x, type) and name.endswith("Storage")
    },
}


class Inert(dict):
    """An object of any class, made with anything, that does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Lose an item."""

    def extend(self, items: Any) -> None:
        """Lose items."""

    def add(self, item: Any) -> None:
        """Lose an item."""


class Unpickler(pickle.Unpickler):
    """Finds the makers of tensors, and `Inert` for any other name."""

    def find_class(self, module: str, name: str) -> Any:
        return _KNOWN.get((module, name), Inert)


def load(file: IO[bytes], **options: Any) -> Any:
    """The value of the next pickle in a file."""
    return Unpickler(file, **options).load()
