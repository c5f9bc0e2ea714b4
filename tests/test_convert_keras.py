"""The Keras reader, against Keras itself with JAX underneath."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"  # read at the first import of Keras

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers

from flaxvgg.conversion.readers.keras import read_keras
from flaxvgg.conversion.readers.keras_file import LayerWeights
from flaxvgg.conversion.readers.keras_graph import read_graph
from flaxvgg.conversion.readers.keras_layers import read_model
from flaxvgg.conversion.readers.keras_weights import Weights
from flaxvgg.conversion.readers.recognition import recognise
from flaxvgg.conversion.source_weights import SourceError, SourceWeights, sha256
from flaxvgg.images.loading import normalise
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.weights.mapping import config_for, from_torch

# Keras's own, where it makes NumPy arrays of its variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FORMATS = [".h5", ".weights.h5", ".keras"]


@pytest.fixture(scope="module", autouse=True)
def _keras() -> Iterator[None]:
    """Keras as it needs JAX, and quick to make models: random weights and biases from NumPy."""
    rng = np.random.default_rng(0)
    some = rng.standard_normal(1_000_003, np.float32)  # a prime: no repetition fits a shape

    def draw(self, shape, dtype=None, **_):
        scale = np.float32(np.sqrt(2 / np.prod(shape[:-1]))) if len(shape) > 1 else np.float32(0.1)
        return jnp.asarray(np.resize(np.roll(some, rng.integers(len(some))), shape) * scale, dtype)

    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
        patch.setattr(keras.initializers.GlorotUniform, "__call__", draw)
        patch.setattr(keras.initializers.Zeros, "__call__", draw)
        yield


_pool5 = jax.jit(lambda model, images: model.features(images))


def _vgg16(**kwargs) -> keras.Model:
    return keras.applications.VGG16(weights=None, **kwargs)


@pytest.fixture(scope="module")
def features() -> keras.Model:
    return _vgg16(include_top=False, input_shape=(64, 64, 3))


@pytest.fixture(scope="module")
def notop(features: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(features, tmp_path_factory.mktemp("keras") / "notop.h5")


def _save(model: keras.Model, path: Path) -> Path:
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def _layers(model: keras.Model) -> list[list[np.ndarray]]:
    """[kernel, bias] of every convolution and dense layer of Keras's VGG."""
    return [weights for layer in model.layers if (weights := layer.get_weights())]


def _assert_same_weights(
    source: SourceWeights, arch: str, expected: list[list[np.ndarray]]
) -> None:
    config = VGGConfig.classifier(arch)
    names = [layer.torch for layer in config.layers if layer.kind in ("conv", "linear")]
    names = names[: len(expected)]
    assert list(source.state_dict) == [f"{n}.{part}" for n in names for part in ("weight", "bias")]
    for name, (kernel, bias) in zip(names, expected, strict=True):
        weight = source.state_dict[f"{name}.weight"]
        if name == "classifier.0":
            kernel = kernel.reshape(7, 7, 512, 4096)
        torch_layout = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        assert np.array_equal(weight, torch_layout), name
        assert np.array_equal(source.state_dict[f"{name}.bias"], bias), name


def _assert_close(found, expected, rtol: float = 1e-5) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(found), expected, atol=rtol * abs(expected).max())


@pytest.mark.parametrize("suffix", FORMATS)
def test_features_of_every_format(suffix: str, features: keras.Model, tmp_path: Path):
    path = _save(features, tmp_path / f"notop{suffix}")
    source = read_keras(path)
    assert source.arch == "vgg16"
    assert source.provenance.source == path.name
    assert source.provenance.sha256 == sha256(path)
    assert source.provenance.preprocessing == PREPROCESSING["keras"]
    assert source.layer_outputs is None
    assert source.notes == ()
    assert source.provenance.guess
    _assert_same_weights(source, "vgg16", _layers(features))
    images = np.random.default_rng(1).normal(scale=60, size=(2, 64, 64, 3)).astype(np.float32)
    ours = from_torch("vgg16", source.state_dict, precision="default")
    _assert_close(_pool5(ours, jnp.asarray(images)), features.predict(images, verbose=0))


