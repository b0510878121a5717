"""Build the tuner that settings ask for, and refuse settings that cannot work."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from hypergrad import space as spaces
from hypergrad.core.abstract import abstract, program_of
from hypergrad.core.checks import check_kind, check_whole
from hypergrad.core.hoist import on_several_devices
from hypergrad.core.methods import StepCost
from hypergrad.core.types import Key, PyTree
from hypergrad.estimators import ESTIMATORS
from hypergrad.estimators.policies import RESPONSES
from hypergrad.populations import (
    Layout,
    Population,
    alike,
    count,
    layout_for,
    looped,
    make_population,
    partitioned,
    state_bytes,
    total_memory,
    widest_chunk,
)
from hypergrad.problem import Problem, Task, check_problem, fixed
from hypergrad.report.extras import check_extras
from hypergrad.schedulers import SCHEDULERS
from hypergrad.searchers import SEARCHERS, warm_start
from hypergrad.searchers.models.priors import in_units
from hypergrad.space import static
from hypergrad.train import init_state, step
from hypergrad.tuners import BILEVEL_METHODS, METHODS, TUNERS, Tuner, make_search, readers_of
from hypergrad.tuners.controller import CANDIDATES
from hypergrad.tuning.settings import Settings, scout_steps
from hypergrad.tuning.warm_start import held_trials, priors_of, read_trials, start_of
from hypergrad.validation import check_step, warn_blind


class TuneKeys(NamedTuple):
    """Keys of what a study does, all from its seed.

    Attributes:
        method: Key of the method.
        random: Key of the random search beside it.
        judge: Key of the fresh seeds on which configurations are judged.
        choose: Key of the seeds on which finalists are compared.
        scout: Key of the search before a descent.
    """

    method: Key
    random: Key
    judge: Key
    choose: Key
    scout: Key


def keys_of(settings: Settings) -> TuneKeys:
    """Return the keys of a study."""
    root = jax.random.key(settings.seed)
    method, random, judge, choose = jax.random.split(root, 4)
    return TuneKeys(method, random, judge, choose, jax.random.fold_in(root, 4))


NAMES: dict[str, Mapping[str, Any]] = {
    "method": METHODS,
    "estimator": ESTIMATORS,
    "bilevel": BILEVEL_METHODS,
    "scheduler": SCHEDULERS,
    "response": RESPONSES,
}
"""{setting: the names that it may have}."""


def as_task(task: Any, space: PyTree | None, horizon: int | None) -> Task:
    """Return a task as it is, and a problem with its space and horizon as a task without a test set."""
    own = {"space": space, "horizon": horizon}
    if isinstance(task, Problem):
        missing = [name for name, value in own.items() if value is None]
        if missing:
            raise ValueError(
                f"{missing[0]} is None, expected one with a Problem; pass tune(problem, space, horizon=100)"
            )
        return Task("problem", task, space, check_whole("horizon", horizon), None, "metric", False)
    check_kind("task", task, Task, "one that tasks/digits.py makes, or a hypergrad.Problem")
    given = [name for name, value in own.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} is given with a Task, which has its own; leave it out")
    return task


def task_of_study(task: Any, space: PyTree | None, described: dict[str, Any]) -> Task:
    """Return the task, or that of a problem, whose horizon is then the one at the study's start."""
    horizon = described.get("horizon")
    if not isinstance(task, Problem) or type(horizon) is not int:
        horizon = None
    return as_task(task, space, horizon)


def check_used(given: Collection[str], method: str, called: Callable[[str], str] = str) -> None:
    """Raise a `ValueError` for a setting that the method would not read.

    Args:
        given: Names of the settings that the user gave.
        method: Name of the method.
        called: Function from the name of a setting to the user's name for it.
    """
    for name in given:
        readers = readers_of(name)
        if readers and method not in readers:
            search = readers == list(SEARCHERS)
            wanted = "a search" if search else " or ".join(map(repr, readers))
            raise ValueError(
                f"{called(name)} is given with method {method!r}, which does not read it, expected {wanted}; "
                "leave it out, or choose another method"
            )
    if {"budget", "population", "generations"} <= set(given):
        raise ValueError(
            f"{called('budget')} is given with population and generations, expected two of the three, which "
            "make up the third; leave one out"
        )


