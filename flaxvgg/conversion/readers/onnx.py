"""Weights of a VGG in an ONNX file, whoever exported it.

Every node between the input and the logits is read as a layer (`onnx_graph`), but for those that
only compute colours from colours, which become the recipe (`onnx_front`).
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxvgg.conversion.readers.front import Front
from flaxvgg.conversion.readers.onnx_front import read_front
from flaxvgg.conversion.readers.onnx_graph import Graph, load_model, walk
from flaxvgg.conversion.readers.recognition import Recognised, recognise
from flaxvgg.conversion.source_weights import CannotRunError, SourceWeights, sha256
from flaxvgg.network.config import POOLED_SIZE
from flaxvgg.network.provenance import PREPROCESSING, Preprocessing, Provenance


def read_onnx(path: Path, preprocessing: Preprocessing | None = None) -> SourceWeights:
    """VGG weights from an ONNX file of any exporter, in NCHW or NHWC.

    The convolutions become `features.*`, a head like VGG's becomes `classifier.*`, and any other
    head is left out with a note. Where ONNX Runtime is installed, `layer_outputs` runs the file's
    own graph on images of any size, from the first convolution on; its results include the
    classifier's layers where the map that the classifier sees is 7x7. `preprocessing` is what the
    file's own input is fed. Raises SourceError for a file that is no ONNX, or no VGG.
    """
    graph = Graph(path)
    front, tensor, layout = read_front(graph)
    found = recognise(path.name, walk(graph, tensor, layout))
    notes = front.notes + found.notes
    if graph.dequantised:
        notes.append(f"{graph.dequantised} weights kept in fewer bits are read as they are used")
    guess = ""
    if preprocessing is None:
        preprocessing, guess = _guess(graph, front)
    provenance = Provenance(path.name, sha256(path), front.recipe(preprocessing), guess=guess)
    source = SourceWeights(found.arch, found.state, provenance, front=front.recipe)
    dtype = found.state["features.0.weight"].dtype
    if dtype in (np.float32, np.float16):  # ONNX Runtime has no other convolutions on a CPU
        outputs = _layer_outputs(path, tensor, layout, found)
        source.layer_outputs, source.runs_with = outputs
    else:
        notes.append(f"ONNX Runtime does not run {dtype} convolutions: there is no oracle")
    source.notes = tuple(notes)
    return source


def _guess(graph: Graph, front: Front) -> tuple[Preprocessing, str]:
    """The likeliest recipe for the file's own input, and why it is that one."""
    if front.map.changes_nothing:
        name = "torchvision" if graph.layout == "NCHW" else "keras"
        return PREPROCESSING[name], f"the file does not say it, and its input is {graph.layout}"
    name = "unit" if front.wants_unit else "pixels"
    scale = "0 to 1" if front.wants_unit else "0 to 255"
    return PREPROCESSING[name], (
        f"the file's own input is taken to be RGB from {scale}, as {name!r} makes it"
    )


def _layer_outputs(
    path: Path, image: str, layout: str, found: Recognised
) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]] | None, str]:
    """`layer_outputs` and `runs_with` of SourceWeights, where ONNX Runtime is installed."""
    try:
        import onnxruntime
    except ImportError:
        return None, ""
    # Names only: what is returned must not keep the weights.
    dtype = found.state["features.0.weight"].dtype
    traced = dict(found.stack)
    if "gap" in found.head:  # a GAP head takes maps of any size
        whole = None
        traced |= {name: step for name, step in found.head.items() if step.kind in ("conv", "relu")}
    else:
        # The size of pool5 of which the classifier's 7x7 map is made.
        pools = [step for step in found.rest if step.kind == "avg_pool"]
        tiles = [step.window.kernel for step in pools if step.window]
        whole = tuple(POOLED_SIZE * n for n in (tiles or [(1, 1)])[0])
    maps = {name: (step.tensor, step.layout) for name, step in traced.items()}
    vectors = {
        name: (step.tensor, "NU")
        for name, step in found.head.items()
        if name not in traced and step.kind != "global_avg_pool"
    }
    flattens = {step.tensor for step in found.rest if step.kind == "flatten"}

    @functools.lru_cache(maxsize=1)
    def session(tensors: tuple[str, ...]) -> Any:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what it does not run is said in a line of ours
        return onnxruntime.InferenceSession(
            _cut(path, image, tensors, flattens, dtype), options, providers=["CPUExecutionProvider"]
        )

    def layer_outputs(images: np.ndarray) -> dict[str, np.ndarray]:
        with_head = whole in (None, tuple(n // 32 for n in images.shape[1:3]))
        outputs = maps | vectors if with_head else maps
        tensors = tuple(tensor for tensor, _ in outputs.values())
        fed = images.transpose(["NHWC".index(axis) for axis in layout]).astype(dtype)
        try:
            arrays = session(tensors).run(tensors, {image: fed})
        except _errors(onnxruntime) as error:
            why = str(error).splitlines()[0]
            raise CannotRunError(f"ONNX Runtime does not run {path.name} ({why})") from None
        return {
            name: _channels_last(array, axes).astype(np.float32)
            for (name, (_, axes)), array in zip(outputs.items(), arrays, strict=True)
        }

    return layer_outputs, f"ONNX Runtime {onnxruntime.__version__}"


def _errors(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: exceptions of its own, with no class above them."""
    found = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return tuple(x for x in found if isinstance(x, type) and issubclass(x, Exception))


def _channels_last(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "NU":
        return array.reshape(len(array), -1)
    return array.transpose([layout.index(axis) for axis in "NHWC"])


def _cut(
    path: Path, image: str, tensors: Sequence[str], flattens: set[str], dtype: np.dtype
) -> bytes:
    """The file's graph from `image` up to these tensors, for images of any number and size."""
    from onnx import NodeProto, helper

    model = load_model(path)
    graph = model.graph
    needed = set(tensors)
    nodes: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output) or image in node.output:
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
            if values[i].name not in needed or values[i].name == image:
                del values[i]
    # Images come normalised, never as bytes.
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph.input.append(helper.make_tensor_value_info(image, kind, [None] * 4))
    return model.SerializeToString()
