"""The numbers rule at every named layer of vgg16, with real weights on real photos.

The convolutions are real, and the classifier is random. Random convolutions, and the other
architectures, are in test_parity_random.py, so that the two run side by side.
"""

import jax
import numpy as np
import pytest

from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.target import convert
from flaxvgg.conversion.verify import verify
from flaxvgg.images.loading import load_images
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.provenance import PREPROCESSING
from helpers import REAL_WEIGHTS, assert_holds, torch_vgg
from parity import LARGE_SIZES, SMALL_SIZES, Port, check, check_three_and_one, port


@pytest.fixture(scope="module")
def real_weights() -> Port:
    source = read_source(REAL_WEIGHTS)
    assert source.provenance.preprocessing == PREPROCESSING["keras"]
    return port("vgg16", torch_vgg("vgg16").state_dict() | dict(source.state_dict))


def _photos(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(load_images(sample_photos(count), size, "keras"))


@pytest.mark.parametrize("size", SMALL_SIZES, ids=str)
def test_real_weights_keep_the_rule_on_photos(real_weights: Port, size: tuple[int, int]):
    check_three_and_one(real_weights, _photos(3, size))


@pytest.mark.parametrize("size", LARGE_SIZES, ids=str)
def test_real_weights_keep_the_rule_on_a_large_photo(real_weights: Port, size: tuple[int, int]):
    check(real_weights, _photos(1, size))


def test_feature_vector_of_a_1242_by_375_image_has_pytorch_size(real_weights: Port):
    images = jax.ShapeDtypeStruct((1, 375, 1242, 3), "float32")
    assert jax.eval_shape(real_weights.model.features, images).size == 214016


def test_onnx_runtime_agrees_on_the_real_weights():
    model = convert(read_source(REAL_WEIGHTS))
    checks = verify(model, read_source(REAL_WEIGHTS), _photos(2, (96, 64)))
    assert list(checks) == ["PyTorch", "ONNX Runtime"]
    for peer, found in checks.items():
        assert_holds(found)
        assert tuple(check.layer for check in found) == model.config.layer_names, peer
