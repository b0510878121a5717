"""The controller: shared weights and the policy over architectures and optimizers, trained in turn."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import core

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_whole, is_number
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators import Estimate, Estimator
from hypergrad.estimators.policies import (
    RESPONSES,
    Policy,
    SharedState,
    draw_outcomes,
    mean_of_others,
    multitask,
    running_mean,
    sampled,
    shared,
)
from hypergrad.problem import Problem, Task, check_problem
from hypergrad.searchers import Trials
from hypergrad.tuners.base import Tuner

COLLAPSED = 0.01
"""Share of its first entropy below which a policy has collapsed: it draws one architecture nearly always."""

COUNTS = ("skipped", "refused", "dropped", "flat")
"""What the info counts over the updates of a step."""

CLIP = 20.0
"""Norm beyond which a policy's gradient is cut; see `policy_adam`."""


class ControllerWarning(UserWarning):
    """The controller has stopped learning, or cannot learn; the message has the step."""


class Clipping(NamedTuple):
    """Several moves on the same draws, as far as the probabilities stay near; built by `clipped`.

    Attributes:
        epsilon: how far a probability may move, as a share.
        num_epochs: moves on the same draws.
    """

    epsilon: float
    num_epochs: int


class ControllerState(NamedTuple):
    """State of a controller.

    Attributes:
        phi: parameters of the policy; unconstrained coordinates where it has a space.
        opt_state: of the policy's optimizer.
        estimator: of the estimator, the shared weights among it.
        step: steps of the tuner so far, int32 `[]`.
        first_entropy: of the policy, in nats, `[]`.
        collapsed_at: first step after which the policy had collapsed, int32 `[]`; −1 before.
    """

    phi: PyTree
    opt_state: PyTree
    estimator: SharedState
    step: Array
    first_entropy: Array
    collapsed_at: Array


def clipped(epsilon: float = 0.2, num_epochs: int = 4) -> Clipping:
    """Move several times on the same draws, with clipped ratios of probabilities (PPO).

    direct ← ∇ (1/S) Σ_s max(r_s A_s, clip(r_s, 1 − ε, 1 + ε) A_s),   r_s = π_φ(a_s) / π_old(a_s)

    for an objective to be lowered. The response is that of the first move.

    Reference:
        Schulman et al., 2017, arXiv:1707.06347, equation 7.
    """
    if not is_number(epsilon) or not 0 < epsilon < 1:
        raise ValueError(f"epsilon is {epsilon!r}, expected a number in (0, 1); pass e.g. 0.2")
    check_whole("num_epochs", num_epochs)
    return Clipping(epsilon, num_epochs)


def policy_adam(learning_rate: optax.ScalarOrSchedule = 0.02) -> optax.GradientTransformation:
    """Build Adam for a policy, whose whole gradient is cut to a norm of 20.

    g ← g min(1, 20 / ‖g‖)

    Adam remembers a gradient's square for a thousand updates, so that a single one of 1e16, which shared
    weights about to diverge do give, would stop the policy for good. Cutting the whole keeps its direction,
    which leaving out what is large would not; where it cuts, its mean over draws is no longer the gradient's.
    In 200 updates of the task `supernet_digits` with each response, none of which diverged, the norm was 0.6
    to 0.8 in the median and 8 (none), 11 (unrolled) and 18 (implicit) at most: 20 leaves such runs as they are.
    """
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(learning_rate))


