"""Trackers and Optuna. Each needs a library of its own, which is imported when it is first used."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypergrad.callbacks import Callback, jsonl
from hypergrad.integrations.base import library
from hypergrad.integrations.optuna import optuna_searcher
from hypergrad.integrations.optuna_trials import export_trials, import_trials
from hypergrad.integrations.tensorboard import tensorboard
from hypergrad.integrations.wandb import wandb

if TYPE_CHECKING:
    from hypergrad.integrations.samplers import BayesSampler, CrossEntropySampler

__all__ = [
    "LOGS",
    "BayesSampler",
    "CrossEntropySampler",
    "export_trials",
    "import_trials",
    "log",
    "optuna_searcher",
    "tensorboard",
    "wandb",
]

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


def __getattr__(name: str) -> Any:
    """Import the samplers when they are asked for: they are classes of Optuna's."""
    if name not in ("BayesSampler", "CrossEntropySampler"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    library("optuna", "optuna", "integration")
    from hypergrad.integrations import samplers

    return getattr(samplers, name)
