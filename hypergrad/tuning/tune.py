"""The front door: tune a task, compare it with its baselines, leave a report."""

import contextlib
import shlex
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hypergrad import space as spaces, study
from hypergrad.core import tree
from hypergrad.core.cautions import DrawnLeafWarning, UnreadWarning
from hypergrad.core.files import write_json
from hypergrad.core.methods import StepCost
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.estimators.advice import StructuralZeroWarning
from hypergrad.populations import LayoutWarning, Population
from hypergrad.problem import Problem, Task
from hypergrad.report.study import Study
from hypergrad.schedulers.base import SchedulerWarning
from hypergrad.searchers import SearcherWarning, Trials, final_values
from hypergrad.study import Callback, Listeners, Progress, StudyWarning
from hypergrad.study.disk.folder import Folder, create, lock
from hypergrad.study.disk.journal import check_journal
from hypergrad.study.disk.recorder import Unrecorded
from hypergrad.study.run import take_steps
from hypergrad.tuners import TUNERS, ControllerWarning, Tuner
from hypergrad.tuning.build import (
    NAMES,
    TuneKeys,
    as_task,
    build,
    build_search,
    check_task,
    check_used,
    equal_generations,
    judges_of,
    keys_of,
    layout_of,
    members_of,
    most_trials,
    num_steps,
    within_memory,
)
from hypergrad.tuning.data import data_of
from hypergrad.tuning.finalists import choose_best, expected_best
from hypergrad.tuning.judge import judge, result_of
from hypergrad.tuning.pool import alone
from hypergrad.tuning.provenance import check_same_result, describe_study
from hypergrad.tuning.scout import (
    Scout,
    choice_key,
    is_too_small,
    scout_of,
    start_at,
    starts_of,
    with_share,
)
from hypergrad.tuning.settings import Settings, check_settings


def tune(
    task: Task | Problem,
    space: PyTree | None = None,
    *,
    horizon: int | None = None,
    storage: str | Path | None = None,
    overwrite: bool = False,
    callbacks: Iterable[Callback] = (),
    details: dict[str, Any] | None = None,
    **settings: Any,
) -> Study:
    """Tune a task, or a problem over a space, judge the result on fresh seeds, and write the study.

    The last settings of a descent, or the best trials of a search, are trained again on the same seeds, and the
    best of them is chosen, because the lowest of many noisy values is partly luck. The default
    hparams, the tuned ones and (for methods by gradient) the finalists of as many random trials as cost the
    same number of trainings are then trained on fresh seeds; the test set is read then, once. Random search
    counts with what it reaches in expectation, over the luck of its draws (`pool`).

    Static dimensions of the space (`Integer` and `Choice` with `static=True`, whose values change shapes) are
    for searches: each combination of their values is compiled once, on its first trial, and each device trains
    one member at a time (`chunk` of them side by side). Trials, records and `best` have the values as
    the user named them.

    **Cost:** descent: budget x num_seeds x num_restarts hypergradients with its scout, as much again for the
    random baseline, some 10 x max(num_seeds, 4) trainings of each for the choice, and up to 8 x eval_seeds for
    the comparison.

    Args:
        task: Task to tune; a `Problem` has no test set, and needs a space and a horizon.
        space: Space of a `Problem`, a pytree of dimensions.
        horizon: Number of training steps of a `Problem`.
        storage: Folder of the study; nothing is written where None.
        overwrite: Whether to replace an existing study.
        callbacks: Callbacks, called for every step of every phase.
        details: Further entries for `study.json` (the command, the task's arguments).
        **settings: Fields of `Settings`: method="random", budget=64, ...

    Returns:
        The study, with `result` (the comparison) and the path of its `report`.

    Raises:
        ValueError: for a task or settings that cannot work, before anything compiles.
    """
    task = as_task(task, space, horizon)
    if settings.get("warm_start") is not None:
        settings["warm_start"] = _other_folder(settings["warm_start"], storage)
    given = check_settings(settings, NAMES)
    chosen = with_share(given)
    check_used([name for name, value in settings.items() if value is not None], chosen.method)
    listeners = Listeners(callbacks)
    with collected_warnings() as caught:
        data = data_of(check_task(task, chosen))
        chosen = within_memory(task, chosen)
        members = members_of(task, chosen)
        # refuses what cannot work before a study is replaced
        tuner, cost = build(task, chosen, members)
        if given.scout is None and chosen.scout and is_too_small(chosen, cost):
            chosen = chosen._replace(scout=0.0)
            tuner, cost = build(task, chosen, members)
        scout_of(chosen, cost)
        with contextlib.nullcontext() if storage is None else create(storage, overwrite) as folder:
            counted = {"cost": cost.trainings, "counted": cost.counted, **data._asdict()}
            described = describe_study(task, chosen, {**(details or {}), **counted})
            work = Work(task, chosen, tuner, cost, folder, described, members)
            return complete(work, listeners, caught)


