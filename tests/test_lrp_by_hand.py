"""Every rule on a network so small that plain loops say what it gives; and that mistakes show.

The expected values are those of the formulas, term by term, in float64: nothing is convolved, and
nothing is shared with what is tested but the shapes.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flaxvgg
from flaxvgg.attribution import relevance, routing
from flaxvgg.attribution.relevance import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from flaxvgg.attribution.routing import Gradient, Norm
from flaxvgg.attribution.rules import Site
from flaxvgg.network.config import Layer
from flaxvgg.network.model import LayerStack
from networks import tiny_vgg

RNG = np.random.default_rng(3)
KERNEL = RNG.standard_normal((3, 3, 2, 3))
BIAS = np.array([0.5, -0.4, 0.0])
SIGNED = RNG.standard_normal((1, 4, 3, 2))
RELEVANCE = RNG.standard_normal((1, 4, 3, 3))
EPS = 0.01


def up(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def down(x: np.ndarray) -> np.ndarray:
    return np.minimum(x, 0)


# A term of input x and weight w; the bias's part; by the sign of the output, where that matters.
Term = Callable[[float, float], float]


def shared(
    x: np.ndarray,
    relevance: np.ndarray,
    term: Term,
    of_bias: Callable[[float], float],
    eps: float = EPS,
    share: Callable[[float], float] = lambda z: 1.0,
) -> np.ndarray:
    """Relevance in proportion to terms, with loops over outputs and their inputs."""
    found = np.zeros_like(x)
    _, height, width, channels = x.shape
    for i, j, o in np.ndindex(height, width, KERNEL.shape[3]):
        places = [
            (i + k - 1, j + m - 1, c, KERNEL[k, m, c, o])
            for k, m, c in np.ndindex(3, 3, channels)
            if 0 <= i + k - 1 < height and 0 <= j + m - 1 < width
        ]
        terms = [term(x[0, a, b, c], w) for a, b, c, w in places]
        output = sum(x[0, a, b, c] * w for a, b, c, w in places) + BIAS[o]
        total = sum(terms) + of_bias(BIAS[o])
        total += eps if total >= 0 else -eps
        for (a, b, c, _), value in zip(places, terms, strict=True):
            found[0, a, b, c] += value / total * relevance[0, i, j, o] * share(output)
    return found


def alone(layer: Layer) -> LayerStack:
    """A stack of one layer, with that kernel and bias if it has any."""
    return LayerStack(
        (layer,),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        precision="highest",
        rngs=nnx.Rngs(0),
    )


@cache
def convolution() -> LayerStack:
    stack = alone(Layer("conv", "conv", inputs=2, outputs=3, kernel=3))
    stack.conv.kernel[...] = jnp.asarray(KERNEL, jnp.float32)
    stack.conv.bias[...] = jnp.asarray(BIAS, jnp.float32)
    return stack


def site(x: np.ndarray, *, gated: bool = False) -> Site:
    """A convolution with that kernel and bias, and what a forward pass leaves there."""
    stack, inputs = convolution(), jnp.asarray(x, jnp.float32)
    positive = bool((x >= 0).all())
    return Site(stack.layers[0], stack, inputs, stack.conv(inputs), positive, gated)


LOW, HIGH = np.array([-2.5, -3.0]), np.array([2.0, 3.5])


def box(x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """z^B has bounds that depend on the channel, so that its terms are three sums' differences."""
    low, high = (np.broadcast_to(bound, x.shape) for bound in (LOW, HIGH))
    found = np.zeros_like(x)
    for i, j, o in np.ndindex(4, 3, 3):
        terms = {
            (i + k - 1, j + m - 1, c): (
                x[0, i + k - 1, j + m - 1, c] * KERNEL[k, m, c, o]
                - low[0, 0, 0, c] * up(KERNEL[k, m, c, o])
                - high[0, 0, 0, c] * down(KERNEL[k, m, c, o])
            )
            for k, m, c in np.ndindex(3, 3, 2)
            if 0 <= i + k - 1 < 4 and 0 <= j + m - 1 < 3
        }
        total = sum(terms.values()) + EPS
        for (a, b, c), value in terms.items():
            found[0, a, b, c] += value / total * relevance[0, i, j, o]
    return found


