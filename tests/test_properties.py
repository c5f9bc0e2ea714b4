"""What holds for every input, on inputs that hypothesis draws; the same ones in every run."""

import dataclasses
import inspect
import itertools
from fractions import Fraction
from functools import cache, partial

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import flaxvgg
from flaxvgg.evaluation.localisation import max_box_acc, max_box_acc_v2, pointing_game, pxap
from flaxvgg.images.loading import ImageError, fit_image, normalise, open_image
from flaxvgg.network.config import ARCHITECTURES, Layer, VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.sparsity import exact
from flaxvgg.weights.mapping import MappingError, arrays_from_torch, build, entries, model_arrays
from helpers import TINY_CLASSIFIER, TINY_GAP, TinyConfig, random_model


def examples(count: int):
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


# Shapes and dtypes.

SIZES = st.integers(32, 100)
LEAD = st.lists(st.integers(0, 3), max_size=3).map(tuple)
FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]


@cache
def _abstract(dtype=jnp.float32) -> VGG:
    """Two poolings, to 12 channels, and 7 classes."""
    config = TinyConfig("vgg11", TINY_CLASSIFIER)
    return nnx.eval_shape(lambda: VGG(config, rngs=nnx.Rngs(0), dtype=dtype))


@examples(15)
@given(LEAD, SIZES, SIZES, *[st.sampled_from(FLOATS)] * 2)
def test_shapes_and_dtypes_follow_from_the_images(lead, height, width, given_in, dtype):
    images = jax.ShapeDtypeStruct((*lead, height, width, 3), given_in)

    def every(model: VGG, images: jax.Array) -> list[jax.Array]:
        return [model.features(images), model.gap(images), model(images)]

    found = jax.eval_shape(every, _abstract(dtype), images)
    shapes = [(height // 4, width // 4, 12), (12,), (7,)]
    assert [(x.shape, x.dtype) for x in found] == [((*lead, *shape), dtype) for shape in shapes]


@examples(15)
@given(
    LEAD,
    SIZES,
    SIZES,
    st.sampled_from(["bool", "int8", "uint8", "int16", "uint16", "int32", "complex64"]),
)
def test_images_that_are_no_floats_are_refused(lead, height, width, dtype):
    images = jax.ShapeDtypeStruct((*lead, height, width, 3), dtype)
    # What users run: the tests' own types would refuse them before.
    features = partial(inspect.unwrap(VGG.activations), layers=["features"])
    with pytest.raises(ValueError, match=f"^images are {dtype}: the network takes normalised"):
        jax.eval_shape(features, _abstract(), images)


@pytest.fixture(scope="module")
def tiny() -> VGG:
    return random_model(TinyConfig("vgg11", TINY_CLASSIFIER), precision="default")


@jax.jit
def _everything(model: VGG, images: jax.Array) -> dict[str, jax.Array]:
    names = ["pool2", "features", "features.5", "fc8", "gap", "block2_pool"]
    found = model.activations(images, [name for name in names if name != "gap"])
    return found | {"by features": model.features(images), "gap": model.gap(images)}


@examples(12)
@given(
    st.sampled_from([(2, 33, 40), (2, 32, 71)]).flatmap(
        lambda shape: arrays.arrays(
            np.float32, (*shape, 3), elements=st.floats(-3, 3, width=32), fill=st.floats(-1, 1)
        )
    )
)
def test_features_are_the_activations_of_the_last_pooling(tiny, images):
    found = {name: np.asarray(x) for name, x in _everything(tiny, images).items()}
    for name in ("features", "features.5", "block2_pool", "by features"):
        np.testing.assert_array_equal(found[name], found["pool2"], strict=True)
    exact_mean = found["pool2"].astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(found["gap"], exact_mean, rtol=1e-5, atol=1e-6)
    # An image has no neighbours, and leading axes are only a shape.
    turned = _everything(tiny, images[::-1])
    folded = _everything(tiny, images[None, :, None])
    for name, values in found.items():
        np.testing.assert_allclose(values[::-1], turned[name], rtol=1e-5, atol=1e-5)
        assert folded[name].shape == (1, 2, 1, *values.shape[1:])
        np.testing.assert_array_equal(np.asarray(folded[name]).reshape(values.shape), values)


# Names.


def _configs() -> list[VGGConfig]:
    configs = [VGGConfig.classifier(arch) for arch in ARCHITECTURES]
    configs += [VGGConfig.features_only(arch, "no head here") for arch in ARCHITECTURES]
    configs += [VGGConfig.gap("vgg16", num_classes=5, channels=c) for c in (None, 1024)]
    configs += [VGGConfig.score_map("vgg13_bn", num_classes=5, fc=fc) for fc in (True, False)]
    return [*configs, VGGConfig.classifier("vgg19").fully_convolutional()]


CONFIGS = _configs()
NAMES = [(config, config.all_names) for config in CONFIGS]


def test_every_alias_stands_for_one_layer():
    for config in CONFIGS:
        by_name = {layer.name: layer for layer in config.layers}
        assert len(by_name) == len(config.layers)
        for name in config.all_names:
            layer = by_name[config.resolve(name)]
            if name.startswith(("features.", "classifier.")):
                assert layer.torch == name
            assert config.resolve(layer.name) == layer.name


@st.composite
def _misspelt(draw) -> tuple[VGGConfig, str]:
    config, names = draw(st.sampled_from(NAMES))
    name = draw(st.sampled_from(names))
    place = draw(st.integers(0, len(name)))
    new = draw(st.sampled_from(["", " ", "_", "0", "9", "x", "conv", "é"]) | st.text(max_size=5))
    return config, name[:place] + new + name[place + draw(st.integers(0, 2)) :]


@examples(300)
@given(_misspelt())
def test_a_name_is_known_or_refused_with_a_hint(drawn):
    config, name = drawn
    if name in config.all_names:
        assert config.resolve(name) in config.layer_names
        return
    with pytest.raises(ValueError, match="has no layer") as caught:
        config.resolve(name)
    told = str(caught.value)
    assert repr(name) in told
    if "did you mean " in told:
        hints = told.partition("did you mean ")[2].removesuffix("?").split(", ")
        assert 0 < len(hints) <= 3
        assert all(hint in config.all_names for hint in hints)
    else:
        assert told.endswith(("; see model.config.layer_names", ": no head here"))


# State dicts.


# Widths of the blocks, BatchNorm or not, the head, the architecture, a seed for the values.
NETWORKS = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([(), TINY_CLASSIFIER, TINY_GAP]),
    st.sampled_from(ARCHITECTURES),
    st.integers(0, 2**32),
)


def _state_dict(network: tuple) -> tuple[VGGConfig, dict[str, np.ndarray]]:
    widths, norm, head, arch, seed = network
    layers: list[Layer] = []

    def add(name: str, kind, **sizes):
        layers.append(Layer(name, kind, f"features.{len(layers)}", **sizes))

    for block, (inputs, width) in enumerate(itertools.pairwise([3, *widths]), 1):
        add(f"conv{block}_1", "conv", inputs=inputs, outputs=width, kernel=3)
        if norm:
            add(f"bn{block}_1", "batch_norm", inputs=width, outputs=width)
        add(f"relu{block}_1", "relu")
        add(f"pool{block}", "max_pool")
    first = next((layer for layer in head if layer.kind == "linear"), None)
    head = tuple(dataclasses.replace(x, inputs=widths[-1]) if x is first else x for x in head)
    kind = type("Network", (TinyConfig,), {"conv_stack": tuple(layers)})
    config, random = kind(arch, head, "no head here"), np.random.default_rng(seed)
    state = {}
    for entry in entries(config):
        if entry.integer:
            state[entry.torch] = np.asarray(random.integers(2**20))
        else:
            dtype = (np.float32, np.float16, ml_dtypes.bfloat16)[random.integers(3)]
            state[entry.torch] = random.standard_normal(entry.torch_shape).astype(dtype)
    return config, state


@examples(10)
@given(NETWORKS)
def test_a_state_dict_comes_back_bit_for_bit(network):
    config, state = _state_dict(network)
    model = flaxvgg.from_torch(config.arch, state, config=config)
    back = flaxvgg.to_torch(model)
    assert list(back) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, strict=True)
    again = flaxvgg.from_torch(config.arch, back, config=config)
    for (path, a), b in zip(model_arrays(model).items(), model_arrays(again).values(), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), str(path), strict=True)


