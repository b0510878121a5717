"""Several objectives at once, all minimised: the front, its hypervolume, and their combination."""

from collections.abc import Callable, Sequence as Many
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.checks import check_least
from hypergrad.core.types import Array

Scalarization: TypeAlias = Callable[[Array], Array]
"""(objectives `[N, K]`) -> one number for each trial `[N]`, the lowest best."""


def pareto_front(objectives: Array) -> Array:
    """Tell which trials no other dominates, `[N]`.

    a dominates b:  a_k <= b_k for every k, and a_k < b_k for one.

    Equal trials are all on the front. A trial with a NaN is not on it, and dominates none.

    **Cost:** O(N² K) time, memory O(N²).

    Args:
        objectives: Objectives of the trials, `[N, K]`.
    """
    dominates, valid = _dominance(objectives)
    return ~jnp.any(dominates, axis=0) & valid


def pareto_ranks(objectives: Array) -> Array:
    """Return the front of each trial, int32 `[N]`: 0 for the first, 1 for the front of the others, ...

    Trials with a NaN come last, with rank N.

    **Cost:** O(N² K), and O(N²) a front.
    """
    dominates, valid = _dominance(objectives)
    num = len(valid)

    def peel(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        ranks, left, level = carry
        front = left & ~jnp.any(dominates & left[:, None], axis=0)
        return jnp.where(front, level, ranks), left & ~front, level + 1

    start = jnp.full(num, num, jnp.int32), valid, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[1]), peel, start)[0]


def _dominance(objectives: Array) -> tuple[Array, Array]:
    """Return whether i dominates j, `[N, N]`, and which trials have no NaN, `[N]`."""
    objectives = jnp.asarray(objectives)
    check_rows("objectives", objectives)
    a, b = objectives[:, None], objectives[None]
    dominates = jnp.all(a <= b, -1) & jnp.any(a < b, -1)
    return dominates, ~jnp.any(jnp.isnan(objectives), -1)


def hypervolume(objectives: Array, reference: Array) -> float:
    """Return the volume that the trials dominate, up to a reference point: exact, for two or three objectives.

    |⋃_n [y_n, r]|,   over the trials with y_n < r in every objective

    Three objectives are cut into slabs along the third; each has the area of the points below it.

    **Cost:** O(N log N) for two, O(N² log N) for three, on the host.

    Args:
        objectives: Objectives of the trials, `[N, K]`, K = 2 or 3; rows with a NaN count for nothing.
        reference: Point `[K]` that is worse than every trial of interest, in every objective.

    Raises:
        ValueError: for another number of objectives, and a reference of another shape.

    Reference:
        Zitzler, Thiele, "Multiobjective Evolutionary Algorithms", IEEE TEC 3, 1999; Fonseca, Paquete,
        López-Ibáñez, "An Improved Dimension-Sweep Algorithm for the Hypervolume Indicator", CEC 2006.
    """
    points, corner = np.asarray(objectives, np.float64), np.asarray(reference, np.float64)
    check_rows("objectives", points)
    if points.shape[1] not in (2, 3):
        raise ValueError(
            f"objectives has {points.shape[1]} columns, expected two or three; choose those that matter"
        )
    if corner.shape != points.shape[1:] or not np.isfinite(corner).all():
        raise ValueError(
            f"reference is {reference!r:.60}, expected {points.shape[1]} finite numbers; pass the worst of each"
        )
    inside = points[np.all(points < corner, axis=1)]
    if not np.isfinite(inside).all():
        raise ValueError(
            "objectives holds minus infinity, expected bounded ones; leave such trials out"
        )
    if points.shape[1] == 2:
        return _area(inside, corner)
    inside = inside[np.argsort(inside[:, 2])]
    tops = np.append(inside[1:, 2], corner[2])
    volume = 0.0
    for num, (bottom, top) in enumerate(zip(inside[:, 2], tops, strict=False), 1):
        if top > bottom:
            volume += (top - bottom) * _area(inside[:num, :2], corner[:2])
    return float(volume)


def _area(points: np.ndarray, corner: np.ndarray) -> float:
    """Return the area dominated in two objectives: a sweep by the first, where the second falls."""
    area, lowest = 0.0, corner[1]
    for x, y in points[np.lexsort((points[:, 1], points[:, 0]))]:
        if y < lowest:
            area += (corner[0] - x) * (lowest - y)
            lowest = y
    return float(area)


def chebyshev(weights: Many[float], ideal: Many[float], *, slope: float = 0.05) -> Scalarization:
    """Combine several objectives into one number: the worst weighted distance from the ideal.

    max_k w_k (y_k − y*_k) + slope Σ_k w_k (y_k − y*_k)

    Every point of the front, even where it is not convex, is the minimum for some weights; with weighted sums
    only points of its convex hull are. The slope rules out points that are merely not dominated in every
    objective.

    Args:
        weights: Positive weight of each objective; for objectives of different scales, 1 / range.
        ideal: Best value y* of each objective by itself, or a lower value.
        slope: Small weight of the sum.

    Raises:
        ValueError: for weights that are not positive, an ideal of another length, or a negative slope.

    Reference:
        Steuer, Choo, "An Interactive Weighted Tchebycheff Procedure for Multiple Objective Programming",
        Math. Program. 26, 1983; Knowles, "ParEGO", IEEE TEC 10, 2006 (slope 0.05).
    """
    w, best = np.asarray(weights, np.float64), np.asarray(ideal, np.float64)
    if w.ndim != 1 or not np.all(np.isfinite(w) & (w > 0)):
        raise ValueError(
            f"weights is {weights!r:.80}, expected a positive number an objective; pass e.g. (1.0, 0.1)"
        )
    if best.shape != w.shape or not np.isfinite(best).all():
        raise ValueError(
            f"ideal is {ideal!r:.60}, expected {len(w)} finite numbers; pass the best of each objective"
        )
    slope = check_least("slope", slope, example=0.05)

    def scalar(objectives: Array) -> Array:
        objectives = jnp.asarray(objectives)
        check_rows("objectives", objectives, columns=len(w))
        ideal_row, weights_row = (jnp.asarray(x[None], objectives.dtype) for x in (best, w))
        away = (objectives - ideal_row) * weights_row
        return jnp.max(away, -1) + slope * jnp.sum(away, -1)

    return scalar


def check_rows(name: str, values: Any, rows: int | None = None, columns: int | None = None) -> None:
    """Raise a `ValueError` unless there is a row for each trial, in as many columns, where those are given."""
    shape = np.shape(values)
    if len(shape) != 2 or rows not in (None, shape[0]) or columns not in (None, shape[1]):
        raise ValueError(
            f"{name} has shape {shape}, expected [{rows or 'N'}, {columns or 'K'}], a row for each trial; "
            "stack them, e.g. jnp.stack([values, sizes], -1)"
        )
