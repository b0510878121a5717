"""Warm-up and cosine decay of the learning rate, with what they share in the tasks of networks."""

from typing import Any

import jax
import numpy as np

from hypergrad.space import Dimension, LogReal, Real, schedules


def rate_space(peak: float) -> dict[str, Dimension]:
    """Build the space of `rate`, with the default peak; peaks reach a factor of 30 to both sides."""
    return {
        "peak": LogReal(peak / 30, peak * 30, default=peak),
        "warmup": Real(0.01, 0.6, default=0.1),
        "end": LogReal(1e-3, 1.0, default=0.1),
    }


def rate(hparams: Any, horizon: int) -> Any:
    """Return the schedule: up to `peak` in a share `warmup` of the horizon, then down to `end` times it."""
    peak, steps = hparams["peak"], hparams["warmup"] * horizon
    return schedules.warmup_cosine(0.0, peak, steps, horizon, hparams["end"] * peak)


def kernels(params: Any) -> Any:
    """Return an optax mask that is true for matrices and filters: biases and scales do not decay."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def snippet(hparams: Any, horizon: int, optimizer: str) -> str:
    """Write the schedule as plain optax code, before the line that builds the optimizer of it."""
    peak, warmup, end = (float(np.asarray(hparams[n])) for n in ("peak", "warmup", "end"))
    return f"""import jax
import optax

rate = optax.warmup_cosine_decay_schedule(
    0.0, {peak:.6g}, {warmup * horizon:.6g}, {horizon}, {end * peak:.6g}
)
{optimizer}
"""
