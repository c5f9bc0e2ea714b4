"""A Keras model as what it does to the colours, and the layers behind that, in order."""

from collections import defaultdict
from operator import add
from typing import Any

import numpy as np

from flaxvgg.conversion.readers.front import ChannelMap, Front
from flaxvgg.conversion.readers.keras_front import AUGMENTATION, colours_of, is_idle, is_training
from flaxvgg.conversion.readers.keras_graph import Call, KerasGraph, Tensor
from flaxvgg.conversion.readers.keras_weights import Weights
from flaxvgg.conversion.readers.steps import Step, Window, is_adaptive, pooled, slide
from flaxvgg.conversion.source_weights import SourceError

_PLAIN_RELU = {"max_value": None, "negative_slope": 0, "threshold": 0}
_NO_PADS = (0, 0, 0, 0)
_MOST_CHANNELS = 64  # of an image; what says more is no image, and takes no memory for it


def read_model(graph: KerasGraph, weights: Weights) -> tuple[Front, list[Step], list[str]]:
    """The front, the steps and what was passed over, from the input that has most convolutions.

    Raises SourceError where two inputs have as many, after different layers.
    """
    walks = [_from_input(graph, weights, image) for image in graph.inputs]
    if not walks:
        raise SourceError(f"{weights.file} has a configuration without an input")
    counts = [sum(step.kind == "conv" for step in steps) for _, steps, _ in walks]
    best = max(range(len(walks)), key=counts.__getitem__)
    front = walks[best][0]
    for (other, _, _), count in zip(walks, counts, strict=True):
        same = (other.map.matrix == front.map.matrix).all() if _alike(other, front) else False
        if count == counts[best] and not (same and (other.map.offset == front.map.offset).all()):
            raise SourceError(f"{weights.file} has {len(walks)} inputs: save the network of one")
    return walks[best]


def _alike(a: Front, b: Front) -> bool:
    return a.map.matrix.shape == b.map.matrix.shape


def _from_input(
    graph: KerasGraph, weights: Weights, image: Tensor
) -> tuple[Front, list[Step], list[str]]:
    formats = [call.config.get("data_format") for call in graph.calls if call.kind == "Conv2D"]
    last = "channels_first" not in formats
    shape = graph.inputs[image]
    fixed = [n if isinstance(n, int) else 0 for n in shape] if len(shape) == 4 else [0] * 4
    channels, size = (fixed[3], fixed[1:3]) if last else (fixed[1], fixed[2:])
    maps = {image: ChannelMap.identity(channels if 0 < channels <= _MOST_CHANNELS else 3)}
    used: list[str] = []
    idle: list[str] = []
    start = image
    for call in graph.calls:
        inputs = call.inputs
        if not any(tensor in maps for tensor in inputs):
            continue
        found = None
        if all(tensor in maps for tensor in inputs):
            with np.errstate(all="ignore"):  # numbers that are no recipe's are refused as such
                found = colours_of(call, maps, weights, size, last)
        if found is None:
            start = next(tensor for tensor in inputs if tensor in maps)
            break
        maps[call.output] = found
        if not is_idle(call):
            used.append(f"{call.layer} ({_operation_name(call)})")
        elif call.kind in AUGMENTATION:
            idle.append(call.layer)
    notes = []
    if idle:
        notes.append(f"{', '.join(idle)}: augmentation, which does nothing at inference")
    front = Front(weights.file, tuple(used), maps[start])
    return front, walk(graph, weights, start, "NHWC" if last else "NCHW", size), notes


def _operation_name(call: Call) -> str:
    return str(call.config.get("function", call.kind))


def walk(
    graph: KerasGraph, weights: Weights, tensor: Tensor, layout: str, size: list[int]
) -> list[Step]:
    """The layers from a tensor on, to where the model ends or splits."""
    consumers: dict[Tensor, list[Call]] = defaultdict(list)
    for call in graph.calls:
        for used in dict.fromkeys(call.inputs):
            consumers[used].append(call)
    steps: list[Step] = []
    pads: tuple[int, ...] = _NO_PADS
    while calls := consumers[tensor]:
        call = calls[0]
        if len(calls) > 1 or len(call.inputs) > 1:
            what = "split into" if len(calls) > 1 else "junction in"
            kinds = " and ".join(call.kind for call in calls)
            steps.append(Step(f"a {what} {kinds}", call.layer, "", layout))
            break
        tensor = call.output
        if is_idle(call):
            continue
        if call.kind == "ZeroPadding2D" and (wider := _padding(call)):
            pads = tuple(map(add, pads, wider))
            continue
        if call.kind == "Flatten" and layout == "NU":
            continue
        step, layout = _step(call, weights, layout, size, pads)
        if step.window:
            pads = _NO_PADS
        if step.kind == "max_pool" and step.window:
            size = pooled(size, step.window)
        if any(pads):
            step.kind = f"a padded {step.kind}"
        steps.append(step)
        activation = call.config.get("activation")
        if call.kind != "Activation" and (kind := _activation(activation)):
            steps.append(Step(kind, call.layer, "", layout))
    return steps


