"""Continue a study of a task."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypergrad import study
from hypergrad.core.memory import recorded_memory
from hypergrad.core.methods import StepCost
from hypergrad.core.types import PyTree
from hypergrad.problem import Problem, Task
from hypergrad.report.study import Study
from hypergrad.study import Callback, Listeners
from hypergrad.study.disk.folder import lock
from hypergrad.tuning.build import build, members_of, task_of_study
from hypergrad.tuning.data import warn_of_unknown
from hypergrad.tuning.provenance import settings_of, states_memory_of
from hypergrad.tuning.tune import Work, collected_warnings, complete


def resume(
    task: Task | Problem,
    directory: str | Path,
    *,
    space: PyTree | None = None,
    allow_changes: bool = False,
    callbacks: Iterable[Callback] = (),
) -> Study:
    """Continue a study where it ended, and finish it as if it had never been interrupted.

    Everything except the task is read from the folder: settings, seed, the cost of a step. The task is code,
    and code is never loaded because a file names it.

    Args:
        task: Task, the same as at the start.
        directory: Folder of the study.
        space: Space of a `Problem`, the same as at the start.
        allow_changes: Whether to continue although the task's source files or its data have changed.
        callbacks: Callbacks, called for every step that was not taken before.

    Raises:
        ValueError: where there is no study, it is of another task, or it cannot be repeated here.
    """
    with lock(directory) as folder:
        described = study.read_description(folder.path)
        task = task_of_study(task, space, described)
        cost = _cost(described, folder.path)
        warn_of_unknown(described)
        with collected_warnings() as caught, recorded_memory(states_memory_of(described)):
            settings = settings_of(task, described, allow_changes)
            members = members_of(task, settings)
            tuner = build(task, settings, members)[0]
            work = Work(task, settings, tuner, cost, folder, described, members)
            return complete(work, Listeners(callbacks), caught)


def _cost(described: dict[str, Any], path: Path) -> StepCost:
    """Return the cost of a step as it was counted when the study began."""
    cost, counted = described.get("cost"), described.get("counted", "")
    if not isinstance(cost, (int, float)) or not 0 < cost < float("inf"):
        raise ValueError(
            f"{str(path / 'study.json')!r}: cost is {cost!r}, expected a positive number; "
            "resume it with study.resume"
        )
    return StepCost(cost, counted if isinstance(counted, str) else "")