def check_task(task: Task, settings: Settings) -> dict[str, ClosedJaxpr]:
    """Raise a `ValueError` if task and settings cannot work together, before anything compiles.

    Returns:
        The programs of the task's functions at the defaults of its space, by their names.
    """
    if settings.method == "prior" and not settings.prior:
        raise ValueError(
            "prior is None, expected what the method 'prior' draws trials from; pass e.g. "
            "--prior lr=1e-3, or prior={'lr': 1e-3}"
        )
    by_gradient = settings.method in TUNERS
    check_problem(task.problem)
    check_whole("horizon", task.horizon)
    spaces.check_space(
        task.space,
        real=settings.method in ("descent", "bilevel"),
        traceable=settings.method == "controller",
    )
    if settings.prior:
        in_units(spaces.dynamic(task.space), priors_of(settings))
    names = [] if by_gradient else static.static_names(task.space)
    if names:
        static.check_recordable(task.space)
    because = f"because space[{names[0]!r}] is static" if names else ""
    if names and settings.scheduler == "pb2":
        raise ValueError(
            f"scheduler is 'pb2', expected another {because}: a copy continues with weights that fit no other "
            "shape; choose 'pbt', whose copies keep their shape, or 'full'"
        )
    if names and settings.memory is not None:
        raise ValueError(
            f"memory is {settings.memory}, expected None {because}: what fits is found for one shape; "
            "pass chunk, the members side by side on each device"
        )
    pathwise = settings.method == "descent" and ESTIMATORS[settings.estimator].trusting
    found, programs = [], {}
    for hparams in static.corners(task.space):
        label, start = static.split(task.space, hparams)
        one, start = fixed(task, label), jax.tree.map(jax.numpy.asarray, start)
        seen = check_step(one.problem, start, pathwise=pathwise)
        found.append(seen)
        test = check_extras(one, jax.tree.map(np.asarray, start))
        programs = programs or _named(one, seen.programs, test)
    warn_blind(task, found)
    return programs


def _named(
    task: Task, found: dict[str, ClosedJaxpr], test: ClosedJaxpr | None
) -> dict[str, ClosedJaxpr]:
    """Name the programs of a task's functions as the user knows them."""
    programs = {f"problem.{name}": program for name, program in found.items()}
    if task.problem.train_set is not None:
        row, name = jax.ShapeDtypeStruct((1,), np.int32), "problem.train_set.at"
        programs[name] = abstract(name, task.problem.train_set.at, row, trace=program_of)[0]
    return programs if test is None else {**programs, "task.test": test}


def build(
    task: Task, settings: Settings, members: Population | None = None
) -> tuple[Tuner, StepCost]:
    """Build the tuner, and return the cost of one of its steps.

    Args:
        task: Task to tune.
        settings: Settings of the study.
        members: Population of a search; that of `members_of` where None.
    """
    if settings.method in TUNERS:
        left = settings._replace(budget=num_steps(settings))
        return TUNERS[settings.method].make(task, left, start_of(task, settings))
    return build_search(task, settings, members or members_of(task, settings))


def members_of(task: Task, settings: Settings) -> Population:
    """Build the population that trains for a study: its trials, its finalists and those that are judged.

    On a CPU one program, which compiles once, trains all of them, a chunk at a time (`looped`), and where
    shapes differ, too. Elsewhere a generation of a search is one program. The platform decides, not the size:
    the loop on the host costs a CPU some tenths of a millisecond for each chunk and call, a second of
    compilation pays for thousands of them, and a rule with the number of generations in it would give a study
    other bits when it is extended.
    """
    make = partial(make_population, layout=layout_of(task, settings), horizon=task.horizon)
    if static.static_names(task.space):
        return partitioned(task.problem, task.space, make)
    return make(task.problem)


def judges_of(task: Task, settings: Settings, members: Population) -> Population:
    """Return the population for any number of members: that of `members_of`, where it takes any."""
    if members.host or _divided(task):
        return members
    layout = looped(layout_of(task, settings).width or generations(settings)[1])
    return make_population(task.problem, layout, horizon=task.horizon)


def build_search(task: Task, settings: Settings, members: Population) -> tuple[Tuner, StepCost]:
    """Build the tuner of a search, and return the cost of a generation."""
    num_generations, size = generations(settings)
    num, told = num_generations * size, []
    if settings.warm_start is not None:
        found = read_trials(settings.warm_start, task.space)
        told.append(held_trials(found, task.space, settings.warm_start))
        num += len(told[0].values)
    space = spaces.dynamic(task.space)
    searcher = SEARCHERS[settings.method].make(space, num, size, priors_of(settings))
    searcher = warm_start(searcher, told) if told else searcher
    make = SCHEDULERS[settings.scheduler].make
    scheduler, trainings = make(task.problem, task.space, task.horizon, size)
    tuner = make_search(members, searcher, scheduler, size, task.space)

    def generation(key: Key) -> Any:
        keys = jax.random.split(key, size)
        hparams = jax.vmap(partial(spaces.sample, space))(keys)
        return scheduler(alike(task.problem, task.space), key, hparams)

    jax.eval_shape(generation, jax.random.key(0))  # may refuse, before a study begins
    counted = f"the steps of training of {size} trials under the scheduler {settings.scheduler!r}"
    return tuner, StepCost(float(trainings), counted)


