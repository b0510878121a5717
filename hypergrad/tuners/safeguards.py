"""What keeps a descent from falling off a cliff: clipped seeds, steps taken back, schedules that move smoothly.

The best learning rates sit at the edge of stability. Beyond it the hypergradient of a seed is 10⁴ times as long
as that of another, and has no more to say than its sign. So each seed is clipped by what has been typical, not
their mean by a constant, and a step after which the objective jumps is taken back.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hypergrad.core import tree
from hypergrad.core.types import Array, PyTree
from hypergrad.space import Sequence

RECENT = 10
"""Number of the last steps that say what is typical."""

LEAST_STEPS = 5
"""Number of steps before which no jump is told from noise."""

JUMP = 5.0
"""Standard deviations above the median at which an objective has jumped."""

LEAST_SPREAD = 0.02
"""Least standard deviation of an objective, as a share of its median: a flat stretch makes no jumps."""

SLOWER, FASTER = 0.5, 1.1
"""Factors of the pace after a step that was taken back, and after one that was not."""


class Typical(NamedTuple):
    """What the last steps of a descent were like.

    Attributes:
        values: Objectives, `[RECENT]`; NaN where there was none.
        norms: Median over seeds of the norm of a hypergradient, `[RECENT]`; NaN where there was none.
        pace: Factor of the outer optimizer's updates, in (0, 1].
    """

    values: Array
    norms: Array
    pace: Array


def nothing_typical() -> Typical:
    """Return what is known before the first step."""
    none = jnp.full(RECENT, jnp.nan)
    return Typical(none, none, jnp.ones(()))


def clipped_mean(each: PyTree, typical: Typical, clip: float) -> tuple[PyTree, Array]:
    """Return the mean of the seeds' hypergradients, each cut to `clip` times the typical norm.

    g = (1/S) Σ_s g_s min(1, c m / ‖g_s‖),   m = median over the last steps of median_s ‖g_s‖

    Args:
        each: Hypergradients, leading axis `[S]`.
        typical: The steps before.
        clip: Factor c; infinity cuts none.

    Returns:
        The mean, and the median norm of this step.
    """
    norms = jax.vmap(tree.norm)(each)
    middle = _median(norms)
    known = _median(jnp.append(typical.norms[1:], middle))
    most = jnp.where(jnp.isinf(clip), jnp.inf, clip * known)
    shares = jnp.where(norms > most, most / norms, 1.0)

    def mean(x: Array) -> Array:
        return jnp.mean(x * shares.reshape((-1,) + (1,) * (x.ndim - 1)), axis=0)

    return jax.tree.map(mean, each), middle


def has_jumped(value: Array, typical: Typical) -> Array:
    """Tell whether an objective is far above the last ones.

    f > median + 5 max(σ, .02 |median|),   σ = 1.48 median |f_i − median|

    Objectives that were called jumps are among the last ones, too, so that a lasting change is accepted after a
    few steps.

    Args:
        value: Objective of this step, `[]`.
        typical: The steps before.
    """
    middle = _median(typical.values)
    spread = 1.4826 * _median(jnp.abs(typical.values - middle))
    sigma = jnp.maximum(spread, LEAST_SPREAD * jnp.abs(middle))
    enough = jnp.sum(~jnp.isnan(typical.values)) >= LEAST_STEPS
    return enough & (value > middle + JUMP * sigma)


def _median(x: Array) -> Array:
    """Return the median of those of `[n]` that are not NaN; it compiles much sooner than a sort."""
    known, place = ~jnp.isnan(x), jnp.arange(len(x))
    num, y = jnp.sum(known), jnp.where(known, x, jnp.inf)
    before = (y < y[:, None]) | ((y == y[:, None]) & (place < place[:, None]))
    rank = jnp.sum(before, axis=1)
    low, high = (jnp.sum(jnp.where(rank == at, y, 0.0)) for at in ((num - 1) // 2, num // 2))
    return jnp.where(num > 0, (low + high) / 2, jnp.nan)


def noted(typical: Typical, value: Array, norm: Array, back: Array) -> Typical:
    """Return what is typical after a step with this objective and norm, which was taken `back` or not."""
    finite = jnp.isfinite(value) & jnp.isfinite(norm)

    def pushed(row: Array, x: Array, keep: Array) -> Array:
        return jnp.where(keep, jnp.append(row[1:], x), row)

    pace = jnp.where(back, SLOWER * typical.pace, jnp.minimum(1.0, FASTER * typical.pace))
    return Typical(
        pushed(typical.values, value, finite), pushed(typical.norms, norm, finite & ~back), pace
    )


def smoothly(
    optimizer: optax.GradientTransformation, space: PyTree, width: float
) -> optax.GradientTransformation:
    """Let an optimizer move each schedule through its moving means alone.

    With the matrix M of moving means over a share `width` of a schedule's free steps, taken twice:

    z ← z + M u,   u = optimizer(Mᵀ g)

    which is the optimizer in the coordinates c of z = z₀ + M c. The noise of hypergradients has no correlation
    from step to step, and what a training wants has: M keeps the one and drops most of the other.

    **Cost:** O(length) for each schedule.

    **Limits:** a schedule keeps what is rough in its start; what changes within `width` of its length is not
    learned.
    """

    def means(z: PyTree) -> PyTree:
        return jax.tree.map(lambda dim, x: _mean_of_steps(dim, x, width), space, z)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        (pulled,) = jax.linear_transpose(means, updates)(updates)
        moves, state = optimizer.update(pulled, state, params)
        return means(moves), state

    return optax.GradientTransformation(optimizer.init, update)


def _mean_of_steps(dim: Any, x: Array, width: float) -> Array:
    if not isinstance(dim, Sequence):
        return x
    reach = int(width * len(x) / 2)  # steps on either side
    return _moving_mean(_moving_mean(x, reach), reach) if reach else x


def _moving_mean(x: Array, reach: int) -> Array:
    """Return the mean of each step and `reach` steps on either side, fewer at the ends; `[n, ...]`."""
    num = len(x)
    sums = jnp.concatenate([jnp.zeros_like(x[:1]), jnp.cumsum(x, axis=0)])
    steps = jnp.arange(num)
    first, last = jnp.maximum(steps - reach, 0), jnp.minimum(steps + reach + 1, num)
    counts = (last - first).reshape((-1,) + (1,) * (x.ndim - 1)).astype(x.dtype)
    return (sums[last] - sums[first]) / counts
