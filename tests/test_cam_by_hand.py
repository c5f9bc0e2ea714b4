"""Every method on a network so small that its maps can be worked out on paper.

The image's first two channels are the activations; the scores are sums of activations times
weights, so that the weights are the gradients:

    A0 = 1 0    A1 = 0 4    g0 =  1 -1    g1 = 0.5  1      score = 2 + (1 + 4 - 3) + 4 = 8
         2 3         0 0          2 -1         0  -0.5
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxvgg.cam.conventions import CONVENTIONS
from flaxvgg.cam.formulas import principal_component
from flaxvgg.cam.maps import layer_maps
from flaxvgg.cam.methods import METHODS
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


def the_map(method: str, convention: str = "paper", layer: str = "relu1") -> np.ndarray:
    """Class 0's map; class 1 has the opposite weights and a negative score."""
    stacks = tiny(FLAT, np.stack([G.ravel(), -G.ravel()], axis=1))
    maps, classes, scores = layer_maps(
        stacks,
        image(A),
        Targets(jnp.array([[0, 1]])),
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
        arguments = TinyConfig("vgg11", FLAT), "full_grad", (), CONVENTIONS[convention]
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
        arguments = TinyConfig("vgg11", GAP), method, ("relu1",), CONVENTIONS["paper"]
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