def gamma(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    def favouring(part: Callable, other: Callable) -> tuple[Term, Callable]:
        def term(x: float, w: float) -> float:
            return x * (w + 0.3 * (part(w) if x > 0 else other(w)))

        return term, lambda b: b + 0.3 * part(b)

    above = shared(x, r, *favouring(up, down), share=lambda z: float(z > 0))
    return above + shared(x, r, *favouring(down, up), share=lambda z: float(z < 0))


def alpha_beta(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    above = shared(x, r, lambda x, w: up(x * w), up)
    return 1.5 * above - 0.5 * shared(x, r, lambda x, w: down(x * w), down)


def nothing(b: float) -> float:
    return 0.0


EXPECTED = {
    "epsilon": (
        Epsilon(EPS),
        lambda x, r: shared(x, r, lambda x, w: x * w, lambda b: b),
    ),
    "epsilon without bias": (
        Epsilon(EPS, bias=False),
        lambda x, r: shared(x, r, lambda x, w: x * w, nothing),
    ),
    "z_plus": (ZPlus(EPS), lambda x, r: shared(x, r, lambda x, w: up(x * w), up)),
    "z_plus without bias": (
        ZPlus(EPS, bias=False),
        lambda x, r: shared(x, r, lambda x, w: up(x * w), nothing),
    ),
    "gamma": (Gamma(0.3, EPS), gamma),
    "alpha_beta": (AlphaBeta(1.5, 0.5, EPS), alpha_beta),
    "z_box": (ZBox(LOW, HIGH, EPS), box),
    "flat": (Flat(EPS), lambda x, r: shared(x, r, lambda x, w: 1.0, nothing)),
    "w_square": (
        WSquare(EPS),
        lambda x, r: shared(x, r, lambda x, w: w * w, lambda b: b * b),
    ),
}
INPUTS = {"signed": SIGNED, "after a ReLU": up(SIGNED)}


def wrong(name: str, x: np.ndarray, *, gated: bool = False) -> float:
    """By how much a rule misses what is worked out, in units of the largest value."""
    rule, by_hand = EXPECTED[name]
    at = site(x, gated=gated)
    r = RELEVANCE * (np.asarray(at.outputs) > 0) if gated else RELEVANCE
    expected = by_hand(x, r)
    found = jax.jit(lambda r: rule(at)(r))(jnp.asarray(r, jnp.float32))
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


# Sums of 18 terms, twice, that may cancel to a tenth: 2 sqrt(18) eps / 0.1.
ROUNDING = 2 * 18**0.5 * float(np.finfo(np.float32).eps) / 0.1


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("inputs", INPUTS)
def test_rule(name: str, inputs: str):
    assert wrong(name, INPUTS[inputs]) < ROUNDING


@pytest.mark.parametrize("inputs", INPUTS)
def test_gamma_behind_which_a_relu_follows_needs_the_positive_outputs_alone(inputs: str):
    assert wrong("gamma", INPUTS[inputs], gated=True) < ROUNDING


def test_rules_of_a_linear_layer_are_those_of_a_convolution():
    layer = Layer("fc", "linear", inputs=18, outputs=3)
    stack = alone(layer)
    stack.fc.kernel[...] = jnp.asarray(KERNEL.reshape(18, 3), jnp.float32)
    stack.fc.bias[...] = jnp.asarray(BIAS, jnp.float32)
    patch = jnp.asarray(SIGNED[:, :3, :3], jnp.float32)
    row = patch.reshape(1, 18)
    dense = Site(layer, stack, row, stack.fc(row))
    conv = site(np.asarray(patch))
    r = jnp.zeros((1, 3, 3, 3)).at[0, 1, 1].set(jnp.array([1.0, -2.0, 0.5]))
    for name, (rule, _) in EXPECTED.items():
        if name == "z_box":  # whose bounds are a channel's
            rule = ZBox(-3.0, 3.0, EPS)
        found, expected = jax.jit(lambda r: (rule(dense)(r[:, 1, 1]), rule(conv)(r)))(r)  # noqa: B023
        np.testing.assert_allclose(found, expected.reshape(1, 18), rtol=0, atol=1e-5)


def test_a_total_of_zero_counts_as_positive_and_is_no_nan_without_a_stabiliser():
    total = jnp.array([2.0, -2.0, 0.0, -0.0])
    found = relevance.divided(jnp.ones(4), total, 0.5)
    np.testing.assert_allclose(found, [1 / 2.5, -1 / 2.5, 2, 2])
    np.testing.assert_array_equal(relevance.divided(jnp.ones(4), total, 0.0), [0.5, -0.5, 0, 0])


def pooled(x: np.ndarray, rule, kind: str = "max_pool"):
    layer = Layer("pool", kind)
    stack = alone(layer)
    inputs = jnp.asarray(x, jnp.float32)
    return rule(Site(layer, stack, inputs, stack._apply(layer, inputs, None)))


def test_the_first_of_the_largest_takes_all():
    x = np.zeros((1, 3, 5, 1))
    x[0, :2, :2, 0] = [[1, 3], [3, 2]]  # a tie, the first in reading order
    x[0, :2, 2:4, 0] = [[1, 1 + 1e-7], [0, 0.5]]  # equal but for rounding
    back = pooled(x, Gradient())
    found = back(jnp.array([[[[5.0], [7.0]]]]))
    expected = np.zeros_like(x)
    expected[0, 0, 1], expected[0, 0, 2] = 5, 7  # the odd row and column have none
    np.testing.assert_array_equal(found, expected)


def test_averages_share_in_proportion_to_what_they_average():
    x = up(SIGNED)[:, :, :2]
    back = pooled(x, Norm(EPS), "average_pool")
    r = RNG.standard_normal((1, 2, 1, 2))
    expected = np.zeros_like(x)
    for i, c in np.ndindex(2, 2):
        window = x[0, 2 * i : 2 * i + 2, :, c]
        expected[0, 2 * i : 2 * i + 2, :, c] = window / 4 / (window.mean() + EPS) * r[0, i, 0, c]
    np.testing.assert_allclose(back(jnp.asarray(r, jnp.float32)), expected, rtol=1e-5, atol=1e-7)


def test_relus_of_guided_backpropagation_and_deconvolution():
    layer = Layer("relu", "relu")
    outputs, g = jnp.array([[1.0, 0, 2, 0]]), jnp.array([[3.0, 4, -5, -6]])
    at = Site(layer, None, None, outputs)
    np.testing.assert_array_equal(routing.GuidedReLU()(at)(g), [[3, 0, 0, 0]])
    np.testing.assert_array_equal(routing.DeconvolutionReLU()(at)(g), [[3, 4, 0, 0]])
    np.testing.assert_array_equal(Gradient()(at)(g), [[3, 0, -5, 0]])
    np.testing.assert_array_equal(routing.Pass()(at)(g), g)


# What may be got wrong, each in one place, and the rule on which it shows.
def _no_sign(relevance: jax.Array, total: jax.Array, stabiliser) -> jax.Array:
    return relevance / (total + stabiliser)


def _no_bias(self) -> jax.Array:
    return jnp.zeros_like(getattr(self.stack, self.layer.name).bias[...])


MISTAKES = {
    "stabiliser without a sign": ("epsilon", relevance, "divided", _no_sign),
    "no stabiliser": ("epsilon", relevance, "divided", lambda r, z, eps: r / z),
    "the bias forgotten": ("z_plus", Site, "bias", property(_no_bias)),
    "negative weights kept in z+": ("z_plus", relevance, "_positive", lambda x: x),
    "gamma on the wrong side": (
        "gamma",
        relevance,
        "_positive",
        lambda x: jnp.minimum(x, 0),
    ),
    "negative inputs dropped": (
        "alpha_beta",
        relevance,
        "_by_sign",
        lambda site, up, down, **more: relevance.Part(
            (jnp.maximum(site.inputs, 0),), (up,), **more
        ),
    ),
    "negative inputs with the weights of positive ones": (
        "gamma",
        relevance,
        "_by_sign",
        lambda site, up, down, **more: relevance.Part((site.inputs,), (up,), **more),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(mistake: str, monkeypatch: pytest.MonkeyPatch):
    name, where, what, instead = MISTAKES[mistake]
    monkeypatch.setattr(where, what, instead)
    assert wrong(name, SIGNED) > 10 * ROUNDING


@pytest.mark.parametrize(
    ("name", "mistaken"),
    [
        ("z_box", ZBox(HIGH, LOW, EPS)),
        ("z_box", ZBox(LOW[::-1], HIGH, EPS)),
        ("flat", WSquare(EPS)),
        ("flat", Epsilon(EPS)),
        ("w_square", WSquare(EPS, bias=False)),
        ("z_plus", ZPlus(EPS, bias=False)),
        ("alpha_beta", AlphaBeta(0.5, 1.5, EPS)),
    ],
)
def test_wrong_numbers_are_caught(name: str, mistaken, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(EXPECTED, name, (mistaken, EXPECTED[name][1]))
    assert wrong(name, SIGNED) > 10 * ROUNDING


def test_the_model_given_is_left_alone():
    model = tiny_vgg()
    before = [np.array(x) for x in jax.tree.leaves(model)]
    flaxvgg.attribute(model, np.ones((1, 32, 32, 3), np.float32), 1)
    for one, other in zip(before, jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(one, other)
