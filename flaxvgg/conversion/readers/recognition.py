"""Which of the eight VGGs a sequence of steps is, and which head; all else is refused by name.

The same weights in another network would give other features: so every step up to pool5 must be
VGG's, windows and all.
"""

import dataclasses
from typing import Any

import numpy as np

from flaxvgg.conversion.readers.steps import QUANTISED, Step, Window
from flaxvgg.conversion.source_weights import SourceError
from flaxvgg.network.config import ARCHITECTURES, Layer, VGGConfig, classifier_layers

_TORCH_EPSILON = 1e-5
_WINDOWS = {
    "conv": Window(kernel=(3, 3), pads=(1, 1, 1, 1)),
    "max_pool": Window(kernel=(2, 2), strides=(2, 2)),
}
# What may follow relu5_3 directly: such a network leaves pool5 out, and its weights are VGG's.
_INSTEAD_OF_POOL5 = ("the end", "global_avg_pool", "flatten")
_ON_A_SIXTH = ["conv", "relu", "global_avg_pool"]  # a GAP head with a convolution of its own
_REARRANGED = ("flatten", "avg_pool")  # features, but for their order and size
_WEIGHTED = ("conv", "linear", "relu", "softmax", "global_avg_pool")
_RESIZED = "resize the images beforehand, and save the network without it"
_HINTS = {
    "Lambda": "it holds Python code, which is never run: put Rescaling or Normalization there, or "
    "save the network without it and say what it did by --preprocessing",
    **dict.fromkeys(("Resize", "Upsample", "Resizing", "CenterCrop", "RandomCrop"), _RESIZED),
}
_HINT = "save the network without it, and say what it did by --preprocessing"


@dataclasses.dataclass
class Recognised:
    """What the steps are: weights under torchvision's names, and the steps by the paper's names.

    `head` is empty where the head is none of ours; `rest` are the steps behind the convolutions.
    """

    arch: str
    state: dict[str, Any]
    stack: dict[str, Step]
    head: dict[str, Step]
    rest: list[Step]
    notes: list[str]


def recognise(name: str, steps: list[Step]) -> Recognised:
    """The VGG of these steps. Raises SourceError, with the file's `name`, where they are none."""
    pairs, arch = _conv_stack(name, steps)
    notes: list[str] = []
    state: dict[str, Any] = {}
    for layer, step in pairs:
        if layer.kind == "batch_norm":
            notes += _fold_epsilon(name, step)
        elif layer.kind == "conv":
            _fill_bias(step, layer.outputs)
        state |= {f"{layer.torch}.{part}": array for part, array in step.weights.items()}
    stack = {layer.name: step for layer, step in pairs}
    rest = steps[len(pairs) :]
    if "pool5" not in stack:
        notes.append(f"{name} has no pool5; the weights are the same")
    head, weights = _head(arch, rest, "pool5" in stack)
    if not head and any(step.kind not in _REARRANGED for step in rest):
        notes.append(f"the head {_describe(rest)} is not VGG's and is left out: features only")
    return Recognised(arch, state | weights, stack, head, rest, notes)


def _conv_stack(name: str, steps: list[Step]) -> tuple[list[tuple[Layer, Step]], str]:
    """The first steps as the layers of an architecture. Raises SourceError where they are not."""
    if not any(step.kind == "conv" for step in steps):
        _refuse_quantised(name, steps)
        if steps and steps[0].kind in _HINTS:
            raise _in_front(name, steps[0])
        found = ", ".join(step.kind for step in steps[:3]) or "nothing"
        raise SourceError(f"{name} is no VGG: {found} after its input, and no convolution")

    def agreeing(arch: str) -> list[tuple[Layer, Step]]:
        pairs = list(zip(VGGConfig.features_only(arch, "").conv_stack, steps, strict=False))
        end = next((i for i, (layer, step) in enumerate(pairs) if layer.kind != step.kind), None)
        return pairs[:end]

    arch = max(ARCHITECTURES, key=lambda arch: len(agreeing(arch)))
    stack = agreeing(arch)
    for layer, step in stack:
        _check(name, layer, step)
    layers = VGGConfig.features_only(arch, "").conv_stack
    n = len(stack)
    follows = steps[n].kind if n < len(steps) else "the end"
    instead = [step.kind for step in steps[n : n + 3]] == _ON_A_SIXTH
    instead = instead or follows in _INSTEAD_OF_POOL5
    if n == len(layers) or (n == len(layers) - 1 and instead):
        return stack, arch
    _refuse_quantised(name, steps[n : n + 1])
    if not n and follows not in ("Conv", "Conv2D"):
        raise _in_front(name, steps[0])
    node = f" (node {steps[n].node!r})" if n < len(steps) else ""
    before = f"after {layers[n - 1].name}" if n else "at the input"
    raise SourceError(
        f"{name} is no VGG: {before} comes {follows}{node}, "
        f"where {arch} has a {layers[n].kind} ({layers[n].name})"
    )


def _in_front(name: str, step: Step) -> SourceError:
    return SourceError(
        f"{name}: before its first convolution comes {step.kind} ({step.node!r}), which "
        f"no recipe for images can say: {_HINTS.get(step.kind, _HINT)}"
    )


def _refuse_quantised(name: str, steps: list[Step]) -> None:
    for step in steps:
        if step.kind in QUANTISED:
            raise SourceError(
                f"{name} is quantised: it rounds what its layers compute to 8 bits ({step.kind}, "
                f"node {step.node!r}), which flaxvgg does not: convert the float model it was made "
                "from"
            )


