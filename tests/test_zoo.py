"""`vgg11` … `vgg19_bn`: initialised, from published weights, and from every kind of file."""

import dataclasses
import hashlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

import flaxvgg
from flaxvgg.network.config import ARCHITECTURES, VGGConfig
from flaxvgg.weights import constructors as zoo
from flaxvgg.weights.checkpoint import CheckpointError
from flaxvgg.weights.mapping import MappingError, entries
from flaxvgg.weights.published import PUBLISHED, Published, WeightsError, imagenet_classes
from helpers import random_images, torch_features, torch_vgg

CLASSES = 4


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return torch_vgg("vgg11", num_classes=CLASSES)


@pytest.fixture(scope="module")
def features(network) -> dict[str, torch.Tensor]:
    return {k: v for k, v in network.state_dict().items() if k.startswith("features.")}


@pytest.fixture(scope="module")
def folder(network, features, tmp_path_factory) -> Path:
    """The same network as every kind of file; `features.*` holds its convolutions only."""
    folder = tmp_path_factory.mktemp("zoo")
    convolutions = flaxvgg.from_torch("vgg11", features)
    flaxvgg.save(convolutions, folder / "features")
    flaxvgg.save(convolutions, folder / "features.safetensors")
    torch.save(features, folder / "features.pth")
    state_dict = network.state_dict()
    torch.save({"state_dict": state_dict}, folder / "whole.pth")
    flaxvgg.save(flaxvgg.from_torch("vgg11", state_dict), folder / "whole.safetensors")
    timm = {
        "pre_logits.fc1.weight": state_dict["classifier.0.weight"].reshape(4096, 512, 7, 7),
        "pre_logits.fc1.bias": state_dict["classifier.0.bias"],
        "pre_logits.fc2.weight": state_dict["classifier.3.weight"].reshape(4096, 4096, 1, 1),
        "pre_logits.fc2.bias": state_dict["classifier.3.bias"],
        "head.fc.weight": state_dict["classifier.6.weight"],
        "head.fc.bias": state_dict["classifier.6.bias"],
    }
    safetensors.torch.save_file(features | timm, folder / "timm.safetensors")
    return folder


def _assert_features(model: flaxvgg.VGG, features: dict[str, torch.Tensor]):
    back = flaxvgg.to_torch(model)
    for name, tensor in features.items():
        assert np.array_equal(back[name], tensor.numpy()), name


# Initialised.


def test_the_eight_architectures():
    for arch in ARCHITECTURES:
        build = getattr(flaxvgg, arch)
        assert build.__name__ == arch
        assert build.__doc__.startswith(f"torchvision's {arch}, ")
        model = nnx.eval_shape(build)
        assert model.config == VGGConfig.classifier(arch)
        assert model.provenance.source == "random initialisation"
        assert model.classes == ()
        keywords = inspect.signature(build).parameters.values()
        assert all(keyword.kind is keyword.KEYWORD_ONLY for keyword in keywords)


def test_initialised_as_asked_for():
    model = nnx.eval_shape(
        lambda: flaxvgg.vgg11_bn(
            num_classes=20,
            dropout=0.1,
            dtype=jnp.bfloat16,
            param_dtype=jnp.float16,
            precision="default",
            rngs=nnx.Rngs(0),
        )
    )
    assert model.config == VGGConfig.classifier("vgg11_bn", num_classes=20, dropout=0.1)
    conv, linear = model.conv_stack.conv1_1, model.head.fc8
    for module in (conv, linear):
        assert (module.dtype, module.param_dtype) == (jnp.bfloat16, jnp.float16)
        assert module.precision == "default"
        assert module.kernel.dtype == jnp.float16
    assert nnx.eval_shape(flaxvgg.vgg11).head.fc8.precision == "highest"
    assert nnx.eval_shape(lambda: flaxvgg.vgg11(dropout=0.0)).head.drop6.rate == 0.0


@pytest.mark.parametrize("classes", [0, -1])
def test_no_classes(classes):
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, not {classes}"):
        flaxvgg.vgg11(num_classes=classes)


# From files.


@pytest.mark.parametrize("name", ["whole.pth", "timm.safetensors"])
def test_a_whole_network_from_a_file(folder, network, name):
    model = flaxvgg.vgg11(weights=folder / name, precision="default")
    assert model.config == VGGConfig.classifier("vgg11", num_classes=CLASSES)
    images = random_images(2, 32, 32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    found = np.asarray(model(jnp.asarray(images)))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_file_of_ours_is_read_with_what_was_saved(folder):
    path = folder / "whole.safetensors"
    model = flaxvgg.vgg11(
        weights=str(path), num_classes=CLASSES, dropout=0.2, param_dtype=jnp.bfloat16
    )
    assert model.config == VGGConfig.classifier("vgg11", num_classes=CLASSES, dropout=0.2)
    assert model.head.drop7.rate == 0.2
    assert {v.dtype for v in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.bfloat16)}
    assert model.head.fc8.param_dtype == jnp.bfloat16
    assert model.head.fc8.dtype == jnp.float32
    with pytest.raises(CheckpointError, match=f"whole.safetensors has {CLASSES} classes$"):
        flaxvgg.vgg11(weights=path, num_classes=1000)


FEATURES = ["features", "features.safetensors", "features.pth"]


