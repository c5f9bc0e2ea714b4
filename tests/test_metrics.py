"""The measures of attributions, on paper: what they come to is known without any package."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flaxvgg
from flaxvgg.attribution import rise
from flaxvgg.evaluation.infidelity import removed_at_random
from flaxvgg.evaluation.randomisation import randomised_models
from flaxvgg.evaluation.road import _imputed, removed_pixels
from flaxvgg.evaluation.robustness import uniform_noise
from flaxvgg.evaluation.similarity import pearson, spearman
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import VGG
from helpers import TINY_GAP, TinyConfig, random_images, random_model
from networks import CLASS, HALF, LEFT, mean_model

KEY = jax.random.key(7)


# What each value adds to the logit: the derivative, and the derivative times a value.
SLOPE = np.zeros_like(HALF)
SLOPE[..., 0] = 2 * math.log(3) / 1024


@pytest.fixture(scope="module")
def gap_model() -> VGG:
    return random_model(TinyConfig("vgg11", TINY_GAP))


# ROAD


def test_imputation_by_hand():
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    # Alone, a pixel is the mean of its neighbours, direct ones twice: on a ramp itself.
    removed = np.zeros((3, 4), bool)
    removed[1, 1] = True
    image[0, 0] = 24  # a diagonal neighbour: 2 more of 12 parts
    assert _imputed(image, removed)[1, 1, 0] == pytest.approx(5 + 24 / 12)
    # In a corner: right and below twice, the diagonal one once.
    removed = np.zeros((3, 4), bool)
    removed[2, 3] = True
    found = _imputed(image, removed)
    assert found[2, 3, 0] == pytest.approx((2 * 10 + 2 * 7 + 6) / 5)
    assert np.array_equal(found[~removed], image[~removed])
    # Two of a row of three are unknowns of each other: a = (2 b) / 2, b = (2 a + 2 * 9) / 4.
    row = np.array([[[0.0], [0.0], [9.0]]])
    assert _imputed(row, np.array([[True, True, False]])).ravel() == pytest.approx([9, 9, 9])


def test_removed_pixels_by_hand():
    heatmap = np.array([[0.1, 0.4], [0.3, 0.2], [0.5, 0.5]])
    ties = np.array([[0.0, 0], [0, 0], [0.2, 0.1]])
    # Below the 40th percentile, 0.3, are two values; of the two highest the first drawn is lower.
    hottest, coldest = removed_pixels(heatmap, ties, [40])
    assert hottest.tolist() == [[False, True], [True, False], [True, True]]
    assert coldest.tolist() == [[True, True], [True, True], [False, False]]
    hottest, coldest = removed_pixels(heatmap, ties, [99])
    assert hottest.tolist() == [[False, False], [False, False], [True, False]]
    assert coldest.sum() == 1
    # A map of zeros is removed in part, and at random.
    drawn = np.random.default_rng(0).random((20, 20))
    found = removed_pixels(np.zeros((20, 20)), drawn, [10, 50])
    assert found.sum(axis=(1, 2)).tolist() == [360, 200, 360, 200]
    assert found[1, :10].sum() not in (0, 200)


def test_road_by_hand():
    # Without its left half the image is black, without the right one white: ln 3 becomes 0 or
    # 2 ln 3, and 3/4 becomes 1/2 or 9/10.
    found = flaxvgg.road(
        mean_model(), HALF, LEFT, CLASS, key=KEY, percentiles=[50], noise=0, activation="softmax"
    )
    assert found.morf == pytest.approx(np.array([[-1 / 4]]), abs=1e-6)
    assert found.lerf == pytest.approx(np.array([[9 / 10 - 3 / 4]]), abs=1e-6)
    assert found.combined == pytest.approx([0.2], abs=1e-6)
    # The other way round it is the other way round. The logit itself changes by ln 3.
    arguments = {"key": KEY, "percentiles": [50, 50], "noise": 0, "activation": "linear"}
    wrong = flaxvgg.road(mean_model(), HALF, 1 - LEFT, CLASS, **arguments)
    assert wrong.combined == pytest.approx([-math.log(3)], rel=1e-6)
    assert wrong.percentiles == (50, 50)


def test_the_noise_of_road_is_drawn_from_the_key(gap_model: VGG):
    images, maps = random_images(3, 32, 40), np.random.default_rng(1).random((3, 32, 40))
    classes = np.array([0, 1, 2])
    measure = functools.partial(flaxvgg.road, gap_model, percentiles=[30])
    one = measure(images, maps, classes, key=KEY)
    again = measure(images, maps, classes, key=KEY)
    other = measure(images, maps, classes, key=jax.random.key(8))
    quiet = measure(images, maps, classes, key=KEY, noise=0)
    assert np.array_equal(one.morf, again.morf)
    assert len({float(x.morf[1, 0]) for x in (one, other, quiet)}) == 3
    # It is small: of a hundredth of the images' standard deviation.
    assert one.morf == pytest.approx(quiet.morf, abs=0.01)
    first = measure(images[:1], maps[:1], classes[:1], key=KEY)
    assert first.morf == pytest.approx(one.morf[:1], abs=1e-6)


# Infidelity and sensitivity-n


def test_infidelity_by_hand():
    # The square is the whole image: without it the logit falls by ln 3.
    measure = functools.partial(flaxvgg.infidelity, mean_model(), HALF, classes=CLASS, key=KEY)
    whole = {"perturb": flaxvgg.SquareRemoval(32), "samples": 3}
    log = math.log(3)
    assert measure(SLOPE, **whole) == pytest.approx([0], abs=1e-10)
    assert measure(0 * SLOPE, **whole) == pytest.approx([log**2], rel=1e-5)
    assert measure(-2 * SLOPE, **whole) == pytest.approx([9 * log**2], rel=1e-5)
    # The best factor is -1/2; zeros have none.
    normalized = functools.partial(measure, normalize=True, **whole)
    assert normalized(-2 * SLOPE) == pytest.approx([0], abs=1e-10)
    assert normalized(0 * SLOPE) == pytest.approx([log**2], rel=1e-5)
    # A map counts for all three colours; a probability falls from 3/4 to 1/2.
    assert measure(SLOPE[..., 0] / 3, **whole) == pytest.approx([0], abs=1e-10)
    found = measure(0 * SLOPE, activation="softmax", **whole)
    assert found == pytest.approx([1 / 16], rel=1e-5)


def test_infidelity_of_noise_in_a_linear_network():
    # Bright enough for noise to change no sign: the slope is right about everything.
    bright = HALF + 10
    noisy = {"classes": CLASS, "key": KEY, "perturb": flaxvgg.GaussianNoise(0.5), "samples": 200}
    right = flaxvgg.infidelity(mean_model(), bright, SLOPE, **noisy)
    wrong = flaxvgg.infidelity(mean_model(), bright, 0 * SLOPE, **noisy)
    # The logit changes by 1024 independent terms, whose variances add up; of 200 squares the mean
    # is within 10 % times 4 of it.
    expected = 1024 * (0.5 * SLOPE[0, 0, 0, 0]) ** 2
    assert wrong[0] == pytest.approx(expected, rel=0.4)
    assert right[0] < 1e-3 * expected


def test_squares_are_anywhere_inside():
    image = jnp.ones((32, 40, 3))
    taken = jax.vmap(lambda key: flaxvgg.SquareRemoval(30)(key, image))(jax.random.split(KEY, 200))
    assert (taken[..., 0].sum(axis=(1, 2)) == 900).all()
    corners = [divmod(int(x), 40) for x in taken[..., 0].reshape(200, -1).argmax(axis=1)]
    assert {top for top, _ in corners} == {0, 1, 2}
    assert {left for _, left in corners} == set(range(11))


def test_sensitivity_n_by_hand():
    images = np.abs(random_images(2, 32, 32)) + 1
    classes = np.array([0, 0])
    exact = images * SLOPE
    arguments = {"key": KEY, "fractions": [1 / 1024, 0.3, 1], "samples": 20}
    measure = functools.partial(flaxvgg.sensitivity_n, mean_model(), images, **arguments)
    found = measure(exact, classes)
    # All pixels are one set only. A single one changes the logit by a 1000th of it: 1e-4 of that
    # is lost in float32.
    assert found[:, :2] == pytest.approx(np.ones((2, 2)), abs=1e-3)
    assert np.isnan(found[:, 2]).all()
    assert measure(-exact.sum(axis=-1), classes)[:, 1] == pytest.approx([-1, -1], abs=1e-3)
    assert np.isnan(measure(0 * exact, classes)).all()
    # From another baseline only what differs from it counts.
    dimmed = images - HALF
    found = measure(exact, classes, baseline=dimmed)
    half = measure((images - dimmed) * SLOPE, classes, baseline=dimmed)
    assert half[:, 1] == pytest.approx([1, 1], abs=1e-3)
    assert (found[:, 1] < 0.98).all()


def test_random_sets_are_of_their_size_and_any_pixels():
    sets = jax.vmap(lambda key: removed_at_random(key, (8, 9), jnp.array(18)))
    found = np.asarray(sets(jax.random.split(KEY, 400)))
    assert (found.sum(axis=(1, 2)) == 18).all()
    # A quarter each, within five standard deviations.
    assert found.mean(axis=0) == pytest.approx(
        np.full((8, 9), 1 / 4), abs=5 * (3 / 16 / 400) ** 0.5
    )


def test_what_is_drawn_is_the_same_with_64_bits(gap_model: VGG):
    images, maps = random_images(2, 32, 40), random_images(2, 32, 40, channels=1)[..., 0]

    def drawn() -> list[np.ndarray]:
        squares = flaxvgg.SquareRemoval(8)(KEY, jnp.asarray(images[0]))
        numbers = jnp.arange(3, dtype=jnp.int32)
        found = flaxvgg.road(gap_model, images, maps, np.array([0, 1]), key=KEY, percentiles=[30])
        return [
            np.asarray(x)
            for x in (
                rise.masks(KEY, numbers, (32, 40), 7, 0.5),
                uniform_noise(KEY, 1, images.shape, 0.1),
                flaxvgg.GaussianNoise()(KEY, jnp.asarray(images[0])),
                squares,
                removed_at_random(KEY, (32, 40), jnp.asarray(200, jnp.int32)),
                found.morf,
            )
        ]

    expected = drawn()
    with jax.enable_x64(True):
        found = drawn()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_images_are_judged_alone(gap_model: VGG):
    # The first of three is the same alone: no image gets another's map, class or perturbation.
    images = random_images(3, 32, 40)
    maps, classes = random_images(3, 32, 40, seed=1), np.array([4, 1, 2])
    for measure in (
        functools.partial(flaxvgg.infidelity, gap_model, key=KEY, samples=13),
        functools.partial(
            flaxvgg.sensitivity_n, gap_model, key=KEY, samples=5, fractions=[0.2, 0.5]
        ),
    ):
        together = measure(images, maps, classes)
        assert measure(images[:1], maps[:1], classes[:1]) == pytest.approx(together[:1], rel=1e-4)
        swapped = measure(images[[0, 2, 1]], maps[[0, 2, 1]], classes[[0, 2, 1]])
        assert swapped[1:] != pytest.approx(together[1:], rel=1e-4)


# Max-sensitivity


def test_max_sensitivity_by_hand():
    images = random_images(2, 32, 40)
    measure = functools.partial(flaxvgg.max_sensitivity, images=images, key=KEY, radius=0.1)
    changes = [np.asarray(uniform_noise(KEY, s, images.shape, 0.1)) for s in range(4)]
    lengths = [np.linalg.norm(x.reshape(2, -1), axis=1) for x in changes]
    size = np.linalg.norm(images.reshape(2, -1), axis=1)
    found = measure(lambda x: 3 * x, samples=4)
    assert found == pytest.approx(np.max(lengths, axis=0) / size, rel=1e-5)
    assert measure(lambda x: 0 * x + 1) == pytest.approx([0, 0])
    # An explanation of nothing has no length to compare with.
    found = measure(lambda x: x - images, samples=4)
    assert found == pytest.approx(np.max(lengths, axis=0), rel=1e-5)
    noise = np.stack(changes)
    assert 0.099 < noise.max() <= 0.1
    assert -0.1 <= noise.min() < -0.099


# Parameter randomisation


class NormedConfig(VGGConfig):
    """Two convolutions with a BatchNorm each."""

    conv_stack = (
        Layer("conv1_1", "conv", "features.0", inputs=3, outputs=8, kernel=3),
        Layer("bn1_1", "batch_norm", "features.1", inputs=8, outputs=8),
        Layer("relu1_1", "relu", "features.2"),
        Layer("pool1", "max_pool", "features.3"),
        Layer("conv2_1", "conv", "features.4", inputs=8, outputs=12, kernel=3),
        Layer("relu2_1", "relu", "features.5"),
        Layer("pool2", "max_pool", "features.6"),
    )


def changed_layers(model: VGG, other: VGG) -> set[str]:
    pairs = zip(*(nnx.to_flat_state(nnx.state(x)) for x in (model, other)), strict=True)
    return {path[1] for (path, a), (_, b) in pairs if not (a[...] == b[...]).all()}


def test_layers_are_randomised_from_the_top():
    model = random_model(NormedConfig("vgg11", TINY_GAP))
    before = nnx.clone(model)
    layers = ("fc", "conv2_1", "bn1_1", "conv1_1")
    seen: dict[str, list[VGG]] = {"cascading": [], "independent": []}
    for order, models in seen.items():

        def explain(given: VGG, models=models) -> np.ndarray:
            models.append(nnx.clone(given))
            return random_images(2, 8, 8)[..., 0]

        found = flaxvgg.parameter_randomisation(model, {"it": explain}, key=KEY, order=order)
        assert found.layers == layers
        # What ignores the model stays as it is.
        for similarity in (found.spearman, found.absolute_spearman, found.ssim):
            assert similarity["it"] == pytest.approx(np.ones((4, 2)))
        assert not changed_layers(before, models.pop(0))
    assert not changed_layers(before, model)
    for i, name in enumerate(layers):
        assert changed_layers(model, seen["cascading"][i]) == set(layers[: i + 1])
        assert changed_layers(model, seen["independent"][i]) == {name}
    # A layer has the same new parameters whatever else is random.
    last = seen["cascading"][-1]
    assert changed_layers(last, seen["independent"][-1]) == {"fc", "conv2_1", "bn1_1"}
    # As torchvision draws them: no bias; N(0, 0.01) for linear layers, He et al. for others.
    assert not last.head.fc.bias[...].any()
    assert not last.conv_stack.conv2_1.bias[...].any()
    assert 0.005 < last.head.fc.kernel[...].std() < 0.02
    he = (2 / (9 * 12)) ** 0.5
    assert last.conv_stack.conv2_1.kernel[...].std() == pytest.approx(he, rel=0.15)
    normed = last.conv_stack.bn1_1
    assert (normed.scale[...] == 1).all()
    assert (normed.var[...] == 1).all()
    assert not normed.bias[...].any()
    assert not normed.mean[...].any()


def test_randomisation_is_drawn_from_the_key(gap_model: VGG):
    models = {
        seed: next(randomised_models(gap_model, ("fc",), "cascading", jax.random.key(seed)))
        for seed in (0, 1)
    }
    again = next(randomised_models(gap_model, ("fc",), "independent", jax.random.key(0)))
    assert not changed_layers(models[0], again)
    assert changed_layers(models[0], models[1]) == {"fc"}


def test_similarities_by_hand(gap_model: VGG):
    ramp = np.arange(64, dtype=np.float32).reshape(1, 8, 8) + 1
    answers = iter([ramp, ramp**2, -ramp, 0 * ramp])
    found = flaxvgg.parameter_randomisation(gap_model, {"it": lambda model: next(answers)}, key=KEY)
    assert found.layers == ("fc", "conv2_1", "conv1_1")
    # Ranks know neither the scale nor, as magnitudes, the sign. Zeros have no ranks.
    assert found.spearman["it"][:2] == pytest.approx(np.array([[1], [-1]]))
    assert found.absolute_spearman["it"][:2] == pytest.approx(np.array([[1], [1]]))
    assert np.isnan([found.spearman["it"][2], found.absolute_spearman["it"][2]]).all()
    assert found.ssim["it"][1] == pytest.approx([1])
    assert 0 < found.ssim["it"][2, 0] < 0.1 < found.ssim["it"][0, 0] < 1
    assert np.array_equal(found.maps["it"][1], -ramp)
    # Equal values share their mean rank: 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    ties = spearman(np.array([0.0, 1, 1, 7]), np.arange(4.0))
    assert ties == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert np.isnan(pearson(np.array([[0, np.nan]]), np.array([[0.0, 1]]))).all()


def test_attributions_are_summed_over_colours(gap_model: VGG):
    values = random_images(2, 8, 8)
    found = flaxvgg.parameter_randomisation(
        gap_model, {"it": lambda model: values}, key=KEY, layers=["classifier", "features.0"]
    )
    assert found.layers == ("fc", "conv1_1")
    assert found.original["it"] == pytest.approx(values.sum(axis=-1))


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_the_picture_of_a_randomisation(gap_model: VGG, order: str):
    images = random_images(2, 32, 40)
    explainers = {
        "saliency": lambda model: flaxvgg.attribute(
            model, images, 0, "saliency", signed=True
        ).values[:, 0],
        "grad_$cam$": lambda model: flaxvgg.explain(model, images, 0).heatmaps()[:, 0],
    }
    found = flaxvgg.parameter_randomisation(gap_model, explainers, key=KEY, order=order)
    figure = found.plot(images, number=1)
    titles = [ax.get_title() for ax in figure.axes[:5]]
    assert titles == ["image", "original", "fc", "conv2_1", "conv1_1"]
    assert figure.axes[6].get_ylabel() == r"grad_\$cam\$"
    assert figure.axes[0].images[0].get_array().shape == (32, 40, 3)
    assert not figure.axes[5].images
    legend = figure.subfigs[1].legends[0]
    assert legend.get_texts()[0].get_text() == "saliency"
    largest = np.abs(found.maps["saliency"][2, 1]).max()
    drawn = np.asarray(figure.axes[4].images[0].get_array())
    assert drawn == pytest.approx(found.maps["saliency"][2, 1] / largest, abs=1e-6)
    with pytest.raises(ValueError, match="no image 2"):
        found.plot(images, number=2)
    with pytest.raises(ValueError, match="maps are of 2 images"):
        found.plot(images[:1])


# Relevance on the object, and its concentration


def test_relevance_accuracies_by_hand():
    maps = np.array([[[4, 3], [2, -9]], [[0, 0], [0, -1]], [[0, 0], [1, 0]]], float)
    masks = np.array([[[1, 0], [1, 1]], [[1, 1], [0, 0]], [[1, 0], [0, 0]]]) > 0
    # 6 of 9, what is negative left out; nothing positive; nothing inside.
    assert flaxvgg.relevance_mass_accuracy(maps, masks) == pytest.approx(
        [6 / 9, np.nan, 0], nan_ok=True
    )
    # Of the three highest 4, 3, 2 two are inside; of the three zeros the first two are; none.
    assert flaxvgg.relevance_rank_accuracy(maps, masks) == pytest.approx([2 / 3, 1, 0])
    boxes = [np.array([[0, 0, 1, 2]]), np.array([[0, 0, 2, 1]]), np.array([[0, 1, 1, 2]])]
    assert flaxvgg.relevance_mass_accuracy(maps, boxes)[[0, 2]] == pytest.approx([6 / 9, 1])
    assert flaxvgg.relevance_rank_accuracy(jnp.asarray(maps), boxes) == pytest.approx([1 / 2, 1, 1])


def test_sparseness_and_complexity_by_hand():
    maps = np.array([[[1, 2], [3, 4]], [[5, 0], [0, 0]], [[1, 1], [-1, 1]], [[0, 0], [0, 0]]])
    # (-3 1 - 1 2 + 1 3 + 3 4) / (4 10); all in one of four; all equal; nothing.
    expected = [10 / 40, 3 / 4, 0, np.nan]
    for scale in (1, -0.25):
        found = flaxvgg.sparseness(scale * maps.astype(float))
        assert found == pytest.approx(expected, nan_ok=True)
    entropy = -sum(x * math.log(x) for x in (0.1, 0.2, 0.3, 0.4))
    found = flaxvgg.complexity(maps[..., None] * np.ones(3, np.float32) / 7)
    # Three times as many equal parts: ln 3 more.
    more = math.log(3)
    expected = [entropy + more, more, math.log(4) + more, np.nan]
    assert found == pytest.approx(expected, nan_ok=True)


# Bad input


@pytest.mark.parametrize("measure", ["road", "infidelity", "sensitivity_n"])
def test_bad_input_for_the_network(measure: str):
    function = inspect.unwrap(getattr(flaxvgg, measure))

    def fails(message: str, model=None, images=HALF, maps=LEFT, classes=CLASS, **kwargs):
        with pytest.raises(ValueError, match=message):
            function(model or mean_model(), images, maps, classes, **({"key": KEY} | kwargs))

    fails("N at least 1", images=HALF[:0], maps=LEFT[:0], classes=CLASS[:0])
    fails(r"explanation.heatmaps\(\)", maps=LEFT[:, ::2])
    fails("of image 0 is not finite", maps=np.where(LEFT > 0, np.nan, LEFT))
    fails("one whole number for each", classes=np.array([0, 1]))
    fails("no class 2: .* 0 to 1", classes=np.array([2]))
    fails("softmax, sigmoid, linear", activation="relu")
    fails("key must be one, as jax.random.key", key=0)
    fails("key must be .* uint32", key=jax.random.PRNGKey(0))
    broken = nnx.clone(mean_model())
    broken.head.fc.bias[...] = jnp.full(2, jnp.nan)
    few = {"percentiles": [50]} if measure == "road" else {"samples": 2}
    fails("the score of image 0 is not finite", model=broken, **few)
    if measure == "road":
        fails("heatmaps of shape", maps=HALF)
        fails("between 0 and 100", percentiles=[0, 50])
        fails("at least one", percentiles=[])
        fails("noise", noise=-1)
    else:
        fails("attribution.values", maps=HALF[..., :2])
        fails("samples must be at least", samples=0)
    if measure == "infidelity":
        fails("no square of 33 pixels", perturb=flaxvgg.SquareRemoval(33))
        fails("must keep the shape", perturb=lambda key, image: image[1:])
    if measure == "sensitivity_n":
        fails("at least 2, not 1", samples=1)
        fails(r"fractions must be in \(0, 1\]", fractions=[0.5, 1.1])
        fails("of the images' shape", baseline=HALF[:, 1:])


def test_bad_input(gap_model: VGG):
    again = inspect.unwrap(flaxvgg.max_sensitivity)
    images = random_images(2, 32, 32)

    def fails(message: str, function, *arguments, **kwargs):
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(function)(*arguments, **kwargs)

    fails("no maps", again, lambda x: x[:1], images, key=KEY)
    sizes = iter([1, 2])
    fails("another shape", again, lambda x: x[..., : next(sizes)], images, key=KEY, samples=1)
    fails("explanation of image 1 is not", again, lambda x: x.at[1].set(jnp.inf), images, key=KEY)
    fails("radius must be positive", again, lambda x: x, images, key=KEY, radius=0)
    fails("samples must be at least 1", again, lambda x: x, images, key=KEY, samples=0)
    fails("key must be", again, lambda x: x, images, key=3)
    fails("N at least 1", again, lambda x: x, images[0], key=KEY)

    test = functools.partial(fails, key=KEY)
    randomise = flaxvgg.parameter_randomisation
    maps = images[..., 0]
    one = {"it": lambda model: maps}
    test("no explainers", randomise, gap_model, {})
    test("cascading, independent", randomise, gap_model, one, order="both")
    test("no layer 'conv9'", randomise, gap_model, one, layers=["conv9"])
    test("'relu1_1' has no parameters", randomise, gap_model, one, layers=["fc", "relu1_1"])
    test("no layers were given", randomise, gap_model, one, layers=[])
    test(r"\(2, 32\)", randomise, gap_model, {"it": lambda model: maps[:, 0]})
    test("at least 7", randomise, gap_model, {"it": lambda model: maps[:, :6]})
    test("it map of image 0 is not", randomise, gap_model, {"it": lambda model: maps * np.nan})
    shapes = iter([maps, maps[:, 1:]])
    test("another shape", randomise, gap_model, {"it": lambda model: next(shapes)})
    test("prepared from", randomise, flaxvgg.prepare(gap_model, (32, 32)), one)
    fails("key must be", randomise, gap_model, one, key=0)

    for measure in (flaxvgg.sparseness, flaxvgg.complexity):
        fails(r"not \(2, 32\)", measure, maps[0, :2])
        fails(r"\(2, 32, 32, 2\)", measure, images[..., :2])
        fails("none of them 0", measure, maps[:0])
        fails("attribution of image 1 is not", measure, np.stack([maps[0], maps[1] * np.nan]))
    for measure in (flaxvgg.relevance_mass_accuracy, flaxvgg.relevance_rank_accuracy):
        fails("heat map 0 is not finite", measure, maps * np.nan, maps > 0)
        fails("no target in image 0", measure, maps, maps > 99)
        fails("targets must be boolean", measure, maps, maps[:, 1:] > 0)
