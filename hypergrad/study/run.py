"""Run any tuner: budget, callbacks, failures; on disk, a study that can be killed, resumed and replayed."""

import contextlib
import operator
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hypergrad.core.checks import check_whole
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.searchers import Trials, final_values
from hypergrad.study.disk import checkpoint, records
from hypergrad.study.disk.files import ADVICE, StudyWarning
from hypergrad.study.disk.folder import (
    FORMAT,
    Folder,
    check_folder,
    create,
    lock,
    mend_study,
    read_study,
    write_study,
)
from hypergrad.study.disk.journal import Journal, read_records
from hypergrad.tuners import Tuner


class Run(NamedTuple):
    """What a tuner found.

    Attributes:
        best: the hparams with the lowest finite objective among those trained longest in their step, as
            numpy arrays; None if there was none.
        best_value: that objective; infinity if there was none.
        trials: those of every step, as numpy arrays, in order.
        interrupted: whether Ctrl-C ended it.
        seconds: wall-clock time, compilation included, over all its sessions.
    """

    best: HParams | None
    best_value: float
    trials: list[Trials]
    interrupted: bool
    seconds: float

    @property
    def digest(self) -> str:
        """SHA-256 of the trials to the bit: equal for two runs that are the same."""
        return records.digest(self.trials)


class Trial(NamedTuple):
    """One trial of a study, made again.

    Attributes:
        step: of the tuner.
        member: its place in that step.
        outcome: what came of it: an `Outcome` without the leading axis.
        key: of the step.
    """

    step: int
    member: int
    outcome: Trials
    key: Key


OnStep = Callable[[int, Trials, float], Any]
"""(step, outcome, best value so far) -> anything; called after every step on the host."""


def run(
    tuner: Tuner,
    key: Key,
    num_steps: int,
    on_step: OnStep | None = None,
    *,
    storage: str | Path | Folder | None = None,
    details: dict[str, Any] | None = None,
    checkpoint_seconds: float = 10.0,
) -> Run:
    """Take `num_steps` steps of a tuner.

    Ctrl-C ends the study after the step in flight and keeps the best so far; pressed twice it ends the step,
    too. A trial that is not finite is kept among the trials and never becomes the best.

    With `storage`, a step counts when its record is on the disk; `on_step` is called after that. Whatever
    ends the process then, `resume` goes on and arrives at the same bits.

    **Cost:** with `storage`, one wait for the disk a step, two more a checkpoint.

    Args:
        tuner: any method.
        key: of the whole study; step i draws from `fold_in(key, i)`.
        num_steps: budget; a tuner that says it is done ends earlier.
        on_step: called after every step.
        storage: a new folder, or one that `storage.create` opened; nothing is written where None.
        details: further entries for the folder's `study.json`.
        checkpoint_seconds: how often the tuner's state is written; 0 for every step. What came after the
            last one is computed again on `resume`, and compared with its records.

    Raises:
        ValueError: for arguments that cannot work, a folder that is not free, or a disk that refuses.
    """
    check_whole("budget", num_steps)
    _check_tuner(tuner)
    if storage is None:
        return _run(tuner, _check_key(key), num_steps, on_step, None)
    with _opened(storage, create) as folder:
        begin(folder, key, num_steps, details, checkpoint_seconds=checkpoint_seconds)
        with contextlib.closing(_Disk(folder.path, checkpoint_seconds)) as disk:
            return _run(tuner, key, num_steps, on_step, disk)


def begin(
    folder: Folder,
    key: Key,
    num_steps: int,
    details: dict[str, Any] | None = None,
    *,
    checkpoint_seconds: float = 10.0,
) -> dict[str, Any]:
    """Write `study.json`, from which on `resume` takes the steps; arguments as for `run`.

    Returns:
        Its content.
    """
    described = {
        "format": FORMAT,
        **(details or {}),
        "num_steps": num_steps,
        "checkpoint_seconds": checkpoint_seconds,
        "key": records.encode_key(_check_key(key)),
        "machine": records.machine(),
    }
    records.check_study(described, "the study")
    write_study(folder.path / "study.json", described)
    return described


def has_begun(directory: str | Path) -> bool:
    """Tell whether a folder holds a study to resume; `study.json` may be lost, and its copy is read then."""
    return any((Path(directory) / name).is_file() for name in ("study.json", "journal.jsonl"))


