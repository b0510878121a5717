"""Tree-structured Parzen estimators: try what is likelier among good trials than among the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.checks import check_share, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded, observe
from hypergrad.searchers.models.memory import Memory, empty, remember
from hypergrad.searchers.models.parzen import Parzen, draw_parzen, log_parzen, parzen_around
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import directions, points, scramble
from hypergrad.searchers.prior import prior_first
from hypergrad.searchers.wrappers import held_constant
from hypergrad.space import Coordinates, coordinates, from_units

MAX_GOOD = 25
"""Largest number of trials in the density of the good ones."""


class TPEState(NamedTuple):
    """State of `tpe`.

    Attributes:
        memory: Trials of which the densities are made.
        vectors, shift: Scrambled Sobol sequence of the first trials.
        num_told: Trials told so far, int32.
    """

    memory: Memory
    vectors: Array
    shift: Array
    num_told: Array


def tpe(
    space: PyTree,
    capacity: int = 512,
    *,
    num_initial: int | None = None,
    share: float = 0.1,
    num_candidates: int = 64,
    multivariate: bool = True,
) -> Searcher:
    """Draw candidates from l, the density of the good trials, and keep the one with the highest l(x) / g(x).

    The best share γ of the n trials (at most 25) make l, the others g. Each density is the mean of kernels
    around its trials and of one uniform: normals cut to [0, 1], and for options 0.8 · 1{same} + 0.2 / K.
    `multivariate` kernels are products over all coordinates, 0.7 n^(-1 / (D + 4)) standard deviations of their
    n trials wide. Otherwise each coordinate is chosen by itself, and a kernel is as wide as the distance of its
    farther neighbour. Both are at least 1 / (n + 2) or 1 / 100 wide. A suggestion joins g at once with the
    narrowest kernel, so that the suggestions of one generation keep apart.

    **Cost:** O(num_candidates · n · D) a suggestion.

    **Limits:** at most `capacity` trials are remembered: the better half, and the newest others.

    Args:
        space: Pytree of traceable dimensions.
        capacity: Number of trials that are remembered, at least 4.
        num_initial: Number of scrambled Sobol trials before the densities are used; 2 D, from 8 to 20, where
            None.
        share: Share γ of the trials that are good.
        num_candidates: Number of draws from l for each suggestion (and coordinate).
        multivariate: Whether coordinates are judged together.

    Raises:
        ValueError: for an invalid space, and for settings out of range.

    Reference:
        Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, section 4 (independent
        kernels); Falkner, Klein, Hutter, "BOHB", ICML 2018 (joint ones, there of the width of Scott's rule;
        seven tenths of it left less regret in `benchmarks search_quality`).
    """
    capacity = check_whole("capacity", capacity, 4, example=512)
    num_candidates = check_whole("num_candidates", num_candidates, example=64)
    share = check_share("share", share, "(0, 1)", example=0.1)
    if num_initial is not None:
        num_initial = check_whole("num_initial", num_initial)
    coords = coordinates(space)
    begin = min(20, max(8, 2 * coords.num)) if num_initial is None else num_initial
    first = directions(coords.num)

    def init(key: Key) -> TPEState:
        sobol = scramble(key, first)
        return TPEState(empty(capacity, coords.num), *sobol, jnp.zeros((), jnp.int32))

    def tell(state: TPEState, trials: Trials) -> TPEState:
        memory = remember(state.memory, *observe(space, trials))
        told = jnp.minimum(state.num_told + len(trials.values), 2**30)
        return state._replace(memory=memory, num_told=told)

    def suggest(key: Key, state: TPEState, num: int) -> Array:
        """Return `num` suggestions in unit coordinates, each of which takes the earlier ones into account."""
        ell, g = densities(coords, state.memory, share, multivariate)
        g = _with_room(g, num)

        def one(g: Parzen, step: tuple[Key, Array]) -> tuple[Parzen, Array]:
            key, row = step
            x = draw_parzen(coords, key, ell, num_candidates, multivariate)
            log_ell = log_parzen(coords, ell, x, multivariate)
            ratio = log_ell - log_parzen(coords, g, x, multivariate)
            unit = x[jnp.argmax(ratio, 0), np.arange(coords.num)]
            return Parzen(g.units.at[row].set(unit), g.mask.at[row].set(True), g.width), unit

        steps = jax.random.split(key, num), capacity + jnp.arange(num)
        return jax.lax.scan(one, g, steps)[1]

    def ask(key: Key, state: TPEState, num: int) -> HParams:
        def beginning(key: Key, state: TPEState) -> Array:
            return points(state.vectors, state.shift, state.num_told, num)

        enough = state.memory.count >= min(begin, capacity)
        units = jax.lax.cond(enough, lambda k, s: suggest(k, s, num), beginning, key, state)
        return from_units(space, units)

    return guarded(space, Searcher(init, ask, tell))


def densities(
    coords: Coordinates, memory: Memory, share: float, joint: bool
) -> tuple[Parzen, Parzen]:
    """Return l and g, the densities of the good trials and of the others (Bergstra et al., equation 2)."""
    capacity = len(memory.scores)
    num_good = jnp.minimum(jnp.ceil(share * memory.count), MAX_GOOD)
    order = jnp.argsort(jnp.where(memory.filled, memory.scores, jnp.inf))
    rank = jnp.zeros(capacity, jnp.int32).at[order].set(jnp.arange(capacity, dtype=jnp.int32))
    good = memory.filled & (rank < num_good) & jnp.isfinite(memory.scores)
    others = memory.filled & ~good
    ell = parzen_around(coords, memory.units, good, joint)
    return ell, parzen_around(coords, memory.units, others, joint)


def _with_room(parzen: Parzen, num: int) -> Parzen:
    """Return a density with `num` more empty rows, whose kernels will be as narrow as the narrowest."""
    room = empty(num, parzen.units.shape[1])
    widths = jnp.broadcast_to(jnp.min(parzen.width, 0), room.units.shape)
    return Parzen(
        jnp.concatenate([parzen.units, room.units]),
        jnp.concatenate([parzen.mask, room.filled]),
        jnp.concatenate([parzen.width, widths]),
    )


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    capacity = min(512, max(16, num_trials))

    def make(space: PyTree) -> Searcher:
        return prior_first(tpe(space, capacity), space, prior, size)

    return held_constant(space, make)


TPE = Method(
    "tpe",
    "tree-structured Parzen estimators, multivariate",
    ("prior", "warm_start"),
    _make,
    generation=4,
)
