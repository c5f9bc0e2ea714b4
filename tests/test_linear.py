"""A linear layer of few images on a CPU: exact, and zeros are not multiplied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxvgg.conversion.rule import keeps_rule
from flaxvgg.ops.linear import dot_general, transposed_product

DIMENSIONS = (((1,), (0,)), ((), ()))


def product(x: jax.Array, kernel: jax.Array, precision: str = "highest") -> jax.Array:
    return dot_general(x, kernel, DIMENSIONS, precision=precision)


def arrays(rows: int, depth: int, outputs: int, nonzero: float = 0.3) -> list[jax.Array]:
    """Values of which most are zero, as behind a ReLU, and a kernel."""
    random = np.random.default_rng(depth)
    x = random.random((rows, depth)) * (random.random((rows, depth)) < nonzero)
    kernel = random.standard_normal((depth, outputs))
    return [jnp.asarray(a, jnp.float32) for a in (x, kernel)]


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found) - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("precision", ["highest", "default"])
@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize(("depth", "outputs"), [(4096, 1000), (1, 1), (37, 20), (513, 33)])
def test_as_close_to_the_truth_as_pytorch(depth, outputs, rows, precision):
    x, kernel = arrays(rows, depth, outputs, nonzero=1.0)
    truth = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    theirs = torch.nn.functional.linear(
        torch.tensor(np.asarray(x)), torch.tensor(np.asarray(kernel)).T.contiguous()
    )
    found = error(product(x, kernel, precision), truth)
    assert keeps_rule(found, error(theirs.numpy(), truth))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_rows_that_meet_only_zeros_are_not_read(rows):
    x, kernel = arrays(rows, 100, 40)
    unread = jnp.where((x == 0).all(axis=0)[:, None], jnp.nan, kernel)
    assert np.isnan(unread).any()
    truth = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(product(x, unread), truth, rtol=1e-5, atol=1e-6)


def test_nan_is_no_zero():
    x, kernel = arrays(2, 100, 40)
    found = product(x.at[1, 7].set(jnp.nan), kernel)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[0], product(x, kernel)[0])


def test_nothing_but_zeros():
    _, kernel = arrays(1, 64, 24)
    np.testing.assert_array_equal(product(jnp.zeros((2, 64)), kernel), np.zeros((2, 24)))
    assert product(jnp.zeros((0, 64)), kernel).shape == (0, 24)


def test_derivatives_batches_and_many_images():
    x, kernel = arrays(3, 512, 24)
    plain = jax.value_and_grad(lambda x, kernel: (x @ kernel).sum() ** 2, (0, 1))(x, kernel)
    found = jax.value_and_grad(lambda x, k: product(x, k).sum() ** 2, (0, 1))(x, kernel)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-3)
    mapped = jax.vmap(lambda row: product(row[None], kernel)[0])(x)
    np.testing.assert_array_equal(mapped, product(x, kernel))
    many = jnp.tile(x, (3, 1))  # XLA's, in blocks
    np.testing.assert_allclose(product(many, kernel)[3:6], product(x, kernel), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("precision", ["highest", "default"])
@pytest.mark.parametrize(("depth", "outputs"), [(1000, 4096), (1, 1), (64, 20), (513, 33)])
def test_the_transpose_without_rows_that_meet_only_zeros(depth, outputs, precision):
    factor, kernel = arrays(2, depth, outputs)
    factor = factor.at[0, 0].set(1)
    y = arrays(6, outputs, 1, nonzero=1.0)[0]
    unread = jnp.where((factor == 0).all(axis=0)[:, None], jnp.nan, kernel)
    right = np.asarray(y, np.float64) @ np.asarray(kernel, np.float64).T
    right = np.where((factor == 0).all(axis=0), 0, right)
    found = transposed_product(y, unread, factor=factor, precision=precision)
    np.testing.assert_array_equal(found == 0, right == 0)
    whole = jnp.where(right == 0, 0, transposed_product(y, kernel, precision=precision))
    assert keeps_rule(error(found, right), error(whole, right))


def test_derivatives_and_batches_of_the_transpose():
    factor, kernel = arrays(1, 96, 24)
    y = arrays(3, 24, 1, nonzero=1.0)[0]
    needed = factor[0] != 0

    def squares(y, kernel):
        return (transposed_product(y, kernel, factor=factor) ** 2).sum()

    def plain(y, kernel):
        return (jnp.where(needed, y @ kernel.T, 0) ** 2).sum()

    found, expected = (jax.jit(jax.grad(f, (0, 1)))(y, kernel) for f in (squares, plain))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-3)
    together = transposed_product(y, kernel, factor=factor)
    mapped = jax.vmap(lambda row: transposed_product(row[None], kernel, factor=factor)[0])(y)
    np.testing.assert_array_equal(mapped, together)
    # Each with zeros of its own, and so many rows that all are read.
    factors = jnp.stack([factor, jnp.roll(factor, 1, axis=1), jnp.ones_like(factor)])
    own = jax.vmap(lambda row, f: transposed_product(row[None], kernel, factor=f)[0])(y, factors)
    right = jnp.where(factors[:, 0] == 0, 0, y @ kernel.T)
    np.testing.assert_allclose(own, right, rtol=1e-5, atol=1e-5)
    many = transposed_product(y, kernel, factor=jnp.tile(factor, (9, 1)))
    np.testing.assert_allclose(many, y @ kernel.T, rtol=1e-5, atol=1e-5)


def test_a_sharded_batch_stays_where_it_is():
    x, kernel = arrays(4, 96, 24)
    across = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
    compiled = jax.jit(product).lower(jax.device_put(x, across), kernel).compile()
    assert "all-gather" not in compiled.as_text()
    found = jax.jit(product)(jax.device_put(x, across), kernel)
    np.testing.assert_allclose(found, product(x, kernel), rtol=1e-6)
