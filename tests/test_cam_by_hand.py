"""Every method on a network so small that its maps can be worked out on paper.

The image's first two channels are the activations; the scores are sums of activations times
weights, so that the weights are the gradients:

    A0 = 1 0    A1 = 0 4    g0 =  1 -1    g1 = 0.5  1      score = 2 + (1 + 4 - 3) + 4 = 8
         2 3         0 0          2 -1         0  -0.5
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxvgg.cam.components import _coordinates, kernel_component, principal_component
from flaxvgg.cam.contrasts import compared
from flaxvgg.cam.conventions import CONVENTIONS
from flaxvgg.cam.factorisation import factors
from flaxvgg.cam.formulas import fem
from flaxvgg.cam.maps import layer_maps
from flaxvgg.cam.methods import METHODS
from flaxvgg.cam.options import OPTIONS, Comparison, Concepts, NoOptions, Rarity
from flaxvgg.cam.targets import Targets
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import LayerStack

A = np.array([[[1, 0], [0, 4]], [[2, 0], [3, 0]]], np.float32)  # (h, w, channel)
G = np.array([[[1, 0.5], [-1, 1]], [[2, 0], [-1, -0.5]]], np.float32)
CONV = (Layer("conv1", "conv", inputs=3, outputs=2), Layer("relu1", "relu"))
FLAT = (Layer("flatten", "flatten"), Layer("fc", "linear", inputs=2, outputs=2, kernel=2))
GAP = (
    Layer("gap", "global_avg_pool"),
    Layer("flatten", "flatten"),
    Layer("fc", "linear", inputs=2, outputs=2),
)


class TinyConfig(VGGConfig):
    """A network with other convolutions."""

    conv_stack = CONV


def tiny(head: tuple[Layer, ...], kernel: np.ndarray, bias=(2.0, 0.0), conv_bias=(0.0, 0.0)):
    """The two stacks of a network that shows the image's first two channels to its head."""
    kwargs = {
        "dtype": jnp.float32,
        "param_dtype": jnp.float32,
        "precision": "highest",
        "rngs": nnx.Rngs(0),
    }
    stacks = LayerStack(CONV, **kwargs), LayerStack(head, **kwargs)
    stacks[0].conv1.kernel[...] = jnp.eye(3, 2)[None, None]
    stacks[0].conv1.bias[...] = jnp.array(conv_bias)
    stacks[1].fc.kernel[...] = jnp.asarray(kernel, jnp.float32)
    stacks[1].fc.bias[...] = jnp.array(bias)
    return stacks


def image(activations: np.ndarray) -> jax.Array:
    return jnp.concatenate([jnp.asarray(activations), jnp.zeros((2, 2, 1))], axis=-1)[None]


def the_map(
    method: str, convention: str = "paper", layer: str = "relu1", **options: Any
) -> np.ndarray:
    """Class 0's map; class 1 has the opposite weights and a negative score."""
    stacks = tiny(FLAT, np.stack([G.ravel(), -G.ravel()], axis=1))
    maps, classes, scores = layer_maps(
        stacks,
        image(A),
        Targets(jnp.array([[0, 1]])),
        OPTIONS.get(method, NoOptions)(**options),
        TinyConfig("vgg11", FLAT),
        method,
        () if method == "full_grad" else (layer,),
        CONVENTIONS[convention],
    )
    assert classes.tolist() == [[0, 1]]
    assert scores.tolist() == [[8, -6]]
    return np.asarray(maps[0][0])


def channels(w0: float, w1: float) -> np.ndarray:
    return w0 * A[..., 0] + w1 * A[..., 1]


def test_grad_cam():
    assert the_map("grad_cam")[0] == pytest.approx(channels(1 / 4, 1 / 4))


def test_grad_cam_is_the_same_with_and_without_the_shortcut():
    # Behind conv1 there is a ReLU, so its gradients are taken in full; nothing is negative here.
    whole = the_map("grad_cam", layer="conv1")
    dead = A == 0  # where jax.nn.relu has derivative 0, as PyTorch's has
    means = np.where(dead, 0, G).mean(axis=(0, 1))
    assert whole[0] == pytest.approx(channels(*means))


