"""Weights of a VGG in an ONNX file, whoever exported it.

Every node between the input and the logits is read as a layer (`onnx_graph`), and the layers must
be those of one of the eight VGGs, windows and all: the same weights in another network would give
other features.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.readers.onnx_graph import Graph, Step, Window, load_model, walk
from convert.source import Source, SourceError, sha256
from flaxvgg.config import ARCHITECTURES, POOLED_SIZE, Layer, VGGConfig, classifier_layers
from flaxvgg.provenance import PREPROCESSING, Preprocessing, Provenance

_TORCH_EPSILON = 1e-5
_WINDOWS = {
    "conv": Window(kernel=(3, 3), pads=(1, 1, 1, 1)),
    "max_pool": Window(kernel=(2, 2), strides=(2, 2)),
}
# What may follow relu5_3 directly: such a network leaves pool5 out, and its weights are VGG's.
_INSTEAD_OF_POOL5 = ("the end", "GlobalAveragePool", "ReduceMean", "flatten")
_NO_HEAD = ("flatten", "avg_pool")  # rearranged features


def read_onnx(path: Path, preprocessing: Preprocessing | None = None) -> Source:
    """VGG weights from an ONNX file of any exporter, in NCHW or NHWC.

    The convolutions become `features.*`, a head like VGG's becomes `classifier.*`, and any other
    head is left out with a note. Where ONNX Runtime is installed, `layer_outputs` runs the file's
    own graph on images of any size; its results include the classifier's layers where the map that
    the classifier sees is 7x7. Raises SourceError for a file that is no ONNX, or no VGG.
    """
    graph = Graph(path)
    steps = walk(graph)
    stack, arch = _conv_stack(path, steps)
    notes = []
    state: dict[str, Any] = {}
    for layer, step in stack:
        if layer.kind == "batch_norm":
            notes += _fold_epsilon(path, step)
        elif layer.kind == "conv":
            _fill_bias(step, layer.outputs)
        state |= {f"{layer.torch}.{name}": array for name, array in step.weights.items()}
    traced = {layer.name: step for layer, step in stack}
    dtype = state["features.0.weight"].dtype
    rest = steps[len(stack) :]
    if "pool5" in traced:
        head, classifier = _classifier(rest)
    else:
        notes.append(f"{path.name} has no pool5; the weights are the same")
        head, classifier = {}, {}
    if not head and any(step.kind not in _NO_HEAD for step in rest):
        notes.append(f"the head {_describe(rest)} is not VGG's and is left out: features only")
    if preprocessing is None:
        preprocessing = PREPROCESSING["torchvision" if graph.layout == "NCHW" else "keras"]
        notes.append(
            f"the input is {graph.layout}: images preprocessed as for {preprocessing.name!r} are "
            "assumed; --preprocessing changes it"
        )
    source = Source(arch, state | classifier, Provenance(path.name, sha256(path), preprocessing))
    if dtype in (np.float32, np.float16):  # ONNX Runtime has no other convolutions on a CPU
        source.layer_outputs, source.runs_with = _layer_outputs(path, graph, traced, head, rest)
    else:
        notes.append(f"ONNX Runtime does not run {dtype} convolutions: there is no oracle")
    source.notes = tuple(notes)
    return source


def _conv_stack(path: Path, steps: list[Step]) -> tuple[list[tuple[Layer, Step]], str]:
    """The first steps as the layers of an architecture. Raises SourceError where they are not."""
    if not any(step.kind == "conv" for step in steps):
        found = ", ".join(step.kind for step in steps[:3]) or "nothing"
        raise SourceError(f"{path.name} is no VGG: {found} after its input, and no convolution")

    def agreeing(arch: str) -> list[tuple[Layer, Step]]:
        pairs = list(zip(VGGConfig.features_only(arch, "").conv_stack, steps, strict=False))
        end = next((i for i, (layer, step) in enumerate(pairs) if layer.kind != step.kind), None)
        return pairs[:end]

    arch = max(ARCHITECTURES, key=lambda arch: len(agreeing(arch)))
    stack = agreeing(arch)
    for layer, step in stack:
        where = f"{layer.name} (node {step.node!r})"
        window = _WINDOWS.get(layer.kind)
        if step.window and window and step.window != window:
            differ = step.window.differences(window)
            raise SourceError(f"{path.name} is no VGG: {where} has {differ}")
        for name, array in step.weights.items():
            shape = (layer.outputs,)
            if layer.kind == "conv" and name == "weight":
                shape = (layer.outputs, layer.inputs, 3, 3)
            if array.shape != shape:
                raise SourceError(
                    f"{path.name} is no VGG: the {name} of {where} is {array.shape}, not {shape}"
                )
    layers = VGGConfig.features_only(arch, "").conv_stack
    n = len(stack)
    follows = steps[n].kind if n < len(steps) else "the end"
    if n < len(layers) - (follows in _INSTEAD_OF_POOL5):
        node = f" (node {steps[n].node!r})" if n < len(steps) else ""
        before = f"after {layers[n - 1].name}" if n else "at the input"
        raise SourceError(
            f"{path.name} is no VGG: {before} comes {follows}{node}, "
            f"where {arch} has a {layers[n].kind} ({layers[n].name})"
        )
    return stack, arch


def _fill_bias(step: Step, units: int) -> None:
    # Exporters drop a bias that is zero.
    step.weights.setdefault("bias", np.zeros(units, step.weights["weight"].dtype))


def _fold_epsilon(path: Path, step: Step) -> list[str]:
    """Turn another epsilon into PyTorch's, and say so: only its sum with the variance counts."""
    difference = step.epsilon - _TORCH_EPSILON
    if np.float32(step.epsilon) == np.float32(_TORCH_EPSILON):
        return []
    variance = step.weights["running_var"]
    folded = (variance.astype(np.float64) + difference).astype(variance.dtype)
    if not folded.min() > 0:
        raise SourceError(
            f"{path.name} has epsilon {step.epsilon:g} at node {step.node!r}, and variances too "
            f"small to make it PyTorch's {_TORCH_EPSILON:g}"
        )
    step.weights["running_var"] = folded
    return [f"node {step.node!r} has epsilon {step.epsilon:g}: running_var took the difference in"]


