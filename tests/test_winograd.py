"""Winograd's derivatives of a 3x3 convolution: right, in every mode, and only where they gain."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxvgg import winograd
from flaxvgg.products import conv_general_dilated
from helpers import random_images

NHWC = ("NHWC", "HWIO", "NHWC")
ONES = ((1, 1), (1, 1))
SHAPES = [((3, 28, 28, 32), 48), ((2, 14, 16, 48), 32)]


def ours(x: jax.Array, kernel: jax.Array, padding=ONES, strides=(1, 1)) -> jax.Array:
    options = {"dimension_numbers": NHWC, "precision": "default"}
    return conv_general_dilated(x, kernel, strides, padding, **options)


def xlas(x: jax.Array, kernel: jax.Array, padding=ONES, strides=(1, 1)) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)


def arrays(shape: tuple[int, ...], outputs: int) -> list[jax.Array]:
    """Images, a kernel, and a derivative of the output."""
    x = random_images(*shape[:3], channels=shape[3])
    kernel = random_images(3, 3, shape[3], channels=outputs, seed=1)
    dy = random_images(*shape[:3], channels=outputs, seed=2)
    return [jnp.asarray(a) for a in (x, kernel, dy)]


def derives_with_products(by: int, shape, outputs: int, dtype=jnp.float32, **options) -> bool:
    """Whether the derivative by argument 0 or 1 has matrix products, and is no convolution."""
    x, kernel, _ = (a.astype(dtype) for a in arrays(shape, outputs))
    y, derivative = jax.vjp(partial(ours, **options), x, kernel)
    compiled = jax.jit(lambda derivative, dy: derivative(dy)[by]).lower(derivative, y).compile()
    return " dot(" in compiled.as_text()


@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_derivatives_are_as_exact_as_xlas(shape, outputs):
    x, kernel, dy = arrays(shape, outputs)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a), jnp.float64) for a in (x, kernel, dy)]
        truth = [np.asarray(d) for d in jax.vjp(xlas, *exact[:2])[1](exact[2])]
    for found, plain, true in zip(
        jax.vjp(ours, x, kernel)[1](dy), jax.vjp(xlas, x, kernel)[1](dy), truth, strict=True
    ):
        errors = [np.sqrt(((np.asarray(a) - true) ** 2).mean()) for a in (found, plain)]
        assert errors[0] < 3 * errors[1]
        assert errors[0] < 1e-6 * np.sqrt((true**2).mean())


def test_the_value_is_xlas_own():
    x, kernel, _ = arrays(*SHAPES[0])
    assert (jax.jit(ours)(x, kernel) == jax.jit(xlas)(x, kernel)).all()


def test_every_mode_of_differentiation():
    x, kernel, _ = arrays(*SHAPES[0])
    tangents = 0.3 * x[::-1], 0.1 * kernel[::-1]

    def forward(convolve):
        return jax.jvp(convolve, (x, kernel), tangents)[1]

    def each_image(convolve):
        def loss(kernel, image):
            return (convolve(image[None], kernel) ** 2).sum()

        return jax.vmap(jax.grad(loss), (None, 0))(kernel, x)

    def second(convolve):
        def gradient(kernel):
            return jax.grad(lambda kernel: (convolve(x, kernel) ** 2).sum())(kernel)

        return jax.jvp(gradient, (kernel,), tangents[1:])[1]

    for mode in (forward, each_image, second):
        found, expected = (jax.jit(partial(mode, f))() for f in (ours, xlas))
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * abs(expected).max())


def test_only_where_it_gains():
    by_input, by_kernel = (partial(derives_with_products, by) for by in (0, 1))
    assert by_kernel((1, 14, 14, 32), 32)
    assert not by_kernel((1, 14, 12, 32), 32)  # small
    assert not by_kernel((1, 15, 14, 32), 32)  # odd: half a tile
    assert not by_kernel((1, 14, 14, 3), 32)  # few channels
    assert not by_kernel((1, 14, 14, 32), 32, jnp.bfloat16)
    assert not by_kernel((1, 16, 16, 32), 32, padding=((0, 0), (0, 0)))
    assert not by_kernel((1, 28, 28, 32), 32, strides=(2, 2))
    assert by_input((1, 28, 28, 32), 32)
    assert not by_input((1, 14, 14, 32), 32)


def test_chunks_divide_the_batch():
    for count, side, expected in [(8, 112, 1), (8, 56, 2), (7, 56, 1), (6, 28, 6), (12, 28, 6)]:
        assert winograd._at_once(count, side**2) == expected


def test_a_sharded_batch_gives_the_same():
    x, kernel, dy = arrays((4, 14, 14, 32), 32)
    expected = jax.vjp(ours, x, kernel)[1](dy)
    across = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
    x, dy = (jax.device_put(a, across) for a in (x, dy))
    found = jax.jit(lambda x, kernel, dy: jax.vjp(ours, x, kernel)[1](dy))(x, kernel, dy)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * abs(other).max())
