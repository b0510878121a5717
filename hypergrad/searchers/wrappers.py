"""Searchers made of others: two in turn, long schedules held constant, earlier trials told first."""

from collections.abc import Callable, Sequence as Many
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, HParams, PyTree
from hypergrad.searchers.base import Searcher, Trials, check_outcome
from hypergrad.space import Sequence, static


class FirstThenState(NamedTuple):
    """State of `first_then`: those of both searchers, and the trials told, int32."""

    searcher: PyTree
    first: PyTree
    told: Array


def first_then(first: Searcher, searcher: Searcher, num: int) -> Searcher:
    """Ask `first` for the first `num` trials, and `searcher`, which is told of all of them, for the others.

    A generation comes from one of them: from `first` as long as fewer than `num` trials have been told.

    Args:
        first: a searcher, e.g. `prior(space, {"lr": Prior(1e-3)})`.
        searcher: another over the same space; the trials that it would begin with are left out.
        num: trials that `first` is asked for.

    Raises:
        ValueError: for a searcher that works on the host, and an invalid number.
    """
    check_whole("num", num)
    if searcher.host or first.host:
        raise ValueError(
            "searcher works on the host, expected two that can be traced; choose by hand which one to ask"
        )

    def init(key):
        keys = jax.random.split(key)
        return FirstThenState(searcher.init(keys[0]), first.init(keys[1]), jnp.zeros((), jnp.int32))

    def ask(key, state, size):
        return jax.lax.cond(
            state.told < num,
            lambda: first.ask(key, state.first, size),
            lambda: searcher.ask(key, state.searcher, size),
        )

    def tell(state, outcome):
        told = jnp.minimum(state.told + len(outcome.values), num)
        after = searcher.tell(state.searcher, outcome), first.tell(state.first, outcome)
        return FirstThenState(*after, told)

    return Searcher(init, ask, tell, lambda state: searcher.info(state.searcher))


LIMITED = 8
"""Most free steps of a schedule that is searched step by step."""


def constant(space: PyTree, make: Callable[[PyTree], Searcher], most: int = LIMITED) -> Searcher:
    """Search over a space whose long schedules have one value for all steps.

    Args:
        space: a pytree of dimensions without static ones.
        make: (space without long schedules) -> the searcher over it.
        most: free steps up to which a schedule is searched as it is; 0 holds every one constant.
    """
    spaces.check_space(space, traceable=True)

    def is_long(dim):
        return _is_long(dim, most)

    inner = make(jax.tree.map(lambda dim: dim.element if is_long(dim) else dim, space))

    def spread(dim, values):
        if not is_long(dim):
            return values
        return jnp.broadcast_to(values[:, None], (values.shape[0], *dim.shape))

    def ask(key, state, num):
        return jax.tree.map(spread, space, inner.ask(key, state, num))

    def tell(state, outcome):
        check_outcome(space, outcome)
        hparams = jax.tree.map(lambda d, x: x[:, 0] if is_long(d) else x, space, outcome.hparams)
        return inner.tell(state, outcome._replace(hparams=hparams))

    return Searcher(inner.init, ask, tell, inner.info, inner.host)


def is_held(space: PyTree, hparams: HParams, most: int = LIMITED) -> np.ndarray:
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
        searcher: any searcher over the space of those trials.
        trials: earlier generations, such as `Study.trials`, whose values were measured alike.
        space: the space of those trials, where it has static dimensions: their values are then those that the
            user named, as `tune` has them.

    Raises:
        ValueError: for anything but trials, and (from the searcher) for those of another space.
    """
    earlier = [_numbered(index, told, space) for index, told in enumerate(trials)]
    tell = searcher.tell if searcher.host else jax.jit(searcher.tell)

    def init(key):
        state = searcher.init(key)
        for told in earlier:
            state = tell(state, told)
        return state

    return searcher._replace(init=init)


def _numbered(index: int, told: Any, space: PyTree | None) -> Trials:
    """Return a generation of earlier trials with numbers for the static values that the user named."""
    if not isinstance(told, Trials):
        raise ValueError(
            f"trials[{index}] is {type(told).__name__}, expected Trials; pass e.g. study.trials"
        )
    if space is not None:
        told = told._replace(hparams=static.to_numbers(space, told.hparams))
    for name, leaf in tree.named(told.hparams).items():
        if np.asarray(leaf).dtype.kind == "U":
            raise ValueError(
                f"trials[{index}] has texts at {name!r}, expected numbers; pass the space, whose static "
                "dimension it is, too"
            )
    return told