def layout_of(task: Task, settings: Settings) -> Layout:
    """Return the layout of a study's members, which its shapes, devices and settings decide.

    Raises:
        ValueError: where the training states of a generation alone are larger than the memory, and for several
            devices where the problem divides its model over them itself.
    """
    by_gradient = settings.method in TUNERS
    shapes = bool(static.static_names(task.space))
    size = most_trials("random") if by_gradient else generations(settings)[1]
    each = 0 if shapes or by_gradient else state_bytes(task.problem, task.space)
    room = total_memory()
    if each * size > room:
        raise ValueError(
            f"population is {size}, whose training states take {each * size / 2**30:.3g} GB, expected less "
            f"than the {room / 2**30:.3g} GB of this machine; pass e.g. population="
            f"{max(1, room // (4 * each))}, and more generations"
        )
    devices, divided = settings.devices, _divided(task)
    if divided:
        if (devices or 1) > 1:
            raise ValueError(
                f"devices is {devices}, expected 1, because the problem divides its own model over devices, "
                "and members take turns on all of them; leave it out"
            )
        devices = 1
    # states that pass through the host's memory would lose their place on several devices
    once = not divided and (by_gradient or jax.default_backend() == "cpu")
    return layout_for(size, devices, settings.chunk, groups=shapes, one_program=once)


def _divided(task: Task) -> bool:
    """Tell whether the problem divides its model over several devices by itself."""
    if jax.device_count() == 1:
        return False
    label, _ = static.split(task.space, spaces.default(task.space))
    task = fixed(task, label)

    def first(key: Key) -> Any:
        hparams = spaces.sample(task.space, key)
        return step(task.problem, hparams, init_state(task.problem, key, hparams))

    return on_several_devices(program_of(first, jax.random.key(0))[0])


def within_memory(task: Task, settings: Settings) -> Settings:
    """Return the settings with the widest chunk of a search within its memory, where that is given."""
    if settings.method in TUNERS or settings.memory is None or settings.chunk is not None:
        return settings
    size = generations(settings)[1]
    num_devices = 1 if _divided(task) else settings.devices or len(jax.devices())
    keys = jax.random.split(jax.random.key(settings.seed), size)
    hparams = jax.vmap(lambda key: spaces.sample_constant(task.space, key))(keys)
    share = jax.tree.map(lambda x: x[: -(-size // num_devices)], hparams)
    most = layout_for(size, num_devices).width or count(share)
    chunk = widest_chunk(task.problem, share, settings.memory, most)
    return settings._replace(chunk=chunk)


def most_trials(method: str, scheduler: str = "full") -> int:
    """Return the largest generation of a search, where the population is not given.

    Each generation guides the next. Searches that model the objective use each trial better, and do better with
    more generations. Schedulers compare the trials of a generation.
    """
    return SEARCHERS[method].generation if scheduler == "full" else 16


def equal_generations(
    most: int, num_trials: int, size: int | None = None, num: int | None = None
) -> tuple[int, int]:
    """Cut trials into equal generations of at most `most`; return their number and size.

    In all, they have less than one more trial a generation.
    """
    if size is None:
        num = -(-num_trials // most) if num is None else num
        return num, -(-num_trials // num)
    return -(-num_trials // size) if num is None else num, size


def num_steps(settings: Settings) -> int:
    """Return the number of steps of the tuner."""
    if settings.method in TUNERS:
        return settings.budget - scout_steps(settings)
    return generations(settings)[0]


def generations(settings: Settings) -> tuple[int, int]:
    """Return the number of generations of a search, and their trials."""
    most = most_trials(settings.method, settings.scheduler)
    return equal_generations(most, settings.budget, settings.population, settings.generations)


def width(settings: Settings) -> int:
    """Return the number of trials that one compiled step makes side by side."""
    if settings.method == "controller":
        return CANDIDATES
    if settings.method in TUNERS:
        return settings.num_restarts
    return generations(settings)[1]
