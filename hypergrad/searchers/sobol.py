"""Scrambled Sobol search: trials that fill the unit cube more evenly than independent ones."""

from typing import NamedTuple

import jax.numpy as jnp

from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import LOG_POINTS, directions, points, scramble
from hypergrad.searchers.wrappers import held_constant
from hypergrad.space import coordinates, from_units


class SobolState(NamedTuple):
    """State of `sobol`.

    Attributes:
        vectors, shift: Scrambled direction numbers, and the digital shift.
        count: Trials told so far, int32.
    """

    vectors: Array
    shift: Array
    count: Array


def sobol(space: PyTree) -> Searcher:
    """Walk along one scrambled Sobol sequence; each trial alone is uniform in unit coordinates.

    The key of `init` draws the scramble; that of `ask` is not used. A sequence has 2^20 points, and begins
    again after them. Generations whose size is a power of two keep all of its evenness.

    Args:
        space: Pytree of traceable dimensions, of at most 21,201 coordinates.

    Reference:
        Sobol, "On the distribution of points in a cube", USSR Comput. Math. 7, 1967; Joe, Kuo,
        "Constructing Sobol sequences with better two-dimensional projections", SIAM J. Sci. Comput. 30,
        2008 (direction numbers, as in scipy).
    """
    vectors = directions(coordinates(space).num)

    def init(key: Key) -> SobolState:
        return SobolState(*scramble(key, vectors), jnp.zeros((), jnp.int32))

    def ask(key: Key, state: SobolState, num: int) -> HParams:
        return from_units(space, points(state.vectors, state.shift, state.count, num))

    def tell(state: SobolState, trials: Trials) -> SobolState:
        count = (state.count + len(trials.values)) % 2**LOG_POINTS
        return state._replace(count=count)

    return guarded(space, Searcher(init, ask, tell))


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    return held_constant(space, sobol)


SOBOL = Method(
    "sobol",
    "a scrambled Sobol sequence, which fills the space more evenly than random trials",
    (),
    _make,
)
