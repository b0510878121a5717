"""Callbacks that follow a study as it runs: progress bars, logs, trackers. One protocol for all of them."""

import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from hypergrad.core.checks import check_kind
from hypergrad.core.files import open_file, to_plain
from hypergrad.core.types import HParams
from hypergrad.searchers import Trials


class Progress(NamedTuple):
    """Progress of a study after one step.

    Attributes:
        phase: Name of the method ("descent"), "random" for the baseline, or "judge".
        done: Number of steps done in this phase.
        total: Number of steps of this phase in all.
        value: Lowest objective of this step.
        best: Lowest objective so far.
        hparams: {leaf name: value} of this step's best member; empty while judging.
        numbers: Further numbers of that member, and the trainings spent so far; empty while judging.
    """

    phase: str
    done: int
    total: int
    value: float
    best: float
    hparams: dict[str, Any]
    numbers: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Ended(Protocol):
    """Result that a callback gets at the end: fields of the `hypergrad.Study` that `tune` returns."""

    @property
    def best(self) -> HParams | None:
        """Return the hparams with the lowest objective; None if no trial had a finite one."""
        ...

    @property
    def best_value(self) -> float:
        """Return that objective; infinity if no trial had a finite one."""
        ...

    @property
    def trials(self) -> list[Trials]:
        """Return the trials of every step, in order."""
        ...

    @property
    def interrupted(self) -> bool:
        """Tell whether Ctrl-C ended the study."""
        ...

    @property
    def seconds(self) -> float:
        """Return the wall-clock time over all sessions."""
        ...

    def hparams(self) -> dict[str, Any]:
        """Return the best hparams as {leaf name: array}."""
        ...


def _ignore(_: Any) -> None:
    pass


class Callback(NamedTuple):
    """Three functions of the host, each called in the study's own process, in order.

    **Limits:** the study waits for each call. One that hangs holds the study; its steps are on disk, Ctrl-C
    twice ends it, and `resume` goes on from there.

    Attributes:
        start: (description) -> None, before the first step, with the content of `study.json`.
        step: (Progress) -> None, after every step of every phase. The step is on disk by then.
        end: (result of `tune`, or None) -> None, once, however the study ended; the argument is None after an
            error.
    """

    start: Callable[[dict[str, Any]], Any] = _ignore
    step: Callable[[Progress], Any] = _ignore
    end: Callable[[Ended | None], Any] = _ignore


class CallbackWarning(UserWarning):
    """A callback raised an error; the study continued without it."""


class Listeners:
    """The callbacks of one study. One that raises is not called again: the study continues with a warning.

    Args:
        callbacks: Callbacks, in the order in which they are called, or one.
    """

    def __init__(self, callbacks: Iterable[Callback] | Callback):
        one = isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable)
        given: Any = [callbacks] if one else callbacks
        self._callbacks: list[Callback] = list(given)
        for index, callback in enumerate(self._callbacks):
            check_kind(f"callbacks[{index}]", callback, Callback, "Callback(step=print)")

    def start(self, description: dict[str, Any]) -> None:
        """Say that a study begins."""
        self._call("start", description)

    def step(self, now: Progress) -> None:
        """Say that a step is done."""
        self._call("step", now)

    def end(self, study: Ended | None) -> None:
        """Say that the study has ended."""
        self._call("end", study)

    def _call(self, name: str, value: Any) -> None:
        for callback in list(self._callbacks):
            try:
                getattr(callback, name)(value)
            except Exception as error:
                self._callbacks.remove(callback)
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                warnings.warn(
                    f"a callback failed at {name} ({reason}); it is not called again",
                    CallbackWarning,
                    stacklevel=3,
                )


def jsonl(path: str | Path) -> Callback:
    """Append one line of JSON a call: {"event": "start" | "step" | "end", ...}.

    Unlike the study's journal, the log has every phase, does not wait for the disk, and may lie anywhere except
    at links and pipes, which are not followed. A resumed study continues in the same file.
    """

    def write(event: str, content: dict[str, Any]) -> None:
        line = json.dumps({"event": event, **to_plain(content)}, allow_nan=False)
        fd = open_file(Path(path), os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with os.fdopen(fd, "ab") as file:
            size = os.fstat(fd).st_size
            # a kill or a full disk may have cut the last line
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = "\n" + line
            file.write(line.encode() + b"\n")

    def end(study: Ended | None) -> None:
        if study is None:
            return write("end", {"failed": True})
        return write("end", {"best_value": study.best_value, "interrupted": study.interrupted})

    def step(now: Progress) -> None:
        write("step", now._asdict())

    return Callback(lambda description: write("start", description), step, end)


def scalars(now: Progress) -> dict[str, float]:
    """List the finite numbers of a step as `phase/name`: value, best, the record, and `hparams.name`.

    Arrays of hparams (schedules, one number per layer) appear as their mean; texts are left out.
    """
    numbers = {n: x for n, x in now.hparams.items() if np.asarray(x).dtype.kind != "U"}
    means = {f"hparams.{name}": np.mean(value) for name, value in numbers.items()}
    found = {"value": now.value, "best": now.best, **now.numbers, **means}
    return {
        f"{now.phase}/{name}": float(value) for name, value in found.items() if np.isfinite(value)
    }
