"""Tree-structured Parzen estimators: try what is likelier among good trials than among the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.checks import check_whole, is_number
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, PyTree
from hypergrad.searchers.base import Searcher, observe
from hypergrad.searchers.models import truncnorm
from hypergrad.searchers.models.memory import Memory, check_capacity, empty, remember
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import directions, points, scramble
from hypergrad.searchers.prior import prior_first
from hypergrad.searchers.wrappers import constant
from hypergrad.space import coordinates, from_units, snap

OTHER = 0.2
"""Probability that a kernel around an option gives to all options alike."""

SHARE_OF_SCOTT = 0.7
"""Width of a joint kernel over that of Scott's rule, n^(-1 / (D + 4)) standard deviations."""


class TPEState(NamedTuple):
    """State of `tpe`.

    Attributes:
        history: the trials the densities are made of.
        vectors, shift: of the Sobol sequence that the first trials come from.
        told: trials told so far, int32.
    """

    history: Memory
    vectors: Array
    shift: Array
    told: Array


class Parzen(NamedTuple):
    """A mixture of kernels around n rows, of which some are empty, and of the uniform distribution.

    Attributes:
        units: centres, `[n, D]`.
        mask: which rows hold one, `[n]`.
        width: bandwidths, `[n, D]`.
    """

    units: Array
    mask: Array
    width: Array


