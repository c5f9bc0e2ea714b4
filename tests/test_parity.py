"""The numbers rule at every named layer of vgg16, with torchvision's weights on real photos.

The convolutions are IMAGENET1K_V1's, and the classifier is random. Random convolutions, and the
other architectures, are in test_parity_random.py, so that the two run side by side.
"""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from flaxvgg.conversion import verify as verification
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.target import convert
from flaxvgg.conversion.verify import verify
from flaxvgg.images.loading import load_images
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.model import flatten_chw
from flaxvgg.network.provenance import PREPROCESSING
from helpers import REAL_WEIGHTS, TUMOUR_WEIGHTS, assert_holds, torch_vgg
from parity import SMALL_SIZES, Port, check, check_three_and_one, port


@pytest.fixture(scope="module")
def real_weights() -> Port:
    source = read_source(REAL_WEIGHTS)
    assert source.provenance.preprocessing == PREPROCESSING["torchvision"]
    return port("vgg16", torch_vgg("vgg16").state_dict() | dict(source.state_dict))


def _photos(count: int, size: tuple[int, int], recipe: str = "torchvision") -> np.ndarray:
    return np.asarray(load_images(sample_photos(count), size, recipe))


@pytest.mark.parametrize("size", SMALL_SIZES, ids=str)
def test_real_weights_keep_the_rule_on_photos(real_weights: Port, size: tuple[int, int]):
    check_three_and_one(real_weights, _photos(3, size))


def test_feature_vector_of_a_1242_by_375_image_has_pytorch_size(real_weights: Port):
    images = jax.ShapeDtypeStruct((1, 375, 1242, 3), "float32")
    assert jax.eval_shape(real_weights.model.features, images).size == 214016


def test_onnx_runtime_agrees_on_the_weights_of_an_onnx_file():
    model = convert(read_source(TUMOUR_WEIGHTS))
    checks = verify(model, read_source(TUMOUR_WEIGHTS), _photos(2, (96, 64), "keras"))
    assert list(checks) == ["PyTorch", "ONNX Runtime"]
    for peer, found in checks.items():
        assert_holds(found)
        assert tuple(check.layer for check in found) == model.config.layer_names, peer


def test_onnx_runtime_agrees_on_an_export_where_there_is_no_pytorch(monkeypatch):
    monkeypatch.setattr(verification, "_has", lambda *names: "torch" not in names)
    model = convert(read_source(REAL_WEIGHTS))
    checks = verify(model, read_source(REAL_WEIGHTS), _photos(2, (96, 64)))
    assert list(checks) == ["ONNX Runtime"]
    assert_holds(checks["ONNX Runtime"])
    assert tuple(x.layer for x in checks["ONNX Runtime"]) == model.config.layer_names


# The question's numbers: the zeros among the features of the first photo, stretched to these sizes,
# as measured once, here and in PyTorch. Elsewhere a few may flip, each of which `check` locates.
COUNTS = {(224, 224): (21_273, 25_088), (512, 512): (113_758, 131_072)}
COUNTS |= {(375, 1242): (186_201, 214_016)}
FEW = 8


@pytest.mark.parametrize("size", COUNTS, ids=str)
def test_the_question_is_answered_with_its_own_numbers(real_weights: Port, size: tuple[int, int]):
    recipe = dataclasses.replace(PREPROCESSING["torchvision"], fit="stretch")
    images = np.asarray(load_images(sample_photos(1), size, recipe))
    check(real_weights, images)  # every layer, every flip within rounding
    ours = jax.jit(lambda model, x: model.features(x))(real_weights.model, images)
    tensor = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        theirs = torch.flatten(real_weights.networks[1].features(tensor), 1).numpy()
    zeros, values = COUNTS[size]
    for features in (np.asarray(flatten_chw(ours)), theirs):
        assert features.size == values
        found = int((features == 0).sum())
        assert abs(found - zeros) <= FEW, found
