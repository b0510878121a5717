"""The controller: shared weights and the policy over architectures and optimizers, trained in turn."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_least, check_whole
from hypergrad.core.methods import Method, StepCost
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators import Estimate, Estimator
from hypergrad.estimators.costs import valid_minibatches
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
from hypergrad.tuners.base import Tuner, on_device
from hypergrad.tuners.clipping import Clipping, policy_adam
from hypergrad.tuners.controller_info import (
    COLLAPSED,
    COUNTS,
    ControllerState,
    summarized,
    told_of,
    warn_of_step,
)


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
    """Train shared weights and a policy in turn, `num_updates` times per step of the tuner.

    w ← training under settings and architectures of π_φ,   φ ← φ − optimizer(direct + response − β ∇H(π_φ))

    The estimator, `shared(problem, horizon, policy, ...)`, decides the response and the number of draws. With
    `left_out()` this is ENAS, with a `policies.mixture` DARTS.

    **Cost:** `num_updates` estimates and `num_candidates` objectives per step; memory of one set of weights
    and, for the variances, of `num_updates` gradients of φ.

    **Limits:** values are those of the shared weights, which serve all architectures and rank them roughly:
    train the best again. An update that is not finite (a draw with a NaN objective, say) is counted and moves
    neither φ nor its optimizer; windows whose weights diverged are counted and dropped, as `shared` has it.
    Variances are over the updates of a step, in which φ moves.

    Args:
        problem: Training loop.
        policy: Policy that the estimator was built with.
        estimator: Estimator over shared weights, `estimators.shared(problem, horizon, policy, ...)`.
        num_updates: Number of updates of the policy in a step of the tuner, one compiled loop.
        optimizer: Optimizer of φ; `policy_adam()` where None. Another optimizer should cut the gradient, too.
        entropy_bonus: Weight β of the entropy, in units of the objective a nat.
        clipping: Rule for several moves an estimate, `clipped()` for those of PPO; one move where None.
        num_candidates: Number of trials of a step: the policy's mode, then draws.

    Returns:
        A tuner. Its trials are the candidates, with their objective at the shared weights; the info has the
        norms of direct gradient, response and whole (of their means over the updates), the cosine between
        the first two, their variances (mean squared distance from the mean), residual and damping of the
        solves, the entropy, how many updates were skipped, in how many the response was refused and left out,
        how many windows were dropped, and in how many all draws did equally well. `expected_value` is the mean
        over the windows that were kept. `first_nonfinite` is the latest step of training at which an update
        ceased to be finite, −1 without one.

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
    optimizer = policy_adam() if optimizer is None else optimizer
    check_kind("optimizer", optimizer, optax.GradientTransformation, "policy_adam(0.02)")
    if clipping is not None:
        check_kind("clipping", clipping, Clipping, "clipped(0.2, 4)")
    check_least("entropy_bonus", entropy_bonus, example=0.01)
    parts = _Parts(
        problem, policy, estimator, num_updates, optimizer, entropy_bonus, clipping, num_candidates
    )

    def finish(found: tuple[Trials, ControllerState, ControllerState]) -> Trials:
        trials, before, after = found
        warn_of_step(before, after, trials.info, num_updates)
        return trials

    return on_device(partial(_init, parts), partial(_step, parts), finish, lambda found: found[0])


class _Parts(NamedTuple):
    """The arguments of `controller`, none of them None but `clipping`."""

    problem: Problem
    policy: Policy
    estimator: Estimator
    num_updates: int
    optimizer: optax.GradientTransformation
    entropy_bonus: float
    clipping: Clipping | None
    num_candidates: int

    def at(self, phi: PyTree) -> PyTree:
        """Return the policy's parameters at these unconstrained coordinates."""
        return phi if self.policy.space is None else spaces.constrain(self.policy.space, phi)


def _init(parts: _Parts, key: Key) -> ControllerState:
    policy, (policy_key, estimator_key) = parts.policy, jax.random.split(key)
    phi = policy.init(policy_key)
    if policy.space is not None:
        phi = spaces.unconstrain(policy.space, phi)
    state = parts.estimator.init(estimator_key, parts.at(phi))
    if not isinstance(state, SharedState):
        raise ValueError(
            "estimator keeps no shared weights, expected shared(problem, horizon, policy, ...); pass it"
        )
    zero, entropy = jnp.zeros((), jnp.int32), policy.entropy(parts.at(phi))
    opt_state = parts.optimizer.init(phi)
    return tree.strong(ControllerState(phi, opt_state, state, zero, entropy, zero - 1))


def _step(
    parts: _Parts, key: Key, state: ControllerState
) -> tuple[ControllerState, tuple[Trials, ControllerState, ControllerState]]:
    """Update weights and policy in turn, then judge the candidates at the weights.

    Returns:
        The state; the trials, and the counts of the state before and after the step.
    """
    num = parts.num_candidates
    run_key, draw_key, valid_key = jax.random.split(key, 3)
    keys = jax.random.split(run_key, parts.num_updates)
    start = (state.phi, state.opt_state, state.estimator)
    end, told = jax.lax.scan(partial(_update, parts), start, keys)
    phi, (_, _, estimator) = parts.at(end[0]), end
    entropy = parts.policy.entropy(phi)
    hparams = _candidates(parts.policy, draw_key, phi, num)
    data = parts.problem.valid_batch(valid_key)
    values = jax.vmap(lambda h: parts.problem.objective(estimator.params, h, data))(hparams)
    summary = summarized(told) | {"entropy": entropy, "step": estimator.run.train.step}
    info = {name: jnp.broadcast_to(x, (num,)) for name, x in summary.items()}
    rows = jnp.arange(num, dtype=jnp.int32)  # counts stand in one row, so that they can be summed
    info |= {name: jnp.where(rows == 0, summary[name], 0) for name in COUNTS}
    bits = jax.random.key_data(key)
    info["key"] = jnp.broadcast_to(bits, (num, *bits.shape))
    fallen = (entropy < COLLAPSED * state.first_entropy) & (state.collapsed_at < 0)
    collapsed = jnp.where(fallen, state.step, state.collapsed_at)
    after = ControllerState(*end, state.step + 1, state.first_entropy, collapsed)
    steps = jnp.broadcast_to(jnp.sum(told["horizon"]).astype(jnp.int32), (num,))
    after, trials = tree.strong(after), Trials(hparams, values, steps, rows, info)
    return after, (trials, _counts(state), _counts(after))


