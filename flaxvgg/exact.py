"""Sums that stay exact past 32 bits: on any device, under jit, without 64-bit types.

A number is a column of digits in base 2^16, the least significant first, in int32. All digits are
in [0, 2^16) but the last, which carries the sign. Digits of up to 2^15 numbers are summed without
overflow before their carries are taken, and integers add up to the same whatever the order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_BITS = 16
_MASK = 2**_BITS - 1
_COUNT_DIGITS = 4  # 80 bits with the sign
_FLOAT_DIGITS = 19  # float32 has bits from 2^-149 to 2^127; the rest holds 2^42 of the largest
_UNIT = 149  # the lowest digit of a float counts 2^-149, so that every finite float32 is an integer
MAX_TERMS = 2**15


class ExactSum(NamedTuple):
    """A sum of float32 numbers: the digits of the finite ones, and what the others add up to.

    `special` is 0, infinite or NaN, and adds as floats do, which loses nothing among those.
    """

    digits: Int[Array, "k ..."]
    special: Float[Array, "..."]


def sum_counts(counts: Int[Array, "n ..."]) -> Int[Array, "k ..."]:
    """The digits of the sum over the first axis, of up to `MAX_TERMS` non-negative int32."""
    low, high = (counts & _MASK).sum(axis=0), (counts >> _BITS).sum(axis=0)
    return _carried([low, high, *[jnp.zeros_like(low)] * (_COUNT_DIGITS - 2)])


def sum_floats(values: Float[Array, "n ..."]) -> ExactSum:
    """The exact sum over the first axis, of up to `MAX_TERMS` float32."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    exponent = (bits >> 23) & 255
    fraction = (bits & (2**23 - 1)) | jnp.where(exponent > 0, 2**23, 0)
    finite = exponent < 255
    signed = jnp.where(finite, jnp.where(bits < 0, -1, 1), 0)
    shift = jnp.maximum(exponent, 1) - 1  # |value| is fraction * 2^(shift - 149)
    digits = []
    for k in range(_FLOAT_DIGITS):
        up = shift - _BITS * k
        digit = jnp.where(
            up >= 0,
            jnp.where(up < _BITS, fraction << jnp.clip(up, 0, _BITS), 0),
            fraction >> jnp.clip(-up, 0, 31),
        )
        digits.append((signed * (digit & _MASK)).sum(axis=0))
    special = jnp.where(finite, jnp.zeros_like(values), values).sum(axis=0)
    return ExactSum(_carried(digits), special)


def add_counts(a: Int[Array, "k ..."], b: Int[Array, "k ..."]) -> Int[Array, "k ..."]:
    """The digits of a + b."""
    return _carried(list(a + b))


def add_sums(a: ExactSum, b: ExactSum) -> ExactSum:
    """a + b, exactly."""
    return ExactSum(add_counts(a.digits, b.digits), a.special + b.special)


def count_to_host(digits: Int[Array, "k ..."]) -> Int[np.ndarray, "..."]:
    """The number that digits stand for, as int64."""
    return _integers(digits).astype(np.int64)


def sum_to_host(total: ExactSum) -> Float[np.ndarray, "..."]:
    """The float64 nearest to an exact sum; infinite or NaN where a term was."""
    nearest = (_integers(total.digits) / 2**_UNIT).astype(np.float64)  # Python's: rounds once
    special = np.asarray(total.special, np.float64)
    return np.where(special == 0, nearest, special)


def _carried(digits: list[Array]) -> Array:
    carry = jnp.zeros_like(digits[0])
    done = []
    for digit in digits[:-1]:
        digit = digit + carry
        done.append(digit & _MASK)
        carry = digit >> _BITS
    return jnp.stack([*done, digits[-1] + carry])


def _integers(digits: Array) -> np.ndarray:
    """Python integers, which have no largest one."""
    total = np.zeros(digits.shape[1:], object)
    for digit in np.asarray(digits)[::-1]:
        total = total * 2**_BITS + digit.astype(object)
    return np.asarray(total, object)