def controller(
    problem: Problem,
    policy: Policy,
    estimator: Estimator,
    num_updates: int = 10,
    *,
    optimizer: optax.GradientTransformation | None = None,
    entropy_bonus: float = 0.0,
    clipping: Clipping | None = None,
    num_candidates: int = 1,
) -> Tuner:
    """Train shared weights and a policy in turn, `num_updates` times a step of the tuner.

    w ← training under settings and architectures of π_φ,   φ ← φ − optimizer(direct + response − β ∇H(π_φ))

    Which response, and on how many draws, is the estimator's: `shared(problem, horizon, policy, ...)`. With
    `left_out()` this is ENAS, with a `policies.mixture` DARTS.

    **Cost:** `num_updates` estimates and `num_candidates` objectives a step; memory of one set of weights and,
    for the variances, of `num_updates` gradients of φ.

    **Limits:** values are those of the shared weights, which serve all architectures and rank them roughly:
    train the best again. An update that is not finite (a draw with a NaN objective, say) is counted and moves
    neither φ nor its optimizer; windows whose weights diverged are counted and dropped, as `shared` has it.
    Variances are over the updates of a step, in which φ moves.

    Args:
        problem: the training loop.
        policy: as of the estimator.
        estimator: `estimators.shared(problem, horizon, policy, ...)`.
        num_updates: of the policy, a step of the tuner, in one compiled loop.
        optimizer: of φ; `policy_adam()` where None, which another optimizer had better be cut like.
        entropy_bonus: β, in units of the objective a nat.
        clipping: `clipped()` for PPO's moves; one move an estimate where None.
        num_candidates: outcomes of a step: the policy's mode, then draws.

    Returns:
        A tuner. Its outcomes are the candidates, with their objective at the shared weights; the info has the
        norms of direct gradient, response and whole (of their means over the updates), the cosine between
        the first two, their variances (mean squared distance from the mean), residual and damping of the
        solves, the entropy, how many updates were skipped, in how many the response was refused and left out,
        how many windows were dropped, and in how many all draws did equally well. `expected_value` is
        over the windows that were kept; `first_nonfinite` the step of training at which the last of those that
        were not finite ceased to be so, −1 without one.

    Raises:
        ValueError: for settings out of range.

    Warns:
        ControllerWarning: with the step, once the entropy has fallen below a hundredth of its first value, and
            where in a whole step no draw did better than another, no response could be believed, no window
            was kept, or no update was finite.

    Reference:
        Adam and Lorraine, "More Efficient Stochastic Hyperparameter Optimization"; Pham, Guan, Zoph, Le, Dean,
        2018, arXiv:1802.03268 (ENAS); Liu, Simonyan, Yang, 2019, arXiv:1806.09055 (DARTS).
    """
    check_problem(problem)
    check_kind("policy", policy, Policy, "policies.multitask(space)")
    check_kind("estimator", estimator, Estimator, "shared(problem, 10, policy)")
    check_whole("num_updates", num_updates)
    check_whole("num_candidates", num_candidates)
    inner = policy_adam() if optimizer is None else optimizer
    check_kind("optimizer", inner, optax.GradientTransformation, "policy_adam(0.02)")
    if clipping is not None:
        check_kind("clipping", clipping, Clipping, "clipped(0.2, 4)")
    bonus = entropy_bonus
    if not is_number(bonus) or not 0 <= bonus < 1e30:
        raise ValueError(
            f"entropy_bonus is {bonus!r}, expected a number of at least 0; pass e.g. 0.01"
        )

    def at(phi):
        return phi if policy.space is None else spaces.constrain(policy.space, phi)

    @jax.jit
    def init(key):
        policy_key, estimator_key = jax.random.split(key)
        phi = policy.init(policy_key)
        if policy.space is not None:
            phi = spaces.unconstrain(policy.space, phi)
        state = estimator.init(estimator_key, at(phi))
        if not isinstance(state, SharedState):
            raise ValueError(
                "estimator keeps no shared weights, expected shared(problem, horizon, policy, ...); pass it"
            )
        zero = jnp.zeros((), jnp.int32)
        begun = (phi, inner.init(phi), state, zero, policy.entropy(at(phi)), zero - 1)
        return tree.strong(ControllerState(*begun))

    def moves(phi, opt_state, found, pull):
        """Move φ once, or as often as the clipping says."""

        def surrogate(z):
            log_probs = jax.vmap(policy.log_prob, (None, 0))(at(z), found.info.samples)
            ratios = jnp.exp(log_probs - old)
            values = jnp.where(found.info.diverged, 0, found.info.values)
            advantages = values - mean_of_others(values)
            assert clipping is not None
            near = jnp.clip(ratios, 1 - clipping.epsilon, 1 + clipping.epsilon)
            return jnp.mean(jnp.maximum(ratios * advantages, near * advantages))

        def move(carry, rest):
            z, opt_state = carry
            grads = rest if clipping is None else tree.add(rest, jax.grad(surrogate)(z))
            if bonus:
                more = jax.grad(lambda z: -bonus * policy.entropy(at(z)))(z)
                grads = tree.add(grads, more)
            updates, opt_state = inner.update(grads, opt_state, z)
            return optax.apply_updates(z, updates), opt_state

        grads = pull(found.hypergrad)[0]
        if clipping is None:
            return move((phi, opt_state), grads)
        old = jax.vmap(policy.log_prob, (None, 0))(at(phi), found.info.samples)
        rest = jax.tree.map(jnp.subtract, grads, jax.grad(surrogate)(phi))
        once = lambda carry, _: (move(carry, rest), None)  # noqa: E731
        return jax.lax.scan(once, (phi, opt_state), length=clipping.num_epochs)[0]

    def update(carry, key):
        phi, opt_state, state = carry
        hparams, pull = jax.vjp(at, phi)
        state, found = estimator.estimate(key, state, hparams)
        parts = pull(found.info.direct)[0], pull(found.info.response)[0]
        size = tree.norm(parts)
        new = moves(phi, opt_state, found, pull)
        # a window that was dropped has no value, but credit or response may tell what made it diverge
        finite = jnp.isfinite(size + tree.norm(new[0])) & (jnp.isfinite(found.value) | (size > 0))
        phi, opt_state = tree.choose(finite, new, (phi, opt_state))
        return (phi, opt_state, state), _told(found, parts, finite)

    @jax.jit
    def compiled(key, state):
        run_key, draw_key, valid_key = jax.random.split(key, 3)
        keys = jax.random.split(run_key, num_updates)
        carry, told = jax.lax.scan(update, (state.phi, state.opt_state, state.estimator), keys)
        phi = at(carry[0])
        entropy = policy.entropy(phi)
        hparams = _candidates(policy, draw_key, phi, num_candidates)
        data, params = problem.valid_batch(valid_key), carry[2].params
        values = jax.vmap(lambda h: problem.objective(params, h, data))(hparams)
        summary = _summary(told) | {"entropy": entropy, "step": carry[2].run.train.step}
        info = {n: jnp.broadcast_to(x, (num_candidates,)) for n, x in summary.items()}
        rows = jnp.arange(num_candidates)  # counts stand in one row, so that they can be summed
        info |= {n: jnp.where(rows == 0, summary[n], 0) for n in COUNTS}
        info["key"] = jnp.broadcast_to(
            jax.random.key_data(key), (num_candidates, *jax.random.key_data(key).shape)
        )
        fallen = (entropy < COLLAPSED * state.first_entropy) & (state.collapsed_at < 0)
        collapsed = jnp.where(fallen, state.step, state.collapsed_at)
        after = ControllerState(*carry, state.step + 1, state.first_entropy, collapsed)
        num_steps = jnp.sum(told["horizon"]).astype(jnp.int32)
        index = jnp.arange(num_candidates, dtype=jnp.int32)
        steps = jnp.broadcast_to(num_steps, (num_candidates,))
        return tree.strong(after), Trials(hparams, values, steps, index, info)

    def step(key, state):
        after, outcome = compiled(key, state)
        if not isinstance(after.step, core.Tracer):
            _warn(state, after, outcome.info, num_updates)
        return after, outcome

    return Tuner(init, step)


