"""Population search: a searcher times a scheduler."""

from collections.abc import Callable
from functools import partial

import jax

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_function, check_kind, check_whole
from hypergrad.core.hoist import Compiled
from hypergrad.core.types import HParams, Key, PyTree
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
    """Ask for `num` trials, train them as the scheduler says, tell the searcher; one generation per step.

    A generation is one compiled program, which `lax.scan` can repeat. Where the searcher works on the host,
    it is the training alone. Where the population does, or the device has run out of memory once, its parts
    are compiled by themselves.

    Args:
        population: Population that trains the members.
        searcher: Searcher that suggests the trials.
        scheduler: Scheduler that spends training on them.
        num: Trials a generation.
        space: Space whose static dimensions have the user's values in trials, where the searcher is one of
            `space.dynamic(space)`; the searcher's values where None.
    """
    check_kind("population", population, Population, "population(problem)")
    check_kind("searcher", searcher, Searcher, "searchers.random(space)")
    check_function("scheduler", scheduler, "schedulers.full(100)")
    check_whole("num", num)
    return make_search(population, searcher, scheduler, num, space)


def make_search(
    population: Population, searcher: Searcher, scheduler: Scheduler, num: int, space: PyTree | None
) -> Tuner:
    """Build what `search` returns from arguments that have been checked."""
    on_host = searcher.host

    def train(key: Key, hparams: HParams) -> Trials:
        return scheduler(population, key, hparams)

    def ask(key: Key, state: PyTree) -> HParams:
        return searcher.ask(key, state, num)

    compiled: Callable = (lambda part: part) if on_host else partial(Compiled, brief=True)
    draw, tell, look = compiled(ask), compiled(searcher.tell), compiled(searcher.info)

    def generation(
        key: Key, state: PyTree, train: Callable[[Key, HParams], Trials]
    ) -> tuple[PyTree, Trials]:
        ask_key, train_key = jax.random.split(key)
        trials = train(train_key, draw(ask_key, state))
        state = tell(state, trials)
        trials = trials._replace(info={**trials.info, **look(state)})
        return (state, trials) if on_host else population.whole((state, trials))

    def gathered(key: Key, hparams: HParams) -> Trials:
        return population.whole(train(key, hparams))

    if on_host:
        whole = partial(generation, train=Compiled(gathered))
    else:
        whole = Compiled(partial(generation, train=train))
    parts = partial(generation, train=gathered if on_host else train)
    apart = population.host

    def step(key: Key, state: PyTree) -> tuple[PyTree, Trials]:
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

    def begin(key: Key, state: PyTree) -> tuple[PyTree, Trials]:
        return (parts if apart else whole)(key, state)

    # the old state stays, because a step that runs out of memory is taken again in its parts
    begun = None if on_host or apart else begin
    if space is None or not static.static_names(space):
        return Tuner(searcher.init, step, begun)

    def named(key: Key, state: PyTree) -> tuple[PyTree, Trials]:
        state, trials = step(key, state)
        return state, _named(space, trials)

    return Tuner(searcher.init, named, begun, partial(_named, space))


def _named(space: PyTree, trials: Trials) -> Trials:
    """Give static dimensions the user's values, also in the schedules that pbt notes."""
    hparams, info = static.to_options(space, trials.hparams), dict(trials.info)
    for name, dim in tree.named(space).items():
        noted = f"schedule.{name}"
        if noted in info:
            info[noted] = static.to_options(dim, info[noted])
    return trials._replace(hparams=hparams, info=info)
