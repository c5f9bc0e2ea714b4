"""Files of `torch.save`, read without PyTorch: the arrays lie in the mapped file.

There are two formats: a zip archive with a pickle and a member for each storage, and, from before
PyTorch 1.6, a series of pickles with the storages behind them. Either is mapped, not read, and
memory that was copied from is given back through the mapping, which can reach nothing else.
"""

import io
import math
import mmap
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flaxvgg.weights.pickles import PickleError, Unread
from flaxvgg.weights.torch_pickle import Storage, StoredTensor, load_torch_pickle

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LARGEST = 1 << 40  # elements: no weights have as many, and NumPy counts no further than 2^63


class TorchFileError(ValueError):
    """No file of `torch.save`, or a damaged one; the message is a predicate."""


class NoArray:
    """What is stored as a tensor and is no plain array of numbers; `what` says what it is."""

    def __init__(self, what: str, shape: tuple[int, ...] = ()):
        self.what = what
        self.shape = shape
        self.ndim = len(shape)
        self.dtype = np.dtype(object)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise ValueError(f"{self.what}, no plain array of numbers")


class MappedFile:
    """A file's bytes as memory."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.bytes = np.frombuffer(self._map, np.uint8)

    def release(self, array: np.ndarray) -> None:
        """Give the memory of an array back where it lies in this file; it stays readable.

        Only whole pages between the array's first and its last byte are given back, and they come
        from the file again: whoever shares them loses nothing.
        """
        if not sys.platform.startswith("linux"):
            return  # elsewhere the system decides by itself
        low, high = np.lib.array_utils.byte_bounds(array)
        begin = self.bytes.ctypes.data
        if not array.size or low < begin or high > begin + len(self.bytes):
            return
        start = -(-(low - begin) // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (high - begin) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if size > 0:
            self._map.madvise(mmap.MADV_DONTNEED, start, size)


def read_torch_file(path: Path, mapped: MappedFile) -> Any:
    """The value that was saved, with an array, a view of `mapped`, for each tensor.

    Everything else is as `load_torch_pickle` gives it; `NoArray` stands for tensors of other kinds.
    Raises TorchFileError.
    """
    try:
        read = _read_archive if zipfile.is_zipfile(path) else _read_series
        value, storages = read(path, mapped)
        _place_arrays(value, storages)
    except PickleError as error:
        raise TorchFileError(str(error)) from None
    except _DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TorchFileError(f"is damaged or truncated: {reason}") from None
    return value


_DAMAGE = (OSError, EOFError, LookupError, NotImplementedError, RuntimeError, struct.error)
_DAMAGE += (zipfile.BadZipFile, UnicodeDecodeError, OverflowError, MemoryError)

_Storages = Mapping[str, np.ndarray]


_VERSIONS = [str(n).encode() for n in range(1, 11)]
_NUMBERS = ".storage_alignment", ".data/serialization_id"  # members that not every archive has


def _read_archive(path: Path, mapped: MappedFile) -> tuple[Any, _Storages]:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise TorchFileError("is damaged: a member is there twice")
        if any(member.compress_type for member in members.values()):
            raise TorchFileError("was packed again by another program: pack it uncompressed")
        if any(member.compress_size != member.file_size for member in members.values()):
            # Of which no checksum would be computed over the bytes that are taken below.
            raise TorchFileError("is damaged: a member has two sizes; download it again")
        # PyTorch does not look: it takes changed bytes for weights.
        spoiled = archive.testzip()
        if spoiled is not None:
            raise TorchFileError(f"is damaged: {spoiled} has a wrong checksum; download it again")
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise TorchFileError("is no PyTorch file: a zip archive without one data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        # PyTorch's own reader wants all of this, so what has it not is damaged.
        outside = [name for name in members if not name.startswith(folder)]
        numbers = [
            archive.read(name).strip()
            for name in (f"{folder}version", *(folder + name for name in _NUMBERS))
            if name in members
        ]
        if outside or f"{folder}version" not in members or not all(x.isdigit() for x in numbers):
            raise TorchFileError("is damaged: it is not the archive that PyTorch writes")
        if numbers[0] not in _VERSIONS:
            raise TorchFileError(
                f"has version {numbers[0].decode()[:20]} of PyTorch's format, and 1 to 10 are "
                "known: save it again with another PyTorch, or download it again"
            )
        order = f"{folder}byteorder"
        if order in members and archive.read(order) != b"little":
            raise TorchFileError("was written on a big-endian machine: save it again on another")
        value = load_torch_pickle(io.BytesIO(archive.read(pickles[0])))
    storages = {}
    for name, member in members.items():
        if name.startswith(f"{folder}data/"):
            at = member.header_offset + 26  # the lengths of the name and of what is added
            n, extra = struct.unpack("<HH", mapped.bytes[at : at + 4].tobytes())
            start = at + 4 + n + extra
            storages[name.removeprefix(f"{folder}data/")] = mapped.bytes[
                start : start + member.file_size
            ]
    return value, storages


def _read_series(path: Path, mapped: MappedFile) -> tuple[Any, _Storages]:
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise TorchFileError("is truncated: download it again")
        file.seek(0)
        if load_torch_pickle(file) != _MAGIC:
            raise TorchFileError(
                "is a pickle, and no PyTorch file; it was not executed: save "
                "model.state_dict() instead"
            )
        if load_torch_pickle(file) != _PROTOCOL:
            raise TorchFileError("is damaged, or of an unknown version of PyTorch's format")
        machine = load_torch_pickle(file)
        if isinstance(machine, dict) and machine.get("little_endian") is False:
            raise TorchFileError("was written on a big-endian machine: save it again on another")
        named: list[Storage] = []
        value, keys = load_torch_pickle(file, named), load_torch_pickle(file)
        at = file.tell()
    sizes = {storage.key: _itemsize(storage) for storage in named}
    storages = {}
    for key in keys if isinstance(keys, list) else []:
        (count,) = struct.unpack("<q", mapped.bytes[at : at + 8].tobytes())
        size = count * sizes.get(str(key), 0)
        if size < 0 or at + 8 + size > len(mapped.bytes):
            raise TorchFileError("is truncated: download it again")
        storages[str(key)] = mapped.bytes[at + 8 : at + 8 + size]
        at += 8 + size
    return value, storages


def _place_arrays(value: Any, storages: _Storages) -> None:
    """Put an array in the place of each tensor in a dictionary, at any depth."""
    seen, left = set(), [value]
    while left:
        one = left.pop()
        items = one.items if isinstance(one, Unread) else one
        if not isinstance(items, dict) or id(items) in seen:
            continue
        seen.add(id(items))
        for name, x in items.items():
            if isinstance(x, StoredTensor):
                items[name] = _array(x, storages)
            else:
                left.append(x)


_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Untyped": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
_TORCH_DTYPES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64"}
_QUANTISED = ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")


def _kind(storage: Storage) -> str:
    return storage.kind.rpartition(".")[2].removesuffix("Storage")


def _dtype(name: str) -> np.dtype | None:
    """NumPy's dtype of that name; None where there is none, as for PyTorch's float8."""
    if name == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name) if name in _DTYPES.values() or name in ("uint16", "uint32") else None


def _itemsize(storage: Storage) -> int:
    dtype = _dtype(_DTYPES.get(_kind(storage), ""))
    if dtype is None:
        return {"QInt32": 4}.get(_kind(storage), 1)
    return dtype.itemsize


def _array(tensor: StoredTensor, storages: _Storages) -> np.ndarray | NoArray:
    """The tensor as a view of its storage. Raises TorchFileError where it reaches beyond it."""
    if tensor.unusual or tensor.storage is None:
        return NoArray(tensor.unusual, tensor.shape)
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    numbers = (tensor.offset, *shape, *strides)
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or len(shape) != len(strides):
        raise TorchFileError("is damaged: a tensor has no possible shape or strides")
    if _kind(storage) in _QUANTISED:
        return NoArray("quantised", shape)
    name = tensor.dtype.rpartition(".")[2] or _DTYPES.get(_kind(storage), "")
    dtype = _dtype(_TORCH_DTYPES.get(name, name))
    if dtype is None:
        return NoArray(name or storage.kind, shape)
    found = storages.get(storage.key)
    if found is None or len(found) != storage.size * dtype.itemsize:
        raise TorchFileError("is damaged: its tensors are not as large as it says")
    part = found.view(dtype)[storage.start :][: storage.length]
    if not math.prod(shape):
        return np.empty(shape, dtype)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= len(part):
        raise TorchFileError("is damaged: a tensor reaches beyond its storage")
    if math.prod(shape) > _LARGEST:
        return NoArray(f"{math.prod(shape)} numbers", shape)
    steps = [step * dtype.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(part[tensor.offset :], shape, steps)
