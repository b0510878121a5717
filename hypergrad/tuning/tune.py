"""The front door: tune a task, compare it with its baselines, leave a report."""

import contextlib
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hypergrad import space as spaces, study
from hypergrad.core import checks, tree
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.estimators import Estimator
from hypergrad.estimators.advice import StructuralZeroWarning
from hypergrad.problem import Problem, Task
from hypergrad.report.study import Study
from hypergrad.schedulers.base import SchedulerWarning
from hypergrad.searchers import Trials, final_values
from hypergrad.study import Callback, Listeners, Progress, StudyWarning
from hypergrad.study.disk.files import write_json
from hypergrad.study.disk.folder import Folder, create, lock
from hypergrad.train import init_state, unroll
from hypergrad.tuners import TUNERS, ControllerWarning, Tuner
from hypergrad.tuners.descent import estimator_of
from hypergrad.tuning.build import (
    _generations,
    _num_steps,
    _search,
    as_task,
    build,
    check_task,
    check_used,
    measured,
    most_trials,
)
from hypergrad.tuning.judge import _choose, _result, judge
from hypergrad.tuning.provenance import _check_result, describe_study
from hypergrad.tuning.settings import Settings


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

    The last settings of a descent, or the best trials of a search, are trained again on the same seeds,
    and the best of them is chosen: the lowest of many noisy values is a lucky one. The default
    hparams, the tuned ones and (for methods by gradient) the best of as many random trials as cost the
    same training time are then trained on fresh seeds; the test set is read then, once.

    Static dimensions of the space (`Integer` and `Choice` with `static=True`, whose values change shapes) are
    for searches: each combination of their values is compiled once, on its first trial, and trained one
    member a device at a time (`chunk` of them side by side). Trials, records and `best` have the values as
    the user named them.

    **Cost:** descent: budget x num_seeds x num_restarts hypergradients, as much again for the random
    baseline, and 11 x max(num_seeds, 4) trainings of each for the choice.

    Args:
        task: what to tune; a `Problem` has no test set, and needs a space and a horizon.
        space: of a `Problem`, a pytree of dimensions.
        horizon: of a `Problem`, its training steps.
        storage: folder of the study; nothing is written where None.
        overwrite: replace a study that is there.
        callbacks: told of every step of every phase.
        details: further entries for `study.json` (the command, the task's arguments).
        **settings: fields of `Settings`: method="random", budget=64, ...

    Returns:
        The study, with `result` (the comparison) and the path of its `report`.

    Raises:
        ValueError: for a task or settings that cannot work, before anything compiles.
    """
    task = as_task(task, space, horizon)
    for name in settings:
        checks.check_name("setting of tune", name, Settings._fields)
    if settings.get("warm_start") is not None:
        settings["warm_start"] = _earlier_folder(settings["warm_start"], storage)
    chosen = check_task(task, Settings(**settings))
    check_used([name for name, value in settings.items() if value is not None], chosen.method)
    listeners = Listeners(callbacks)
    with collected_warnings() as caught:
        chosen = measured(task, chosen)
        built = build(task, chosen)  # what cannot work is refused before an old study is replaced
        if storage is None:
            return complete(task, chosen, built, None, details or {}, listeners, caught)
        with create(storage, overwrite) as folder:
            return complete(task, chosen, built, folder, details or {}, listeners, caught)


def _earlier_folder(directory: Any, storage: Any) -> str:
    """Return the whole path of an earlier study, so that this one is resumed from anywhere."""
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


def complete(
    task: Task,
    settings: Settings,
    built: tuple[Tuner, float],
    folder: Folder | None,
    details: dict[str, Any],
    listeners: Listeners,
    caught: list[warnings.WarningMessage],
    cost: float | None = None,
) -> Study:
    """Do what is left of a study: the method, its random baseline, the comparison and the report.

    Args:
        task: what to tune.
        settings: how, checked.
        built: what `build` made of them.
        folder: of the study, locked; a study that it holds is resumed. Nothing is written where None.
        details: further entries for `study.json`; all of them where the study is resumed.
        listeners: told of every step.
        caught: the warnings raised so far, a list that grows.
        cost: trainings that one step costs, as a study that is resumed has it; measured where None.
    """
    began = time.perf_counter()
    keys = jax.random.split(jax.random.key(settings.seed), 4)
    tune_key, random_key, judge_key, choose_key = keys
    tuner, per_step = built
    if cost is None:
        cost = per_step
        if settings.method in TUNERS:
            one = estimator_of(task, settings) if settings.method == "descent" else tuner
            cost = per_step * measure_ratio(task, one, spaces.default(task.space))
        details = describe_study(task, settings, {**details, "cost": cost})
    if folder is not None and not study.has_begun(folder.path):
        # before any listener writes: a folder with a log alone could be neither resumed nor started
        details = study.begin(folder, tune_key, _num_steps(settings), details)
    ended = None
    try:
        listeners.start(details)
        running = time.perf_counter()
        show = _Steps(listeners, settings.method, _num_steps(settings), cost)
        found = _run(tuner, tune_key, folder, details, show)
        earlier = found.seconds - (time.perf_counter() - running)  # in sessions before this one
        baseline = None
        if settings.method in TUNERS and not found.interrupted:
            num_trials = max(1, round(cost * len(found.trials)))
            num_steps, size = _generations(most_trials("random"), num_trials)
            show = _Steps(listeners, "random", num_steps, size)
            about = {"task": task.name, "method": "random"}
            rival = _search(task, Settings("random", population=size, generations=num_steps))[0]
            with _random_folder(folder) as inner:
                baseline = _run(rival, random_key, inner, about, show)

        listeners.step(Progress("judge", 0, 1, found.best_value, found.best_value, {}))
        best, best_value = _choose(task, settings, found, settings.method, choose_key)
        configurations = {"default": spaces.default(task.space), "tuned": best}
        if baseline is not None and baseline.best is not None:
            configurations["random"] = _choose(task, settings, baseline, "random", choose_key)[0]
        judged = judge(task, configurations, judge_key, settings.eval_seeds)
        listeners.step(Progress("judge", 1, 1, found.best_value, found.best_value, {}))
        result = _result(task, settings, found, baseline, judged, cost, best)
        result["warnings"] += _for_report(caught)
        result["seconds"] = time.perf_counter() - began + max(0.0, earlier)
        interrupted = result["interrupted"]
        if found.best is not None:
            found = found._replace(best=best, best_value=best_value)
        ended = found._replace(result=result, interrupted=interrupted)
        if folder is not None:
            _check_result(folder.path / "result.json", result)
            write_json(folder.path / "result.json", result)
            ended = ended._replace(report=_report(folder.path))
        return ended
    finally:
        listeners.end(ended)


def _report(path: Path) -> Path | None:
    """Write the report; a study is not lost because pictures cannot be drawn."""
    from hypergrad.report.page import write_report as report

    try:
        return report(path)
    except ValueError as error:
        warnings.warn(
            f"no report was written ({error}); write it later: hypergrad report {path}",
            StudyWarning,
            stacklevel=3,
        )
        return None


def _random_folder(folder: Folder | None):
    """Open the folder of the random baseline, a study of its own within that of the method."""
    if folder is None:
        return contextlib.nullcontext()
    path = folder.path / "random"
    return lock(path) if study.has_begun(path) else create(path)


def _for_report(caught: list[warnings.WarningMessage]) -> list[str]:
    """List structural zeros, and what is odd about the study's folder or machine, each once."""
    kinds = (StructuralZeroWarning, StudyWarning, SchedulerWarning, ControllerWarning)
    return list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, kinds)))


