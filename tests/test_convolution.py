"""The 3x3 convolution of a CPU: exact, in every mode of differentiation, at every size."""

import concurrent.futures
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxvgg.conversion.rule import FLOOR, keeps_rule
from flaxvgg.network.config import VGGConfig
from flaxvgg.ops import convolution, native
from flaxvgg.ops.convolution import conv3x3, conv3x3_block
from helpers import random_images, random_model

xlas = partial(convolution._xlas, precision="highest")
unfused = partial(convolution._unfused, precision="highest")


def arrays(shape: tuple[int, ...], outputs: int) -> list[jax.Array]:
    """Images, a kernel, and a derivative of the output."""
    x = random_images(*shape[:3], channels=shape[3])
    kernel = random_images(3, 3, shape[3], channels=outputs, seed=1)
    dy = random_images(*shape[:3], channels=outputs, seed=2)
    return [jnp.asarray(a) for a in (x, kernel, dy)]


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """The root of the mean square, relative to the truth's."""
    return float(np.sqrt(((np.asarray(found) - truth) ** 2).mean() / (truth**2).mean()))


def torchs(x: np.ndarray, kernel: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """PyTorch's convolution, on contiguous NCHW tensors."""
    image, weight = (torch.tensor(np.asarray(a), dtype=dtype) for a in (x, kernel))
    image, weight = image.permute(0, 3, 1, 2), weight.permute(3, 2, 0, 1)
    y = torch.nn.functional.conv2d(image.contiguous(), weight.contiguous(), padding=1)
    return y.permute(0, 2, 3, 1).numpy()


def test_the_library_is_built():
    assert native.IS_AVAILABLE
    assert native.INSTRUCTIONS in ("AVX-512", "AVX2", "baseline")


@pytest.mark.parametrize("channels", [3, 16, 64, 512])
def test_as_close_to_float64_as_pytorch(channels):
    side = 32 if channels < 512 else 14
    x, kernel, _ = arrays((1, side, side, channels), 64)
    x = jax.nn.relu(x)
    truth = torchs(x, kernel, torch.float64)
    of_pytorch = error(torchs(x, kernel, torch.float32), truth)
    assert keeps_rule(error(conv3x3(x, kernel), truth), of_pytorch)


# Tiles cut by an edge, channels that fill no vector, images smaller than a tile, and none at all.
SHAPES = [
    ((2, 5, 7, 3), 10),
    ((1, 8, 8, 15), 33),
    ((3, 9, 4, 17), 64),
    ((1, 2, 3, 24), 20),
    ((1, 1, 1, 40), 5),
    ((2, 6, 31, 64), 1),
    ((0, 4, 4, 32), 8),
]


@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_every_size_with_what_follows(shape, outputs, relu, pool):
    x, kernel, _ = arrays(shape, outputs)
    bias = jnp.linspace(-2, 2, outputs)
    found = conv3x3_block(x, kernel, bias, relu=relu, pool=pool)
    expected = unfused(x, kernel, bias, relu=relu, pool=pool)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * shape[3] ** 0.5)
    np.testing.assert_allclose(conv3x3(x, kernel), xlas(x, kernel), rtol=0, atol=2e-4)


def test_many_blocks_and_many_panels():
    # More tiles than a worker takes at a time, shared kernels; fewer tiles than outputs, shared
    # inputs; and the edge of neither on a multiple of anything.
    for shape, outputs in [((2, 61, 59, 40), 70), ((1, 11, 13, 136), 300)]:
        x, kernel, _ = arrays(shape, outputs)
        truth = torchs(x, kernel, torch.float64)
        assert error(conv3x3(x, kernel), truth) < FLOOR  # the rule's, whatever PyTorch's is


