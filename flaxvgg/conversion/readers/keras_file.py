"""What is in a Keras file: arrays by layer, and the model's configuration where it is there.

Read without Keras and without TensorFlow. There are three layouts: HDF5 with named layers (the
official downloads, and `.h5` of `model.save`), HDF5 with numbered variables (Keras 3's
`.weights.h5`), and `.keras`, a zip of the latter and the configuration.
"""

import dataclasses
import itertools
import mmap
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from flaxvgg.conversion.source_weights import SourceError
from flaxvgg.files.nesting import parse_json


@dataclasses.dataclass(eq=False)  # arrays that differ in shape cannot be compared
class LayerWeights:
    """The arrays of one Keras layer, in Keras's order; `path` is where the file has them."""

    name: str
    arrays: list[np.ndarray]
    path: str


def read_layers(path: Path) -> tuple[list[LayerWeights], dict[str, Any] | None]:
    """Every layer with weights, in order, and the model's configuration where the file has it.

    Raises SourceError for a file that is missing, damaged or of another kind.
    """
    import h5py

    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start == b"\x89HDF\r\n\x1a\n":
            with path.open("rb") as file:
                _check_heaps(file)
            with h5py.File(path) as file:
                config = _texts(file, "model_config")
                return _read_hdf5(path, file), None if config is None else _parsed("".join(config))
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive, tempfile.TemporaryFile() as copy:
                _check_sizes(archive)
                # HDF5 jumps about, which a member of a zip does at the price of reading it anew.
                with archive.open("model.weights.h5") as member:
                    shutil.copyfileobj(member, copy, 1 << 20)
                copy.flush()
                _check_heaps(copy)
                with h5py.File(copy) as file:
                    return _read_hdf5(path, file), _parsed(archive.read("config.json"))
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist") from None
    except SourceError:
        raise
    except _DAMAGE as error:
        why = (str(error).strip("'\"") or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{path.name} cannot be read: {why}; is it a Keras file, and complete?"
        ) from None
    found = "HTML, perhaps an error page" if b"<" in start[:4] else f"a file starting {start!r}"
    raise SourceError(f"{path.name} is no .h5 or .keras file but {found}: download it again")


