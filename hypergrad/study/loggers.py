"""Logs for trackers. Each needs its own library, which is imported when the log is made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hypergrad.core.checks import library
from hypergrad.core.files import to_plain
from hypergrad.study.callbacks import Callback, Ended, Progress, jsonl, scalars


def tensorboard(directory: str | Path) -> Callback:
    """Write event files for TensorBoard: the scalars of every step, and at the end the best schedules.

    A schedule is one curve over training steps, `schedule/lr`.

    Args:
        directory: Directory of the event files; `tensorboard --logdir DIRECTORY` shows them.

    Raises:
        ValueError: without tensorboardX.
    """
    writers: list[Any] = []
    make = library("tensorboardX", "tensorboard").SummaryWriter

    def start(description: dict[str, Any]) -> None:
        writers.append(make(str(directory)))

    def step(now: Progress) -> None:
        for name, value in scalars(now).items():
            writers[0].add_scalar(name, value, now.done)

    def end(study: Ended | None) -> None:
        best = {} if study is None or study.best is None else study.hparams()
        for name, value in best.items():
            for index, item in enumerate(value if np.ndim(value) == 1 else []):
                writers[0].add_scalar(f"schedule/{name}", float(item), index)
        writers[0].close()

    return Callback(start, step, end)


def wandb(directory: str | Path, *, project: str = "hypergrad", mode: str = "offline") -> Callback:
    """Write a run of Weights & Biases: study.json as its config and the scalars of every step.

    Args:
        directory: Directory of the run; `wandb sync DIRECTORY/wandb/offline-run-*` uploads it.
        project: Project of the run.
        mode: Mode of the run, "offline" or "online" to upload as it goes.

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
            config=to_plain(description),
            settings=tracker.Settings(silent=True, console="off"),
            reinit="create_new",
        )
        runs.append(run)

    def step(now: Progress) -> None:
        runs[0].log(scalars(now))

    def end(study: Ended | None) -> None:
        if study is not None:
            runs[0].summary["best_value"] = study.best_value
        runs[0].finish(exit_code=1 if study is None else 0)

    return Callback(start, step, end)


LOGS: dict[str, Callable[..., Callback]] = {
    "jsonl": jsonl,
    "tensorboard": tensorboard,
    "wandb": wandb,
}

_PLACES = {"jsonl": "log.jsonl", "tensorboard": "tensorboard", "wandb": "."}


def log(name: str, directory: Path) -> Callback:
    """Make one of `LOGS` that writes within the folder of a study.

    Raises:
        ValueError: where its library is not installed.
    """
    return LOGS[name](directory / _PLACES[name])