def _step(
    call: Call, weights: Weights, layout: str, size: list[int], pads: tuple[int, ...]
) -> tuple[Step, str]:
    """A call as a step, and the layout behind it."""
    config = call.config
    step = Step(call.kind, call.layer, "", layout)
    if is_training(call):
        step.kind = f"{call.kind} with training=True"
        return step, layout
    right = config.get("data_format") in (
        None,
        {"NHWC": "channels_last", "NCHW": "channels_first"}.get(layout),
    )
    match call.kind:
        case "Conv2D" if right and len(layout) == 4:
            step.weights = weights.kernel_and_bias(call)
            kernel = step.weights["weight"]
            if kernel.ndim == 4:
                step.weights["weight"] = kernel.transpose(3, 2, 0, 1)
                step.kind = "conv"
                step.window = _window(config, kernel.shape[:2], pads, size)
        case "MaxPooling2D" | "AveragePooling2D" if right and len(layout) == 4:
            step.window = _window(config, _pair(config.get("pool_size", 2)), pads, size, pool=True)
            if call.kind == "MaxPooling2D":
                step.kind = "max_pool"
            elif is_adaptive(step.window, size):
                step.kind = "avg_pool"
        case "BatchNormalization":
            axis = config.get("axis", -1)
            axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
            if axis in ((-1, 3) if layout == "NHWC" else (1, -3)):
                step.kind, step.weights = "batch_norm", weights.batch_norm(call)
                step.epsilon = weights.epsilon(call)
        case "GlobalAveragePooling2D" if right:
            step.kind = "global_avg_pool"
            layout = layout if config.get("keepdims") else "NU"
        case "Flatten" | "Reshape":
            if (order := _flattening(call, layout)) is not None:
                step.kind, step.layout, layout = "flatten", order, "NU"
        case "Dense" if layout == "NU":
            step.kind, step.weights = "linear", weights.kernel_and_bias(call)
            if step.weights["weight"].ndim != 2:
                step.kind, step.weights = call.kind, {}
        case "ReLU":
            step.kind = _relu(config)
        case "Softmax" if config.get("axis", -1) == -1:
            step.kind = "softmax"
        case "Activation":
            step.kind = _activation(config.get("activation")) or call.kind
    return step, layout


def _flattening(call: Call, layout: str) -> str | None:
    """The order of axes that is flattened, with the batch; None for what does not flatten."""
    if len(layout) != 4:
        return None
    if call.kind == "Reshape":
        shape = call.config.get("target_shape")
        return layout if isinstance(shape, list) and len(shape) == 1 else None
    if call.config.get("data_format") != "channels_first":
        return layout
    return "NHWC" if layout == "NCHW" else None  # Keras moves the channels to the end first


def _pair(value: Any) -> tuple[int, ...]:
    """A number, or one for each of height and width; () for anything else."""
    values = [value, value] if isinstance(value, int) else value
    if not isinstance(values, list | tuple) or len(values) != 2:
        return ()
    return tuple(values) if all(isinstance(n, int) and n > 0 for n in values) else ()


def _window(
    config: dict[str, Any], kernel: tuple[int, ...], pads: Any, size: list[int], pool: bool = False
) -> Window | None:
    """How a layer slides; None where its configuration does not say."""
    strides = config.get("strides") or (kernel if pool else 1)
    settings = {"strides": _pair(strides), "dilations": _pair(config.get("dilation_rate", 1))}
    if len(kernel) != 2 or not all(settings.values()):
        return Window(())
    same = config.get("padding") == "same"
    groups = config.get("groups", 1)
    return slide(
        settings | {"auto_pad": b"SAME" if same else b"VALID", "group": groups}, kernel, pads, size
    )


def _padding(call: Call) -> tuple[int, ...] | None:
    """(top, left, bottom, right) of a ZeroPadding2D; None where that is none of Keras's."""
    given = call.config.get("padding", 1)
    if isinstance(given, list) and len(given) == 2:
        rows, columns = map(_two, given)
    else:
        rows = columns = _two(given) if isinstance(given, int) else None
    if rows is None or columns is None:
        return None
    return rows[0], columns[0], rows[1], columns[1]


def _two(value: Any) -> tuple[int, int] | None:
    """A padding of two sides, none negative: one number for both, or one each; None for others."""
    match [value, value] if isinstance(value, int) else value:
        case [int(first), int(second)] if first >= 0 and second >= 0:
            return first, second
    return None


def _relu(config: dict[str, Any]) -> str:
    different = [f"{k} {config[k]}" for k, v in _PLAIN_RELU.items() if (config.get(k) or v) != v]
    return f"ReLU with {', '.join(different)}" if different else "relu"


def _activation(value: Any) -> str:
    """The kind of an activation, by its name or as Keras writes functions and layers."""
    if isinstance(value, dict):
        kind, inner = str(value.get("class_name")), value.get("config")
        if kind == "ReLU" and isinstance(inner, dict):
            return _relu(inner)
        value = inner if isinstance(inner, str) else kind
    return "" if value in (None, "linear") else str(value)
