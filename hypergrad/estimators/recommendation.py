"""What a recommendation is, and the words for it."""

from typing import NamedTuple

import jax

from hypergrad.core.types import HParams
from hypergrad.estimators.base import Estimator, temporary_bytes

ELSEWHERE = (
    "keep the states in the host's memory (mixed_mode(offload=True), on an accelerator) or on a disk "
    "(reverse_on_disk(...))"
)
"""What to do where no pass fits into the memory of the device."""


class Recommendation(NamedTuple):
    """An estimator and the reasons for it.

    Attributes:
        name: Name of the estimator in `hypergrad.estimators`.
        estimator: Estimator itself; it takes a policy's φ where the space has discrete leaves.
        call: Python expression that builds it.
        reasons: Reasons of the choice, one sentence each.
    """

    name: str
    estimator: Estimator
    call: str
    reasons: list[str]

    def __str__(self) -> str:
        return "\n".join([f"use estimators.{self.call}", *(f"- {text}" for text in self.reasons)])


def estimate_bytes(estimator: Estimator, hparams: HParams) -> int:
    """Ask the compiler for the temporaries of one estimate."""
    key = jax.random.key(0)
    state = estimator.init(key, hparams)
    return temporary_bytes(jax.jit(estimator.estimate).lower(key, state, hparams).compile())


def spoken_names(names: list[str]) -> str:
    """Say which hyperparameters, three by name."""
    shown = ", ".join(f"hparams[{name!r}]" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def spoken_size(num_bytes: int) -> str:
    """Say how much memory, in a unit that suits it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
