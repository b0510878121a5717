"""Population search: a searcher times a scheduler."""

import jax

from hypergrad.population import Population
from hypergrad.problem import check_horizon
from hypergrad.schedulers.base import Scheduler
from hypergrad.searchers.base import Searcher
from hypergrad.tuners.base import Tuner


def search(population: Population, searcher: Searcher, scheduler: Scheduler, num: int) -> Tuner:
    """Ask for `num` trials, train them as the scheduler says, tell the searcher; one generation a step.

    Args:
        population: how members are trained.
        searcher: what to try.
        scheduler: how to spend on it.
        num: trials a generation.
    """
    check_horizon(num, "num")

    @jax.jit
    def step(key, state):
        ask_key, train_key = jax.random.split(key)
        hparams = searcher.ask(ask_key, state, num)
        outcome = scheduler(population, train_key, hparams)
        state = searcher.tell(state, outcome)
        return state, outcome._replace(info={**outcome.info, **searcher.info(state)})

    return Tuner(searcher.init, step)