def test_grad_cam_plus_plus():
    # alpha = 1 / (2 + sum(A) g): 1/8 and 1/14 in channel 0, 1/4 and 1/6 in channel 1.
    expected = channels(1 / 8 * 1 + 1 / 14 * 2, 1 / 4 * 0.5 + 1 / 6 * 1)
    assert the_map("grad_cam++")[0] == pytest.approx(expected)
    assert the_map("grad_cam++", "grad-cam")[0] == pytest.approx(expected, rel=1e-5)
    # torchcam's division has no effect: the weights are the sums of relu(g)^3.
    assert the_map("grad_cam++", "torchcam")[0] == pytest.approx(channels(1 + 8, 1 / 8 + 1))


def test_xgrad_cam():
    assert the_map("xgrad_cam")[0] == pytest.approx(channels((1 + 4 - 3) / 6, 4 / 4))


def test_hires_cam():
    assert the_map("hires_cam")[0] == pytest.approx(np.array([[1, 4], [4, -3]]))


def test_layer_cam():
    found = the_map("layer_cam")
    assert found[0] == pytest.approx(np.array([[1, 4], [4, 0]]))
    assert found[1] == pytest.approx(np.array([[0, 0], [0, 3]]))  # gradients of the other sign


def test_elementwise_grad_cam():
    assert the_map("elementwise_grad_cam")[0] == pytest.approx(np.array([[1, 4], [4, 0]]))


def test_score_cam():
    # Masks A0 / 3 and A1 / 4 leave 1/3, 0, 4/3, 3 of channel 0, and 4 of channel 1: scores 2 and 6.
    share = 1 / (1 + math.exp(4))
    for convention in CONVENTIONS:
        assert the_map("score_cam", convention)[0] == pytest.approx(channels(share, 1 - share))


def test_ablation_cam():
    expected = channels(2 / 8, 4 / 8)
    assert the_map("ablation_cam")[0] == pytest.approx(expected)
    assert the_map("ablation_cam", "grad-cam")[0] == pytest.approx(expected)


def test_ablation_cam_of_a_negative_score():
    # Without a channel the score of -6 rises: that channel speaks against the class.
    assert the_map("ablation_cam")[1] == pytest.approx(-channels(2 / 6, 4 / 6))
    assert the_map("ablation_cam", "grad-cam")[1] == pytest.approx(channels(2 / 6, 4 / 6))


def test_eigen_cam():
    # Both channels are multiples of one map t: its deviations from the mean times |(1, 2)|.
    t = np.array([[1.0, 0], [2, 3]], np.float32)
    found = principal_component(jnp.asarray(np.stack([t, 2 * t], axis=-1))[None])
    assert found[0] == pytest.approx((t - 1.5) * math.sqrt(5), rel=1e-6)
    falling = principal_component(jnp.asarray(np.stack([-t, -2 * t], axis=-1))[None])
    assert falling[0] == pytest.approx((1.5 - t) * math.sqrt(5), rel=1e-6)  # rises with the sum


def test_eigen_cam_with_more_places_than_channels_and_fewer():
    # 4 places, 2 channels: centred rows with the Gram matrix [[5, -6], [-6, 12]].
    largest = (17 + math.sqrt(193)) / 2
    axis = np.array([-6, largest - 5])
    expected = (A.reshape(4, 2) - [1.5, 1]) @ axis / np.linalg.norm(axis)
    found = the_map("eigen_cam")
    assert found[0].ravel() == pytest.approx(expected, rel=1e-5)
    assert np.array_equal(found[0], found[1])  # it knows no classes
    padded = jnp.pad(jnp.asarray(A)[None], [(0, 0), (0, 0), (0, 0), (0, 5)])
    assert principal_component(padded)[0].ravel() == pytest.approx(expected, rel=1e-5)


def test_eigen_grad_cam():
    # g A has rows (1, 0), (0, 4), (4, 0), (-3, 0): centred Gram matrix [[25, -2], [-2, 12]].
    largest = (37 + math.sqrt(13**2 + 16)) / 2
    axis = np.array([largest - 12, -2])
    rows = (G * A).reshape(4, 2)
    expected = (rows - rows.mean(axis=0)) @ axis / np.linalg.norm(axis)
    assert the_map("eigen_grad_cam")[0].ravel() == pytest.approx(expected, rel=1e-5)


