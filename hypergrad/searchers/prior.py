"""Search by belief: independent trials near what the user holds to be good."""

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole, is_number
from hypergrad.core.types import PyTree
from hypergrad.searchers.base import Searcher, check_outcome
from hypergrad.searchers.beliefs import Beliefs
from hypergrad.searchers.models.distribution import distribution
from hypergrad.space import coordinates, from_units


def prior(space: PyTree, beliefs: Beliefs, *, uniform: float = 0.25) -> Searcher:
    """Draw every trial from a prior: near a belief where there is one, uniform elsewhere.

    x ~ (1 − uniform) · Π_d p_d(x_d) + uniform · U, with p_d a normal cut to the range (of the logarithm,
    for `LogReal`) or a table. The uniform share keeps a wrong belief from being the end of the search.
    With halving or hyperband this is the prior part of PriorBand.

    Args:
        space: a pytree of traceable dimensions.
        beliefs: {leaf name: `near(value, spread)`}.
        uniform: share of trials that are drawn without the beliefs.

    Raises:
        ValueError: for beliefs that are not of the space, and a share outside [0, 1].

    Reference:
        Mallik et al., "PriorBand: Practical Hyperparameter Optimization in the Age of Deep Learning",
        NeurIPS 2023.
    """
    if not is_number(uniform) or not 0 <= uniform <= 1:
        raise ValueError(f"uniform is {uniform!r}, expected a share in [0, 1]; pass e.g. 0.25")
    num_dims = coordinates(space).num
    believed = distribution(space, beliefs=beliefs, floor=0.0)

    def ask(key, state, num):
        check_whole("num", num)
        draw_key, free_key = jax.random.split(key)
        uniforms = jax.random.uniform(draw_key, (num, num_dims), minval=1e-7)
        free = jax.random.bernoulli(free_key, uniform, (num, 1))
        near = believed.transform(believed.start, uniforms)
        return from_units(space, jnp.where(free, uniforms, near))

    def tell(state, outcome):
        check_outcome(space, outcome)
        return state

    return Searcher(lambda key: (), ask, tell)
