"""Relaxed hypergradients: options are mixed instead of chosen, so that any estimator differentiates them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_function, check_kind, check_whole
from hypergrad.core.memory import for_each
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import Estimate, Estimator, mean_and_error
from hypergrad.estimators.policies.policy import factorized
from hypergrad.estimators.policies.relaxations import Relaxation, gumbel_softmax, relax
from hypergrad.train import earliest


class RelaxedInfo(NamedTuple):
    """Diagnostics of a relaxed hypergradient over S draws.

    Attributes:
        direct, response: Means of the two parts over the draws, pytrees like φ; hypergrad = direct + response.
        horizon: Number of steps differentiated through by one estimate, int32 `[]`.
        growth: Largest growth over the draws, `[]`.
        first_nonfinite: Earliest non-finite step over the draws, as in `UnrollInfo`.
        std_error: Standard error of the hypergradient over the draws, a pytree like φ; it does not include the
            bias. NaN for one draw.
        value_std_error: Standard error of the value, likewise, `[]`.
        entropy: Entropy of the policy in nats, `[]`.
    """

    direct: PyTree
    response: PyTree
    horizon: Array
    growth: Array
    first_nonfinite: Array
    std_error: PyTree
    value_std_error: Array
    entropy: Array


def relaxed(
    estimator: Estimator,
    space: PyTree,
    *,
    relaxation: Relaxation | None = None,
    num_samples: int = 8,
) -> Estimator:
    """Differentiate through relaxed choices: y = softmax((φ + Gumbel noise)/τ) in place of a one-hot sample.

    ∇J ≈ (1/S) Σ_s (∂y_s/∂φ)ᵀ ∂F(y_s)/∂y,   F = objective after training with weights y for choices

    The problem gets weights `[K]` for a Choice, which `hypergrad.select` mixes, and a real number for an
    Integer. φ is that of `policies.factorized(space)`. With `relaxation=softmax()` and one sample this is
    DARTS: unrolled by `reverse`, with one step by `truncated(..., window=1)`, at rest by `implicit`.

    **Cost:** S estimates of the wrapped estimator, side by side.

    **Limits:** biased: F at mixed choices is not the expectation of F over choices, and differs more the
    less linear F is; the bias of `gumbel_softmax` falls and the variance grows as τ falls. With
    `straight_through` the value is that of true samples, but the gradient is still biased. `score` is unbiased.

    Args:
        estimator: Estimator of the problem that reads relaxed choices, e.g. `reverse(problem, horizon)`.
        space: Pytree of dimensions, none of them static, at least one of them Integer or Choice.
        relaxation: Relaxation of a choice, `policies.gumbel_softmax(τ)` (τ = 1 where None),
            `straight_through(τ)` or `softmax(τ)`.
        num_samples: Number S of draws in an estimate, all with the same initial weights and minibatches.

    Returns:
        An estimator of φ with the states of the wrapped one; `info` is a `RelaxedInfo`.

    Raises:
        ValueError: for fewer than one draw, a space without discrete leaves, or one with static leaves.

    Reference:
        Jang, Gu, Poole, 2017, arXiv:1611.01144; Maddison, Mnih, Teh, 2017, arXiv:1611.00712; Liu, Simonyan,
        Yang, 2019, arXiv:1806.09055 (DARTS).
    """
    check_kind("estimator", estimator, Estimator, "reverse(problem, 100)")
    check_whole("num_samples", num_samples)
    policy = factorized(space)
    relaxation = gumbel_softmax() if relaxation is None else relaxation
    check_function("relaxation", relaxation, "policies.gumbel_softmax(0.5)")

    def soften(key: Key, phi: PyTree) -> HParams:
        return relax(space, relaxation, key, phi)

    def init(key: Key, phi: PyTree) -> PyTree:
        start, draw = jax.random.split(key)
        return jax.vmap(lambda k: estimator.init(start, soften(k, phi)))(
            jax.random.split(draw, num_samples)
        )

    def estimate(key: Key, state: PyTree, phi: PyTree) -> tuple[PyTree, Estimate]:
        run_key, draw_key = jax.random.split(key)

        def one(key: Key, state: PyTree) -> tuple[PyTree, tuple[PyTree, ...], Any]:
            hparams, pull = jax.vjp(lambda phi: soften(key, phi), phi)
            state, found = estimator.estimate(run_key, state, hparams)
            parts = pull(found.info.direct)[0], pull(found.info.response)[0]
            return state, (found.value, *parts), found.info

        keys = jax.random.split(draw_key, num_samples)
        state, (value, direct, response), each = for_each(one, num_samples)(keys, state)
        value, value_error = mean_and_error(value)
        hypergrad, error = mean_and_error(tree.add(direct, response))
        info = RelaxedInfo(
            *mean_and_error((direct, response))[0],
            horizon=each.horizon[0],
            growth=jnp.max(each.growth),
            first_nonfinite=earliest(each.first_nonfinite),
            std_error=error,
            value_std_error=value_error,
            entropy=policy.entropy(phi),
        )
        return state, Estimate(value, hypergrad, info)

    return Estimator(init, estimate)