FAULTS = ("missing", "renamed", "shape", "dtype", "nan")


@examples(60)
@given(NETWORKS, st.data())
def test_every_fault_is_named_and_nothing_else(network, data):
    config, state = _state_dict(network)
    damaged, named = dict(state), set()
    names = data.draw(st.lists(st.sampled_from(list(state)), min_size=1, max_size=6, unique=True))
    for name in names:
        integer = state[name].dtype.kind == "i"
        fault = data.draw(st.sampled_from(FAULTS[2:4] if integer else FAULTS))
        array = damaged.pop(name)
        named.add(name)
        match fault:
            case "renamed":
                damaged[f"{name}s"] = array
                named.add(f"{name}s")
            case "shape":
                damaged[name] = array[None]
            case "dtype":
                damaged[name] = np.zeros(array.shape, np.float32 if integer else np.int32)
            case "nan":
                damaged[name] = np.full_like(array, np.nan)
    with pytest.raises(MappingError) as caught:
        arrays_from_torch(config, damaged)
    assert {problem.partition(":")[0] for problem in caught.value.problems} == named
    assert len(caught.value.problems) == len(named)
    assert all(name in str(caught.value) for name in named)


@examples(8)
@given(NETWORKS, st.data())
def test_a_model_is_not_built_of_other_arrays(network, data):
    config, state = _state_dict(network)
    parts = arrays_from_torch(config, dict(state))
    path = data.draw(st.sampled_from(list(parts)))
    spoiled = data.draw(st.sampled_from([None, np.zeros((*parts[path].shape, 2), np.float32)]))
    others = {key: value for key, value in parts.items() if key != path}
    with pytest.raises(MappingError, match=f"{'.'.join(path)}: (missing|shape)"):
        build(config, others if spoiled is None else others | {path: spoiled})


