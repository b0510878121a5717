"""Callbacks for trackers. Each needs a library of its own, which is imported when it is first used."""

from hypergrad.integrations.tensorboard import tensorboard
from hypergrad.integrations.wandb import wandb

__all__ = ["tensorboard", "wandb"]