def _candidates(policy: Policy, key: Key, phi: PyTree, num: int) -> PyTree:
    """Return the policy's mode and `num − 1` draws, leading axis `[num]`."""
    first = jax.tree.map(lambda x: jnp.asarray(x)[None], policy.mode(phi))
    if num == 1:
        return first
    others = jax.tree.map(jnp.asarray, draw_outcomes(policy, key, phi, num - 1)[0])
    if jax.tree.map(jnp.ndim, first) != jax.tree.map(jnp.ndim, others):
        raise ValueError(
            f"num_candidates is {num} with a policy that mixes options, expected 1, its mode, because a "
            "mixture is no architecture; leave it out"
        )
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, others)


def _told(found: Estimate, parts: tuple[PyTree, PyTree], finite: Array) -> dict[str, Any]:
    """What an update says of itself."""
    info = found.info
    return {
        "direct": parts[0],
        "response": parts[1],
        "finite": finite,
        "value": found.value,
        "flat": jnp.all(info.values == info.values[0]) & (info.values.size > 1),
        "growth": info.growth,
        "residual": info.residual,
        "damping": info.damping,
        "refused": info.refused,
        "dropped": info.diverged,
        "horizon": info.horizon,
        "first_nonfinite": info.first_nonfinite,
        "credit": info.credit,
    }


def _summary(told: dict[str, Any]) -> dict[str, Array]:
    """Average over the updates of a step that were finite."""
    finite, kept = told["finite"], told["finite"] & ~told["dropped"]
    num = jnp.maximum(jnp.sum(finite), 1)

    def mean(tree, over=finite):
        def one(x):
            weights = over.reshape((-1,) + (1,) * (x.ndim - 1))
            return jnp.sum(jnp.where(weights, x, 0), 0) / jnp.maximum(jnp.sum(over), 1)

        return jax.tree.map(one, tree)

    def variance(each, middle):
        apart = jax.tree.map(jnp.subtract, each, middle)
        squares = jax.vmap(tree.norm)(apart) ** 2
        spread = jnp.sum(jnp.where(finite, squares, 0)) / jnp.maximum(num - 1, 1)
        return jnp.where(num > 1, spread, jnp.nan)

    direct, response = mean(told["direct"]), mean(told["response"])
    bad = told["first_nonfinite"]
    return {
        "expected_value": jnp.where(jnp.any(kept), mean(told["value"], kept), jnp.nan),
        "hypergrad_norm": tree.norm(tree.add(direct, response)),
        "direct_norm": tree.norm(direct),
        "response_norm": tree.norm(response),
        "cosine": tree.cosine_between(direct, response),
        "direct_variance": variance(told["direct"], direct),
        "response_variance": variance(told["response"], response),
        "credit_norm": mean(told["credit"]),
        "adjoint_growth": mean(told["growth"]),
        "residual": mean(told["residual"], kept),
        "damping": mean(told["damping"], kept),
        "skipped": jnp.sum(~finite).astype(jnp.int32),
        "refused": jnp.sum(told["refused"]).astype(jnp.int32),
        "dropped": jnp.sum(told["dropped"]).astype(jnp.int32),
        "flat": jnp.sum(told["flat"]).astype(jnp.int32),
        "first_nonfinite": jnp.max(bad).astype(jnp.int32),
    }