@pytest.mark.slow
def test_classifier_gives_kerass_predictions(tmp_path: Path):
    model = _vgg16(classes=7)
    path = _save(model, tmp_path / "full.weights.h5")
    source = read_keras(path, PREPROCESSING["torchvision"])
    path.unlink()
    assert source.notes == ()
    assert source.provenance.preprocessing == PREPROCESSING["torchvision"]
    _assert_same_weights(source, "vgg16", _layers(model))
    assert source.state_dict["classifier.0.weight"].base is not None  # a view, not 411 MB more
    images = np.random.default_rng(1).normal(scale=60, size=(1, 224, 224, 3)).astype(np.float32)
    names = ["block5_pool", "fc1", "fc2", "predictions"]
    tapped = keras.Model(model.input, [model.get_layer(name).output for name in names])
    outputs = tapped.predict(images, verbose=0)  # compiled, as ours is
    ours = from_torch("vgg16", source.state_dict, precision="default")
    found = jax.jit(lambda model, x: model.activations(x, names))(ours, jnp.asarray(images))
    for name, expected in zip(names, outputs, strict=True):
        _assert_close(found[name], expected)


def test_vgg19(tmp_path: Path):
    model = keras.applications.VGG19(weights=None, include_top=False, input_shape=(32, 32, 3))
    source = read_keras(_save(model, tmp_path / "vgg19.weights.h5"))
    assert source.arch == "vgg19"
    _assert_same_weights(source, "vgg19", _layers(model))


def _official(path: Path, model: keras.Model, head: tuple[tuple[int, int], ...] = ()) -> Path:
    """A file as the official downloads are: Keras 1's names, bytes in the attributes."""
    named = {layer.name: layer.get_weights() for layer in model.layers}
    named |= {
        f"fc{i}": [np.full((rows, units), i, np.float32), np.full(units, i, np.float32)]
        for i, (rows, units) in enumerate(head, start=1)
    }
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in named]
        for name, arrays in named.items():
            group = file.create_group(name)
            weights = [f"{name}_{kind}_1:0" for kind in "Wb"][: len(arrays)]
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, array in zip(weights, arrays, strict=True):
                group[weight] = array
    return path


