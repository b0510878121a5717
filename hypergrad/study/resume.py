"""Continue a study on disk, or repeat one of its trials: to the same bits."""

import contextlib
import operator
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hypergrad.core.checks import check_kind
from hypergrad.core.files import ADVICE
from hypergrad.core.types import Key
from hypergrad.searchers import Trials
from hypergrad.study.disk import checkpoint, records
from hypergrad.study.disk.description import decode_key, mend_description, read_description
from hypergrad.study.disk.folder import Folder, StudyWarning, check_folder, lock
from hypergrad.study.disk.journal import read_records
from hypergrad.study.disk.machine import machine_differences
from hypergrad.study.disk.recorder import Recorder
from hypergrad.study.run import OnStep, Run, take_step, take_steps
from hypergrad.tuners import Tuner


class Trial(NamedTuple):
    """One trial of a study, repeated.

    Attributes:
        step: Step of the tuner.
        member: Place of the trial in that step.
        trials: `Trials` of this trial, without the leading axis.
        key: Key of the step.
    """

    step: int
    member: int
    trials: Trials
    key: Key


def resume_run(tuner: Tuner, directory: str | Path | Folder, on_step: OnStep | None = None) -> Run:
    """Continue a study where it ended, to the same bits as without the interruption.

    The run starts from the newest whole checkpoint that a recorded step follows. Later steps that have a record
    are repeated and compared, so that another task, or other data, does not go unnoticed. Damaged parts are
    made again from intact ones, with a `StudyWarning`.

    Args:
        tuner: The same tuner as at the start, built again.
        directory: Directory of the study, or one that `lock` opened.
        on_step: Function that is called after every step without a record.

    Raises:
        ValueError: where there is no study, another process is running it, this machine cannot repeat it
            (platform, number of devices, x64), or a repeated step differs from its record.
    """
    check_kind("tuner", tuner, Tuner, "tuners.descent(...)")
    opened = contextlib.nullcontext(directory) if isinstance(directory, Folder) else lock(directory)
    with opened as folder:
        with contextlib.suppress(FileNotFoundError):
            mend_description(folder.path)
        description = _description_for_here(folder.path)
        key, num_steps = decode_key(description["key"]), description["num_steps"]
        recorder = Recorder(folder.path, description["checkpoint_seconds"])
        with contextlib.closing(recorder):
            return take_steps(tuner, key, num_steps, on_step, recorder)


def replay_trial(tuner: Tuner, directory: str | Path, trial: int) -> Trial:
    """Repeat one trial of a study, to the same bits.

    **Cost:** the steps from the newest checkpoint before the trial, or from the start.

    Args:
        tuner: The same tuner as at the start, built again.
        directory: Directory of the study, which may be running.
        trial: Number of the trial, counted from 0 over all members of all steps.

    Raises:
        ValueError: where there is no such trial, or its result differs from its record.
    """
    check_kind("tuner", tuner, Tuner, "tuners.descent(...)")
    folder = check_folder(directory)
    description = _description_for_here(folder)
    kept, member = _records_up_to(folder, trial)
    last = len(kept) - 1
    init_key, run_key = jax.random.split(decode_key(description["key"]))
    fresh = checkpoint.without_weak_types(tuner.init(init_key))
    first, state = checkpoint.newest(folder, last, fresh)
    for step in range(first, last + 1):
        key = jax.random.fold_in(run_key, step)
        state, told = take_step(tuner, key, state)
        records.check_same(records.encode(step, told), kept[step])
    num = len(told.values)
    one = jax.tree.map(lambda x: x[member] if np.shape(x)[:1] == (num,) else x, told)
    return Trial(last, member, one, key)


def _description_for_here(folder: Path) -> dict[str, Any]:
    """Read the description of a study, and compare its machine with this one."""
    description = read_description(folder)
    for text in machine_differences(description["machine"]):
        warnings.warn(text, StudyWarning, stacklevel=3)
    return description


def _records_up_to(folder: Path, trial: int) -> tuple[list[dict[str, Any]], int]:
    """Return the records up to the one that holds a trial, and the trial's place in it."""
    kept, before = [], 0
    try:
        number = operator.index(trial)
    except TypeError:
        number = -1
    for record in read_records(folder / "journal.jsonl"):
        values = record.get("values")
        if not isinstance(values, list):
            raise ValueError(f"the record of step {len(kept)} has no list of values; {ADVICE}")
        kept.append(record)
        if 0 <= number < before + len(values):
            return kept, number - before
        before += len(values)
    raise ValueError(
        f"trial is {trial!r}, expected a whole number from 0 to {before - 1}; the study has {before} trials"
    )
