"""Real-time hypergradients: forward mode along a training run that continues while its hparams change."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.core import tree
from hypergrad.core.checks import check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key
from hypergrad.estimators.advice import warn_structural_zeros
from hypergrad.estimators.base import Estimate, Estimator, first_nonfinite
from hypergrad.estimators.costs import TANGENT, num_numbers
from hypergrad.estimators.unrolled.base import growth_rate, objective_parts
from hypergrad.estimators.unrolled.online import (
    OnlineState,
    check_restart,
    first_state,
    go_on,
    online_info,
    reading_interval,
)
from hypergrad.estimators.unrolled.tangent import basis, first_tangents, push_step
from hypergrad.problem import Problem, check_problem
from hypergrad.train import (
    split_key,
    trained,
)
from hypergrad.validation import check_step


def rtho(problem: Problem, interval: int = 1, *, restart_every: int | None = None) -> Estimator:
    """Carry the derivative of the weights along with training, and read a hypergradient when asked.

    Z_{t+1} = (∂Φ_t/∂w)(w_t, λ_t) Z_t + (∂Φ_t/∂λ)(w_t, λ_t),   hypergrad_t = ∂f/∂λ + (∂f/∂w) Z_t

    Each estimate trains `interval` more steps with its hparams, and reads the hypergradient at their end. So
    the hparams are updated many times in one run of training.

    **Cost:** about (1 + 1.5 num_hparams) x `interval` steps of training; memory of num_hparams states,
    whatever the horizon.

    **Limits:** while the hparams stand still this is `forward`, exact except for rounding. Once they move, Z
    sums derivatives at the values that the hparams had then, a bias that grows with `info.moved`. Where
    training is chaotic, Z grows without bound (`info.growth` above 1): restart it.

    Args:
        problem: Training loop.
        interval: Number of inner steps between two hypergradients.
        restart_every: Number of steps after which a new run begins, with Z_0 = dw_0/dλ; None: never.

    Returns:
        An estimator whose state is an `OnlineState` with Z; `info` is an `OnlineInfo` whose horizon is
        the number of steps since the run's start.

    Raises:
        ValueError: for an interval below 1 and, when traced, for a leaf that is not real.

    Reference:
        Franceschi, Donini, Frasconi, Pontil, 2017, arXiv:1703.01785, section 3.3 (RTHO).
    """
    check_problem(problem)
    check_whole("interval", interval)
    check_restart(restart_every)

    def begin(key: Key, hparams: HParams) -> OnlineState:
        tangents = first_tangents(problem, split_key(key)[0], hparams, basis(hparams))
        return first_state(problem, key, hparams)._replace(tangents=tangents)

    def init(key: Key, hparams: HParams) -> OnlineState:
        check_step(problem, hparams, real=True)
        return begin(key, hparams)

    def estimate(key: Key, state: OnlineState, hparams: HParams) -> tuple[OnlineState, Estimate]:
        check_step(problem, hparams, real=True)
        warn_structural_zeros(problem, hparams, interval)
        directions = basis(hparams)
        before = go_on(state, begin(key, hparams), restart_every)

        num_weights = len(jax.tree.leaves(trained(before.train.params)))

        def size(tangents: list[Array]) -> Array:
            return tree.norm(tangents[:num_weights])

        def body(carry: tuple, _: None) -> tuple[tuple, tuple[Array, Array]]:
            train, tangents = carry
            train, tangents, loss = push_step(problem, hparams, train, tangents, directions)
            return (train, tangents), (loss, size(tangents))

        start = (before.train, before.tangents)
        (train, tangents), (losses, norms) = jax.lax.scan(body, start, None, length=interval)
        after = before._replace(train=train, tangents=tangents)

        valid_key = split_key(key)[1]
        value, direct, adjoint = objective_parts(problem, valid_key, hparams, train)
        flat = jax.vmap(lambda tangent: tree.dot(adjoint, tangent))(tangents)
        packed, unravel = ravel_pytree(hparams)
        response = unravel(flat.astype(packed.dtype))
        growth = growth_rate(size(before.tangents), norms, late=True)
        growth = jnp.where(after.train.step > 2, growth, 1)  # Z builds up from nothing
        bad = first_nonfinite(losses, value)
        parts, horizon = (direct, response), after.train.step
        info = online_info(before, after, hparams, parts, horizon, growth, bad)
        return after, Estimate(value, tree.add(direct, response), info)

    return Estimator(init, estimate)


RTHO = Method(
    "rtho",
    "forward mode, read twenty times in a continuing run; for a few hyperparameters",
    (),
    lambda problem, horizon, space: rtho(problem, reading_interval(horizon), restart_every=horizon),
    cost=lambda problem, horizon, space: (
        (1 + TANGENT * num_numbers(space)) * reading_interval(horizon) / horizon
    ),
)