def _warn(before: ControllerState, after: ControllerState, info: dict, num_updates: int) -> None:
    """Warn, with the step, of a policy that has collapsed and of steps that taught nothing."""
    at, entropy = int(before.step), float(np.asarray(info["entropy"])[0])
    if int(after.collapsed_at) >= 0 > int(before.collapsed_at):
        warnings.warn(
            f"the policy has collapsed at step {at}: its entropy is {entropy:.2g} nats, less than "
            f"{COLLAPSED:.0%} of the first, {float(after.first_entropy):.2g}, and it draws one architecture "
            "nearly always; pass a larger entropy_bonus or a lower learning rate, or stop there",
            ControllerWarning,
            stacklevel=3,
        )
    skipped, refused, dropped, flat = (int(np.asarray(info[name])[0]) for name in COUNTS)
    if skipped == num_updates:
        warnings.warn(
            f"no update of step {at} was finite, and the policy did not move: a draw or the shared weights "
            "have an objective that is NaN or infinite; bound the objective, or lower the learning rates",
            ControllerWarning,
            stacklevel=3,
        )
    elif dropped == num_updates:
        warnings.warn(
            f"the shared weights diverged in every window of step {at}, and were dropped for earlier or new "
            "ones: the policy's optimizer settings do not train them; lower the learning rates of the space, "
            "or pass shared(..., far=...) where such an objective is no divergence",
            ControllerWarning,
            stacklevel=3,
        )
    elif refused == num_updates:
        warnings.warn(
            f"the response was left out of every update of step {at}: it was not finite, or its solve worse "
            f"than none (a relative residual of {float(np.asarray(info['residual'])[0]):.2g}); train longer "
            "before each update, or give its solver more iterations or damping",
            ControllerWarning,
            stacklevel=3,
        )
    if flat == num_updates and skipped < num_updates:
        warnings.warn(
            f"all draws of every update of step {at} had the same objective, and the direct gradient of the "
            "choices was zero: the policy draws one architecture alone, or the objective does not read it",
            ControllerWarning,
            stacklevel=3,
        )


UPDATES, WINDOW, DRAWS, CANDIDATES = 5, 10, 4, 4
"""By name: updates of the policy a step, training steps before each, draws a step, trials of a step."""

ENTROPY_BONUS = 0.003
"""By name, in units of the objective a nat."""


def _make(task: Task, settings: Any, start: HParams | None) -> tuple[Tuner, float]:
    """Build the tuner whose real leaves learn by the response, or by credit where it does not see them."""
    policy = multitask(task.space) if task.policy is None else task.policy
    if not isinstance(policy, Policy):
        raise ValueError(
            f"task.policy is {type(policy).__name__}, expected a Policy or None; pass policies.multitask(space)"
        )
    credited = settings.response != "unrolled" and policy.log_density is not None
    scheduled = any(isinstance(d, spaces.Sequence) for d in jax.tree.leaves(task.space))
    estimator = shared(
        task.problem,
        min(WINDOW, task.horizon),
        policy,
        response=RESPONSES[settings.response].make(),
        draws=sampled(DRAWS),
        credit=running_mean() if credited else None,
        restart_every=task.horizon if scheduled else None,
    )
    # a tenth for each update, and networks ask for smaller steps than coordinates do
    rate = optax.cosine_decay_schedule(settings.learning_rate / 10, settings.budget * UPDATES)
    tuner = controller(
        task.problem,
        policy,
        estimator,
        UPDATES,
        optimizer=policy_adam(rate),
        entropy_bonus=ENTROPY_BONUS,
        num_candidates=CANDIDATES,
    )
    # what cannot work is refused before a study begins
    jax.eval_shape(lambda key: tuner.step(key, tuner.init(key)), jax.random.key(0))
    return tuner, 1


CONTROLLER = Method(
    "controller",
    "one policy over choices and real leaves, on shared weights (see --response)",
    ("response", "learning_rate"),
    _make,
)
