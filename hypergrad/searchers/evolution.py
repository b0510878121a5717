"""Differential evolution: trials made of differences between members of a population."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.coordinates import coordinates, from_units
from hypergrad.problem import check_horizon
from hypergrad.quasirandom import directions, points, scramble
from hypergrad.searchers.base import Searcher, observe
from hypergrad.types import Array, PyTree


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

    def mutant(key, x, order, units):
        """Make one trial from member x `[D]`."""
        f_key, best_key, one_key, other_key, option_key, cross_key, one_at_least = jax.random.split(
            key, 7
        )
        f = jax.random.uniform(f_key, (), x.dtype, *mutation)
        leader = units[order[jax.random.randint(best_key, (), 0, num_best)]]
        one = jax.random.randint(one_key, (), 0, num_members)
        other = (one + jax.random.randint(other_key, (), 1, num_members)) % num_members
        v = x + f * (leader - x) + f * (units[one] - units[other])
        v = jnp.where(v < 0, x / 2, jnp.where(v > 1, (1 + x) / 2, v))
        option = jnp.where(jax.random.uniform(option_key, x.shape) < f, leader, units[one])
        v = jnp.where(coords.ordered, v, option)
        crossed = jax.random.bernoulli(cross_key, crossover, x.shape)
        crossed = crossed.at[jax.random.randint(one_at_least, (), 0, coords.num)].set(True)
        return jnp.where(crossed, v, x)

    def ask(key, state, num):
        trial = state.count + jnp.arange(num)
        order = jnp.argsort(state.scores)
        keys = jax.random.split(key, num)
        made = jax.vmap(lambda k, x: mutant(k, x, order, state.units))(
            keys, state.units[trial % num_members]
        )
        begin = points(state.vectors, state.shift, state.count, num)
        return from_units(space, jnp.where((trial < num_members)[:, None], begin, made))

    def tell(state, outcome):
        units, scores = observe(space, outcome)
        num = len(scores)
        target = (state.count + jnp.arange(num)) % num_members
        # several trials may stand for one member: its best, and the first of those, takes part
        lowest = jax.ops.segment_min(scores, target, num_members)
        is_lowest = scores == lowest[target]
        winner = jax.ops.segment_min(jnp.where(is_lowest, jnp.arange(num), num), target, num_members)
        told = winner < num
        better = told & (lowest <= state.scores)
        units = jnp.where(better[:, None], units[jnp.minimum(winner, num - 1)], state.units)
        scores = jnp.where(better, lowest, state.scores)
        # the count wraps long before it overflows, to the same members
        count = jnp.where(state.count > 2**30, num_members + state.count % num_members, state.count)
        return state._replace(units=units, scores=scores, count=count + num)

    return Searcher(init, ask, tell)


def _check_settings(num_members, mutation, crossover, best) -> None:
    check_horizon(num_members, "num_members")
    if num_members < 4:
        raise ValueError(
            f"num_members is {num_members}, expected at least 4, because a mutant is made of four; "
            "pass e.g. 32"
        )
    for name, share in (("crossover", crossover), ("best", best)):
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not number or not 0 <= share <= 1:
            raise ValueError(f"{name} is {share!r}, expected a share in [0, 1]; pass e.g. 0.9")
    if not isinstance(mutation, tuple) or len(mutation) != 2 or not 0 < mutation[0] <= mutation[1] <= 2:
        raise ValueError(
            f"mutation is {mutation!r}, expected two bounds in (0, 2], the lower first; "
            "pass e.g. (0.4, 0.9)"
        )
