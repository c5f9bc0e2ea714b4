"""What stands before the first convolution, against Keras and ONNX Runtime themselves."""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"  # read at the first import of Keras

import jax
import jax.numpy as jnp
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from flaxvgg.conversion.readers.keras import read_keras
from flaxvgg.conversion.readers.onnx import read_onnx
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.source_weights import SourceError, SourceWeights
from flaxvgg.conversion.verify import verify
from flaxvgg.images.loading import normalise
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.weights.mapping import from_torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
STACK = VGGConfig.features_only("vgg11", "").conv_stack
PIXELS = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
_pool5 = jax.jit(lambda model, images: model.features(images))


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for layer in STACK:
        if layer.kind == "conv":
            shape = (layer.outputs, layer.inputs, 3, 3)
            scale = np.float32(np.sqrt(2 / (9 * layer.inputs)))
            found[f"{layer.torch}.weight"] = rng.standard_normal(shape, np.float32) * scale
            found[f"{layer.torch}.bias"] = rng.standard_normal(layer.outputs, np.float32)
    return found


def _assert_pool5(source: SourceWeights, expected: np.ndarray) -> None:
    """Our pool5 of the pixels, by the recipe that was read, is the framework's."""
    ours = from_torch(source.arch, dict(source.state_dict), precision="default")
    images = normalise(PIXELS, source.provenance.preprocessing)
    found = np.asarray(_pool5(ours, images))
    np.testing.assert_allclose(found, expected, atol=5e-6 * abs(expected).max())


# Keras.


@pytest.fixture(scope="module", autouse=True)
def _keras():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def vgg(state: dict[str, np.ndarray]) -> keras.Model:
    with jax.numpy_rank_promotion("allow"):
        model = keras.Sequential([keras.Input((32, 32, 3))])
        for layer in STACK:
            if layer.kind == "conv":
                model.add(layers.Conv2D(layer.outputs, 3, padding="same", activation="relu"))
                kernel = state[f"{layer.torch}.weight"].transpose(2, 3, 1, 0)
                model.layers[-1].set_weights([kernel, state[f"{layer.torch}.bias"]])
            elif layer.kind == "max_pool":
                model.add(layers.MaxPooling2D(2))
        return model


def _weighted(layer: keras.Layer, *weights) -> keras.Layer:
    layer.build((None, 32, 32, 3))
    layer.set_weights([np.asarray(x, np.float32) for x in weights])
    return layer


def _behind(front, vgg: keras.Model) -> keras.Model:
    image = keras.Input((32, 32, 3))
    return keras.Model(image, vgg(front(image)))


def _adapted() -> keras.Layer:
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)))
    return layer


CARRIED = {
    "rescaling": lambda: layers.Rescaling(1 / 127.5, offset=-1),
    "normalization": lambda: layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 5, 6]),
    "inverted": lambda: layers.Normalization(mean=[1.0, 2, 3], variance=[4, 5, 6], invert=True),
    "adapted": _adapted,
    "batch_norm": lambda: _weighted(
        layers.BatchNormalization(), [1, 2, 3], [0.1, 0.2, 0.3], [99, 110, 120], [50, 60, 70]
    ),
    "diagonal": lambda: _weighted(
        layers.Conv2D(3, 1), np.diag([0.5, 0.25, 2])[None, None], [1, 2, 3]
    ),
    "preprocess_input": lambda: keras.applications.vgg16.preprocess_input,
    "slices": lambda: lambda x: x[..., ::-1] / 255.0 - np.array([0.1, 0.2, 0.3], "float32"),
    "reflected": lambda: lambda x: 1.0 - x / 127.5,
    "nested": lambda: keras.Sequential([layers.Dropout(0.1), layers.Rescaling([0.1, 0.2, 0.3])]),
}


@pytest.mark.parametrize("name", CARRIED)
def test_arithmetic_on_colours_becomes_the_recipe(name: str, vgg: keras.Model, tmp_path: Path):
    model = _behind(CARRIED[name](), vgg)
    model.save(tmp_path / "vgg.keras")
    source = read_keras(tmp_path / "vgg.keras")
    assert "is part of the recipe" in source.notes[0]
    _assert_pool5(source, np.asarray(model(PIXELS.astype(np.float32), training=False)))


def test_the_recipe_of_preprocess_input_has_its_name(vgg: keras.Model, tmp_path: Path):
    _behind(keras.applications.vgg16.preprocess_input, vgg).save(tmp_path / "vgg.h5")
    source = read_keras(tmp_path / "vgg.h5")
    assert source.provenance.preprocessing == PREPROCESSING["keras"]
    assert not source.provenance.guess


