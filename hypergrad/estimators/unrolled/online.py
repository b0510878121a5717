"""Helpers that estimators share when they take hypergradients while training continues."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.unrolled.base import finite_leaves
from hypergrad.problem import Problem
from hypergrad.train import TrainState, init_state, split_key

NUM_READINGS = 20
"""Number of hypergradients that the command line takes in one continuing run of training."""


def reading_interval(horizon: int) -> int:
    """Return the number of steps between two of `NUM_READINGS` hypergradients of a run."""
    return max(1, horizon // NUM_READINGS)


class OnlineInfo(NamedTuple):
    """Diagnostics of a hypergradient taken while training continues.

    Attributes:
        direct: ∂f/∂λ, a pytree like `hparams`.
        response: Known part of (∂f/∂w)(dw/dλ), a pytree like `hparams`; hypergrad = direct +
            response.
        horizon: Number of training steps whose derivative is in the response, int32 `[]`. Where it is less than
            `step`, the hypergradient has short-horizon bias: the terms of earlier steps are missing.
        growth: Geometric mean growth a step of the adjoint or, in forward mode, of Z over the second half of
            the estimate's steps, `[]`; 1 in the first two steps, where Z builds up from nothing. In reverse
            mode with growth ρ < 1, the missing part is about ρ^horizon of the whole.
        first_nonfinite: First training step of the run whose loss was not finite, `step` if only the
            objective was not, -1 if none; int32 `[]`. The next estimate then starts a new run.
        step: Number of steps since the run of training started, int32 `[]`.
        moved: Distance of the hparams from those at that start, ‖λ − λ_start‖, `[]`. Above zero the weights,
            and Z in forward mode, come from a path of hparams, not from the last ones.
        finite: Whether each leaf of the weights is finite at the end of this estimate, bool `[]` each.
    """

    direct: HParams
    response: HParams
    horizon: Array
    growth: Array
    first_nonfinite: Array
    step: Array
    moved: Array
    finite: PyTree = ()


class OnlineState(NamedTuple):
    """Training that continues from estimate to estimate.

    Attributes:
        train: State of training.
        first: Hparams at the start of its run.
        tangents: Derivative Z of the state's float leaves in forward mode, leading axis `[num_hparams]`; else
            `()`.
    """

    train: TrainState
    first: HParams
    tangents: Any = ()


def first_state(problem: Problem, key: Key, hparams: HParams) -> OnlineState:
    """Start a run of training that continues from estimate to estimate; `key` is that of an estimate."""
    first = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), hparams)
    return OnlineState(init_state(problem, split_key(key)[0], hparams), first)


def go_on(state: OnlineState, fresh: OnlineState, restart_every: int | None) -> OnlineState:
    """Return `state` with the minibatches of `fresh`, or `fresh` where the run is over or not finite.

    Successive estimates with the same key make one run: that of `init_state`.
    """
    everything = [x.astype(jnp.float32) for x in tree.floats((state.train.params, state.tangents))]
    over = ~jnp.isfinite(tree.norm(everything))
    if restart_every is not None:
        over |= state.train.step >= restart_every
    key = fresh.train.key
    pair = (s._replace(train=s.train._replace(key=())) for s in (fresh, state))
    chosen = tree.choose(over, *pair)
    return chosen._replace(train=chosen.train._replace(key=key))


def online_info(
    before: OnlineState,
    after: OnlineState,
    hparams: HParams,
    parts: tuple[HParams, HParams],
    horizon: int | Array,
    growth: Array,
    bad: Array,
) -> OnlineInfo:
    """Make the diagnostics of an estimate.

    Args:
        before: Training before this estimate.
        after: Training after this estimate.
        hparams: Hyperparameters of this estimate.
        parts: Direct gradient and response.
        horizon: Number of steps differentiated through.
        growth: Growth a step of the adjoint or of Z.
        bad: First non-finite step of this estimate (`first_nonfinite`).
    """
    return OnlineInfo(
        *parts,
        horizon=jnp.asarray(horizon, jnp.int32),
        growth=growth,
        first_nonfinite=jnp.where(bad < 0, bad, bad + before.train.step).astype(jnp.int32),
        step=after.train.step,
        moved=tree.norm(jax.tree.map(jnp.subtract, hparams, after.first)),
        finite=finite_leaves(after.train),
    )


def check_restart(restart_every: int | None) -> None:
    """Raise a `ValueError` unless `restart_every` is None or a whole number of at least one step."""
    if restart_every is not None:
        check_whole("restart_every", restart_every)