@pytest.mark.parametrize("name", FEATURES)
def test_features_from_a_file(folder, features, name):
    model = flaxvgg.vgg11(weights=folder / name)
    _assert_features(model, features)
    assert model.conv_stack.conv1_1.precision == "highest"
    with pytest.raises(ValueError, match="no logits: these weights come without a classifier"):
        model(jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize("name", FEATURES)
def test_dtypes_and_precision_can_be_asked_for(folder, features, name):
    model = flaxvgg.vgg11(
        weights=folder / name, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, precision="default"
    )
    conv = model.conv_stack.conv1_1
    assert conv.dtype == conv.param_dtype == conv.kernel[...].dtype == jnp.bfloat16
    assert conv.precision == "default"
    back = flaxvgg.to_torch(model)
    for key, tensor in features.items():
        assert back[key].dtype == jnp.bfloat16
        assert np.array_equal(back[key].view(np.int16), tensor.bfloat16().view(torch.int16).numpy())


@pytest.mark.parametrize("name", FEATURES)
def test_a_file_of_another_architecture(folder, name):
    if name.endswith(".pth"):
        error, message = MappingError, "^this is no vgg13: these are the weights of a vgg11$"
    else:
        error, message = CheckpointError, f"{name} holds a vgg11, not a vgg13$"
    with pytest.raises(error, match=message):
        flaxvgg.vgg13(weights=folder / name)


def test_another_number_of_classes_than_the_file_has(folder):
    with pytest.raises(CheckpointError, match=f"whole.pth has {CLASSES} classes$"):
        flaxvgg.vgg11(weights=folder / "whole.pth", num_classes=20)


def test_the_file_is_known_to_the_model(folder):
    model = flaxvgg.vgg11(weights=folder / "features.pth")
    digest = hashlib.sha256((folder / "features.pth").read_bytes()).hexdigest()
    assert model.provenance.source == "features.pth"
    assert model.provenance.sha256 == digest
    # A file of ours keeps the record that it was saved with.
    assert flaxvgg.vgg11(weights=folder / "features").provenance.source == "a PyTorch state dict"


def test_relative_paths(folder, features, monkeypatch):
    monkeypatch.chdir(folder)
    for name in FEATURES:
        _assert_features(flaxvgg.vgg11(weights=name), features)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        flaxvgg.vgg11(weights=tmp_path / "missing.pth")
    (tmp_path / "photos").mkdir()
    with pytest.raises(WeightsError, match="photos is a directory: a weights file was expected"):
        flaxvgg.vgg11(weights=tmp_path / "photos")
    (tmp_path / "page.pth").write_text("<html></html>")
    with pytest.raises(WeightsError, match="is a web page"):
        flaxvgg.vgg11(weights=tmp_path / "page.pth")


# Published weights, from this machine.


@pytest.fixture
def fetched(folder, monkeypatch) -> list[tuple[str, Published]]:
    """What would have been downloaded, and whence; files of `folder` take its place."""
    calls = []

    def fetch_hub(record: Published) -> Path:
        calls.append(("hub", record))
        return folder / "features.pth"

    def fetch_torchvision(record: Published) -> Path:
        calls.append(("torchvision", record))
        return folder / "vgg16_features.pth"

    monkeypatch.setattr(zoo, "fetch_hub", fetch_hub)
    monkeypatch.setattr(zoo, "fetch_torchvision", fetch_torchvision)
    return calls


def test_imagenet1k_v1_comes_from_the_hub(fetched, features, folder):
    model = flaxvgg.vgg11(weights="IMAGENET1K_V1")
    (record,) = [r for r in PUBLISHED if r.arch == "vgg11"]
    assert fetched == [("hub", record)]
    _assert_features(model, features)
    assert model.provenance.source == "torchvision VGG11_Weights.IMAGENET1K_V1"
    assert model.classes == imagenet_classes()
    assert model.preprocessing.name == "torchvision"
    digest = hashlib.sha256((folder / "features.pth").read_bytes()).hexdigest()
    assert model.provenance.sha256 == digest


def test_imagenet1k_features_comes_from_torchvision(fetched, folder):
    nan = torch.tensor(float("nan"))
    published = torch_features("vgg16") | {
        entry.torch: nan.expand(entry.torch_shape)
        for entry in entries(VGGConfig.classifier("vgg16"))
        if entry.path[0] == "head"
    }
    torch.save(published, folder / "vgg16_features.pth")
    model = flaxvgg.vgg16(weights="IMAGENET1K_FEATURES")
    assert [(source, record.name) for source, record in fetched] == [
        ("torchvision", "IMAGENET1K_FEATURES")
    ]
    assert model.provenance.source == "torchvision VGG16_Weights.IMAGENET1K_FEATURES"
    assert model.preprocessing.name == "features"
    assert model.classes == ()
    kernel = np.asarray(model.conv_stack.conv5_3.kernel[...])
    expected = published["features.28.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    with pytest.raises(ValueError, match="no logits: its classifier is NaN by design"):
        model(jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "vgg16"])
def test_published_weights_that_an_architecture_lacks(fetched, arch):
    message = f"^{arch} has no published weights 'IMAGENET1K_FEATURES': choose from IMAGENET1K_V1$"
    with pytest.raises(WeightsError, match=message):
        getattr(flaxvgg, arch)(weights="IMAGENET1K_FEATURES")
    assert fetched == []


def test_every_error_is_a_value_error():
    assert all(issubclass(e, ValueError) for e in (WeightsError, CheckpointError, MappingError))
    assert dataclasses.is_dataclass(Published)