def _classifier(steps: list[Step]) -> tuple[dict[str, Step], dict[str, np.ndarray]]:
    """The classifier's steps by the paper's names, and its weights; both empty for another head."""
    end = next((i for i, step in enumerate(steps) if step.kind == "softmax"), len(steps))
    found = [step for step in steps[: end + 1] if step.kind not in _NO_HEAD]
    layers = [x for x in classifier_layers() if x.kind in ("linear", "relu", "softmax")]
    kinds = ["linear" if step.kind == "conv" else step.kind for step in found]
    if kinds not in ([x.kind for x in layers], [x.kind for x in layers[:-1]]):
        return {}, {}
    flatten = next((step.layout[1:] for step in steps if step.kind == "flatten"), "CHW")
    state = {}
    for layer, step in zip(layers, found, strict=False):
        if layer.kind != "linear":
            continue
        if (weight := _torch_layout(layer, step, flatten)) is None:
            return {}, {}
        _fill_bias(step, len(weight))
        state |= {f"{layer.torch}.weight": weight, f"{layer.torch}.bias": step.weights["bias"]}
    return {layer.name: step for layer, step in zip(layers, found, strict=False)}, state


def _torch_layout(layer: Layer, step: Step, flatten: str) -> np.ndarray | None:
    """A view of a linear layer's weight with PyTorch's axes; None where it is not VGG's layer."""
    weight, k = step.weights["weight"], layer.kernel
    units = {"C": layer.inputs, "H": k, "W": k}
    if step.kind == "conv":
        fits = step.window == Window((k, k)) and weight.shape[1] == layer.inputs
    else:
        fits = len(weight) == layer.inputs * k * k
        if fits and k > 1 and flatten != "CHW":
            weight = weight.reshape(*(units[axis] for axis in flatten), -1)
            weight = weight.transpose(3, *map(flatten.index, "CHW"))
        else:
            weight = weight.T
    return weight if fits and (layer.name == "fc8" or len(weight) == layer.outputs) else None


