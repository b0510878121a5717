"""The study that a user holds: what was found, its trials as a table, its schedules, its report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypergrad.core import tree
from hypergrad.core.types import HParams
from hypergrad.report import trials as tables
from hypergrad.report.text import counted, duration, number
from hypergrad.searchers import Trials
from hypergrad.study import export
from hypergrad.study.disk import records


class Study(NamedTuple):
    """What a tuner found.

    Attributes:
        best: The hparams with the lowest finite objective among the trials that were trained longest in their
            step, as numpy arrays. None if no objective was finite.
        best_value: The objective of `best`; infinity if no objective was finite.
        trials: The trials of every step, in order, as numpy arrays.
        interrupted: Whether Ctrl-C ended the study.
        seconds: Wall-clock time over all sessions of the study, compilation included.
        result: The comparison with the defaults and with random search, as `result.json` has it.
        report: Path of the report. None where nothing was written.
    """

    best: HParams | None
    best_value: float
    trials: list[Trials]
    interrupted: bool
    seconds: float
    result: dict[str, Any] | None = None
    report: Path | None = None

    def __repr__(self) -> str:
        num = sum(len(step.values) for step in self.trials)
        best = (
            "no finite value" if self.best is None else f"best value {number(self.best_value, 4)}"
        )
        ended = ", interrupted" if self.interrupted else ""
        place = f"; report: {self.report}" if self.report else ""
        spent = duration(self.seconds)
        return f"<Study: {best} of {counted(num, 'trial')} in {spent}{ended}{place}>"

    @property
    def digest(self) -> str:
        """SHA-256 of the trials, bit by bit: two equal runs have the same digest.

        `result["final_digest"]` also covers the random baseline and the values that were judged.
        """
        return records.digest(self.trials)

    def hparams(self) -> dict[str, Any]:
        """Return the best hparams as {leaf name: array}.

        Raises:
            ValueError: If no trial had a finite objective.
        """
        if self.best is None:
            raise ValueError(
                f"study has no finite objective in {len(self.trials)} steps, expected one; lower the "
                "learning rates of the space"
            )
        return tree.named(self.best)

    def table(self) -> Any:
        """Return all trials, one row each: a pandas frame, or a dict of arrays without pandas."""
        return tables.frame(self.trials)

    def to_xarray(self) -> Any:
        """Return all trials as an `xarray.Dataset`; xarray is an extra.

        Raises:
            ValueError: If xarray is not installed.
        """
        return tables.dataset(self.trials)

    def schedule(self, name: str) -> Callable[..., Any]:
        """Return a tuned schedule as an `optax.Schedule`; its last value holds past its end.

        Args:
            name: Name of a leaf of the hparams, such as "lr".

        Raises:
            ValueError: If no leaf has this name, or the leaf is one value.
        """
        return export.as_schedule(self.hparams(), name)

    def export(self, path: str | Path) -> None:
        """Write the best hparams as JSON; `load_schedule(path, name)` reads a schedule back, bit by bit.

        Args:
            path: The file to write, which is replaced if it exists.
        """
        export.write(path, self.hparams())
