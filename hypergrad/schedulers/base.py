"""The contract of every scheduler, and helpers of those that stop trials early."""

import math
from collections.abc import Callable, Sequence as Many
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_share, check_whole
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.populations import Population
from hypergrad.searchers import Trials
from hypergrad.space import Dimension, Sequence

ETA = 3
"""Factor η of `halving` and `hyperband` by name: one in η trials continues, for η times as long."""

MAX_HALVINGS = 3
"""Divisor of the horizon for the shortest runs of the schedulers by name; shorter runs tell too little."""


class SchedulerWarning(UserWarning):
    """A scheduler cannot do here what its name promises."""


Scheduler: TypeAlias = Callable[[Population, Key, HParams], Trials]
"""(population, key, hparams `[N]`) -> `Trials`.

Traceable wherever the population is: under `jit` a generation is one compiled program. `info["key"]` has the
key of each member.
"""

Rank: TypeAlias = Callable[[Population, HParams, PyTree, Array], tuple[Array, dict[str, Array]]]
"""(population, hparams, states, objectives), each `[M]` -> scores `[M]`, the lowest best, and info `[M]`."""


class Rung(NamedTuple):
    """A comparison of members.

    Attributes:
        num: Number n_i of members that are trained up to here.
        steps: Training steps r_i of each up to here, from the start.
        rank: Ranking that decides which of them continue; by the objective where None.
    """

    num: int
    steps: int
    rank: Rank | None = None


class Periods(NamedTuple):
    """Hparams and objectives of the members of a population in each period.

    Attributes:
        hparams: Hparams of each period, `[P, N, ...]`.
        values: Objectives at the end of each period, `[P, N]`.
        starts: Objectives at the start of each period, `[P, N]`; NaN for the first period.
        num: Number of periods so far, int32; the rows from there on are still zero.
        moved: Whether each member is a copy that gets other hparams now, `[N]`; all are where None.
    """

    hparams: HParams
    values: Array
    starts: Array
    num: Array
    moved: Array | None = None


Explore: TypeAlias = Callable[[Key, HParams, Periods], HParams]
"""(key, hparams `[N]`, periods) -> other hparams `[N]`, used only for members that were just copied."""


def keep_past(dim: Dimension, past: float | Array, value: Array, moved: Array) -> Array:
    """Keep `value` for the completed share `past` of a schedule, and take `moved` from there on.

    Other dimensions have no past: they take `moved`.
    """
    if not isinstance(dim, Sequence):
        return moved
    time = (jnp.arange(dim.length) + 0.5) / dim.length  # the middle of a step, clear of rounding
    moved = jnp.where((time < past).reshape((-1,) + (1,) * (value.ndim - 1)), value, moved)
    return jax.lax.cummin(moved) if dim.decreasing else moved


def best_first(scores: Array) -> Array:
    """Return the members from the best score to the worst, `[N]`; ties by index, scores not finite last."""
    return jnp.argsort(jnp.where(jnp.isfinite(scores), scores, jnp.inf), stable=True)


def judge_members(
    population: Population, keys: Key, hparams: HParams, states: PyTree, num_steps: int
) -> Trials:
    """Judge members that have all been trained for `num_steps` steps from `keys`."""
    values, info = population.judge(hparams, states)
    chex.assert_tree_shape_prefix((values, hparams), keys.shape)
    steps, index, data = _alone(keys, num_steps)
    # with the key, a trial can be trained again alone
    return Trials(hparams, values, steps, index, info | {"key": data})


@partial(jax.jit, static_argnums=1)
def _alone(keys: Key, num_steps: int) -> tuple[Array, Array, Array]:
    """Return the steps, the places and the keys of members that were all trained alike."""
    num = len(keys)
    index = jnp.arange(num, dtype=jnp.int32)
    return jnp.full(num, num_steps, jnp.int32), index, jax.random.key_data(keys)