def test_finer_cam():
    # Each class is the other's only reference, with the opposite gradient: g + alpha g.
    for convention, alpha in (("paper", 0.6), ("torchcam", 0.6)):
        found = the_map("finer_cam", convention)
        assert found[0] == pytest.approx((1 + alpha) * channels(1 / 4, 1 / 4))
        assert found[1] == pytest.approx(-(1 + alpha) * channels(1 / 4, 1 / 4))
    # One reference's probability is its own weight, and cancels but for the eps, whose part of
    # exp(-14) is 1e-3: s = p (8 + 6) / (p + 1e-9), and the derivative of p counts too.
    p, eps = 1 / (1 + math.exp(14)), 1e-9
    slope = 2 * p / (p + eps) - 14 * eps / (p + eps) ** 2 * 2 * p * (1 - p)
    found = the_map("finer_cam", "grad-cam")
    assert found[0] == pytest.approx(slope * channels(1 / 4, 1 / 4), rel=1e-4)
    assert 1.95 < slope < 1.98
    assert the_map("finer_cam", alpha=0.25)[0] == pytest.approx(1.25 * channels(1 / 4, 1 / 4))


def test_finer_cam_compares_with_the_closest_scores():
    logits = jnp.array([[5.0, 1, 4, 8, 4.5]])
    targets = Targets(jnp.array([[0, 3]]))

    def score(options: Comparison, convention: str) -> np.ndarray:
        found = compared(targets, options, CONVENTIONS[convention])
        return np.asarray(found.scores(logits)[1])[0]

    plain = [5 - 0.6 * (4.5 + 4 + 8) / 3, 8 - 0.6 * (5 + 4.5 + 4) / 3]
    assert score(Comparison(), "paper") == pytest.approx(plain)
    two = [5 - 0.5 * (4.5 + 4) / 2, 8 - 0.5 * (5 + 4.5) / 2]
    assert score(Comparison(0.5, 2), "torchcam") == pytest.approx(two)
    weights = [np.exp(x) for x in ([4.5, 4, 8], [5, 4.5, 4])]
    by_chance = [
        5 - np.average([4.5, 4, 8], weights=weights[0]),
        8 - np.average([5, 4.5, 4], weights=weights[1]),
    ]
    assert score(Comparison(), "grad-cam") == pytest.approx(by_chance, rel=1e-5)
    everyone = [5 - 0.6 * (1 + 4 + 8 + 4.5) / 4, 8 - 0.6 * (5 + 1 + 4 + 4.5) / 4]
    assert score(Comparison(references=9), "paper") == pytest.approx(everyone)


def shapley_by_autodiff(score, kernel: np.ndarray) -> np.ndarray:
    """mean(g - H A / 2) A with the whole Hessian of a score by the eight activations."""
    a = jnp.asarray(A.ravel())

    def behind(a: jax.Array) -> jax.Array:
        return score(a @ jnp.asarray(kernel) + jnp.array([2.0, 0.0]))

    weights = jax.grad(behind)(a) - jax.hessian(behind)(a) @ a / 2
    return channels(*np.asarray(weights).reshape(2, 2, 2).mean(axis=(0, 1)))


def test_shapley_cam():
    # The logit is linear: Grad-CAM. With log probability, the Hessian is that of logsumexp.
    for layer in ("relu1", "conv1"):
        assert the_map("shapley_cam", "grad-cam", layer) == pytest.approx(
            the_map("grad_cam", layer=layer)
        )
    kernel = 0.1 * np.stack([G.ravel(), -G.ravel()], axis=1)  # probabilities that differ from 0, 1
    arguments = NoOptions(), TinyConfig("vgg11", FLAT), "shapley_cam", ("relu1",)
    stacks = tiny(FLAT, kernel)

    def found(targets: Targets, convention: str = "paper") -> np.ndarray:
        maps, _, _ = layer_maps(stacks, image(A), targets, *arguments, CONVENTIONS[convention])
        return np.asarray(maps[0][0])

    for c in (0, 1):
        expected = shapley_by_autodiff(lambda y, c=c: y[c] + jax.nn.log_softmax(y)[c], kernel)
        assert found(Targets(jnp.array([[c]])))[0] == pytest.approx(expected, rel=1e-5)
    expected = shapley_by_autodiff(lambda y: jax.nn.softmax(y)[0], kernel)
    for convention in CONVENTIONS:  # a function is taken as it is
        probability = Targets.of(lambda y: jax.nn.softmax(y)[:, :1], 1, 2)
        assert found(probability, convention)[0] == pytest.approx(expected, rel=1e-5)


def test_refine_cam():
    # One layer's is Grad-CAM++; of several, heat maps are multiplied.
    assert np.array_equal(the_map("refine_cam"), the_map("grad_cam++"))
    first, second = np.array([[0.0, 2], [4, 1]]), np.array([[1.0, 3], [5, -7]])
    layers = [jnp.asarray(x)[None, None] for x in (first, second)]
    # Scaled: 0, 1/2, 1, 1/4; and 1/5, 3/5, 1, 0 with what is negative cut off.
    expected = np.array([[0, 3 / 10], [1, 0]])
    for name, convention in CONVENTIONS.items():
        found = convention.heatmaps(layers, "refine_cam", (2, 2))[0, 0]
        assert found == pytest.approx(expected, abs=1e-6), name


def smoothed(convention: str, gradients: list[np.ndarray], noise: np.ndarray) -> np.ndarray:
    """SmoothGrad-CAM++'s map, of some samples' gradients and what noise adds to the last one."""
    second, third = (np.mean([g**p for g in gradients], axis=0) for p in (2, 3))
    if convention == "torchcam":
        g, inner, eps = gradients[-1], (A * third).sum(axis=(0, 1), keepdims=True), 1e-8
    else:
        g, inner, eps = np.mean(gradients, axis=0), A.sum(axis=(0, 1), keepdims=True) * third, 0
    below = 2 * second + inner + eps
    alpha = np.divide(second, below, out=np.zeros_like(second), where=below != 0)
    seen = A + noise if convention == "torchcam" else A
    return seen @ (alpha * np.maximum(g, 0)).sum(axis=(0, 1))


def test_smooth_grad_cam_plus_plus():
    key = jax.random.key(3)
    drawn = [jax.random.normal(jax.random.fold_in(key, i), (1, 2, 2, 3)) for i in range(4)]
    noise = [np.asarray(x)[0, ..., :2] for x in drawn]
    # Noise changes no gradient by the ReLU's output, which is a weight; so alpha is Grad-CAM++'s,
    # 1 / (2 + sum(A) g), or torchcam's, with the sum of A g^3.
    for convention in CONVENTIONS:
        found = the_map("smooth_grad_cam++", convention, key=key)[0]
        rectified = np.maximum(A + 0.3 * noise[3], 0) - A
        assert found == pytest.approx(smoothed(convention, [G], rectified), rel=1e-5, abs=1e-6)
    assert the_map("smooth_grad_cam++", key=key)[0] == pytest.approx(the_map("grad_cam++")[0])
    # Before the ReLU the noise decides where the gradient passes.
    gradients = [np.where(A + 0.5 * x > 0, G, 0) for x in noise[:3]]
    assert not np.array_equal(gradients[0], gradients[2])
    for convention in CONVENTIONS:
        options = {"key": key, "samples": 3, "noise": 0.5}
        found = the_map("smooth_grad_cam++", convention, "conv1", **options)[0]
        expected = smoothed(convention, gradients, 0.5 * noise[2])
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_smooth_grad_cam_plus_plus_of_a_function_sees_the_noisy_scores():
    key = jax.random.key(3)
    gradients = []
    for i in range(2):
        noise = jax.random.normal(jax.random.fold_in(key, i), (1, 2, 2, 3))[0, ..., :2]
        score = 2 + (np.maximum(A + 0.3 * np.asarray(noise), 0) * G).sum()
        gradients.append(2 * score * G)  # of the score's square
    stacks = tiny(FLAT, np.stack([G.ravel(), -G.ravel()], axis=1))
    square = Targets.of(lambda logits: logits[:, :1] ** 2, 1, 2)
    method = "smooth_grad_cam++"
    arguments = OPTIONS[method](key, 2), TinyConfig("vgg11", FLAT), method, ("relu1",)
    maps, _, scores = layer_maps(stacks, image(A), square, *arguments, CONVENTIONS["paper"])
    assert scores.tolist() == [[64]]
    assert maps[0][0, 0] == pytest.approx(smoothed("paper", gradients, np.zeros(1)), rel=1e-5)


def masked_score(mask: np.ndarray) -> float:
    """Class 0's score of the image under a mask (2, 2): the activations, where positive."""
    return 2 + float((np.maximum(A * mask[..., None], 0) * G).sum())


def score_weighted(scores: list[list[float]]) -> np.ndarray:
    """The map for scores of some samples of both channels' masks."""
    means = np.mean(scores, axis=0)
    weights = np.exp(means - means.max())
    return channels(*weights / weights.sum())


def test_is_cam():
    masks = A[..., 0] / 3, A[..., 1] / 4
    for samples, strengths in ((1, [1]), (4, [1 / 4, 3 / 4, 6 / 4, 10 / 4])):
        expected = score_weighted([[masked_score(s * m) for m in masks] for s in strengths])
        found = the_map("is_cam", samples=samples)[0]
        assert found == pytest.approx(expected, rel=1e-5)
    assert the_map("is_cam", samples=1) == pytest.approx(the_map("score_cam"))


def test_ss_cam():
    key, masks = jax.random.key(5), (A[..., 0] / 3, A[..., 1] / 4)

    def noise(sample: int, channel: int) -> np.ndarray:
        at = jax.random.fold_in(jax.random.fold_in(key, sample), channel)
        return np.asarray(jax.random.normal(at, (2, 2)))

    scores = [[masked_score(m + 0.3 * noise(i, c)) for c, m in enumerate(masks)] for i in range(4)]
    found = the_map("ss_cam", key=key, samples=4, noise=0.3)[0]
    assert found == pytest.approx(score_weighted(scores), rel=1e-5)
    assert the_map("ss_cam", key=key, samples=1, noise=0.0) == pytest.approx(the_map("score_cam"))


def test_fem():
    # 16 places, of which one or two are two deviations above the mean of their channel.
    rare = np.zeros((4, 4), np.float32)
    rare[1, 2] = 8  # mean 1/2, deviation sqrt(64/16 - 1/4) = 1.94: 7.5 is above 3.87
    two = np.zeros((4, 4), np.float32)
    two[0, :2] = 1, 2  # mean 3/16, deviation 0.53: 0.81 is not above 1.05, 1.81 is
    flat = np.full((4, 4), 3, np.float32)
    a = jnp.asarray(np.stack([rare, two, flat], axis=-1))[None]
    assert fem(a, Rarity())[0] == pytest.approx(rare / 16 + two / 16)
    assert fem(a, Rarity(1.5))[0] == pytest.approx(rare / 16 + two * 2 / 16)
    # On the small network, 4 places: mean 3/2, deviation sqrt(5)/2; mean 1, deviation sqrt(3).
    assert the_map("fem", sigmas=1.0)[0] == pytest.approx(channels(1 / 4, 1 / 4))
    assert np.array_equal(the_map("fem"), np.zeros((2, 2, 2)))


def test_kpca_cam():
    rows = A.reshape(4, 2) - [1.5, 1]
    for gamma in (1 / 2, 0.05):
        kernel = np.tanh(gamma * rows @ rows.T + 1)
        middle = np.eye(4) - 1 / 4
        values, vectors = np.linalg.eigh(middle @ kernel @ middle)
        expected = vectors[:, -1] * math.sqrt(values[-1])
        expected *= np.sign(expected @ A.reshape(4, 2).sum(axis=1))
        options = {} if gamma == 1 / 2 else {"gamma": gamma}  # 1 / channels by itself
        found = the_map("kpca_cam", **options)
        assert found[0].ravel() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert np.array_equal(found[0], found[1])


def test_kpca_cam_takes_the_largest_eigenvalue_not_the_largest_magnitude():
    # tanh is flat far above 0: two far places and two near ones give a kernel whose most negative
    # eigenvalue is larger in magnitude than its positive ones.
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((9, 3)) * 3
    rows -= rows.mean(axis=0)
    kernel = np.tanh(rows @ rows.T - 0.0 + 1)
    middle = np.eye(9) - 1 / 9
    values, vectors = np.linalg.eigh(-(middle @ kernel @ middle))
    assert -values[0] > values[-1]
    gram = jnp.asarray(-(middle @ kernel @ middle), jnp.float32)[None]
    found = np.asarray(_coordinates(gram, positive=False))[0]
    expected = vectors[:, -1] * math.sqrt(values[-1])
    assert found * np.sign(found @ expected) == pytest.approx(expected, abs=1e-3)


def test_kpca_cam_of_zeros_is_zero():
    assert np.array_equal(kernel_component(jnp.zeros((1, 3, 3, 2)), 0.5), np.zeros((1, 3, 3)))


