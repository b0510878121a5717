"""Searches whose first trials come from another searcher, such as a prior."""

from collections.abc import Callable, Sequence as Many
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, HParams, PyTree
from hypergrad.searchers.base import Searcher, Trials, check_outcome
from hypergrad.space import Sequence, static


class BeginState(NamedTuple):
    """State of `begin_with`: those of both searchers, and the trials told, int32."""

    searcher: PyTree
    first: PyTree
    told: Array


def begin_with(searcher: Searcher, first: Searcher, num: int) -> Searcher:
    """Ask `first` for the first `num` trials, and `searcher`, which is told of all of them, for the others.

    A generation comes from one of them: from `first` as long as fewer than `num` trials have been told.

    Args:
        searcher: any searcher; what it would begin with itself is replaced.
        first: another over the same space, e.g. `prior(space, {"lr": near(1e-3)})`.
        num: trials.

    Raises:
        ValueError: for a searcher that works on the host, and a number that is none.
    """
    check_whole("num", num)
    if searcher.host or first.host:
        raise ValueError(
            "searcher works on the host, expected two that can be traced; choose by hand which one to ask"
        )

    def init(key):
        keys = jax.random.split(key)
        return BeginState(searcher.init(keys[0]), first.init(keys[1]), jnp.zeros((), jnp.int32))

    def ask(key, state, size):
        return jax.lax.cond(
            state.told < num,
            lambda: first.ask(key, state.first, size),
            lambda: searcher.ask(key, state.searcher, size),
        )

    def tell(state, outcome):
        told = jnp.minimum(state.told + len(outcome.values), num)
        after = searcher.tell(state.searcher, outcome), first.tell(state.first, outcome)
        return BeginState(*after, told)

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
    spaces.check_traceable(space)

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


def warm_start(searcher: Searcher, outcomes: Many[Trials], space: PyTree | None = None) -> Searcher:
    """Tell a searcher of earlier trials before it is asked for the first.

    Args:
        searcher: any searcher over the space of those trials.
        outcomes: what came of them, such as `Study.trials`; values that were measured alike.
        space: whose static dimensions have the values in the outcomes that the user named, as `tune` has
            them; None where there are none.

    Raises:
        ValueError: where an outcome is none, and (from the searcher) where it is of another space.
    """
    outcomes = list(outcomes)
    tell = searcher.tell if searcher.host else jax.jit(searcher.tell)
    for index, outcome in enumerate(outcomes):
        if not isinstance(outcome, Trials):
            raise ValueError(
                f"outcomes[{index}] is {type(outcome).__name__}, expected an Outcome; "
                "pass e.g. study.trials"
            )
        if space is not None:
            numbers = static.numbered(space, outcome.hparams)
            outcomes[index] = outcome._replace(hparams=numbers)
        for name, leaf in tree.named(outcomes[index].hparams).items():
            if np.asarray(leaf).dtype.kind == "U":
                raise ValueError(
                    f"outcomes[{index}] has texts at {name!r}, expected numbers; pass the space, whose "
                    "static dimension it is, too"
                )

    def init(key):
        state = searcher.init(key)
        for outcome in outcomes:
            state = tell(state, outcome)
        return state

    return searcher._replace(init=init)
