"""Counts by hand and against NumPy; reports that add up; what JAX does to them."""

import dataclasses
import json
import math
import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flaxvgg
from flaxvgg.network.config import Layer, VGGConfig, classifier_layers
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import Provenance
from flaxvgg.sparsity import counting as sparsity
from flaxvgg.sparsity.counting import count_images, measure_sparsity
from helpers import random_images, random_model

# The layers that compile quickly.
measure = partial(measure_sparsity, layers=("pool1", "relu1_1"))
NAN, INF = np.nan, np.inf


def _narrow_head(units: int = 16) -> tuple[Layer, ...]:
    """torchvision's classifier with few units."""
    return tuple(
        dataclasses.replace(
            layer,
            inputs=layer.inputs and (512 if layer.name == "fc6" else units),
            outputs=layer.outputs and units,
        )
        for layer in classifier_layers(units)
    )


def _make(seed: int, **kwargs) -> VGG:
    config = VGGConfig("vgg11_bn", _narrow_head())
    return random_model(config, seed, precision="default", **kwargs)


@pytest.fixture(scope="module")
def model() -> VGG:
    return _make(0, provenance=Provenance(source="a test"))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random_images(4, 64, 48)


@pytest.fixture(scope="module")
def report(model, images) -> flaxvgg.SparsityReport:
    return measure(model, images)


@pytest.fixture(scope="module")
def whole(model, images) -> flaxvgg.SparsityReport:
    return measure_sparsity(model, images)


