"""Every method on a network so small that its values can be worked out, in NumPy or on paper.

The network shows the image's first two channels, through a ReLU and a linear layer, or a max
pooling between them; the weights are those of tests/test_cam_by_hand.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cam_by_hand import CONV, FLAT, A, G, TinyConfig, image, nnx, tiny

from flaxvgg.attribution import passes, smoothing
from flaxvgg.attribution.integrated import Quadrature, nodes
from flaxvgg.attribution.method import Found
from flaxvgg.attribution.methods import _METHODS
from flaxvgg.attribution.occlusion import windows
from flaxvgg.attribution.rise import masks
from flaxvgg.cam.network import Network
from flaxvgg.cam.targets import Targets
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import LayerStack

KEY = jax.random.key(3)
# Six roundings of sums of at most 12 terms.
CLOSE = 1e-5


def found_of(method: str, x: Any, classes: Any = ((0, 1),), **options: Any) -> Found:
    """What the method finds for the class with weights G and a bias of 2, and the one with -G."""
    stacks = tiny(FLAT, np.stack([G.ravel(), -G.ravel()], axis=1), bias=(2.0, 0.0))
    network = Network(stacks, TinyConfig("vgg11", FLAT))
    targets = Targets.of(classes if callable(classes) else jnp.array(classes), len(x), 2)
    chosen = _METHODS[method]
    return chosen.find(network, jnp.asarray(x), targets, chosen.options(**options))


def values(method: str, x: Any, **options: Any) -> np.ndarray:
    return np.asarray(found_of(method, x, **options).values)[0]


def score(x: np.ndarray) -> float:
    """Class 0's score of an image (2, 2, 3); class 1's is 2 less this."""
    return 2 + (G * np.maximum(x[..., :2], 0)).sum()


def seen(first_two: np.ndarray) -> np.ndarray:
    """With the third colour, which the network does not see."""
    return np.concatenate([first_two, np.zeros((2, 2, 1))], axis=-1)


X = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
LIVE = X[..., :2] > 0
assert 0 < LIVE.sum() < LIVE.size


def test_saliency():
    expected = seen(G * LIVE)
    assert values("saliency", X[None], signed=True) == pytest.approx(
        np.stack([expected, -expected])
    )
    assert values("saliency", X[None])[1] == pytest.approx(np.abs(expected))


def test_input_x_gradient_adds_up_to_the_score_less_its_bias():
    found = values("input_x_gradient", X[None])
    assert found[0] == pytest.approx(X * seen(G * LIVE))
    assert found[0].sum() == pytest.approx(score(X) - 2, rel=CLOSE)


@pytest.mark.parametrize("quadrature", Quadrature.__args__)
@pytest.mark.parametrize("steps_at_once", [None, 3])
def test_integrated_gradients(quadrature: str, steps_at_once: int | None):
    steps, start = 7, np.full((2, 2, 3), -0.5, np.float32)
    places, weights = nodes(quadrature, steps)
    live = np.array([(start + t * (X - start))[..., :2] > 0 for t in places])
    mean = np.einsum("s,shwc->hwc", weights, live * G)
    expected = (X - start) * seen(mean)
    options = {"steps": steps, "quadrature": quadrature, "steps_at_once": steps_at_once}
    found = found_of("integrated_gradients", X[None], baseline=start, **options)
    assert np.asarray(found.values)[0] == pytest.approx(
        np.stack([expected, -expected]), rel=CLOSE, abs=CLOSE
    )
    delta = expected.sum() - (score(X) - score(start))
    assert found.details["convergence_delta"] == pytest.approx(
        np.array([[delta, -delta]]), abs=10 * CLOSE
    )
    assert abs(delta) > 0.01


def test_quadratures_integrate_what_they_should():
    for steps in (2, 5):
        places, weights = nodes("gauss_legendre", steps)
        for power in range(2 * steps):
            assert weights @ places**power == pytest.approx(1 / (power + 1))
        for quadrature, total, mean in (
            ("riemann_left", 1, 1 / 2 - 1 / steps / 2),
            ("riemann_right", 1, 1 / 2 + 1 / steps / 2),
            ("riemann_middle", 1, 1 / 2),
            ("riemann_trapezoid", 1 - 1 / steps, (1 - 1 / steps) / 2),
        ):
            places, weights = nodes(quadrature, steps)
            assert weights.sum() == pytest.approx(total)
            assert weights @ places == pytest.approx(mean)


def test_baselines_for_each_image_and_several():
    images = np.stack([X, -X])
    starts = np.random.default_rng(1).normal(size=(3, 2, 2, 2, 3)).astype(np.float32)
    classes = [[0], [1]]
    options = {"steps": 4, "steps_at_once": 5}

    def of(baseline: Any, method: str) -> np.ndarray:
        more = options if method == "integrated_gradients" else {}
        return np.asarray(found_of(method, images, classes, baseline=baseline, **more).values)

    for method in ("integrated_gradients", "deep_lift"):
        each = np.stack([of(start, method) for start in starts])
        assert of(starts, method) == pytest.approx(each.mean(axis=0), rel=CLOSE, abs=CLOSE)
        shared = of(starts[:, :1], method)
        alone = np.stack([of(start[0], method) for start in starts])
        assert shared == pytest.approx(alone.mean(axis=0), rel=CLOSE, abs=CLOSE)
        second = found_of(
            method,
            images[1:],
            [[1]],
            baseline=starts[0, 1],
            **(options if method == "integrated_gradients" else {}),
        )
        assert each[0, 1] == pytest.approx(np.asarray(second.values)[0], rel=CLOSE, abs=CLOSE)


@pytest.mark.parametrize("samples_at_once", [None, 3])
def test_smooth_grad_and_var_grad(samples_at_once: int | None):
    samples = 7
    images = np.stack([X, 3 * X + 1])
    drawn = np.asarray(smoothing.draw(KEY, jnp.arange(samples, dtype=jnp.int32), X.shape))
    spans = np.ptp(images, axis=(1, 2, 3))
    noisy = images[:, None] + 0.4 * spans[:, None, None, None, None] * drawn
    gradients = np.where(noisy[..., :2] > 0, G, 0)
    options = {"key": KEY, "samples": samples, "noise": 0.4, "samples_at_once": samples_at_once}
    for method, expected in (
        ("smooth_grad", gradients.mean(axis=1)),
        ("var_grad", gradients.var(axis=1)),
    ):
        found = found_of(method, images, [[0], [0]], **options).values
        for i in range(2):
            assert found[i, 0] == pytest.approx(seen(expected[i]), rel=CLOSE, abs=CLOSE)
            assert (np.abs(expected[i]) > 0).any()
        assert (np.abs(expected) < np.abs(G)).any()
    assert abs(drawn.mean()) < 0.3
    assert drawn.std() == pytest.approx(1, abs=0.3)


def test_deep_lifts_rescale_rule():
    start = np.full((2, 2, 3), 0.25, np.float32)
    start[0, 0, 0] = X[0, 0, 0]  # no difference: the gradient counts, times nothing
    x, x0 = X[..., :2], start[..., :2]
    change = np.maximum(x, 0) - np.maximum(x0, 0)
    found = found_of("deep_lift", X[None], baseline=start)
    assert np.asarray(found.values)[0, 0] == pytest.approx(seen(G * change), rel=CLOSE, abs=CLOSE)
    assert found.details["convergence_delta"] == pytest.approx(np.zeros((1, 2)), abs=10 * CLOSE)


class PooledConfig(VGGConfig):
    """The same with max pooling of the whole image."""

    conv_stack = (*CONV, Layer("pool1", "max_pool"))


def test_deep_lifts_max_pooling_rule():
    head = (Layer("flatten", "flatten"), Layer("fc", "linear", inputs=2, outputs=2))
    kwargs = {"dtype": jnp.float32, "param_dtype": jnp.float32, "precision": "highest"}
    stack = LayerStack(PooledConfig.conv_stack, rngs=nnx.Rngs(0), **kwargs)
    stack.conv1.kernel[...] = jnp.eye(3, 2)[None, None]
    stack.conv1.bias[...] = jnp.zeros(2)
    stacks = stack, tiny(head, np.array([[2.0, 0.0], [-1.0, 0.0]]))[1]
    network = Network(stacks, PooledConfig("vgg11", head))
    # Channel 0: 4 at (1, 0) in the image, 1 at (0, 1) before: the rise of 3 goes to (1, 0).
    # Channel 1: 2 at (0, 0), 5 at (1, 1) before: the fall of 3 goes to (1, 1).
    x = np.array([[[0.5, 2], [0, 1]], [[4, 0], [3, 0.5]]], np.float32)
    x0 = np.array([[[0, 1], [1, 0]], [[0.5, 0], [0, 5]]], np.float32)
    odd = np.pad(np.stack([x, x0]), [(0, 0), (0, 1), (0, 1), (0, 1)])  # dropped by the pooling
    chosen = _METHODS["deep_lift"]
    found = chosen.find(
        network, jnp.asarray(odd[:1]), Targets(jnp.array([[0]])), chosen.options(odd[1])
    )
    expected = np.zeros((3, 3, 3))
    expected[1, 0, 0], expected[1, 1, 1] = 2 * 3, -1 * -3
    assert found.values[0, 0] == pytest.approx(expected, rel=CLOSE, abs=CLOSE)
    assert found.details["convergence_delta"][0, 0] == pytest.approx(0, abs=10 * CLOSE)


def test_occlusion():
    # A is 2x2: windows of 1x2, rows; and of 2x1 at stride 1, columns.
    x = image(A)
    terms = (G * A).sum(axis=-1)
    rows = values("occlusion", x, window=(1, 2), stride=1).sum(axis=-1)
    assert rows[0] == pytest.approx(np.repeat(terms.sum(axis=1, keepdims=True), 2, axis=1))
    assert rows[1] == pytest.approx(-rows[0])
    columns = values("occlusion", x, window=(2, 1), stride=(2, 1)).sum(axis=-1)
    assert columns[0] == pytest.approx(np.repeat(terms.sum(axis=0, keepdims=True), 2, axis=0))
    whole = values("occlusion", x, window=2, stride=2, baseline=np.ones((2, 2, 3), np.float32))
    assert whole[0].sum(axis=-1) == pytest.approx(np.full((2, 2), 8 - (2 + G.sum())))
    assert whole[..., 0] == pytest.approx(whole[..., 2])  # the colours share alike


def test_windows_overlap_and_are_cut_off_at_the_edge(monkeypatch: pytest.MonkeyPatch):
    begins, covering = windows((5, 4), (3, 4), (2, 3))
    assert begins.tolist() == [[0, 0], [2, 0]]
    assert covering.tolist() == [[1] * 4, [1] * 4, [2] * 4, [1] * 4, [1] * 4]
    begins, covering = windows((6, 6), (3, 2), (2, 2))
    assert begins[:, 0].tolist() == [0, 0, 0, 2, 2, 2, 4, 4, 4]  # the last one sees two rows
    assert covering[:, 0].tolist() == [1, 1, 2, 1, 2, 1]
    x = np.pad(np.asarray(image(A)), [(0, 0), (0, 1), (0, 1), (0, 0)], mode="edge")[0]
    for at_once in (1, 3, 32):
        monkeypatch.setattr(passes, "_FORWARD", at_once)
        found = _wide(x)
        expected = np.zeros((3, 3))
        counts = np.zeros((3, 3))
        for row in (0, 1):
            for column in (0, 1):
                hidden = x.copy()
                hidden[row : row + 2, column : column + 2] = 0
                expected[row : row + 2, column : column + 2] += x.sum() - hidden.sum()
                counts[row : row + 2, column : column + 2] += 1
        assert found == pytest.approx(expected / counts, rel=CLOSE)


def _wide(x: np.ndarray) -> np.ndarray:
    """Occlusion by 2x2 windows where the score is the sum of the image's first two channels."""
    head = (Layer("flatten", "flatten"), Layer("fc", "linear", inputs=18, outputs=2))
    network = Network(tiny(head, np.ones((18, 2))), TinyConfig("vgg11", head))
    chosen = _METHODS["occlusion"]
    targets = Targets(jnp.array([[0]]))
    found = chosen.find(network, jnp.asarray(x[None]), targets, chosen.options(2, 1))
    return np.asarray(found.values)[0, 0].sum(axis=-1)


