"""Other heads: global average pooling and linear, and the classifier as convolutions."""

import copy
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from flax import nnx

import flaxvgg
from flaxvgg.conversion.source_weights import SourceWeights
from flaxvgg.conversion.target import convert
from flaxvgg.conversion.verify import verify
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG, run_layers
from flaxvgg.network.provenance import Provenance
from flaxvgg.weights.mapping import MappingError
from helpers import TINY_CLASSIFIER, assert_holds, random_images, tiny_vgg


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.vgg16(num_classes=10).eval()
        for module in network.classifier:
            if hasattr(module, "bias"):
                torch.nn.init.normal_(module.bias, std=0.1)
        return network


@pytest.fixture(scope="module")
def model(network: torch.nn.Module) -> VGG:
    source = Provenance("a test", classes=tuple("abcdefghij"))
    state_dict = network.state_dict()
    return flaxvgg.from_torch("vgg16", state_dict, precision="default", provenance=source)


def torch_gap(network: torch.nn.Module, channels: int | None) -> torch.nn.Module:
    """The same in PyTorch, as one writes it there."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        gap = torchvision.models.VGG(copy.deepcopy(network.features), init_weights=False)
        if channels is not None:
            conv6 = torch.nn.Conv2d(512, channels, 3, padding=1)
            gap.features = torch.nn.Sequential(*gap.features[:-1], conv6, torch.nn.ReLU())
        gap.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        gap.classifier = torch.nn.Linear(channels or 512, 6)
        return gap.eval()


@pytest.mark.parametrize("channels", [None, 1024])
def test_a_gap_head_goes_to_pytorch_and_back(
    network: torch.nn.Module, model: VGG, channels: int | None, tmp_path: Path
):
    theirs = torch_gap(network, channels)
    ours = flaxvgg.from_torch("vgg16", theirs.state_dict(), precision="default")
    assert ours.config == VGGConfig.gap("vgg16", num_classes=6, channels=channels)
    images = random_images(2, 48, 48)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert jax.jit(VGG.__call__)(ours, images) == pytest.approx(expected, rel=1e-4, abs=1e-6)

    returned = flaxvgg.to_torch(ours)
    assert list(returned) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert np.array_equal(returned[name], tensor.numpy()), name

    path = tmp_path / "gap.safetensors"
    flaxvgg.save(ours, path)
    again = flaxvgg.load(path)
    assert again.config == ours.config
    assert np.array_equal(again.head.fc.kernel[...], ours.head.fc.kernel[...])


def test_state_dicts_of_other_gap_networks_are_refused(network: torch.nn.Module):
    state_dict = torch_gap(network, 1024).state_dict()
    with pytest.raises(MappingError, match="these are the weights of a vgg16"):
        flaxvgg.from_torch("vgg19", state_dict)
    del state_dict["features.30.bias"]
    with pytest.raises(MappingError, match=r"features\.30\.bias: missing"):
        flaxvgg.from_torch("vgg16", state_dict)


@pytest.mark.parametrize("channels", [None, 64])
def test_with_gap_keeps_the_convolutions(model: VGG, channels: int | None):
    gap = flaxvgg.with_gap(model, 20, channels=channels, rngs=nnx.Rngs(3))
    for name in ("conv1_1", "conv5_3"):
        ours, theirs = getattr(gap.conv_stack, name), getattr(model.conv_stack, name)
        assert ours.kernel[...] is theirs.kernel[...]  # shared, not copied
    assert gap.config.num_classes == 20
    assert gap.head.fc.kernel.shape == (channels or 512, 20)
    assert gap.preprocessing == model.preprocessing
    assert gap.classes == ()  # they were the old head's
    assert (gap.head.fc.kernel[...] != 0).all()
    images = random_images(1, 32, 32)
    assert np.array_equal(
        gap.activations(images, ["relu5_3"])["relu5_3"],
        model.activations(images, ["relu5_3"])["relu5_3"],
    )
    if channels is None:
        pooled = np.asarray(model.gap(images))
        expected = pooled @ np.asarray(gap.head.fc.kernel[...])
        assert gap(images) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    else:
        assert gap.features(images).shape == (1, 2, 2, 64)
        assert gap.gap(images).shape == (1, 64)


def test_without_rngs_a_head_is_that_of_seed_0(model: VGG):
    found, expected = flaxvgg.with_gap(model, 3), flaxvgg.with_gap(model, 3, rngs=nnx.Rngs(0))
    assert np.array_equal(found.head.fc.kernel[...], expected.head.fc.kernel[...])
    assert np.array_equal(found.head.fc.bias[...], expected.head.fc.bias[...])


def test_a_gap_model_is_cut_off_from_later_updates(model: VGG):
    gap = flaxvgg.with_gap(model, 2, rngs=nnx.Rngs(0))
    before = np.asarray(model.conv_stack.conv1_1.bias[...])
    gap.conv_stack.conv1_1.bias[...] += 1.0
    assert np.array_equal(model.conv_stack.conv1_1.bias[...], before)


def torch_dense_head(network: torch.nn.Module) -> torch.nn.Module:
    """fc6, fc7 and fc8 as PyTorch's convolutions."""
    layers = []
    for linear, size in zip((0, 3, 6), (7, 1, 1), strict=True):
        weight = network.classifier[linear].weight
        conv = torch.nn.Conv2d(weight.shape[1] // size**2, weight.shape[0], size)
        conv.weight.data = weight.data.reshape(conv.weight.shape)
        conv.bias.data = network.classifier[linear].bias.data
        layers += [conv, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("size", [(448, 448), (375, 1242)], ids=str)
def test_fully_convolutional_equals_pytorchs_conversion(
    network: torch.nn.Module, model: VGG, size: tuple[int, int]
):
    dense = flaxvgg.fully_convolutional(model)
    height, width = size[0] // 32, size[1] // 32
    pool5 = np.maximum(random_images(1, height, width, channels=512), 0)
    run = jax.jit(lambda stacks, x: run_layers(stacks, x, ["fc8"], after="pool5")["fc8"])
    ours = run((dense.conv_stack, dense.head), jnp.asarray(pool5))
    with torch.no_grad():
        theirs = torch_dense_head(network)(torch.from_numpy(pool5).permute(0, 3, 1, 2))
    expected = theirs.permute(0, 2, 3, 1).numpy()
    assert ours.shape == expected.shape == (1, height - 6, width - 6, 10)
    assert ours == pytest.approx(expected, abs=1e-5 * float(np.abs(expected).max()))


def test_fully_convolutional_equals_the_classifier_at_224(model: VGG):
    dense = flaxvgg.fully_convolutional(model)
    images = jnp.asarray(random_images(1, 224, 224))
    pool5 = jax.jit(VGG.features)(model, images)

    def logits(model: VGG, pool5: jax.Array) -> jax.Array:
        stacks = model.conv_stack, model.head
        return jax.jit(lambda stacks, x: run_layers(stacks, x, ["fc8"], after="pool5"))(
            stacks, pool5
        )["fc8"]

    ours, theirs = logits(dense, pool5), logits(model, pool5)
    assert ours.shape == (1, 1, 1, 10)
    assert ours[0, 0] == pytest.approx(np.asarray(theirs), rel=1e-5, abs=1e-7)
    assert dense.classes == model.classes
    assert dense.head.fc6.kernel[...] is model.head.fc6.kernel[...]
    both = [flaxvgg.explain(m, images, "all", "grad_cam", "pool5") for m in (model, dense)]
    scale = float(np.abs(both[0].maps).max())
    assert both[1].maps == pytest.approx(np.asarray(both[0].maps), abs=1e-4 * scale)


def test_only_a_classifier_becomes_fully_convolutional(model: VGG):
    gap = flaxvgg.with_gap(model, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"only a classifier with fc6.*this head is gap"):
        flaxvgg.fully_convolutional(gap)
    headless = flaxvgg.from_torch(
        "vgg16", {k: v for k, v in flaxvgg.to_torch(model).items() if k.startswith("features")}
    )
    with pytest.raises(ValueError, match="these weights come without a classifier"):
        flaxvgg.fully_convolutional(headless)
    with pytest.raises(ValueError, match="at least 224x224"):
        flaxvgg.fully_convolutional(model)(random_images(1, 192, 192))


def test_score_maps_of_several_scales(monkeypatch: pytest.MonkeyPatch):
    # The tiny network pools twice: 32x32 gives an 8x8 map and 2x2 windows of 7x7.
    model = tiny_vgg(TINY_CLASSIFIER)
    images = jnp.asarray(random_images(2, 32, 32))
    dense = flaxvgg.fully_convolutional(model)
    single = flaxvgg.score_maps(model, images, scales=[1.0])
    assert single.shape == (2, 8, 8, 7)
    raw = np.asarray(dense(images))
    assert raw.shape == (2, 2, 2, 7)
    assert single[:, 3:5, 3:5] == pytest.approx(raw, rel=1e-4, abs=1e-5)
    # Beyond the outermost windows' centres the nearest score is repeated.
    assert np.array_equal(single[:, 0, 0], single[:, 3, 3])
    assert np.array_equal(single[:, 7, 2], single[:, 4, 3])
    assert flaxvgg.score_maps(model, images).shape == (2, 16, 16, 7)  # the recipe: enlarged by 2
    one, two = (np.asarray(flaxvgg.score_maps(dense, images, scales=[s])) for s in (1.0, 2.0))
    mean = np.asarray(flaxvgg.score_maps(model, images, scales=(1.0, 2.0)))
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(np.moveaxis(one, -1, 1).copy()), (16, 16), mode="bilinear"
    ).numpy()
    assert mean == pytest.approx((np.moveaxis(enlarged, 1, -1) + two) / 2, rel=1e-4, abs=1e-5)
    found = flaxvgg.explain(model, images, [2, 5], "fully_convolutional")
    assert np.array_equal(found.maps, np.moveaxis(two, -1, 1)[:, [2, 5]])
    assert found.scores == pytest.approx(two.mean(axis=(1, 2))[:, [2, 5]], rel=1e-4, abs=1e-6)
    for scales in ([], [0.0], [-1.0]):
        with pytest.raises(ValueError, match="positive numbers, at least one"):
            flaxvgg.score_maps(model, images, scales)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_classes": 0}, "num_classes"), ({"num_classes": 2, "channels": 0}, "channels")],
)
def test_sizes_under_one_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=f"{message} must be at least 1"):
        flaxvgg.with_gap(tiny_vgg(), **arguments, rngs=nnx.Rngs(0))


def test_a_gap_network_of_pytorch_is_converted_and_verified():
    config = VGGConfig.gap("vgg11", num_classes=3, channels=8)
    state_dict = flaxvgg.to_torch(VGG(config, rngs=nnx.Rngs(0)))
    source = SourceWeights("vgg11", dict(state_dict), Provenance("gap.pth"))
    model = convert(dataclasses.replace(source, state_dict=dict(state_dict)))
    assert model.config == config
    checks = verify(model, source, random_images(1, 48, 48))["PyTorch"]
    assert tuple(check.layer for check in checks) == config.layer_names
    assert_holds(checks)
