"""Searchers made of others: two in turn, long schedules held constant, earlier trials told first."""

from collections.abc import Callable, Sequence as Many
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_whole
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, check_trials
from hypergrad.space import Sequence, static

MAX_FREE = 8
"""Largest number of free steps of a schedule that is searched step by step."""


class FirstThenState(NamedTuple):
    """State of `first_then`: the states of both searchers, and the number of trials told so far, int32."""

    searcher: PyTree
    first: PyTree
    num_told: Array


def first_then(first: Searcher, searcher: Searcher, num: int) -> Searcher:
    """Ask `first` for the first `num` trials, and `searcher`, which is told of all of them, for the others.

    A generation comes from one of them: from `first` as long as fewer than `num` trials have been told.

    Args:
        first: Searcher, e.g. `prior(space, {"lr": Prior(1e-3)})`.
        searcher: Another searcher over the same space; its own first trials are left out.
        num: Number of trials from `first`.

    Raises:
        ValueError: for a searcher that works on the host, and an invalid number.
    """
    num = check_whole("num", num)
    if searcher.host or first.host:
        raise ValueError(
            "searcher works on the host, expected two that can be traced; choose by hand which one to ask"
        )

    def init(key: Key) -> FirstThenState:
        keys = jax.random.split(key)
        return FirstThenState(searcher.init(keys[0]), first.init(keys[1]), jnp.zeros((), jnp.int32))

    def ask(key: Key, state: FirstThenState, size: int) -> HParams:
        return jax.lax.cond(
            state.num_told < num,
            lambda: first.ask(key, state.first, size),
            lambda: searcher.ask(key, state.searcher, size),
        )

    def tell(state: FirstThenState, trials: Trials) -> FirstThenState:
        told = jnp.minimum(state.num_told + len(trials.values), num)
        after = searcher.tell(state.searcher, trials), first.tell(state.first, trials)
        return FirstThenState(*after, told)

    return Searcher(init, ask, tell, lambda state: searcher.info(state.searcher))


def held_constant(
    space: PyTree, make: Callable[[PyTree], Searcher], most: int = MAX_FREE
) -> Searcher:
    """Search over a space whose long schedules have one value for all steps.

    Args:
        space: Pytree of dimensions without static ones.
        make: (space without long schedules) -> the searcher over it.
        most: Free steps up to which a schedule is searched as it is; 0 holds every schedule constant.
    """

    def is_long(dim: Any) -> bool:
        return _is_long(dim, most)

    if not any(map(is_long, jax.tree.leaves(space))):
        return make(space)
    inner = make(jax.tree.map(lambda dim: dim.element if is_long(dim) else dim, space))

    def spread(dim: Any, values: Array) -> Array:
        if not is_long(dim):
            return values
        return jnp.broadcast_to(values[:, None], (values.shape[0], *dim.shape))

    def ask(key: Key, state: PyTree, num: int) -> HParams:
        return jax.tree.map(spread, space, inner.ask(key, state, num))

    def tell(state: PyTree, trials: Trials) -> PyTree:
        check_trials(space, trials)
        hparams = jax.tree.map(lambda d, x: x[:, 0] if is_long(d) else x, space, trials.hparams)
        return inner.tell(state, trials._replace(hparams=hparams))

    return Searcher(inner.init, ask, tell, inner.info, inner.host)


def is_held(space: PyTree, hparams: HParams, most: int = MAX_FREE) -> np.ndarray:
    """Tell which members have one value for all steps of every long schedule, `[N]`."""
    dims, leaves = jax.tree.leaves(space), jax.tree.leaves(hparams)
    held = np.ones(len(leaves[0]), bool)
    for dim, x in zip(dims, leaves, strict=True):
        if _is_long(dim, most):
            held &= np.all(np.asarray(x) == np.asarray(x)[:, :1], axis=tuple(range(1, np.ndim(x))))
    return held


def _is_long(dim: spaces.Dimension, most: int) -> bool:
    return isinstance(dim, Sequence) and dim.coordinates_shape[0] > most


def warm_start(searcher: Searcher, trials: Many[Trials], space: PyTree | None = None) -> Searcher:
    """Tell a searcher of earlier trials before it is asked for the first.

    Args:
        searcher: Any searcher over the space of those trials.
        trials: Earlier generations, such as `Study.trials`, whose values were measured in the same way.
        space: Space of those trials, where it has static dimensions: their values are then those that the
            user named, as `tune` has them.

    Raises:
        ValueError: for anything but trials, and (from the searcher) for trials of another space.
    """
    earlier = [_numbered(f"trials[{i}]", told, space) for i, told in enumerate(trials)]
    tell = searcher.tell if searcher.host else jax.jit(searcher.tell)

    def init(key: Key) -> PyTree:
        state = searcher.init(key)
        for told in earlier:
            state = tell(state, told)
        return state

    return searcher._replace(init=init)


def _numbered(called: str, told: Any, space: PyTree | None) -> Trials:
    """Return a generation of earlier trials with numbers for the static values that the user named."""
    check_kind(called, told, Trials, "study.trials")
    if space is not None:
        told = told._replace(hparams=static.to_numbers(space, told.hparams))
    for name, leaf in tree.named(told.hparams).items():
        if np.asarray(leaf).dtype.kind == "U":
            raise ValueError(
                f"{called} has texts at {name!r}, expected numbers; pass its space, too"
            )
    return told