def train_up(population: Population, key: Key, hparams: HParams, rungs: Many[Rung]) -> Trials:
    """Train members from rung to rung, on each rung only the best of the rung before.

    S_0 = all;  S_{i+1} = the n_{i+1} lowest scores of S_i at r_i steps

    **Cost:** Σ_i n_i (r_i − r_{i−1}) steps: members that continue do so from where they stopped.

    Returns:
        The last objective of each member; in `info` the last rung of each, and the total number of steps.
    """
    num = rungs[0].num
    keys = jax.random.split(key, num)
    states = population.init(keys, hparams)
    index = np.arange(num, dtype=np.int32)
    noted, scores, given, before = None, np.zeros(0), hparams, 0
    for level, (size, until, rank) in enumerate(rungs):
        if level:
            kept, index, given = _best(scores, index, hparams, size)
            states = population.take(states, kept)
        states = population.advance(given, states, until - before)
        scores, found = population.judge(given, states)
        chex.assert_tree_shape_prefix((scores, given), (size,))
        row = {"": scores, "steps": np.int32(until), "rung": np.int32(level)}
        if rank is not None:
            scores, more = rank(population, given, states, scores)
            found |= more
        noted, before = _noted(noted, index, found | row), until
    assert noted is not None  # there is a rung
    values, steps = noted.pop(""), noted.pop("steps")
    _, own, data = _alone(keys, before)
    noted |= {"key": data, "budget": np.float32(spent(rungs))}  # a count of steps outgrows int32
    return Trials(hparams, values, steps, own, noted)


@partial(jax.jit, static_argnums=3)
def _best(scores: Array, index: Array, hparams: HParams, size: int) -> tuple[Array, Array, HParams]:
    """Return the places of the best within a rung, their places among all, and their hparams."""
    kept = best_first(scores)[:size]
    return kept, index[kept], tree.rows(hparams, index[kept])


@jax.jit
def _noted(
    before: dict[str, Array] | None, index: Array, found: dict[str, Array]
) -> dict[str, Array]:
    """Write what was found of the members `index` over what earlier rungs have found."""
    every = {n: jnp.broadcast_to(x, index.shape + jnp.shape(x)[1:]) for n, x in found.items()}
    earlier = {} if before is None else before
    return {**earlier, **{n: earlier.get(n, x).at[index].set(x) for n, x in every.items()}}


def geometric_rungs(num: int, num_steps: int, last: int, eta: float) -> tuple[Rung, ...]:
    """Return the rungs 0 to `last` of successive halving.

    n_i = ⌊n η^{−i}⌋ (at least 1),   r_i = R η^{i−s} (rounded, at least 1),   s = last

    With η below 2 several of them may round to one number of steps. They are one rung, of the first's members,
    as the others would train nothing.
    """
    rungs: list[Rung] = []
    for i in range(last + 1):
        steps = max(1, round(num_steps * eta ** (i - last)))
        if not rungs or steps > rungs[-1].steps:
            rungs.append(Rung(max(1, _floor(num / eta**i)), steps))
    return tuple(rungs)


def spent(rungs: Many[Rung]) -> int:
    """Return the total number of training steps, Σ_i n_i (r_i − r_{i−1})."""
    before = [0, *(rung.steps for rung in rungs)]
    return sum(rung.num * (rung.steps - start) for rung, start in zip(rungs, before, strict=False))


def num_halvings(num_steps: int, min_steps: int, eta: float) -> int:
    """Return ⌊log_η(num_steps / min_steps)⌋, exact where a float logarithm is not."""
    return _floor(math.log(num_steps / min_steps, eta))


def shortest_run(size: int, horizon: int) -> int:
    """Return the steps of the shortest runs, so that the best of `size` trials are halved up to the horizon."""
    last = next(s for s in range(MAX_HALVINGS, -1, -1) if ETA**s <= min(size, horizon))
    return horizon // ETA**last


def check_halving(num_steps: Any, min_steps: Any, eta: Any) -> tuple[int, int]:
    """Return `num_steps` and `min_steps`; raise a `ValueError` unless 1 <= min_steps <= num_steps, eta > 1."""
    counts = check_steps("min_steps", min_steps, num_steps)
    eta = check_share("eta", eta, "(1, inf)", what="a number", example=3)
    return counts


def check_steps(name: str, steps: Any, num_steps: Any) -> tuple[int, int]:
    """Return `num_steps` and `steps`, or raise a `ValueError` unless 1 <= steps <= num_steps."""
    num_steps, steps = check_whole("num_steps", num_steps), check_whole(name, steps)
    if steps > num_steps:
        raise ValueError(
            f"{name} is {steps}, expected at most num_steps = {num_steps}; pass e.g. {name}=1"
        )
    return num_steps, steps


def check_one_each(name: str, found: Any, num: int) -> None:
    """Raise a `ValueError` unless a user's function returned one number for each of `num` trials."""
    if jnp.shape(found) != (num,):
        raise ValueError(
            f"{name} returned the shape {jnp.shape(found)}, expected ({num},); return a number for each trial"
        )


def _floor(number: float) -> int:
    return math.floor(number + 1e-9)
