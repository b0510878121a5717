"""Truncated reverse-mode hypergradients: exact training, differentiated through its last steps only."""

import jax

from hypergrad.adjoint import Backward, mixed_mode
from hypergrad.estimators.base import (
    Estimator,
    check_real,
    first_nonfinite,
    split_key,
    unrolled_estimate,
    warn_structural_zeros,
)
from hypergrad.problem import Problem, check_horizon, check_problem
from hypergrad.train import init_state, unroll_losses


def truncated(
    problem: Problem, horizon: int, window: int, *, backward: Backward | None = None
) -> Estimator:
    """Train for `horizon` steps and differentiate through the last `window` of them.

    hypergrad ≈ ∂f/∂λ + Σ_{t ≥ horizon − window} ᾱ_{t+1} ∂Φ_t/∂λ

    **Cost:** `horizon` steps of training and a reverse pass over `window`; memory of the window.

    **Limits:** biased: the terms of earlier steps are dropped. Where training contracts, they shrink
    geometrically; learning rates and schedules suffer from short-horizon bias (too small steps look
    best). Entries of a schedule before the window get exactly zero. `window = horizon` is `reverse`
    without the term through `init`.

    Args:
        problem: the training loop.
        horizon: number of inner steps trained.
        window: number of last steps differentiated, at most `horizon`.
        backward: as in `reverse`.

    Returns:
        A stateless estimator; `info` is an `UnrollInfo` whose `horizon` is the window.

    Raises:
        ValueError: for a window outside [1, horizon] and, when traced, for a leaf that is not real.

    Reference:
        Shaban, Cheng, Hatch, Boots, 2019, arXiv:1810.10667 (K-RMD); bias: Wu, Ren, Liao, Grosse, 2018,
        arXiv:1803.02021.
    """
    check_problem(problem)
    check_horizon(horizon)
    check_horizon(window, "window")
    if window > horizon:
        raise ValueError(
            f"window is {window}, expected at most horizon = {horizon}; use reverse(...) for the whole run"
        )
    backward = mixed_mode() if backward is None else backward

    def init(key, hparams):
        return ()

    def estimate(key, state, hparams):
        check_real(problem, hparams)
        warn_structural_zeros(problem, hparams, window, through_init=False)
        frozen = jax.lax.stop_gradient(hparams)
        start = init_state(problem, split_key(key)[0], frozen)
        start, early = unroll_losses(problem, frozen, start, horizon - window)
        result, late, _ = unrolled_estimate(
            problem, key, hparams, start, window, backward, through_init=False
        )
        losses = jax.numpy.concatenate([early, late])
        nonfinite = first_nonfinite(losses, result.value)
        return state, result._replace(info=result.info._replace(first_nonfinite=nonfinite))

    return Estimator(init, estimate)
