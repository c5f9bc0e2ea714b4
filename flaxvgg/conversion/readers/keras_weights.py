"""The arrays of a Keras file, by the layer that a configuration has them for."""

import re
from collections import defaultdict
from typing import Any

import numpy as np

from flaxvgg.conversion.readers.keras_file import LayerWeights
from flaxvgg.conversion.readers.keras_graph import Call
from flaxvgg.conversion.source_weights import SourceError

_LARGEST = float(np.finfo(np.float32).max)


class Weights:
    """Arrays by layer: by its name, or in files without names by its class, in order."""

    def __init__(self, file: str, layers: list[LayerWeights], names: set[str]):
        self.file = file
        self._named: dict[str, list[LayerWeights]] = defaultdict(list)
        self._inner: dict[str, list[LayerWeights]] = defaultdict(list)  # the only one of a model
        self._by_class: dict[str, list[LayerWeights]] = defaultdict(list)
        for layer in layers:
            self._named[layer.name].append(layer)
            self._inner[layer.path.rpartition("/")[2]].append(layer)
            kind = re.sub(r"_\d+$", "", layer.path.rpartition("/")[2])
            self._by_class[kind].append(layer)
        self._has_names = any(layer.name in names for layer in layers)
        self._taken: dict[str, LayerWeights] = {}

    def of(self, call: Call) -> list[np.ndarray]:
        """The arrays of a call's layer, in Keras's order; none for a layer without any.

        Raises SourceError where two layers have its name.
        """
        if self._has_names:
            found = self._named.get(call.layer) or self._inner.get(call.layer, [])
            if len(found) > 1:
                raise SourceError(f"{self.file} has two layers called {call.layer!r}: rename one")
            return found[0].arrays if found else []
        if call.layer not in self._taken:
            left = self._by_class.get(_snake(call.kind), [])
            if not left:
                return []
            self._taken[call.layer] = left.pop(0)
        return self._taken[call.layer].arrays

    def kernel_and_bias(self, call: Call) -> dict[str, np.ndarray]:
        """The kernel as it is, and the bias where the layer has one. Raises SourceError."""
        arrays = self.of(call)
        names = ("weight", "bias") if call.config.get("use_bias", True) else ("weight",)
        if arrays and arrays[0].dtype.kind in "iu":
            raise SourceError(
                f"{self.file} is quantised: the kernel of {call.layer} is {arrays[0].dtype}; "
                "convert the float model it was made from"
            )
        shapes = [array.shape for array in arrays]
        if len(shapes) != len(names) or shapes[1:] not in ([], [shapes[0][-1:]]):
            expected = " and ".join(("a kernel", "a bias")[: len(names)])
            raise SourceError(f"{self.file}: {call.layer} must have {expected}, and has not")
        return dict(zip(names, arrays, strict=True))

    def batch_norm(self, call: Call) -> dict[str, np.ndarray]:
        """The four arrays of a BatchNormalization by PyTorch's names. Raises SourceError."""
        arrays = self.of(call)
        names = ["running_mean", "running_var"]
        if call.config.get("center", True):
            names.insert(0, "bias")
        if call.config.get("scale", True):
            names.insert(0, "weight")
        if len(arrays) != len(names) or len({array.shape for array in arrays}) != 1:
            raise SourceError(
                f"{self.file}: {call.layer} must have {len(names)} arrays of one shape, and has not"
            )
        found = dict(zip(names, arrays, strict=True))
        like = found["running_var"]
        found.setdefault("weight", np.ones_like(like))
        found.setdefault("bias", np.zeros_like(like))
        return {name: found[name] for name in ("weight", "bias", "running_mean", "running_var")}

    def epsilon(self, call: Call) -> float:
        """What a BatchNormalization adds to the variance. Raises SourceError for no number."""
        given: Any = call.config.get("epsilon", 1e-3)
        if type(given) not in (int, float) or not 0 <= given < _LARGEST:
            raise SourceError(f"{self.file}: the epsilon of {call.layer} is none: {given!r:.50}")
        return float(given)


def _snake(name: str) -> str:
    """conv2d of Conv2D, batch_normalization of BatchNormalization: as Keras names the groups."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
