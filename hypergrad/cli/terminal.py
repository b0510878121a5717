"""Output of the commands: progress, tables, and one JSON object for machines."""

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hypergrad.cli.lines import say
from hypergrad.cli.programs import FirstStep
from hypergrad.core.files import to_plain
from hypergrad.report.notes import shown_notes
from hypergrad.report.text import visible
from hypergrad.study import Callback, Ended, Progress
from hypergrad.tuners import TUNERS

COMPILING = "first"
"""Name of the bar that is shown until the first step is done."""


class Bar:
    """A progress bar with the loss, the time left and the hyperparameters; lines where rich is missing.

    Args:
        quiet: Whether to show nothing.
        color: Whether colours may be used.
        programs: Folder of compiled programs, where it is noted how long the first step took.
    """

    def __init__(self, quiet: bool, color: bool, programs: Path | None = None):
        self.quiet = quiet
        self.programs = programs
        self.waiting: tuple[FirstStep, float] | None = None
        self.progress: Any = None
        self.tasks: dict[str, Any] = {}
        self.first: dict[str, tuple[int, float]] = {}
        if quiet or not sys.stderr.isatty():
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            return
        self.progress = Progress(
            TextColumn("{task.description:8s}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True, no_color=not color),
        )

    @property
    def callback(self) -> Callback:
        """Return the callback of the study."""
        return Callback(start=self._start, step=self._step, end=self._end)

    def _start(self, description: dict[str, Any]) -> None:
        first = FirstStep(self.programs, description)
        self.waiting = first, time.monotonic()
        known = "" if first.last is None else f", which took {first.last:.0f} s the last time"
        text = f"compiling the first step{known}"
        if self.progress is not None:
            self.progress.start()
            self.tasks[COMPILING] = self.progress.add_task(COMPILING, total=None, text=text)
        elif not self.quiet:
            say(text, error=True)

    def _end(self, study: Ended | None) -> None:
        if self.progress is not None:
            self.progress.stop()

    def _compiled(self) -> None:
        """Note that the first step is done."""
        if self.waiting is None:
            return
        first, began = self.waiting
        self.waiting = None
        first.note(time.monotonic() - began)
        if self.progress is not None:
            self.progress.remove_task(self.tasks.pop(COMPILING))

    def _step(self, now: Progress) -> None:
        self._compiled()
        parts = [f"loss {now.value:.4f}  best {now.best:.4f}"] if now.hparams else []
        search = now.phase not in (*TUNERS, "judge")
        if search:
            parts += [f"median {now.numbers.get('median', float('nan')):.4f}"]
            parts += [f"failed {now.numbers.get('failures', 0)}"]
        parts += [f"{name} {brief(value)}" for name, value in now.hparams.items()]
        text = "  ".join(parts)
        if self.progress is not None:
            if now.phase not in self.tasks:
                self.tasks[now.phase] = self.progress.add_task(now.phase, total=now.total, text="")
            self.progress.update(self.tasks[now.phase], completed=now.done, text=visible(text))
        elif not self.quiet and (now.done in (1, now.total) or now.done % 10 == 0 or search):
            left = self._left(now)
            say(f"{now.phase} {now.done}/{now.total}{left}  {text}", error=True)

    def _left(self, now: Progress) -> str:
        """Estimate the time left from the steps since the first one, which compiles."""
        done, began = self.first.setdefault(now.phase, (now.done, time.monotonic()))
        if now.done == done or now.done == now.total:
            return ""
        seconds = (time.monotonic() - began) / (now.done - done) * (now.total - now.done)
        return f", {seconds:.0f} s left"


def print_warnings(caught: list[warnings.WarningMessage], known: Collection[str] = ()) -> None:
    """Print this package's warnings in a line each, except those that the result also has."""
    ours = [w for w in caught if w.category.__module__.startswith("hypergrad.")]
    for text in dict.fromkeys(str(w.message) for w in ours):
        if text not in known:
            say(f"hypergrad: warning: {' '.join(text.split())}", error=True)


@contextlib.contextmanager
def printing_warnings() -> Iterator[None]:
    """Print this package's warnings within the block in a line each, at its end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            print_warnings(caught)


def print_notes(notes: dict[str, list[dict[str, Any]]] | None) -> None:
    """Print the tables that a task adds, on standard error."""
    for note in shown_notes(notes or {}, 40):
        say(f"{note.title}:", error=True)
        table = [note.names, *note.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            say(f"  {'  '.join(cells)}".rstrip(), error=True)
        if note.left:
            say(f"  left out, in result.json under notes: {note.left}", error=True)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line; a number that is not finite becomes null."""
    say(json.dumps(to_plain(value), allow_nan=False))


def print_result(result: dict[str, Any]) -> None:
    """Print the comparison of the configurations as a table."""
    metric = result["metric"]["name"]
    has_test = any(one["test"] for one in result["configurations"].values())
    head = f"   test {metric} (95 % interval)" if has_test else ""
    say(f"{'':10s} {'validation loss':>24s}{head}")
    for name, one in result["configurations"].items():
        valid, test = one["valid"], one["test"]
        spread = f"{valid['mean']:.4f} [{valid['low']:.4f}, {valid['high']:.4f}]"
        score = f"{test['mean']:.4f} [{test['low']:.4f}, {test['high']:.4f}]" if test else ""
        say(f"{name:10s} {spread:>24s}   {score}".rstrip())
    say(
        f"each trained again on {result['num_seeds']} fresh seeds; {result['seconds']:.0f} s in all"
    )
    traces = [result[name] for name in ("trace", "random_trace") if name in result]
    for (name, seconds), trace in zip(result["clock"].items(), traces, strict=True):
        spent = max(trace["trainings"], default=0)
        say(f"{name}: {spent:.4g} trainings by count, {seconds:.0f} s")
    for warning in result["warnings"]:
        say(f"warning: {' '.join(warning.split())}")


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a result for machines: scores and hparams, without curves and traces."""
    names = ("hparams", "valid", "test")
    return {
        "interrupted": result["interrupted"],
        "metric": result["metric"],
        "configurations": {
            name: {key: one[key] for key in names} for name, one in result["configurations"].items()
        },
        "warnings": result["warnings"],
        "notes": result["notes"],
        "cost": result["cost"],
        "seconds": result["seconds"],
        "clock": result["clock"],
    }


def brief(value: Any) -> str:
    """Show a number by three digits, an array by its range, and a text as it is."""
    array = np.asarray(value)
    if array.dtype.kind == "U":
        return str(value)
    if array.ndim == 0:
        return f"{float(array):.3g}"
    return f"{float(array.min()):.2g}..{float(array.max()):.2g}"