def test_official_downloads(features: keras.Model, tmp_path: Path):
    path = _official(tmp_path / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", features)
    _assert_same_weights(read_keras(path), "vgg16", _layers(features))


def test_another_head_is_left_out(features: keras.Model, tmp_path: Path):
    source = read_keras(_official(tmp_path / "head.h5", features, ((2048, 256), (256, 4))))
    assert source.notes[0] == "the head 2048-256-4 is not VGG's and is left out: features only"
    _assert_same_weights(source, "vgg16", _layers(features))


@pytest.mark.parametrize("suffix", FORMATS)
def test_fine_tuned_model_with_frozen_layers(suffix: str, features: keras.Model, tmp_path: Path):
    # Keras writes the trainable layers of a nested model before the frozen ones.
    for layer in features.layers[:-4]:
        layer.trainable = False
    model = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            layers.Rescaling(1 / 255),
            features,
            layers.GlobalAveragePooling2D(),
            layers.Dense(16, activation="relu"),
            layers.BatchNormalization(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)  # its moments have the shapes of kernels
    source = read_keras(_save(model, tmp_path / f"tuned{suffix}"))
    features.trainable = True
    assert source.notes[-1] == "the head 512-16-4 is not VGG's and is left out: features only"
    _assert_same_weights(source, "vgg16", _layers(features))


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_bfloat16_weights(suffix: str, features: keras.Model, tmp_path: Path):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    half = _vgg16(include_top=False, input_shape=(32, 32, 3))
    keras.config.set_dtype_policy(policy)
    source = read_keras(_save(half, tmp_path / f"half{suffix}"))
    assert source.state_dict["features.0.weight"].dtype == jnp.bfloat16
    _assert_same_weights(source, "vgg16", _layers(half))


# The same network, built in other ways.


def _built(
    *, padding="same", pool="valid", norm=None, data_format="channels_last", size=32
) -> keras.Sequential:
    shape = (size, size, 3) if data_format == "channels_last" else (3, size, size)
    model = keras.Sequential([keras.Input(shape)])
    for layer in VGGConfig.features_only("vgg11", "").conv_stack:
        if layer.kind == "conv":
            if padding == "valid":
                model.add(layers.ZeroPadding2D((1, 1), data_format=data_format))
            settings = {"use_bias": norm is None, "data_format": data_format}
            model.add(layers.Conv2D(layer.outputs, 3, padding=padding, **settings))
            if norm:
                axis = -1 if data_format == "channels_last" else 1
                model.add(layers.BatchNormalization(axis=axis, **norm))
            model.add(layers.ReLU())
        elif layer.kind == "max_pool":
            model.add(layers.MaxPooling2D(2, padding=pool, data_format=data_format))
    return model


def _output(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model(images, training=False))


BUILT = {
    "zero_padding": {"padding": "valid"},
    "same_pooling": {"pool": "same"},
    "channels_first": {"data_format": "channels_first"},
    "batch_norm": {"norm": {"epsilon": 1.001e-5}},
    "batch_norm_first": {"norm": {"scale": False}, "data_format": "channels_first"},
}


@pytest.mark.parametrize("name", BUILT)
def test_the_same_network_built_in_other_ways(name: str, tmp_path: Path):
    model = _built(**BUILT[name])
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.moving_variance.shape
            layer.moving_variance.assign(np.random.default_rng(2).uniform(0.2, 2, shape))
            layer.moving_mean.assign(np.random.default_rng(3).normal(size=shape))
    source = read_keras(_save(model, tmp_path / "vgg.keras"))
    assert source.arch == ("vgg11_bn" if "norm" in BUILT[name] else "vgg11")
    images = np.random.default_rng(1).normal(scale=60, size=(2, 32, 32, 3)).astype(np.float32)
    first = "data_format" in BUILT[name]
    fed = images.transpose(0, 3, 1, 2) if first else images
    expected = _output(model, fed)
    ours = from_torch(source.arch, source.state_dict, precision="default")
    _assert_close(
        _pool5(ours, jnp.asarray(images)), expected.transpose(0, 2, 3, 1) if first else expected
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "same", "size": 44}, r"pool3 .* has pads \(0, 0, 1, 1\)"),
        ({"padding": "valid", "pool": "same", "size": 33}, r"pool1 .* has pads"),
    ],
)
def test_pooling_that_differs_at_this_size_is_refused(settings, message, tmp_path: Path):
    model = _built(**settings)
    with pytest.raises(SourceError, match=message):
        read_keras(_save(model, tmp_path / "vgg.keras"))


def test_a_gap_head_is_kept(tmp_path: Path):
    model = _built()
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(5, activation="softmax"))
    source = read_keras(_save(model, tmp_path / "gap.keras"))
    assert source.notes == ()
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    ours = from_torch("vgg11", source.state_dict, precision="default")
    assert ours.config.num_classes == 5
    found = ours.activations(jnp.asarray(images), ["prob"])["prob"]
    np.testing.assert_allclose(found, _output(model, images), atol=1e-5)


def test_a_gap_head_on_a_sixth_convolution_is_kept(tmp_path: Path):
    vgg = _built()
    inside = keras.Sequential([keras.Input((32, 32, 3)), *vgg.layers[:-1]])  # no pool5
    inside.add(layers.Conv2D(24, 3, padding="same", activation="relu"))
    inside.add(layers.GlobalAveragePooling2D())
    inside.add(layers.Dense(5))
    source = read_keras(_save(inside, tmp_path / "gap.keras"))
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    ours = from_torch(source.arch, source.state_dict, precision="default")
    assert ours.config == VGGConfig.gap("vgg11", num_classes=5, channels=24)
    found = ours.activations(jnp.asarray(images), ["fc"])["fc"]
    _assert_close(found, _output(inside, images))


def test_an_input_beside_the_images_belongs_to_the_head(tmp_path: Path):
    vgg, image, age = _built(), keras.Input((32, 32, 3)), keras.Input((4,))
    joined = layers.concatenate([layers.Flatten()(vgg(image)), age])
    model = keras.Model([image, age], layers.Dense(2)(joined))
    source = read_keras(_save(model, tmp_path / "two.keras"))
    assert "Concatenate" in source.notes[-1]
    assert "features only" in source.notes[-1]
    _assert_same_weights(source, "vgg11", _layers(vgg))


