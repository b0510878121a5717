"""Differential evolution: trials made of differences between members of a population."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole, is_number
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, PyTree
from hypergrad.searchers.base import Searcher, observe
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import directions, points, scramble
from hypergrad.searchers.prior import prior_first
from hypergrad.searchers.wrappers import constant
from hypergrad.space import coordinates, from_units


class EvolutionState(NamedTuple):
    """State of `evolution`.

    Attributes:
        units: the members in unit coordinates, `[P, D]`.
        scores: theirs, `[P]`; infinite before the first, and where a trial failed.
        vectors, shift: of the Sobol sequence that the first members come from.
        count: trials told, int32.
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
    from x_i to the bound. An option, which has no differences, is that of x_b or x_r. The first
    `num_members` trials are scrambled Sobol points. With hyperband this is DEHB's search.

    **Cost:** O(num D) a generation.

    **Limits:** trial j of a generation stands for member (trials so far + j) mod P. Selection compares a
    member with a later trial: under new initial weights each time, a lucky value stays for long.

    Args:
        space: a pytree of traceable dimensions.
        num_members: P, at least 4.
        mutation: bounds of F, one draw a trial.
        crossover: probability of each coordinate to be the mutant's; one always is.
        best: share of the population that x_b is drawn from.

    Reference:
        Storn, Price, "Differential Evolution", J. Global Optim. 11, 1997; Zhang, Sanderson, "JADE:
        Adaptive Differential Evolution with Optional External Archive", IEEE TEC 13, 2009 (mutation,
        bounds); Awad, Mallik, Hutter, "DEHB", IJCAI 2021.
    """
    coords = coordinates(space)
    _check_settings(num_members, mutation, crossover, best)
    first = directions(coords.num)
    num_best = max(1, round(best * num_members))

    def init(key):
        dtype = jnp.result_type(float)
        units = jnp.full((num_members, coords.num), 0.5, dtype)
        scores = jnp.full(num_members, jnp.inf, dtype)
        return EvolutionState(units, scores, *scramble(key, first), jnp.zeros((), jnp.int32))

    def mutants(key, state, x):
        """Make a trial from each of the members x, `[num, D]`."""
        num = len(x)
        draws = jax.random.uniform(key, (num, 5 + 2 * coords.num), x.dtype)
        few, options, crossing = jnp.split(draws, (5, 5 + coords.num), axis=1)

        def whole(column, below):
            return jnp.floor(few[:, column] * below).astype(jnp.int32)

        units = state.units
        f = (mutation[0] + (mutation[1] - mutation[0]) * few[:, 0])[:, None]
        leader = units[jnp.argsort(state.scores)[whole(1, num_best)]]
        one = whole(2, num_members)
        other = (one + 1 + whole(3, num_members - 1)) % num_members
        v = x + f * (leader - x) + f * (units[one] - units[other])
        v = jnp.where(v < 0, x / 2, jnp.where(v > 1, (1 + x) / 2, v))
        v = jnp.where(coords.ordered, v, jnp.where(options < f, leader, units[one]))
        surely = jnp.arange(coords.num) == whole(4, coords.num)[:, None]
        return jnp.where((crossing < crossover) | surely, v, x)

    def ask(key, state, num):
        check_whole("num", num)
        trial = state.count + jnp.arange(num)
        made = mutants(key, state, state.units[trial % num_members])
        begin = points(state.vectors, state.shift, state.count, num)
        return from_units(space, jnp.where((trial < num_members)[:, None], begin, made))

    def tell(state, outcome):
        units, scores = observe(space, outcome)
        num = len(scores)
        target = (state.count + jnp.arange(num)) % num_members
        # several trials may stand for one member: its best, and the first of those, takes part
        lowest = jax.ops.segment_min(scores, target, num_members)
        is_lowest = scores == lowest[target]
        winner = jax.ops.segment_min(
            jnp.where(is_lowest, jnp.arange(num), num), target, num_members
        )
        told = winner < num
        better = told & (lowest <= state.scores)
        units = jnp.where(better[:, None], units[jnp.minimum(winner, num - 1)], state.units)
        scores = jnp.where(better, lowest, state.scores)
        # the count wraps long before it overflows, to the same members
        count = jnp.where(state.count > 2**30, num_members + state.count % num_members, state.count)
        return state._replace(units=units, scores=scores, count=count + num)

    return Searcher(init, ask, tell)


def _check_settings(num_members, mutation, crossover, best) -> None:
    check_whole("num_members", num_members)
    if num_members < 4:
        raise ValueError(
            f"num_members is {num_members}, expected at least 4, because a mutant is made of four; "
            "pass e.g. 32"
        )
    for name, share in (("crossover", crossover), ("best", best)):
        if not is_number(share) or not 0 <= share <= 1:
            raise ValueError(f"{name} is {share!r}, expected a share in [0, 1]; pass e.g. 0.9")
    if (
        not isinstance(mutation, tuple)
        or len(mutation) != 2
        or not 0 < mutation[0] <= mutation[1] <= 2
    ):
        raise ValueError(
            f"mutation is {mutation!r}, expected two bounds in (0, 2], the lower first; "
            "pass e.g. (0.4, 0.9)"
        )


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    def make(space):
        return prior_first(evolution(space, max(4, size)), space, prior, size)

    return constant(space, make)


EVOLUTION = Method("evolution", "differential evolution", ("prior", "warm_start"), _make)