class _Steps:
    """Tells the listeners of the steps of one phase."""

    def __init__(self, listeners: Listeners, phase: str, num_steps: int, cost: float):
        self.listeners = listeners
        self.phase = phase
        self.num_steps = num_steps
        self.cost = cost

    def __call__(self, index: int, outcome: Trials, best: float) -> None:
        values = final_values(outcome)
        member = int(np.argmin(values))
        hparams = tree.named(jax.tree.map(lambda x: x[member], outcome.hparams))
        record = {n: x[member].item() for n, x in outcome.info.items() if x.shape == values.shape}
        record["trainings"] = self.cost * (index + 1)
        finite = outcome.values[np.isfinite(outcome.values)]
        record["failures"] = len(values) - len(finite)
        record["median"] = float(np.median(finite)) if len(finite) else float("nan")
        lowest = float(values[member])
        self.listeners.step(
            Progress(self.phase, index + 1, self.num_steps, lowest, best, hparams, record)
        )


def _run(tuner: Tuner, key: Key, folder: Folder | None, details: dict, show: _Steps) -> Study:
    """Run a tuner, or go on with the study in the folder, where there is one."""
    if folder is not None and study.has_begun(folder.path):
        return Study(*study.resume_run(tuner, folder, show))
    return Study(*study.run(tuner, key, show.num_steps, show, storage=folder, details=details))


def measure_ratio(
    task: Task, one: Estimator | Tuner, hparams: HParams, num_repeats: int = 3
) -> float:
    """Measure the time of one hypergradient, or step, as a multiple of one training run, once compiled."""
    key = jax.random.key(0)

    def train(hparams):
        state = init_state(task.problem, key, hparams)
        return unroll(task.problem, hparams, state, task.horizon).params

    if isinstance(one, Tuner):
        begun = one.init(key)
        programs = (jax.jit(train), lambda _: one.step(key, begun))
    else:
        state = one.init(key, hparams)
        programs = (jax.jit(train), jax.jit(lambda h: one.estimate(key, state, h)))
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(num_repeats + 1):
        for program, seconds in zip(programs, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program(hparams))
            if repeat:  # the first call compiles
                seconds.append(time.perf_counter() - began)
    return float(np.median(times[1]) / np.median(times[0]))
