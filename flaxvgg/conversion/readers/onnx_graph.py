"""An ONNX graph as a sequence of layers: what was computed, with which weights, in which layout.

The graph is walked from its input, so no tensor's name is relied on, and what exporters put between
the layers (Transpose, Cast, Identity, a bias as an Add, shapes computed at run time) is absorbed.
Nothing here knows VGG: an operator that is no layer of `flaxvgg.network.config` keeps its own name.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxvgg.conversion.readers.steps import Step, is_adaptive, pooled, slide
from flaxvgg.conversion.source_weights import SourceError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_SIDE_COMPUTATIONS = ("Shape", "Size")  # they look at a tensor and leave it alone
_ELEMENTWISE = (
    *("Add", "Mul", "Sub", "Div", "Clip", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "LogSoftmax"),
)  # no layers of ours, but they leave the layout as it was
# What exporters leave between a weight and its layer: no results larger than what goes in.
_FOLDED = (
    *("Identity", "Constant", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten"),
    *("Concat", "Slice", "Gather", "Shape", "Add", "Sub", "Mul", "Div"),
    "DequantizeLinear",  # of weights that are kept in 8 bits
)
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


# What ONNX's reference implementation raises for inputs that do not fit, or for too many in a row.
_MISCALCULATIONS = (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, MemoryError)


class Graph:
    """The graph of a file, with the lookups that a walk needs.

    `layout` is that of the input, and `size` its height and width (0 where they are not fixed).
    Raises SourceError for a file that is no ONNX, and for an input that is not one RGB image batch.
    """

    def __init__(self, path: Path):
        model = load_model(path)
        self.name = path.name
        self.opsets = model.opset_import
        self.nodes = model.graph.node
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
        self.dequantised = sum(
            node.op_type == "DequantizeLinear" and node.output[0] in self.constants
            for node in model.graph.node
        )
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
        self.input_type = inputs[0].type.tensor_type.elem_type

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

        if node.op_type == "DequantizeLinear":
            return self._dequantised(node, values)
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

    def _dequantised(self, node: "NodeProto", values: Mapping[str, np.ndarray]) -> np.ndarray:
        """(whole numbers - zero point) * scale, as ONNX defines it; one scale, or one a channel."""
        kept, scale, zero = ([values.get(used) for used in node.input] + [None])[:3]
        axis = attributes_of(node).get("axis", 1)
        if kept is None or scale is None:
            raise SourceError(f"{self.name}: node {node.name!r} has no scale")
        try:
            if scale.ndim == 1 and -kept.ndim <= axis < kept.ndim:
                shape = [1] * kept.ndim
                shape[axis] = -1
                scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
            shifted = kept.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
            found = (shifted.astype(scale.dtype) * scale).astype(scale.dtype)
        except (ValueError, TypeError) as error:
            raise SourceError(f"{self.name}: node {node.name!r} fails: {error}") from None
        if found.shape != kept.shape:
            raise SourceError(f"{self.name}: node {node.name!r} has scales of {scale.shape}")
        return found

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
            f"{path.name} keeps its weights in a second file, which must be beside it: {why}"
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


def walk(graph: Graph, tensor: str, layout: str) -> list[Step]:
    """The layers from a tensor of that layout on, to where the graph ends or splits."""
    steps: list[Step] = []
    size, pads = graph.size, (0, 0, 0, 0)
    while nodes := [n for n in graph.consumers[tensor] if n.op_type not in _SIDE_COMPUTATIONS]:
        node = nodes[0]
        if len(nodes) > 1:
            ops = " and ".join(node.op_type for node in nodes)
            steps.append(Step(f"a split into {ops}", node.name or tensor, tensor, layout))
            break
        source, tensor = tensor, node.output[0]
        attributes = attributes_of(node)
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
                    kernel = attributes.get("kernel_shape", step.weights["weight"].shape[2:])
                    step.window, pads = slide(attributes, kernel, pads, size), (0, 0, 0, 0)
            case "MaxPool" | "AveragePool" if layout == "NCHW":
                window = slide(attributes, attributes["kernel_shape"], pads, size)
                step.window, pads = window, (0, 0, 0, 0)
                if node.op_type == "MaxPool":
                    step.kind = "max_pool"
                elif is_adaptive(window, size):
                    step.kind = "avg_pool"
                size = pooled(size, window)
            case "GlobalAveragePool" if layout == "NCHW":
                step.kind = "global_avg_pool"
            case "ReduceMean" if after := _mean_of_maps(graph, node, attributes, layout):
                step.kind, layout = "global_avg_pool", after
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


def attributes_of(node: "NodeProto") -> dict[str, Any]:
    """The attributes of a node, by name."""
    from onnx.helper import get_attribute_value

    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}


def _linear(graph: Graph, node: "NodeProto", attributes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weight (inputs, outputs) and bias of a product with a matrix; empty where it is no such."""
    found = graph.named_constants(node, ("weight", "bias"))
    if "weight" not in found or found["weight"].ndim != 2 or attributes.get("transA", 0):
        return {}
    if attributes.get("transB", 0):
        found["weight"] = found["weight"].T
    units = found["weight"].shape[1]
    if "bias" in found and found["bias"].size not in (1, units):
        return {}
    if "bias" in found:
        found["bias"] = np.broadcast_to(found["bias"].reshape(-1), units)
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
    return node.op_type == "Squeeze" or shape is None or shape.shape == (2,)


def _mean_of_maps(graph: Graph, node: "NodeProto", attributes: dict[str, Any], layout: str) -> str:
    """The layout behind a mean over height and width, and "" for any other mean."""
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1:
        axes = graph.constant(node.input[1])
    if axes is None or len(layout) != 4 or np.asarray(axes).dtype.kind not in "iu":
        return ""
    names = {layout[axis] for axis in np.ravel(axes).tolist() if -4 <= axis < 4}
    if names != {"H", "W"}:
        return ""
    return layout if attributes.get("keepdims", 1) else "NU"


def _names(axes: np.ndarray, layout: str) -> str:
    """The names of axes that are given by number; "" for those that are none."""
    numbers = np.ravel(axes).tolist()
    n = len(layout)
    if any(type(axis) is not int or not -n <= axis < n for axis in numbers):
        return ""
    return "".join(layout[axis] for axis in numbers)


def _padding(graph: Graph, node: "NodeProto", layout: str) -> tuple[int, ...] | None:
    """(top, left, bottom, right) of a Pad with zeros in space; None for any other Pad."""
    attributes = attributes_of(node)
    given, value, axes = ([graph.constant(name) for name in node.input[1:]] + [None] * 3)[:3]
    pads = attributes.get("pads", given)
    value = attributes.get("value", 0.0) if value is None else value
    if pads is None or np.any(value) or attributes.get("mode", b"constant") != b"constant":
        return None
    names = layout if axes is None else _names(axes, layout)
    if not names or np.shape(pads) != (2 * len(names),) or np.asarray(pads).dtype.kind not in "iu":
        return None
    before, after = np.split(np.asarray(pads), 2)
    found = {n: (int(b), int(a)) for n, b, a in zip(names, before, after, strict=True)}
    (top, bottom), (left, right) = found.pop("H", (0, 0)), found.pop("W", (0, 0))
    return None if np.any(list(found.values())) else (top, left, bottom, right)
