"""Schedules held constant over time, for searches that could not tell hundreds of steps apart."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypergrad import space as spaces
from hypergrad.searchers.base import Searcher, check_outcome
from hypergrad.space import Sequence
from hypergrad.types import PyTree

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
        return isinstance(dim, Sequence) and dim.coordinates_shape[0] > most

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
