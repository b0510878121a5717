"""The contract of every searcher, which suggests the next trials."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.models.targets import behind
from hypergrad.space import to_units


class Trials(NamedTuple):
    """Results of N trials; every array has the leading axis `[N]`.

    Attributes:
        hparams: Hyperparameters that were tried.
        values: Last objective of each; NaN where it diverged.
        steps: Training steps of each, int32.
        parent: Index of the member that each descends from, int32 (its own where nothing was copied).
        info: Dict of further arrays, for people.
    """

    hparams: HParams
    values: Array
    steps: Array
    parent: Array
    info: dict[str, Any]


class SearcherWarning(UserWarning):
    """A search that ends, or is blind, before its budget is spent."""


def _nothing(state: PyTree) -> dict[str, Array]:
    return {}


class Searcher(NamedTuple):
    """A way to suggest trials, as a value.

    Attributes:
        init: (key) -> state, whose structure, shapes and dtypes never change.
        ask: (key, state, num) -> hparams `[num]`.
        tell: (state, trials) -> state.
        info: (state) -> numbers about the last `tell`, for people; `done`, where there is one, ends the
            study when true, and `tables_settled` says that it will try no other option any more.
        host: Whether `ask` and `tell` work on the host, so that they cannot be traced.
    """

    init: Callable[[Key], PyTree]
    ask: Callable[[Key, PyTree, int], HParams]
    tell: Callable[[PyTree, Trials], PyTree]
    info: Callable[[PyTree], dict[str, Array]] = _nothing
    host: bool = False


def guarded(space: PyTree, searcher: Searcher) -> Searcher:
    """Return a searcher that checks what it is asked for and told, so that its own functions need not.

    Its functions broadcast rows of numbers over trials, whatever `jax_numpy_rank_promotion` says.
    """

    def init(key: Key) -> PyTree:
        with jax.numpy_rank_promotion("allow"):
            return searcher.init(key)

    def ask(key: Key, state: PyTree, num: int) -> HParams:
        check_whole("num", num)
        with jax.numpy_rank_promotion("allow"):
            return searcher.ask(key, state, int(num))

    def tell(state: PyTree, trials: Trials) -> PyTree:
        check_trials(space, trials)
        with jax.numpy_rank_promotion("allow"):
            return searcher.tell(state, trials)

    def info(state: PyTree) -> dict[str, Array]:
        with jax.numpy_rank_promotion("allow"):
            return searcher.info(state)

    return searcher._replace(init=init, ask=ask, tell=tell, info=info)


def check_trials(space: PyTree, trials: Trials) -> None:
    """Raise a `ValueError` unless trials have the leaves of a space, and one value and count of steps each."""
    ours, theirs = tree.leaf_names(space), tree.leaf_names(trials.hparams)
    if jax.tree.structure(space) != jax.tree.structure(trials.hparams):
        raise ValueError(
            f"hparams has the leaves {theirs}, expected those of the space, {ours}; "
            "tell the searcher the results of its own suggestions"
        )
    shape, steps = jnp.shape(trials.values), jnp.shape(trials.steps)
    for name, leaf in tree.named(trials.hparams).items():
        num = jnp.shape(leaf)[:1]
        if len(shape) != 1 or num != shape or not shape[0]:
            raise ValueError(
                f"values has shape {shape}, expected {num or '[N]'}, one for each trial of hparams[{name!r}]; "
                "tell the searcher the results of its own suggestions"
            )
    if steps != shape:
        raise ValueError(
            f"steps has shape {steps}, expected {shape} as values; give each trial its training steps"
        )


def observe(space: PyTree, trials: Trials) -> tuple[Array, Array]:
    """Return the unit coordinates of trials, `[N, D]`, and their scores, `[N]`.

    The score is the objective, infinite where that is NaN or infinite of either sign. A trial that a
    scheduler stopped early scores worse than all that were trained longer, in the order of steps first
    and objective second: a low objective after a few steps is no match for one after many. A trial that
    broke a constraint scores worse than all others of all generations (`targets.behind`), by its violation.
    """
    values = jnp.asarray(trials.values, jnp.result_type(float))
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    steps = jnp.where(jnp.isfinite(values), trials.steps, 0)
    longest = steps == jnp.max(steps)
    worst = jnp.max(jnp.where(longest & jnp.isfinite(values), values, -jnp.inf))
    order = jnp.lexsort((values, -steps))
    place = jnp.zeros(values.shape, values.dtype).at[order].set(jnp.arange(1.0, len(values) + 1))
    early = worst + jnp.maximum(jnp.abs(worst), 1) * place / len(values)
    scores = jnp.where(longest | ~jnp.isfinite(values), values, early)
    if "violation" in trials.info:  # of schedulers.constrained
        scores = behind(scores, trials.info["violation"])
    return to_units(space, trials.hparams), scores


def final_values(trials: Trials) -> np.ndarray:
    """Return the objectives among which the best is chosen, `[N]`; infinity for the others.

    Those are the finite objectives of the trials that were trained longest: an objective of a trial that a
    scheduler stopped early may be low only because its training was short.
    """
    values, steps = np.asarray(trials.values), np.asarray(trials.steps)
    finite = np.isfinite(values)
    if not finite.any():
        return np.full_like(values, np.inf)
    return np.where(finite & (steps == steps[finite].max()), values, np.inf)
