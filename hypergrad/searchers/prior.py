"""Search near the user's prior: independent trials from it."""

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_share
from hypergrad.core.methods import Method
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded
from hypergrad.searchers.models.distribution import distribution
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.wrappers import first_then, held_constant
from hypergrad.space import coordinates, from_units

LEAST_FIRST = 8
"""Number of first trials from a prior, where a searcher has no distribution that could begin with it."""


def prior(space: PyTree, prior: Priors, *, uniform: float = 0.25) -> Searcher:
    """Draw every trial from a prior: near its value where there is one, uniform elsewhere.

    x ~ (1 − uniform) · Π_d p_d(x_d) + uniform · U, with p_d a normal cut to the range (of the logarithm,
    for `LogReal`) or a table. The uniform share lets the search recover from a wrong prior.
    With halving or hyperband this is the prior part of PriorBand.

    Args:
        space: Pytree of traceable dimensions.
        prior: Dict {leaf name: `Prior(value, spread)`}.
        uniform: Share of trials that are drawn without the prior.

    Raises:
        ValueError: for a prior that does not fit the space, and a share outside [0, 1].

    Reference:
        Mallik et al., "PriorBand: Practical Hyperparameter Optimization in the Age of Deep Learning",
        NeurIPS 2023.
    """
    uniform = check_share("uniform", uniform, example=0.25)
    num_dims = coordinates(space).num
    with jax.numpy_rank_promotion("allow"):
        law = distribution(space, prior=prior, floor=0.0)

    def ask(key: Key, state: PyTree, num: int) -> HParams:
        draw_key, free_key = jax.random.split(key)
        uniforms = jax.random.uniform(draw_key, (num, num_dims), minval=1e-7)
        free = jax.random.bernoulli(free_key, uniform, (num, 1))
        near = law.transform(law.start, uniforms)
        return from_units(space, jnp.where(free, uniforms, near))

    def tell(state: PyTree, trials: Trials) -> PyTree:
        return state

    return guarded(space, Searcher(lambda key: (), ask, tell))


def prior_first(searcher: Searcher, space: PyTree, priors: Priors | None, size: int) -> Searcher:
    """Let the first generation, and at least 8 trials, come from a prior, where there is one."""
    if not priors:
        return searcher
    return first_then(prior(space, priors), searcher, max(size, LEAST_FIRST))


def _make(space: PyTree, num_trials: int, size: int, priors: Priors | None) -> Searcher:
    return held_constant(space, lambda space: prior(space, priors or {}))


PRIOR = Method(
    "prior", "trials near what --prior says, and a quarter of them anywhere", ("prior",), _make
)
