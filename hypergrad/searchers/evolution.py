"""Differential evolution: trials made of differences between members of a population."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_share, check_whole, is_number
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded, observe
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import directions, points, scramble
from hypergrad.searchers.prior import prior_first
from hypergrad.searchers.wrappers import held_constant
from hypergrad.space import coordinates, from_units


class EvolutionState(NamedTuple):
    """State of `evolution`.

    Attributes:
        units: Members in unit coordinates, `[P, D]`.
        scores: Scores of the members, `[P]`; infinite before the first trial, and where a trial failed.
        vectors, shift: Scrambled Sobol sequence of the first members.
        count: Trials told so far, int32.
    """

    units: Array
    scores: Array
    vectors: Array
    shift: Array
    count: Array


def evolution(
    space: PyTree,
    num_members: int = 32,
    *,
    mutation: tuple[float, float] = (0.4, 0.9),
    crossover: float = 0.9,
    best: float = 0.15,
) -> Searcher:
    """Evolve a population by current-to-best mutation, binomial crossover and one-to-one selection.

    For member x_i, a member x_b of the best share of the population, and x_r, x_s at random, with F
    uniform in `mutation`,

    v = x_i + F (x_b − x_i) + F (x_r − x_s),   u_d = v_d with probability `crossover`, else x_{i,d},

    and u takes the place of x_i where its score is no worse. A coordinate that leaves [0, 1] goes half way
    from x_i to the bound. An option has no differences: it is that of x_b or x_r. The first
    `num_members` trials are scrambled Sobol points. With hyperband this is the search of DEHB.

    **Cost:** O(num D) a generation.

    **Limits:** trial j of a generation stands for member (trials so far + j) mod P. Selection compares a
    member with a later trial: with new initial weights each time, a lucky value stays for long.

    Args:
        space: Pytree of traceable dimensions.
        num_members: Size P of the population, at least 4.
        mutation: Bounds of F, which is drawn once for each trial.
        crossover: Probability that a coordinate is the mutant's; at least one always is.
        best: Share of the population from which x_b is drawn.

    Raises:
        ValueError: for an invalid space, and for settings out of range.

    Reference:
        Storn, Price, "Differential Evolution", J. Global Optim. 11, 1997; Zhang, Sanderson, "JADE:
        Adaptive Differential Evolution with Optional External Archive", IEEE TEC 13, 2009 (mutation,
        bounds); Awad, Mallik, Hutter, "DEHB", IJCAI 2021.
    """
    coords = coordinates(space)
    num_members = check_whole("num_members", num_members, 4, example=32)
    crossover = check_share("crossover", crossover, example=0.9)
    best = check_share("best", best, example=0.15)
    bounds = mutation if isinstance(mutation, tuple) and len(mutation) == 2 else (0, 0)
    if not all(map(is_number, bounds)) or not 0 < bounds[0] <= bounds[1] <= 2:
        raise ValueError(
            f"mutation is {mutation!r:.80}, expected two bounds in (0, 2], the lower first; pass (0.4, 0.9)"
        )
    first = directions(coords.num)
    num_best = max(1, round(best * num_members))

    def init(key: Key) -> EvolutionState:
        dtype = jnp.result_type(float)
        units = jnp.full((num_members, coords.num), 0.5, dtype)
        scores = jnp.full(num_members, jnp.inf, dtype)
        return EvolutionState(units, scores, *scramble(key, first), jnp.zeros((), jnp.int32))

    def mutants(key: Key, state: EvolutionState, x: Array) -> Array:
        """Make a trial from each of the members x, `[num, D]`."""
        draws = jax.random.uniform(key, (len(x), 5 + 2 * coords.num), x.dtype)
        few, options, crossing = jnp.split(draws, (5, 5 + coords.num), axis=1)

        def whole(column: int, below: int) -> Array:
            return jnp.floor(few[:, column] * below).astype(jnp.int32)

        units = state.units
        f = (mutation[0] + (mutation[1] - mutation[0]) * few[:, 0])[:, None]
        x_b = units[jnp.argsort(state.scores)[whole(1, num_best)]]
        r = whole(2, num_members)
        s = (r + 1 + whole(3, num_members - 1)) % num_members
        v = x + f * (x_b - x) + f * (units[r] - units[s])
        v = jnp.where(v < 0, x / 2, jnp.where(v > 1, (1 + x) / 2, v))
        v = jnp.where(coords.ordered, v, jnp.where(options < f, x_b, units[r]))
        surely = jnp.arange(coords.num) == whole(4, coords.num)[:, None]
        return jnp.where((crossing < crossover) | surely, v, x)

    def ask(key: Key, state: EvolutionState, num: int) -> HParams:
        trial = state.count + jnp.arange(num)
        u = mutants(key, state, state.units[trial % num_members])
        begin = points(state.vectors, state.shift, state.count, num)
        return from_units(space, jnp.where((trial < num_members)[:, None], begin, u))

    def tell(state: EvolutionState, trials: Trials) -> EvolutionState:
        return _select(state, *observe(space, trials))

    return guarded(space, Searcher(init, ask, tell))


def _select(state: EvolutionState, u: Array, scores: Array) -> EvolutionState:
    """Let each trial u, `[N, D]`, take the place of its member, where it is no worse."""
    num, num_members = len(scores), len(state.scores)
    target = (state.count + jnp.arange(num)) % num_members
    # several trials may stand for one member: the best of them competes, and the first of equals
    lowest = jax.ops.segment_min(scores, target, num_members)
    is_lowest = scores == lowest[target]
    place = jnp.where(is_lowest, jnp.arange(num), num)
    winner = jax.ops.segment_min(place, target, num_members)
    better = (winner < num) & (lowest <= state.scores)
    units = jnp.where(better[:, None], u[jnp.minimum(winner, num - 1)], state.units)
    scores = jnp.where(better, lowest, state.scores)
    # the count wraps long before it overflows, to the same members
    count = jnp.where(state.count > 2**30, num_members + state.count % num_members, state.count)
    return state._replace(units=units, scores=scores, count=count + num)


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    def make(space: PyTree) -> Searcher:
        return prior_first(evolution(space, max(4, size)), space, prior, size)

    return held_constant(space, make)


EVOLUTION = Method("evolution", "differential evolution", ("prior", "warm_start"), _make)
