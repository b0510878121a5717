"""Truncated reverse-mode hypergradients: exact training, differentiated through its last steps only."""

from typing import Any

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key
from hypergrad.estimators.advice import warn_structural_zeros
from hypergrad.estimators.base import Estimate, Estimator, first_nonfinite
from hypergrad.estimators.costs import BACKWARD, pass_back
from hypergrad.estimators.unrolled.adjoint import Backward, mixed_mode
from hypergrad.estimators.unrolled.base import unrolled_estimate
from hypergrad.estimators.unrolled.online import (
    OnlineState,
    check_restart,
    first_state,
    go_on,
    online_info,
    reading_interval,
)
from hypergrad.problem import Problem, check_problem
from hypergrad.train import (
    TrainState,
    init_state,
    split_key,
    unroll_losses,
)
from hypergrad.validation import check_step


def truncated(
    problem: Problem,
    horizon: int,
    window: int,
    *,
    backward: Backward | None = None,
    warm_start: bool = False,
    restart_every: int | None = None,
) -> Estimator:
    """Train for `horizon` steps and differentiate through the last `window` of them.

    hypergrad ≈ ∂f/∂λ + Σ_{t ≥ horizon − window} ᾱ_{t+1} ∂Φ_t/∂λ

    **Cost:** `horizon` steps of training and a reverse pass over `window`; memory of the window.

    **Limits:** biased: the terms of earlier steps are dropped. Where training contracts, they shrink
    geometrically; learning rates and schedules suffer from short-horizon bias (too small steps look
    best). Entries of a schedule before the window get exactly zero. `window = horizon` is `reverse`
    without the term through `init`.

    Args:
        problem: Training loop.
        horizon: Number of inner steps trained by an estimate.
        window: Number of last steps that are differentiated, at most `horizon`.
        backward: Backward pass, as in `reverse`.
        warm_start: Whether to continue from the end of the last estimate's training, instead of from the start.
        restart_every: Number of steps after which a warm start begins a new run, such as the length of a
            schedule; None: never.

    Returns:
        A stateless estimator, whose `info` is an `UnrollInfo` with the window for its `horizon`. With
        `warm_start`, its state is an `OnlineState` and its `info` an `OnlineInfo`.

    Raises:
        ValueError: for a window outside [1, horizon] and, when traced, for a leaf that is not real.

    Reference:
        Shaban, Cheng, Hatch, Boots, 2019, arXiv:1810.10667 (K-RMD); bias: Wu, Ren, Liao, Grosse, 2018,
        arXiv:1803.02021.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    check_whole("window", window)
    if window > horizon:
        raise ValueError(
            f"window is {window}, expected at most horizon = {horizon}; use reverse(...) for the whole run"
        )
    check_restart(restart_every)
    if restart_every is not None and not warm_start:
        raise ValueError(
            f"restart_every is {restart_every} without warm_start, expected None, because each estimate starts "
            "a new run; pass warm_start=True"
        )
    backward = mixed_mode() if backward is None else backward

    def init(key: Key, hparams: HParams) -> OnlineState | tuple[()]:
        return first_state(problem, key, hparams) if warm_start else ()

    def through_window(
        key: Key, hparams: HParams, start: TrainState
    ) -> tuple[Estimate, Array, TrainState]:
        """Train from `start`; return the estimate, its first bad step, and the state at the end."""
        frozen = jax.lax.stop_gradient(hparams)
        early = []
        if horizon > window:  # jax_disable_jit knows no loop without steps
            start, losses = unroll_losses(problem, frozen, start, horizon - window)
            early = [losses]
        result, late, _, final = unrolled_estimate(
            problem, key, hparams, start, window, backward, through_init=False
        )
        bad = first_nonfinite(jnp.concatenate([*early, late]), result.value)
        return result, bad, final

    def estimate(key: Key, state: Any, hparams: HParams) -> tuple[Any, Estimate]:
        check_step(problem, hparams, real=True)
        warn_structural_zeros(problem, hparams, window, through_init=False)
        if not warm_start:
            start = init_state(problem, split_key(key)[0], jax.lax.stop_gradient(hparams))
            result, bad, _ = through_window(key, hparams, start)
            return state, result._replace(info=result.info._replace(first_nonfinite=bad))
        state = go_on(state, first_state(problem, key, hparams), restart_every)
        result, bad, final = through_window(key, hparams, state.train)
        parts, growth = (result.info.direct, result.info.response), result.info.growth
        after = state._replace(train=final)
        info = online_info(state, after, hparams, parts, window, growth, bad)
        return after, result._replace(info=info)

    return Estimator(init, estimate)


def one_step(problem: Problem, interval: int = 1, *, restart_every: int | None = None) -> Estimator:
    """Differentiate the objective through the last step of training alone, while training continues.

    w' = Φ_t(w, λ),   hypergrad ≈ ∂f(w', λ)/∂λ + (∂f/∂w') ∂Φ_t(w, λ)/∂λ

    The step is that of the problem's own optimizer, with everything in it that depends on λ: learning rates and
    momenta get a hypergradient, as penalties and weights of examples do. `darts` is a cheaper form that
    sees the loss alone.

    **Cost:** `interval` steps of training and one step's reverse pass.

    **Limits:** the shortest horizon there is, hence the strongest short-horizon bias: only the effect of λ on
    the last step counts. For penalties and weights the sign is mostly right; learning rates are driven
    too low. Of a schedule only the entry of the last step gets a gradient.

    Args:
        problem: Training loop.
        interval: Number of inner steps trained by an estimate.
        restart_every: Number of steps after which a new run begins; None: never.

    Returns:
        `truncated` with a window of 1 and a warm start.

    Raises:
        ValueError: as `truncated` does.

    Reference:
        Luketina, Berglund, Greff, Raiko, 2016, arXiv:1511.06727; Liu, Simonyan, Yang, 2019,
        arXiv:1806.09055, equation 6.
    """
    check_whole("interval", interval)
    return truncated(problem, interval, 1, warm_start=True, restart_every=restart_every)


TRUNCATED = Method(
    "truncated",
    "backwards through the last quarter of the run: cheaper, biased towards what helps soon",
    (),
    lambda problem, horizon, space: truncated(problem, horizon, max(1, horizon // 4)),
    cost=lambda problem, horizon, space: (
        1 + pass_back(problem, max(1, horizon // 4), space) / horizon
    ),
)

ONE_STEP = Method(
    "one_step",
    "backwards through the last step alone, twenty times in a continuing run",
    (),
    lambda problem, horizon, space: one_step(
        problem, reading_interval(horizon), restart_every=horizon
    ),
    cost=lambda problem, horizon, space: (reading_interval(horizon) + BACKWARD) / horizon,
)
