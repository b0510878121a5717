"""Weights & Biases, offline unless told otherwise."""

from pathlib import Path
from typing import Any

from hypergrad.callbacks import Callback, Progress
from hypergrad.integrations.base import library, scalars
from hypergrad.storage import plain
from hypergrad.study import Study


def wandb(directory: str | Path, *, project: str = "hypergrad", mode: str = "offline") -> Callback:
    """Write a run of Weights & Biases: study.json as its config and the scalars of every step.

    Args:
        directory: where the run is kept; `wandb sync DIRECTORY/wandb/offline-run-*` uploads it.
        project: of the run.
        mode: "offline", or "online" to upload as it goes.

    Raises:
        ValueError: without wandb.
    """
    tracker: Any = library("wandb", "wandb")
    runs: list[Any] = []

    def start(description: dict[str, Any]) -> None:
        run = tracker.init(
            project=project,
            dir=str(directory),
            mode=mode,
            config=plain(description),
            settings=tracker.Settings(silent=True, console="off"),
            reinit="create_new",
        )
        runs.append(run)

    def step(now: Progress) -> None:
        runs[0].log(scalars(now))

    def end(study: Study | None) -> None:
        if study is not None:
            runs[0].summary["best_value"] = study.best_value
        runs[0].finish(exit_code=1 if study is None else 0)

    return Callback(start, step, end)