def test_rise(monkeypatch: pytest.MonkeyPatch):
    x, samples = np.asarray(image(A)), 7
    drawn = np.asarray(masks(KEY, jnp.arange(samples, dtype=jnp.int32), (2, 2), 2, 0.4))
    assert drawn.shape == (7, 2, 2)
    assert 0 <= drawn.min() < drawn.max() <= 1
    logit = np.array([score(x[0] * mask[..., None]) for mask in drawn])
    probability = 1 / (1 + np.exp(-(2 * logit - 2)))  # class 1 has 2 - logit
    expected = np.einsum("s,shw->hw", probability, drawn) / samples / 0.4
    raw = np.einsum("s,shw->hw", 3 * logit, drawn) / samples / 0.4
    for at_once in (2, 32):
        monkeypatch.setattr(passes, "_FORWARD", at_once)
        options = {"key": KEY, "samples": samples, "grid": 2, "p": 0.4}
        found = found_of("rise", x, **options)
        assert found.values[0, 0].sum(axis=-1) == pytest.approx(expected, rel=1e-4)
        assert found.scores[0] == pytest.approx([1 / (1 + np.exp(-14)), 1 / (1 + np.exp(14))])
        function = found_of("rise", x, lambda logits: 3 * logits[:, :1], **options)
        assert function.values[0, 0].sum(axis=-1) == pytest.approx(raw, rel=1e-4)
        assert function.scores[0, 0] == pytest.approx(24)


