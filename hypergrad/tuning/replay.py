"""Train one trial of a study again and show where it went wrong."""

import traceback
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hypergrad import study
from hypergrad.core import tree
from hypergrad.core.hoist import Compiled
from hypergrad.core.memory import recorded_memory
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.estimators import ONLINE
from hypergrad.problem import Problem, Task, fixed
from hypergrad.schedulers import BY_COPIES
from hypergrad.searchers import Trials
from hypergrad.space import static
from hypergrad.study.disk.folder import check_folder
from hypergrad.train import TrainState, init_state, split_key, step, unroll
from hypergrad.tuners import TUNERS
from hypergrad.tuning.build import judges_of, members_of, task_of_study
from hypergrad.tuning.provenance import settings_of, states_memory_of
from hypergrad.tuning.scout import tuner_of_study
from hypergrad.tuning.settings import Settings


class Replayed(NamedTuple):
    """A trial that was trained again.

    Attributes:
        trial: The trial, to the bits of its record.
        hparams: Dict {leaf name: value} of its hyperparameters.
        losses: Training losses of its runs, `[num_runs, steps]` (one run, or one for each averaged seed).
        first_nonfinite: First training step of any run whose loss is not finite; None where all are.
        where: Operation that made it so, with its place in the source; None without a search for it.
    """

    trial: study.Trial
    hparams: dict[str, Any]
    losses: np.ndarray
    first_nonfinite: int | None
    where: str | None


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
        task: Task, the same as at the start.
        directory: Folder of the study, which may be running.
        trial: Number of the trial, counted from 0 over all members of all steps.
        space: Space of a `Problem`, the same as at the start.
        debug_nans: Whether to run the training step that went wrong operation by operation, to name the first
            that made a NaN or an infinity.
        allow_changes: Whether to continue although the task's source files or its data have changed.

    Raises:
        ValueError: where there is no such trial, or its result differs from its record.
    """
    folder = check_folder(directory)
    described = study.read_description(folder)
    task = task_of_study(task, space, described)
    settings = settings_of(task, described, allow_changes)
    if how := _goes_on(settings):
        raise ValueError(
            f"the study is by {how}, expected one that trains every trial from its start; use "
            "hypergrad.study.replay_trial, which makes the steps again"
        )
    with recorded_memory(states_memory_of(described)):
        members = members_of(task, settings)
        tuner = tuner_of_study(task, settings, members, folder)
        found = study.replay_trial(tuner, folder, trial)
    keys = _training_keys(found.trials, settings)
    num_steps = int(found.trials.steps)
    given = static.stacked(task.space, [found.trials.hparams] * len(keys))
    judges = judges_of(task, settings, members)
    states = judges.init(jax.numpy.stack([key for key, _ in keys]), given)
    losses = np.asarray(judges.follow(given, states, num_steps)[1])[:, :num_steps]
    bad = ~np.isfinite(losses)
    first = int(np.argmax(bad.any(0))) if bad.any() else None
    where = None
    if debug_nans:
        run = 0 if first is None else int(np.argmax(bad[:, first]))
        last = num_steps if first is None else first
        label, free = static.split(task.space, found.trials.hparams)
        hparams = jax.tree.map(jax.numpy.asarray, free)
        where = _first_bad_operation(fixed(task, label), hparams, keys[run], last)
    return Replayed(found, tree.named(found.trials.hparams), losses, first, where)


def _goes_on(settings: Settings) -> str | None:
    """Say what makes trials continue from the weights of others; None where each starts from its own."""
    by_descent = settings.method == "descent"
    if settings.scheduler in BY_COPIES:
        return f"{settings.scheduler!r}, whose members continue from one another"
    if settings.method not in TUNERS or (by_descent and settings.estimator not in ONLINE):
        return None
    how = settings.estimator if by_descent else settings.method
    return f"{how!r}, whose training continues from trial to trial"


def _training_keys(one: Trials, settings: Settings) -> list[tuple[Key, Key]]:
    """Return the key of `init_state` and that of the validation batch, for each of the trial's runs."""
    key = jax.numpy.asarray(one.info["key"])
    key = jax.random.wrap_key_data(key)
    if settings.method != "descent":
        return [(key, split_key(key)[1])]
    keys = jax.random.split(key, settings.num_seeds) if settings.num_seeds > 1 else [key]
    return [split_key(k) for k in keys]


def _first_bad_operation(
    task: Task, hparams: HParams, keys: tuple[Key, Key], last: int
) -> str | None:
    """Run the steps around a non-finite loss operation by operation, and name the first bad operation.

    The weights that made the loss of step `last` came from the step before it; after the last step, the
    objective follows, on the validation batch of the second key.
    """
    (key, valid_key), problem, start = keys, task.problem, max(0, last - 1)
    state: TrainState = Compiled(
        lambda key: unroll(problem, hparams, init_state(problem, key, hparams), start)
    )(key)
    try:
        with jax.debug_nans(True), jax.debug_infs(True), jax.disable_jit():
            for _ in range(start, min(last + 1, task.horizon)):
                state, _ = step(problem, hparams, state)
            if last == task.horizon:
                problem.objective(state.params, hparams, problem.valid_batch(valid_key))
    except FloatingPointError as error:
        frames = traceback.extract_tb(error.__traceback__)
        mine = [f for f in frames if not Path(f.filename).is_relative_to(_HERE) and _is_code(f)]
        place = f", {mine[-1].filename}:{mine[-1].lineno}: {mine[-1].line}" if mine else ""
        return str(error).splitlines()[0].rstrip(".") + place
    return None


_HERE = Path(__file__).parents[1]


def _is_code(frame: traceback.FrameSummary) -> bool:
    """Tell whether a frame is in the user's own code, not in a library."""
    return "site-packages" not in frame.filename and not frame.filename.startswith("<")
