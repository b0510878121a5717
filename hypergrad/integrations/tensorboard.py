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
    writer: Any = library("tensorboardX", "tensorboard").SummaryWriter(str(directory))

    def step(now: Progress) -> None:
        for name, value in scalars(now).items():
            writer.add_scalar(name, value, now.done)

    def end(study: Study | None) -> None:
        best = {} if study is None else study.hparams()
        for name, value in best.items():
            if np.ndim(value) == 1:
                for index, item in enumerate(value):
                    writer.add_scalar(f"schedule/{name}", float(item), index)
        writer.close()

    return Callback(step=step, end=end)
