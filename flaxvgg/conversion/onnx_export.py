"""Models as ONNX files, for others to run; and for ONNX Runtime to compute every layer beside us.

The latter is for weights that are no ONNX file, where PyTorch is not installed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from flaxvgg.files.choices import choose
from flaxvgg.network.config import POOLED_SIZE, Layer, VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.summary import layer_rows
from flaxvgg.weights.mapping import as_numpy, to_torch

Output = Literal["logits", "features"]
OUTPUTS = get_args(Output)


def conv_stack_graph(config: VGGConfig, state_dict: Mapping[str, Any]) -> bytes:
    """A model that gives every layer of the conv stack, by name, of images (N, 3, H, W).

    `state_dict` has torchvision's names and layouts, in float32.
    """
    from onnx import helper

    graph = _Graph(state_dict)
    for layer in config.conv_stack:
        graph.add(layer)
    outputs = [helper.make_empty_tensor_value_info(layer.name) for layer in config.conv_stack]
    return graph.model(config.arch, ["n", 3, "h", "w"], outputs)


def to_onnx(model: VGG, output: Output | None = None, size: tuple[int, int] = (224, 224)) -> bytes:
    """The model as an ONNX file: from images (N, 3, H, W) in float32 to its logits or features.

    `output` is "logits" where there is a head, else "features", the last map (N, C, h, w). Images
    are normalised as `model.preprocessing` says, channels first as in PyTorch's exports, and of any
    number; a classifier's are of `size` (H, W), others' of any size. The file is of opset 17, holds
    the weights in float32, and is read by ONNX Runtime and `flaxvgg convert`.

    Raises ValueError for logits without a head, for a fully-convolutional classifier, and for a
    classifier and a size whose last map is no multiple of 7x7. Needs onnx.

    >>> file = flaxvgg.to_onnx(model)
    """
    from onnx import TensorProto, helper

    config = model.config
    if output not in (None, *OUTPUTS):
        raise ValueError(f"no output {output!r}: {choose(output, OUTPUTS)}")
    if any(layer.kind == "windows" for layer in config.head):
        raise ValueError(
            "a fully-convolutional classifier is not written as ONNX: export the classifier that "
            "it was made of"
        )
    wants_logits = output == "logits" or (output is None and bool(config.head))
    last = config.head_output.name if wants_logits else config.resolve("features")
    graph = _Graph(to_torch(model))
    shapes = {row.name: row.shape for row in layer_rows(config, size)}
    fixed: list[int | str] = ["h", "w"]
    before: tuple[int, ...] = (*size, 3)
    for layer in config.layers:
        if layer.kind == "avg_pool":
            fixed = list(size)
        graph.add(layer, before)
        before = shapes[layer.name]
        if layer.name == last:
            break
    graph.rename_last(output := "logits" if wants_logits else "features")
    *places, channels = before
    shape = ["n", channels, *(f"{output}_{i}" for i in range(len(places)))]
    found = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    return graph.model(config.arch, ["n", 3, *fixed], found)


class _Graph:
    """Nodes of ONNX in a row, from images on; each layer's output has its name."""

    def __init__(self, state_dict: Mapping[str, Any]):
        self._state = state_dict
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._tensor, self._channels = "images", 3

    def add(self, layer: Layer, before: tuple[int, ...] = ()) -> None:
        """Add a layer, whose input for one image has the shape `before` (h, w, c)."""
        weights = self._weights(layer)
        match layer.kind:
            case "conv" if layer.padding == "replicate":
                pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
                edge = self._constant(f"{layer.name}_edge", pads)
                self._node("Pad", f"{layer.name}_wider", edge, mode="edge")
                self._node("Conv", layer.name, *weights, kernel_shape=[3, 3], pads=[0, 0, 0, 0])
            case "conv":
                self._node("Conv", layer.name, *weights, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            case "batch_norm":
                self._node("BatchNormalization", layer.name, *weights, epsilon=layer.eps)
            case "max_pool" | "average_pool":
                operator = {"max_pool": "MaxPool", "average_pool": "AveragePool"}[layer.kind]
                self._node(operator, layer.name, kernel_shape=[2, 2], strides=[2, 2])
            case "l2_pool":
                self._l2_pool(layer.name)
            case "leaky_relu":
                self._node("LeakyRelu", layer.name, alpha=0.01)
            case "shifted_relu":
                self._node("Max", layer.name, self._constant(f"{layer.name}_least", -1.0))
            case "avg_pool":
                self._pool_to_7x7(layer.name, before)
            case "global_avg_pool":
                self._node("GlobalAveragePool", layer.name)
            case "flatten":
                self._node("Flatten", layer.name, axis=1)
            case "linear":
                self._node("Gemm", layer.name, *weights, transB=1)
            case "relu" | "softmax":
                self._node(layer.kind.capitalize(), layer.name)
        self._channels = layer.outputs or self._channels

    def rename_last(self, name: str) -> None:
        """Give the last output another name."""
        self._nodes[-1].output[0] = name

    def model(self, title: str, shape: list[int | str], outputs: Sequence[Any]) -> bytes:
        """The whole file, for images of a shape."""
        from onnx import TensorProto, helper, numpy_helper

        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
        constants = [numpy_helper.from_array(x, name) for name, x in self._constants.items()]
        graph = helper.make_graph(self._nodes, title, [images], list(outputs), constants)
        opset = helper.make_opsetid("", 17)
        made = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        return made.SerializeToString()

    def _weights(self, layer: Layer) -> list[str]:
        names = [f"{layer.torch}.{name}" for name in _WEIGHTS.get(layer.kind, ())]
        for name in names:
            self._constant(name, as_numpy(self._state[name]))
        return names

    def _constant(self, name: str, value: Any) -> str:
        array = np.asarray(value)
        dtype = array.dtype if array.dtype == np.int64 else np.float32
        self._constants[name] = np.ascontiguousarray(array, dtype).reshape(array.shape)
        return name

    def _node(self, operator: str, output: str, *others: str, **attributes: Any) -> None:
        from onnx import helper

        inputs = [self._tensor, *others]
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        self._tensor = output

    def _l2_pool(self, name: str) -> None:
        kernel = np.broadcast_to(np.outer(_BLUR, _BLUR), (self._channels, 1, 3, 3))
        blur = self._constant(f"{name}_kernel", kernel)
        eps = self._constant(f"{name}_eps", 1e-12)
        places = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        self._node("Mul", f"{name}_0", self._tensor)
        self._node("Conv", f"{name}_1", blur, group=self._channels, **places)
        self._node("Add", f"{name}_2", eps)
        self._node("Sqrt", name)

    def _pool_to_7x7(self, name: str, before: tuple[int, ...]) -> None:
        height, width = before[:2]
        if (height, width) == (POOLED_SIZE, POOLED_SIZE):
            return
        if height % POOLED_SIZE or width % POOLED_SIZE:
            raise ValueError(
                f"a classifier is written as ONNX for images whose last map is 7x7 or a multiple, "
                f"such as 224x224 and 448x448; here it is {height}x{width}"
            )
        tile = [height // POOLED_SIZE, width // POOLED_SIZE]
        self._node("AveragePool", name, kernel_shape=tile, strides=tile)


_WEIGHTS = {
    "conv": ("weight", "bias"),
    "linear": ("weight", "bias"),
    "batch_norm": ("weight", "bias", "running_mean", "running_var"),
}
_BLUR = (0.25, 0.5, 0.25)


def run_conv_stack(
    config: VGGConfig, state_dict: Mapping[str, Any], images: np.ndarray
) -> dict[str, np.ndarray]:
    """ONNX Runtime's outputs (N, h, w, c) of every layer of the conv stack, by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Every layer is asked for; as written, none is merged into another.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # errors only
    graph = conv_stack_graph(config, state_dict)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [layer.name for layer in config.conv_stack]
    fed = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    found = session.run(names, {"images": fed})
    return {name: x.transpose(0, 2, 3, 1) for name, x in zip(names, found, strict=True)}
