"""The Keras reader, against Keras itself with JAX underneath."""

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

from convert.readers.keras import read_keras
from convert.source import Source, SourceError, sha256
from flaxvgg.config import VGGConfig
from flaxvgg.mapping import from_torch
from flaxvgg.provenance import PREPROCESSING

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


def _assert_same_weights(source: Source, arch: str, expected: list[list[np.ndarray]]) -> None:
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
        (lambda file, name: file.__setitem__(name, "text"), "has the type object"),
        (
            lambda file, name: file["model_weights"].attrs.__setitem__("layer_names", 7),
            "7 is missing",
        ),
        (
            lambda file, name: file["model_weights"].attrs.__setitem__("layer_names", [b"a", b"a"]),
            "a name twice",
        ),
        (lambda file, name: file.attrs.__setitem__("model_config", "[1]"), "configuration is none"),
        (lambda file, name: file.attrs.__setitem__("model_config", "[" * 9999), "recursion depth"),
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
