"""Shared weights: train and judge one set of weights in expectation over a policy's draws.

w* (φ) trained on E_{a~π_φ}[L(w, a)],   objective E_{a~π_φ}[f(w*, a)]

The result is a problem whose hyperparameters are φ, for every estimator of real hyperparameters. Inside the
loss the draws are differentiable in φ, to the order that the response needs.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.autodiff import depends, uses
from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree
from hypergrad.estimators.policies.baselines import mean_of_others
from hypergrad.estimators.policies.policy import Policy
from hypergrad.problem import Examples, Problem
from hypergrad.train import init_state, step
from hypergrad.validation import check_hparams, check_step

Draws: TypeAlias = Callable[[Policy, Key, PyTree], tuple[HParams, Callable[[Array], Array]]]
"""(policy, key, φ) -> hparams `[S]`, and their mean, values `[S, ...]` -> `[...]`, differentiable in φ."""


def draw_outcomes(policy: Policy, key: Key, phi: PyTree, num_samples: int) -> tuple[HParams, Array]:
    """Draw hparams `[num_samples]` and their log-probabilities, differentiable in φ."""

    def one(key: Key) -> tuple[HParams, Array]:
        if policy.draw is not None:
            return policy.draw(key, phi)
        hparams = policy.sample(key, phi)
        return hparams, policy.log_prob(phi, hparams)

    return jax.vmap(one)(jax.random.split(key, num_samples))


def sampled(num_samples: int = 8) -> Draws:
    """Draw `num_samples` hparams each time, made differentiable by the DiCE box.

    E[x] ≈ (1/S) Σ_s x_s + (□_s − 1)(x_s − Σ_{r≠s} x_r / (S − 1)),   □_s = exp(log π(a_s) − stop(log π(a_s)))

    The value is the plain mean, since □ = 1; its derivatives in φ are those of the score function, with the
    mean of the other draws as the baseline. x may be a function of the weights: the box gives
    E[∇_w L ∇_φ log π], the mixed term of the response, as well.

    Reference:
        Foerster, Farquhar, Al-Shedivat, Rocktäschel, Xing, Whiteson, 2018, arXiv:1802.05098; baseline: Kool,
        van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
    """
    check_whole("num_samples", num_samples)

    def draws(policy: Policy, key: Key, phi: PyTree) -> tuple[HParams, Callable]:
        hparams, log_probs = draw_outcomes(policy, key, phi, num_samples)
        box = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))

        def expect(values: Array) -> Array:
            zero = (box - 1).reshape((-1,) + (1,) * (values.ndim - 1))
            return jnp.mean(values + zero * (values - mean_of_others(values)), 0)

        return hparams, expect

    return draws


def unboxed(num_samples: int = 8) -> Draws:
    """Draw like `sampled`, with the pathwise derivative of real leaves and no derivative of the draws."""
    check_whole("num_samples", num_samples)

    def draws(policy: Policy, key: Key, phi: PyTree) -> tuple[HParams, Callable]:
        return draw_outcomes(policy, key, phi, num_samples)[0], lambda values: jnp.mean(values, 0)

    return draws


def enumerated() -> Draws:
    """Take all outcomes, weighted by their probabilities: exact, for a policy of few outcomes.

    E[x] = Σ_a π_φ(a) x_a
    """

    def draws(policy: Policy, key: Key, phi: PyTree) -> tuple[HParams, Callable]:
        hparams = policy.outcomes(phi)
        probs = jnp.exp(jax.vmap(policy.log_prob, (None, 0))(phi, hparams))

        def expect(values: Array) -> Array:
            return jnp.tensordot(probs, values, 1)

        return hparams, expect

    return draws


def expected(problem: Problem, policy: Policy, draws: Draws, key: Key) -> Problem:
    """Make the problem whose hyperparameters are a policy's φ and whose weights all draws share.

    Each step of training draws anew, and so does the objective; batches carry the key. Leaves that the
    optimizer and the initial weights read are drawn once, and must be real.

    **Cost:** a step costs as many losses as there are draws.

    **Limits:** carried state (running statistics) is averaged over the draws. The real leaves that the
    optimizer and the initial weights read may be noisy, but must not depend on what is drawn.

    Args:
        problem: Training loop, a function of the policy's hparams.
        policy: Policy that draws the hparams.
        draws: Draws of the expectation, `sampled(num_samples)` or `enumerated()`.
        key: Key of the single draw that the optimizer and the initial weights read, and of the draws over
            `train_set`.
    """

    def over(function: Callable[[HParams], PyTree], phi: PyTree, key: Key) -> PyTree:
        hparams, expect = draws(policy, jax.random.clone(key), phi)
        each = jax.vmap(function)(hparams)
        return jax.tree.map(lambda x: expect(x) if tree.is_float(x) else x[0], each)

    def loss(params: Params, phi: PyTree, batch: Batch) -> Any:
        data, key = batch
        return over(lambda h: problem.loss(params, h, data), phi, key)

    def objective(params: Params, phi: PyTree, batch: Batch) -> Array:
        data, key = batch
        return over(lambda h: problem.objective(params, h, data), phi, key)

    def train_batch(key: Key, step: Array) -> Batch:
        data_key, draw_key = jax.random.split(key)
        return problem.train_batch(data_key, step), draw_key

    def valid_batch(key: Key) -> Batch:
        data_key, draw_key = jax.random.split(key)
        return problem.valid_batch(data_key), draw_key

    once_key, set_key = jax.random.split(key)
    examples = problem.train_set
    return Problem(
        init=lambda key, phi: problem.init(key, policy.sample(jax.random.clone(once_key), phi)),
        loss=loss,
        objective=objective,
        optimizer=lambda phi: problem.optimizer(policy.sample(jax.random.clone(once_key), phi)),
        train_batch=train_batch,
        valid_batch=valid_batch,
        train_set=examples
        and Examples(examples.num_examples, lambda index: (examples.at(index), set_key)),
    )


def check_policy(
    problem: Problem,
    policy: Policy,
    phi: PyTree,
    *,
    must_draw: bool = True,
    pathwise: bool = False,
) -> None:
    """Check that problem, policy and φ fit.

    **Cost:** abstract evaluation of one step, and two traces of the policy.

    Args:
        problem: Training loop.
        policy: Policy that draws the hparams.
        phi: Parameters φ of the policy.
        must_draw: Whether a policy without discrete leaves of its own is refused.
        pathwise: Whether to warn of real leaves whose derivative a random draw loses; an estimator of real
            leaves within does so itself.

    Raises:
        ValueError: in one line, for a φ of another structure, and for a policy that draws nothing.
    """
    check_hparams(phi)
    key = jax.random.key(0)
    like = jax.eval_shape(policy.init, key)
    got, want = tree.named(phi), tree.named(like)
    if jax.tree.structure(like) != jax.tree.structure(phi):
        raise ValueError(
            f"hparams has the leaves {list(got)}, expected those of the policy, {list(want)}; "
            "start from policy.init(key)"
        )
    for name, leaf in got.items():
        if jnp.shape(leaf) != want[name].shape or not tree.is_float(leaf):
            raise ValueError(
                f"hparams[{name!r}] has shape {jnp.shape(leaf)} and dtype {jnp.result_type(leaf)}, expected "
                f"{want[name].shape} and {want[name].dtype}, as of the policy; start from policy.init(key)"
            )
    drawn = jax.eval_shape(policy.sample, key, phi)
    check_step(problem, drawn, pathwise=pathwise)
    if must_draw and not any(depends(lambda f: policy.log_prob(f, policy.sample(key, f)), phi)):
        raise ValueError(
            "policy has a log_prob that does not depend on its parameters, expected discrete leaves that are "
            "drawn; use reverse(...), which differentiates real leaves"
        )


def pathwise_leaves(policy: Policy, phi: PyTree) -> list[str]:
    """Name the leaves of φ that real leaves of the hparams are functions of; one trace of the policy."""
    key = jax.random.key(0)
    alive = depends(lambda phi: tree.floats(policy.sample(key, phi)), phi)
    return [name for name, lives in zip(tree.leaf_names(phi), alive, strict=True) if lives]


def check_shared(problem: Problem, policy: Policy, phi: PyTree) -> None:
    """Raise a `ValueError` that names a drawn leaf which the optimizer or the initial weights read.

    **Cost:** one trace of a step.
    """
    key = jax.random.key(0)
    drawn = jax.eval_shape(policy.sample, key, phi)
    names = own_leaves(problem, drawn)
    if names:
        raise ValueError(
            f"hparams[{names[0]!r}] is drawn, and read by problem.optimizer or problem.init, expected leaves "
            "of the loss and the objective only, because all draws share one optimizer and its weights; use "
            "score(...), which trains weights of their own for each draw"
        )


def own_leaves(problem: Problem, hparams: HParams) -> list[str]:
    """Name the leaves of `hparams` that are not floats and that the optimizer or the initial weights read."""
    other = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), hparams)
    blind = problem._replace(loss=lambda params, h, batch: problem.loss(params, other, batch))

    def run(hparams: HParams) -> PyTree:
        after, _ = step(blind, hparams, init_state(blind, jax.random.key(0), hparams))
        return after.params, after.opt_state

    used = uses(run, hparams)
    leaves = zip(tree.leaf_names(hparams), jax.tree.leaves(hparams), used, strict=True)
    return [name for name, leaf, lives in leaves if lives and not tree.is_float(leaf)]