def test_a_recipe_that_is_given_comes_before_the_files_own(vgg: keras.Model, tmp_path: Path):
    model = _behind(layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3]), vgg)
    model.save(tmp_path / "vgg.keras")
    assert "look made for 0 to 1" in read_keras(tmp_path / "vgg.keras").provenance.guess
    source = read_source(str(tmp_path / "vgg.keras"), preprocessing="unit")
    assert not source.provenance.guess
    _assert_pool5(source, np.asarray(model(PIXELS.astype(np.float32) / 255, training=False)))


IDLE = {
    "flip": lambda: layers.RandomFlip(),
    "rotation": lambda: layers.RandomRotation(0.2),
    "noise": lambda: layers.GaussianNoise(1.0),
    "same_size": lambda: layers.Resizing(32, 32),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_does_nothing_at_inference_is_passed_over(name, vgg: keras.Model, tmp_path: Path):
    model = _behind(IDLE[name](), vgg)
    model.save(tmp_path / "vgg.keras")
    source = read_keras(tmp_path / "vgg.keras")
    assert source.provenance.preprocessing == PREPROCESSING["keras"]
    assert source.provenance.guess
    assert ("augmentation" in "".join(source.notes)) == (name in ("flip", "rotation"))
    fed = keras.applications.vgg16.preprocess_input(PIXELS.astype(np.float32))
    _assert_pool5(source, np.asarray(model(fed, training=False)))


@pytest.mark.parametrize(
    ("front", "message"),
    [
        (lambda: layers.Lambda(lambda x: x[..., ::-1]), "comes Lambda .* which is never run"),
        (lambda: lambda x: layers.Dropout(0.5)(x, training=True), "Dropout with training=True"),
        (lambda: layers.Conv2D(3, 1), "no recipe for RGB images"),
        (lambda: lambda x: keras.ops.stack([x[..., i] for i in (1, 0, 2)], -1), "no recipe for"),
        (lambda: lambda x: x * x, "comes Multiply|a junction"),
        (lambda: keras.Sequential([layers.RandomCrop(24, 24), layers.Resizing(32, 32)]), "Crop"),
    ],
)
def test_anything_else_is_refused_by_name(front, message: str, vgg: keras.Model, tmp_path: Path):
    _behind(front(), vgg).save(tmp_path / "vgg.keras")
    with pytest.raises(SourceError, match=message) as error:
        read_keras(tmp_path / "vgg.keras")
    assert "\n" not in str(error.value)


# ONNX.


def _onnx(state, path: Path, front, opset: int = 13, floats=TensorProto.FLOAT) -> Path:
    """vgg11 in ONNX behind nodes that `front` adds; quantised weights are `weight`'s business."""
    nodes, weights = [], []

    def constant(value, dtype=np.float32) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value, dtype), f"w{len(weights)}"))
        return weights[-1].name

    def add(op: str, *inputs: str, outputs: int = 1, **attributes) -> str:
        made = [f"t{len(nodes)}", *(f"t{len(nodes)}.{i}" for i in range(1, outputs))]
        nodes.append(helper.make_node(op, inputs, made, **attributes))
        return nodes[-1].output[0]

    x = front(add, constant, "image")
    for layer in STACK:
        if layer.kind == "conv":
            names = (constant(state[f"{layer.torch}.{part}"]) for part in ("weight", "bias"))
            x = add("Conv", x, *names, pads=[1, 1, 1, 1])
        elif layer.kind == "relu":
            x = add("Relu", x)
        else:
            x = add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    image = helper.make_tensor_value_info("image", floats, [1, 3, 32, 32])
    output = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "vgg", [image], [output], weights)
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def _colours(values) -> np.ndarray:
    return np.reshape(values, (3, 1, 1))


def _normalised(add, constant, x):
    x = add("Sub", x, constant(_colours([0.485, 0.456, 0.406])))
    return add("Div", x, constant(_colours([0.229, 0.224, 0.225])))


def _caffe(add, constant, x):
    x = add("Gather", x, constant([2, 1, 0], np.int64), axis=1)
    return add("Add", x, constant(_colours([-103.939, -116.779, -123.68])))


def _scaled(add, constant, x):
    return add("Add", add("Mul", x, constant(1 / 127.5)), constant(-1))


