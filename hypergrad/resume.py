"""Go on with a study of a task, or train one of its trials again and show where it went wrong."""

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hypergrad import earlier, registry, static, storage, study, tree
from hypergrad.callbacks import Callback, Listeners
from hypergrad.estimators.base import split_key
from hypergrad.groups import fixed
from hypergrad.problem import Problem, Task
from hypergrad.searchers import Outcome
from hypergrad.settings import OPTION, Settings
from hypergrad.study import Study
from hypergrad.train import TrainState, init_state, step, unroll, unroll_losses
from hypergrad.tune import (
    as_task,
    build,
    check_task,
    collected_warnings,
    complete,
    sources,
    width,
)
from hypergrad.types import Key, PyTree


class Replayed(NamedTuple):
    """A trial that was trained again.

    Attributes:
        trial: what came of it, to the bits that its record has.
        hparams: {leaf name: value} it was trained with.
        losses: `[num_runs, steps]`, the training losses of its runs (one, or one a seed averaged over).
        first_nonfinite: the first training step of any run whose loss is not finite; None where all are.
        where: the operation that made it so, with its place in the source; None if not looked for.
    """

    trial: study.Trial
    hparams: dict[str, Any]
    losses: np.ndarray
    first_nonfinite: int | None
    where: str | None


def resume(
    task: Task | Problem,
    directory: str | Path,
    *,
    space: PyTree | None = None,
    allow_changes: bool = False,
    callbacks: Iterable[Callback] = (),
) -> Study:
    """Go on with a study where it ended, and finish it as if it never had.

    Everything but the task is read from the folder: settings, seed, what a step costs. The task is code,
    and code is never loaded because a file names it.

    Args:
        task: the same as at the start.
        directory: of the study.
        space: of a `Problem`, the same as at the start.
        allow_changes: go on although the task's source files are not what they were.
        callbacks: told of every step that was not taken before.

    Raises:
        ValueError: where there is no study, it is of another task, or it cannot be repeated here.
    """
    with storage.lock(directory) as folder:
        described = study.describe(folder.path)
        task = _as_task(task, space, described)
        settings = check_same_task(task, described, allow_changes)
        cost = described.get("cost")
        if not isinstance(cost, (int, float)) or not 0 < cost < float("inf"):
            raise ValueError(
                f"{str(folder.path / 'study.json')!r}: cost is {cost!r}, expected a positive number; "
                "resume it with study.resume"
            )
        with collected_warnings() as caught:
            return complete(
                task,
                settings,
                build(task, settings),
                folder,
                described,
                Listeners(callbacks),
                caught,
                cost,
            )


def replay(
    task: Task | Problem,
    directory: str | Path,
    trial: int,
    *,
    space: PyTree | None = None,
    debug_nans: bool = False,
    allow_changes: bool = False,
) -> Replayed:
    """Train one trial of a study again, to the same bits, and look at its training losses.

    **Cost:** the steps of the study from its newest checkpoint before the trial on, and its trainings.

    Args:
        task: the same as at the start.
        directory: of the study, which may be running.
        trial: its number, counted from 0 over all members of all steps.
        space: of a `Problem`, the same as at the start.
        debug_nans: run the training step that went wrong operation by operation, to name the first
            that made a NaN or an infinity.
        allow_changes: go on although the task's source files are not what they were.

    Raises:
        ValueError: where there is no such trial, or it does not come out as recorded.
    """
    folder = storage.check_folder(directory)
    described = study.describe(folder)
    task = _as_task(task, space, described)
    settings = check_same_task(task, described, allow_changes)
    online = settings.method == "descent" and settings.estimator in registry.ONLINE
    if online or settings.method in ("bilevel", "controller"):
        how = settings.estimator if online else settings.method
        raise ValueError(
            f"the study is by {how!r}, whose training goes on from trial to trial, expected one that trains "
            "every trial from its start; use hypergrad.study.replay, which makes the steps again"
        )
    if settings.scheduler in registry.BY_COPIES:
        raise ValueError(
            f"the study is by {settings.scheduler!r}, whose members go on from one another, expected one "
            "that trains every trial from its start; use hypergrad.study.replay, which makes the steps again"
        )
    found = study.replay(build(task, settings)[0], folder, trial)
    label, free = static.split(task.space, found.outcome.hparams)
    task, hparams = fixed(task, label), jax.tree.map(jax.numpy.asarray, free)
    keys = _training_keys(found.outcome, settings)
    num_steps = int(found.outcome.steps)

    @jax.jit
    def train(key):
        return unroll_losses(
            task.problem, hparams, init_state(task.problem, key, hparams), num_steps
        )[1]

    losses = np.stack([np.asarray(train(key)) for key in keys])
    bad = ~np.isfinite(losses)
    first = int(np.argmax(bad.any(0))) if bad.any() else None
    where = None
    if debug_nans:
        run = 0 if first is None else int(np.argmax(bad[:, first]))
        last = num_steps if first is None else first
        where = _first_bad_operation(task, hparams, keys[run], last)
    return Replayed(found, tree.named(found.outcome.hparams), losses, first, where)


