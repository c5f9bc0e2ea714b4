"""Counts of zeros against PyTorch's and Keras's on the same weights, layer by layer.

Where a count differs, every activation that is on another side of zero is located, and its
pre-activation must be within rounding of zero, by the bound of `flaxvgg/conversion/rule.py`.
"""

import dataclasses
import functools
import operator
import os
from collections.abc import Iterator
from typing import NamedTuple

os.environ["KERAS_BACKEND"] = "jax"  # read at the first import of Keras

import jax
import keras
import numpy as np
import pytest
import torch
import torchvision

import flaxvgg
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.rule import ROUNDING, Flip, Rounding
from flaxvgg.conversion.target import convert
from flaxvgg.images.loading import load_images
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.sparsity.counting import measure_sparsity
from flaxvgg.weights.mapping import build, model_arrays
from helpers import TUMOUR_WEIGHTS, random_model

# Keras's own, where it makes NumPy arrays of its variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# What the project's notes on real inputs read on the eight photos with these weights, in percent:
# the mean of each ReLU, pool5 of each photo, and pool5 of the first one at 375x1242. They were read
# on photos stretched with bilinear interpolation; Keras's own recipe takes the nearest pixel.
RELU_READINGS = [46.3, 30.3, 32.3, 52.6, 47.0, 49.4, 70.7, 65.2, 71.4, 87.9, 76.8, 79.3, 93.0]
POOL5_READINGS = [87.5, 81.9, 87.9, 90.2, 87.9, 92.8, 91.8, 79.1]
WIDE_ASTRONAUT = 90.1
BILINEAR = dataclasses.replace(PREPROCESSING["keras"], interpolation="bilinear")
FEW = 300  # flips; with other weights or images there would be millions


@pytest.fixture(scope="module")
def real_weights() -> VGG:
    """Real convolutions, at precision "default", which compiles faster and is float32 as well."""
    model = convert(read_source(TUMOUR_WEIGHTS))
    return build(model.config, model_arrays(model), precision="default")


@pytest.fixture(scope="module")
def random_weights() -> VGG:
    """A whole vgg16 at precision "highest"."""
    return random_model(VGGConfig.classifier("vgg16", num_classes=2))