@pytest.mark.parametrize(
    ("front", "divisor", "name"),
    [(_normalised, 255, "torchvision"), (_caffe, 1, "keras"), (_scaled, 1, "own")],
)
def test_arithmetic_in_a_graph_becomes_the_recipe(front, divisor, name, state, tmp_path: Path):
    path = _onnx(state, tmp_path / "vgg.onnx", front)
    source = read_onnx(path)
    assert source.provenance.preprocessing.name == name
    assert "the file's own input is taken to be RGB" in source.provenance.guess
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fed = PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(divisor)
    (expected,) = session.run(None, {"image": fed})
    expected = expected.transpose(0, 2, 3, 1)
    _assert_pool5(source, expected)
    images = np.asarray(normalise(PIXELS, source.provenance.preprocessing))
    found = source.layer_outputs(images)["pool5"]  # from the first convolution on
    np.testing.assert_allclose(found, expected, atol=5e-6 * abs(expected).max())


@pytest.mark.parametrize(
    ("front", "message"),
    [
        (lambda add, constant, x: add("Clip", x, constant(0.0), constant(1.0)), "comes Clip"),
        (lambda add, constant, x: add("Mul", x, x), "comes Mul"),
        (
            lambda add, constant, x: add("Resize", x, "", constant([1, 1, 2, 2]), mode="linear"),
            "comes Resize .* resize the images beforehand",
        ),
    ],
)
def test_other_nodes_in_front_are_refused_by_name(front, message, state, tmp_path: Path):
    with pytest.raises(SourceError, match=message):
        read_onnx(_onnx(state, tmp_path / "vgg.onnx", front))


def _rounded(add, constant, x):
    scale, zero = constant(0.1), constant(0, np.uint8)
    return add("DequantizeLinear", add("QuantizeLinear", x, scale, zero), scale, zero)


def _dynamic(add, constant, x):
    """As ONNX Runtime quantises while it runs."""
    whole = add("DynamicQuantizeLinear", x, outputs=3)
    sums = add("ConvInteger", whole, constant(np.ones((3, 3, 1, 1)), np.uint8), f"{whole}.2")
    return add("Mul", add("Cast", sums, to=TensorProto.FLOAT), f"{whole}.1")


def _static(add, constant, x):
    scale, zero = constant(0.1), constant(0, np.uint8)
    kernel = constant(np.ones((3, 3, 1, 1)), np.uint8)
    whole = add("QuantizeLinear", x, scale, zero)
    whole = add("QLinearConv", whole, scale, zero, kernel, scale, zero, scale, zero)
    return add("DequantizeLinear", whole, scale, zero)


@pytest.mark.parametrize("front", [_rounded, _dynamic, _static])
def test_quantised_activations_are_refused_by_that_word(front, state, tmp_path: Path):
    path = _onnx(state, tmp_path / "vgg.onnx", front)
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])  # a network that runs
    with pytest.raises(SourceError, match=r"is quantised: .*QuantizeLinear.* the float model"):
        read_onnx(path)


def test_weights_in_8_bits_are_dequantised(state, tmp_path: Path):
    path = _onnx(state, tmp_path / "vgg.onnx", lambda add, constant, x: x)
    model = onnx.load(path)
    graph = model.graph
    scale = numpy_helper.from_array(np.float32(0.02), "scale")
    zero = numpy_helper.from_array(np.int8(3), "zero")
    conv = next(node for node in graph.node if node.op_type == "Conv")
    kept = np.random.default_rng(0).integers(-128, 128, (64, 3, 3, 3)).astype(np.int8)
    graph.initializer.extend([scale, zero, numpy_helper.from_array(kept, "kept")])
    node = helper.make_node("DequantizeLinear", ["kept", "scale", "zero"], ["dequantised"])
    graph.node.insert(0, node)
    conv.input[1] = "dequantised"
    onnx.save(model, path)
    source = read_onnx(path)
    expected = (kept.astype(np.float32) - 3) * np.float32(0.02)
    np.testing.assert_array_equal(source.state_dict["features.0.weight"], expected)
    assert "1 weights" in source.notes[0]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = np.asarray(normalise(PIXELS, source.provenance.preprocessing))
    (found,) = session.run(None, {"image": images.transpose(0, 3, 1, 2)})
    _assert_pool5(source, found.transpose(0, 2, 3, 1))


def test_what_onnx_runtime_does_not_run_is_verified_against_pytorch(state, tmp_path: Path):
    path = _onnx(state, tmp_path / "old.onnx", lambda add, constant, x: x, opset=3)
    source = read_onnx(path)
    model = from_torch("vgg11", dict(source.state_dict))
    images = jnp.asarray(normalise(PIXELS, source.provenance.preprocessing))
    checks = verify(model, source, np.asarray(images))
    assert list(checks) == ["PyTorch"]
    assert len(checks["PyTorch"]) == len(STACK)
    assert source.notes[-1].startswith("ONNX Runtime does not run old.onnx (")
    assert source.notes[-1].endswith("verified against PyTorch alone")
