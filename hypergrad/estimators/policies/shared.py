"""One policy for architecture and optimizer over weights that keep training: direct gradient and response."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import (
    check_function,
    check_kind,
    check_least,
    check_share,
    check_whole,
)
from hypergrad.core.types import Array, HParams, Key, Params, PyTree
from hypergrad.estimators.base import Estimate, Estimator, first_nonfinite
from hypergrad.estimators.policies.baselines import Baseline
from hypergrad.estimators.policies.draws import Draws, check_policy, check_shared, expected, sampled
from hypergrad.estimators.policies.policy import Policy
from hypergrad.estimators.policies.responses import Response, credited, unrolled
from hypergrad.estimators.unrolled.adjoint import state_floats
from hypergrad.estimators.unrolled.online import OnlineState, check_restart, first_state, go_on
from hypergrad.problem import Problem, check_problem
from hypergrad.train import TrainState, trained


class SharedState(NamedTuple):
    """State that continues from estimate to estimate.

    Attributes:
        run: Training of the shared weights.
        solution: Solution of the response's last solve.
        credit: State of the baseline of the credited leaves; `()` without them.
        first: Expected objective at the first weights, `[]`.
        last: Expected objective after the last window that was kept, `[]`; before any, that of the first
            weights.
    """

    run: OnlineState
    solution: PyTree
    credit: PyTree
    first: Array
    last: Array

    @property
    def params(self) -> Params:
        """Return the shared weights."""
        return self.run.train.params


class SharedInfo(NamedTuple):
    """Diagnostics of a policy's gradient over shared weights.

    Attributes:
        direct: E[(f − b) ∇ log π] and the pathwise part at fixed weights, a pytree like φ; ENAS follows this.
        response: Part by way of the weights, times the scale, likewise; hypergrad = direct + response.
        horizon: Steps of training of this estimate, int32 `[]`.
        growth, residual, damping: Diagnostics as in `Pull`.
        refused: Whether the response was left out because it was not finite, or its solve was too poor to
            trust, bool `[]`.
        diverged: Whether the window was dropped because its weights had diverged, bool `[]`; `value` and
            `values` are those of the dropped weights.
        first_nonfinite: First non-finite step, as in `OnlineInfo`.
        direct_norm, response_norm: Euclidean norms of the two parts, `[]`.
        cosine: Cosine between the two, `[]`; 0 where one is zero.
        step: Steps of training of the shared weights so far, int32 `[]`.
        values: Objective of each draw at the shared weights, `[S]`.
        samples: Hparams of the draws, leading axis `[S]`.
        credit: Norm of the part of `response` that the score function gave to real leaves that the response
            does not see, `[]`.
    """

    direct: PyTree
    response: PyTree
    horizon: Array
    growth: Array
    residual: Array
    damping: Array
    refused: Array
    diverged: Array
    first_nonfinite: Array
    direct_norm: Array
    response_norm: Array
    cosine: Array
    step: Array
    values: Array
    samples: HParams
    credit: Array


def shared(
    problem: Problem,
    horizon: int,
    policy: Policy,
    *,
    response: Response | None = None,
    draws: Draws | None = None,
    scale: float = 1.0,
    credit: Baseline | None = None,
    restart_every: int | None = None,
    far: float = 10.0,
) -> Estimator:
    """Train shared weights on a policy's draws for some steps, and return the gradient of the policy.

    J(φ) = E_{a~π_φ}[f(w*(φ), a)],   w*(φ) = argmin_w E_{a~π_φ}[L(w, a)]
    ∇J = E[(f − b) ∇ log π_φ(a) + ∂f/∂λ ∂λ/∂φ] + (dw*/dφ)ᵀ E[∇_w f]          direct + scale · response

    1. draw the real leaves, with the optimizer settings, once: λ ~ π_φ
    2. w ← `horizon` steps of training under λ, each on fresh draws a ~ π_φ(· | λ)
    3. direct from S draws at w, and the response from `response`

    The weights continue from estimate to estimate, as in ENAS; with `left_out()` this is its policy gradient.
    `mixed` is its counterpart for training that starts anew.

    **Cost:** one loss for each draw and step, one objective for each draw, and the response.

    A response that is not finite, or whose solve is worse than none, is left out and counted: `info.refused`.

    A window after which J is not finite, or above J₀ + far |J₀| with J₀ that of the first weights, has diverged
    (`info.diverged`), and its weights are dropped. Training continues from the weights before it, without their
    optimizer's momenta, or from new weights where those were worse than the first. For credit the window counts
    as J₀ + far |J₀|. Its direct part is zero, and so is a response that does not see the optimizer, which made
    it diverge.

    **Limits:** with `enumerated()` exact, as far as the response is; with `sampled(S)` the direct part is
    unbiased; for the response see `unrolled` and `at_rest`. The weights follow a path of φ. Initial weights
    have no part in a window that continues. `credit` measures the effect on this window alone, with noise.
    Where windows are dropped, all this holds for the others: leaving them out is a bias, which `credit`
    corrects only in its own leaves and up to the bound. A J₀ near zero makes the bound narrow: raise `far`.

    Args:
        problem: Training loop, a function of the policy's hparams.
        horizon: Number of training steps in an estimate.
        policy: Policy that draws the hparams, e.g. `policies.multitask(space, network)`.
        response: Response of the weights, `left_out()`, `unrolled(window)` or `at_rest(solve)`; `unrolled()`
            where None.
        draws: Draws of the expectation, `policies.sampled(S)` or `policies.enumerated()`; `sampled(8)` where
            None.
        scale: Factor of the response; 0 follows the direct part and still reports the response.
        credit: Baseline, e.g. `policies.running_mean()`, with which real leaves that the response does not
            see (learning rates at rest, say) learn by the score function from how much the window lowered the
            objective, as all leaves do in ENAS. Where None, such a leaf is refused by name.
        restart_every: Number of steps after which new weights start, such as the length of a schedule; the
            weights are never replaced where None.
        far: Distance above J₀, in units of |J₀|, at which weights count as diverged; with `math.inf` they do
            only where J is not finite.

    Returns:
        An estimator of φ whose state is a `SharedState` and whose `info` is a `SharedInfo`.

    Raises:
        ValueError: for settings out of range and, when traced, for a φ that is not the policy's, a drawn leaf
            that the optimizer or the initial weights read, and a real leaf whose ways the response does not
            see, each by its name.

    Reference:
        Adam and Lorraine, "More Efficient Stochastic Hyperparameter Optimization"; Pham et al., 2018,
        arXiv:1802.03268; Foerster et al., 2018, arXiv:1802.05098 (DiCE).
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    check_kind("policy", policy, Policy, "policies.multitask(space)")
    response = unrolled() if response is None else response
    check_kind("response", response, Response, "unrolled()")
    draws = sampled() if draws is None else draws
    check_function("draws", draws, "hypergrad.estimators.policies.sampled(8)")
    check_least("scale", scale)
    if credit is not None:
        check_kind("credit", credit, Baseline, "policies.running_mean()")
    check_restart(restart_every)
    check_share("far", far, "(0, inf]", what="a number", example=10.0)
    parts = _Parts(problem, horizon, policy, response, draws, scale, credit, restart_every, far)
    return Estimator(partial(_init, parts), partial(_estimate, parts))


