"""The nodes of an ONNX graph before its first convolution, where they compute colours from colours.

Such nodes may branch and join again, as channels that are taken apart and put together do; the
first node that does anything else is where the layers begin (`onnx_graph.walk`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flaxvgg.conversion.readers.front import ChannelMap, Front, numbers, stacked

if TYPE_CHECKING:
    from onnx import NodeProto

    from flaxvgg.conversion.readers.onnx_graph import Graph

_FLOATS = (1, 10, 11, 16)  # TensorProto's float32, float16, float64 and bfloat16


class _Pixels(NamedTuple):
    """A tensor of images: what its channels are, the order of its axes, and whether in floats."""

    map: ChannelMap
    layout: str
    floats: bool


def read_front(graph: "Graph") -> tuple[Front, str, str]:
    """What is done before the first layer; the tensor that it makes, and the layout of that."""
    start = _Pixels(ChannelMap.identity(3), graph.layout, graph.input_type in _FLOATS)
    found, used, last = {graph.input: start}, [], graph.input
    for node in graph.nodes:
        if not any(name in found for name in node.input):
            continue
        with np.errstate(all="ignore"):  # numbers that are no recipe's are refused as such
            outputs = _outputs(graph, node, found)
        if outputs is None:
            # The first layer is behind what was computed last, or takes the images as they are.
            last = next(name for name in node.input if name in found)
            break
        found |= outputs
        if node.op_type not in ("Identity", "Cast", "Dropout", "Transpose", "Shape", "Size"):
            used.append(node.op_type)
    pixels = found[last]
    return Front(graph.name, tuple(dict.fromkeys(used)), pixels.map), last, pixels.layout


def _outputs(
    graph: "Graph", node: "NodeProto", found: dict[str, _Pixels]
) -> dict[str, _Pixels] | None:
    """The outputs of a node on images; None where they are none computed pixel by pixel."""
    from flaxvgg.conversion.readers.onnx_graph import attributes_of

    pixels = [found[name] for name in node.input if name in found]
    first = pixels[0]
    attributes, axis = attributes_of(node), first.layout.index("C")
    changed: ChannelMap | None = None
    match node.op_type:
        case "Shape" | "Size":
            return {}
        case "Identity" | "Dropout":
            changed = first.map
        case "Cast":
            floats = attributes.get("to") in _FLOATS
            if not floats and first.floats:
                return None  # it rounds
            return {node.output[0]: first._replace(floats=floats)}
        case "Transpose":
            order = list(attributes.get("perm", (3, 2, 1, 0)))
            if sorted(order) != [0, 1, 2, 3]:
                return None
            layout = "".join(first.layout[i] for i in order)
            return {node.output[0]: first._replace(layout=layout)}
        case "Add" | "Sub" | "Mul" | "Div" | "Neg" if first.floats:
            changed = _arithmetic(graph, node, found, axis)
        case "Gather" if node.input[0] in found and attributes.get("axis", 0) in (axis, axis - 4):
            indices = graph.constant(node.input[1])
            if indices is not None and indices.ndim == 1 and _within(indices, first.map):
                changed = first.map.picked(indices.tolist())
        case "Slice" if (part := _slice(graph, node, attributes, axis)) is not None:
            changed = first.map.picked(part)
        case "Split" if attributes.get("axis", 0) in (axis, axis - 4):
            return _split(graph, node, attributes, first)
        case "Concat" if attributes.get("axis", 0) in (axis, axis - 4):
            alike = {(other.layout, other.floats) for other in pixels}
            if len(pixels) == len(node.input) and len(alike) == 1:
                changed = stacked([found[name].map for name in node.input])
        case "BatchNormalization" if axis == 1 and not attributes.get("training_mode", 0):
            changed = _batch_norm(graph, node, attributes, first.map)
        case "Conv" if axis == 1:
            changed = _mixture(graph, node, attributes, first.map)
    return None if changed is None else {node.output[0]: first._replace(map=changed)}


def _arithmetic(
    graph: "Graph", node: "NodeProto", found: dict[str, _Pixels], axis: int
) -> ChannelMap | None:
    if node.op_type == "Neg":
        return found[node.input[0]].map.scaled(-1.0)
    a, b = (found.get(name) for name in node.input)
    if a is not None and b is not None:
        signs = {"Add": 1.0, "Sub": -1.0}
        if node.op_type not in signs or a.layout != b.layout:
            return None
        return a.map.plus(b.map, signs[node.op_type])
    pixels = a or b
    if pixels is None:
        return None
    colours = pixels.map
    other = graph.constant(node.input[1 if a else 0])
    value = None if other is None else _channels(other, axis)
    if value is None:
        return None
    match node.op_type:
        case "Add":
            return colours.scaled(1.0, value)
        case "Mul":
            return colours.scaled(value)
        case "Sub":
            return colours.scaled(1.0, -value) if a else colours.scaled(-1.0, value)
        case "Div" if a and value.all():
            return colours.scaled(1 / value)
    return None


def _channels(array: np.ndarray, axis: int) -> np.ndarray | None:
    """The values of an array that has others along the axis of the channels only."""
    if array.ndim > 4:
        return None
    shape = (1,) * (4 - array.ndim) + array.shape
    if any(n != 1 for i, n in enumerate(shape) if i != axis):
        return None
    return numbers(array.reshape(-1))


def _within(indices: np.ndarray, colours: ChannelMap) -> bool:
    n = len(colours.offset)
    return (
        indices.dtype.kind in "iu"
        and bool(indices.size)
        and bool(((indices >= -n) & (indices < n)).all())
    )


def _slice(
    graph: "Graph", node: "NodeProto", attributes: dict[str, Any], axis: int
) -> slice | None:
    """The part of the channels that a Slice takes; None where it cuts anything else."""
    given = [graph.constant(name) for name in node.input[1:]]
    names = ("starts", "ends", "axes", "steps")
    found: dict[str, Sequence[int]] = {
        name: np.ravel(value).tolist()
        for name, value in zip(names, given, strict=False)
        if value is not None
    }
    found |= {name: attributes[name] for name in names if name in attributes}
    if len(found.get("starts", ())) != 1 or len(found.get("ends", ())) != 1:
        return None
    if list(found.get("axes", (0,))) not in ([axis], [axis - 4]):
        return None
    if any(type(n) is not int for part in found.values() for n in part):
        return None
    (start,), (stop,), (step,) = found["starts"], found["ends"], found.get("steps", (1,))
    if step < 0 and stop < -(1 << 30):
        stop = None  # past the first channel
    return slice(start, stop, step) if step else None


def _split(
    graph: "Graph", node: "NodeProto", attributes: dict[str, Any], pixels: _Pixels
) -> dict[str, _Pixels] | None:
    n = len(pixels.map.offset)
    sizes = attributes.get("split")
    if sizes is None and len(node.input) > 1:
        sizes = graph.constant(node.input[1])
    if sizes is None:
        sizes = [n // len(node.output)] * len(node.output)
    sizes = [int(size) for size in np.ravel(sizes)]
    if sum(sizes) != n or min(sizes) < 1 or len(sizes) != len(node.output):
        return None
    ends = np.cumsum(sizes).tolist()
    return {
        name: pixels._replace(map=pixels.map.picked(slice(end - size, end)))
        for name, size, end in zip(node.output, sizes, ends, strict=True)
    }


def _batch_norm(
    graph: "Graph", node: "NodeProto", attributes: dict[str, Any], colours: ChannelMap
) -> ChannelMap | None:
    given = [graph.constant(name) for name in node.input[1:5]]
    known = [x.astype(np.float64) for x in given if x is not None]
    if len(known) < 4 or any(x.shape != colours.offset.shape for x in known):
        return None
    weight, bias, mean, variance = known
    spread = variance + attributes.get("epsilon", 1e-5)
    if not (spread > 0).all():
        return None
    scale = weight / np.sqrt(spread)
    return colours.scaled(scale, bias - mean * scale)


def _mixture(
    graph: "Graph", node: "NodeProto", attributes: dict[str, Any], colours: ChannelMap
) -> ChannelMap | None:
    """What a 1x1 convolution makes of the channels; None for any other convolution."""
    kernel, bias = ([graph.constant(name) for name in node.input[1:]] + [None])[:2]
    n = len(colours.offset)
    plain = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
    if kernel is None or kernel.shape[1:] != (n, 1, 1) or (bias is None and len(node.input) > 2):
        return None
    if any(attributes.get(name, value) != value for name, value in plain.items()):
        return None
    added = np.zeros(len(kernel)) if bias is None else bias.astype(np.float64)
    if added.shape != kernel.shape[:1]:
        return None
    return colours.mixed(kernel[:, :, 0, 0].astype(np.float64), added)
