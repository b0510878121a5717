"""The loops of the linear solvers: conjugate gradients and Richardson's iteration, on one flat vector."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core.types import Array

FlatMatVec: TypeAlias = Callable[[Array], Array]
"""x `[n]` -> A x `[n]`, linear."""


class Solution(NamedTuple):
    """Solution of a linear system, and what the method met on its way.

    Attributes:
        x: Solution `[n]`.
        iterations: Number of iterations, -1 where the method does not say.
        low: Smallest curvature p·Ap / p·p met.
        high: Largest curvature met.
    """

    x: Array
    iterations: int | Array
    low: float | Array = float("inf")
    high: float | Array = float("-inf")


def begin_from(apply: FlatMatVec, b: Array, x: Array | None) -> tuple[Array, Array]:
    """Return the start and its residual; a start that is worse than zero is replaced by zero."""
    if x is None:
        return jnp.zeros_like(b), b
    first = b - apply(x)
    helps = jnp.linalg.norm(first) <= jnp.linalg.norm(b)
    return jnp.where(helps, x, 0), jnp.where(helps, first, b)


def conjugate_gradients(
    apply: FlatMatVec, b: Array, x: Array | None, tol: Array, max_iterations: int
) -> Solution:
    """Run conjugate gradients and keep the coefficients of the Lanczos matrix."""
    start, first = begin_from(apply, b, x)
    limit = jnp.square(tol * jnp.linalg.norm(b))
    num_kept = min(max_iterations, 64)

    def unfinished(carry: tuple) -> Array:
        count, _, _, _, square, _, _, positive = carry
        return (count < max_iterations) & (square > limit) & positive

    def body(carry: tuple) -> tuple:
        count, x, r, p, square, coefficients, low, _ = carry
        q = apply(p)
        curvature = p @ q
        positive = curvature > 0
        alpha = jnp.where(positive, square / curvature, 0)
        x, r = x + alpha * p, r - alpha * q
        new = r @ r
        beta = new / square
        pair = jnp.where(positive, jnp.stack([alpha, beta]), 0)
        coefficients = coefficients.at[count].set(pair, mode="drop")
        low = jnp.minimum(low, curvature / (p @ p))
        return count + 1, x, r, r + beta * p, new, coefficients, low, positive

    kept = jnp.zeros((num_kept, 2), b.dtype)
    infinite = jnp.asarray(jnp.inf, b.dtype)
    carry = (jnp.zeros((), jnp.int32), start, first, first, first @ first, kept, infinite, True)
    count, x, _, _, _, coefficients, low, _ = jax.lax.while_loop(unfinished, body, carry)
    ritz_low, ritz_high = _ritz(coefficients)
    return Solution(x, count, jnp.minimum(low, ritz_low), ritz_high)


def _ritz(coefficients: Array) -> tuple[Array, Array]:
    """Return the extreme eigenvalues of the Lanczos matrix of conjugate gradients.

    T_kk = 1/α_k + β_{k−1}/α_{k−1},   T_{k,k+1} = √β_k / α_k
    """
    alpha, beta = coefficients.T
    known = alpha > 0
    safe = jnp.where(known, alpha, 1)
    carried = jnp.concatenate([jnp.zeros_like(beta[:1]), (beta / safe)[:-1]])
    # where nothing was met, T repeats its first entry, which lies within its spectrum
    diagonal = jnp.where(known, 1 / safe + carried, 1 / safe[0])
    off = jnp.where(known[1:], (jnp.sqrt(beta) / safe)[:-1], 0)
    spectrum = jnp.linalg.eigvalsh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))
    met = known[0]
    return jnp.where(met, spectrum[0], jnp.inf), jnp.where(met, spectrum[-1], -jnp.inf)


def richardson(
    apply: FlatMatVec,
    b: Array,
    x: Array | None,
    tol: Array,
    max_iterations: int,
    step_size: float | Array | None,
) -> Solution:
    """Run x ← x + α r, r ← (I − αA) r until ‖r‖ is within the tolerance or has outgrown the dtype."""
    start, first = begin_from(apply, b, x)
    size = jnp.linalg.norm(b)
    seen = Solution(b, 0)
    if step_size is None:
        seen = conjugate_gradients(apply, b, None, jnp.zeros((), b.dtype), 10)
        largest = jnp.asarray(seen.high)
        step_size = jnp.where(largest > 0, 1 / largest, 1)
    step = jnp.asarray(step_size, b.dtype)
    overflow = size / jnp.finfo(b.dtype).eps

    def unfinished(carry: tuple) -> Array:
        count, _, r = carry
        norm = jnp.linalg.norm(r)
        return (count < max_iterations) & (norm > tol * size) & (norm <= overflow)

    def body(carry: tuple) -> tuple:
        count, x, r = carry
        return count + 1, x + step * r, r - step * apply(r)

    carry = (jnp.zeros((), jnp.int32), start, first)
    count, x, _ = jax.lax.while_loop(unfinished, body, carry)
    return Solution(x, count, seen.low, seen.high)
