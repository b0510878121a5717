"""Population-based training: the worst members continue from the best, with other hyperparameters."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_function, check_share, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.scans import largest_divisor
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.populations import Population, count
from hypergrad.problem import Problem
from hypergrad.schedulers.base import Explore, Periods, Scheduler, best_first, keep_past
from hypergrad.searchers import Trials
from hypergrad.space import Dimension

NUM_PERIODS = 8
"""Number of comparisons of `pbt` and `pb2` by name in a run, or a few more, to divide the steps evenly."""


class _Carry(NamedTuple):
    key: Key
    hparams: HParams
    states: PyTree
    parent: Array
    start: Array  # objectives from which the members continue, `[N]`
    seen: Periods  # row p is what member i had in period p
    line: Periods  # row p is what the ancestor of member i had in period p


def pbt(num_steps: int, explore: Explore, *, period: int, fraction: float = 0.2) -> Scheduler:
    """Train a population, and after every period replace its worst members by copies of its best.

    Every `period` steps each of the worst ⌊fraction N⌋ members, and each that has diverged, takes the weights,
    optimizer state, minibatch order and hparams of a member drawn from the best ⌊fraction N⌋; then its hparams
    are explored.

    **Cost:** N x `num_steps` steps; the schedules found take N x periods x hparams in `info`. Under `jit`,
    one compiled program.

    **Limits:** the method is greedy: hparams that pay late are lost. `trials.hparams` are those of the last
    period: for a schedule, the values of the member's training; for a scalar, its last value.
    `info["schedule.NAME"]` `[N, periods, ...]` has the hparams of each period, `info["curve"]` its objectives.

    Args:
        num_steps: Training steps of each member.
        explore: Function that changes the hparams of a copy: `perturb(space)`, or `pb2(space)`.
        period: Training steps between comparisons; it divides `num_steps`.
        fraction: Share of the members that is replaced, and share that is copied; above 0, at most one half.

    Reference:
        Jaderberg et al., "Population Based Training of Neural Networks", 2017, arXiv:1711.09846, with
        truncation selection.
    """
    num_steps = check_whole("num_steps", num_steps)
    period = check_whole("period", period)
    if num_steps % period:
        raise ValueError(
            f"period is {period}, expected a divisor of num_steps = {num_steps}; round one of them"
        )
    check_function("explore", explore, "perturb(space)", "key, hparams, periods")
    fraction = check_share("fraction", fraction, "(0, 0.5]", example=0.2)
    num_periods = num_steps // period
    # compiled by themselves where the population works on the host
    note, exploit = jax.jit(_noted), jax.jit(partial(_exploit, explore=explore, fraction=fraction))

    def run(population: Population, key: Key, hparams: HParams) -> Trials:
        num = count(hparams)
        key, init_key = jax.random.split(key)
        keys = jax.random.split(init_key, num)
        states = population.init(keys, hparams)
        empty = _empty(hparams, num_periods, num)
        parent = jnp.arange(num, dtype=jnp.int32)
        carry = _Carry(key, hparams, states, parent, jnp.full(num, jnp.nan), empty, empty)
        carry = tree.strong(carry._replace(states=()))._replace(states=states)

        def train(carry: _Carry) -> tuple[_Carry, Array, dict[str, Array]]:
            states = population.advance(carry.hparams, carry.states, period)
            values, info = population.judge(carry.hparams, states)
            return note(carry._replace(states=()), values)._replace(states=states), values, info

        def generation(carry: _Carry, _: None) -> tuple[_Carry, None]:
            carry, values = train(carry)[:2]
            moved, source = exploit(carry._replace(states=()), values)
            return moved._replace(states=population.take(carry.states, source)), None

        if population.host:
            for _ in range(num_periods - 1):
                carry, _ = generation(carry, None)
        else:
            carry, _ = jax.lax.scan(generation, carry, None, length=num_periods - 1)
        carry, values, info = train(carry)
        schedule = {
            f"schedule.{name}": jnp.moveaxis(x, 0, 1)
            for name, x in tree.named(carry.line.hparams).items()
        }
        info |= {"key": jax.random.key_data(keys), "curve": carry.line.values.T, **schedule}
        steps = jnp.full(num, num_steps, jnp.int32)
        return Trials(carry.hparams, values, steps, carry.parent, info)

    return run


def _empty(hparams: HParams, num_periods: int, num: int) -> Periods:
    tried = jax.tree.map(
        lambda x: jnp.zeros((num_periods, *jnp.shape(x)), jnp.result_type(x)), hparams
    )
    none = jnp.zeros((num_periods, num))
    return Periods(tried, none, none, jnp.zeros((), jnp.int32))


def _noted(carry: _Carry, values: Array) -> _Carry:
    """Write down one more period, of every member and of its line."""
    seen, line = (_with_period(p, carry, values) for p in (carry.seen, carry.line))
    return carry._replace(seen=seen, line=line)


def _with_period(periods: Periods, carry: _Carry, values: Array) -> Periods:
    """Write down the hparams and objectives of one more period."""
    now = periods.num
    kept = jax.tree.map(lambda past, x: past.at[now].set(x), periods.hparams, carry.hparams)
    values = periods.values.at[now].set(values.astype(periods.values.dtype))
    return Periods(kept, values, periods.starts.at[now].set(carry.start), now + 1)


def _exploit(
    carry: _Carry, values: Array, explore: Explore, fraction: float
) -> tuple[_Carry, Array]:
    """Copy the best over the worst, and explore from there.

    Returns:
        The members but for their states, and the index `[N]` of those whose states they take.
    """
    key, draw_key, explore_key = jax.random.split(carry.key, 3)
    source, moved = choose_parents(draw_key, values, fraction)
    hparams = tree.rows(carry.hparams, source)
    other = explore(explore_key, hparams, carry.seen._replace(moved=moved))

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(moved.reshape((-1,) + (1,) * (old.ndim - 1)), new, old).astype(old.dtype)

    line = carry.line._replace(
        hparams=jax.tree.map(lambda x: x[:, source], carry.line.hparams),
        values=carry.line.values[:, source],
        starts=carry.line.starts[:, source],
    )
    after = _Carry(
        key,
        jax.tree.map(choose, other, hparams),
        carry.states,
        carry.parent[source],
        values[source].astype(carry.start.dtype),
        carry.seen,
        line,
    )
    return after, source


def choose_parents(key: Key, values: Array, fraction: float) -> tuple[Array, Array]:
    """Choose the member from which each one continues.

    Returns:
        The index of that member, int32 `[N]` (its own for most), and which members were replaced, `[N]`.
    """
    num = values.shape[0]
    size = min(max(1, int(fraction * num)), num // 2)
    order = best_first(values).astype(jnp.int32)
    place = jnp.argsort(order)  # 0 for the best
    finite = jnp.isfinite(values)
    healthy = jnp.sum(finite)
    drawn = jax.random.randint(key, (num,), 0, jnp.clip(healthy, 1, max(1, size)))
    moved = ((place >= num - size) | ~finite) & (healthy > 0)
    return jnp.where(moved, order[drawn], jnp.arange(num, dtype=jnp.int32)), moved


def perturb(
    space: PyTree,
    *,
    factor: float = 1.2,
    resample: float = 0.25,
    draw: Callable[[PyTree, Key], HParams] = spaces.sample,
) -> Explore:
    """Multiply each dimension by `factor` or by 2 − `factor`, or draw it anew.

    Whole numbers, and numbers with a step, are rounded away from their old values, and values stay within their
    bounds. Options are drawn anew or kept; static dimensions are kept. Each dimension is drawn separately. A
    schedule changes as a whole from the present on: its completed steps stay.

    **Limits:** a `Real` at zero moves only by being drawn anew.

    Args:
        space: Space of the hparams.
        factor: Factor above 1 and at most 2.
        resample: Probability of drawing anew.
        draw: Function (space, key) -> hparams, e.g. `space.sample_constant` for schedules of one value.

    Reference:
        Jaderberg et al., 2017, arXiv:1711.09846, section 4.
    """
    spaces.check_space(space)
    factor = check_share("factor", factor, "(1, 2]", what="a number", example=1.2)
    resample = check_share("resample", resample, what="a probability", example=0.25)
    dims, structure = jax.tree.flatten(space)
    traced = spaces.dynamic(space)

    def one(key: Key, hparams: HParams, past: float | Array) -> HParams:
        draw_key, key = jax.random.split(key)
        drawn = jax.tree.leaves(draw(traced, draw_key))
        given = jax.tree.leaves(hparams)
        keys = jax.random.split(key, len(dims))
        moved = [
            keep_past(args[0], past, args[2], _perturb(*args, factor, resample))
            for args in zip(dims, keys, given, drawn, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)

    def explore(key: Key, hparams: HParams, periods: Periods | None) -> HParams:
        past = 0.0 if periods is None else periods.num / periods.values.shape[0]
        keys = jax.random.split(key, count(hparams))
        return jax.vmap(one, in_axes=(0, 0, None))(keys, hparams, past)

    return explore


def _perturb(
    dim: Dimension, key: Key, value: Array, drawn: Array, factor: float, resample: float
) -> Array:
    if dim.static:
        return value
    up_key, draw_key = jax.random.split(key)
    up = jax.random.bernoulli(up_key)
    moved = value
    if not isinstance(dim, spaces.Choice):
        bounds = dim.element if isinstance(dim, spaces.Sequence) else dim
        moved = value * jnp.where(up, factor, 2 - factor)
        if isinstance(dim, (spaces.Integer, spaces.Real)) and dim.step is not None:
            steps = (moved - dim.low) / dim.step
            steps = jnp.where(moved > value, jnp.ceil(steps), jnp.floor(steps))
            moved = dim.at(jnp.clip(steps, 0, dim.num_levels - 1).astype(jnp.int32))
        moved = jnp.clip(moved, bounds.low, bounds.high)
    anew = jax.random.bernoulli(draw_key, resample)
    return jnp.where(anew, drawn, moved).astype(value.dtype)


def default_period(horizon: int) -> int:
    """Return the steps of a period, so that there are about `NUM_PERIODS` in `horizon` steps."""
    return largest_divisor(horizon, horizon // NUM_PERIODS)


def _make(problem: Problem, space: PyTree, horizon: int, size: int) -> tuple[Scheduler, float]:
    explore = perturb(space, draw=spaces.sample_constant)
    return pbt(horizon, explore, period=default_period(horizon)), size


PBT = Method(
    "pbt", "the worst continue from copies of the best, with other hyperparameters", (), _make
)
