"""What every tracker shares: the scalars of a step, and a plain word where its library is missing."""

from importlib import import_module
from typing import Any

import numpy as np

from hypergrad.callbacks import Progress


def library(module: str, extra: str) -> Any:
    """Import a library that an extra installs, or raise a `ValueError` that says how to install it."""
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(
            f"log {extra!r} needs {module}, which is not installed; "
            f"install the extra: pip install 'hypergrad-jax[{extra}]'"
        ) from None


def scalars(now: Progress) -> dict[str, float]:
    """List the finite numbers of a step as `phase/name`: value, best, the record, and `hparams.name`.

    Arrays of hparams (schedules, one number a layer) are given by their mean.
    """
    means = {f"hparams.{name}": np.mean(value) for name, value in now.hparams.items()}
    found = {"value": now.value, "best": now.best, **now.record, **means}
    return {
        f"{now.phase}/{name}": float(value) for name, value in found.items() if np.isfinite(value)
    }