def test_masks_are_shifted_and_as_open_as_asked():
    numbers = jnp.arange(400, dtype=jnp.int32)
    drawn = np.asarray(masks(KEY, numbers, (12, 12), 3, 0.3))
    # The mean of 16 independent cells' share, over 400 masks: 0.3 +- sqrt(0.21 / 1000) or so.
    assert drawn.mean() == pytest.approx(0.3, abs=0.05)
    # Cells are 4 pixels: without a shift, steps between neighbours would be at the same places.
    steps = np.abs(np.diff(drawn, axis=1)).mean(axis=(0, 2))
    assert steps.max() < 1.5 * steps.min()
    alone = masks(KEY, numbers[7:8], (12, 12), 3, 0.3)
    assert np.array_equal(alone[0], drawn[7])


def test_chunks_count_every_variant_once():
    for count in range(1, 40):
        for at_once in range(1, 12):
            numbers, counts = passes.in_chunks(count, at_once)
            assert numbers.shape[1] <= at_once
            assert numbers[counts == 1].tolist() == list(range(count))
            assert (counts.sum(axis=1) > 0).all()


def test_every_method_is_here():
    words = " ".join(name for name in globals() if name.startswith("test_"))
    mine = {"saliency", "input_x_gradient", "integrated_gradients", "smooth_grad", "var_grad"}
    mine |= {"occlusion", "rise"}
    assert all(name in words for name in mine)
    assert mine | {"deep_lift"} <= set(_METHODS)
