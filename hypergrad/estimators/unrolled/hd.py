"""Hypergradient descent: the learning rate's derivative from two gradients that training computes anyway."""

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.autodiff import depends
from hypergrad.core.checks import check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import (
    Estimate,
    Estimator,
    first_nonfinite,
    inner_loss,
)
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
    draw_batch,
    init_state,
    split_key,
    step_and_grads,
    trained,
    unroll_losses,
    update,
)
from hypergrad.validation import check_step


def hd(problem: Problem, interval: int = 1, *, restart_every: int | None = None) -> Estimator:
    """Differentiate the next training loss through the last update, with its gradient held constant.

    w_t = w_{t−1} + u(g_{t−1}, λ),   hypergrad = g_tᵀ ∂u(g_{t−1}, λ)/∂λ,   g_t = ∇_w L_t(w_t)

    For SGD with the learning rate α this is −g_t · g_{t−1}; for Adam −g_t · m̂/(√v̂ + ε). Any hparam of any
    optimizer works, because the optimizer's own update is differentiated.

    **Cost:** `interval` steps of training and one gradient more; no second derivatives.

    **Limits:** the method descends the *training* loss, and sees one step: learning rates end near the largest
    stable one early on and fall as gradients of successive minibatches disagree. A leaf that acts through the
    loss or the initial weights is refused by name. Of a schedule only the entry of the last step gets a
    gradient.

    Args:
        problem: Training loop.
        interval: Number of inner steps trained by an estimate.
        restart_every: Number of steps after which a new run begins; None: never.

    Returns:
        An estimator whose state is an `OnlineState`; `info` is an `OnlineInfo` with a horizon of 1. The value
        is the objective, as everywhere; the hypergradient is that of the training loss.

    Raises:
        ValueError: for settings out of range and, when traced, for a leaf that is not real or not an
            argument of the optimizer alone, by name.

    Reference:
        Baydin, Cornish, Martínez Rubio, Schmidt, Wood, 2018, arXiv:1703.04782, Algorithms 4 and 6 (SGD-HD,
        Adam-HD).
    """
    check_problem(problem)
    check_whole("interval", interval)
    check_restart(restart_every)

    def init(key: Key, hparams: HParams) -> OnlineState:
        return first_state(problem, key, hparams)

    def estimate(key: Key, state: OnlineState, hparams: HParams) -> tuple[OnlineState, Estimate]:
        check_step(problem, hparams, real=True)
        _check_optimizer_alone(problem, hparams)
        before = go_on(state, first_state(problem, key, hparams), restart_every)
        last, losses = unroll_losses(problem, hparams, before.train, interval - 1)
        train, loss, grads = step_and_grads(problem, hparams, last)

        def updated(hparams: HParams) -> PyTree:
            return update(problem, hparams, last, draw_batch(problem, last), loss, grads)[0]

        _, pull = jax.vjp(updated, hparams)
        _, next_loss, slope = step_and_grads(problem, hparams, train)
        response = pull(slope)[0]
        valid = problem.valid_batch(split_key(key)[1])
        value = problem.objective(train.params, hparams, valid)
        direct = jax.tree.map(jnp.zeros_like, response)
        bad = first_nonfinite(jnp.append(losses, loss), value + next_loss)
        after, growth = before._replace(train=train), jnp.ones((), jnp.float32)
        info = online_info(before, after, hparams, (direct, response), 1, growth, bad)
        return after, Estimate(value, response, info)

    return Estimator(init, estimate)


HD = Method(
    "hd",
    "how the last update changed the training loss, twenty times in a run; for the optimizer's settings",
    (),
    lambda problem, horizon, space: hd(problem, reading_interval(horizon), restart_every=horizon),
    cost=lambda problem, horizon, space: (reading_interval(horizon) + 1) / horizon,
)


def _check_optimizer_alone(problem: Problem, hparams: HParams) -> None:
    """Raise a `ValueError` for a leaf that the loss reads, and for a leaf that the optimizer does not read."""
    for name, (in_loss, in_update) in zip(
        tree.leaf_names(hparams), _ways(problem, hparams), strict=True
    ):
        if in_loss or not in_update:
            place = (
                "is read by problem.loss" if in_loss else "does not reach the optimizer's update"
            )
            raise ValueError(
                f"hparams[{name!r}] {place}, expected an argument of problem.optimizer alone, because "
                "hypergradient descent lowers the training loss by the update; use one_step(...) or "
                "reverse(...) for it, or close over it"
            )


def _ways(problem: Problem, hparams: HParams) -> list[tuple[bool, bool]]:
    """Tell, for each leaf, whether the loss reads it, and whether the second update does."""

    def loss(hparams: HParams) -> tuple[Array, PyTree]:
        start = init_state(problem, jax.random.key(0), jax.lax.stop_gradient(hparams))
        value = inner_loss(problem, start.params, draw_batch(problem, start))
        return jax.value_and_grad(value)(trained(start.params), hparams)

    def trained_weights(hparams: HParams) -> list[Array]:
        held = jax.lax.stop_gradient(hparams)
        start = init_state(problem, jax.random.key(0), held)
        last, _ = unroll_losses(problem, held, start, 1)
        batch = draw_batch(problem, last)
        _, value, grads = step_and_grads(problem, held, last)
        return tree.floats(update(problem, hparams, last, batch, value, grads)[0])

    return list(zip(depends(loss, hparams), depends(trained_weights, hparams), strict=True))
