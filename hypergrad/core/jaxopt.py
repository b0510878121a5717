"""The minimizer of jaxopt, loaded when it is first used. The only file that imports jaxopt."""

from collections.abc import Callable

from hypergrad.core.types import Array


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
