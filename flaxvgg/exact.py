"""Sums that stay exact past 32 bits: on any device, under jit, without 64-bit types.

A number is a column of digits in base 2^16, the least significant first, in int32. All digits are
in [0, 2^16) but the last, which carries the sign. The digits of 2^15 numbers add up without
overflow before their carries are taken, and integers give the same sum in any order. A float32 is
an integer too, in units of 2^-149 (Kulisch's long accumulator), so sums of floats are as exact.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

_BITS = 16
_MASK = 2**_BITS - 1
_COUNT_DIGITS = 4  # 80 bits with the last digit's
_FLOAT_DIGITS = 19  # float32 has bits from 2^-149 to 2^127; beyond, 2^42 of the largest have room
_UNIT = 149
MAX_TERMS = 2**15


class FloatSum(NamedTuple):
    """A sum of float32 numbers: the digits of the finite ones, and what the others add up to.

    `special` is 0, infinite or NaN. Among these, float addition is exact.
    """

    digits: Int[Array | np.ndarray, "k ..."]
    special: Float[Array | np.ndarray, "..."]


def sum_counts(counts: Int[Array, "n ..."]) -> Int[Array, "k ..."]:
    """The digits of the sum over the first axis: up to `MAX_TERMS` non-negative int32."""
    digits = [_sum(counts & _MASK), _sum(counts >> _BITS)]
    return _carry(jnp.stack(digits + [jnp.zeros_like(digits[0])] * (_COUNT_DIGITS - 2)))


def sum_floats(values: Float[Array, "n ..."]) -> FloatSum:
    """The exact sum over the first axis: up to `MAX_TERMS` float32."""
    bits = lax.bitcast_convert_type(values, jnp.int32)
    exponent = (bits >> 23) & 255
    finite = exponent < 255
    fraction = (bits & (2**23 - 1)) | jnp.where(exponent > 0, 2**23, 0)
    signed = jnp.where(finite, jnp.where(bits < 0, -1, 1), 0)
    # |value| is fraction * 2^(shift - 149). Digit k holds its bits from 2^16k, those of the
    # fraction moved up or down.
    shift = jnp.maximum(exponent, 1) - 1
    digit = jnp.arange(_FLOAT_DIGITS, dtype=jnp.int32)
    lowest = _BITS * digit.reshape(-1, *[1] * values.ndim)
    up = shift[None] - lowest
    moved = jnp.where(
        up >= 0,
        lax.shift_left(*jnp.broadcast_arrays(fraction[None], jnp.clip(up, 0, _BITS))),
        lax.shift_right_logical(*jnp.broadcast_arrays(fraction[None], jnp.clip(-up, 0, 31))),
    )
    digits = _sum(signed[None] * (moved & _MASK), axis=1)
    special = jnp.where(finite, 0.0, values).sum(axis=0)
    return FloatSum(_carry(digits), special)


def add_counts(a: Int[Array, "k ..."], b: Int[Array, "k ..."]) -> Int[Array, "k ..."]:
    """The digits of a + b."""
    return _carry(a + b)


def add_floats(a: FloatSum, b: FloatSum) -> FloatSum:
    """The sum of both, exactly."""
    return FloatSum(add_counts(a.digits, b.digits), a.special + b.special)


def carried(digits: Int[np.ndarray, "k ..."]) -> Int[np.ndarray, "k ..."]:
    """Sums of digits, in int64 on the host, as digits."""
    digits = digits.copy()
    for i in range(len(digits) - 1):
        digits[i + 1] += digits[i] >> _BITS
        digits[i] &= _MASK
    return digits.astype(np.int32)


def count_to_host(digits: Int[Array | np.ndarray, "k ..."]) -> Int[np.ndarray, "..."]:
    """The numbers that the digits stand for, as int64. Raises OverflowError from 2^63 on."""
    return _integers(digits).astype(np.int64)


def float_to_host(total: FloatSum) -> Float[np.ndarray, "..."]:
    """The float64 nearest to each exact sum; infinite or NaN where a term was."""
    # Python's division, rounded once.
    nearest = np.asarray(_integers(total.digits) / 2**_UNIT, np.float64)
    special = np.asarray(total.special, np.float64)
    return np.where(special == 0, nearest, special)


def _sum(terms: Int[Array, "..."], axis: int = 0) -> Int[Array, "..."]:
    """The sum in int32, also where JAX has 64 bits."""
    return terms.sum(axis, dtype=jnp.int32)


def _carry(digits: Array) -> Array:
    """The same numbers with every digit but the last in [0, 2^16)."""

    def step(carry: Array, digit: Array) -> tuple[Array, Array]:
        digit = digit + carry
        return digit >> _BITS, digit & _MASK

    carry, low = lax.scan(step, jnp.zeros_like(digits[0]), digits[:-1])
    return jnp.concatenate([low, (digits[-1] + carry)[None]])


def _integers(digits: Array | np.ndarray) -> np.ndarray:
    """Python's integers, which have no largest one."""
    total = np.zeros(digits.shape[1:], object)
    for digit in np.asarray(digits)[::-1]:
        total = total * 2**_BITS + digit.astype(object)
    return np.asarray(total, object)
