"""What is in a Keras file: arrays by layer, and the model's configuration where it is there.

Read without Keras and without TensorFlow. There are three layouts: HDF5 with named layers (the
official downloads, and `.h5` of `model.save`), HDF5 with numbered variables (Keras 3's
`.weights.h5`), and `.keras`, a zip of the latter and the configuration.
"""

import dataclasses
import itertools
import json
import re
import shutil
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.source import SourceError

_KINDS = {
    "Conv2D": "conv",
    "MaxPooling2D": "max_pool",
    "Dense": "linear",
    "Flatten": "flatten",
    "ReLU": "relu",
    "Softmax": "softmax",
    "Activation": "",  # what counts is the activation it includes
    "Dropout": "",
}
_VGG_SETTINGS = {
    "Conv2D": {"strides": [1, 1], "padding": "same", "dilation_rate": [1, 1], "groups": 1},
    "MaxPooling2D": {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"},
}


@dataclasses.dataclass
class LayerWeights:
    """The arrays of one Keras layer, in Keras's order."""

    name: str
    arrays: list[np.ndarray]


def read_layers(path: Path) -> tuple[list[LayerWeights], dict[str, Any] | None]:
    """Every layer with weights, in order, and the model's configuration where the file has it.

    Raises SourceError for a file that is missing, damaged or of another kind.
    """
    import h5py

    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start == b"\x89HDF\r\n\x1a\n":
            with h5py.File(path) as file:
                config = file.attrs.get("model_config")
                return _read_hdf5(path, file), json.loads(config) if config else None
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive, tempfile.TemporaryFile() as copy:
                # HDF5 jumps about, which a member of a zip does at the price of reading it anew.
                with archive.open("model.weights.h5") as member:
                    shutil.copyfileobj(member, copy, 1 << 20)
                with h5py.File(copy) as file:
                    return _read_hdf5(path, file), json.loads(archive.read("config.json"))
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist") from None
    except (OSError, KeyError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        why = str(error).strip("'\"").splitlines()[0]
        raise SourceError(
            f"{path.name} cannot be read: {why}; is it a Keras file, and complete?"
        ) from None
    found = "HTML, perhaps an error page" if b"<" in start[:4] else f"a file starting {start!r}"
    raise SourceError(f"{path.name} is no .h5 or .keras file but {found}: download it again")


def _read_hdf5(path: Path, file: Any) -> list[LayerWeights]:
    named = file.get("model_weights", file)
    layers = list(_named_layers(named)) or list(_numbered_layers(file))
    if not layers:
        raise SourceError(f"{path.name} is HDF5, but holds no weights of a Keras model")
    return layers


def _named_layers(group: Any) -> Iterator[LayerWeights]:
    """Layers listed in attributes; a model used as a layer is one group with all its layers."""
    for layer in _strings(group, "layer_names"):
        arrays = defaultdict(list)
        for weight in _strings(group[layer], "weight_names"):
            if weight not in group[layer]:
                raise KeyError(f"{weight} is missing")
            arrays[weight.rpartition("/")[0]].append(_array(group[layer][weight]))
        if len(arrays) == 1:
            yield LayerWeights(layer, *arrays.values())
        else:  # trainable layers come first here, so the stored order is not the network's
            for name in sorted(arrays, key=_natural):
                yield LayerWeights(name.rpartition("/")[2], arrays[name])


def _numbered_layers(file: Any) -> Iterator[LayerWeights]:
    """Layers as paths of class names: layers/conv2d/vars/0, layers/conv2d_1/vars/0, ..."""
    groups: list[str] = []
    file.visit(lambda name: groups.append(name) if name.endswith("/vars") else None)
    for name in sorted(groups, key=_natural):
        variables = file[name]
        if len(variables) and not name.startswith("optimizer"):
            arrays = [_array(variables[key]) for key in sorted(variables, key=_natural)]
            yield LayerWeights(str(variables.attrs.get("name", name.removesuffix("/vars"))), arrays)


def _natural(name: str) -> list[list[str | int]]:
    """A sort key that has conv2d_2 before conv2d_10, and conv2d before both."""
    split = re.compile(r"(\d+)").split
    return [[int(x) if x.isdigit() else x for x in split(part)] for part in name.split("/")]


def _strings(group: Any, name: str) -> list[str]:
    """An attribute with names; one too long for HDF5 is in pieces name0, name1, ..."""
    values = group.attrs.get(name)
    if values is None:
        pieces = (f"{name}{i}" for i in itertools.count())
        pieces = itertools.takewhile(lambda piece: piece in group.attrs, pieces)
        values = [value for piece in pieces for value in group.attrs[piece]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _array(dataset: Any) -> np.ndarray:
    array = dataset[()]
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def layer_kinds(path: Path, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, kind) of every layer of a configuration, and again of the activation it includes.

    A kind is a `flaxvgg.config.Kind`, Keras's name where there is none, or "" for what makes no
    difference. Raises SourceError for a convolution or pooling that slides otherwise than a VGG's.
    """
    kind: str = config.get("class_name", "")
    own: Any = config.get("config", {})
    if isinstance(own, list):  # Sequential, in older files
        own = {"layers": own}
    if "layers" in own:
        for layer in own["layers"]:
            yield from layer_kinds(path, layer)
        return
    name = str(own.get("name", kind))
    settings = _VGG_SETTINGS.get(kind, {})
    wrong = [f"{key} {own[key]}" for key, value in settings.items() if own.get(key, value) != value]
    if wrong:
        raise SourceError(f"{path.name} is no VGG: {name} ({kind}) has {', '.join(wrong)}")
    yield name, _KINDS.get(kind, kind)
    if (activation := own.get("activation") or "linear") != "linear":
        yield name, str(activation)
