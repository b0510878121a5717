"""Train many members of one problem at once."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_whole, describe
from hypergrad.core.types import Array, HParams, Key, Params, PyTree
from hypergrad.populations.layouts import Layout, Mapped, default_layout, rows_on_host
from hypergrad.problem import Problem, check_problem
from hypergrad.train import TrainState, init_state, step

NEVER = 2**31 - 1
"""Step of divergence of a member that has not diverged."""


class Member(NamedTuple):
    """State of one run. In a population every leaf has the leading axis `[N]`, or `[N, num_seeds]`.

    Attributes:
        train: State of training.
        diverged: First step whose loss was not finite, `NEVER` while all were finite; int32.
    """

    train: TrainState
    diverged: Array


def take(states: PyTree, index: Array) -> PyTree:
    """Gather members by index, `[M]` -> states `[M]`; one may be taken several times."""
    return _take(states, index)


@jax.jit
def _take(states: PyTree, index: Array) -> PyTree:
    return tree.rows(states, index)


def _no_measure(*_: Any) -> Any:
    raise ValueError(
        "population has no `measure` and no `follow`, expected one to look at its members; build it with "
        "population(problem), partitioned(...) or bucketed(...)"
    )


class Population(NamedTuple):
    """N members of one problem; every argument has the leading axis `[N]`.

    Attributes:
        init: (keys, hparams) -> states.
        advance: (hparams, states, num_steps) -> states, to be advanced again. `num_steps` is one number
            for all, or an array `[N]` with a number for each member; it may be traced.
        value: (hparams, states) -> objectives `[N]`; NaN for a member that has diverged.
        judge: (hparams, states) -> (objectives `[N]`, info), where info has arrays `[N]` for people:
            `diverged`, the step at which training or the objective was first not finite, or -1.
        take: (states, index) -> states of the members `index`.
        host: Whether it works on the host between compiled calls, and so cannot be traced.
        measure: (function, hparams, states) -> result of `function(params, hparams)` for each member, a mean
            over its seeds, `[N, ...]`.
        whole: (tree) -> the same arrays, whole on every device, so that every process may read them.
        follow: (hparams, states, num_steps) -> (states, losses `[N, horizon]`): `advance` by one number of
            steps in the same program, with the loss before each, zero from there on; the horizon is 0 but in
            a study.
    """

    init: Callable[[Key, HParams], PyTree]
    advance: Callable[[HParams, PyTree, int | Array], PyTree]
    value: Callable[[HParams, PyTree], Array]
    judge: Callable[[HParams, PyTree], tuple[Array, dict[str, Array]]]
    take: Callable[[PyTree, Array], PyTree] = take
    host: bool = False
    whole: Callable[[PyTree], PyTree] = lambda tree: tree
    measure: Callable[[Callable[[Params, HParams], PyTree], HParams, PyTree], PyTree] = _no_measure
    follow: Callable[[HParams, PyTree, int | Array], tuple[PyTree, Array]] = _no_measure


def population(
    problem: Problem, *, layout: Layout | None = None, num_seeds: int = 1, order: Key | None = None
) -> Population:
    """Build a population of one problem.

    A member whose training loss is not finite has diverged: its value is NaN from there on, and
    `judge` tells the step. The others keep their bits.

    **Cost:** on a CPU about that of a loop of one compiled program, and less for small networks; memory of
    the N states and of as many runs as the layout computes side by side. Hyperparameters and numbers of
    steps are traced, so that other values never recompile.

    Args:
        problem: Training loop.
        layout: Layout that computes the members (`fastest_layout` measures which is fastest). All devices
            where None, on a CPU in chunks of four.
        num_seeds: Runs per member; its value is their mean, NaN if one of them diverged, and `judge` adds
            their standard deviation as `spread`.
        order: Key of the minibatches of every member: all members then see the same ones, drawn once; each
            member draws its own where None.

    Raises:
        ValueError: for invalid arguments and, when called, for keys and hparams of different N, or an N that
            the mesh of the layout does not divide.
    """
    check_problem(problem)
    check_whole("num_seeds", num_seeds)
    if order is not None and not hasattr(order, "dtype"):
        raise ValueError(
            f"order is {describe(order)}, expected a PRNG key; pass e.g. jax.random.key(0)"
        )
    layout = default_layout() if layout is None else layout
    check_kind("layout", layout, Layout, "populations.chunked(4)")
    made = make_population(problem, layout, num_seeds, order)

    def init(keys: Key, hparams: HParams) -> PyTree:
        _check_members(layout, keys, hparams)
        return made.init(keys, hparams)

    return made._replace(init=init)


def make_population(
    problem: Problem,
    layout: Layout,
    num_seeds: int = 1,
    order: Key | None = None,
    horizon: int = 0,
) -> Population:
    """Build what `population` returns, from arguments that have been checked.

    Args:
        problem: Training loop.
        layout: Layout that computes the members.
        num_seeds: Runs per member.
        order: Key of the minibatches of every member.
        horizon: Most steps of an `advance`, whose losses `follow` then returns.
    """
    many = num_seeds > 1
    orders = jax.random.split(order, num_seeds) if many and order is not None else order
    order_axis = None if order is None else 0

    def each(function: Callable, *axes: Any, gather: bool = False, brief: bool = False) -> Mapped:
        return layout.each(jax.vmap(function, axes) if many else function, gather, brief)

    run = _run_of(problem, horizon)
    start_each = each(run.start, order_axis, 0, None, brief=True)
    together_each = each(run.together, (None, None, order_axis), None, 0)
    apart_each = each(run.apart, None, None, 0, None)
    value_each = each(run.objective, None, None, 0, gather=True)

    def init(keys: Key, hparams: HParams) -> PyTree:
        if many:
            keys = jax.vmap(lambda key: jax.random.split(key, num_seeds))(keys)
        return start_each(orders, keys, hparams)

    def follow(hparams: HParams, states: PyTree, num_steps: int | Array) -> tuple[PyTree, Array]:
        clock = None if order is None else states.train.step.reshape(-1)[0]
        shared = (jnp.asarray(num_steps, jnp.int32), clock, orders)
        return together_each(shared, hparams, states)

    def advance(hparams: HParams, states: PyTree, num_steps: int | Array) -> PyTree:
        num_steps = jnp.asarray(num_steps, jnp.int32)
        if num_steps.ndim == 0:
            return follow(hparams, states, num_steps)[0]
        if order is not None:
            raise ValueError(
                f"num_steps has shape {num_steps.shape}, expected one number because the members share the "
                "order of their minibatches; leave `order` out of the population"
            )
        return apart_each(None, hparams, states, num_steps)

    def judge(hparams: HParams, states: PyTree) -> tuple[Array, dict[str, Array]]:
        values, diverged = value_each(None, hparams, states)
        return _over_seeds(values, diverged) if many else (values, {"diverged": _or_none(diverged)})

    def value(hparams: HParams, states: PyTree) -> Array:
        return judge(hparams, states)[0]

    @lru_cache(maxsize=32)  # a layout on the host compiles its function
    def measure_each(function: Callable) -> Mapped:
        return each(_of_weights(function), None, None, 0, gather=True)

    def measure(function: Callable, hparams: HParams, states: PyTree) -> PyTree:
        found = measure_each(function)(None, hparams, states)
        return jax.tree.map(lambda x: jnp.mean(x, axis=1), found) if many else found

    return Population(
        init,
        advance,
        value,
        judge,
        rows_on_host if layout.host else take,
        layout.host,
        layout.whole,
        measure,
        follow,
    )


@jax.jit
def _over_seeds(values: Array, diverged: Array) -> tuple[Array, dict[str, Array]]:
    """Return the mean over seeds, the first step at which one diverged, and the spread."""
    first = _or_none(jnp.min(diverged, axis=1))
    info = {"diverged": first, "spread": jnp.std(values, axis=1, ddof=1)}
    return jnp.mean(values, axis=1), info


@jax.jit
def _or_none(diverged: Array) -> Array:
    return jnp.where(diverged == NEVER, -1, diverged)


class _Run(NamedTuple):
    """Functions of one run; the first argument of each is the same for all members.

    Attributes:
        start: (order, key, hparams) -> member.
        together: ((num_steps, clock, order), hparams, member) -> (member, losses `[horizon]`).
        apart: (None, hparams, member, num_steps) -> member.
        objective: (None, hparams, member) -> (value, step at which it diverged).
    """

    start: Callable[..., Member]
    together: Callable[..., tuple[Member, Array]]
    apart: Callable[..., Member]
    objective: Callable[..., tuple[Array, Array]]


def _run_of(problem: Problem, horizon: int) -> _Run:
    def start(order: Key | None, key: Key, hparams: HParams) -> Member:
        state = init_state(problem, key, hparams)
        state = state if order is None else state._replace(key=order)
        return Member(state, jnp.full((), NEVER, jnp.int32))

    def apart(_: None, hparams: HParams, member: Member, num_steps: Array) -> Member:
        return jax.lax.fori_loop(0, num_steps, lambda _, m: _step(problem, hparams, m)[0], member)

    def together(shared: tuple, hparams: HParams, member: Member) -> tuple[Member, Array]:
        num_steps, clock, order = shared
        if order is not None:  # the same for all members, so that `vmap` draws each batch once
            member = member._replace(train=member.train._replace(step=clock, key=order))

        def one(i: Array, carry: tuple[Member, Array]) -> tuple[Member, Array]:
            member, loss = _step(problem, hparams, carry[0])
            return member, carry[1].at[i].set(loss) if horizon else carry[1]

        return jax.lax.fori_loop(0, num_steps, one, (member, jnp.zeros(horizon)))

    def objective(_: None, hparams: HParams, member: Member) -> tuple[Array, Array]:
        state = member.train
        value = problem.objective(
            state.params, hparams, problem.valid_batch(jax.random.clone(state.key))
        )
        late = jnp.where(jnp.isfinite(value), NEVER, state.step)
        value = jnp.where(member.diverged == NEVER, value, jnp.nan)
        return value, jnp.minimum(member.diverged, late)

    return _Run(start, together, apart, objective)


def _of_weights(function: Callable[[Params, HParams], PyTree]) -> Callable[..., PyTree]:
    return lambda _, hparams, member: function(member.train.params, hparams)


def _step(problem: Problem, hparams: HParams, member: Member) -> tuple[Member, Array]:
    """Make one step of training, and note the step if its loss is the first that is not finite.

    Returns:
        The member after the step, and the loss before it.
    """
    state, loss = step(problem, hparams, member.train)
    bad = jnp.where(jnp.isfinite(loss), NEVER, member.train.step)
    return Member(state, jnp.minimum(member.diverged, bad)), loss


def count(hparams: HParams) -> int:
    """Return N, the leading axis that all leaves of the hparams share.

    Raises:
        ValueError: naming the first leaf of another length, or without a leading axis.
    """
    num = 0
    for name, leaf in tree.named(hparams).items():
        shape = jnp.shape(leaf)
        if not shape or shape[0] == 0 or shape[0] != (num or shape[0]):
            wanted = f"{num} rows, one per member" if num else "one row per member"
            raise ValueError(
                f"hparams[{name!r}] has shape {shape}, expected {wanted}; stack the settings of all members"
            )
        num = shape[0]
    return num


def _check_members(layout: Layout, keys: Key, hparams: HParams) -> None:
    """Raise a `ValueError` unless there is a key for each member, and the mesh divides their number."""
    num = count(hparams)
    if jnp.shape(keys)[:1] != (num,):
        raise ValueError(
            f"keys has shape {jnp.shape(keys)}, expected ({num},), one for each member of hparams; "
            "pass jax.random.split(key, N)"
        )
    if num % layout.multiple:
        up = -(-num // layout.multiple) * layout.multiple
        raise ValueError(
            f"hparams has {num} members, expected a multiple of {layout.multiple}, the devices of the mesh; "
            f"pass {up}, or sharded(pad=True)"
        )
