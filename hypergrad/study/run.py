"""Run any tuner: budget, callbacks, failures; with a storage, every step is on disk before it counts."""

import contextlib
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_whole
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.populations import out_of_memory
from hypergrad.searchers import SearcherWarning, Trials, final_values
from hypergrad.study.disk import records
from hypergrad.study.disk.checkpoint import without_weak_types
from hypergrad.study.disk.description import begin
from hypergrad.study.disk.folder import Folder, create
from hypergrad.study.disk.recorder import Recorder, Unrecorded
from hypergrad.tuners import Tuner

OnStep = Callable[[int, Trials, float], Any]
"""(step, its trials, best value so far) -> anything; called after every step on the host."""


class Run(NamedTuple):
    """Result of a tuner.

    Attributes:
        best: Hparams with the lowest finite objective among the trials trained longest in their step, as
            numpy arrays; None if no objective was finite.
        best_value: Objective of `best`; infinity if no objective was finite.
        trials: Trials of every step, as numpy arrays, in order.
        interrupted: Whether Ctrl-C ended the run.
        seconds: Wall-clock time, compilation included, over all sessions.
    """

    best: HParams | None
    best_value: float
    trials: list[Trials]
    interrupted: bool
    seconds: float

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the trials to the bit: equal for two runs that are the same."""
        return records.digest(self.trials)


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

    Ctrl-C ends the run after the step that has begun, and keeps the best so far; pressed twice, it ends the
    step too. A trial that is not finite stays among the trials and never becomes the best.

    With `storage`, a step counts when its record is on the disk; `on_step` is called after that. Whatever ends
    the process then, `resume_run` continues and arrives at the same bits.

    **Cost:** with `storage`, one wait for the disk per step, two more per checkpoint.

    Args:
        tuner: Tuner of any method.
        key: Key of the whole study; step i draws from `fold_in(key, i)`.
        num_steps: Number of steps; a tuner that reports `done` ends earlier.
        on_step: Function that is called after every step.
        storage: New folder, or one that `create` opened; nothing is written where None.
        details: Further entries for the folder's `study.json`.
        checkpoint_seconds: Time between two checkpoints of the tuner's state; 0 for one after every step.
            On `resume_run`, steps after the last checkpoint are computed again and compared with their records.

    Raises:
        ValueError: for invalid arguments, a folder that is not free, or a disk that refuses to write.
    """
    check_whole("budget", num_steps)
    check_kind("tuner", tuner, Tuner, "tuners.descent(...)")
    if not hasattr(key, "dtype"):
        raise ValueError(f"key is {key!r:.80}, expected a PRNG key; pass e.g. jax.random.key(0)")
    if storage is None:
        return take_steps(tuner, key, num_steps, on_step, Unrecorded())
    opened = contextlib.nullcontext(storage) if isinstance(storage, Folder) else create(storage)
    with opened as folder:
        begin(folder, key, num_steps, details, checkpoint_seconds=checkpoint_seconds)
        with contextlib.closing(Recorder(folder.path, checkpoint_seconds)) as recorder:
            return take_steps(tuner, key, num_steps, on_step, recorder)


class _Found:
    """The trials so far, and the best of them."""

    def __init__(self) -> None:
        self.trials: list[Trials] = []
        self.best: HParams | None = None
        self.best_value = float("inf")

    def add(self, told: Trials) -> None:
        self.trials.append(told)
        values = final_values(told)
        member = int(np.argmin(values))
        if values[member] < self.best_value:
            self.best_value = float(values[member])
            self.best = jax.tree.map(lambda x: x[member], told.hparams)

    @property
    def done(self) -> bool:
        return bool(self.trials) and bool(np.any(self.trials[-1].info.get("done", False)))