def test_deep_feature_factorisation():
    # Two concepts that share no channel and no place: the factors are they, up to their scale.
    rng = np.random.default_rng(0)
    maps = np.zeros((2, 3, 4), np.float32)
    maps[0, 0], maps[1, 2] = rng.random((2, 4)) + 0.5
    channels = np.zeros((2, 6), np.float32)
    channels[0, :3], channels[1, 3:] = rng.random((2, 3)) + 0.5
    a = jnp.asarray(np.einsum("khw,kc->hwc", maps, channels))[None]
    found = np.asarray(factors(a, Concepts(2)))[0]
    for one in found:
        shares = [np.corrcoef(one.ravel(), m.ravel())[0, 1] for m in maps]
        assert max(shares) == pytest.approx(1, abs=1e-4)
    assert abs(np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1]) < 0.5
    assert np.array_equal(factors(jnp.zeros((1, 3, 3, 4)), Concepts(2)), np.zeros((1, 2, 3, 3)))
    # An offset of a channel is no part of a concept.
    assert np.asarray(factors(a + 3, Concepts(2)))[0] == pytest.approx(found, abs=1e-3)


def test_one_concept_is_the_first_singular_vector():
    # Of a non-negative matrix it is positive, so that the best factor of rank one is in reach.
    rows = np.abs(np.random.default_rng(1).standard_normal((12, 5))).astype(np.float32)
    rows -= rows.min(axis=0)
    vectors, _, _ = np.linalg.svd(rows)
    (found,) = np.asarray(factors(jnp.asarray(rows.reshape(1, 3, 4, 5)), Concepts(1)))[0]
    unit = found.ravel() / np.linalg.norm(found)
    assert unit == pytest.approx(np.abs(vectors[:, 0]), abs=2e-3)


def test_full_grad():
    # The image is A less the convolution's bias, but for what the ReLU cuts off.
    bias = np.array([1.0, -2.0], np.float32)
    shown = A - bias
    stacks = tiny(
        FLAT, np.stack([G.ravel(), -G.ravel()], axis=1), conv_bias=tuple(map(float, bias))
    )
    alive = np.where(A > 0, G, 0)
    input_term, bias_term = np.abs(shown * alive), np.abs(bias * alive)
    # gA of the image: 0 and 6 (A1's 4 shows as 6), 2 * 1, -1 * 2; of the bias: 1, -2, 2, -1.
    assert input_term.max() == 6
    assert bias_term.max() == 2

    def found(convention: str) -> np.ndarray:
        arguments = NoOptions(), TinyConfig("vgg11", FLAT), "full_grad", (), CONVENTIONS[convention]
        return np.asarray(
            layer_maps(stacks, image(shown), Targets(jnp.array([[0]])), *arguments)[0][0][0, 0]
        )

    together = (input_term / 6 + bias_term / 2).sum(axis=-1)
    assert found("paper") == pytest.approx(together, rel=1e-5)
    # Channel by channel: the maxima are 2 and 6, and 2 and 2; every minimum is 0.
    apart = (input_term / [2, 6] + bias_term / [2, 2]).sum(axis=-1)
    assert found("grad-cam") == pytest.approx(apart, rel=1e-5)


def test_cam_and_its_relation_to_grad_cam():
    kernel = np.array([[2.0, 0.0], [-1.0, 0.5]])
    stacks = tiny(GAP, kernel, bias=(1.0, 0.0))

    def found(method: str) -> np.ndarray:
        arguments = NoOptions(), TinyConfig("vgg11", GAP), method, ("relu1",), CONVENTIONS["paper"]
        maps, _, scores = layer_maps(stacks, image(A), Targets(jnp.array([[0, 1]])), *arguments)
        assert scores[0] == pytest.approx([1 + 2 * 6 / 4 - 4 / 4, 0.5 * 4 / 4])
        return np.asarray(maps[0][0])

    assert found("cam")[0] == pytest.approx(channels(2, -1))
    assert found("cam")[1] == pytest.approx(channels(0, 0.5))
    assert 4 * found("grad_cam") == pytest.approx(found("cam"))


def test_every_method_is_here():
    by_hand = {name for name in METHODS if f"test_{name.replace('++', '_plus_plus')}" in globals()}
    elsewhere = {"fully_convolutional"}  # needs 7x7 maps: tests/test_heads.py
    assert by_hand | elsewhere | {"cam"} == set(METHODS)