def _as_task(task: Any, space: PyTree | None, described: dict[str, Any]) -> Task:
    """Return the task, or that of a problem: its horizon is the one that the study was started with."""
    horizon = described.get("horizon")
    if not isinstance(task, Problem) or type(horizon) is not int:
        horizon = None
    return as_task(task, space, horizon)


def check_same_task(task: Task, described: dict[str, Any], allow_changes: bool) -> Settings:
    """Return the settings of a study after comparing its task with `task`.

    Raises:
        ValueError: in one line, for the first difference.
    """
    here = {
        "task": task.name,
        "horizon": task.horizon,
        "space": {n: repr(d) for n, d in tree.named(task.space).items()},
    }
    for name, value in here.items():
        if described.get(name) != value:
            raise ValueError(
                f"{name} is {value!r}, expected {described.get(name)!r} as the study has it; "
                "name its task, with the same arguments"
            )
    changed = [
        f for f, digest in sources(task).items() if _of(described, "sources").get(f) != digest
    ]
    if changed and not allow_changes:
        raise ValueError(
            f"{', '.join(changed)} changed since the study was started, expected the same source; restore it, "
            "or pass --allow-changes"
        )
    given, usual = _of(described, "settings"), Settings()._asdict()
    odd = [n for n, value in given.items() if n not in usual or not _fits(n, value, usual[n])]
    if odd:
        raise ValueError(
            f"settings of the study have {odd[0]!r} = {str(given[odd[0]])[:40]!r}, expected a setting and "
            "a kind of this version; resume with the version of hypergrad that wrote it"
        )
    settings = check_task(task, Settings(**given))
    if described.get("width") != width(settings):
        raise ValueError(
            f"width is {width(settings)}, expected {described.get('width')!r} trials a step as the study has; "
            "resume with the version of hypergrad that wrote it"
        )
    earlier.check_unchanged(task, settings, described)
    return settings


def _fits(name: str, value: Any, usual: Any) -> bool:
    """Tell whether a setting from a file is of the kind of its default, or of its option where that is None."""
    if usual is None:
        return value is None or type(value) is OPTION[name].kind
    return type(value) is type(usual) or (type(usual) is float and type(value) is int)


def _of(described: dict[str, Any], name: str) -> dict[str, Any]:
    value = described.get(name)
    return value if isinstance(value, dict) else {}


def _training_keys(outcome: Outcome, settings: Settings) -> list[Key]:
    """Return the keys of the trial's training runs, as `init_state` takes them."""
    key = jax.numpy.asarray(outcome.info["key"])
    key = jax.random.wrap_key_data(key)
    if settings.method != "descent":
        return [key]
    keys = jax.random.split(key, settings.num_seeds) if settings.num_seeds > 1 else [key]
    return [split_key(k)[0] for k in keys]


def _first_bad_operation(task: Task, hparams: Any, key: Key, last: int) -> str | None:
    """Run the steps around a non-finite loss operation by operation, and name the first bad one.

    The weights that made the loss of step `last` came from the step before it; after the last step, the
    objective follows.
    """
    problem, start = task.problem, max(0, last - 1)
    state: TrainState = jax.jit(
        lambda key: unroll(problem, hparams, init_state(problem, key, hparams), start)
    )(key)
    try:
        with jax.debug_nans(True), jax.debug_infs(True), jax.disable_jit():
            for _ in range(start, min(last + 1, task.horizon)):
                state, _ = step(problem, hparams, state)
            if last == task.horizon:
                problem.objective(state.params, hparams, problem.valid_batch(state.key))
    except FloatingPointError as error:
        frames = traceback.extract_tb(error.__traceback__)
        mine = [f for f in frames if not Path(f.filename).is_relative_to(_HERE) and _is_code(f)]
        place = f", {mine[-1].filename}:{mine[-1].lineno}: {mine[-1].line}" if mine else ""
        return str(error).splitlines()[0].rstrip(".") + place
    return None


_HERE = Path(__file__).parent


def _is_code(frame: traceback.FrameSummary) -> bool:
    """Tell whether a frame is of somebody's own code, not of a library."""
    return "site-packages" not in frame.filename and not frame.filename.startswith("<")
