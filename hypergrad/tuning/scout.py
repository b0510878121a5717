"""The scout: a search from whose best trials a descent starts; it holds long schedules constant."""

import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from hypergrad.core.methods import StepCost
from hypergrad.core.types import HParams, Key
from hypergrad.estimators import ONLINE
from hypergrad.populations import Population
from hypergrad.problem import Task
from hypergrad.searchers import Trials
from hypergrad.searchers.cross_entropy import CROSS_ENTROPY
from hypergrad.study import StudyWarning
from hypergrad.tuners import Tuner
from hypergrad.tuning.build import build, equal_generations, judges_of, keys_of
from hypergrad.tuning.finalists import best_trials, objectives
from hypergrad.tuning.settings import Settings, scout_steps
from hypergrad.tuning.warm_start import read_trials

SCOUT_METHOD = CROSS_ENTROPY.name
"""Search of a scout. On digits it found the best starts and the least bad ones, of five searches."""

GENERATION = 16
"""Most trials of one of its generations."""

SEEDS = 2
"""Trainings of each finalist, as a multiple of those of other choices: with as many as there the luckiest won,
at the edge of stability, and its start was bad in one study of ten."""

SCOUT_SHARE = 0.3
"""Share of the budget of a descent that its scout takes, where the descent is long enough."""

LEAST_BUDGET = 20
"""Steps of a descent from which on it has a scout, unless told otherwise."""


class Scout(NamedTuple):
    """A scout to send.

    Attributes:
        settings: Settings of its search.
        num_finalists: Trials that are trained again before the starts are chosen.
        num_seeds: Trainings of each of them.
        trainings: Number of trainings in all.
    """

    settings: Settings
    num_finalists: int
    num_seeds: int
    trainings: float


def with_share(settings: Settings) -> Settings:
    """Return the settings with the share of the scout that they mean.

    A descent that is told where to start, is short, or trains on from step to step, has none of its own accord.

    Raises:
        ValueError: where the scout would leave no step to the descent.
    """
    if scout_steps(settings) >= settings.budget:
        raise ValueError(
            f"scout is {settings.scout:g} of a budget of {settings.budget}, expected a step to be left for the "
            "descent; pass a larger budget, or scout=0"
        )
    if settings.scout is not None or settings.method != "descent":
        return settings
    told = settings.warm_start is not None or bool(settings.prior)
    long = settings.budget >= LEAST_BUDGET and settings.estimator not in ONLINE
    return settings._replace(scout=SCOUT_SHARE if long and not told else 0.0)


def is_too_small(settings: Settings, cost: StepCost) -> bool:
    """Tell whether the share of a scout does not even pay for two trials for each training of one finalist."""
    return scout_steps(settings) * cost.trainings < 3 * _seeds_of(settings)


def scout_of(settings: Settings, cost: StepCost) -> Scout | None:
    """Return the scout that settings ask for; None where they ask for none.

    Raises:
        ValueError: where its share of the budget is too small.
    """
    if not settings.scout:
        return None
    trainings, num_seeds = scout_steps(settings) * cost.trainings, _seeds_of(settings)
    if is_too_small(settings, cost):
        raise ValueError(
            f"scout is {settings.scout:g} of a budget of {settings.budget}, that is {trainings:.3g} trainings, "
            f"expected at least {3 * num_seeds} and a step to descend; pass a larger budget, or scout=0"
        )
    num_finalists = min(8, int(trainings / (3 * num_seeds)))
    num_trials = int(trainings) - num_finalists * num_seeds
    generations, size = equal_generations(GENERATION, num_trials)
    search = Settings(
        SCOUT_METHOD,
        population=size,
        generations=generations,
        devices=settings.devices,
        chunk=settings.chunk,
        seed=settings.seed,
    )
    spent = generations * size + num_finalists * num_seeds
    return Scout(search, num_finalists, num_seeds, float(spent))


def _seeds_of(settings: Settings) -> int:
    return SEEDS * max(settings.num_seeds, 4)


def starts_of(
    task: Task, members: Population, scout: Scout, told: list[Trials], num: int, key: Key
) -> HParams | None:
    """Return the `num` best settings of a scout's search, `[num, ...]`, trained again on fresh seeds.

    They are None, with a warning, where no trial had a finite objective.
    """
    candidates = best_trials(told, scout.num_finalists)
    if not candidates:
        warnings.warn(
            f"no objective of the scout's {sum(len(t.values) for t in told)} trials is finite, expected some; "
            "the descent starts at the defaults; narrow the space",
            StudyWarning,
            stacklevel=3,
        )
        return None
    seeds = jax.random.split(key, scout.num_seeds)
    values = objectives(task, members, candidates, seeds).mean(1)
    order = np.argsort(values, kind="stable")[: max(1, np.isfinite(values).sum())]
    # again from the best where there are fewer
    taken = [candidates[i] for i in np.resize(order, num)]
    return jax.tree.map(lambda *xs: np.stack(xs), *taken)


def start_at(tuner: Tuner, starts: HParams | None) -> Tuner:
    """Return a descent that starts there; as it was where there are no starts."""
    begin = tuner.init_at
    if starts is None or begin is None:
        return tuner
    return tuner._replace(init=lambda key: begin(key, starts))


def tuner_of_study(task: Task, settings: Settings, members: Population, directory: Path) -> Tuner:
    """Build the tuner of a study on disk, whose scout has ended; it is only read, so it may be running."""
    tuner, cost = build(task, settings, members)
    scout = scout_of(settings, cost)
    if scout is None:
        return tuner
    told = [read_trials(directory / "scout", task.space)]
    key = choice_key(keys_of(settings).scout)
    judges = judges_of(task, settings, members)
    return start_at(tuner, starts_of(task, judges, scout, told, settings.num_restarts, key))


def choice_key(key: Key) -> Key:
    """Return the key of the seeds on which a scout's finalists are compared, from that of the scout."""
    return jax.random.fold_in(key, 1)
