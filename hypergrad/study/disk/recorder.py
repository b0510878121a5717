"""Recorders of the steps of a run: in a study's folder, or nowhere."""

import time
import warnings
from pathlib import Path

import jax

from hypergrad.core import tree
from hypergrad.core.types import Key, PyTree
from hypergrad.searchers import Trials
from hypergrad.study.disk import checkpoint, records
from hypergrad.study.disk.folder import StudyWarning
from hypergrad.study.disk.journal import Journal
from hypergrad.tuners import Tuner


class Recorder:
    """The journal and the checkpoints of a study, for its only writer.

    Args:
        folder: Folder of the study, which the caller has locked.
        seconds: Time between two checkpoints; 0 for one after every step.

    Raises:
        ValueError: for a journal that cannot be written, and where the disk refuses.
    """

    def __init__(self, folder: Path, seconds: float):
        self._folder = folder
        self._seconds = seconds
        self._journal = Journal(folder / "journal.jsonl")
        self._last: tuple[int, PyTree] | None = None
        self._saved = -1
        self._time = time.monotonic()
        if self._journal.damage:
            warnings.warn(self._journal.damage, StudyWarning, stacklevel=4)

    def restore(self, tuner: Tuner, key: Key, fresh: PyTree) -> tuple[PyTree, list[Trials], float]:
        """Return the state of the newest checkpoint, the trials before it, and the seconds they took.

        Args:
            tuner: Tuner of the study.
            key: Key that the steps draw from.
            fresh: First state of the tuner.
        """
        count = self._journal.count
        for step in checkpoint.steps(self._folder):
            if step > count:  # if kept, it would push out the checkpoints of the repeated steps
                checkpoint.remove(self._folder, step)
                where = repr(str(self._folder))
                text = f"{where} has {count} whole records, expected {step}; they are made again"
                warnings.warn(text, StudyWarning, stacklevel=4)
        # at least one step is repeated, which compares this task, data and machine with its record
        step, state = checkpoint.newest(self._folder, count - 1, fresh)
        if not step:
            return state, [], 0.0
        self._saved = step
        like = _shape_of_trials(tuner, jax.random.fold_in(key, 0), fresh)
        trials, seconds = [], None
        for index in range(step):  # one at a time: text takes several times the room of its numbers
            record = self._journal.record(index) or {}
            seconds = record.get("seconds")
            trials.append(records.decode(record, like))
        return state, trials, float(seconds) if isinstance(seconds, (int, float)) else 0.0

    def record(
        self, step: int, trials: Trials, best_value: float, seconds: float, state: PyTree
    ) -> bool:
        """Put a step on disk and return true; where it has a record, compare it and return false.

        Args:
            step: Step of the tuner.
            trials: Trials of the step.
            best_value: Lowest objective so far.
            seconds: Time that the study has taken so far.
            state: State of the tuner after the step, or what `kept` returned of it.
        """
        made = records.encode(step, trials)
        old = self._journal.record(step)
        if old is not None:
            records.check_same(made, old)
        new = step >= self._journal.count
        if new:
            self._journal.append(records.timed(made, best_value, seconds))
        self._last = (step + 1, state)
        if self._due and not tree.is_taken(state):
            self.save()
        return new

    @property
    def _due(self) -> bool:
        return time.monotonic() - self._time >= self._seconds

    def kept(self, state: PyTree) -> PyTree:
        """Copy a state that is to be saved, before the next step takes its memory."""
        return tree.copied(state) if self._due else state

    def save(self) -> None:
        """Write the state after the last step, unless it is on disk already or the next step has taken it.

        Raises:
            ValueError: where the disk refuses, or the journal is no longer in its place.
        """
        self._journal.check_there()
        last = self._last
        if last is not None and last[0] > self._saved and not tree.is_taken(last[1]):
            checkpoint.save(self._folder, *last)
            self._saved = last[0]
        self._time = time.monotonic()

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


class Unrecorded:
    """The recorder of a run that leaves nothing on disk."""

    def restore(self, tuner: Tuner, key: Key, fresh: PyTree) -> tuple[PyTree, list[Trials], float]:
        """Begin with the first step."""
        return fresh, [], 0.0

    def record(
        self, step: int, trials: Trials, best_value: float, seconds: float, state: PyTree
    ) -> bool:
        """Return true: every step is new."""
        return True

    def kept(self, state: PyTree) -> PyTree:
        """Return the state as it is: it is not saved."""
        return state

    def save(self) -> None:
        """Do nothing."""


def _shape_of_trials(tuner: Tuner, key: Key, state: PyTree) -> Trials:
    """Return the structure, shapes and dtypes of a step's trials."""
    try:
        return jax.eval_shape(tuner.step, key, state)[1]
    except Exception:  # a tuner that works on the host shows them by taking a step
        return tuner.step(key, state)[1]