def _check(name: str, layer: Layer, step: Step) -> None:
    where = f"{layer.name} (node {step.node!r})"
    window = _WINDOWS.get(layer.kind)
    if step.window and window and step.window != window:
        differ = step.window.differences(window)
        raise SourceError(f"{name} is no VGG: {where} has {differ}")
    for part, array in step.weights.items():
        shape = (layer.outputs,)
        if layer.kind == "conv" and part == "weight":
            shape = (layer.outputs, layer.inputs, 3, 3)
        if array.shape != shape:
            raise SourceError(
                f"{name} is no VGG: the {part} of {where} is {array.shape}, not {shape}"
            )


def _fill_bias(step: Step, units: int) -> None:
    # Exporters drop a bias that is zero, and layers in front of a BatchNorm have none.
    step.weights.setdefault("bias", np.zeros(units, step.weights["weight"].dtype))


def _fold_epsilon(name: str, step: Step) -> list[str]:
    """Turn another epsilon into PyTorch's, and say so: only its sum with the variance counts."""
    difference = step.epsilon - _TORCH_EPSILON
    if np.float32(step.epsilon) == np.float32(_TORCH_EPSILON):
        return []
    variance = step.weights["running_var"]
    with np.errstate(over="ignore"):
        folded = (variance.astype(np.float64) + difference).astype(variance.dtype)
    if not (np.isfinite(folded) & (folded > 0)).all():
        raise SourceError(
            f"{name} has epsilon {step.epsilon:g} at node {step.node!r}, and variances too "
            f"small to make it PyTorch's {_TORCH_EPSILON:g}"
        )
    step.weights["running_var"] = folded
    return [f"node {step.node!r} has epsilon {step.epsilon:g}: running_var took the difference in"]


def _head(
    arch: str, steps: list[Step], with_pool5: bool
) -> tuple[dict[str, Step], dict[str, np.ndarray]]:
    """The head's steps by the paper's names, and its weights; both empty for a head not ours.

    Ours are VGG's classifier, and a GAP head on pool5 or on one convolution in its place.
    """
    end = next((i for i, step in enumerate(steps) if step.kind == "softmax"), len(steps))
    found = [step for step in steps[: end + 1] if step.kind not in _REARRANGED]
    order = next((step.layout[1:] for step in steps if step.kind == "flatten"), "CHW")
    heads = [VGGConfig.gap(arch, num_classes=1, channels=None if with_pool5 else 1).head]
    if with_pool5:
        heads.append(classifier_layers())
    for layers in heads:
        layers = [layer for layer in layers if layer.kind in _WEIGHTED]
        for expected in (layers, layers[:-1]):
            if len(expected) == len(found) and (weights := _weights(expected, found, order)):
                named = zip(expected, found, strict=True)
                return {layer.name: step for layer, step in named}, weights
    return {}, {}


def _weights(layers: list[Layer], steps: list[Step], order: str) -> dict[str, np.ndarray]:
    """The weights of steps that are these layers, the last linear one of any width; else none."""
    state: dict[str, np.ndarray] = {}
    width = None  # of a convolution that may have any
    for layer, step in zip(layers, steps, strict=True):
        kind = "linear" if step.kind == "conv" and layer.kind == "linear" else step.kind
        if kind != layer.kind:
            return {}
        if layer.kind not in ("conv", "linear"):
            continue
        if layer.kind == "conv":
            weight: np.ndarray | None = step.weights["weight"]
            if step.window != _WINDOWS["conv"] or weight.shape[1] != layer.inputs:
                return {}
            width = len(weight)
        else:
            if width is not None:
                layer = dataclasses.replace(layer, inputs=width)
            weight = _torch_layout(layer, step, order)
            if weight is None:
                return {}
        _fill_bias(step, len(weight))
        state |= {f"{layer.torch}.weight": weight, f"{layer.torch}.bias": step.weights["bias"]}
    return state


def _torch_layout(layer: Layer, step: Step, order: str) -> np.ndarray | None:
    """A view of a linear layer's weight with PyTorch's axes; None where it is not that layer."""
    weight, k = step.weights["weight"], layer.kernel
    units = {"C": layer.inputs, "H": k, "W": k}
    if step.kind == "conv":
        fits = step.window == Window((k, k)) and weight.shape[1] == layer.inputs
        weight = weight if k > 1 else weight.reshape(len(weight), -1)
    else:
        fits = len(weight) == layer.inputs * k * k
        if fits and k > 1 and order != "CHW":
            weight = weight.reshape(*(units[axis] for axis in order), -1)
            weight = weight.transpose(3, *map(order.index, "CHW"))
        else:
            weight = weight.T
    last = layer.name in ("fc8", "fc")
    return weight if fits and (last or len(weight) == layer.outputs) else None


def _describe(steps: list[Step]) -> str:
    """A head in short: its widths, and whatever is no plain layer of a classifier."""
    shapes = [step.weights["weight"].shape for step in steps if step.kind == "linear"]
    if not shapes:
        return f"({', '.join(step.kind for step in steps[:4])})"
    sizes = "-".join(str(n) for n in [shapes[0][0], *(outputs for _, outputs in shapes)])
    plain = (*_WEIGHTED, "batch_norm", "BatchNormalization", "Mul", "Add", *_REARRANGED)
    others = dict.fromkeys(step.kind for step in steps if step.kind not in plain)
    return f"{sizes} with {', '.join(others)}" if others else sizes