# Images.

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
TIFF_MODES = ("CMYK", "YCbCr", "LAB", "RGBX", "PA")


@examples(60)
@given(st.sampled_from(PNG_MODES + TIFF_MODES), st.integers(1, 90), st.integers(1, 90))
def test_an_image_of_any_mode_and_size_is_opened(tmp_path_factory, mode, width, height):
    path = tmp_path_factory.getbasetemp() / f"any.{'png' if mode in PNG_MODES else 'tif'}"
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    colour = Image.fromarray(pixels)
    image = Image.fromarray(257 * pixels[..., 0].astype(np.uint16)) if mode == "I;16" else None
    image = image or (colour.convert("LAB") if mode == "LAB" else None)
    image = image or colour.convert("P" if mode == "PA" else mode).convert(mode)
    image.save(path)
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert opened.size == (width, height)
    if mode in ("RGB", "RGBA", "RGBX"):
        np.testing.assert_array_equal(np.asarray(opened), pixels)
    if mode in ("L", "I;16", "LA"):
        channels = np.moveaxis(np.asarray(opened), -1, 0)
        expected = pixels[..., 0] if mode == "I;16" else np.asarray(colour.convert("L"))
        assert all(np.array_equal(channel, expected) for channel in channels)


@examples(80)
@given(
    *[st.integers(1, 200)] * 2,
    *[st.integers(32, 80)] * 2,
    st.sampled_from(list(PREPROCESSING)),
    st.sampled_from(("RGB", "RGB", "RGB", *PNG_MODES)),
)
def test_a_fitted_image_has_the_size_asked_for(width, height, rows, columns, recipe, mode):
    colour = (width % 256, height % 256, 77)
    image = Image.new("RGB", (width, height), colour).convert("L" if mode == "I;16" else mode)
    if image.mode != "RGB":
        with pytest.raises(ImageError, match=f"an image of mode {image.mode}: pass open_image"):
            fit_image(image, (rows, columns), recipe)
        return
    fitted = fit_image(image, (rows, columns), recipe)
    assert fitted.dtype == np.uint8
    # Whatever is scaled and cut, one colour stays one colour: nothing comes from outside.
    np.testing.assert_array_equal(fitted, np.full((rows, columns, 3), colour, np.uint8))
    if min(width, height) >= 32:
        np.testing.assert_array_equal(fit_image(image, None, recipe), np.asarray(image))
    else:
        with pytest.raises(ImageError, match=f"{height}x{width} pixels .* needs 32x32"):
            fit_image(image, None, recipe)


@examples(30)
@given(
    st.sampled_from([(5, 7, 3), (2, 3, 4, 3), (0, 2, 3, 3)]).flatmap(
        lambda shape: arrays.arrays(np.uint8, shape)
    ),
    st.sampled_from(list(PREPROCESSING.values())),
)
def test_normalised_pixels_are_those_of_plain_arithmetic(pixels, recipe):
    values = pixels.astype(np.float32) / np.float32(recipe.divisor)
    values = values if recipe.channels == "RGB" else values[..., ::-1]
    expected = (values - np.float32(recipe.mean)) / np.float32(recipe.std)
    np.testing.assert_array_equal(np.asarray(normalise(pixels, recipe)), expected, strict=True)


