"""The loops of the iterative linear solvers, on one flat vector."""

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
        iterations: Number of iterations.
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
    """Run conjugate gradients and keep the coefficients of the Lanczos matrix.

    A step is not taken, and is the last, where the curvature is not positive, or where the residual would
    outgrow what it can be on a positive definite A, ‖r‖ ≤ √κ ‖r_0‖ with κ < 1/ε. Where A then turns out not
    to be positive definite to the dtype's precision, the answer is the iterate of the smallest residual.
    """
    start, first = begin_from(apply, b, x)
    limit = jnp.square(tol * jnp.linalg.norm(b))
    num_kept = min(max_iterations, 64)
    eps = jnp.finfo(b.dtype).eps
    largest = first @ first / eps

    def unfinished(carry: tuple) -> Array:
        count, _, _, _, square, _, _, positive, _ = carry
        return (count < max_iterations) & (square > limit) & positive

    def body(carry: tuple) -> tuple:
        count, x, r, p, square, coefficients, low, _, best = carry
        q = apply(p)
        curvature = p @ q
        alpha = jnp.where(curvature > 0, square / curvature, 0)
        moved, left = x + alpha * p, r - alpha * q
        new = left @ left
        positive = (curvature > 0) & (new <= largest) & jnp.all(jnp.isfinite(moved))
        x, r, new = (jnp.where(positive, a, b) for a, b in ((moved, x), (left, r), (new, square)))
        beta = new / square
        pair = jnp.where(positive, jnp.stack([alpha, beta]), 0)
        coefficients = coefficients.at[count].set(pair, mode="drop")
        low = jnp.minimum(low, curvature / (p @ p))
        better = new < best[1]
        best = (jnp.where(better, x, best[0]), jnp.where(better, new, best[1]))
        return count + 1, x, r, r + beta * p, new, coefficients, low, positive, best

    kept = jnp.zeros((num_kept, 2), b.dtype)
    infinite = jnp.asarray(jnp.inf, b.dtype)
    square = first @ first
    before = (jnp.zeros((), jnp.int32), start, first, first, square, kept, infinite, True)
    after = jax.lax.while_loop(unfinished, body, (*before, (start, square)))
    count, x, _, _, square, coefficients, low, positive, best = after
    ritz_low, ritz_high = _ritz(coefficients)
    low = jnp.minimum(low, ritz_low)
    definite = positive & (low > eps * ritz_high)
    x = jnp.where(definite | (square <= limit), x, best[0])
    return Solution(x, count, low, ritz_high)


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


def gmres_cycle(apply: FlatMatVec, b: Array, x: Array, size: int) -> tuple[Array, Array]:
    """Go once through GMRES: the smallest residual over a Krylov space of at most `size` dimensions.

    The small least-squares problem is solved by singular values, so that a space that A maps onto fewer
    dimensions does no harm. An x that is no better than before is not taken.

    Returns:
        x `[n]` and b − A x `[n]`.
    """
    size = min(size, b.size)
    r = b - apply(x)
    norm = jnp.linalg.norm(r)
    basis = jnp.zeros((size + 1, b.size), b.dtype).at[0].set(r / jnp.where(norm > 0, norm, 1))
    eps = jnp.finfo(b.dtype).eps

    def grow(k: Array, carry: tuple) -> tuple:
        basis, h = carry
        q = apply(basis[k])
        first = basis @ q
        rest = q - first @ basis
        second = basis @ rest  # once more: after that the basis is orthogonal to rounding
        rest = rest - second @ basis
        length = jnp.linalg.norm(rest)
        # where the space is full, what is left is rounding, and no direction
        new = length > eps * b.size * jnp.linalg.norm(q)
        column = (first + second).at[k + 1].set(jnp.where(new, length, 0))
        basis = basis.at[k + 1].set(jnp.where(new, rest / jnp.where(new, length, 1), 0))
        return basis, h.at[:, k].set(column)

    h = jnp.zeros((size + 1, size), b.dtype)
    basis, h = jax.lax.fori_loop(0, size, grow, (basis, h))
    y = jnp.linalg.lstsq(h, jnp.zeros(size + 1, b.dtype).at[0].set(norm))[0]
    moved = x + y @ basis[:-1]
    left = b - apply(moved)
    better = jnp.linalg.norm(left) < norm
    return jnp.where(better, moved, x), jnp.where(better, left, r)


def biconjugate_gradients(
    apply: FlatMatVec, b: Array, x: Array | None, tol: Array, max_iterations: int
) -> Solution:
    """Run the stabilized biconjugate gradients; return the iterate of the smallest residual.

    It ends where a divisor vanishes or an iterate is not finite.
    """
    start, first = begin_from(apply, b, x)
    limit = jnp.square(tol * jnp.linalg.norm(b))
    one = jnp.ones((), b.dtype)

    def unfinished(carry: tuple) -> Array:
        count, _, r, *_, sound, _ = carry
        return (count < max_iterations) & (r @ r > limit) & sound

    def body(carry: tuple) -> tuple:
        count, x, r, alpha, omega, rho, p, q, _, best = carry
        new_rho = first @ r
        beta = new_rho / rho * alpha / omega
        p = r + beta * (p - omega * q)
        q = apply(p)
        alpha = new_rho / (first @ q)
        s = r - alpha * q
        t = apply(s)
        # a residual of zero is the end, and leaves nothing to stabilize
        omega = jnp.where(s @ s <= limit, 0, (t @ s) / (t @ t))
        x, r = x + alpha * p + omega * s, s - omega * t
        square = r @ r
        sound = jnp.all(jnp.isfinite(x)) & jnp.isfinite(square) & (omega * new_rho != 0)
        better = square < best[1]
        best = (jnp.where(better, x, best[0]), jnp.where(better, square, best[1]))
        return count + 1, x, r, alpha, omega, new_rho, p, q, sound, best

    before = (jnp.zeros((), jnp.int32), start, first, one, one, one, first, first, True)
    after = jax.lax.while_loop(unfinished, body, (*before, (start, first @ first)))
    return Solution(after[-1][0], after[0])
