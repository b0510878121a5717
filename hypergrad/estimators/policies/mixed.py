"""Hypergradients of real, integer and categorical leaves at once: the direct part and the response to each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_function, check_kind, check_whole
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.advice import advice
from hypergrad.estimators.base import (
    Estimate,
    Estimator,
    Precondition,
    Through,
    first_nonfinite,
)
from hypergrad.estimators.policies.draws import Draws, check_policy, check_shared, expected, sampled
from hypergrad.estimators.policies.policy import Policy
from hypergrad.estimators.unrolled.base import UnrollInfo, by_unrolling, objective_parts
from hypergrad.problem import Problem, check_problem
from hypergrad.train import init_state, split_key, unroll_losses
from hypergrad.validation import check_step


class MixedInfo(NamedTuple):
    """Diagnostics of a hypergradient of a policy and of real leaves.

    Attributes:
        direct: Part at fixed weights, a pytree like φ; ENAS follows nothing else.
        response: Part by way of the weights, likewise; hypergrad = direct + response.
        horizon: Number of steps differentiated through, or trained, int32 `[]`.
        growth: Growth, as in `UnrollInfo`, `[]`.
        first_nonfinite: First non-finite step, as in `UnrollInfo`.
        direct_norm, response_norm: Euclidean norms of the two parts, `[]`.
        cosine: Cosine between them, `[]`; near −1, following `direct` alone goes the wrong way; 0 where one is
            zero.
        entropy: Entropy of the policy in nats, `[]`.
        inner: Info of the estimator that differentiated the expected problem.
    """

    direct: PyTree
    response: PyTree
    horizon: Array
    growth: Array
    first_nonfinite: Array
    direct_norm: Array
    response_norm: Array
    cosine: Array
    entropy: Array
    inner: Any

    def advice(self, estimate: Estimate) -> list[str]:
        """Say what is wrong with the estimate of the expected problem."""
        return advice(estimate._replace(info=self.inner))


def mixed(
    problem: Problem,
    horizon: int,
    policy: Policy,
    *,
    draws: Draws | None = None,
    through: Through | None = None,
    precondition: Precondition | None = None,
) -> Estimator:
    """Differentiate the expected objective of shared weights in a policy and in real hparams.

    J(φ) = E_{a~π_φ}[f(w(φ), a)],   w(φ) trained on E_{a~π_φ}[L(w, a)]
    ∇J = E[(f − b) ∇ log π_φ(a) + ∂f/∂λ ∂λ/∂φ] + (dw/dφ)ᵀ E[∇_w f]          direct + response

    Real leaves have their pathwise derivative and drawn leaves the score function, inside the loss as well:
    with □ = exp(log π − stop(log π)), ∂/∂φ of the mean of □ ∇_w L is E[∇_w L ∇_φ log π], the mixed term of the
    response. The problem of `expected` is then one of real hyperparameters φ, and any estimator will do.

    **Cost:** as many losses per step as there are draws, times that of `through`: 2.5 to 5 by default.

    **Limits:** with `enumerated()` exact for training in expectation, as far as `through` is. With
    `sampled(S)` the direct part is unbiased; the response is pathwise, through weights that were trained on the
    draws. The objective is not linear in these weights, so the bias of the response is O(1/S). An implicit
    response multiplies averages over the same draws, and its bias is O(1/S) too. `score_shared` is unbiased.
    Leaves that the optimizer or the initial weights read cannot be drawn here: use `score`.

    Args:
        problem: Training loop, a function of the policy's hparams.
        horizon: Number of inner steps.
        policy: Policy that draws the hparams, e.g. `policies.factorized(space)`.
        draws: Draws of the expectation, `policies.sampled(num_samples)` or `policies.enumerated()`;
            `sampled(8)` where None.
        through: (problem, horizon) -> estimator of the response: `implicit`, `truncated`, `forward`, ...;
            `no_response` for ENAS; as `reverse` where None. A leaf that it cannot take is named.
        precondition: (φ, gradient) -> gradient, linear: `policies.natural(space)` makes the natural gradient.

    Returns:
        An estimator of φ whose state is that of `through`; `info` is a `MixedInfo`.

    Raises:
        ValueError: for a horizon below 1 and, when traced, for a φ that is not the policy's, a policy that
            draws nothing, or a drawn leaf that the optimizer or the initial weights read, by name.

    Reference:
        Adam and Lorraine, "More Efficient Stochastic Hyperparameter Optimization"; Foerster et al., 2018,
        arXiv:1802.05098 (DiCE); Pham, Guan, Zoph, Le, Dean, 2018, arXiv:1802.03268 (ENAS).
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    check_kind("policy", policy, Policy, "policies.factorized(space)")
    draws = sampled() if draws is None else draws
    through = by_unrolling if through is None else through
    check_function("draws", draws, "policies.sampled(8)")
    check_function("through", through, "hypergrad.estimators.reverse")

    def init(key: Key, phi: PyTree) -> PyTree:
        once_key, key = jax.random.split(key)
        return through(expected(problem, policy, draws, once_key), horizon).init(key, phi)

    def estimate(key: Key, state: PyTree, phi: PyTree) -> tuple[PyTree, Estimate]:
        check_policy(problem, policy, phi)
        check_shared(problem, policy, phi)
        once_key, key = jax.random.split(key)
        estimator = through(expected(problem, policy, draws, once_key), horizon)
        state, found = estimator.estimate(key, state, phi)
        direct, response = found.info.direct, found.info.response
        if precondition is not None:
            direct, response = precondition(phi, direct), precondition(phi, response)
        info = MixedInfo(
            direct=direct,
            response=response,
            horizon=found.info.horizon,
            growth=found.info.growth,
            first_nonfinite=found.info.first_nonfinite,
            direct_norm=tree.norm(direct),
            response_norm=tree.norm(response),
            cosine=tree.cosine_between(direct, response),
            entropy=policy.entropy(phi),
            inner=found.info,
        )
        return state, Estimate(found.value, tree.add(direct, response), info)

    return Estimator(init, estimate)


def no_response(problem: Problem, horizon: int) -> Estimator:
    """Train, and differentiate the objective at fixed weights alone: hypergrad = ∂f/∂λ, as ENAS does.

    **Cost:** training, and one gradient of the objective.

    **Limits:** biased: the response is left out, and most hyperparameters of training have no other part.

    Returns:
        A stateless estimator; `info` is an `UnrollInfo` with a response and a horizon of zero.
    """
    check_problem(problem)
    check_whole("horizon", horizon)

    def estimate(key: Key, state: PyTree, hparams: HParams) -> tuple[PyTree, Estimate]:
        check_step(problem, hparams, real=True)
        init_key, valid_key = split_key(key)
        frozen = jax.lax.stop_gradient(hparams)
        final, losses = unroll_losses(
            problem, frozen, init_state(problem, init_key, frozen), horizon
        )
        value, direct, _ = objective_parts(problem, valid_key, hparams, final)
        info = UnrollInfo(
            direct=direct,
            response=jax.tree.map(jnp.zeros_like, direct),
            horizon=jnp.zeros((), jnp.int32),
            sensitivity=jnp.zeros((0,), jnp.float32),
            growth=jnp.ones((), jnp.float32),
            first_nonfinite=first_nonfinite(losses, value),
        )
        return state, Estimate(value, direct, info)

    return Estimator(lambda key, hparams: (), estimate)