def take_steps(
    tuner: Tuner,
    key: Key,
    num_steps: int,
    on_step: OnStep | None,
    recorder: Recorder | Unrecorded,
) -> Run:
    """Take the steps that are not recorded yet; arguments as for `run`.

    Where the device takes a step alone, the next one begins before the last one's record is written.
    """
    began, before = time.perf_counter(), 0.0
    found, interrupted, ahead = _Found(), False, None
    try:
        init_key, run_key = jax.random.split(key)
        state = without_weak_types(tuner.init(init_key))
        state, recorded, before = recorder.restore(tuner, run_key, state)
        for told in recorded:
            found.add(told)
        with _noted_interrupt() as asked:
            for step in range(len(recorded), num_steps):
                if ahead is None:
                    if found.done:
                        break
                    if asked:
                        raise KeyboardInterrupt
                    ahead = _Step(tuner, jax.random.fold_in(run_key, step), state)
                after, told = ahead.end()
                found.add(told)
                seconds, state, ahead = before + time.perf_counter() - began, after, None
                if tuner.begin and step + 1 < num_steps and not found.done and not asked:
                    state = recorder.kept(after)
                    ahead = _Step(tuner, jax.random.fold_in(run_key, step + 1), after)
                new = recorder.record(step, told, found.best_value, seconds, state)
                if new and on_step is not None:
                    on_step(step, told, found.best_value)
    except KeyboardInterrupt:
        interrupted = True
    recorder.save()
    _warn_of_settled_tables(found.trials, num_steps)
    seconds = before + time.perf_counter() - began
    return Run(found.best, found.best_value, found.trials, interrupted, seconds)


def _warn_of_settled_tables(trials: list[Trials], num_steps: int) -> None:
    """Warn where a search has settled on one option of each table in less than a third of its steps."""
    settled = [bool(np.all(told.info.get("tables_settled", False))) for told in trials]
    num = settled.index(True) + 1 if any(settled) else num_steps
    if 3 * num < num_steps:
        warnings.warn(
            f"every table of the search has settled on one value after {num} of {num_steps} generations, and "
            "others are hardly tried any more; ask for more trials a generation, or follow the elites less: "
            "distribution(space, smoothing=Smoothing(tables=0.1))",
            SearcherWarning,
            stacklevel=4,
        )


def take_step(tuner: Tuner, key: Key, state: PyTree) -> tuple[PyTree, Trials]:
    """Take one step of a tuner, which may take the memory of the state, and bring its trials to the host.

    Raises:
        ValueError: where the device has no memory left for it.
    """
    return _Step(tuner, key, state).end()


class _Step:
    """One step of a tuner, begun at once where the device takes it alone."""

    def __init__(self, tuner: Tuner, key: Key, state: PyTree):
        self._tuner, self._key, self._state = tuner, key, state
        self._begun: tuple[PyTree, Any] | None = None
        self._error: Exception | None = None
        if tuner.begin is not None:
            try:
                self._begun = tuner.begin(key, state)
            except jax.errors.JaxRuntimeError as error:  # the step before has to be recorded first
                self._error = error

    def end(self) -> tuple[PyTree, Trials]:
        """Wait for the step; return the state after it, and its trials on the host.

        Raises:
            ValueError: where the device has no memory left for it.
        """
        try:
            state, told = self._made()
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"a step of the study needs more memory than the device has ({reason}), expected less; start "
                "a study with a smaller population, fewer seeds or a smaller model, or continue this one with "
                "`hypergrad resume` where there is more"
            ) from error
        return without_weak_types(state), jax.tree.map(np.asarray, jax.device_get(told))

    def _made(self) -> tuple[PyTree, Trials]:
        tuner = self._tuner
        try:
            if self._error is not None:
                raise self._error
            begun = jax.block_until_ready(self._begun)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error) or tree.is_taken(self._state):
                raise
            begun = None  # the tuner knows how to take a step where memory is short
        if begun is None:
            return jax.block_until_ready(tuner.step(self._key, self._state))
        return begun[0], tuner.finish(begun[1])


@contextlib.contextmanager
def _noted_interrupt() -> Iterator[list[int]]:
    """Note the first Ctrl-C in a list instead of raising it: an exception may get lost in C code."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            signal.default_int_handler(number, frame)
        asked.append(number)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked  # the user's own handler stays
        return
    try:
        signal.signal(signal.SIGINT, note)
    except ValueError:  # only the main thread may set a handler, and only it is interrupted
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt
