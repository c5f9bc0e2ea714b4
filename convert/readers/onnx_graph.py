"""An ONNX graph as a sequence of layers: what was computed, with which weights, in which layout.

The graph is walked from its input, so no tensor's name is relied on, and what exporters put between
the layers (Transpose, Cast, Identity, a bias as an Add, shapes computed at run time) is absorbed.
Nothing here knows VGG: an operator that is no layer of `flaxvgg.config` keeps its own name.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convert.source import SourceError
from flaxvgg.config import POOLED_SIZE

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_SIDE_COMPUTATIONS = ("Shape", "Size")  # they look at a tensor and leave it alone
_ELEMENTWISE = (
    *("Add", "Mul", "Sub", "Div", "Clip", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "LogSoftmax"),
    "GlobalAveragePool",
)  # no layers of ours, but they leave the layout as it was
# What exporters leave between a weight and its layer: no results larger than what goes in.
_FOLDED = (
    *("Identity", "Constant", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten"),
    *("Concat", "Slice", "Gather", "Shape", "Add", "Sub", "Mul", "Div"),
)
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


# What ONNX's reference implementation raises for inputs that do not fit, or for too many in a row.
_MISCALCULATIONS = (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, MemoryError)


class Window(NamedTuple):
    """How a convolution or pooling slides; with `rounds_up` its last window may hang over."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    groups: int = 1
    rounds_up: bool = False

    def differences(self, other: "Window") -> str:
        """What differs, in words: `pads (0, 0, 0, 0), not (1, 1, 1, 1)`."""
        pairs = zip(self._fields, self, other, strict=True)
        return ", ".join(f"{name} {mine}, not {its}" for name, mine, its in pairs if mine != its)


@dataclasses.dataclass
class Step:
    """One layer met on the walk.

    `kind` is a `flaxvgg.config.Kind`, or the ONNX operator where there is no such layer. `layout`
    names the axes of the output `tensor`: NCHW, NHWC, NU for units, or "" where it is unknown; for
    a flattening it is the layout before. `weights` have PyTorch's names; those of a linear layer
    are (inputs, outputs).
    """

    kind: str
    node: str
    tensor: str
    layout: str
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    window: Window | None = None
    epsilon: float = 1e-5