class _Parts(NamedTuple):
    """The arguments of `shared`, none of them None but `credit` and `restart_every`."""

    problem: Problem
    horizon: int
    policy: Policy
    response: Response
    draws: Draws
    scale: float
    credit: Baseline | None
    restart_every: int | None
    far: float


class _Drawn(NamedTuple):
    """The draws of a window, made once, before its first step.

    Attributes:
        policy: Policy whose real leaves are the same in all draws of the window.
        problem: Expected problem on which the weights are trained.
        key: Key of the draw that optimizer and initial weights read.
    """

    policy: Policy
    problem: Problem
    key: Key


class _Verdict(NamedTuple):
    """Objective of the weights after a window.

    Attributes:
        value: Expected objective, `[]`.
        bound: Objective above which weights have diverged, `[]`.
        diverged: Whether these weights have diverged, bool `[]`.
    """

    value: Array
    bound: Array
    diverged: Array

    @property
    def counted(self) -> Array:
        """Return the value, or the bound in its place where the weights diverged, `[]`."""
        return jnp.where(self.diverged, self.bound, self.value)


def _init(parts: _Parts, key: Key, phi: PyTree) -> SharedState:
    check_policy(parts.problem, parts.policy, phi, must_draw=False)
    drawn = _draw_once(parts, key, phi)
    run = first_state(drawn.problem, key, phi)
    first = _judge(parts, drawn, key, run.train, state_floats(run.train)[0], phi)[0]
    memory = parts.credit.init() if parts.credit else ()
    solution = parts.response.solution(trained(run.train.params))
    return SharedState(run, solution, memory, first, first)