def _same(a: flaxvgg.SparsityReport, b: flaxvgg.SparsityReport) -> None:
    """Check that two reports are the same, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


# Counting.


@partial(jax.jit, static_argnames="is_relu")
def count_layer(x, is_relu):
    return sparsity._count_layer(x, is_relu=is_relu)


def test_a_relu_by_hand():
    # One image, 2x3, two channels.
    before = jnp.array([[[[-1, 0], [2, -0.0], [0, -3]], [[-2, -1], [0.5, -1], [-1, 0]]]])
    counts = count_layer(before, is_relu=True)
    assert counts.values == 6
    assert counts.zeros.tolist() == [[4, 6]]
    assert counts.silent.tolist() == [[False, True]]
    assert counts.zero_fraction.tolist() == [np.float32(10 / 12)]
    assert counts.largest.tolist() == [[2, 0]]
    assert counts.negatives_before.tolist() == [[3, 3]]
    assert counts.zeros_before.tolist() == [[1, 3]]
    assert counts.sum_before.tolist() == [[-1.5, -5]]
    assert counts.square_before.tolist() == [[10.25, 11]]


def test_other_layers_and_vectors_by_hand():
    maps = jnp.array([[[[0.0, -1]], [[3, -2]]]])
    counts = count_layer(maps, is_relu=False)
    assert counts.values == 2
    assert counts.zeros.tolist() == [[1, 0]]
    assert counts.largest.tolist() == [[3, -1]]  # of a layer that is no ReLU, it may be negative
    assert counts.negatives_before is counts.sum_before is None
    vectors = jnp.array([[-1.0, 0, 2], [0, 0, 0]])
    counts = count_layer(vectors, is_relu=True)
    assert counts.values == 1
    assert counts.silent.tolist() == [[True, True, False], [True, True, True]]
    assert counts.negatives_before.tolist() == [[1, 0, 0], [0, 0, 0]]


def test_nan_and_infinity_are_not_hidden():
    before = jnp.array([[[[NAN, INF, -INF], [-1, -1, -1]]]])
    counts = count_layer(before, is_relu=True)
    assert counts.zeros.tolist() == [[1, 1, 2]]
    assert counts.negatives_before.tolist() == [[1, 1, 2]]
    np.testing.assert_array_equal(counts.largest, [[NAN, INF, 0]])
    np.testing.assert_array_equal(counts.sum_before, [[NAN, INF, -INF]])


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (9, 2)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_ways_of_counting_are_numpys(size, dtype):
    x = random_images(3, *size, channels=6)
    maps = jnp.asarray(np.where(np.abs(x) < 0.3, 0, x), dtype)
    exact = np.asarray(maps, np.float64)
    expected = [(exact < 0).sum((1, 2)), (exact == 0).sum((1, 2)), exact.max((1, 2))]
    for way in (sparsity._tally, sparsity._tally_by_rows):
        found = jax.jit(way)(maps)
        for array, truth in zip(found[:3], expected, strict=True):
            np.testing.assert_array_equal(array, truth)
        np.testing.assert_allclose(found.sums, exact.sum((1, 2)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.squares, (exact**2).sum((1, 2)), rtol=1e-5)


def test_float_sums_of_an_image_do_not_depend_on_its_batch():
    tally = jax.jit(sparsity._tally_by_rows)
    for shape in [(56, 40, 64), (2, 2, 512), (1, 1, 512)]:
        maps = random_images(5, *shape[:2], channels=shape[2])
        together = tally(maps)
        for i in range(5):
            for whole, alone in zip(together, tally(maps[i : i + 1]), strict=True):
                np.testing.assert_array_equal(whole[i], alone[0])


def test_every_layer_of_a_network(model, images, whole):
    names = model.config.layer_names
    outputs = jax.jit(lambda model, x: model.activations(x, names))(model, images)
    outputs = {name: np.asarray(output, np.float64) for name, output in outputs.items()}
    kinds = {layer.name: layer.kind for layer in model.config.layers}
    assert whole.layers == tuple(n for n in names if kinds[n] in ("relu", "max_pool"))
    assert (whole.images, whole.arch, whole.source) == (4, "vgg11_bn", "a test")
    counts = count_images(model, images)
    for layer in whole:
        output = outputs[layer.name]
        space = tuple(range(1, output.ndim - 1))
        zeros = (output == 0).sum(space)
        assert layer.kind == kinds[layer.name]
        np.testing.assert_array_equal(counts[layer.name].zeros, zeros)
        np.testing.assert_array_equal(layer.zeros, zeros.sum(0))
        np.testing.assert_array_equal(layer.values, output[..., 0].size)
        silent = (output == 0).all(space)
        np.testing.assert_array_equal(counts[layer.name].silent, silent)
        np.testing.assert_array_equal(layer.silent, silent.sum(0))
        np.testing.assert_array_equal(layer.dead, silent.all(0))
        np.testing.assert_array_equal(layer.firing, 1 - silent.mean(0))
        np.testing.assert_array_equal(layer.largest, output.max((0, *space)))
        assert layer.zero_fraction == (output == 0).mean()
        if layer.kind != "relu":
            assert layer.negatives_before is layer.square_before is None
            continue
        # In front of a ReLU is the BatchNorm here, or a linear layer.
        before = outputs[names[names.index(layer.name) - 1]]
        np.testing.assert_array_equal(layer.negatives_before, (before < 0).sum((0, *space)))
        np.testing.assert_array_equal(layer.zeros_before, (before == 0).sum((0, *space)))
        magnitude = np.abs(before).sum((0, *space))
        error = np.abs(layer.sum_before - before.sum((0, *space)))
        assert (error <= 1e-6 * magnitude).all()
        np.testing.assert_allclose(layer.square_before, (before**2).sum((0, *space)), rtol=1e-6)


def test_names_people_use(model, images, whole):
    asked = ["block5_pool", "features.28", "fc1", "relu5_2", "conv5_2", "flatten", "fc8"]
    found = measure_sparsity(model, images, asked)
    assert found.layers == tuple(asked)
    assert list(count_images(model, images, asked)) == asked
    assert found.channels == (512, 512, 16, 512, 512, 25088, 16)
    for name, paper in [("block5_pool", "pool5"), ("features.28", "pool5"), ("fc1", "relu6")]:
        assert found.layer(name).name == name
        np.testing.assert_array_equal(found.layer(name).zeros, whole.layer(paper).zeros)
    np.testing.assert_array_equal(whole.layer("block5_conv2").zeros, found.layer("relu5_2").zeros)
    assert found.layer("classifier.1").name == "fc1"
    assert found.layer("conv5_2").negatives_before is None
    assert found.layer("conv5_2").largest.max() > 0


def test_dead_channels_and_channels_silent_in_one_image(images):
    model = _make(0)
    bias, scale = model.conv_stack.bn1_1.bias, model.conv_stack.bn1_1.scale
    bias[...] = bias.at[0].set(-1e6)  # never fires
    scale[...] = scale.at[1].set(0.0)
    bias[...] = bias.at[1].set(1.0)  # always fires
    kernel = model.conv_stack.conv1_1.kernel
    kernel[...] = kernel.at[..., 2].set(jnp.zeros((3, 3, 3)).at[1, 1, 0].set(1.0))
    bias[...] = bias.at[2].set(0.0)  # fires where the image is red
    red = np.array([1, -1, -1, -1], np.float32).reshape(4, 1, 1, 1)
    layer = measure_sparsity(model, np.abs(images) * red, ["relu1_1"]).layer("relu1_1")
    assert layer.silent[:3].tolist() == [4, 0, 3]
    assert layer.dead[:3].tolist() == [True, False, False]
    assert layer.firing[:3].tolist() == [0, 1, 0.25]
    assert layer.zeros[:2].tolist() == [4 * 64 * 48, 0]


# Adding.


def test_reports_add_up_in_any_order_and_split(model, images, report):
    ones = [measure(model, images[i : i + 1]) for i in range(4)]
    for seed in range(3):
        random.Random(seed).shuffle(ones)
        _same(sum(ones), report)
    a, b, c, d = ones
    _same(a + (b + (c + d)), report)
    _same(measure(model, images[:3]) + measure(model, images[3:]), report)


def test_sums_are_exactly_those_of_the_images(model, images, report):
    counts = count_images(model, images, report.layers)
    for field in ("sum_before", "square_before"):
        arrays = np.asarray(getattr(counts["relu1_1"], field), np.float64)
        expected = [math.fsum(column) for column in arrays.T]
        assert getattr(report.layer("relu1_1"), field).tolist() == expected


def test_totals_past_2_to_the_31(report):
    total = report
    for _ in range(40):
        total = total + total
    assert total.images == 4 * 2**40
    for small, large in zip(report, total, strict=True):
        arrays = small.by_channel()
        for name, array in large.by_channel().items():
            factor = 1 if name == "largest" else 2**40
            np.testing.assert_array_equal(array, arrays[name] * factor, strict=True)
        assert large.zero_fraction == small.zero_fraction
    assert total.layer("relu1_1").values.max() == 4 * 64 * 48 * 2**40


def test_images_of_other_sizes_add_up(model, report):
    total = (report + measure(model, random_images(1, 32, 32))).layer("relu1_1")
    assert total.values.tolist() == [4 * 64 * 48 + 32 * 32] * 64


def test_only_reports_of_the_same_kind_add_up(model, images, report):
    others = [
        measure_sparsity(model, images, ["relu1_1"]),
        dataclasses.replace(report, source="other weights"),
    ]
    for other in others:
        with pytest.raises(ValueError, match="add up only of the same"):
            report + other
    with pytest.raises(TypeError):
        report + 1
    with pytest.raises(TypeError):
        1 + report


# Under JAX.


def test_under_jit_and_added_under_jit(model, images, report):
    _same(jax.jit(measure)(model, images), report)

    @jax.jit
    def halves(model, images):
        return measure(model, images[:2]) + measure(model, images[2:])

    _same(halves(model, images), report)
    zeros = jax.jit(lambda m, x: count_images(m, x, ["pool1"])["pool1"].zeros)(model, images)
    np.testing.assert_array_equal(zeros.sum(0), report.layer("pool1").zeros)


def test_under_vmap(model, images):
    pairs = images.reshape(2, 2, 64, 48, 3)
    stacked = jax.vmap(lambda x: measure(model, x))(pairs)
    for i in range(2):
        found = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        for a, b in zip(found, measure(model, pairs[i]), strict=True):
            np.testing.assert_array_equal(a.zeros, b.zeros)
            np.testing.assert_array_equal(a.largest, b.largest)
        assert found.images == 2


def test_a_batch_sharded_over_two_devices(model, images, report):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    replicated = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("batch")))
    found = measure(replicated, sharded)
    _same(found, report)
    _same(found + report, report + found)


def test_reports_of_two_devices_add_up(model, images, report):
    halves = []
    for device, part in zip(jax.devices()[:2], (images[:2], images[2:]), strict=True):
        halves.append(measure(jax.device_put(model, device), jax.device_put(part, device)))
    assert halves[0].totals.counts.devices() != halves[1].totals.counts.devices()
    _same(halves[0] + halves[1], report)
    _same(halves[1] + halves[0], report)


def test_new_weights_are_not_compiled_anew(model, images, report):
    compiled = sparsity._measure._cache_size()
    other = measure(_make(1, provenance=Provenance(source="other weights")), images)
    assert sparsity._measure._cache_size() == compiled
    assert other.source == "other weights"
    assert (other.layer("pool1").zeros != report.layer("pool1").zeros).any()


# Reading.


def test_rows_and_json(report):
    rows = report.rows()
    assert [row["layer"] for row in rows] == list(report.layers)
    layer = report.layer("relu1_1")
    row = rows[report.layers.index("relu1_1")]
    assert row == {
        "layer": "relu1_1",
        "kind": "relu",
        "channels": 64,
        "images": 4,
        "values": 4 * 64 * 48 * 64,
        "zeros": int(layer.zeros.sum()),
        "zero_fraction": layer.zero_fraction,
        "silent": layer.silent.sum() / 4,
        "dead": int(layer.dead.sum()),
        "largest": float(layer.largest.max()),
        "negatives_before": int(layer.negatives_before.sum()),
        "zeros_before": int(layer.zeros_before.sum()),
        "sum_before": float(layer.sum_before.sum()),
        "square_before": float(layer.square_before.sum()),
    }
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (value["arch"], value["source"], value["images"]) == ("vgg11_bn", "a test", 4)
    found = value["layers"][report.layers.index("relu1_1")]
    assert found["by_channel"]["silent"] == layer.silent.tolist()
    assert {key: found[key] for key in row} == row


def test_markdown(report):
    lines = report.to_markdown().splitlines()
    assert len(lines) == 2 + len(report.layers)
    assert len({line.count("|") for line in lines}) == 1
    pool = report.layer("pool1")
    expected = f"| pool1 | 64 | {pool.zero_fraction:.2%} | {4 * 32 * 24 * 64:,} |  |  |"
    assert lines[2 + report.layers.index("pool1")].startswith(expected)


def test_a_network_that_gives_nan_is_seen_in_every_form(model, images):
    broken = measure_sparsity(model, np.full_like(images, NAN), ["relu1_1"])
    layer = broken.layer("relu1_1")
    assert layer.zeros.sum() == layer.negatives_before.sum() == layer.dead.sum() == 0
    assert np.isnan(layer.largest).all()
    assert np.isnan(layer.sum_before).all()
    value = json.loads(json.dumps(broken.to_json(), allow_nan=False))
    assert value["layers"][0]["largest"] == "nan"
    assert broken.to_markdown().endswith("| nan |")


# Bad input.


def test_bad_input_is_named(model, images, report):
    with pytest.raises(ValueError, match=r"with N from 1 to 32768, not \(0, 64"):
        measure_sparsity(model, images[:0])
    with pytest.raises(ValueError, match="did you mean relu5_1"):
        measure_sparsity(model, images, ["relu5_11"])
    with pytest.raises(ValueError, match="must be a list of names"):
        measure_sparsity(model, images, "pool5")
    with pytest.raises(ValueError, match="layers is empty"):
        count_images(model, images, [])
    with pytest.raises(ValueError, match="conv2_1 was not counted: choose from pool1, relu1_1"):
        report.layer("conv2_1")
