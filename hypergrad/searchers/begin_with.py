"""Searches whose first trials come from another searcher, such as a prior."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.checks import check_whole
from hypergrad.searchers.base import Searcher
from hypergrad.types import Array, PyTree


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