def test_nan_and_infinity_are_not_lost():
    x, kernel, _ = arrays((1, 8, 8, 32), 32)
    bias = jnp.zeros(32)
    for bad in (np.nan, np.inf):
        for settings in ({"relu": True, "pool": False}, {"relu": True, "pool": True}):
            found = conv3x3_block(x.at[0, 3, 3, 5].set(bad), kernel, bias, **settings)
            clean = conv3x3_block(x, kernel, bias, **settings)
            near, far = (
                (slice(1, 3), slice(3, 4)) if settings["pool"] else (slice(2, 5), slice(7, 8))
            )
            assert not np.isfinite(np.asarray(found[0, near, near])).any(axis=-1).all()
            assert (found[0, far, far] == clean[0, far, far]).all()


def test_zeros_are_positive_zeros():
    x, kernel, _ = arrays((1, 6, 6, 32), 16)
    found = conv3x3_block(x, kernel, jnp.full(16, -1e9), relu=True, pool=False)
    assert (np.asarray(found).view(np.uint32) == 0).all()


def torchs_derivatives(x: np.ndarray, kernel: np.ndarray, dy: np.ndarray, dtype: torch.dtype):
    """PyTorch's, by the images and by the kernel."""
    image, weight, cotangent = (
        torch.tensor(np.asarray(a), dtype=dtype).permute(order).contiguous()
        for a, order in ((x, (0, 3, 1, 2)), (kernel, (3, 2, 0, 1)), (dy, (0, 3, 1, 2)))
    )
    by_x = torch.nn.grad.conv2d_input(image.shape, weight, cotangent, padding=1)
    by_kernel = torch.nn.grad.conv2d_weight(image, weight.shape, cotangent, padding=1)
    return by_x.permute(0, 2, 3, 1).numpy(), by_kernel.permute(2, 3, 1, 0).numpy()


# The last two have many blocks of tiles, and several ranges of inputs and of outputs.
@pytest.mark.parametrize("precision", ["highest", "default"])
@pytest.mark.parametrize(
    ("shape", "outputs"), [*SHAPES[:-1], ((4, 61, 59, 17), 40), ((2, 17, 15, 272), 150)]
)
def test_derivatives_of_every_size_are_as_exact_as_pytorchs(shape, outputs, precision):
    x, kernel, dy = arrays(shape, outputs)
    found = jax.vjp(partial(conv3x3, precision=precision), x, kernel)[1](dy)
    truth = torchs_derivatives(x, kernel, dy, torch.float64)
    plain = torchs_derivatives(x, kernel, dy, torch.float32)
    for one, other, true in zip(found, plain, truth, strict=True):
        assert keeps_rule(error(one, true), error(other, true))


@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_the_transpose_is_the_convolution_by_the_kernel_turned_round(shape, outputs):
    """To the bit, though the kernel is turned while it is transformed."""
    _, kernel, dy = arrays(shape, outputs)
    found = native.conv3x3_turned(dy, kernel)
    by_hand = native.conv3x3(dy, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    np.testing.assert_array_equal(found, by_hand)


@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_a_sloped_kernel_is_the_one_it_stands_for(shape, outputs):
    """To the bit, though it is never written down: the convolution, and its transpose."""
    x, kernel, dy = arrays(shape, outputs)
    slopes = jnp.array([1.25, -0.5])
    other = convolution.sloped(kernel, slopes)
    np.testing.assert_array_equal(other, np.where(kernel > 0, 1.25 * kernel, -0.5 * kernel))
    found, expected = (
        jax.vjp(f, x)
        for f in (
            lambda x: convolution.conv3x3_sloped(x, kernel, slopes),
            lambda x: conv3x3(x, other),
        )
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1](dy)[0], expected[1](dy)[0])


