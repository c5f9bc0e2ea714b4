"""The verification itself: what it accepts and what it finds, on cases made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxvgg.conversion import rule
from flaxvgg.conversion import verify as verify_module
from flaxvgg.conversion.pytorch import torch_networks, torch_references
from flaxvgg.conversion.rule import (
    MAX_RATIO,
    ROUNDING,
    LayerCheck,
    Reference,
    compare,
    relative_error,
)
from flaxvgg.conversion.source_weights import SourceError, SourceWeights
from flaxvgg.conversion.verify import jax_truth, verification_images, verify
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.provenance import PREPROCESSING, Provenance
from flaxvgg.weights.mapping import from_torch, model_arrays
from helpers import assert_holds, random_images, torch_features, torch_vgg

CONFIG = VGGConfig.features_only("vgg11", "it is small")
EPS = float(np.finfo(np.float32).eps)


def _check(**changes) -> LayerCheck:
    values = {
        "layer": "relu1_1",
        "peer": "PyTorch",
        "shape": (1, 2, 2, 64),
        "error": 1e-7,
        "peer_error": 1e-7,
        "negatives": 0,
        "zeros": 0.5,
        "flips": 0,
        "unexplained": 0,
    }
    return LayerCheck(**values | changes)


# One check.


@pytest.mark.parametrize(
    ("error", "peer_error", "ratio"),
    [
        (3e-7, 2e-7, 1.5),
        (0.0, 2e-7, 0.0),
        (0.0, 0.0, 0.0),
        (1e-9, 0.0, np.inf),
        (np.inf, 1.0, np.inf),
    ],
)
def test_ratio(error: float, peer_error: float, ratio: float):
    assert _check(error=error, peer_error=peer_error).ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"error": 1.49e-6, "peer_error": 1e-6}, True),
        ({"error": 1.51e-6, "peer_error": 1e-6}, False),
        ({"error": np.nan}, False),
        ({"error": np.inf, "peer_error": np.inf}, False),
        # A softmax whose error is one rounding, and PyTorch's half of one.
        ({"error": 1.99 * EPS, "peer_error": 0.5 * EPS}, True),
        ({"error": 1.99 * EPS, "peer_error": 0.0}, True),
        ({"error": 2.01 * EPS, "peer_error": 0.0}, False),
        ({"error": 2.01 * EPS, "peer_error": EPS}, False),
        ({"negatives": 1}, False),
        ({"flips": 3}, True),
        ({"flips": 3, "unexplained": 1}, False),
    ],
    ids=str,
)
def test_what_keeps_the_rule(changes: dict, holds: bool):
    assert _check(**changes).holds is holds


def test_each_peer_has_its_own_limit():
    for peer, limit in MAX_RATIO.items():
        assert _check(peer=peer, error=0.99 * limit, peer_error=1.0).holds
        assert not _check(peer=peer, error=1.01 * limit, peer_error=1.0).holds


def test_failing_layers_are_listed_and_no_others():
    checks = [_check(layer="conv1_1"), _check(negatives=3), _check(layer="pool1", error=1.0)]
    with pytest.raises(AssertionError) as failure:
        assert_holds(checks)
    lines = str(failure.value).strip().splitlines()[:2]
    assert lines[0].startswith("relu1_1")
    assert "3 negative" in lines[0]
    assert lines[1].startswith("pool1")
    assert "conv1_1" not in str(failure.value)
    with pytest.raises(AssertionError, match="nothing was compared"):
        assert_holds([])


# Errors.


def test_relative_error_by_hand():
    truth = np.array([[3.0, 0.0], [0.0, 4.0]])
    output = np.array([[3.0, 0.3], [0.4, 4.0]], np.float32)
    assert relative_error(output, truth) == pytest.approx(0.1)  # 0.5 of 5


def test_relative_error_of_another_shape_is_infinite():
    assert relative_error(np.zeros((1, 2)), np.zeros((2, 1))) == np.inf
    assert relative_error(np.zeros((1, 1)), np.zeros((1, 2))) == np.inf  # though it would broadcast


def test_relative_error_of_nothing_but_zeros_is_absolute():
    assert relative_error(np.zeros((2, 2)), np.zeros((2, 2))) == 0.0
    assert relative_error(np.full((1, 4), 0.5), np.zeros((1, 4))) == 1.0


def test_relative_error_is_nan_where_a_value_is():
    assert np.isnan(relative_error(np.array([[np.nan]]), np.ones((1, 1))))


# Comparing.


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    return torch_features("vgg11")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random_images(2, 32, 48)


@pytest.fixture(scope="module")
def parameters(state_dict) -> dict[tuple[str, ...], np.ndarray]:
    model = from_torch("vgg11", state_dict)
    return {path: np.asarray(value) for path, value in model_arrays(model).items()}


@pytest.fixture(scope="module")
def references(state_dict, images) -> list[Reference]:
    return list(torch_references(CONFIG, torch_networks(CONFIG, state_dict), images))[:2]


def _compare(parameters, images, references, **changes: np.ndarray) -> list[LayerCheck]:
    """PyTorch's own outputs, but for the changes, compared as if they were ours."""
    ours = {reference.layer: reference.output for reference in references} | changes
    return list(compare(CONFIG, parameters, images, ours, "PyTorch", references))


