"""Scans in segments of equal length, with a shorter last one where the length does not divide the steps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import is_whole
from hypergrad.core.types import PyTree


def segment_length(num_steps: int, longest: int) -> int:
    """Return the largest divisor of `num_steps` within [¾ longest, longest], else `longest`.

    A divisor saves the compilation of a shorter last segment.
    """
    longest = min(longest, num_steps)
    best = largest_divisor(num_steps, longest)
    return best if 4 * best >= 3 * longest else longest


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`, or 1."""
    return next((d for d in range(most, 1, -1) if number % d == 0), 1)


def scan_segments(
    segment: Callable[[Any, Any, int], tuple[Any, Any]],
    carry: Any,
    xs: Sequence[Any],
    num_steps: int,
    size: int,
    *,
    reverse: bool = False,
) -> tuple[Any, list[Any]]:
    """Scan (carry, x, length) -> (carry, y) over all whole segments, and over the shorter last one.

    Args:
        segment: Function (carry, x, length) -> (carry, y) of one segment.
        carry: Carry before the first segment.
        xs: Inputs of the whole segments, stacked, and those of the shorter one where there is one.
        num_steps: Number of steps in all segments together.
        size: Length of a whole segment.
        reverse: Whether to begin with the last segment.

    Returns:
        The last carry, and the ys like the xs.
    """
    num_segments, rest = divmod(num_steps, size)

    def whole(carry: Any, x: Any) -> tuple[Any, Any]:
        return segment(carry, x, size)

    last = []
    if rest and reverse:
        carry, y = segment(carry, xs[1], rest)
        last = [y]
    carry, ys = jax.lax.scan(whole, carry, xs[0], length=num_segments, reverse=reverse)
    if rest and not reverse:
        carry, y = segment(carry, xs[1], rest)
        last = [y]
    return carry, [ys, *last]


def cut(xs: PyTree, num_steps: int, size: int) -> list[PyTree]:
    """Cut arrays `[num_steps, ...]` into the xs of `scan_segments`."""
    num_segments, rest = divmod(num_steps, size)
    whole = num_segments * size
    parts = [jax.tree.map(lambda x: x[:whole].reshape((num_segments, size, *x.shape[1:])), xs)]
    return [*parts, jax.tree.map(lambda x: x[whole:], xs)] if rest else parts


def by_step(parts: Sequence[PyTree]) -> PyTree:
    """Join ys of `scan_segments`, one number per step or per segment, to `[num_steps]`."""
    return jax.tree.map(lambda *ys: jnp.concatenate([y.reshape(-1) for y in ys]), *parts)


def check_checkpoint(checkpoint: Any) -> None:
    """Raise a `ValueError` unless `checkpoint` is a tuple of whole numbers of at least 1."""
    sizes = checkpoint if isinstance(checkpoint, tuple) else (0,)
    if not all(is_whole(size) and size >= 1 for size in sizes):
        raise ValueError(
            f"checkpoint is {checkpoint!r}, expected a tuple of segment lengths of at least 1; "
            "pass e.g. (32, 1), or () to store everything"
        )


def nested_scan(
    body: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any,
    num_steps: int,
    checkpoint: tuple[int, ...],
) -> tuple[Any, Any]:
    """Run `jax.lax.scan(body, carry, xs)` in nested checkpointed segments.

    Unlike loops with a derivative rule of their own, this loop can be differentiated twice and in forward mode.

    Returns:
        The last carry and the stacked outputs, leading axis `[num_steps]`.
    """
    if not checkpoint:
        return jax.lax.scan(body, carry, xs, length=num_steps)
    size, inner = min(checkpoint[0], num_steps), checkpoint[1:]
    if size == 1:
        return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), carry, xs, length=num_steps)
    num_segments, rest = divmod(num_steps, size)
    whole = num_segments * size

    def segment(carry: Any, xs: Any) -> tuple[Any, Any]:
        return nested_scan(body, tree.cloned(carry), xs, size, inner)

    blocks = jax.tree.map(lambda x: x[:whole].reshape((num_segments, size, *x.shape[1:])), xs)
    remat = jax.checkpoint(segment, prevent_cse=False)
    carry, ys = jax.lax.scan(remat, carry, blocks, length=num_segments)
    ys = jax.tree.map(lambda y: y.reshape((whole, *y.shape[2:])), ys)
    if rest:
        last = jax.tree.map(lambda x: x[whole:], xs)
        remat = jax.checkpoint(lambda c, x: nested_scan(body, tree.cloned(c), x, rest, inner))
        carry, tail = remat(carry, last)
        ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, tail)
    return carry, ys
