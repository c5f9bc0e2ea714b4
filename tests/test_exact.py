"""Sums past 32 bits, against Python's integers and fractions, which have no largest one."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxvgg.sparsity import exact
from flaxvgg.sparsity.exact import count_to_host, float_to_host

add_counts, sum_counts = jax.jit(exact.add_counts), jax.jit(exact.sum_counts)
add_floats, sum_floats = jax.jit(exact.add_floats), jax.jit(exact.sum_floats)


def _any_floats(*shape: int) -> np.ndarray:
    """Finite float32 of every size, from the smallest subnormal to the largest number."""
    bits = np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint32)
    values = bits.view(np.float32)
    extremes = [1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 0.0, -0.0, 1.0, 1.1754944e-38]
    values.flat[: len(extremes)] = extremes
    return np.where(np.isfinite(values), values, np.float32(1))


def test_counts_by_hand():
    digits = sum_counts(jnp.array([[65535, 2**31 - 1, 0], [1, 2**31 - 1, 0]], jnp.int32))
    # 65536 = (0, 1) in base 2^16; 2^32 - 2 = (65534, 65535).
    np.testing.assert_array_equal(digits[:, 0], [0, 1, 0, 0])
    np.testing.assert_array_equal(digits[:, 1], [65534, 65535, 0, 0])
    assert count_to_host(digits).tolist() == [65536, 2**32 - 2, 0]
    assert count_to_host(add_counts(digits, digits)).tolist() == [2**17, 2**33 - 4, 0]


def test_counts_of_the_largest_batch_do_not_overflow():
    digits = sum_counts(jnp.full((2**15, 1), 2**31 - 1, jnp.int32))
    for _ in range(16):
        digits = add_counts(digits, digits)
    assert count_to_host(digits).tolist() == [2**31 * (2**31 - 1)]
    with pytest.raises(OverflowError):
        count_to_host(add_counts(digits, add_counts(digits, digits)))


def test_floats_of_every_size_add_up_exactly():
    values = _any_floats(40, 50)
    expected = [float(sum(Fraction(float(x)) for x in column)) for column in values.T]
    whole = sum_floats(values)
    assert float_to_host(whole).tolist() == expected
    parts = [sum_floats(row[None]) for row in values]
    for order in (range(40), reversed(range(40)), np.random.default_rng(1).permutation(40)):
        one, *others = order
        total = parts[one]
        for i in others:
            total = add_floats(total, parts[i])
        np.testing.assert_array_equal(total.digits, whole.digits)
    assert float_to_host(add_floats(whole, sum_floats(-values))).tolist() == [0.0] * 50


def test_what_float32_would_lose():
    total = sum_floats(jnp.array([[1e30, 2.0**24], [1.0, 1.0], [-1e30, 0.0]], jnp.float32))
    assert float_to_host(total).tolist() == [1.0, 2**24 + 1]


def test_what_is_not_finite_shows():
    inf, nan = np.inf, np.nan
    values = jnp.array([[inf, -inf, inf, nan, 1], [1, 1, -inf, 1, 1]], jnp.float32)
    np.testing.assert_array_equal(float_to_host(sum_floats(values)), [inf, -inf, nan, nan, 2])
    apart = add_floats(sum_floats(values[:1]), sum_floats(values[1:]))
    np.testing.assert_array_equal(float_to_host(apart), [inf, -inf, nan, nan, 2])


def test_under_vmap():
    values = _any_floats(3, 4, 5)
    stacked = jax.jit(jax.vmap(exact.sum_floats))(values)
    for i in range(3):
        one = sum_floats(values[i])
        np.testing.assert_array_equal(stacked.digits[i], one.digits)