def tpe(
    space: PyTree,
    capacity: int = 512,
    *,
    num_initial: int | None = None,
    share: float = 0.1,
    num_candidates: int = 64,
    multivariate: bool = True,
) -> Searcher:
    """Draw candidates from l, the density of the good trials, and keep the one with the highest l / g.

    The best `share` of the n trials (at most 25) make l, the others g. Each density is the mean of kernels
    around its trials and of one uniform: normals cut to [0, 1], and for options 0.8 · 1{same} + 0.2 / K.
    `multivariate` kernels are products over all coordinates, 0.7 n^(-1 / (D + 4)) standard deviations of their
    n trials wide. Otherwise each coordinate has a choice of its own, and a kernel is as wide as the farther
    neighbour is away. Both are at least 1 / (n + 2) or 1 / 100 wide. A suggestion joins g at once, as narrow as
    any, so that those of one generation keep apart.

    **Cost:** O(num_candidates · n · D) a suggestion.

    **Limits:** at most `capacity` trials are remembered: the better half, and the newest others.

    Args:
        space: a pytree of traceable dimensions.
        capacity: trials that are remembered.
        num_initial: scrambled Sobol trials before the densities are used; 2 D, from 8 to 20, where None.
        share: of the trials that are good.
        num_candidates: draws from l for each suggestion (and coordinate).
        multivariate: whether coordinates are judged together.

    Reference:
        Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (independent kernels);
        Falkner, Klein, Hutter, "BOHB", ICML 2018 (joint ones, there of the width of Scott's rule; seven tenths
        of it left less regret in `benchmarks search_quality`).
    """
    coords = coordinates(space)
    check_capacity(capacity)
    begin = min(20, max(8, 2 * coords.num)) if num_initial is None else num_initial
    check_whole("num_initial", begin)
    check_whole("num_candidates", num_candidates)
    if not is_number(share) or not 0 < share < 1:
        raise ValueError(f"share is {share!r}, expected a share in (0, 1); pass e.g. 0.1")
    first = directions(coords.num)
    options = ~coords.ordered
    # a kernel narrower than a cell could not leave it
    narrowest = np.where(coords.levels > 0, 0.5 / np.maximum(coords.levels, 1), 1e-3)

    def init(key):
        sobol = scramble(key, first)
        return TPEState(empty(capacity, coords.num), *sobol, jnp.zeros((), jnp.int32))

    def tell(state, outcome):
        history = remember(state.history, *observe(space, outcome))
        told = jnp.minimum(state.told + len(outcome.values), 2**30)
        return state._replace(history=history, told=told)

    def joint_widths(units, mask, num):
        """Return Scott's rule with the spread of each coordinate; 0 for one trial alone."""
        spread = jnp.where(num > 1, jnp.std(units, 0, where=mask[:, None], ddof=1), 0)
        scott = spread * jnp.maximum(num, 1) ** (-1 / (coords.num + 4))
        return jnp.broadcast_to(SHARE_OF_SCOTT * scott, units.shape)

    def neighbours(units, mask, num):
        """Return how far the farther neighbour of each row is away; one trial alone has the bounds."""
        order = jnp.argsort(jnp.where(mask[:, None], units, jnp.inf), axis=0)
        gaps = jnp.diff(jnp.take_along_axis(units, order, 0), axis=0)
        gaps = jnp.where(jnp.arange(1, len(units))[:, None] < num, gaps, 0)
        farther = jnp.maximum(jnp.pad(gaps, ((1, 0), (0, 0))), jnp.pad(gaps, ((0, 1), (0, 0))))
        width = jnp.zeros_like(units).at[order, np.arange(coords.num)].set(farther)
        return jnp.where(num > 1, width, jnp.maximum(units, 1 - units))

    def estimate(units, mask):
        """Build the density around the rows of a mask."""
        num = jnp.sum(mask, dtype=units.dtype)
        width = (joint_widths if multivariate else neighbours)(units, mask, num)
        # more may agree by chance
        least = jnp.maximum(narrowest, 1 / jnp.minimum(100, 2 + num))
        return Parzen(units, mask, jnp.clip(width, least, 1))

    def log_density(parzen, x):
        """Return the log-density at x `[M, D]`: of each coordinate `[M, D]`, or of all, `[M, 1]`."""
        kernels = truncnorm.log_density(x[:, None], parzen.units, parzen.width)
        same = jnp.abs(x[:, None] - parzen.units) < 1e-4
        levels = np.maximum(coords.levels, 1)
        chance = jnp.where(same, 1 - OTHER + OTHER / levels, OTHER / levels)
        # densities over [0, 1]: an option takes up 1 / K of it
        kernels = jnp.where(options, jnp.log(chance * levels), kernels)
        if multivariate:
            kernels = jnp.sum(kernels, -1, keepdims=True)
        kernels = jnp.where(parzen.mask[:, None], kernels, -jnp.inf)
        uniform = jnp.zeros_like(kernels[:, :1])
        total = jax.nn.logsumexp(jnp.concatenate([kernels, uniform], 1), axis=1)
        return total - jnp.log(jnp.sum(parzen.mask) + 1.0)

    def draw(key, parzen):
        """Draw candidates `[num_candidates, D]` from a density."""
        which_key, value_key, option_key, free_key = jax.random.split(key, 4)
        shape = (num_candidates, coords.num)
        odds = jnp.append(jnp.where(parzen.mask, 0.0, -jnp.inf), 0.0)
        which_shape = (num_candidates, 1) if multivariate else shape
        which = jax.random.categorical(which_key, odds, shape=which_shape)
        free = which == len(parzen.mask)
        row = jnp.minimum(which, len(parzen.mask) - 1), np.arange(coords.num)
        centre, width = parzen.units[row], parzen.width[row]
        uniform = jax.random.uniform(value_key, shape, centre.dtype, minval=1e-6)
        other = jax.random.bernoulli(option_key, OTHER, shape)
        near = jnp.where(
            options,
            jnp.where(other, uniform, centre),
            truncnorm.quantile(uniform, centre, width),
        )
        anywhere = jax.random.uniform(free_key, shape, centre.dtype)
        return snap(coords.levels, jnp.where(free, anywhere, near))

    def suggest(key, state, num):
        history = state.history
        num_good = jnp.minimum(jnp.ceil(share * history.count), 25)
        order = jnp.argsort(jnp.where(history.filled, history.scores, jnp.inf))
        rank = jnp.zeros(capacity, jnp.int32).at[order].set(jnp.arange(capacity, dtype=jnp.int32))
        good = history.filled & (rank < num_good) & jnp.isfinite(history.scores)
        best = estimate(history.units, good)
        rest = estimate(history.units, history.filled & ~good)
        room = empty(num, coords.num)
        widths = jnp.broadcast_to(jnp.min(rest.width, 0), room.units.shape)
        rest = Parzen(
            jnp.concatenate([rest.units, room.units]),
            jnp.concatenate([rest.mask, room.filled]),
            jnp.concatenate([rest.width, widths]),
        )

        def one(rest, step):
            key, row = step
            x = draw(key, best)
            winner = jnp.argmax(log_density(best, x) - log_density(rest, x), 0)
            unit = x[winner, np.arange(coords.num)]
            rest = Parzen(rest.units.at[row].set(unit), rest.mask.at[row].set(True), rest.width)
            return rest, unit

        steps = jax.random.split(key, num), capacity + jnp.arange(num)
        return jax.lax.scan(one, rest, steps)[1]

    def ask(key, state, num):
        check_whole("num", num)

        def beginning(key, state):
            return points(state.vectors, state.shift, state.told, num)

        enough = state.history.count >= min(begin, capacity)
        units = jax.lax.cond(enough, lambda k, s: suggest(k, s, num), beginning, key, state)
        return from_units(space, units)

    return Searcher(init, ask, tell)


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    capacity = min(512, max(16, num_trials))

    def make(space):
        return prior_first(tpe(space, capacity), space, prior, size)

    return constant(space, make)


TPE = Method(
    "tpe",
    "tree-structured Parzen estimators, multivariate",
    ("prior", "warm_start"),
    _make,
    generation=4,
)
