"""The numbers rule at every named layer: eight architectures, and real weights on real photos.

vgg16 with random weights at the same sizes is in test_parity_random.py, so that the two run side by
side.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

from convert.sources import read_source
from convert.target import convert
from convert.verify import jax_truth, relative_error, torch_networks, torch_references, verify
from flaxvgg.config import ARCHITECTURES, VGGConfig
from flaxvgg.images import load_images
from flaxvgg.mapping import arrays_from_torch, build, model_arrays
from flaxvgg.model import VGG
from flaxvgg.samples import sample_photos
from helpers import REAL_WEIGHTS, assert_holds, random_images, torch_vgg
from parity import SIZES, Port, all_outputs, check_three_and_one, compare_all, random_port


@pytest.fixture(scope="module")
def random_weights() -> Port:
    return random_port()


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
    checks = list(compare_all(model, images, all_outputs(model, images, 2), references))
    assert_holds(checks)
    assert tuple(check.layer for check in checks) == model.config.layer_names


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_real_weights_keep_the_rule_on_photos(real_weights: Port, size: tuple[int, int]):
    check_three_and_one(real_weights, _photos(real_weights.model, 3, size))


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
