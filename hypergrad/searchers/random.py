"""Random search: the baseline that every other searcher has to beat."""

from collections.abc import Callable

import jax

from hypergrad import space as spaces
from hypergrad.core.methods import Method
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded
from hypergrad.searchers.models.priors import Priors


def random(space: PyTree, draw: Callable[[PyTree, Key], HParams] = spaces.sample) -> Searcher:
    """Draw every trial independently, uniform in unit coordinates.

    Args:
        space: Pytree of dimensions without static ones.
        draw: (space, key) -> hparams; `space.sample_constant` holds schedules constant over time.

    Reference:
        Bergstra, Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13, 2012.
    """
    spaces.check_space(space, traceable=True)

    def ask(key: Key, state: PyTree, num: int) -> HParams:
        return jax.vmap(lambda k: draw(space, k))(jax.random.split(key, num))

    def tell(state: PyTree, trials: Trials) -> PyTree:
        return state

    return guarded(space, Searcher(lambda key: (), ask, tell))


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    return random(space, spaces.sample_constant)


RANDOM = Method(
    "random",
    "random search over schedules held constant, every trial trained to the end",
    (),
    _make,
)