def test_the_same_outputs_hold(parameters, images, references):
    checks = _compare(parameters, images, references)
    assert [(check.layer, check.ratio, check.flips) for check in checks] == [
        ("conv1_1", 1.0, 0),
        ("relu1_1", 1.0, 0),
    ]
    assert checks[0].shape == (2, 32, 48, 64)
    assert checks[1].zeros == (references[1].truth == 0).mean()
    assert_holds(checks)


def test_our_outputs_are_emptied_and_a_missing_one_is_an_error(parameters, images, references):
    ours = {"conv1_1": references[0].output}
    checks = compare(CONFIG, parameters, images, ours, "PyTorch", references)
    assert next(checks).layer == "conv1_1"
    assert not ours
    with pytest.raises(KeyError, match="relu1_1"):
        next(checks)


@pytest.mark.parametrize("layer", ["conv1_1", "relu1_1"])
def test_wrong_shape_does_not_hold(parameters, images, references, layer: str):
    cut = {reference.layer: reference.output[:, 1:] for reference in references}[layer]
    wrong = {c.layer: c for c in _compare(parameters, images, references, **{layer: cut})}[layer]
    assert wrong.error == wrong.ratio == np.inf
    assert not wrong.holds


def test_negative_value_after_relu_is_reported(parameters, images, references):
    output = references[1].output.copy()
    places = tuple(np.argwhere(output > 0)[0])
    output[places] = -1e-30
    check = _compare(parameters, images, references, relu1_1=output)[1]
    assert check.negatives == 1
    assert not check.holds


def test_negative_zero_is_zero(parameters, images, references):
    output = np.where(references[1].output == 0, np.float32(-0.0), references[1].output)
    check = _compare(parameters, images, references, relu1_1=output)[1]
    assert (check.negatives, check.flips, check.holds) == (0, 0, True)


def _bound(parameters, images, place) -> float:
    """What `compare` should call rounding in conv1_1, at a place inside the image."""
    n, row, column, channel = place
    window = images[n, row - 1 : row + 2, column - 1 : column + 2].astype(np.float64)
    kernel = parameters["conv_stack", "conv1_1", "kernel"][..., channel]
    bias = parameters["conv_stack", "conv1_1", "bias"][channel]
    return ROUNDING * EPS * float((np.abs(window) * np.abs(kernel)).sum() + abs(bias))


@pytest.mark.parametrize("sign", [1, -1])
def test_flips_within_and_beyond_rounding_are_told_apart(parameters, images, references, sign: int):
    within, beyond, far = (0, 5, 6, 7), (1, 20, 30, 40), (1, 9, 9, 9)
    pre, post = (reference.truth.copy() for reference in references)
    for place, size in ((within, 0.99), (beyond, 1.01), (far, 1e6)):
        pre[place] = sign * size * _bound(parameters, images, place)
    np.maximum(pre, 0, out=post)
    made = [Reference("conv1_1", pre, pre), Reference("relu1_1", post, post)]
    ours = post.astype(np.float32)
    for place in (within, beyond, far):
        ours[place] = 0.0 if sign > 0 else 1e-30
    check = _compare(parameters, images, made, relu1_1=ours)[1]
    assert [flip.place for flip in check.flipped] == [within, far, beyond]
    assert [flip.explained for flip in check.flipped] == [True, False, False]
    assert (check.flips, check.unexplained) == (3, 2)