def _other_folder(directory: Any, storage: Any) -> str:
    """Return the whole path of another study, so that this study can be resumed from anywhere."""
    if not isinstance(directory, (str, Path)):
        raise ValueError(
            f"warm_start is {directory!r:.80}, expected the folder of a study; pass e.g. 'runs/digits'"
        )
    path = Path(directory).resolve()
    if storage is not None and path == Path(storage).resolve():
        raise ValueError(
            f"warm_start is {str(directory)!r}, the folder of this study too, expected that of an earlier one; "
            "give this one a folder of its own"
        )
    return str(path)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collect the warnings of a study for its report, and raise them again at the end, each once."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        found = [
            (str(w.message), w.category)
            for w in caught
            if not issubclass(w.category, (DeprecationWarning, PendingDeprecationWarning))
        ]
        for text, category in dict.fromkeys(found):
            warnings.warn(text, category, stacklevel=4)


class Work(NamedTuple):
    """A study to run, or the rest of one.

    Attributes:
        task: Task to tune.
        settings: Settings, already checked.
        tuner: Tuner that the settings ask for.
        cost: Cost of one step.
        folder: Folder of the study, locked; a study that it holds is resumed. Nothing is written where None.
        details: Entries of `study.json`.
        members: Population that trains all that is trained.
    """

    task: Task
    settings: Settings
    tuner: Tuner
    cost: StepCost
    folder: Folder | None
    details: dict[str, Any]
    members: Population


def complete(work: Work, listeners: Listeners, caught: list[warnings.WarningMessage]) -> Study:
    """Run the rest of a study: the method and its random baseline, their comparison, and the report.

    Args:
        work: The study.
        listeners: Callbacks, called for every step.
        caught: List of the warnings so far, which grows.
    """
    began = time.perf_counter()
    keys = keys_of(work.settings)
    if work.folder is not None and not study.has_begun(work.folder.path):
        # before any listener writes: a folder with a log alone could be neither resumed nor started
        steps = num_steps(work.settings)
        work = work._replace(details=study.begin(work.folder, keys.method, steps, work.details))
    ended = None
    try:
        listeners.start(work.details)
        scout = scout_of(work.settings, work.cost)
        work, ahead = _send_scout(work, scout, keys.scout, listeners)
        running = time.perf_counter()
        found = _run_method(work, keys.method, listeners, ahead)
        before = found.seconds - (time.perf_counter() - running)  # seconds of earlier sessions
        spent = scout.trainings if scout else 0.0
        baseline = _run_baseline(work, found, spent, keys.random, listeners)
        result, best = _judge_all(work, found, baseline, spent, keys, listeners)
        result["warnings"] += _for_report(caught)
        result["seconds"] = time.perf_counter() - began + max(0.0, before)
        if found.best is not None:
            found = found._replace(best=best[0], best_value=best[1])
        ended = found._replace(result=result, interrupted=result["interrupted"])
        if work.folder is not None:
            if found.trials:  # no step was taken where the scout was interrupted
                check_journal(work.folder.path)
            check_same_result(work.folder.path / "result.json", result)
            write_json(work.folder.path / "result.json", result)
            ended = ended._replace(report=_report(work.folder.path))
        return ended
    finally:
        listeners.end(ended)


def _send_scout(
    work: Work, scout: Scout | None, key: Key, listeners: Listeners
) -> tuple[Work, Study | None]:
    """Search for the starts of a descent; return the work with a tuner that starts there, and the search."""
    if scout is None:
        return work, None
    tuner, cost = build_search(work.task, scout.settings, work.members)
    with _folder_within(work.folder, "scout") as folder:
        about = {"task": work.task.name, "method": scout.settings.method}
        steps = num_steps(scout.settings)
        show = _Steps(listeners, "scout", steps, cost.trainings)
        found = _run(tuner, key, folder, about, show)
    if found.interrupted:
        return work, found
    members = judges_of(work.task, work.settings, work.members)
    num = work.settings.num_restarts
    starts = starts_of(work.task, members, scout, found.trials, num, choice_key(key))
    return work._replace(tuner=start_at(work.tuner, starts)), found


def _run_method(work: Work, key: Key, listeners: Listeners, scout: Study | None) -> Study:
    if scout is not None and scout.interrupted:
        return Study(None, float("inf"), [], True, scout.seconds)
    show = _Steps(listeners, work.settings.method, num_steps(work.settings), work.cost.trainings)
    return _run(work.tuner, key, work.folder, work.details, show)


