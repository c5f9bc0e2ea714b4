"""The convolutions as an ONNX graph, so that ONNX Runtime computes them beside us.

For weights that are no ONNX file, where PyTorch is not installed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxvgg.network.config import VGGConfig
from flaxvgg.weights.mapping import as_numpy


def conv_stack_graph(config: VGGConfig, state_dict: Mapping[str, Any]) -> bytes:
    """A model that gives every layer of the conv stack, by name, of images (N, 3, H, W).

    `state_dict` has torchvision's names and layouts, in float32.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, initializers, tensor, channels = [], [], "images", 3
    for layer in config.conv_stack:
        weights = []
        for name in _WEIGHTS.get(layer.kind, ()):
            weights.append(f"{layer.torch}.{name}")
            array = np.ascontiguousarray(as_numpy(state_dict[weights[-1]]), np.float32)
            initializers.append(numpy_helper.from_array(array, weights[-1]))
        operator, attributes = _OPERATORS[layer.kind]
        if layer.padding == "replicate":
            wider, edge = f"{layer.name}_wider", f"{layer.name}_edge"
            pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
            initializers.append(numpy_helper.from_array(pads, edge))
            nodes.append(helper.make_node("Pad", [tensor, edge], [wider], mode="edge"))
            tensor, attributes = wider, attributes | {"pads": [0, 0, 0, 0]}
        elif layer.kind == "l2_pool":
            squares, blurred, shifted = (f"{layer.name}_{i}" for i in range(3))
            kernel = np.broadcast_to(np.outer(_BLUR, _BLUR), (channels, 1, 3, 3))
            constants = {f"{layer.name}_kernel": kernel, f"{layer.name}_eps": np.array(1e-12)}
            for name, array in constants.items():
                array = np.ascontiguousarray(array, np.float32)
                initializers.append(numpy_helper.from_array(array, name))
            blur, eps = constants
            places = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
            nodes += [
                helper.make_node("Mul", [tensor, tensor], [squares]),
                helper.make_node("Conv", [squares, blur], [blurred], group=channels, **places),
                helper.make_node("Add", [blurred, eps], [shifted]),
            ]
            tensor = shifted
        channels = layer.outputs or channels
        nodes.append(helper.make_node(operator, [tensor, *weights], [layer.name], **attributes))
        tensor = layer.name
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])
    outputs = [helper.make_empty_tensor_value_info(layer.name) for layer in config.conv_stack]
    graph = helper.make_graph(nodes, config.arch, [images], outputs, initializers)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


_WEIGHTS = {
    "conv": ("weight", "bias"),
    "batch_norm": ("weight", "bias", "running_mean", "running_var"),
}
_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": ("Conv", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "batch_norm": ("BatchNormalization", {"epsilon": 1e-5}),
    "relu": ("Relu", {}),
    "max_pool": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "average_pool": ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "l2_pool": ("Sqrt", {}),  # of what is blurred before it
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
