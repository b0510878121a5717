"""The contract of every searcher: what to try next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.models.targets import behind
from hypergrad.space import to_units


class Trials(NamedTuple):
    """What came of N trials; every array has the leading axis `[N]`.

    Attributes:
        hparams: what was tried.
        values: last objective of each; NaN where it diverged.
        steps: training steps each was given, int32.
        parent: index of the member each descends from, int32 (its own where nothing was copied).
        info: a dict of further arrays, for people.
    """

    hparams: HParams
    values: Array
    steps: Array
    parent: Array
    info: dict[str, Any]


def _nothing(state: PyTree) -> dict[str, Array]:
    return {}


class Searcher(NamedTuple):
    """What to try, as a value.

    Attributes:
        init: (key) -> state, whose structure, shapes and dtypes stay those of the first.
        ask: (key, state, num) -> hparams `[num]`.
        tell: (state, outcome) -> state.
        info: (state) -> numbers about the last `tell`, for people; `done`, where there is one, ends the
            study when true.
        host: whether `ask` and `tell` work on the host, so that they cannot be traced.
    """

    init: Callable[[Key], PyTree]
    ask: Callable[[Key, PyTree, int], HParams]
    tell: Callable[[PyTree, Trials], PyTree]
    info: Callable[[PyTree], dict[str, Array]] = _nothing
    host: bool = False


def observe(space: PyTree, outcome: Trials) -> tuple[Array, Array]:
    """Return the unit coordinates of an outcome's trials, `[N, D]`, and their scores, `[N]`.

    The score is the objective, infinite where that is NaN or infinite of either sign. A trial that a
    scheduler stopped early scores worse than all that were trained longer, in the order of steps first
    and objective second: a low objective after a few steps is no match for one after many. A trial that
    broke a constraint scores worse than all others of all generations (`outputs.behind`), by its violation.

    Raises:
        ValueError: in one line, where hparams are not of the space or another number than values.
    """
    check_outcome(space, outcome)
    values = jnp.asarray(outcome.values, jnp.result_type(float))
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    steps = jnp.where(jnp.isfinite(values), outcome.steps, 0)
    longest = steps == jnp.max(steps)
    worst = jnp.max(jnp.where(longest & jnp.isfinite(values), values, -jnp.inf))
    order = jnp.lexsort((values, -steps))
    place = jnp.zeros(values.shape, values.dtype).at[order].set(jnp.arange(1.0, len(values) + 1))
    early = worst + jnp.maximum(jnp.abs(worst), 1) * place / len(values)
    scores = jnp.where(longest | ~jnp.isfinite(values), values, early)
    if "violation" in outcome.info:  # of schedulers.constrained
        scores = behind(scores, outcome.info["violation"])
    return to_units(space, outcome.hparams), scores


def check_outcome(space: PyTree, outcome: Trials) -> None:
    """Raise a `ValueError` unless an outcome has the leaves of a space and one value for each trial."""
    names = tree.leaf_names(space)
    if jax.tree.structure(space) != jax.tree.structure(outcome.hparams):
        raise ValueError(
            f"hparams has the leaves {tree.leaf_names(outcome.hparams)}, expected those of the space, "
            f"{names}; tell the searcher the outcome of what it was asked for"
        )
    shape = jnp.shape(outcome.values)
    for name, leaf in zip(names, jax.tree.leaves(outcome.hparams), strict=True):
        num = jnp.shape(leaf)[:1]
        if len(shape) != 1 or num != shape or not shape[0]:
            raise ValueError(
                f"values has shape {shape}, expected {num or '[N]'}, one for each trial of "
                f"hparams[{name!r}]; tell the searcher the outcome of what it was asked for"
            )
    if jnp.shape(outcome.steps) != shape:
        raise ValueError(
            f"steps has shape {jnp.shape(outcome.steps)}, expected {shape} as values have; "
            "give each trial its training steps"
        )


def final_values(outcome: Trials) -> np.ndarray:
    """Return the objectives that may be the best of an outcome, `[N]`; infinity for the others.

    Those are the finite ones of the trials that were trained longest: one that a scheduler stopped early
    may be low only because its training was short.
    """
    values, steps = np.asarray(outcome.values), np.asarray(outcome.steps)
    finite = np.isfinite(values)
    if not finite.any():
        return np.full_like(values, np.inf)
    return np.where(finite & (steps == steps[finite].max()), values, np.inf)
