"""Products of integers by fractions that can be undone to the bit, in vectors of int32 or int64.

A product by a factor below 1 sends several integers to one. A stack of digits, `rest`, one word for each entry,
records which of them it was; undoing the product takes the record off again.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad.core.types import Array

NUM_BITS = 8
"""Bits of a digit: products are by fractions n/2^8, and `_excess` makes up for the rest without loss."""

DIGIT = 2**NUM_BITS - 1
"""Largest digit, and the mask of the last one."""


def shrink(value: Array, rest: Array, factor: Array) -> tuple[Array, Array]:
    """Multiply integers by `factor`, to within one unit, so that `grow` can undo it.

    With d = 2^NUM_BITS and n = ⌊factor·d⌋, the last digit of `rest` becomes one more digit of the value, so
    that the product by n/d is whole: value·d + digit = q·d + r ↦ q·n + s. There r goes on the stack
    and s comes off: rest·d + r = k·n + s, rest ← k. `_excess` adds what n/d lacks of the factor.
    """
    n, excess = _fraction(factor, value.dtype)
    quotient, remainder = _divide(rest, n, 2)
    low = (value & DIGIT) * n + remainder
    value = (value >> NUM_BITS) * n + (low >> NUM_BITS)
    rest = (quotient << NUM_BITS) | (low & DIGIT)
    return value + _excess(value, excess), rest


def grow(value: Array, rest: Array, factor: Array) -> tuple[Array, Array]:
    """Undo `shrink` exactly."""
    n, excess = _fraction(factor, value.dtype)
    # each turn divides the distance to the number that was stretched to `value` by at least n, until it is 0
    first = value - _excess(value, excess / (1 + excess))
    unstretched = jax.lax.fori_loop(0, 3, lambda _, x: value - _excess(x, excess), first)
    high, remainder = _divide(unstretched, n, 2)
    low, remainder = _divide((remainder << NUM_BITS) | (rest & DIGIT), n, 1)
    return (high << NUM_BITS) + low, (rest >> NUM_BITS) * n + remainder


def _excess(value: Array, excess: Array) -> Array:
    """Return excess·x, rounded: as it never falls in x, no two x share an image x + excess·x."""
    return jnp.round(real(value) * excess).astype(value.dtype)


def _fraction(factor: Array, dtype: Any) -> tuple[Array, Array]:
    """Return n = ⌊factor·d⌋, and the share of n/d, at most 1/n, by which n/d falls short of the factor."""
    scaled = factor * 2**NUM_BITS
    whole = jnp.maximum(jnp.floor(scaled), 1)
    return whole.astype(dtype), (scaled - whole) / whole


def _divide(value: Array, n: Array, num_turns: int) -> tuple[Array, Array]:
    """Divide integers by n > 0 with vectors of floats: quotient towards −∞ and remainder in [0, n).

    A float quotient that needs more digits than a float has is off by some units; a second turn divides its
    remainder. A quotient that is off by 1, as a product with 1/n may be, is corrected.
    """
    quotient, remainder = jnp.zeros_like(value), value
    for _ in range(num_turns):
        part = jnp.floor(real(remainder) / real(n)).astype(value.dtype)
        quotient, remainder = quotient + part, remainder - part * n
    below, above = remainder < 0, remainder >= n
    remainder = jnp.where(below, remainder + n, jnp.where(above, remainder - n, remainder))
    return quotient - below + above, remainder


def real(value: Array) -> Array:
    """Return integers as floats with the same number of bits."""
    return value.astype(jnp.float64 if value.dtype.itemsize == 8 else jnp.float32)


def capacity(factors: Sequence[float], word_bits: int) -> int:
    """Return the number of rounds of products by all `factors` before the stack may overflow.

    The bound holds whatever the data: a product by n/d takes a stack of at most U to at most (U ÷ n)·d + d − 1.
    """
    bound, times = DIGIT, 0
    while True:
        for factor in factors:
            n = int(factor * 2**NUM_BITS)
            bound = (bound // n << NUM_BITS) + DIGIT
        if bound >= 2 ** (word_bits - 1):
            return max(times, 1)
        times += 1
