"""Valid files of weights in every format, small, and without the libraries that write them."""

import tests.fuzz.narrow  # noqa: F401

# isort: split
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
import onnx
import torch
from onnx import numpy_helper

from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.weights.mapping import entries
from tests.fuzz.cases import Arrays

VGG11 = VGGConfig.features_only("vgg11", "these weights come without a classifier")
CONVS = [layer for layer in VGG11.conv_stack if layer.kind == "conv"]


def random_weights(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """A state dict, always the same."""
    random = np.random.default_rng(1)
    return {
        entry.torch: random.standard_normal(entry.torch_shape).astype(dtype)
        for entry in entries(VGG11)
    }


def safetensors_file(tensors: Arrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """A file of the format, written by hand."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    stop = 0
    for name, array in tensors.items():
        dtype = {"float32": "F32", "bfloat16": "BF16"}[array.dtype.name]
        start, stop = stop, stop + array.nbytes
        table[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, stop]}
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values())


def torch_file(value: object, archive: bool = True) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


def onnx_file(raw: bool, front: bool = False) -> bytes:
    """VGG11's convolutions, with the weights as bytes, or as a list of numbers.

    `front` has Caffe's recipe in the graph before them: the channels turned, their means taken off.
    """
    nodes, initializers, tensor = [], [], "input"
    if front:
        order = numpy_helper.from_array(np.array([2, 1, 0]), "order")
        means = np.array([103.939, 116.779, 123.68], np.float32).reshape(1, 3, 1, 1)
        initializers += [order, numpy_helper.from_array(means, "means")]
        nodes.append(onnx.helper.make_node("Gather", ["input", "order"], ["turned"], axis=1))
        nodes.append(onnx.helper.make_node("Sub", ["turned", "means"], ["front"]))
        tensor = "front"
    for layer in VGG11.conv_stack:
        inputs = [tensor]
        tensor = layer.name
        match layer.kind:
            case "conv":
                names = [f"{layer.torch}.weight", f"{layer.torch}.bias"]
                for name in names:
                    array = random_weights()[name]
                    one = numpy_helper.from_array(array, name)
                    if not raw:
                        one = onnx.helper.make_tensor(name, 1, array.shape, array.ravel())
                    initializers.append(one)
                node = onnx.helper.make_node(
                    "Conv", inputs + names, [tensor], kernel_shape=[3, 3], pads=[1, 1, 1, 1]
                )
            case "max_pool":
                node = onnx.helper.make_node(
                    "MaxPool", inputs, [tensor], kernel_shape=[2, 2], strides=[2, 2]
                )
            case _:
                node = onnx.helper.make_node("Relu", inputs, [tensor])
        nodes.append(node)
    images = onnx.helper.make_tensor_value_info("input", 1, [1, 3, 32, 32])
    features = onnx.helper.make_tensor_value_info(tensor, 1, [1, 6, 1, 1])
    graph = onnx.helper.make_graph(nodes, "vgg11", [images], [features], initializers)
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def onnx_quantised_file() -> bytes:
    """The same, with every kernel in 8 bits that the graph makes floats of."""
    model = onnx.load_from_string(onnx_file(True))
    scale = numpy_helper.from_array(np.float32(0.05), "scale")
    zero = numpy_helper.from_array(np.int8(3), "zero")
    kernels = {x.name: x for x in model.graph.initializer if x.name.endswith("weight")}
    for name, kernel in kernels.items():
        kept = np.rint(numpy_helper.to_array(kernel) / 0.05).clip(-128, 127).astype(np.int8)
        kernel.CopyFrom(numpy_helper.from_array(kept, f"{name}.kept"))
        inputs = [f"{name}.kept", "scale", "zero"]
        model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", inputs, [name]))
    model.graph.initializer.extend([scale, zero])
    return model.SerializeToString()


def safetensors_set() -> dict[str, bytes]:
    """An index and the two files that it names."""
    weights = random_weights()
    names = sorted(weights)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    where = {name: part for part, some in parts.items() for name in some}
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    return {"model.safetensors.index.json": json.dumps(index).encode()} | {
        part: safetensors_file({name: weights[name] for name in some})
        for part, some in parts.items()
    }


def _keras_arrays(layer: Layer) -> list[np.ndarray]:
    found = random_weights()
    return [found[f"{layer.torch}.weight"].transpose(2, 3, 1, 0), found[f"{layer.torch}.bias"]]


def keras_config(*front: dict[str, Any]) -> str:
    """What model.save writes of the network, behind some layers."""
    layers: list[dict[str, Any]] = [*front]
    for layer in VGG11.conv_stack:
        own: dict[str, Any] = {"name": layer.name}
        match layer.kind:
            case "conv":
                own |= {"strides": [1, 1], "padding": "same", "activation": "relu"}
                layers.append({"class_name": "Conv2D", "config": own})
            case "max_pool":
                own |= {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"}
                layers.append({"class_name": "MaxPooling2D", "config": own})
    return json.dumps({"class_name": "Functional", "config": {"name": "vgg", "layers": layers}})


KERAS_FRONTS: tuple[tuple[dict[str, Any], ...], ...] = (
    (
        {"class_name": "RandomFlip", "config": {"name": "flip", "mode": "horizontal"}},
        {"class_name": "Rescaling", "config": {"name": "r", "scale": 1 / 127.5, "offset": -1.0}},
    ),
    (
        {
            "class_name": "Normalization",
            "config": {"name": "n", "axis": [-1], "mean": [1.0, 2, 3], "variance": [4.0, 5, 6]},
        },
        {"class_name": "Dropout", "config": {"name": "d", "rate": 0.5}},
    ),
)


def keras_functional() -> str:
    """The same as Keras 3 writes a model whose input is preprocessed by operations."""

    def tensor(name: str) -> dict[str, Any]:
        return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}

    def called(kind: str, name: str, config: dict, *arguments: Any, **options: Any) -> dict:
        node = {"args": list(arguments), "kwargs": options}
        own = {"name": name} | config
        return {"class_name": kind, "config": own, "name": name, "inbound_nodes": [node]}

    channels = {"class_name": "__slice__", "config": {"start": None, "stop": None, "step": -1}}
    key = [{"class_name": "__ellipsis__", "config": {}}, channels]
    shape = [None, 32, 32, 3]
    image = {"class_name": "InputLayer", "config": {"name": "in", "batch_shape": shape}}
    layers = [
        image | {"name": "in", "inbound_nodes": []},
        called("GetItem", "item", {}, tensor("in"), key),
        called("Subtract", "sub", {}, tensor("item"), [103.939, 116.779, 123.68]),
    ]
    inner = json.loads(keras_config())
    layers.append(called(inner["class_name"], "vgg", inner["config"], tensor("sub")))
    ends = {"input_layers": [["in", 0, 0]], "output_layers": [["vgg", 1, 0]]}
    return json.dumps({"class_name": "Functional", "config": {"layers": layers} | ends})


def keras_h5(
    whole: bool,
    change: Callable[[h5py.File], None] = lambda file: None,
    config: str | None = None,
) -> bytes:
    """Named layers, and with `whole` the network's configuration."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        group = file.create_group("model_weights") if whole else file
        if whole:
            file.attrs["model_config"] = config or keras_config()
        group.attrs["layer_names"] = [layer.name.encode() for layer in CONVS]
        for layer in CONVS:
            names = [f"{layer.name}/kernel:0", f"{layer.name}/bias:0"]
            group.create_group(layer.name).attrs["weight_names"] = [n.encode() for n in names]
            for name, array in zip(names, _keras_arrays(layer), strict=True):
                group[layer.name][name] = array
        change(file)
    return content.getvalue()


def keras_weights_h5() -> bytes:
    """Numbered variables."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for i, layer in enumerate(CONVS):
            group = file.create_group(f"layers/conv2d{f'_{i}' if i else ''}/vars")
            group.attrs["name"] = layer.name
            for j, array in enumerate(_keras_arrays(layer)):
                group[str(j)] = array
    return content.getvalue()


def keras_archive(config: str | None = None, weights: bytes | None = None) -> bytes:
    """A zip of the configuration and the weights."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", config or keras_config())
        archive.writestr("model.weights.h5", weights or keras_weights_h5())
    return content.getvalue()