def resume_run(tuner: Tuner, directory: str | Path | Folder, on_step: OnStep | None = None) -> Run:
    """Go on with a study where it ended, to the same bits as if it never had.

    Starts from the newest whole checkpoint that a recorded step follows; the steps after it that have a
    record are made again and compared, so that another task, or other data, does not go unnoticed. What
    was damaged is made again from what was not, with a `StudyWarning`.

    Args:
        tuner: the same as at the start, built again.
        directory: of the study, or one that `storage.lock` opened.
        on_step: called after every step that had no record.

    Raises:
        ValueError: where there is no study, another process is running it, this machine cannot repeat it
            (platform, number of devices, x64), or a step made again differs from its record.
    """
    _check_tuner(tuner)
    with _opened(directory, lock) as folder:
        with contextlib.suppress(FileNotFoundError):
            mend_study(folder.path / "study.json")
        described = read_description(folder.path)
        for text in records.check_machine(described["machine"]):
            warnings.warn(text, StudyWarning, stacklevel=2)
        key = records.decode_key(described["key"])
        seconds = described["checkpoint_seconds"]
        with contextlib.closing(_Disk(folder.path, seconds)) as disk:
            return _run(tuner, key, described["num_steps"], on_step, disk)


def replay_trial(tuner: Tuner, directory: str | Path, trial: int) -> Trial:
    """Make one trial of a study again, to the same bits.

    **Cost:** the steps from the newest checkpoint before it on; from the start where there is none.

    Args:
        tuner: the same as at the start, built again.
        directory: of the study, which may be running.
        trial: its number, counted from 0 over all members of all steps.

    Raises:
        ValueError: where there is no such trial, or it does not come out as recorded.
    """
    _check_tuner(tuner)
    path = check_folder(directory)
    described = read_description(path)
    for text in records.check_machine(described["machine"]):
        warnings.warn(text, StudyWarning, stacklevel=2)
    kept, member = _find(path, trial)
    step = len(kept) - 1
    init_key, run_key = jax.random.split(records.decode_key(described["key"]))
    first, state = _newest(path, step, checkpoint.normal(tuner.init(init_key)))
    for index in range(first, step):
        state, outcome = _step(tuner, jax.random.fold_in(run_key, index), state)
        records.check_same(records.encode(index, outcome), kept[index])
    key = jax.random.fold_in(run_key, step)
    outcome = _step(tuner, key, state)[1]
    records.check_same(records.encode(step, outcome), kept[step])
    num = len(outcome.values)
    one = jax.tree.map(lambda x: x[member] if np.shape(x)[:1] == (num,) else x, outcome)
    return Trial(step, member, one, key)


def read_description(directory: str | Path) -> dict[str, Any]:
    """Read what `study.json` says of a study, with the entries that a resume needs checked.

    Raises:
        ValueError: in one line, where there is none or it is not one.
    """
    path = Path(directory) / "study.json"
    try:
        described = read_study(path)
    except FileNotFoundError:
        raise ValueError(
            f"{str(path)!r} does not exist, expected a study that has begun; start it with `hypergrad tune`"
        ) from None
    records.check_study(described, repr(str(path)))
    return described


def _check_key(key: Any) -> Key:
    if not hasattr(key, "dtype"):
        raise ValueError(f"key is {key!r}, expected a PRNG key; pass e.g. jax.random.key(0)")
    return key


def _check_tuner(tuner: Any) -> None:
    if not isinstance(tuner, Tuner):
        raise ValueError(
            f"tuner is {type(tuner).__name__}, expected a Tuner; pass e.g. tuners.descent(...)"
        )


def _opened(place: str | Path | Folder, opening: Callable) -> Any:
    return contextlib.nullcontext(place) if isinstance(place, Folder) else opening(place)


def _step(tuner: Tuner, key: Key, state: PyTree) -> tuple[PyTree, Trials]:
    state, outcome = tuner.step(key, state)
    return checkpoint.normal(state), jax.tree.map(np.asarray, jax.device_get(outcome))


def _run(
    tuner: Tuner, key: Key, num_steps: int, on_step: OnStep | None, disk: "_Disk | None"
) -> Run:
    """Take the steps that are left; all of them where there is no disk."""
    began = time.perf_counter()
    best, best_value = None, float("inf")
    trials: list[Trials] = []
    interrupted = False
    before = 0.0

    def keep(outcome: Trials) -> None:
        nonlocal best, best_value
        trials.append(outcome)
        values = final_values(outcome)
        member = int(np.argmin(values))
        if values[member] < best_value:
            best_value = float(values[member])
            best = jax.tree.map(lambda x: x[member], outcome.hparams)

    try:
        init_key, run_key = jax.random.split(key)
        state = checkpoint.normal(tuner.init(init_key))
        if disk is not None:
            state, old, before = disk.restore(tuner, run_key, state)
            for outcome in old:
                keep(outcome)
        with _noted_interrupt() as asked:
            for index in range(len(trials), num_steps):
                if trials and np.any(trials[-1].info.get("done", False)):
                    break
                if asked:
                    raise KeyboardInterrupt
                state, outcome = _step(tuner, jax.random.fold_in(run_key, index), state)
                keep(outcome)
                seconds = before + time.perf_counter() - began
                new = disk is None or disk.append(index, outcome, best_value, seconds, state)
                if new and on_step is not None:
                    on_step(index, outcome, best_value)
    except KeyboardInterrupt:
        interrupted = True
    if disk is not None:
        disk.save()
    return Run(best, best_value, trials, interrupted, before + time.perf_counter() - began)


