"""Score-function hypergradients: runs weighted by how much better they are than others (REINFORCE)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_whole
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import (
    Estimate,
    Estimator,
    Precondition,
    Through,
    first_nonfinite,
    mean_and_error,
)
from hypergrad.estimators.policies.baselines import Baseline, leave_one_out
from hypergrad.estimators.policies.draws import (
    check_policy,
    check_shared,
    draw_outcomes,
    expected,
    pathwise_leaves,
    unboxed,
)
from hypergrad.estimators.policies.policy import Policy
from hypergrad.estimators.unrolled.base import by_unrolling
from hypergrad.problem import Problem, check_problem, with_hparams
from hypergrad.train import TrainState, draw_batch, earliest, init_state, split_key, unroll_losses


class ScoreInfo(NamedTuple):
    """Diagnostics of a score-function hypergradient over S runs.

    Attributes:
        direct: Part at fixed weights, a pytree like φ. In `score` only real leaves have this part: values do
            not separate the effect of a choice through the weights from its effect on the objective.
        response: Remaining part, a pytree like φ; hypergrad = direct + response.
        horizon: Number of steps of a run, int32 `[]`.
        growth: Largest growth over the runs where they were differentiated, else 1, `[]`.
        first_nonfinite: Earliest non-finite step over the runs, as in `UnrollInfo`.
        std_error: Standard error of the hypergradient, by the jackknife over the runs (which errs upwards
            with few), a pytree like φ; NaN for one run.
        value_std_error: Standard error of the value, likewise, `[]`.
        values: Objective of each run `[S]`.
        entropy: Entropy of the policy in nats, `[]`; near zero, draws hardly differ and teach little.
        samples: Hparams that each run of `score` drew, leading axis `[S]`; None in `score_shared`.
    """

    direct: PyTree
    response: PyTree
    horizon: Array
    growth: Array
    first_nonfinite: Array
    std_error: PyTree
    value_std_error: Array
    values: Array
    entropy: Array
    samples: HParams = None


class _Runs(NamedTuple):
    """Results of S runs; every array has the leading axis `[S]`.

    Attributes:
        value, first_nonfinite, growth: Fields as in an estimate.
        direct, response: Pathwise parts, pytrees like φ; None without real leaves.
        direct_score, response_score: Scores ∇ log π of the draws for the objective, and for training.
        samples: Hparams drawn.
    """

    value: Array
    first_nonfinite: Array
    growth: Array
    direct: PyTree
    response: PyTree
    direct_score: PyTree
    response_score: PyTree
    samples: HParams = None


def score(
    problem: Problem,
    horizon: int,
    policy: Policy,
    *,
    num_samples: int = 8,
    baseline: Baseline | None = None,
    precondition: Precondition | None = None,
    through: Through | None = None,
) -> Estimator:
    """Follow the expected objective of a policy, where every draw trains separate weights.

    J(φ) = E_{a~π_φ}[F(a, λ)],   F = objective after training with choices a and real hparams λ
    ∇J ≈ (1/S) Σ_s (F_s − b_s) ∇_φ log π_φ(a_s) + ∂F_s/∂λ ∂λ/∂φ

    The hparams of the estimator are φ, made by `policy.init(key)`. All runs of an estimate share their initial
    weights and minibatches, so that they differ by their choices alone.

    **Cost:** S trainings side by side, and memory of S states; where the policy has real leaves, S
    hypergradients by `through`.

    **Limits:** unbiased, with every baseline of `policies`. The standard error falls as 1/√S. It does not see
    the noise that all runs share (`average` does). Below some 30 draws it is a rough guess: 0 where every draw
    weighs the same, e.g. where all drew one option. An option of small probability is seldom drawn. A run that
    diverges makes the estimate not finite: where a choice makes runs diverge, bound the objective, e.g. by
    jnp.where(jnp.isfinite(f), jnp.minimum(f, 9.0), 9.0).

    Args:
        problem: Training loop, a function of the policy's hparams.
        horizon: Number of inner steps.
        policy: Policy that draws the hparams, e.g. `policies.factorized(space)`.
        num_samples: Number S of draws in an estimate.
        baseline: Baseline that is subtracted from the values; `policies.leave_one_out()` where None.
        precondition: (φ, gradient) -> gradient, linear: `policies.natural(space)` makes the natural gradient.
        through: (problem, horizon) -> estimator of the real leaves, e.g. `implicit`; as `reverse` where None.

    Returns:
        An estimator whose state is the baseline's; `info` is a `ScoreInfo`.

    Raises:
        ValueError: for fewer than one draw or step and, when traced, for a φ that is not the policy's.

    Reference:
        Williams, "Simple statistical gradient-following algorithms", Machine Learning 8, 1992; leave-one-out:
        Kool, van Hoof, Welling, 2019, "Buy 4 REINFORCE samples, get a baseline for free!".
    """
    _check(problem, horizon, policy, num_samples=num_samples)
    baseline = leave_one_out() if baseline is None else baseline
    check_kind("baseline", baseline, Baseline, "policies.leave_one_out()")
    through = by_unrolling if through is None else through

    def estimate(key: Key, state: PyTree, phi: PyTree) -> tuple[PyTree, Estimate]:
        check_policy(problem, policy, phi)
        pathwise = pathwise_leaves(policy, phi)
        draw_key, run_key = jax.random.split(key)

        def one(key: Key) -> _Runs:
            samples = policy.sample(key, phi)
            slope = jax.grad(lambda phi: policy.log_prob(phi, policy.sample(key, phi)))(phi)
            zero = jax.tree.map(jnp.zeros_like, slope)
            if not pathwise:
                found = _train(problem, horizon, run_key, samples)
                return _Runs(*found, None, None, zero, slope, samples)
            floats = [name for name, leaf in tree.named(samples).items() if tree.is_float(leaf)]
            reals, join = _part(samples, floats)
            estimator = through(with_hparams(problem, join), horizon)
            found = estimator.estimate(run_key, estimator.init(run_key, reals), reals)[1]
            _, pull = jax.vjp(lambda phi: _part(policy.sample(key, phi), floats)[0], phi)
            parts = pull(found.info.direct)[0], pull(found.info.response)[0]
            certificate = found.value, found.info.first_nonfinite, found.info.growth
            return _Runs(*certificate, *parts, zero, slope, samples)

        runs = jax.vmap(one)(jax.random.split(draw_key, num_samples))
        return _combine(runs, state, baseline, precondition, policy, phi, horizon)

    return Estimator(lambda key, phi: baseline.init(), estimate)


def score_shared(
    problem: Problem,
    horizon: int,
    policy: Policy,
    *,
    num_runs: int = 8,
    num_samples: int = 1,
    baseline: Baseline | None = None,
    precondition: Precondition | None = None,
) -> Estimator:
    """Follow the expected objective of weights that all draws share, without bias: the score form of `mixed`.

    A run draws S hparams at every step and trains on their mean loss, as `mixed` does with `sampled(S)`.
    With R runs,

    ∇J ≈ (1/R) Σ_r (F_r − b_r) Σ_{t,s} ∇_φ log π_φ(a_{r,t,s}) + ∂F_r/∂λ ∂λ/∂φ

    where the sum over the draws of training steps is the response, and the sum over the draws of the objective
    is the direct gradient.

    **Cost:** R trainings side by side; R hypergradients where the policy has real leaves.

    **Limits:** unbiased whatever S and R, where `mixed` is biased by O(1/S); the variance grows with the
    horizon and with S, because every draw of a run gets the credit of its end. Each run has its own initial
    weights and minibatches, and the standard error covers them.

    Args:
        problem: Training loop, a function of the policy's hparams.
        horizon: Number of inner steps.
        policy: Policy that draws the hparams.
        num_runs: Number R of runs in an estimate.
        num_samples: Number S of draws in a step.
        baseline: Baseline that is subtracted from the values; `policies.leave_one_out()` over the runs where
            None.
        precondition: (φ, gradient) -> gradient, linear: `policies.natural(space)` makes the natural gradient.

    Returns:
        An estimator whose state is the baseline's; `info` is a `ScoreInfo`.

    Raises:
        ValueError: for fewer than one run, draw or step and, when traced, for a φ that is not the policy's or
            a drawn leaf that the optimizer or the initial weights read, by name.
    """
    _check(problem, horizon, policy, num_runs=num_runs, num_samples=num_samples)
    baseline = leave_one_out() if baseline is None else baseline
    check_kind("baseline", baseline, Baseline, "policies.leave_one_out()")

    def estimate(key: Key, state: PyTree, phi: PyTree) -> tuple[PyTree, Estimate]:
        check_policy(problem, policy, phi)
        check_shared(problem, policy, phi)
        pathwise = pathwise_leaves(policy, phi)

        def one(key: Key) -> _Runs:
            once_key, run_key = jax.random.split(key)
            whole = expected(problem, policy, unboxed(num_samples), once_key)
            init_key, valid_key = split_key(run_key)

            def log_prob(phi: PyTree, key: Key) -> Array:
                return jnp.sum(draw_outcomes(policy, key, phi, num_samples)[1])

            def training(phi: PyTree) -> Array:
                start = init_state(whole, init_key, jax.lax.stop_gradient(phi))

                def at(total: Array, step: Array) -> tuple[Array, None]:
                    return total + log_prob(phi, _draw_key(whole, start, step)), None

                return jax.lax.scan(at, jnp.zeros(()), jnp.arange(horizon, dtype=jnp.int32))[0]

            scores = (
                jax.grad(log_prob)(phi, whole.valid_batch(valid_key)[1]),
                jax.grad(training)(phi),
            )
            if not pathwise:
                return _Runs(*_train(whole, horizon, run_key, phi), None, None, *scores)
            reals, join = _part(phi, pathwise)
            held = with_hparams(whole, join)
            found = by_unrolling(held, horizon).estimate(run_key, (), reals)[1]
            zero = _part(jax.tree.map(jnp.zeros_like, phi), pathwise)[1]
            parts = zero(found.info.direct), zero(found.info.response)
            certificate = found.value, found.info.first_nonfinite, found.info.growth
            return _Runs(*certificate, *parts, *scores)

        runs = jax.vmap(one)(jax.random.split(key, num_runs))
        return _combine(runs, state, baseline, precondition, policy, phi, horizon)

    return Estimator(lambda key, phi: baseline.init(), estimate)


def _combine(
    runs: _Runs,
    state: PyTree,
    baseline: Baseline,
    precondition: Precondition | None,
    policy: Policy,
    phi: PyTree,
    horizon: int,
) -> tuple[PyTree, Estimate]:
    """Weigh the scores of the runs by their advantages, add the pathwise parts, and average."""
    error = _jackknife(runs, state, baseline, precondition, phi)
    state, advantages = baseline.advantages(state, runs.value)

    def weighed(scores: PyTree, paths: PyTree) -> PyTree:
        def scale(x: Array) -> Array:
            return x * advantages.reshape((-1,) + (1,) * (x.ndim - 1)).astype(x.dtype)

        terms = jax.tree.map(scale, scores)
        terms = terms if paths is None else tree.add(terms, paths)
        return terms if precondition is None else jax.vmap(precondition, (None, 0))(phi, terms)

    direct = weighed(runs.direct_score, runs.direct)
    response = weighed(runs.response_score, runs.response)
    hypergrad = mean_and_error(tree.add(direct, response))[0]
    value, value_error = mean_and_error(runs.value)
    info = ScoreInfo(
        *mean_and_error((direct, response))[0],
        horizon=jnp.asarray(horizon, jnp.int32),
        growth=jnp.max(runs.growth),
        first_nonfinite=earliest(runs.first_nonfinite),
        std_error=error,
        value_std_error=value_error,
        values=runs.value,
        entropy=policy.entropy(phi),
        samples=runs.samples,
    )
    return state, Estimate(value, hypergrad, info)


def _jackknife(
    runs: _Runs, state: PyTree, baseline: Baseline, precondition: Precondition | None, phi: PyTree
) -> PyTree:
    """Return the standard error of the gradient from its S values without each of the runs.

    A baseline made of the other runs ties the terms of the mean together: their spread alone would be
    too small (by half at 4 runs, and 0 at two of two equally likely options).
    """
    num = len(runs.value)
    if num == 1:
        return jax.tree.map(lambda x: jnp.full_like(x[0], jnp.nan), runs.direct_score)
    others = np.stack([np.delete(np.arange(num), i) for i in range(num)])
    without = jax.vmap(lambda values: baseline.advantages(state, values)[1])(runs.value[others])
    weights = jnp.zeros((num, num), without.dtype).at[np.arange(num)[:, None], others].set(without)
    apart = (1 - np.eye(num)).astype(without.dtype)

    def mean(weights: Array | np.ndarray) -> Callable[[Array], Array]:
        return lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1) / (num - 1)

    each = jax.tree.map(mean(weights), tree.add(runs.direct_score, runs.response_score))
    if runs.direct is not None:
        paths = jax.tree.map(mean(apart), tree.add(runs.direct, runs.response))
        each = tree.add(each, paths)
    if precondition is not None:
        each = jax.vmap(precondition, (None, 0))(phi, each)
    return jax.tree.map(lambda x: jnp.std(x, 0) * (num - 1) ** 0.5, each)


def _train(
    problem: Problem, horizon: int, key: Key, hparams: HParams
) -> tuple[Array, Array, Array]:
    """Train once; return the objective, the first step that was not finite, and a growth of 1."""
    init_key, valid_key = split_key(key)
    final, losses = unroll_losses(problem, hparams, init_state(problem, init_key, hparams), horizon)
    value = problem.objective(final.params, hparams, problem.valid_batch(valid_key))
    return value, first_nonfinite(losses, value), jnp.ones((), jnp.float32)


def _part(whole: PyTree, names: list[str]) -> tuple[dict[str, Array], Callable[[dict], PyTree]]:
    """Take the leaves of these names out of a tree, and return the function that puts them back."""
    leaves, treedef = jax.tree.flatten(whole)
    named = dict(zip(tree.leaf_names(whole), leaves, strict=True))

    def join(part: dict[str, Array]) -> PyTree:
        return treedef.unflatten([part.get(name, leaf) for name, leaf in named.items()])

    return {name: named[name] for name in names}, join


def _draw_key(whole: Problem, start: TrainState, step: Array) -> Key:
    """Return the key with which a step of an `expected` problem draws."""
    return draw_batch(whole, start._replace(step=step))[1]


def _check(problem: Problem, horizon: int, policy: Policy, **counts: int) -> None:
    check_problem(problem)
    check_whole("horizon", horizon)
    check_kind("policy", policy, Policy, "policies.factorized(space)")
    for name, count in counts.items():
        check_whole(name, count)