# What h5py, zipfile and the JSON reader raise for a file that is damaged, or made to do harm.
_DAMAGE = (
    OSError,
    KeyError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_HEAP = b"GCOL\x01\0\0\0"
_LEAST = 1 << 20  # bytes; what is smaller does no harm
_RATIO = 16  # weights hardly compress


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise KeyError for a member that is far larger than what it is unpacked from."""
    for member in archive.infolist():
        if member.file_size > max(_RATIO * member.compress_size, _LEAST):
            raise KeyError(f"{member.filename} would unpack to {member.file_size} bytes")


def _check_heaps(file: IO[bytes]) -> None:
    """Raise KeyError for a heap of strings with pieces of no size, of which HDF5 finds no end.

    (HDF5 File Format Specification 3.0, III.E: a collection is its size, and pieces with theirs.)
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        heap = data.find(_HEAP)
        while heap >= 0:
            (size,) = struct.unpack_from("<Q", data, heap + 8)
            place, stop = heap + 16, heap + size
            while place + 16 <= min(stop, len(data)):
                number, length = struct.unpack_from("<H6xQ", data, place)
                length = 16 + (length + 7) // 8 * 8 if number else length
                if not 16 <= length <= stop - place:
                    raise KeyError("its strings are damaged")
                place += length
            heap = data.find(_HEAP, heap + 8)


def _parsed(config: str | bytes) -> dict[str, Any]:
    found = parse_json(config)
    if isinstance(found, dict):
        return found
    raise KeyError("the model's configuration is none")


def _read_hdf5(path: Path, file: Any) -> list[LayerWeights]:
    named = file.get("model_weights", file)
    layers = list(_named_layers(named)) or list(_numbered_layers(file))
    if not layers:
        raise SourceError(f"{path.name} is HDF5, but holds no weights of a Keras model")
    return layers


def _named_layers(group: Any) -> Iterator[LayerWeights]:
    """Layers listed in attributes; a model used as a layer is one group with all its layers."""
    import h5py

    for layer in _strings(group, "layer_names"):
        arrays = defaultdict(list)
        if group.get(layer, getclass=True) is not h5py.Group:
            raise KeyError(f"{layer} is missing")
        for weight in _strings(group[layer], "weight_names"):
            if weight not in group[layer]:
                raise KeyError(f"{weight} is missing")
            arrays[weight.rpartition("/")[0]].append(
                _array(group[layer][weight], group.file.filename)
            )
        if len(arrays) == 1:
            (path,) = arrays
            yield LayerWeights(layer, *arrays.values(), path=path or layer)
        else:  # trainable layers come first here, so the stored order is not the network's
            for name in sorted(arrays, key=_natural):
                yield LayerWeights(name.rpartition("/")[2], arrays[name], name)


def _numbered_layers(file: Any) -> Iterator[LayerWeights]:
    """Layers as paths of class names: layers/conv2d/vars/0, layers/conv2d_1/vars/0, ..."""
    groups: list[str] = []
    file.visit(lambda name: groups.append(name) if name.endswith("/vars") else None)
    for name in sorted(groups, key=_natural):
        variables = file[name]
        if len(variables) and not name.startswith("optimizer"):
            keys = sorted(variables, key=_natural)
            arrays = [_array(variables[key], file.filename) for key in keys]
            path = name.removesuffix("/vars")
            yield LayerWeights("".join(_texts(variables, "name") or [path]), arrays, path)


def _natural(name: str) -> list[list[str | int]]:
    """A sort key that has conv2d_2 before conv2d_10, and conv2d before both."""
    split = re.compile(r"(\d+)").split
    return [[int(x) if x.isdigit() else x for x in split(part)] for part in name.split("/")]


def _strings(group: Any, name: str) -> list[str]:
    """An attribute with names; one too long for HDF5 is in pieces name0, name1, ...

    Raises KeyError for a name that is there twice.
    """
    names = _texts(group, name)
    if names is None:
        pieces = (_texts(group, f"{name}{i}") for i in itertools.count())
        present = itertools.takewhile(lambda piece: piece is not None, pieces)
        names = [text for piece in present for text in piece or []]
    if len(set(names)) < len(names):
        raise KeyError(f"{name} of {group.name} has a name twice")
    return names


def _texts(group: Any, name: str) -> list[str] | None:
    """An attribute's text or texts; None where there is no such attribute.

    Raises KeyError where it is no text: HDF5 reads past its memory for types that it does not know.
    """
    from h5py import h5t

    if name not in group.attrs:
        return None
    attribute = group.attrs.get_id(name)
    if attribute.shape is not None and 0 in attribute.shape:  # names of none, as Keras writes them
        return []
    kind = attribute.get_type()
    is_text = isinstance(kind, h5t.TypeStringID) and kind.get_cset() in (
        h5t.CSET_ASCII,
        h5t.CSET_UTF8,
    )
    if attribute.shape is None or not is_text:
        raise KeyError(f"the attribute {name} of {group.name} is no text")
    values = np.ravel(group.attrs[name])
    return [x.decode() if isinstance(x, bytes) else str(x) for x in values]


def _array(dataset: Any, filename: str) -> np.ndarray:
    """The values of a dataset. Raises KeyError where they are no weights stored in the file."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise KeyError(f"{dataset.name} is no array")
    # Before `dtype`, which is a TypeError for the types that NumPy has not.
    if not isinstance(
        dataset.id.get_type(),
        h5py.h5t.TypeFloatID | h5py.h5t.TypeIntegerID | h5py.h5t.TypeOpaqueID,
    ):
        raise KeyError(f"{dataset.name} is no array of numbers")
    if dataset.dtype.kind not in "fiu" and dataset.dtype != np.dtype("V2"):
        raise KeyError(f"{dataset.name} has the type {dataset.dtype}")
    if dataset.external or dataset.is_virtual or dataset.file.filename != filename:
        raise KeyError(f"{dataset.name} is kept in another file")
    if dataset.nbytes > max(_RATIO * dataset.id.get_storage_size(), _LEAST):
        raise KeyError(f"{dataset.name} would unpack to {dataset.nbytes} bytes")
    array = np.asarray(dataset[()])  # HDF5 gives a number for an array without axes
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
