"""Callbacks for trackers. Each needs a library of its own, which is imported when it is first used."""

from collections.abc import Callable
from pathlib import Path

from hypergrad.callbacks import Callback, jsonl
from hypergrad.integrations.tensorboard import tensorboard
from hypergrad.integrations.wandb import wandb

__all__ = ["LOGS", "log", "tensorboard", "wandb"]

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