def test_two_networks_in_a_file_are_refused(tmp_path: Path):
    pair = [keras.Input((32, 32, 3)) for _ in range(2)]
    ends = [_built()(layers.Rescaling(2.0**i)(x)) for i, x in enumerate(pair)]
    with pytest.raises(SourceError, match="has 2 inputs: save the network of one"):
        read_keras(_save(keras.Model(pair, ends), tmp_path / "two.keras"))


def test_vgg_faces_classifier_of_convolutions():
    """Zero padding and valid convolutions, and 7x7, 1x1 and 1x1 as fc6, fc7 and fc8."""
    model = keras.Sequential(list(_built(padding="valid", size=224).layers), name="face")
    for units, k in ((4096, 7), (4096, 1), (11, 1)):
        model.add(layers.Conv2D(units, k, activation=None if units == 11 else "relu"))
        model.add(layers.Dropout(0.5))
    model.add(layers.Flatten())
    model.add(layers.Activation("softmax"))
    graph = read_graph("face", json.loads(model.to_json()))
    arrays, inputs = [], 3
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            k = layer.kernel_size[0]
            taps = np.arange(k * k, dtype=np.float32).reshape(k, k, 1, 1)
            kernel = np.broadcast_to(taps, (k, k, inputs, layer.filters))  # no memory for 400 MB
            bias = np.full(layer.filters, len(arrays), np.float32)
            arrays.append(LayerWeights(layer.name, [kernel, bias], layer.name))
            inputs = layer.filters
    weights = Weights("face", arrays, {call.layer for call in graph.calls})
    found = recognise("face", read_model(graph, weights)[1])
    assert found.notes == []
    assert list(found.head) == ["fc6", "relu6", "fc7", "relu7", "fc8", "prob"]
    assert config_for("vgg11", found.state)[0] == VGGConfig.classifier("vgg11", num_classes=11)
    fc6 = found.state["classifier.0.weight"]
    assert fc6.shape == (4096, 512, 7, 7)
    np.testing.assert_array_equal(fc6[5, 6], np.arange(49).reshape(7, 7))
    assert [found.state[f"classifier.{i}.bias"][0] for i in (0, 3, 6)] == [8, 9, 10]


_SLICE = {"start": None, "stop": None, "step": -1}
SPECS = {
    "list": [{"class_name": "__ellipsis__"}, _SLICE],
    "tuple": {"class_name": "__tuple__", "items": [{"class_name": "__ellipsis__"}, _SLICE]},
}


@pytest.mark.parametrize("spec", SPECS)
def test_operations_as_keras_2_wrote_them(spec: str, tmp_path: Path):
    """preprocess_input in a graph: SlicingOpLambda and TFOpLambda."""
    model = _built()
    config = model.get_config()["layers"][1:]
    own = {"name": "input_1", "batch_input_shape": [None, 32, 32, 3]}
    nodes = [{"class_name": "InputLayer", "config": own, "name": "input_1", "inbound_nodes": []}]
    last = "input_1"

    def operation(kind: str, called: str, function: str, **options) -> None:
        nonlocal last
        own = {"name": called, "trainable": True, "dtype": "float32", "function": function}
        call = [[last, 0, 0, options]]
        nodes.append({"class_name": kind, "config": own, "name": called, "inbound_nodes": call})
        last = called

    operation("SlicingOpLambda", "get", "__operators__.getitem", slice_spec=SPECS[spec])
    means = [-103.939, -116.779, -123.68]
    operation("TFOpLambda", "tf.nn.bias_add", "nn.bias_add", bias=means)
    operation("TFOpLambda", "tf.math.truediv", "math.truediv", y=127.5, name=None)
    for layer in config:
        name = layer["config"]["name"]
        nodes.append(layer | {"name": name, "inbound_nodes": [[[last, 0, 0, {}]]]})
        last = name
    ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [[last, 0, 0]]}
    path = _save(model, tmp_path / "two.h5")
    with h5py.File(path, "a") as file:
        whole = {"class_name": "Functional", "config": {"name": "m", "layers": nodes} | ends}
        file.attrs["model_config"] = json.dumps(whole, default=str)
    source = read_keras(path)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3)).astype(np.uint8)
    fed = (pixels[..., ::-1] + np.array(means, np.float32)) / np.float32(127.5)
    ours = from_torch("vgg11", source.state_dict, precision="default")
    found = _pool5(ours, normalise(pixels, source.provenance.preprocessing))
    _assert_close(found, _output(model, fed))