def test_derivatives_and_batches_of_a_sloped_kernel():
    x, kernel, _ = arrays((3, 28, 28, 32), 48)
    slopes = jnp.array([1.25, -0.5])
    values = x, kernel, slopes
    tangents = 0.3 * x[::-1], 0.1 * kernel[::-1], jnp.array([1.0, 2.0])

    def plain(x, kernel, slopes):
        return conv3x3(x, convolution.sloped(kernel, slopes))

    def loss(f, *values):
        return jnp.tanh(0.01 * f(*values)).sum()

    def second(by, f):
        return jax.jvp(jax.grad(partial(loss, f), by), values, tangents)[1]

    def each_image(f):
        return jax.vmap(jax.grad(lambda x: loss(f, x[None], *values[1:])))(x)

    for mode in (each_image, *(partial(second, by) for by in range(3))):
        found, expected = (jax.jit(partial(mode, f))() for f in (convolution.conv3x3_sloped, plain))
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * abs(expected).max())


@pytest.mark.parametrize(("channels", "side"), [(64, 56), (512, 14)])
def test_sums_over_a_batch_are_as_close_to_float64_as_pytorchs(channels, side):
    x, kernel, dy = arrays((4, side, side, channels), channels)
    _, truth = torchs_derivatives(x, kernel, dy, torch.float64)
    _, plain = torchs_derivatives(x, kernel, dy, torch.float32)
    assert keeps_rule(error(native.conv3x3_by_kernel(x, dy), truth), error(plain, truth))


def test_of_no_images_the_derivative_by_the_kernel_is_zero():
    for shape in ((0, 4, 4, 32), (0, 4, 4, 3)):
        x, kernel, dy = arrays(shape, 8)
        np.testing.assert_array_equal(native.conv3x3_by_kernel(x, dy), jnp.zeros(kernel.shape))


def test_every_mode_of_differentiation():
    x, kernel, _ = arrays((3, 28, 28, 32), 48)
    tangents = 0.3 * x[::-1], 0.1 * kernel[::-1]

    def forward(convolve):
        return jax.jvp(convolve, (x, kernel), tangents)[1]

    def each_image(convolve):
        def loss(kernel, image):
            return (convolve(image[None], kernel) ** 2).sum()

        return jax.vmap(jax.grad(loss), (None, 0))(kernel, x)

    def each_kernel(convolve):
        return jax.vmap(convolve, (None, 0))(x[:1], jnp.stack([kernel, -kernel]))

    def second(by, convolve):
        gradient = jax.grad(lambda *a: jnp.tanh(0.01 * convolve(*a)).sum(), by)
        return jax.jvp(gradient, (x, kernel), tangents)[1]

    for mode in (forward, each_image, each_kernel, partial(second, 0), partial(second, 1)):
        found, expected = (jax.jit(partial(mode, f))() for f in (conv3x3, xlas))
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * abs(expected).max())


def test_derivatives_of_a_block_are_those_of_its_parts():
    x, kernel, _ = arrays((2, 8, 6, 16), 24)
    bias = jnp.linspace(-3, 3, 24)

    def loss(function, *moving):
        return (function(*moving, bias, relu=True, pool=True) ** 2).sum()

    found, expected = (
        jax.grad(partial(loss, f), (0, 1))(x, kernel) for f in (conv3x3_block, unfused)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * abs(other).max())
    alone = jax.grad(lambda b: conv3x3_block(x, kernel, b, relu=True, pool=False).sum())(bias)
    count = (unfused(x, kernel, bias, relu=True, pool=False) > 0).sum((0, 1, 2))
    np.testing.assert_array_equal(alone, count)


def test_a_batch_of_batches_is_one_batch():
    x, kernel, _ = arrays((6, 8, 8, 16), 16)
    mapped = jax.vmap(lambda x: conv3x3(x, kernel), in_axes=1, out_axes=1)
    np.testing.assert_array_equal(
        mapped(x.reshape(3, 2, 8, 8, 16)).reshape(6, 8, 8, 16), conv3x3(x, kernel)
    )


