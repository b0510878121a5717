"""Population search: a searcher times a scheduler."""

import jax

from hypergrad.layout import out_of_memory, traced
from hypergrad.population import Population
from hypergrad.problem import check_horizon
from hypergrad.schedulers.base import Scheduler
from hypergrad.searchers.base import Searcher
from hypergrad.tuners.base import Tuner


def search(population: Population, searcher: Searcher, scheduler: Scheduler, num: int) -> Tuner:
    """Ask for `num` trials, train them as the scheduler says, tell the searcher; one generation a step.

    A generation is one compiled program, which `lax.scan` can repeat. Where the population works on the
    host, or the device has run out of memory once, its parts are compiled by themselves.

    Args:
        population: how members are trained.
        searcher: what to try.
        scheduler: how to spend on it.
        num: trials a generation.
    """
    check_horizon(num, "num")
    ask = jax.jit(lambda key, state: searcher.ask(key, state, num))
    tell = jax.jit(searcher.tell)

    def parts(key, state):
        ask_key, train_key = jax.random.split(key)
        hparams = ask(ask_key, state)
        outcome = scheduler(population, train_key, hparams)
        state = tell(state, outcome)
        info = {**outcome.info, **searcher.info(state)}
        return population.whole((state, outcome._replace(info=info)))

    whole = jax.jit(parts)
    apart = population.host

    def step(key, state):
        nonlocal apart
        if apart:
            return parts(key, state)
        try:
            result = whole(key, state)
            return result if traced(result) else jax.block_until_ready(result)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            apart = True  # the population halves what it computes side by side, and says so
            return parts(key, state)

    return Tuner(searcher.init, step)