@contextlib.contextmanager
def _noted_interrupt() -> Iterator[list[int]]:
    """Note the first Ctrl-C in a list instead of raising it: in C code an exception may get lost."""
    asked: list[int] = []

    def note(number, frame):
        if asked:
            signal.default_int_handler(number, frame)
        asked.append(number)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked  # the user's own handler stays
        return
    try:
        signal.signal(signal.SIGINT, note)
    except ValueError:  # only the main thread may, and only it is interrupted
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt


class _Disk:
    """The journal and the checkpoints of a study, to its one writer."""

    def __init__(self, path: Path, seconds: float):
        self.path = path
        self.seconds = seconds
        self.journal = Journal(path / "journal.jsonl")
        self.position: tuple[int, PyTree] | None = None
        self.saved = -1
        self.time = time.monotonic()
        if self.journal.damage:
            warnings.warn(self.journal.damage, StudyWarning, stacklevel=4)

    def restore(self, tuner: Tuner, key: Key, fresh: PyTree) -> tuple[PyTree, list[Trials], float]:
        """Return the state of the newest checkpoint, the trials before it and the seconds they took."""
        count = self.journal.count
        for step in checkpoint.steps(self.path):
            if step > count:  # kept, it would push out those of the steps that are made again
                checkpoint.remove(self.path, step)
                text = f"{str(self.path)!r} has {count} whole records, expected {step}; they are made again"
                warnings.warn(text, StudyWarning, stacklevel=4)
        # one step at least is made again, and so compares this task, data and machine with its record
        step, state = _newest(self.path, count - 1, fresh)
        if not step:
            return state, [], 0.0
        self.saved = step
        like = _template(tuner, jax.random.fold_in(key, 0), fresh)
        trials, seconds = [], None
        for index in range(step):  # one at a time: text takes several times the room of its numbers
            record = self.journal.record(index) or {}
            seconds = record.get("seconds")
            trials.append(records.decode(record, like))
        return state, trials, float(seconds) if isinstance(seconds, (int, float)) else 0.0

    def append(
        self, step: int, outcome: Trials, best: float, seconds: float, state: PyTree
    ) -> bool:
        """Put a step on disk and return true; compare it with its record where it has one."""
        record = records.encode(step, outcome)
        old = self.journal.record(step)
        if old is not None:
            records.check_same(record, old)
        new = step >= self.journal.count
        if new:
            self.journal.append(records.timed(record, best, seconds))
        self.position = (step + 1, state)
        if time.monotonic() - self.time >= self.seconds:
            self.save()
        return new

    def save(self) -> None:
        """Write the state after the last step, unless it is written."""
        if self.position is not None and self.position[0] > self.saved:
            checkpoint.save(self.path, *self.position)
            self.saved = self.position[0]
        self.time = time.monotonic()

    def close(self) -> None:
        """Close the journal."""
        self.journal.close()


def _newest(path: Path, most: int, fresh: PyTree) -> tuple[int, PyTree]:
    """Return the newest whole checkpoint of at most `most` steps, (0, `fresh`) where there is none.

    The others are looked at too: one that is damaged would be missed when it is needed.
    """
    first, state = 0, fresh
    for step in checkpoint.steps(path):
        try:
            if step <= most and not first:
                state = checkpoint.load(path, step, fresh)
                first = step
            else:
                checkpoint.check_whole_checkpoint(path, step, fresh)
        except ValueError as error:
            text = f"{error}; the state is made again from an earlier one"
            warnings.warn(text, StudyWarning, stacklevel=5)
    return first, state


def _template(tuner: Tuner, key: Key, state: PyTree) -> Trials:
    """Find the structure and dtypes of an outcome."""
    try:
        return jax.eval_shape(tuner.step, key, state)[1]
    except Exception:  # a tuner that works on the host shows them by a step
        return tuner.step(key, state)[1]


def _find(path: Path, trial: int) -> tuple[list[dict[str, Any]], int]:
    """Return the records up to the one that holds a trial, and the trial's place in it."""
    kept, before = [], 0
    try:
        number = operator.index(trial)
    except TypeError:
        number = -1
    for record in read_records(path / "journal.jsonl"):
        values = record.get("values")
        if not isinstance(values, list):
            raise ValueError(
                f"the record of step {len(kept)} has no list of values, expected one; {ADVICE}"
            )
        kept.append(record)
        if 0 <= number < before + len(values):
            return kept, number - before
        before += len(values)
    raise ValueError(
        f"trial is {trial!r}, expected a whole number from 0 to {before - 1}; the study has {before} trials"
    )
