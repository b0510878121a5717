"""TensorBoard, through tensorboardX."""

from pathlib import Path
from typing import Any

import numpy as np

from hypergrad.callbacks import Callback, Progress
from hypergrad.integrations.base import library, scalars
from hypergrad.study import Study


def tensorboard(directory: str | Path) -> Callback:
    """Write event files for TensorBoard: the scalars of every step, and at the end the best schedules.

    A schedule is one curve over training steps, `schedule/lr`.

    Args:
        directory: of the event files; `tensorboard --logdir DIRECTORY` shows them.

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

    def end(study: Study | None) -> None:
        best = {} if study is None or study.best is None else study.hparams()
        for name, value in best.items():
            for index, item in enumerate(value if np.ndim(value) == 1 else []):
                writers[0].add_scalar(f"schedule/{name}", float(item), index)
        writers[0].close()

    return Callback(start, step, end)
