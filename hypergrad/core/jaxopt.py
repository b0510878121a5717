"""Solvers of jaxopt, loaded when they are first used. The only file that imports jaxopt."""

from collections.abc import Callable
from typing import Any

from hypergrad.core.krylov import FlatMatVec
from hypergrad.core.types import Array


def gmres_cycle(apply: FlatMatVec, b: Array, x: Array | None, tol: Any, restart: int) -> Array:
    """Go once through GMRES, from x to the smallest residual over a Krylov space of `restart` dimensions."""
    from jaxopt import linear_solve

    return linear_solve.solve_gmres(apply, b, init=x, tol=tol, restart=restart, maxiter=1)


def biconjugate_gradients(
    apply: FlatMatVec, b: Array, x: Array | None, tol: Array, max_iterations: int
) -> Array:
    """Solve by the stabilized biconjugate gradients."""
    from jaxopt import linear_solve

    return linear_solve.solve_bicgstab(apply, b, init=x, tol=tol, maxiter=max_iterations)


def box_minimum(
    function: Callable[[Array], Array], start: Array, low: Array, high: Array, max_iterations: int
) -> Array:
    """Return where L-BFGS-B (jaxopt's) finds the smallest value of `function` in a box.

    **Cost:** a few gradients an iteration. **Limits:** a local minimum; not differentiable.

    Args:
        function: Function x `[n]` -> `[]`.
        start: First x.
        low: Lower bounds `[n]`.
        high: Upper bounds `[n]`.
        max_iterations: Largest number of iterations.

    Reference:
        Byrd, Lu, Nocedal, Zhu, 1995.
    """
    from jaxopt import LBFGSB

    solver = LBFGSB(function, maxiter=max_iterations, implicit_diff=False)
    return solver.run(start, bounds=(low, high)).params