def _estimate(
    parts: _Parts, key: Key, state: SharedState, phi: PyTree
) -> tuple[SharedState, Estimate]:
    """Take the three steps of `shared`, then add credit and drop weights that diverged."""
    check_policy(parts.problem, parts.policy, phi, must_draw=False, pathwise=True)
    check_shared(parts.problem, parts.policy, phi)
    names = credited(parts.problem, parts.policy, phi, parts.response, parts.credit, parts.horizon)
    window_key, run_key, judge_key, pull_key = jax.random.split(key, 4)
    drawn = _draw_once(parts, window_key, phi)
    fresh = first_state(drawn.problem, run_key, phi)
    run = go_on(state.run, fresh, parts.restart_every)
    window = parts.response.follow(drawn.problem, parts.problem, phi, run.train, parts.horizon)

    def judge(leaves: list[Array], phi: PyTree, at: TrainState) -> tuple[Array, tuple]:
        return _judge(parts, drawn, judge_key, at, leaves, phi)

    leaves = state_floats(window.state)[0]
    judged = jax.value_and_grad(judge, (0, 1), has_aux=True)
    (value, (values, samples)), (adjoint, direct) = judged(leaves, phi, window.state)
    verdict = _verdict(value, state.first, parts.far)
    direct = _kept(direct, ~verdict.diverged)
    pull = window.pull(pull_key, adjoint, state.solution)
    sound = pull.sound & jnp.isfinite(tree.norm((pull.response, pull.solution)))
    seen = jnp.isfinite(value) & ("optimizer" in parts.response.sees)
    told = ~verdict.diverged | seen
    answer, solution = _kept((pull.response, pull.solution), sound & told)
    memory, size = state.credit, jnp.zeros(())
    if names:
        before = judge(state_floats(run.train)[0], phi, run.train)[0]
        gain = verdict.counted - before
        memory, term = _credit(parts, drawn, names, state.credit, gain, phi)
        answer, size = tree.add(answer, term), parts.scale * tree.norm(term)
    answer = jax.tree.map(lambda x: parts.scale * x, answer)
    bad = first_nonfinite(window.losses, value)
    info = SharedInfo(
        direct=direct,
        response=answer,
        horizon=jnp.asarray(parts.horizon, jnp.int32),
        growth=pull.growth.astype(jnp.float32),
        residual=pull.residual.astype(jnp.float32),
        damping=pull.damping.astype(jnp.float32),
        refused=~sound,
        diverged=verdict.diverged,
        first_nonfinite=jnp.where(bad < 0, bad, bad + run.train.step).astype(jnp.int32),
        direct_norm=tree.norm(direct),
        response_norm=tree.norm(answer),
        cosine=tree.cosine_between(direct, answer),
        step=window.state.step,
        values=values,
        samples=samples,
        credit=size,
    )
    train, last = _next_start(
        verdict.diverged,
        (window.state, value),
        (run.train, state.last),
        (fresh.train, state.first),
    )
    after = SharedState(run._replace(train=train), solution, memory, state.first, last)
    return after, Estimate(value, tree.add(direct, answer), info)


def _draw_once(parts: _Parts, key: Key, phi: PyTree) -> _Drawn:
    real_key, once_key = jax.random.split(key)
    policy = parts.policy if parts.policy.given is None else parts.policy.given(real_key)
    return _Drawn(policy, expected(parts.problem, policy, parts.draws, once_key), once_key)


def _judge(
    parts: _Parts, drawn: _Drawn, key: Key, at: TrainState, leaves: list[Array], phi: PyTree
) -> tuple[Array, tuple[Array, HParams]]:
    """Return the expected objective `[]` of a state with these float leaves, that of each draw, the draws."""
    data_key, draw_key = jax.random.split(jax.random.clone(key))
    data = parts.problem.valid_batch(data_key)
    hparams, expect = parts.draws(drawn.policy, draw_key, phi)
    params = state_floats(at)[1](leaves).params
    values = jax.vmap(lambda h: parts.problem.objective(params, h, data))(hparams)
    return expect(values), (values, hparams)


def _verdict(value: Array, first: Array, far: float) -> _Verdict:
    """Say whether weights of this expected objective have diverged: J > J₀ + far |J₀|, or not finite."""
    bound = first + jnp.where(first == 0, 0, far * jnp.abs(first))
    bound = jnp.where(jnp.isfinite(first) & (far < jnp.inf), bound, jnp.inf)
    return _Verdict(value, bound, ~jnp.isfinite(value) | (value > bound))


def _credit(
    parts: _Parts, drawn: _Drawn, names: list[str], memory: PyTree, gain: Array, phi: PyTree
) -> tuple[PyTree, PyTree]:
    """Return the baseline's memory, and A ∇_φ log π_φ of the named leaves that the window drew."""
    density, credit = parts.policy.log_density, parts.credit
    assert density is not None and credit is not None  # `credited` has named no leaf otherwise
    memory, advantage = credit.advantages(memory, gain[None])
    once = drawn.policy.sample(drawn.key, phi)

    def total(phi: PyTree) -> Array:
        densities = density(phi, once)
        return sum((densities[name] for name in names), jnp.zeros(()))

    term = jax.tree.map(lambda x: (advantage[0] * x).astype(x.dtype), jax.grad(total)(phi))
    return memory, term


def _next_start(
    diverged: Array,
    after: tuple[TrainState, Array],
    before: tuple[TrainState, Array],
    start: tuple[TrainState, Array],
) -> tuple[TrainState, Array]:
    """Return the state that the next window starts from, and its expected objective.

    That is the state after the window. Where the window diverged, it is the state before it with the
    optimizer's state of a new start, because momenta may have diverged. Where that state was no better, it is a
    new start.
    """
    kept = before[0]._replace(opt_state=start[0].opt_state), before[1]
    worse = ~(before[1] <= start[1])
    safe = tree.choose(worse, start, kept)
    return tree.choose(diverged, safe, after)


def _kept(tree: PyTree, keep: Array) -> PyTree:
    """Return a tree, or zeros in its place."""
    return jax.tree.map(lambda x: jnp.where(keep, x, 0).astype(x.dtype), tree)