def _photos(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.array(load_images(sample_photos(count), size, BILINEAR))


class Ours(NamedTuple):
    """The report that is tested, and the outputs in which flips are looked for."""

    report: flaxvgg.SparsityReport
    outputs: dict[str, np.ndarray]


@jax.jit
def _measure_jitted(model: VGG, images: jax.Array) -> Ours:
    names = [name for name in model.config.layer_names if name not in ("fc8", "prob")]
    return Ours(measure_sparsity(model, images), model.activations(images, names))


def _measure(model: VGG, images: np.ndarray) -> Ours:
    report, outputs = _measure_jitted(model, images)
    return Ours(report, {name: np.asarray(output) for name, output in outputs.items()})


def _torch_outputs(model: VGG, images: np.ndarray) -> Iterator[tuple[Layer, np.ndarray]]:
    """Each layer up to the last ReLU or pooling, as torchvision's own modules compute it."""
    with torch.device("meta"):
        network = torchvision.models.vgg16(num_classes=2)
    if not model.config.head:
        network.classifier = torch.nn.Sequential()
    arrays = flaxvgg.to_torch(model).items()
    tensors = {name: torch.from_numpy(np.require(x, requirements="W")) for name, x in arrays}
    network.load_state_dict(tensors, strict=True, assign=True)
    network.eval()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    for layer in model.config.layers:
        if layer.name == "fc8":
            return
        module = network.get_submodule(layer.torch) if layer.torch else torch.nn.Flatten()
        with torch.inference_mode():
            x = module(x.clone() if layer.kind == "relu" else x)  # torchvision's ReLU is in place
        yield layer, (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def _assert_explained(model: VGG, layer: Layer, inputs, before, places: np.ndarray) -> None:
    """Check that the output `before` of a layer is within rounding of zero at these places."""
    parameters = {path: np.asarray(value) for path, value in model_arrays(model).items()}
    room = "conv_stack" if layer.kind == "conv" else "head"
    scale = Rounding(parameters, room, layer, None)
    unit = ROUNDING * float(np.finfo(np.float32).eps)
    for place in places:
        at = tuple(int(i) for i in place)
        flip = Flip(at, float(before[at]), unit * scale(inputs, at))
        assert flip.explained, (layer.name, flip)


def _assert_pooled(places: np.ndarray, flips: np.ndarray) -> None:
    """Check that each place of a pooling has one of the flips in its window."""
    windows = {(n, row // 2, column // 2, c) for n, row, column, c in flips.tolist()}
    assert {tuple(place) for place in places.tolist()} <= windows


def _assert_counts(counts: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Check that counts by channel differ from theirs by the places returned, exactly.

    `ours` and `theirs` are masks of what is counted, with the channels last.
    """
    places = np.argwhere(ours != theirs)
    expected = theirs.sum(axis=tuple(range(theirs.ndim - 1)))
    np.add.at(expected, places[:, -1], np.where(ours[tuple(places.T)], 1, -1))
    np.testing.assert_array_equal(counts, expected)
    return places


def _compare_with_torch(model: VGG, images: np.ndarray, ours: Ours) -> None:
    """Check every count of every ReLU and pooling."""
    report = ours.report
    inputs = before = images
    weighted: Layer | None = None
    flips = np.zeros((0, 4), int)
    seen, flipped = [], 0
    for layer, output in _torch_outputs(model, images):
        mine = ours.outputs[layer.name]
        if layer.kind in ("conv", "linear"):
            inputs, weighted, mine_before = before, layer, mine
        elif layer.kind in ("relu", "max_pool"):
            seen.append(layer.name)
            found = report.layer(layer.torch)  # features.29
            zero = output == 0
            places = _assert_counts(found.zeros, mine == 0, zero)
            space = tuple(range(1, output.ndim - 1))
            same = np.setdiff1d(np.arange(found.channels), places[:, -1])
            silent = zero.all(axis=space).sum(axis=0)
            np.testing.assert_array_equal(found.silent[same], silent[same])
            largest = output.max(axis=(0, *space))
            np.testing.assert_allclose(found.largest, largest, rtol=0, atol=1e-4 * largest.max())
            if layer.kind == "max_pool":
                _assert_pooled(places, flips)
            else:
                negative = _assert_counts(found.negatives_before, mine_before < 0, before < 0)
                exact = _assert_counts(found.zeros_before, mine_before == 0, before == 0)
                flips = np.unique(np.concatenate([places, negative, exact]), axis=0)
                _assert_explained(model, weighted, inputs, before, flips)
                flipped += len(flips)
        before = output
    assert tuple(seen) == report.layers
    assert flipped < FEW


def _compare_with_keras(model: VGG, images: np.ndarray, ours: Ours, **kwargs) -> None:
    """Check the counts of zeros of every layer that Keras's network has."""
    report, network = ours.report, _keras_vgg16(model, **kwargs)
    names = [x.name for x in network.layers if x.name.startswith(("block", "fc"))]
    outputs = keras.Model(network.input, [network.get_layer(name).output for name in names])(images)
    weighted = iter([x for x in model.config.layers if x.kind in ("conv", "linear")])
    inputs, flips = images, np.zeros((0, 4), int)
    seen = []
    for name, output in zip(names, map(np.asarray, outputs), strict=True):
        paper = model.config.resolve(name)
        mine = ours.outputs[paper]
        places = _assert_counts(report.layer(name).zeros, mine == 0, output == 0)
        if name.endswith("_pool"):
            _assert_pooled(places, flips)
        else:
            layer, flips = next(weighted), places
            _assert_explained(model, layer, inputs, ours.outputs[layer.name], flips)
            assert len(flips) < FEW
        inputs = mine if paper != "pool5" else ours.outputs.get("flatten")
        seen.append(paper)
    assert tuple(seen) == report.layers


def _keras_vgg16(model: VGG, **kwargs) -> keras.Model:
    """Keras's VGG16 with the weights of a model of ours, which have the same layout."""
    network = keras.applications.VGG16(weights=None, **kwargs)
    targets = [layer for layer in network.layers if layer.weights]
    layers = [layer for layer in model.config.layers if layer.kind in ("conv", "linear")]
    for layer, target in zip(layers, targets, strict=True):
        room = model.conv_stack if layer.kind == "conv" else model.head
        source = getattr(room, layer.name)
        target.set_weights([np.asarray(source.kernel[...]), np.asarray(source.bias[...])])
    return network


@pytest.fixture(scope="module", autouse=True)
def _keras() -> Iterator[None]:
    """Keras as it needs JAX, and quick to make models, whose weights are set afterwards."""

    def zeros(self, shape, dtype=None, **_):
        return jax.numpy.zeros(shape, dtype)

    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
        patch.setattr(keras.initializers.GlorotUniform, "__call__", zeros)
        yield


def test_two_photos_give_everybodys_counts_and_eight_the_readings(real_weights):
    pairs = np.split(_photos(8, (224, 224)), 4)
    found = [_measure(real_weights, pair) for pair in pairs]
    keras_shape = {"include_top": False, "input_shape": (224, 224, 3)}
    _compare_with_torch(real_weights, pairs[0], found[0])
    _compare_with_keras(real_weights, pairs[0], found[0], **keras_shape)
    report = functools.reduce(operator.add, [ours.report for ours in found])
    relus = [100 * layer.zero_fraction for layer in report if layer.kind == "relu"]
    np.testing.assert_allclose(relus, RELU_READINGS, rtol=0, atol=0.1)
    zeros = np.concatenate([ours.outputs["pool5"] == 0 for ours in found])
    pool5 = 100 * zeros.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(pool5, POOL5_READINGS, rtol=0, atol=0.1)


@pytest.mark.slow
def test_a_photo_at_375x1242_gives_pytorchs_counts_and_the_reading(real_weights):
    photo = _photos(1, (375, 1242))
    ours = _measure(real_weights, photo)
    _compare_with_torch(real_weights, photo, ours)
    pool5 = ours.report.layer("features.30")
    assert pool5.values.sum() == 214016
    assert abs(100 * pool5.zero_fraction - WIDE_ASTRONAUT) <= 0.1


@pytest.mark.slow
def test_the_classifier_gives_everybodys_counts(random_weights):
    photo = _photos(1, (224, 224)) / np.float32(60)
    ours = _measure(random_weights, photo)
    _compare_with_torch(random_weights, photo, ours)
    _compare_with_keras(random_weights, photo, ours, classes=2)