# What is no VGG, and what is no Keras file.


def _plain(
    counts: tuple[int, ...] = (1, 1, 2, 2, 2), pooling=layers.MaxPooling2D, classes=None, **conv
) -> keras.Model:
    model = keras.Sequential([keras.Input((32, 32, 3))])
    settings = {"padding": "same", "activation": "relu"} | conv
    for count, width in zip(counts, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            model.add(layers.Conv2D(width, 3, **settings))
        model.add(pooling(2))
    if classes:
        model.add(layers.Flatten())
        model.add(layers.Dense(classes, activation="softmax"))
    return model


def test_vgg11_with_layers_of_its_own_names(tmp_path: Path):
    source = read_keras(_save(_plain(classes=4), tmp_path / "vgg11.keras"))
    assert source.arch == "vgg11"
    assert source.notes[0] == "the head 512-4 is not VGG's and is left out: features only"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "tanh"}, r"after conv1_1 comes tanh .*where vgg11 has a relu \(relu1_1\)"),
        ({"activation": None}, r"comes max_pool .*where vgg11 has a relu \(relu1_1\)"),
        ({"dilation_rate": 2}, r"conv1_1 .* has .*dilations \(2, 2\), not \(1, 1\)"),
        ({"pooling": layers.AveragePooling2D}, "after relu1_1 comes AveragePooling2D"),
        ({"counts": (1, 2, 1, 2, 2)}, "where vgg11 has"),
        ({"counts": (1, 1, 2, 2, 3)}, "after relu5_2 comes conv"),
        ({"activation": "relu6"}, "comes relu6"),
    ],
)
def test_another_network_is_refused(settings: dict, message: str, tmp_path: Path):
    path = _save(_plain(**settings), tmp_path / "other.keras")
    with pytest.raises(SourceError, match=message) as error:
        read_keras(path)
    assert "\n" not in str(error.value)


def test_batch_norm_is_refused(tmp_path: Path):
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for width in (64, 64):
        model.add(layers.Conv2D(width, 3, padding="same"))
        model.add(layers.BatchNormalization())
    with pytest.raises(SourceError, match="nothing says where among the conv"):
        read_keras(_save(model, tmp_path / "resnet.weights.h5"))


def _without(path: Path, tmp_path: Path, *names: str) -> Path:
    copy = tmp_path / "changed.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "a") as file:
        for name in names:
            del file[name]
    return copy


def test_missing_arrays_are_named(notop: Path, tmp_path: Path):
    name = "model_weights/block3_conv2/block3_conv2/bias"
    with pytest.raises(
        SourceError, match=r"changed\.h5 cannot be read: block3_conv2/bias is missing"
    ):
        read_keras(_without(notop, tmp_path, name))


def test_missing_variables_and_layers_are_named(features: keras.Model, tmp_path: Path):
    path = _save(features, tmp_path / "whole.weights.h5")
    with pytest.raises(SourceError, match="block2_conv2 must have a kernel and a bias"):
        read_keras(_without(path, tmp_path, "layers/conv2d_3/vars/1"))
    with pytest.raises(SourceError, match="it has 12 convolutions"):
        read_keras(_without(path, tmp_path, "layers/conv2d_3"))


