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
    """List the numbers of a step as `phase/name`: value, best, what the journal has of the best member, hparams.

    Arrays of hparams (schedules, one number a layer) are given by their mean.
    """
    values = np.asarray(now.record.get("values", [now.value]), float)
    member = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    found: dict[str, Any] = {"value": now.value, "best": now.best}
    for name, value in now.record.items():
        array = np.asarray(value)
        if array.dtype.kind in "biuf" and array.ndim < 2 and name not in ("step", "values", "best"):
            found[name] = array[member] if array.shape == values.shape else array
    found |= {f"hparams.{name}": np.mean(value) for name, value in now.hparams.items()}
    pairs = ((f"{now.phase}/{name}", np.asarray(value)) for name, value in found.items())
    return {name: float(value) for name, value in pairs if value.ndim == 0 and np.isfinite(value)}
