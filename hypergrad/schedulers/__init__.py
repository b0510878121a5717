"""Schedulers: how to spend training. One method, one file, one contract (`base.Scheduler`)."""

from hypergrad.schedulers.base import Scheduler
from hypergrad.schedulers.full import full

__all__ = ["Scheduler", "full"]