def test_hdf5_of_something_else_is_refused(tmp_path: Path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(SourceError, match="holds no weights of a Keras model"):
        read_keras(tmp_path / "other.h5")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("data.txt", "")
    with pytest.raises(SourceError, match=r"no item named 'model.weights.h5'"):
        read_keras(tmp_path / "other.keras")


def _replaced(path: Path, change) -> Path:
    """The file with another dataset in the place of the first."""
    with h5py.File(path, "r+") as file:
        layer = file["model_weights/block1_conv1"]
        name = layer[layer.attrs["weight_names"][0]].name
        assert file[name].shape == (3, 3, 3, 64)
        old = file[name][()]
        del file[name]
        change(file, name)
        if name not in file:
            file[name] = old
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file, name: file.create_dataset(name, (2**20,) * 3, "f4", chunks=(1, 1, 1)), "unp"),
        (lambda file, name: file.create_dataset(name, (9,), "u1", external=[("a", 0, 9)]), "other"),
        (lambda file, name: file.__setitem__(name, h5py.ExternalLink("other.h5", "x")), "another"),
        (lambda file, name: file.__setitem__(name, h5py.Empty("f4")), "is no array"),
        (lambda file, name: file.create_group(name), "is no array"),
        (lambda file, name: file.__setitem__(name, "text"), "is no array of numbers"),
        (
            lambda file, name: file["model_weights"].attrs.__setitem__("layer_names", 7),
            "the attribute layer_names of /model_weights is no text",
        ),
        (
            lambda file, name: file["model_weights"].attrs.__setitem__("layer_names", [b"a", b"a"]),
            "a name twice",
        ),
        (lambda file, name: file.attrs.__setitem__("model_config", "[1]"), "configuration is none"),
        (
            lambda file, name: file.attrs.__setitem__("model_config", "[" * 9999),
            "nested more than 100",
        ),
    ],
)
def test_hostile_hdf5_is_refused(change, said: str, notop: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("other.h5", "w") as file:
        file["x"] = np.zeros((3, 3, 3, 64), np.float32)
    Path("copy.h5").write_bytes(notop.read_bytes())
    with pytest.raises(SourceError, match=said):
        read_keras(_replaced(Path("copy.h5"), change))


def test_a_heap_without_an_end_is_refused(tmp_path: Path):
    """HDF5 itself would never come back."""
    path = tmp_path / "vgg.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL") + 16
    content[heap : heap + 16] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(SourceError, match="its strings are damaged"):
        read_keras(path)


@pytest.mark.parametrize(
    ("whole", "damaged", "said"),
    [
        # A sequence of a kind that there is not, on which HDF5 would crash.
        (b"\x19\x01\x01\0", b"\x19\xff\xff\0", "the attribute name of .*/vars is no text"),
        (b"\x19\x01\x01\0", b"\x19\x01\x02\0", "the attribute name of .*/vars is no text"),
        # Numbers that become times, or texts in an encoding that there is not.
        (b"\x11\x20\x1f\0", b"\x12\x20\x1f\0", "/vars/0 is no array of numbers"),
        (b"\x11\x20\x1f\0", b"\x13\x20\x1f\0", "/vars/0 is no array of numbers"),
    ],
)
def test_damaged_types_are_refused(whole, damaged, said: str, features: keras.Model, tmp_path):
    path = _save(features, tmp_path / "vgg.weights.h5")
    assert whole in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(whole, damaged))
    with pytest.raises(SourceError, match=said):
        read_keras(path)


def test_layers_of_one_name_are_told_apart_by_their_places(features: keras.Model, tmp_path: Path):
    path = _save(features, tmp_path / "vgg.weights.h5")
    expected = read_keras(path).state_dict
    with h5py.File(path, "r+") as file:
        for other in ("conv2d_1", "conv2d_2"):
            file[f"layers/{other}/vars"].attrs["name"] = file["layers/conv2d/vars"].attrs["name"]
    found = read_keras(path).state_dict
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("instead", ["conv3d_11", "conv2d_13", "my_conv_11"])
def test_convolutions_in_no_known_order_are_refused(
    instead: str, features: keras.Model, tmp_path: Path
):
    """The last three have one shape: in the wrong order nothing would be noticed."""
    path = _save(features, tmp_path / "vgg.weights.h5")
    with h5py.File(path, "r+") as file:
        file.move("layers/conv2d_11", f"layers/{instead}")
    with pytest.raises(SourceError, match="does not number its convolutions as Keras does"):
        read_keras(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(4 << 20))
    with pytest.raises(SourceError, match=r"model\.weights\.h5 would unpack to 4194304 bytes"):
        read_keras(tmp_path / "bomb.keras")


@pytest.mark.parametrize("name", ["html", "half.h5", "half.keras", "empty", "missing"])
def test_bad_files_are_refused_in_one_line(
    name: str, notop: Path, features: keras.Model, tmp_path: Path
):
    whole = _save(features, tmp_path / "whole.keras") if name.endswith(".keras") else notop
    contents = {"html": b"<!DOCTYPE html><html></html>", "empty": b""}
    content = contents.get(name, whole.read_bytes()[: whole.stat().st_size // 2])
    if name != "missing":
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=name) as error:
        read_keras(tmp_path / name)
    assert "\n" not in str(error.value)