class Graph:
    """The graph of a file, with the lookups that a walk needs.

    `layout` is that of the input, and `size` its height and width (0 where they are not fixed).
    Raises SourceError for a file that is no ONNX, and for an input that is not one RGB image batch.
    """

    def __init__(self, path: Path):
        model = load_model(path)
        self.name = path.name
        self.opsets = model.opset_import
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        self.constants = set(self.initializers)
        self.folded: list[NodeProto] = []  # what gives constants, each after those that it takes
        for node in model.graph.node:  # ONNX keeps nodes in topological order
            for name in set(node.input):
                self.consumers[name].append(node)
            used = filter(None, node.input)
            if node.op_type in _FOLDED and self.constants.issuperset(used):
                self.constants.update(node.output)
                self.folded.append(node)
        inputs = [value for value in model.graph.input if value.name not in self.initializers]
        shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            found = ", ".join(value.name for value in inputs) or "none"
            raise SourceError(
                f"{path.name} must have one input of RGB images, (N, 3, H, W) or (N, H, W, 3); its "
                f"inputs: {found}, shape of the first: {shape}"
            )
        self.input = inputs[0].name
        self.layout = "NCHW" if shape[1] == 3 else "NHWC"
        self.size = [shape[self.layout.index(axis)] for axis in "HW"]

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a tensor, or None where it depends on the image."""
        if name not in self.constants:
            return None
        # Exporters share weights through Identity, and leave Transpose, Cast and Constant nodes.
        # A chain of them may be of any length, and one of them be used many times.
        needed, nodes = {name}, []
        for node in reversed(self.folded):
            if not needed.isdisjoint(node.output):
                needed.update(filter(None, node.input))
                nodes.append(node)
        values = {used: self._initializer(used) for used in needed if used in self.initializers}
        for node in reversed(nodes):
            for output in needed.intersection(node.output) - values.keys():
                values[output] = self._result(node, output, values)
        return values[name]

    def _initializer(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        tensor = self.initializers[name]
        try:
            array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise SourceError(f"{self.name}: tensor {name!r} is damaged: {error}") from None
        if array.shape != tuple(tensor.dims):  # one with -1 is filled in
            raise SourceError(f"{self.name}: tensor {name!r} has the shape {list(tensor.dims)}")
        return array

    def _result(self, node: "NodeProto", name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """An output of one node, whose inputs are among the values."""
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        feeds = {used: values[used] for used in node.input if used}
        inputs = [helper.make_empty_tensor_value_info(used) for used in feeds]
        outputs = [helper.make_empty_tensor_value_info(name)]
        graph = helper.make_graph([node], "constant", inputs, outputs)
        model = helper.make_model(graph, opset_imports=self.opsets)
        try:
            (value,) = ReferenceEvaluator(model).run([name], feeds)
        except _MISCALCULATIONS as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise SourceError(f"{self.name}: node {node.name or name!r} fails: {why}") from None
        return np.asarray(value)

    def named_constants(self, node: "NodeProto", names: Iterable[str]) -> dict[str, np.ndarray]:
        """The constant inputs of a node after its first, under these names."""
        arrays = {k: self.constant(used) for k, used in zip(names, node.input[1:], strict=False)}
        return {name: array for name, array in arrays.items() if array is not None}


def load_model(path: Path) -> "ModelProto":
    """The ONNX model of a file, with its external data. Raises SourceError where there is none."""
    import onnx
    import onnx.inliner
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist") from None
    except DecodeError:
        raise SourceError(
            f"{path.name} is no ONNX file, or is cut short: download or export it again"
        ) from None
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        why = str(error).splitlines()[0]
        raise SourceError(
            f"{path.name} keeps its weights in a second file, which must lie beside it: {why}"
        ) from None
    if not model.graph.node:
        raise SourceError(f"{path.name} holds no ONNX graph: download or export it again")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _check_nodes(path, model)
    return model


def _check_nodes(path: Path, model: "ModelProto") -> None:
    """Raise SourceError where ONNX's checker objects to the nodes; so none is in a cycle."""
    from onnx import TensorProto, checker, helper

    graph = model.graph
    # Weights stand in as inputs: the checker would copy their bytes.
    try:
        inputs = {value.name for value in graph.input}
        weights = [
            helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
            for tensor in graph.initializer
            if tensor.name not in inputs
        ]
        nodes = helper.make_graph(graph.node, "nodes", [*graph.input, *weights], [])
        opsets, version = model.opset_import, model.ir_version
        checker.check_model(helper.make_model(nodes, opset_imports=opsets, ir_version=version))
    except (checker.ValidationError, ValueError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise SourceError(f"{path.name} is no valid ONNX graph: {why}") from None


def walk(graph: Graph) -> list[Step]:
    """The layers from the input on, to where the graph ends or splits."""
    steps: list[Step] = []
    tensor, layout, size, pads = graph.input, graph.layout, graph.size, (0, 0, 0, 0)
    while nodes := [n for n in graph.consumers[tensor] if n.op_type not in _SIDE_COMPUTATIONS]:
        node = nodes[0]
        if len(nodes) > 1:
            ops = " and ".join(node.op_type for node in nodes)
            steps.append(Step(f"a split into {ops}", node.name or tensor, tensor, layout))
            break
        source, tensor = tensor, node.output[0]
        attributes = _attributes(node)
        step = Step(node.op_type, node.name or tensor, tensor, layout)
        match node.op_type:
            case "Identity" | "Cast" | "Dropout":
                continue
            case "Transpose":
                order = list(attributes.get("perm", range(len(layout))[::-1]))
                if sorted(order) != list(range(len(layout))):
                    layout = ""
                layout = layout and "".join(layout[axis] for axis in order)
                continue
            case "Pad" if wider := _padding(graph, node, layout):
                pads = tuple(map(add, pads, wider))
                continue
            case "Add" if steps and _take_bias(graph, node, steps[-1], layout):
                steps[-1].tensor, steps[-1].layout = tensor, layout
                continue
            case "Flatten" | "Reshape" | "Squeeze" if _flattens(graph, node, attributes):
                if layout == "NU":
                    continue
                step.kind, layout = "flatten", "NU"
            case "Conv" if layout == "NCHW":
                step.weights = graph.named_constants(node, ("weight", "bias"))
                if "weight" in step.weights:
                    step.kind = "conv"
                    kernel = step.weights["weight"].shape[2:]
                    step.window, pads = _window(attributes, kernel, pads, size), (0, 0, 0, 0)
            case "MaxPool" | "AveragePool" if layout == "NCHW":
                window = _window(attributes, attributes["kernel_shape"], pads, size)
                step.window, pads = window, (0, 0, 0, 0)
                if node.op_type == "MaxPool":
                    step.kind = "max_pool"
                elif _is_adaptive(window, size):
                    step.kind = "avg_pool"
                size = [length // s for length, s in zip(size, window.strides, strict=True)]
            case "BatchNormalization" if layout.startswith("NC"):
                step.weights = graph.named_constants(node, _BATCH_NORM)
                step.epsilon = attributes.get("epsilon", step.epsilon)
                if len(step.weights) == 4 and not attributes.get("training_mode", 0):
                    step.kind = "batch_norm"
            case "Gemm" | "MatMul" if layout == "NU" and node.input[0] == source:
                step.weights = _linear(graph, node, attributes)
                step.kind = "linear" if step.weights else node.op_type
            case "Relu" | "Softmax":
                step.kind = node.op_type.lower()
            case op if op not in _ELEMENTWISE:
                layout = ""
        if any(pads):
            step.kind = f"a padded {step.kind}"
        steps.append(step)
    return steps


def _attributes(node: "NodeProto") -> dict[str, Any]:
    from onnx.helper import get_attribute_value

    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}


def _linear(graph: Graph, node: "NodeProto", attributes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weight (inputs, outputs) and bias of a product with a matrix; empty where it is no such."""
    found = graph.named_constants(node, ("weight", "bias"))
    if "weight" not in found or found["weight"].ndim != 2 or attributes.get("transA", 0):
        return {}
    if attributes.get("transB", 0):
        found["weight"] = found["weight"].T
    if "bias" in found:
        found["bias"] = np.broadcast_to(found["bias"].reshape(-1), found["weight"].shape[1])
    for name, factor in (("weight", "alpha"), ("bias", "beta")):
        if name in found and (scale := attributes.get(factor, 1.0)) != 1:
            found[name] = found[name] * found[name].dtype.type(scale)
    return found


def _take_bias(graph: Graph, node: "NodeProto", step: Step, layout: str) -> bool:
    """Whether an Add is the bias of the layer before it, which then has it."""
    values = [value for name in node.input if (value := graph.constant(name)) is not None]
    if step.kind not in ("conv", "linear") or "bias" in step.weights or not values:
        return False
    units = step.weights["weight"].shape[0 if step.kind == "conv" else 1]
    expected = tuple(units if axis in "CU" else 1 for axis in layout)
    shape = values[0].shape
    if (1,) * (len(expected) - len(shape)) + shape != expected:
        return False
    step.weights["bias"] = values[0].reshape(-1)
    return True


def _flattens(graph: Graph, node: "NodeProto", attributes: dict[str, Any]) -> bool:
    """Whether a node makes (N, units) of maps; a shape computed at run time is taken for that."""
    if node.op_type == "Flatten":
        return attributes.get("axis", 1) in (1, -3)
    shape = graph.constant(node.input[1]) if len(node.input) > 1 else None
    return node.op_type == "Squeeze" or shape is None or len(shape) == 2


def _padding(graph: Graph, node: "NodeProto", layout: str) -> tuple[int, ...] | None:
    """(top, left, bottom, right) of a Pad with zeros in space; None for any other Pad."""
    attributes = _attributes(node)
    given, value, axes = ([graph.constant(name) for name in node.input[1:]] + [None] * 3)[:3]
    pads = attributes.get("pads", given)
    value = attributes.get("value", 0.0) if value is None else value
    if pads is None or np.any(value) or attributes.get("mode", b"constant") != b"constant":
        return None
    before, after = np.split(np.asarray(pads), 2)
    names = layout if axes is None else [layout[axis] for axis in axes.tolist()]
    found = {n: (int(b), int(a)) for n, b, a in zip(names, before, after, strict=True)}
    (top, bottom), (left, right) = found.pop("H", (0, 0)), found.pop("W", (0, 0))
    return None if np.any(list(found.values())) else (top, left, bottom, right)


def _window(
    attributes: dict[str, Any], kernel: Iterable[int], pads: Iterable[int], size: list[int]
) -> Window:
    """The window of a Conv or pooling node behind a padding, for images of that size (0: any)."""
    kernel = tuple(kernel)
    strides = tuple(attributes.get("strides", (1, 1)))
    dilations = tuple(attributes.get("dilations", (1, 1)))
    lengths = [length or 1 for length in size]  # of any size: the odd ones are those that matter
    own = attributes.get("pads", (0, 0, 0, 0))
    if attributes.get("auto_pad", b"NOTSET").startswith(b"SAME"):
        spans = [
            max(-(-n // s) * s - s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(lengths, kernel, strides, dilations, strict=True)
        ]
        own = [span // 2 for span in spans] + [span - span // 2 for span in spans]
    hangs_over = any((n - k) % s for n, k, s in zip(lengths, kernel, strides, strict=True))
    rounds_up = bool(attributes.get("ceil_mode", 0)) and hangs_over
    pads = tuple(map(add, own, pads))
    return Window(kernel, strides, pads, dilations, attributes.get("group", 1), rounds_up)


def _is_adaptive(window: Window, size: list[int]) -> bool:
    """Whether an average pooling is what torchvision's adaptive one is for this size of map."""
    tiles = window == Window(window.kernel, strides=window.kernel)
    return tiles and (window.kernel == (1, 1) or size == [POOLED_SIZE * k for k in window.kernel])
