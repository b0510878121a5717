"""Grid search: every combination of a few values of each dimension."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_name, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.wrappers import held_constant
from hypergrad.space import Coordinates, coordinates, from_units
from hypergrad.space.cells import cell_middle

MAX_GRID = 2**20
"""Largest number of points of a grid, whose order is held in memory."""


class GridState(NamedTuple):
    """State of `grid`.

    Attributes:
        order: Points in the order in which they are tried, int32 `[num_points]`.
        count: Trials told so far, int32.
    """

    order: Array
    count: Array


def grid(
    space: PyTree, num_levels: int | Mapping[str, int] = 3, *, shuffle: bool = True
) -> Searcher:
    """Try all combinations; the study is done when each has been told once.

    A real dimension has `num_levels` values from bound to bound, evenly spread in unit coordinates. An
    `Integer`, and a `Real` with a step, has as many of its own, without repeats; a `Choice` has all its
    options. A schedule has the values of its element at each free step.

    **Cost:** num_levels^D trials for D real coordinates. A generation that is larger than the rest of the grid
    begins the grid again.

    Args:
        space: Pytree of traceable dimensions.
        num_levels: Number of values of each dimension: one for all of them, or by leaf name (3 for others).
        shuffle: Whether the points are tried in an order that the key of `init` draws; a grid that is cut short
            is then not just one corner of it.

    Raises:
        ValueError: for an invalid number of values, and for a grid of more than 2^20 points.
    """
    coords = coordinates(space)
    names = tree.leaf_names(space)
    if isinstance(num_levels, Mapping):
        for name in num_levels:
            check_name("leaf of num_levels", name, names)
        nums = [
            check_whole(f"num_levels[{name!r}]", num_levels.get(name, 3), example=3)
            for name in names
        ]
    else:
        nums = [check_whole("num_levels", num_levels, example=3)] * len(names)
    levels = [_levels(nums[leaf], coords.of(np.array([i]))) for i, leaf in enumerate(coords.leaf)]
    sizes = [len(level) for level in levels]
    total = math.prod(sizes)
    if total > MAX_GRID:
        raise ValueError(
            f"num_levels make a grid of {total:.3g} points, expected at most {MAX_GRID}; "
            "pass fewer levels, search fewer dimensions, or use 'sobol'"
        )
    # [D, most levels]: padded, because a table is indexed faster than a list
    table = np.stack([np.pad(level, (0, max(sizes) - len(level))) for level in levels])
    strides = np.cumprod([1, *sizes[:0:-1]])[::-1].astype(np.int32)

    def init(key: Key) -> GridState:
        index = jnp.arange(total, dtype=jnp.int32)
        order = jax.random.permutation(key, index) if shuffle else index
        return GridState(order, jnp.zeros((), jnp.int32))

    def ask(key: Key, state: GridState, num: int) -> HParams:
        point = state.order[(state.count + jnp.arange(num)) % total]
        digits = (point[:, None] // strides) % np.array(sizes)
        units = jnp.asarray(table, jnp.result_type(float))[np.arange(coords.num), digits]
        return from_units(space, units)

    def tell(state: GridState, trials: Trials) -> GridState:
        return state._replace(count=jnp.minimum(state.count + len(trials.values), total))

    def info(state: GridState) -> dict[str, Array]:
        return {"grid_done": state.count / total, "done": state.count >= total}

    return guarded(space, Searcher(init, ask, tell, info))


def _levels(num: int, coord: Coordinates) -> np.ndarray:
    """Return the unit coordinates of the values that one coordinate takes, `[num]` or fewer."""
    (cells,), (ordered,), (first,) = coord.levels, coord.ordered, coord.first
    if cells and not ordered:
        return (np.arange(cells) + 0.5) / cells
    even = np.linspace(0, 1, num) if num > 1 else np.array([0.5])
    if not cells:
        return even
    places = even * (cells - 1)
    if first:
        places = first * ((first + cells - 1) / first) ** even - first
    with jax.ensure_compile_time_eval():
        return np.asarray(cell_middle(int(cells), int(first), np.unique(np.round(places))))


def levels_within(space: PyTree, num_trials: int) -> int:
    """Return the largest number of levels, at least 2, whose grid has no more points than there are trials."""
    coords = coordinates(space)

    each = [coords.of(np.array([i])) for i in range(coords.num)]

    def size(num: int) -> int:
        return math.prod(len(_levels(num, one)) for one in each)

    num = 2
    while num < num_trials and size(num) < size(num + 1) <= num_trials:
        num += 1
    return num


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    return held_constant(space, lambda space: grid(space, levels_within(space, num_trials)))


GRID = Method(
    "grid",
    "every combination of as many values as the budget allows, in random order",
    (),
    _make,
)
