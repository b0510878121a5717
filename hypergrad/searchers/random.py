"""Random search: the baseline that every other searcher has to beat."""

import jax

from hypergrad import space as spaces
from hypergrad.searchers.base import Searcher
from hypergrad.types import PyTree


def random(space: PyTree) -> Searcher:
    """Draw every trial independently, uniform in unit coordinates.

    Args:
        space: a pytree of dimensions without static ones.

    Reference:
        Bergstra, Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13, 2012.
    """
    spaces.check_traceable(space)

    def ask(key, state, num):
        return jax.vmap(lambda k: spaces.sample(space, k))(jax.random.split(key, num))

    return Searcher(lambda key: (), ask, lambda state, outcome: state)
