"""What a user holds of a study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypergrad.core import tree
from hypergrad.core.types import HParams
from hypergrad.report import table
from hypergrad.searchers import Trials
from hypergrad.study import export
from hypergrad.study.disk import records


class Study(NamedTuple):
    """What a tuner found.

    Attributes:
        best: the hparams with the lowest finite objective among those trained longest in their step, as
            numpy arrays; None if there was none.
        best_value: that objective; infinity if there was none.
        trials: those of every step, as numpy arrays, in order.
        interrupted: whether Ctrl-C ended it.
        seconds: wall-clock time, compilation included, over all its sessions.
        result: the comparison with the defaults and random search, as `result.json` has it; None from `run`.
        report: path of the report; None where nothing was written.
    """

    best: HParams | None
    best_value: float
    trials: list[Trials]
    interrupted: bool
    seconds: float
    result: dict[str, Any] | None = None
    report: Path | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the method's trials to the bit: equal for two runs that are the same.

        `result["final_digest"]` covers the random baseline and the judged values, too.
        """
        return records.digest(self.trials)

    def hparams(self) -> dict[str, Any]:
        """Return the best hparams as {leaf name: array}.

        Raises:
            ValueError: where no trial had a finite objective.
        """
        if self.best is None:
            raise ValueError(
                f"study has no finite objective in {len(self.trials)} steps, expected one; lower the "
                "learning rates of the space"
            )
        return tree.named(self.best)

    def table(self) -> Any:
        """Return all trials, one row each: a pandas frame, or a dict of arrays where pandas is missing."""
        return table.frame(self.trials)

    def to_xarray(self) -> Any:
        """Return all trials as an `xarray.Dataset`; xarray is an extra."""
        return table.dataset(self.trials)

    def schedule(self, name: str) -> Callable[..., Any]:
        """Return the best value of the leaf `name` as an `optax.Schedule`; the last value holds past its end.

        Raises:
            ValueError: for a name that is none, with the nearest, and for a leaf that is no schedule.
        """
        return export.as_schedule(self.hparams(), name)

    def export(self, path: str | Path) -> None:
        """Write the best hparams as JSON; `load_schedule(path, name)` reads a schedule back, bit by bit."""
        export.write(path, self.hparams())