def test_a_flip_at_nan_is_not_explained(parameters, images, references):
    pre, post = (reference.truth.copy() for reference in references)
    pre[0, 5, 6, 7], post[0, 5, 6, 7] = np.nan, 0.0
    ours = post.astype(np.float32)
    ours[0, 5, 6, 7] = 1e-30
    made = [Reference("conv1_1", pre, pre), Reference("relu1_1", post, post)]
    assert _compare(parameters, images, made, relu1_1=ours)[1].unexplained == 1


# The rounding bound, against PyTorch's float64 convolution of the magnitudes.


def _rounding(layer: Layer, norm: Layer | None = None, seed: int = 0):
    rng = np.random.default_rng(seed)
    shape = (layer.kernel, layer.kernel, layer.inputs, layer.outputs)
    if layer.kind == "linear":
        shape = (layer.kernel**2 * layer.inputs, layer.outputs)
    parameters = {
        ("room", layer.name, "kernel"): rng.standard_normal(shape).astype(np.float32),
        ("room", layer.name, "bias"): rng.standard_normal(layer.outputs).astype(np.float32),
    }
    if norm is not None:
        for name in ("scale", "bias", "mean", "var"):
            values = rng.standard_normal(layer.outputs)
            parameters["room", norm.name, name] = abs(values) if name == "var" else values
    return parameters, rule.Rounding(parameters, "room", layer, norm)


@pytest.mark.parametrize("norm", [None, Layer("bn", "batch_norm")], ids=["conv", "conv_bn"])
def test_rounding_bound_of_a_convolution(norm: Layer | None):
    layer = Layer("conv", "conv", inputs=5, outputs=4, kernel=3)
    parameters, bound = _rounding(layer, norm)
    inputs = np.random.default_rng(1).standard_normal((2, 4, 6, 5))
    kernel = abs(parameters["room", "conv", "kernel"].astype(np.float64)).transpose(3, 2, 0, 1)
    bias = abs(parameters["room", "conv", "bias"].astype(np.float64))
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(abs(inputs)).permute(0, 3, 1, 2),
        torch.from_numpy(np.ascontiguousarray(kernel)),
        torch.from_numpy(bias),
        padding=1,
    )
    expected = expected.permute(0, 2, 3, 1).numpy()
    if norm is not None:
        scale, shift, mean, var = (
            parameters["room", "bn", name] for name in ("scale", "bias", "mean", "var")
        )
        expected = abs(scale) * (expected + abs(mean)) / np.sqrt(var + 1e-5) + abs(shift)
    for place in np.ndindex(expected.shape):  # corners and edges too
        assert bound(inputs, place) == pytest.approx(expected[place], rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 7, 7, 3), (2, 147)], ids=["map", "flat"])
def test_rounding_bound_of_a_linear_layer(shape: tuple[int, ...]):
    parameters, bound = _rounding(Layer("fc6", "linear", inputs=3, outputs=4, kernel=7))
    inputs = np.random.default_rng(1).standard_normal(shape)
    kernel = parameters["room", "fc6", "kernel"].astype(np.float64)
    expected = abs(inputs.reshape(2, -1)) @ abs(kernel) + abs(parameters["room", "fc6", "bias"])
    for place in np.ndindex(expected.shape):
        assert bound(inputs, place) == pytest.approx(expected[place], rel=1e-12)


# References.


@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_references_are_what_the_whole_network_gives(arch: str, images: np.ndarray):
    network = torch_vgg(arch, num_classes=3)
    state_dict = network.state_dict()
    config = VGGConfig.classifier(arch, num_classes=3)
    found = list(torch_references(config, torch_networks(config, state_dict), images))
    assert tuple(reference.layer for reference in found) == config.layer_names
    by_layer = {reference.layer: reference for reference in found}
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        pool5 = network.features(x).permute(0, 2, 3, 1).numpy()
        single = network(x).numpy()
        double = network.double()(x.double()).numpy()
    np.testing.assert_allclose(by_layer["pool5"].output, pool5, rtol=0, atol=1e-5 * pool5.max())
    np.testing.assert_allclose(by_layer["fc8"].output, single, rtol=1e-4)
    np.testing.assert_allclose(by_layer["fc8"].truth, double, rtol=1e-12)
    for reference in found:
        assert reference.truth.dtype == np.float64
        assert reference.output.dtype == np.float32
        assert reference.truth.shape == reference.output.shape
        assert relative_error(reference.output, reference.truth) < 1e-5


