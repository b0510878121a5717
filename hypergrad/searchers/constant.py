"""Schedules held constant over time, for searches that could not tell hundreds of steps apart."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.searchers.base import Searcher, check_outcome
from hypergrad.space import Sequence
from hypergrad.types import HParams, PyTree

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
        return _is_long(dim, most)

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


def is_held(space: PyTree, hparams: HParams, most: int = LIMITED) -> np.ndarray:
    """Tell which members have one value for all steps of every long schedule, `[N]`."""
    dims, leaves = jax.tree.leaves(space), jax.tree.leaves(hparams)
    held = np.ones(len(leaves[0]), bool)
    for dim, x in zip(dims, leaves, strict=True):
        if _is_long(dim, most):
            held &= np.all(np.asarray(x) == np.asarray(x)[:, :1], axis=tuple(range(1, np.ndim(x))))
    return held


def _is_long(dim: spaces.Dimension, most: int) -> bool:
    return isinstance(dim, Sequence) and dim.coordinates_shape[0] > most