def _run_baseline(
    work: Work, found: Study, spent: float, key: Key, listeners: Listeners
) -> Study | None:
    """Search at random with as many trainings as a gradient method cost; other methods have no baseline."""
    if work.settings.method not in TUNERS or found.interrupted:
        return None
    num_trials = max(1, round(spent + work.cost.trainings * len(found.trials)))
    num, size = equal_generations(most_trials("random"), num_trials)
    settings = Settings("random", population=size, generations=num)
    rival = build_search(work.task, settings, work.members)[0]
    with _folder_within(work.folder, "random") as folder:
        layout = layout_of(work.task, work.settings).label
        about = {"task": work.task.name, "method": "random", "layout": layout}
        return _run(rival, key, folder, about, _Steps(listeners, "random", num, size))


def _judge_all(
    work: Work,
    found: Study,
    baseline: Study | None,
    spent: float,
    keys: TuneKeys,
    listeners: Listeners,
) -> tuple[dict[str, Any], tuple[HParams, float]]:
    """Choose the best of each method, and judge them beside the defaults on fresh seeds.

    Returns:
        The content of `result.json`, and the best hparams of the method with their value.
    """
    task, settings = work.task, work.settings
    members = judges_of(task, settings, work.members)
    listeners.step(Progress("judge", 0, 1, found.best_value, found.best_value, {}))
    seeds = jax.random.split(keys.choose, max(settings.num_seeds, 4))
    own = jax.random.split(keys.choose, 3 * len(seeds)) if settings.method == "descent" else seeds
    best = choose_best(task, members, found, settings.method, own)
    configurations = {
        "default": alone(spaces.starting_values(task.space)),
        "tuned": alone(best[0]),
    }
    if baseline is not None and baseline.best is not None:
        configurations["random"] = expected_best(task, members, baseline, seeds)
    judged = judge(task, members, configurations, jax.random.split(keys.judge, settings.eval_seeds))
    listeners.step(Progress("judge", 1, 1, found.best_value, found.best_value, {}))
    result = result_of(task, settings, found, baseline, judged, work.cost, best[0], spent)
    return result, best


def _report(path: Path) -> Path | None:
    """Write the report; warn where pictures cannot be drawn, so that the study is not lost."""
    from hypergrad.report.page import write_report

    try:
        return write_report(path)
    except ValueError as error:
        later = shlex.join(["hypergrad", "report", str(path)])
        warnings.warn(
            f"no report was written ({error}); write it later: {later}",
            StudyWarning,
            stacklevel=3,
        )
        return None


def _folder_within(folder: Folder | None, name: str):
    """Open the folder of a separate study within that of the method: its scout, or its random baseline."""
    if folder is None:
        return contextlib.nullcontext()
    path = folder.path / name
    return lock(path) if study.has_begun(path) else create(path)


def _for_report(caught: list[warnings.WarningMessage]) -> list[str]:
    """List what is wrong with a hyperparameter by its name, and what is odd about the study, each once."""
    kinds = (
        StructuralZeroWarning,
        DrawnLeafWarning,
        UnreadWarning,
        StudyWarning,
        SchedulerWarning,
        SearcherWarning,
        LayoutWarning,
        ControllerWarning,
    )
    return list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, kinds)))


class _Steps:
    """Function that reports the steps of one phase to the listeners."""

    def __init__(self, listeners: Listeners, phase: str, num_steps: int, cost: float):
        self.listeners = listeners
        self.phase = phase
        self.num_steps = num_steps
        self.cost = cost

    def __call__(self, index: int, told: Trials, best: float) -> None:
        values = final_values(told)
        member = int(np.argmin(values))
        hparams = tree.named(jax.tree.map(lambda x: x[member], told.hparams))
        shown = {n: x for n, x in told.info.items() if x.shape == values.shape}
        numbers = {n: x[member].item() for n, x in shown.items() if x.dtype.kind != "U"}
        numbers["trainings"] = self.cost * (index + 1)
        finite = told.values[np.isfinite(told.values)].astype(float)  # whose sum may overflow
        numbers["failures"] = len(values) - len(finite)
        numbers["median"] = float(np.median(finite)) if len(finite) else float("nan")
        lowest = float(values[member])
        self.listeners.step(
            Progress(self.phase, index + 1, self.num_steps, lowest, best, hparams, numbers)
        )


def _run(tuner: Tuner, key: Key, folder: Folder | None, details: dict, show: _Steps) -> Study:
    """Run a tuner, or continue the study in the folder, where there is one."""
    if folder is None:
        return Study(*take_steps(tuner, key, show.num_steps, show, Unrecorded()))
    if not study.has_begun(folder.path):
        study.begin(folder, key, show.num_steps, details)
    return Study(*study.resume_run(tuner, folder, show))