# Exact sums.

_sum_floats, _sum_counts = jax.jit(exact.sum_floats), jax.jit(exact.sum_counts)
_add_floats, _add_counts = jax.jit(exact.add_floats), jax.jit(exact.add_counts)
TERMS = 6


@st.composite
def _trees(draw) -> list[tuple[int, int]]:
    """An order in which to add `TERMS` numbers: two are replaced by their sum, again and again."""
    return [draw(st.permutations(range(left)).map(lambda x: x[:2])) for left in range(TERMS, 1, -1)]


def _added(parts: list, order: list, add):
    for i, j in order:
        parts = [add(parts[i], parts[j]), *(x for k, x in enumerate(parts) if k not in (i, j))]
    return parts[0]


@examples(60)
@given(
    arrays.arrays(
        np.float32, TERMS, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    _trees(),
)
def test_floats_add_up_exactly_in_any_order(values, order):
    expected = float(sum(Fraction(float(x)) for x in values))
    whole = _sum_floats(values)
    assert exact.float_to_host(whole) == expected
    total = _added([_sum_floats(values[i : i + 1]) for i in range(TERMS)], order, _add_floats)
    np.testing.assert_array_equal(total.digits, whole.digits)


@examples(60)
@given(arrays.arrays(np.int32, TERMS, elements=st.integers(0, 2**31 - 1)), _trees())
def test_counts_add_up_exactly_in_any_order(values, order):
    whole = _sum_counts(values)
    assert int(exact.count_to_host(whole)) == sum(map(int, values))
    total = _added([_sum_counts(values[i : i + 1]) for i in range(TERMS)], order, _add_counts)
    np.testing.assert_array_equal(total, whole)


# Boxes.


@st.composite
def _maps_and_boxes(draw) -> tuple[np.ndarray, np.ndarray]:
    """Maps in [0, 1] without two equal values, and one box each."""
    n, h, w = (draw(st.integers(1, top)) for top in (3, 9, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    maps = np.stack([random.permutation(h * w).reshape(h, w) / max(h * w - 1, 1) for _ in range(n)])
    boxes = []
    for _ in range(n):
        left, right = sorted(draw(st.lists(st.integers(0, w), min_size=2, max_size=2, unique=True)))
        top, bottom = sorted(draw(st.lists(st.integers(0, h), min_size=2, max_size=2, unique=True)))
        boxes.append([[left, top, right, bottom]])
    return maps.astype(np.float32), np.array(boxes)


@examples(60)
@given(_maps_and_boxes(), st.integers(0, 5), st.sampled_from([1e-3, 7.0, -0.0]))
def test_the_pointing_game_knows_no_left_and_no_scale(drawn, tolerance, shift):
    maps, boxes = drawn
    _, height, width = maps.shape
    score = pointing_game(maps, boxes, tolerance)
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    mirrored = np.stack([width - right, top, width - left, bottom], -1)
    assert pointing_game(maps[:, :, ::-1], mirrored, tolerance) == score
    upside_down = np.stack([left, height - bottom, right, height - top], -1)
    assert pointing_game(maps[:, ::-1], upside_down, tolerance) == score
    turned = np.stack([top, left, bottom, right], -1)
    assert pointing_game(maps.transpose(0, 2, 1), turned, tolerance) == score
    assert pointing_game(8 * maps + np.float32(shift), boxes, tolerance) == score
    assert pointing_game(maps[::-1], boxes[::-1], tolerance) == pytest.approx(score)
    assert pointing_game(maps, boxes, tolerance + 1) >= score


@examples(4)
@given(_maps_and_boxes())
def test_localisation_scores_are_fractions_and_a_perfect_map_has_them_all(drawn):
    maps, boxes = drawn
    masks = np.zeros(maps.shape, bool)
    for mask, ((left, top, right, bottom),) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    scores = [max_box_acc(maps, boxes), max_box_acc_v2(maps, boxes), pxap(maps, masks)]
    assert all(0 <= score <= 1 for score in scores)
    best = max_box_acc(maps, boxes)
    for one, more in itertools.pairwise([boxes, np.concatenate([boxes, boxes[::-1]], 1)]):
        assert max_box_acc(maps, more) >= max_box_acc(maps, one) == best
    assert pxap(masks.astype(np.float32), masks) == 1
