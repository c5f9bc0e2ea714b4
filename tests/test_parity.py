"""The numbers rule at every named layer, with random weights and with real ones on real photos."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch

from convert.sources import read_source
from convert.target import convert
from convert.verify import (
    LayerCheck,
    Reference,
    compare,
    jax_truth,
    relative_error,
    torch_networks,
    torch_references,
    verify,
)
from flaxvgg.config import ARCHITECTURES, VGGConfig
from flaxvgg.images import load_images
from flaxvgg.mapping import arrays_from_torch, build, from_torch, model_arrays
from flaxvgg.model import VGG, flatten_chw
from flaxvgg.samples import sample_photos
from helpers import REAL_WEIGHTS, assert_holds, random_images, torch_vgg

SIZES = [(32, 32), (33, 47), (224, 224), (512, 512), (375, 1242)]


class Port(NamedTuple):
    """Our model, and PyTorch's networks (float64, float32) with the same weights."""

    model: VGG
    networks: tuple[Any, Any]


@partial(jax.jit, static_argnames="last")
def _outputs(model: VGG, images: jax.Array, last: int) -> dict[str, jax.Array]:
    """Every layer's output for the last images of the batch."""
    outputs = model.activations(images, model.config.layer_names)
    return {name: output[-last:] for name, output in outputs.items()}


def _compare(
    model: VGG, images: np.ndarray, ours: Mapping[str, Any], references: Iterable[Reference]
) -> Iterator[LayerCheck]:
    parameters = {path: np.asarray(value) for path, value in model_arrays(model).items()}
    return compare(model.config, parameters, images, dict(ours), "PyTorch", references)


def _check_three_and_one(port: Port, images: np.ndarray) -> None:
    """Check a batch of three images, and a batch of one, the last of them.

    Of three large images only the last has references, which are what takes the time: the others
    are there to be kept apart from it.
    """
    model, checked = port.model, 3 if images[0].size < 3 * 300 * 300 else 1
    references = torch_references(model.config, port.networks, images[-checked:])
    for_three, for_one, for_pool5 = itertools.tee(references, 3)
    for_one = (Reference(layer, truth[-1:], other[-1:]) for layer, truth, other in for_one)
    ours, ours_alone = _outputs(model, images, checked), _outputs(model, images[-1:], 1)
    pool5 = ours["pool5"]
    three = _compare(model, images[-checked:], ours, for_three)
    one = _compare(model, images[-1:], ours_alone, for_one)
    del ours, ours_alone
    # Layer by layer, in step: the references of a whole network would be gigabytes.
    checks = []
    for of_three, of_one, reference in zip(three, one, for_pool5, strict=True):
        checks += [of_three, of_one]
        if of_three.layer == "pool5":
            _check_zeros(pool5, reference.truth, flips=checks[-4].flips)
    assert_holds(checks)


def _check_zeros(pool5: jax.Array, truth: np.ndarray, flips: int) -> None:
    """Check which values of the feature vector are zero, in the order of `torch.flatten`."""
    ours = np.asarray(flatten_chw(pool5)) == 0
    theirs = torch.flatten(torch.from_numpy(truth).permute(0, 3, 1, 2), 1).numpy() == 0
    assert ours.shape == theirs.shape
    assert (ours != theirs).sum() <= flips


@pytest.fixture(scope="module")
def random_weights() -> Port:
    state_dict = torch_vgg("vgg16").state_dict()
    model = from_torch("vgg16", state_dict)
    return Port(model, torch_networks(model.config, state_dict))


@pytest.fixture(scope="module")
def real_weights() -> Port:
    model = convert(read_source(REAL_WEIGHTS))
    networks = torch_networks(model.config, read_source(REAL_WEIGHTS).state_dict)
    return Port(model, networks)


def _photos(model: VGG, count: int, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(load_images(sample_photos(count), size, model.preprocessing))


def _with_classifier_of(port: Port, arch: str) -> Port:
    """Another architecture with random convolutions, and `port`'s classifier, which is shared."""
    state_dict = torch_vgg(arch, num_classes=1).state_dict()
    state_dict = {name: value for name, value in state_dict.items() if name.startswith("features")}
    stack = VGGConfig.features_only(arch, "")
    networks = torch_networks(stack, state_dict)
    for network, other in zip(networks, port.networks, strict=True):
        network.classifier = other.classifier
    head = {path: x for path, x in model_arrays(port.model).items() if path[0] == "head"}
    arrays: Mapping[Any, Any] = arrays_from_torch(stack, state_dict) | head
    return Port(build(VGGConfig.classifier(arch), arrays), networks)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_architecture_keeps_the_rule(random_weights: Port, arch: str):
    model, networks = _with_classifier_of(random_weights, arch)
    images = random_images(2, 64, 64)
    references = torch_references(model.config, networks, images)
    checks = list(_compare(model, images, _outputs(model, images, 2), references))
    assert_holds(checks)
    assert tuple(check.layer for check in checks) == model.config.layer_names


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_random_weights_keep_the_rule(random_weights: Port, size: tuple[int, int]):
    _check_three_and_one(random_weights, random_images(3, *size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_real_weights_keep_the_rule_on_photos(real_weights: Port, size: tuple[int, int]):
    _check_three_and_one(real_weights, _photos(real_weights.model, 3, size))


def test_feature_vector_of_a_1242_by_375_image_has_pytorch_size(real_weights: Port):
    images = jax.ShapeDtypeStruct((1, 375, 1242, 3), "float32")
    assert jax.eval_shape(real_weights.model.features, images).size == 214016


def test_onnx_runtime_agrees_on_the_real_weights(real_weights: Port):
    model = real_weights.model
    checks = verify(model, read_source(REAL_WEIGHTS), _photos(model, 2, (224, 224)))
    assert list(checks) == ["PyTorch", "ONNX Runtime"]
    for peer, found in checks.items():
        assert_holds(found)
        assert tuple(check.layer for check in found) == model.config.layer_names, peer


@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_in_float64_ours_is_the_same_function(random_weights: Port, arch: str):
    model, networks = _with_classifier_of(random_weights, arch)
    images = random_images(2, 33, 47)
    names = list(model.config.layer_names)
    ours = jax_truth(model, images, names)
    errors = {
        reference.layer: relative_error(ours[reference.layer], reference.truth)
        for reference in torch_references(model.config, networks, images)
    }
    assert list(errors) == names
    assert max(errors.values()) < 1e-13, errors