def test_a_sharded_batch_stays_where_it_is():
    x, kernel, dy = arrays((4, 14, 14, 32), 32)

    def both(x, kernel, dy):
        y, derivative = jax.vjp(conv3x3, x, kernel)
        return y, *derivative(dy)

    expected = both(x, kernel, dy)
    mesh = Mesh(np.array(jax.devices()), "data")
    across = NamedSharding(mesh, PartitionSpec("data"))
    x, dy = (jax.device_put(a, across) for a in (x, dy))
    compiled = jax.jit(both).lower(x, kernel, dy).compile()
    assert "all-gather" not in str(compiled.as_text())
    for one, other in zip(jax.jit(both)(x, kernel, dy), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * abs(other).max())
    specs = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(conv3x3, mesh=mesh, in_specs=specs, out_specs=specs[0])
    np.testing.assert_array_equal(mapped(x, kernel), expected[0])
    derivatives = jax.jit(jax.grad(lambda *a: (mapped(*a) * dy).sum(), (0, 1)))(x, kernel)
    for one, other in zip(derivatives, expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * abs(other).max())


def test_calls_at_the_same_time_have_room_of_their_own():
    x, kernel, _ = arrays((1, 33, 31, 64), 96)
    batches = [x * (i + 1) for i in range(8)]
    expected = [np.asarray(conv3x3(batch, kernel)) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = list(pool.map(lambda batch: np.asarray(conv3x3(batch, kernel)), batches))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


LEVELS = ["baseline", "AVX2", "AVX-512"]


_RESULTS = """
import sys
import jax.numpy as jnp
import numpy as np
from flaxvgg.ops import convolution
from flaxvgg.ops import native

def results():
    x, kernel, few = (jnp.asarray(np.random.default_rng(i).normal(size=s), np.float32) for i, s in
                      enumerate([(2, 9, 12, 40), (3, 3, 40, 37), (2, 9, 12, 5)]))
    y = convolution.conv3x3(x, kernel)
    by_kernel = [native.conv3x3_by_kernel(a, y) for a in (x, few)]
    sloped = native.conv3x3_sloped(y, kernel, jnp.array([1, 0.25], np.float32), True)
    found = y, native.conv3x3_turned(y, kernel), sloped, *by_kernel
    return np.concatenate([np.ravel(a) for a in found])
"""
_SAVED = _RESULTS + "np.save(sys.argv[1], results()); print(native.INSTRUCTIONS)"


def test_every_set_of_instructions_the_processor_has(tmp_path):
    exec(_RESULTS, names := {})
    found = {native.INSTRUCTIONS: names["results"]()}  # a process has one set
    for wanted in set(LEVELS) - set(found):
        path = tmp_path / f"{wanted}.npy"
        environment = os.environ | {"FLAXVGG_INSTRUCTIONS": wanted}
        command = [sys.executable, "-c", _SAVED, path]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        most = min(LEVELS.index(wanted), LEVELS.index(native.INSTRUCTIONS))
        assert done.stdout.strip() == LEVELS[most]
        found[wanted] = np.load(path)
    # The order of the sums is the same, however long the vectors.
    np.testing.assert_array_equal(found["AVX2"], found["AVX-512"])
    np.testing.assert_allclose(found["baseline"], found["AVX2"], rtol=1e-5, atol=2e-4)


def test_other_dtypes_are_xlas():
    x, kernel, _ = arrays((1, 8, 8, 16), 16)
    assert convolution.fits(x, kernel)
    assert not convolution.fits(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert not convolution.fits(x, kernel[:1, :1])


def test_without_the_library_it_is_xlas_convolution_and_says_so(monkeypatch):
    monkeypatch.setattr(native, "IS_AVAILABLE", False)
    model = random_model(VGGConfig.features_only("vgg11", "no head here"))
    images = jnp.ones((1, 32, 32, 3))
    with pytest.warns(UserWarning, match="compiled convolution is missing"):
        jaxpr = str(jax.make_jaxpr(lambda model, x: model.features(x))(model, images))
    assert jaxpr.count("= conv_general_dilated[") == 8
    assert "conv3x3" not in jaxpr