def _counts(state: ControllerState) -> ControllerState:
    """Leave the weights and the policy out, whose memory the next step takes."""
    return state._replace(phi=None, opt_state=None, estimator=None)


def _update(
    parts: _Parts, carry: tuple[PyTree, PyTree, SharedState], key: Key
) -> tuple[tuple[PyTree, PyTree, SharedState], dict[str, Any]]:
    """Train the weights for a window, and move φ; an update that is not finite leaves φ and its optimizer."""
    phi, opt_state, state = carry
    hparams, pull = jax.vjp(parts.at, phi)
    state, found = parts.estimator.estimate(key, state, hparams)
    slopes = pull(found.info.direct)[0], pull(found.info.response)[0]
    size = tree.norm(slopes)
    moved = _moved(parts, phi, opt_state, found, pull(found.hypergrad)[0])
    # a window that was dropped has no value, but credit or response may tell what made it diverge
    finite = jnp.isfinite(size + tree.norm(moved[0])) & (jnp.isfinite(found.value) | (size > 0))
    phi, opt_state = tree.choose(finite, moved, (phi, opt_state))
    return (phi, opt_state, state), told_of(found, slopes, finite)


def _moved(
    parts: _Parts, phi: PyTree, opt_state: PyTree, found: Estimate, grads: PyTree
) -> tuple[PyTree, PyTree]:
    """Move φ along a gradient once, or as often as `clipping` says; return it with its optimizer's state."""
    clipping = parts.clipping
    if clipping is None:
        return _move(parts, phi, opt_state, grads)
    log_probs = jax.vmap(parts.policy.log_prob, (None, 0))
    old = log_probs(parts.at(phi), found.info.samples)

    def surrogate(phi: PyTree) -> Array:
        """(1/S) Σ_s max(r_s A_s, clip(r_s, 1 − ε, 1 + ε) A_s), equation 7 of Schulman et al."""
        ratios = jnp.exp(log_probs(parts.at(phi), found.info.samples) - old)
        values = jnp.where(found.info.diverged, 0, found.info.values)
        advantages = values - mean_of_others(values)
        near = jnp.clip(ratios, 1 - clipping.epsilon, 1 + clipping.epsilon)
        return jnp.mean(jnp.maximum(ratios * advantages, near * advantages))

    rest = jax.tree.map(jnp.subtract, grads, jax.grad(surrogate)(phi))

    def once(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
        phi, opt_state = carry
        return _move(parts, phi, opt_state, tree.add(rest, jax.grad(surrogate)(phi))), None

    return jax.lax.scan(once, (phi, opt_state), length=clipping.num_epochs)[0]


def _move(parts: _Parts, phi: PyTree, opt_state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
    """Move φ once along a gradient and that of the entropy."""
    bonus = parts.entropy_bonus
    if bonus:
        more = jax.grad(lambda phi: -bonus * parts.policy.entropy(parts.at(phi)))(phi)
        grads = tree.add(grads, more)
    updates, opt_state = parts.optimizer.update(grads, opt_state, phi)
    return optax.apply_updates(phi, updates), opt_state


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


UPDATES, WINDOW, DRAWS, CANDIDATES = 5, 10, 4, 4
"""By name: updates of the policy per step, training steps before each, draws per step, trials per step."""

ENTROPY_BONUS = 0.003
"""By name, in units of the objective a nat."""


def _make(task: Task, settings: Any, start: HParams | None) -> tuple[Tuner, StepCost]:
    """Build the tuner whose real leaves learn by the response, or by credit where it does not see them."""
    policy = multitask(task.space) if task.policy is None else task.policy
    check_kind("task.policy", policy, Policy, "policies.multitask(space)")
    credited = settings.response != "unrolled" and policy.log_density is not None
    scheduled = any(isinstance(d, spaces.Sequence) for d in jax.tree.leaves(task.space))
    window, response = min(WINDOW, task.horizon), RESPONSES[settings.response]
    estimator = shared(
        task.problem,
        window,
        policy,
        response=response.make(),
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
    # settings that cannot work are refused before a study begins
    jax.eval_shape(lambda key: tuner.step(key, tuner.init(key)), jax.random.key(0))
    each = window + response.cost(task.problem, window, task.space)
    each = DRAWS * (each + valid_minibatches(task.problem))
    counted = f"{UPDATES} updates of the policy, {each:.4g} gradients of a loss each"
    return tuner, StepCost(UPDATES * each / task.horizon, counted)


CONTROLLER = Method(
    "controller",
    "one policy over choices and real leaves, on shared weights (see --response)",
    ("response", "learning_rate"),
    _make,
)
