"""The contract of the linear solvers, and what they share: flat vectors, and how well a system was solved."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.core.checks import check_positive
from hypergrad.core.krylov import Solution
from hypergrad.core.types import Array, PyTree

_NORMAL = "for a rectangular A pass x -> AᵀA x and Aᵀb"

MatVec: TypeAlias = Callable[[PyTree], PyTree]
"""x -> A x, linear; a pytree in, a pytree of the same structure out."""


class SolveInfo(NamedTuple):
    """How well a system was solved.

    Attributes:
        residual: ‖b − A x‖ / ‖b‖, computed from x itself, `[]`.
        iterations: Number of iterations, int32 `[]`; 0 for direct methods.
        smallest_curvature: Smallest p·Ap / p·p over the directions met (search directions, Ritz vectors, x),
            `[]`. At or below zero A is not positive definite, and conjugate gradients stopped there.
            Infinite where no direction was met.
        condition: Estimate from below of the condition number, from the same directions, `[]`; infinite
            where the smallest curvature is not positive.
        converged: Whether the residual is within ten times the tolerance, bool `[]`. It is not where the
            system has no solution: x is then finite, and the best that was found.
        damping: γ of the system (A + γI) x = b that was solved instead, `[]`; 0 unless asked for. All other
            fields are about that system.
    """

    residual: Array
    iterations: Array
    smallest_curvature: Array
    condition: Array
    converged: Array
    damping: Array


class Solve(Protocol):
    """(matvec, b, start, tolerance) -> (x, SolveInfo): a linear solver as a value.

    The solver begins at `start`, or at zero where None; a warm start costs one product. It ends at a relative
    residual of `tolerance`, which may be traced, or at its own where None.
    """

    def __call__(
        self, matvec: MatVec, b: PyTree, start: PyTree = None, tolerance: Array | None = None
    ) -> tuple[PyTree, SolveInfo]:
        """Return x and how well it solves A x = b."""
        ...


def as_solver(method: Callable[..., Solution], own_tolerance: float | None) -> Solve:
    """Make a solver of pytrees from a method on flat vectors, and measure how well it solved."""
    if own_tolerance is not None:
        check_positive("tolerance", own_tolerance)

    def solve(
        matvec: MatVec, b: PyTree, start: PyTree = None, tolerance: Array | None = None
    ) -> tuple[PyTree, SolveInfo]:
        narrow, unravel = ravel_pytree(b)
        if start is not None:
            _check_like("start", start, b)
        flat = narrow.astype(jnp.promote_types(narrow.dtype, jnp.float32))
        dtype = flat.dtype
        # the squares of what is very large or small leave the range of float32
        most = jnp.max(jnp.abs(flat), initial=0)
        unit = jnp.where((most > 1e12) | ((most < 1e-12) & (most > 0)), most, 1)
        unit = jnp.where(jnp.isfinite(unit), unit, 1).astype(dtype)
        flat = flat / unit

        def apply(x: Array) -> Array:
            made = _apply(matvec, unravel(x.astype(narrow.dtype)), b)
            return ravel_pytree(made)[0].astype(dtype)

        own = jnp.finfo(dtype).eps ** 0.75 if own_tolerance is None else own_tolerance
        limit = jnp.asarray(own if tolerance is None else tolerance, dtype)
        first = None if start is None else ravel_pytree(start)[0].astype(dtype) / unit
        x, iterations, low, high = method(apply, flat, first, limit)
        product, size = apply(x), jnp.linalg.norm(flat)
        # a NaN in b or in A must not end as a finite answer
        known = jnp.isfinite(size) & ~jnp.any(jnp.isnan(product))
        x = jnp.where(known, x, jnp.nan)
        residual = jnp.linalg.norm(flat - product) / jnp.where(size > 0, size, 1)
        square = x @ x
        curvature = x @ product / jnp.where(square > 0, square, 1)
        met = (square > 0) & jnp.isfinite(square) & jnp.isfinite(curvature)
        low = jnp.where(met, jnp.minimum(low, curvature), low)
        high = jnp.where(met, jnp.maximum(high, curvature), high)
        condition = jnp.where(jnp.isposinf(low), 1, jnp.where(low > 0, high / low, jnp.inf))
        info = SolveInfo(
            residual=residual,
            iterations=jnp.asarray(iterations, jnp.int32),
            smallest_curvature=jnp.asarray(low, dtype),
            condition=condition.astype(dtype),
            converged=residual <= 10 * limit,
            damping=jnp.zeros((), dtype),
        )
        return unravel((unit * x).astype(narrow.dtype)), info

    return solve


def _apply(matvec: MatVec, x: PyTree, b: PyTree) -> PyTree:
    """Return A x, and raise a `ValueError` unless A is square."""
    try:
        made = matvec(x)
    except jax.errors.JAXTypeError:
        raise
    except TypeError as error:
        raise ValueError(
            f"matvec fails on a vector like b, {_shapes(b)} ({' '.join(str(error).split())[:120]}), "
            f"expected a square A; {_NORMAL}"
        ) from error
    _check_like("matvec(x)", made, b)
    return made


def _check_like(name: str, value: PyTree, b: PyTree) -> None:
    """Raise a `ValueError` unless a vector has the structure and shapes of b."""
    if jax.tree.map(jnp.shape, value) != jax.tree.map(jnp.shape, b):
        raise ValueError(f"{name} is {_shapes(value)}, expected {_shapes(b)} as b; {_NORMAL}")


def _shapes(vector: PyTree) -> str:
    """Write the shapes of a vector in one line."""
    return str(jax.tree.map(jnp.shape, vector))[:120]
