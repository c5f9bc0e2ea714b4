"""One layer at a time against PyTorch, with float64 as the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from flaxvgg.network.layers import BatchNorm, adaptive_avg_pool
from flaxvgg.ops.convolution import conv3x3
from flaxvgg.ops.linear import conv_general_dilated, dot_general
from flaxvgg.ops.pooling import max_pool_2x2

EPS = np.finfo(np.float32).eps


def _nchw(x) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def _nhwc(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _torch_pool_and_gradient(x: np.ndarray, cotangent: np.ndarray):
    inputs = _nchw(x).requires_grad_()
    outputs = torch.nn.functional.max_pool2d(inputs, 2, 2)
    outputs.backward(_nchw(cotangent))
    return _nhwc(outputs), _nhwc(inputs.grad)


@pytest.mark.parametrize("size", [(2, 2), (6, 4), (7, 7), (5, 8), (8, 5), (3, 2)])
def test_max_pool_is_torchs(size):
    x = _normal(2, *size, 3)
    y = max_pool_2x2(jnp.asarray(x))
    assert y.shape == (2, size[0] // 2, size[1] // 2, 3)
    expected = _nhwc(torch.nn.functional.max_pool2d(_nchw(x), 2, 2))
    np.testing.assert_array_equal(y, expected)


def test_max_pool_by_hand():
    # The fifth column is dropped, though it holds the largest value.
    x = jnp.asarray([[1.0, -2, 3, 4, 99], [5, 0, -1, -7, 99]]).reshape(1, 2, 5, 1)
    np.testing.assert_array_equal(max_pool_2x2(x), np.array([5.0, 4]).reshape(1, 1, 2, 1))


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("tied", ["after a relu", "three levels", "all zero"])
def test_max_pool_gradient_at_ties_is_torchs(size, tied):
    shape = (2, *size, 16)
    if tied == "after a relu":
        x = np.maximum(_normal(*shape), 0)
    elif tied == "three levels":
        x = np.random.default_rng(0).integers(-1, 2, shape).astype(np.float32)
    else:
        x = np.zeros(shape, np.float32)
    y, pullback = jax.vjp(max_pool_2x2, jnp.asarray(x))
    cotangent = _normal(*y.shape, seed=1)
    expected_y, expected = _torch_pool_and_gradient(x, cotangent)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(pullback(jnp.asarray(cotangent))[0], expected)


def test_max_pool_gradient_at_ties_by_hand():
    # The whole gradient goes to the first of the equal values, in reading order.
    windows = [
        ([[0.0, 0], [0, 0]], [[1.0, 0], [0, 0]]),
        ([[-1, 0], [0, 0]], [[0, 1], [0, 0]]),
        ([[-1, -1], [0, 0]], [[0, 0], [1, 0]]),
        ([[0, -1], [-1, 0]], [[1, 0], [0, 0]]),
        ([[-1, 0], [0, -1]], [[0, 1], [0, 0]]),
        ([[-1, -1], [-1, 0]], [[0, 0], [0, 1]]),
    ]
    x = jnp.asarray([window for window, _ in windows]).reshape(6, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool_2x2(x).sum())(x)
    np.testing.assert_array_equal(gradient[..., 0], np.array([expected for _, expected in windows]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_max_pool_gradient_of_pixels_that_are_alike_but_for_rounding(dtype):
    with jax.enable_x64(dtype == np.float64):
        eps = np.finfo(dtype).eps
        flat = np.abs(_normal(1, 4, 6, 16)[:, ::2, ::2].repeat(2, 1).repeat(2, 2)).astype(dtype)
        noise = np.random.default_rng(0).uniform(-2, 2, flat.shape).astype(dtype)
        x = jnp.asarray(flat + noise * eps * flat.max(axis=-1, keepdims=True).min())
        first = np.zeros(flat.shape)
        first[:, ::2, ::2] = 1
        np.testing.assert_array_equal(jax.grad(lambda x: max_pool_2x2(x).sum())(x), first)
        # Where one channel tells them apart, the others go by what is larger, however little.
        apart = (
            jnp.asarray(x).at[..., 3].multiply(1 + jnp.arange(24, dtype=dtype).reshape(4, 6) / 100)
        )
        ones = np.ones((1, 2, 3, 16), dtype)
        _, expected = _torch_pool_and_gradient(np.asarray(apart), ones)
        found = jax.grad(lambda x: max_pool_2x2(x).sum())(apart)
        assert not np.array_equal(found[..., 5], first[..., 5])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(16, 24), (32, 48)])
def test_gradients_where_an_image_is_of_one_colour_are_torchs(shape):
    """Whichever algorithm the size takes: equal pixels come out apart by rounding in some."""
    colours = _normal(3, 16)
    x = np.broadcast_to(colours[0], (1, *shape, 16)).copy()
    x[:, 5:, 11:] = colours[1]
    x[:, shape[0] // 2 :, : shape[1] // 2] = colours[2]
    kernel = _normal(3, 3, 16, 32, seed=1)
    y, exact = conv3x3(jnp.asarray(x), jnp.asarray(kernel)), _nchw(x).double()
    exact = torch.nn.functional.conv2d(
        exact, torch.from_numpy(kernel).permute(3, 2, 0, 1).double(), padding=1
    )
    cotangent = _normal(1, shape[0] // 2, shape[1] // 2, 32, seed=2)
    _, expected = _torch_pool_and_gradient(_nhwc(exact), cotangent)
    np.testing.assert_array_equal(jax.vjp(max_pool_2x2, y)[1](jnp.asarray(cotangent))[0], expected)


@pytest.mark.parametrize("where", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_max_pool_hands_nan_and_infinities_on(where):
    x = _normal(1, 4, 4, 1)
    x[0, where[0], where[1], 0] = np.nan
    x[0, 2 + where[0], where[1], 0] = np.inf
    x[0, 2:, 2:, 0] = -np.inf
    y = np.asarray(max_pool_2x2(jnp.asarray(x)))
    assert np.isnan(y[0, 0, 0, 0])
    assert y[0, 1, 0, 0] == np.inf
    assert y[0, 1, 1, 0] == -np.inf
    np.testing.assert_array_equal(y, _nhwc(torch.nn.functional.max_pool2d(_nchw(x), 2, 2)))


def test_max_pool_second_derivatives_are_those_of_a_selection():
    x = jnp.asarray(_normal(1, 4, 4, 2))

    def cubes(x):
        return (max_pool_2x2(x) ** 3).sum()

    hessian_diagonal = jax.jvp(jax.grad(cubes), (x,), (jnp.ones_like(x),))[1]
    selected = jax.grad(lambda x: max_pool_2x2(x).sum())(x)
    np.testing.assert_allclose(hessian_diagonal, 6 * x * selected, rtol=1e-6)


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_a_product_is_compiled_at_the_first_call_only(layer):
    kwargs = {"precision": "highest", "rngs": nnx.Rngs(0)}
    if layer == "conv":
        product = nnx.Conv(
            16, 8, (3, 3), padding=1, conv_general_dilated=conv_general_dilated, **kwargs
        )
        x = jnp.asarray(_normal(1, 4, 4, 16))
    else:
        product, x = nnx.Linear(512, 8, dot_general=dot_general, **kwargs), jnp.ones((2, 512))
    shifted = x + 1
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    product(x)
    assert compiled
    count = len(compiled)
    product(shifted)
    jax.monitoring.clear_event_listeners()
    assert len(compiled) == count


# Every size from 1 to 20 as a height and as a width, on and off the diagonal.
SIZES = sorted({(h, h) for h in range(1, 21)} | {(h, (h * 3) % 20 + 1) for h in range(1, 21)})


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_adaptive_avg_pool_is_torchs(size):
    x = _normal(2, *size, 3)
    y = adaptive_avg_pool(jnp.asarray(x))
    truth = torch.nn.functional.adaptive_avg_pool2d(_nchw(x).double(), (7, 7))
    magnitude = torch.nn.functional.adaptive_avg_pool2d(_nchw(x).double().abs(), (7, 7))
    assert y.shape == (2, 7, 7, 3)
    # The bound of summing at most 4x4 numbers in float32, in any order, and dividing once.
    error = np.abs(np.asarray(y, np.float64) - _nhwc(truth))
    assert (error <= 8 * EPS * _nhwc(magnitude)).all()


def test_adaptive_avg_pool_by_hand():
    # Windows of 3 rows onto 2: rows 0-1 and rows 1-2; they share the middle one.
    x = jnp.asarray([0.0, 2, 10]).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(adaptive_avg_pool(x, 2)[0, :, :, 0], [[1.0, 1], [6, 6]])
    # One pixel, as 32x32 images give, is repeated.
    one = jnp.full((1, 1, 1, 1), 3.5)
    np.testing.assert_array_equal(adaptive_avg_pool(one), np.full((1, 7, 7, 1), 3.5, np.float32))


def test_adaptive_avg_pool_at_7x7_is_the_identity():
    x = jnp.asarray(_normal(2, 7, 7, 5) * 1e30)
    np.testing.assert_array_equal(adaptive_avg_pool(x), x)
    assert "dot_general" not in str(jax.make_jaxpr(adaptive_avg_pool)(x))


@pytest.mark.parametrize("size", [(1, 1), (8, 11), (14, 14)])
def test_adaptive_avg_pool_gradient_is_torchs(size):
    x, cotangent = _normal(1, *size, 2), _normal(1, 7, 7, 2, seed=1)
    gradient = jax.vjp(adaptive_avg_pool, jnp.asarray(x))[1](jnp.asarray(cotangent))[0]
    inputs = _nchw(x).double().requires_grad_()
    torch.nn.functional.adaptive_avg_pool2d(inputs, (7, 7)).backward(_nchw(cotangent).double())
    np.testing.assert_allclose(gradient, _nhwc(inputs.grad), rtol=1e-5, atol=1e-6)


def test_adaptive_avg_pool_sums_half_precision_in_float32():
    # Four times 60000 overflows float16, and in bfloat16 the ones vanish beside 256.
    x = np.full((1, 14, 14, 1), 60000.0, np.float16)
    y = adaptive_avg_pool(jnp.asarray(x))
    assert y.dtype == jnp.float16
    np.testing.assert_array_equal(y, np.full((1, 7, 7, 1), 60000, np.float16))
    ones_and_256 = jnp.asarray([[256.0, 1], [1, 1]], jnp.bfloat16).reshape(1, 2, 2, 1)
    pooled = adaptive_avg_pool(ones_and_256, 1)
    assert pooled.dtype == jnp.bfloat16
    assert float(pooled[0, 0, 0, 0]) == 65.0  # 64.75 rounded; 64.0 where the ones are lost


def _batch_norms(seed: int = 0) -> tuple[BatchNorm, torch.nn.BatchNorm2d]:
    """Ours and PyTorch's with the same random parameters and statistics, training."""
    rng = np.random.default_rng(seed)
    theirs = torch.nn.BatchNorm2d(6)
    ours = BatchNorm(6, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    for name, path in {
        "weight": "scale",
        "bias": "bias",
        "running_mean": "mean",
        "running_var": "var",
    }.items():
        value = rng.uniform(0.5, 2.0, 6).astype(np.float32)
        getattr(theirs, name).data = torch.from_numpy(value.copy())
        getattr(ours, path)[...] = jnp.asarray(value)
    ours.train()
    return ours, theirs.train()


def _assert_same_statistics(ours: BatchNorm, theirs: torch.nn.BatchNorm2d):
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(ours.var[...], theirs.running_var, rtol=2e-6)
    assert int(ours.num_batches_tracked[...]) == int(theirs.num_batches_tracked)


def test_batch_norm_training_steps_are_torchs():
    ours, theirs = _batch_norms()
    # Two pixels a channel in the last batch: the unbiased variance is twice the biased one.
    for step, shape in enumerate([(4, 5, 3, 6), (2, 8, 8, 6), (3, 1, 2, 6), (2, 1, 1, 6)]):
        x = _normal(*shape, seed=step) * (step + 1) + step
        y = ours(jnp.asarray(x))
        expected = theirs(_nchw(x))
        np.testing.assert_allclose(y, _nhwc(expected), rtol=1e-5, atol=2e-5)
        _assert_same_statistics(ours, theirs)
    assert int(ours.num_batches_tracked[...]) == 4
    ours.eval()
    theirs.eval()
    x = _normal(2, 4, 4, 6, seed=9)
    np.testing.assert_allclose(ours(jnp.asarray(x)), _nhwc(theirs(_nchw(x))), rtol=1e-5, atol=1e-6)
    assert int(ours.num_batches_tracked[...]) == 4


def test_batch_norm_by_hand():
    layer = BatchNorm(1, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray([1.0, 3.0]).reshape(2, 1, 1, 1)
    # In evaluation mode at first: mean 0, variance 1, eps 1e-5.
    np.testing.assert_allclose(layer(x).ravel(), np.array([1, 3]) / np.sqrt(1 + 1e-5), rtol=1e-6)
    layer.train()
    layer(x)
    assert float(layer.mean[0]) == pytest.approx(0.9 * 0 + 0.1 * 2, rel=1e-6)
    # Biased variance 1, unbiased 2.
    assert float(layer.var[0]) == pytest.approx(0.9 * 1 + 0.1 * 2, rel=1e-6)


def test_batch_norm_does_not_cancel_far_from_zero():
    ours, theirs = _batch_norms()
    x = _normal(4, 8, 8, 6) + np.float32(3000)
    y = ours(jnp.asarray(x))
    double = theirs.double()(_nchw(x).double())
    assert np.abs(np.asarray(y) - _nhwc(double)).max() < 2e-3


def test_batch_norm_gradient_is_torchs():
    ours, theirs = _batch_norms()
    x, cotangent = _normal(3, 4, 4, 6), _normal(3, 4, 4, 6, seed=1)

    def outputs(x):
        return nnx.clone(ours)(x)  # a clone, because statistics of this trace stay in it

    gradient = jax.vjp(outputs, jnp.asarray(x))[1](jnp.asarray(cotangent))[0]
    inputs = _nchw(x).requires_grad_()
    theirs(inputs).backward(_nchw(cotangent))
    np.testing.assert_allclose(gradient, _nhwc(inputs.grad), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_batch_norm_trains_in_half_precision(dtype):
    layer = BatchNorm(6, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    layer.train()
    x = _normal(4, 5, 5, 6)
    with jax.numpy_dtype_promotion("standard"):  # Flax's own statistics promote implicitly
        y = layer(jnp.asarray(x, dtype))
    assert y.dtype == dtype
    assert layer.mean[...].dtype == layer.var[...].dtype == jnp.float32
    expected_mean = 0.1 * x.mean((0, 1, 2))
    expected_var = 0.9 + 0.1 * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.mean[...], expected_mean, atol=2e-3)
    np.testing.assert_allclose(layer.var[...], expected_var, atol=2e-3)