def test_references_flatten_channels_last(images: np.ndarray):
    config = VGGConfig.classifier("vgg11", num_classes=3)
    networks = torch_networks(config, torch_vgg("vgg11", num_classes=3).state_dict())
    found = {reference.layer: reference for reference in torch_references(config, networks, images)}
    for maps, vectors in zip(found["avgpool"][1:], found["flatten"][1:], strict=True):
        np.testing.assert_array_equal(maps.reshape(2, -1), vectors)


def test_networks_keep_read_only_weights_and_need_no_batch_counts():
    state_dict = {}
    for name, value in torch_features("vgg11_bn").items():
        if "num_batches" not in name:
            state_dict[name] = value.numpy().copy()
            state_dict[name].flags.writeable = False
    config = VGGConfig.features_only("vgg11_bn", "it is small")
    for network in torch_networks(config, state_dict):
        assert not network.training
        found = network.state_dict()
        for name, value in state_dict.items():
            np.testing.assert_array_equal(found[name].numpy(), value)


@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_jax_truth_is_pytorch_in_float64(arch: str, images: np.ndarray):
    state_dict = torch_features(arch)
    config = VGGConfig.features_only(arch, "it is small")
    model = from_torch(arch, state_dict)
    names = list(config.layer_names)
    truth = jax_truth(model, images, names)
    assert set(truth) == set(names)
    for reference in torch_references(config, torch_networks(config, state_dict), images):
        assert truth[reference.layer].dtype == np.float64
        assert relative_error(truth[reference.layer], reference.truth) < 1e-14, reference.layer


# Images to verify on.


def test_verification_images_are_photos():
    images, what = verification_images(PREPROCESSING["torchvision"])
    assert images.shape == (2, 224, 224, 3)
    assert what == "astronaut and chelsea"


@pytest.mark.parametrize("recipe", PREPROCESSING.values(), ids=lambda recipe: recipe.name)
def test_verification_images_without_scikit_image(recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_module, "sample_photos", lambda count: [])
    images, what = verification_images(recipe)
    assert what == "noise of 1/f spectrum"
    assert images.shape == (2, 224, 224, 3)
    assert images.dtype == np.float32
    # As varied as 8-bit pixels are once normalised, and the same each time.
    pixels = (images * np.float32(recipe.std) + np.float32(recipe.mean)) * recipe.divisor
    assert pixels.min() == pytest.approx(0, abs=1e-3)
    assert pixels.max() == pytest.approx(255, abs=1e-3)
    assert 20 < pixels.std() < 80
    np.testing.assert_array_equal(verification_images(recipe)[0], images)


# The whole.


def _source(state_dict, **changes) -> SourceWeights:
    return SourceWeights("vgg11", dict(state_dict), Provenance(), **changes)


def test_verify_runs_pytorch_on_what_the_source_says(state_dict, images):
    model = from_torch("vgg11", state_dict)
    checks = verify(model, _source(state_dict), images)
    assert list(checks) == ["PyTorch"]
    assert [check.layer for check in checks["PyTorch"]] == list(CONFIG.layer_names)
    assert_holds(checks["PyTorch"])
    other = {name: value * 1.0001 for name, value in state_dict.items()}
    checks = verify(model, _source(other), images)
    assert not checks["PyTorch"][0].holds


def test_verify_rounds_the_source_as_the_model_was(state_dict, images):
    rounded = from_torch("vgg11", state_dict, param_dtype=jnp.bfloat16)
    assert_holds(verify(rounded, _source(state_dict), images)["PyTorch"])


@pytest.mark.parametrize("with_torch", [True, False])
def test_verify_takes_the_source_s_own_outputs(state_dict, images, with_torch, monkeypatch):
    model = from_torch("vgg11", state_dict)
    networks = torch_networks(CONFIG, state_dict)
    outputs = {r.layer: r.output for r in torch_references(CONFIG, networks, images)}
    del outputs["relu1_1"]  # a runtime may not give every layer
    monkeypatch.setattr(verify_module, "_has", lambda *names: with_torch)
    checks = verify(model, _source(state_dict, layer_outputs=lambda images: outputs), images)
    assert list(checks) == ["PyTorch", "ONNX Runtime"][not with_torch :]
    assert [check.layer for check in checks["ONNX Runtime"]] == list(outputs)
    for found in checks.values():
        assert_holds(found)


def test_verify_without_anything_to_verify_against(state_dict, images, monkeypatch):
    monkeypatch.setattr(verify_module, "_has", lambda *names: False)
    with pytest.raises(SourceError, match="nothing to verify against: install torch"):
        verify(from_torch("vgg11", state_dict), _source(state_dict), images)
