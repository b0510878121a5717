"""Population search: a searcher times a scheduler."""

from functools import partial

import jax

from hypergrad.layout import out_of_memory, traced
from hypergrad.population import Population
from hypergrad.problem import check_horizon
from hypergrad.schedulers.base import Scheduler
from hypergrad.searchers.base import Searcher
from hypergrad.tuners.base import Tuner


def search(population: Population, searcher: Searcher, scheduler: Scheduler, num: int) -> Tuner:
    """Ask for `num` trials, train them as the scheduler says, tell the searcher; one generation a step.

    A generation is one compiled program, which `lax.scan` can repeat. Where the searcher works on the host,
    it is the training alone. Where the population does, or the device has run out of memory once, its parts
    are compiled by themselves.

    Args:
        population: how members are trained.
        searcher: what to try.
        scheduler: how to spend on it.
        num: trials a generation.
    """
    check_horizon(num, "num")
    on_host = searcher.host

    def train(key, hparams):
        return scheduler(population, key, hparams)

    def ask(key, state):
        return searcher.ask(key, state, num)

    ask, tell = (ask, searcher.tell) if on_host else (jax.jit(ask), jax.jit(searcher.tell))

    def generation(key, state, train):
        ask_key, train_key = jax.random.split(key)
        outcome = train(train_key, ask(ask_key, state))
        state = tell(state, outcome)
        info = {**outcome.info, **searcher.info(state)}
        outcome = outcome._replace(info=info)
        return (state, outcome) if on_host else population.whole((state, outcome))

    def gathered(key, hparams):
        return population.whole(train(key, hparams))

    if on_host:
        whole = partial(generation, train=jax.jit(gathered))
    else:
        whole = jax.jit(partial(generation, train=train))
    parts = partial(generation, train=gathered if on_host else train)
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