def _describe(steps: list[Step]) -> str:
    shapes = [step.weights["weight"].shape for step in steps if step.kind == "linear"]
    if shapes:
        return "-".join(str(n) for n in [shapes[0][0], *(outputs for _, outputs in shapes)])
    return f"({', '.join(step.kind for step in steps[:4])})"


def _layer_outputs(
    path: Path, graph: Graph, traced: dict[str, Step], head: dict[str, Step], rest: list[Step]
) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]] | None, str]:
    """`Source.layer_outputs` and `Source.runs_with`, where ONNX Runtime is installed."""
    try:
        import onnxruntime
    except ImportError:
        return None, ""
    # Names only: what is returned must not keep the weights.
    image, layout = graph.input, graph.layout
    maps = {name: (step.tensor, step.layout) for name, step in traced.items()}
    vectors = {name: (step.tensor, "NU") for name, step in head.items()}
    flattens = {step.tensor for step in rest if step.kind == "flatten"}
    # The size of pool5 of which the classifier's 7x7 map is made.
    tiles = [step.window.kernel for step in rest if step.kind == "avg_pool" and step.window]
    whole = tuple(POOLED_SIZE * n for n in (tiles or [(1, 1)])[0])

    @functools.lru_cache(maxsize=1)
    def session(tensors: tuple[str, ...]) -> Any:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3  # errors only
        return onnxruntime.InferenceSession(
            _cut(path, image, tensors, flattens), options, providers=["CPUExecutionProvider"]
        )

    def layer_outputs(images: np.ndarray) -> dict[str, np.ndarray]:
        with_head = tuple(n // 32 for n in images.shape[1:3]) == whole
        outputs = maps | vectors if with_head else maps
        tensors = tuple(tensor for tensor, _ in outputs.values())
        run = session(tensors)
        dtype = np.float16 if "float16" in run.get_inputs()[0].type else np.float32
        fed = images.transpose(["NHWC".index(axis) for axis in layout]).astype(dtype)
        arrays = run.run(tensors, {image: fed})
        return {
            name: _channels_last(array, axes).astype(np.float32)
            for (name, (_, axes)), array in zip(outputs.items(), arrays, strict=True)
        }

    return layer_outputs, f"ONNX Runtime {onnxruntime.__version__}"


def _channels_last(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "NU":
        return array.reshape(len(array), -1)
    return array.transpose([layout.index(axis) for axis in "NHWC"])


def _cut(path: Path, image: str, tensors: Sequence[str], flattens: set[str]) -> bytes:
    """The file's graph up to these tensors, for images of any number and size."""
    from onnx import NodeProto, TensorProto, helper

    model = load_model(path)
    graph = model.graph
    needed = set(tensors)
    nodes: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        if node.output[0] in flattens:
            # The same flattening, without the number of images that the file may fix.
            node = helper.make_node("Flatten", node.input[:1], node.output, axis=1)
        elif node.op_type == "MaxPool":
            # Checked to make no difference at the file's own size; at odd sizes they would.
            kept = [a for a in node.attribute if a.name not in ("ceil_mode", "auto_pad")]
            del node.attribute[:]
            node.attribute.extend(kept)
        needed.update(node.input)
        nodes.insert(0, node)
    # Changed in place: a new model would have the weights twice.
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.output.extend(helper.make_empty_tensor_value_info(tensor) for tensor in tensors)
    for values in (graph.initializer, graph.input):
        for i in reversed(range(len(values))):
            if values[i].name not in needed:
                del values[i]
    (tensor_type,) = (x.type.tensor_type for x in graph.input if x.name == image)
    for dim in tensor_type.shape.dim:
        dim.Clear()
    if tensor_type.elem_type != TensorProto.FLOAT16:
        tensor_type.elem_type = TensorProto.FLOAT  # images come normalised, never as bytes
    return model.SerializeToString()
