"""The numbers rule at every named layer of the eight architectures, with random weights.

Real weights on real photos are in test_parity.py, so that the two run side by side.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from flaxvgg.conversion.pytorch import torch_networks, torch_references
from flaxvgg.conversion.rule import relative_error
from flaxvgg.conversion.verify import jax_truth
from flaxvgg.network.config import ARCHITECTURES, VGGConfig
from flaxvgg.weights.mapping import arrays_from_torch, build, model_arrays
from helpers import random_images, torch_features, torch_vgg
from parity import SMALL_SIZES, Port, check, port


@pytest.fixture(scope="module")
def random_weights() -> Port:
    return port("vgg16", torch_vgg("vgg16").state_dict())


def _with_classifier_of(port: Port, arch: str) -> Port:
    """Another architecture with random convolutions, and `port`'s classifier, which is shared."""
    state_dict = torch_features(arch)
    stack = VGGConfig.features_only(arch, "")
    networks = torch_networks(stack, state_dict)
    for network, other in zip(networks, port.networks, strict=True):
        network.classifier = other.classifier
    head = {path: x for path, x in model_arrays(port.model).items() if path[0] == "head"}
    arrays: Mapping[Any, Any] = arrays_from_torch(stack, state_dict) | head
    return Port(build(VGGConfig.classifier(arch), arrays), networks)


@pytest.mark.parametrize("size", SMALL_SIZES, ids=str)
def test_random_weights_keep_the_rule(random_weights: Port, size: tuple[int, int]):
    check(random_weights, random_images(1 if size == (224, 224) else 3, *size))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_architecture_keeps_the_rule(random_weights: Port, arch: str):
    check(_with_classifier_of(random_weights, arch), random_images(2, 64, 64))


def test_in_float64_ours_is_the_same_function(random_weights: Port):
    model, networks = _with_classifier_of(random_weights, "vgg11_bn")  # every kind of layer
    images = random_images(2, 33, 47)
    names = list(model.config.layer_names)
    ours = jax_truth(model, images, names)
    errors = {
        reference.layer: relative_error(ours[reference.layer], reference.truth)
        for reference in torch_references(model.config, networks, images)
    }
    assert list(errors) == names
    assert max(errors.values()) < 1e-13, errors
