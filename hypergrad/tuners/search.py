"""Population search: a searcher times a scheduler."""

from functools import partial
from typing import Any

import jax

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_whole
from hypergrad.core.types import PyTree
from hypergrad.populations import Population, out_of_memory
from hypergrad.schedulers import Scheduler
from hypergrad.searchers import Searcher, Trials
from hypergrad.space import static
from hypergrad.tuners.base import Tuner


def search(
    population: Population,
    searcher: Searcher,
    scheduler: Scheduler,
    num: int,
    *,
    space: PyTree | None = None,
) -> Tuner:
    """Ask for `num` trials, train them as the scheduler says, tell the searcher; one generation a step.

    A generation is one compiled program, which `lax.scan` can repeat. Where the searcher works on the host,
    it is the training alone. Where the population does, or the device has run out of memory once, its parts
    are compiled by themselves.

    Args:
        population: how members are trained.
        searcher: what to try.
        scheduler: how to spend on it.
        num: trials a generation.
        space: whose static dimensions have the values in outcomes that the user named, where the searcher
            is of `space.dynamic(space)`; as the searcher has them where None.
    """
    _check_parts(population, searcher, scheduler)
    check_whole("num", num)
    return make_search(population, searcher, scheduler, num, space)


def make_search(
    population: Population, searcher: Searcher, scheduler: Scheduler, num: int, space: PyTree | None
) -> Tuner:
    """Build what `search` returns, of arguments that have been checked."""
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

    if space is None or not static.static_names(space):
        return Tuner(searcher.init, step)

    def named(key, state):
        state, outcome = step(key, state)
        return state, _named(space, outcome)

    return Tuner(searcher.init, named)


def _check_parts(population: Any, searcher: Any, scheduler: Any) -> None:
    """Raise a `ValueError` for the first argument that is of another kind."""
    parts = (
        ("population", population, isinstance(population, Population), "population(problem)"),
        ("searcher", searcher, isinstance(searcher, Searcher), "searchers.random(space)"),
        ("scheduler", scheduler, callable(scheduler), "schedulers.full(100)"),
    )
    for name, value, good, example in parts:
        if not good:
            raise ValueError(
                f"{name} is {type(value).__name__}, expected a {name}; pass e.g. {example}"
            )


def _named(space: PyTree, outcome: Trials) -> Trials:
    """Give static dimensions the values that the user named, in the schedules that pbt notes, too."""
    hparams, info = static.to_options(space, outcome.hparams), dict(outcome.info)
    for name, dim in tree.named(space).items():
        noted = f"schedule.{name}"
        if noted in info:
            info[noted] = static.to_options(dim, info[noted])
    return outcome._replace(hparams=hparams, info=info)
