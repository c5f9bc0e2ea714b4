"""VGG weights in the files that Keras writes, read without Keras and without TensorFlow.

Where a file has the model's configuration (`.keras`, and `.h5` of `model.save`) that must describe
a VGG; where it has weights alone, their shapes must.
"""

from pathlib import Path
from typing import Any

import numpy as np

from convert.readers.keras_file import LayerWeights, layer_kinds, read_layers
from convert.source import Source, SourceError, sha256
from flaxvgg.config import ARCHITECTURES, Layer, VGGConfig, classifier_layers
from flaxvgg.provenance import PREPROCESSING, Preprocessing, Provenance

_STACKS = {
    arch: VGGConfig.features_only(arch, "").conv_stack
    for arch in ARCHITECTURES
    if not arch.endswith("_bn")  # Keras has none with BatchNormalization
}
_LINEAR = [layer for layer in classifier_layers() if layer.kind == "linear"]
_CLASSIFIER = ["flatten", "linear", "relu", "linear", "relu", "linear", "softmax"]


def read_keras(path: Path, preprocessing: Preprocessing | None = None) -> Source:
    """VGG weights from a `.h5`, `.weights.h5` or `.keras` file.

    Weights are views in PyTorch's layouts; a head that is not VGG's is left out with a note. Raises
    SourceError for a file that is none of these, is damaged, or holds another network.
    """
    weights, config = read_layers(path)
    kinds = list(layer_kinds(path, config)) if config else []
    order = {name: i for i, (name, _) in enumerate(kinds)}
    if all(layer.name in order for layer in weights):
        weights.sort(key=lambda layer: order[layer.name])
    convs = [layer for layer in weights if layer.arrays[0].ndim == 4]
    norms = [layer for layer in weights if _is_batch_norm(layer)]
    arch, stack = _architecture(path, convs, norms)
    head_kinds = _head_kinds(path, arch, kinds)
    state: dict[str, Any] = {}
    for layer, conv in zip((x for x in stack if x.kind == "conv"), convs, strict=True):
        state[f"{layer.torch}.weight"] = conv.arrays[0].transpose(3, 2, 0, 1)
        state[f"{layer.torch}.bias"] = _bias(path, conv)
    notes = []
    head = [layer for layer in weights if layer.arrays[0].ndim == 2]
    is_vgg = not norms and head_kinds in (_CLASSIFIER, _CLASSIFIER[:-1])
    if is_vgg and _is_classifier(head):
        for layer, dense in zip(_LINEAR, head, strict=True):
            # The rows follow an HWC flattening; as four axes a view gives them PyTorch's order.
            maps = dense.arrays[0].reshape(layer.kernel, layer.kernel, layer.inputs, -1)
            weight = maps.transpose(3, 2, 0, 1) if layer.kernel > 1 else dense.arrays[0].T
            state |= {f"{layer.torch}.weight": weight, f"{layer.torch}.bias": _bias(path, dense)}
    elif head:
        units = [len(head[0].arrays[0]), *(layer.arrays[0].shape[1] for layer in head)]
        sizes = "-".join(map(str, units))
        notes.append(f"the head {sizes} is not VGG's and is left out: features only")
    if preprocessing is None:
        preprocessing = PREPROCESSING["keras"]
        notes.append("images preprocessed as for 'keras' are assumed; --preprocessing changes it")
    return Source(arch, state, Provenance(path.name, sha256(path), preprocessing), tuple(notes))


def _is_batch_norm(layer: LayerWeights) -> bool:
    return len(layer.arrays) > 2 and len({(a.ndim, *a.shape) for a in layer.arrays}) == 1


def _architecture(
    path: Path, convs: list[LayerWeights], norms: list[LayerWeights]
) -> tuple[str, tuple[Layer, ...]]:
    """The architecture with these convolutions. Raises SourceError where there is none."""
    if len(norms) >= len(convs) > 0:
        raise SourceError(f"{path.name} has BatchNormalization, and no VGG of Keras's has any")
    for arch, stack in _STACKS.items():
        layers = [layer for layer in stack if layer.kind == "conv"]
        if len(layers) != len(convs):
            continue
        for layer, conv in zip(layers, convs, strict=True):
            shape, found = (3, 3, layer.inputs, layer.outputs), conv.arrays[0].shape
            if found != shape:
                raise SourceError(
                    f"{path.name} is no VGG: {conv.name} is {found}, where {arch} has {shape}"
                )
        return arch, stack
    raise SourceError(
        f"{path.name} is no VGG, or not all of it: it has {len(convs)} convolutions, and VGG11, "
        "VGG13, VGG16 and VGG19 have 8, 10, 13 and 16"
    )


def _head_kinds(path: Path, arch: str, kinds: list[tuple[str, str]]) -> list[str]:
    """The kinds of the layers behind the convolutions; VGG's where there is no configuration.

    Raises SourceError where the convolutions, activations and poolings are not the architecture's.
    """
    counted = [(name, kind) for name, kind in kinds if kind]
    start = next((i for i, (_, kind) in enumerate(counted) if kind == "conv"), None)
    if start is None:
        return _CLASSIFIER
    found = [*counted[start:], ("the model", "at its end")]
    for layer, (name, kind) in zip(_STACKS[arch], found, strict=False):
        if layer.name == "pool5" and kind in ("at its end", "GlobalAveragePooling2D"):
            return ["no pool5"]
        if layer.kind != kind:
            raise SourceError(
                f"{path.name} is no VGG: {name} is {kind}, where {arch} has {layer.name}"
            )
    return [kind for _, kind in found[len(_STACKS[arch]) : -1]]


def _bias(path: Path, layer: LayerWeights) -> np.ndarray:
    kernel = layer.arrays[0]
    if len(layer.arrays) != 2 or layer.arrays[1].shape != kernel.shape[-1:]:
        raise SourceError(f"{path.name}: {layer.name} must have a kernel and a bias, and has not")
    return layer.arrays[1]


def _is_classifier(dense: list[LayerWeights]) -> bool:
    shapes = [layer.arrays[0].shape for layer in dense]
    expected = [(layer.inputs * layer.kernel**2, layer.outputs) for layer in _LINEAR]
    return len(shapes) == 3 and [*shapes[:2], shapes[2][0]] == [*expected[:2], expected[2][0]]
