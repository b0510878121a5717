"""One policy for architecture and optimizer over weights that go on training: direct gradient and response."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.autodiff import depends
from hypergrad.core.checks import check_kind, check_whole, is_number
from hypergrad.core.types import Array, HParams, Params, PyTree
from hypergrad.estimators.base import Estimate, Estimator, first_nonfinite
from hypergrad.estimators.implicit.response import inner_loss, past_the_loss
from hypergrad.estimators.policies.baselines import Baseline
from hypergrad.estimators.policies.draws import Draws, check_policy, check_shared, expected, sampled
from hypergrad.estimators.policies.policy import Policy
from hypergrad.estimators.policies.responses import Response, unrolled
from hypergrad.estimators.unrolled.adjoint import state_floats
from hypergrad.estimators.unrolled.online import OnlineState, check_restart, first_state, go_on
from hypergrad.problem import Problem, check_problem
from hypergrad.train import TrainState, draw_batch, init_state, trained


class SharedState(NamedTuple):
    """What goes on from estimate to estimate.

    Attributes:
        run: the training of the shared weights.
        solution: of the response.
        credit: of the baseline of the credited leaves; `()` without.
        first: expected objective at the first weights, `[]`.
        last: expected objective after the last window that was kept, `[]`; that of the first weights before.
    """

    run: OnlineState
    solution: PyTree
    credit: PyTree
    first: Array
    last: Array

    @property
    def params(self) -> Params:
        """The shared weights."""
        return self.run.train.params


class SharedInfo(NamedTuple):
    """Diagnostics of a policy's gradient over shared weights.

    Attributes:
        direct: E[(f − b) ∇ log π] and the pathwise part at fixed weights, a pytree like φ: what ENAS follows.
        response: the part by way of the weights, times the scale, likewise; hypergrad = direct + response.
        horizon: steps of training of this estimate, int32 `[]`.
        growth, residual, damping: as in `Pull`.
        refused: whether the response was left out because it was not finite, or its solve too bad to believe,
            bool `[]`.
        diverged: whether the window was dropped because its weights had diverged, bool `[]`; `value` and
            `values` are those of the dropped weights.
        first_nonfinite: as in `OnlineInfo`.
        direct_norm, response_norm: Euclidean norms, `[]`.
        cosine: between the two, `[]`; 0 where one is zero.
        step: steps of training of the shared weights so far, int32 `[]`.
        values: objective of each draw at the shared weights, `[S]`.
        samples: the draws, leading axis `[S]`.
        credit: what the score function gave to real leaves that the response does not see, part of `response`;
            its norm, `[]`.
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
    """Train shared weights on a policy's draws for some steps, and say where the policy should move.

    J(φ) = E_{a~π_φ}[f(w*(φ), a)],   w*(φ) = argmin_w E_{a~π_φ}[L(w, a)]
    ∇J = E[(f − b) ∇ log π_φ(a) + ∂f/∂λ ∂λ/∂φ] + (dw*/dφ)ᵀ E[∇_w f]          direct + scale · response

    1. draw the real leaves, optimizer settings among them, once: λ ~ π_φ
    2. w ← `horizon` steps of training under λ, each on fresh draws a ~ π_φ(· | λ)
    3. direct from S draws at w, and the response from `response`

    The weights go on from estimate to estimate, as in ENAS, whose policy gradient this is with `left_out()`.
    `mixed` is its counterpart for training that starts anew.

    **Cost:** a loss a draw and step, an objective a draw, and the response.

    A response that is not finite, or whose solve is worse than none, is left out and counted: `info.refused`.

    A window after which J is not finite, or above J₀ + far |J₀| with J₀ that of the first weights, has diverged
    (`info.diverged`), and its weights are dropped. The weights before it go on, without their optimizer's
    momenta, or new ones where those before were worse than the first. It counts as J₀ + far |J₀| for credit,
    its direct part is zero, and so is a response that does not see the optimizer, which made it diverge.

    **Limits:** with `enumerated()` exact, as far as the response is; with `sampled(S)` the direct part is
    unbiased, for the response see `unrolled` and `at_rest`. The weights follow a path of φ. Initial weights
    have no part in a window that goes on. What `credit` gives is the effect on this window alone, and noisy.
    Where windows are dropped all this holds for the others: leaving them out is a bias, which `credit` mends
    only in its own leaves and up to the bound. A J₀ near zero makes the bound a narrow one: raise `far`.

    Args:
        problem: the training loop, a function of the policy's hparams.
        horizon: steps of training an estimate.
        policy: how hparams are drawn, e.g. `heads.multitask(space, network)`.
        response: `left_out()`, `unrolled(window)` or `at_rest(solve)`; `unrolled()` where None.
        draws: `expected.sampled(S)` or `expected.enumerated()`; `sampled(8)` where None.
        scale: of the response; 0 follows the direct part and still reports the other.
        credit: a baseline, e.g. `policies.running_mean()`, with which real leaves that the response does not
            see (learning rates at rest, say) learn by the score function from how much the window lowered the
            objective, as all of ENAS does. None: such a leaf is refused by name.
        restart_every: start new weights after so many steps, such as the length of a schedule; None: never.
        far: how far above J₀, in units of |J₀|, weights have diverged; `math.inf`: where J is not finite.

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
    response = unrolled() if response is None else response
    draws = sampled() if draws is None else draws
    _check(problem, horizon, policy, response, draws, scale, credit, restart_every, far)

    def window_of(key, phi):
        """The policy of one window, and its expected problem."""
        real_key, once_key = jax.random.split(key)
        held = policy if policy.given is None else policy.given(real_key)
        return held, expected(problem, held, draws, once_key), once_key

    def judge(leaves, phi, at, held, key):
        """The expected objective of a state with these float leaves; aux: of each draw, and the draws."""
        data_key, draw_key = jax.random.split(key)
        data = problem.valid_batch(data_key)
        hparams, expect = draws(held, draw_key, phi)
        params = state_floats(at)[1](leaves).params
        values = jax.vmap(lambda h: problem.objective(params, h, data))(hparams)
        return expect(values), (values, hparams)

    def init(key, phi):
        check_policy(problem, policy, phi, must_draw=False)
        held, whole, _ = window_of(key, phi)
        run = first_state(whole, key, phi)
        weights = trained(run.train.params)
        first = judge(state_floats(run.train)[0], phi, run.train, held, key)[0]
        memory = credit.init() if credit else ()
        return SharedState(run, response.solution(weights), memory, first, first)

    def estimate(key, state, phi):
        check_policy(problem, policy, phi, must_draw=False)
        check_shared(problem, policy, phi)
        credited = _credited(problem, policy, phi, response, credit, horizon)
        window_key, run_key, judge_key, pull_key = jax.random.split(key, 4)
        held, whole, once_key = window_of(window_key, phi)
        fresh = first_state(whole, run_key, phi)
        run = go_on(state.run, fresh, restart_every)
        window = response.follow(whole, problem, phi, run.train, horizon)
        leaves = state_floats(window.state)[0]
        judged = jax.value_and_grad(judge, (0, 1), has_aux=True)
        found = judged(leaves, phi, window.state, held, judge_key)
        (value, (values, samples)), (adjoint, direct) = found
        bound = _bound(state.first, far)
        diverged = ~jnp.isfinite(value) | (value > bound)
        direct = _kept(direct, ~diverged)
        pull = window.pull(pull_key, adjoint, state.solution)
        sound = pull.sound & jnp.isfinite(tree.norm((pull.response, pull.solution)))
        told = ~diverged | (jnp.isfinite(value) & ("optimizer" in response.sees))
        answer, solution = _kept((pull.response, pull.solution), sound & told)
        memory, size = state.credit, jnp.zeros(())
        density = policy.log_density
        if credit is not None and density is not None and credited:
            before = judge(state_floats(run.train)[0], phi, run.train, held, judge_key)[0]
            gain = jnp.where(diverged, bound, value) - before
            memory, advantage = credit.advantages(state.credit, gain[None])
            once = held.sample(once_key, phi)
            term = jax.grad(lambda phi: _total(density(phi, once), credited))(phi)
            term = jax.tree.map(lambda x: (advantage[0] * x).astype(x.dtype), term)
            answer, size = tree.add(answer, term), scale * tree.norm(term)
        answer = jax.tree.map(lambda x: scale * x, answer)
        bad = first_nonfinite(window.losses, value)
        info = SharedInfo(
            direct=direct,
            response=answer,
            horizon=jnp.asarray(horizon, jnp.int32),
            growth=pull.growth.astype(jnp.float32),
            residual=pull.residual.astype(jnp.float32),
            damping=pull.damping.astype(jnp.float32),
            refused=~sound,
            diverged=diverged,
            first_nonfinite=jnp.where(bad < 0, bad, bad + run.train.step).astype(jnp.int32),
            direct_norm=tree.norm(direct),
            response_norm=tree.norm(answer),
            cosine=tree.cosine_between(direct, answer),
            step=window.state.step,
            values=values,
            samples=samples,
            credit=size,
        )
        train, last = _go_on(
            diverged, (window.state, value), (run.train, state.last), (fresh.train, state.first)
        )
        after = SharedState(run._replace(train=train), solution, memory, state.first, last)
        return after, Estimate(value, tree.add(direct, answer), info)

    return Estimator(init, estimate)


def _bound(first: Array, far: float) -> Array:
    """Return the objective above which weights have diverged; infinity where nothing can be compared."""
    bound = first + jnp.where(first == 0, 0, far * jnp.abs(first))
    return jnp.where(jnp.isfinite(first) & (far < jnp.inf), bound, jnp.inf)


def _go_on(
    diverged: Array,
    after: tuple[TrainState, Array],
    before: tuple[TrainState, Array],
    start: tuple[TrainState, Array],
) -> tuple[TrainState, Array]:
    """Return what the next window starts from, and its expected objective.

    That is the state after the window; where it diverged, the one before it with the optimizer's state of
    a start, because momenta may be what diverged; and a new start where that one was no better.
    """
    kept = before[0]._replace(opt_state=start[0].opt_state), before[1]
    worse = ~(before[1] <= start[1])
    safe = tree.choose(worse, start, kept)
    return tree.choose(diverged, safe, after)


def _kept(tree: PyTree, keep: Array) -> PyTree:
    """Return a tree, or zeros in its place."""
    return jax.tree.map(lambda x: jnp.where(keep, x, 0).astype(x.dtype), tree)


def _total(densities: dict[str, Array], names: list[str]) -> Array:
    return sum((densities[name] for name in names), jnp.zeros(()))


def ways(problem: Problem, hparams: HParams, horizon: int) -> dict[str, tuple[str, ...]]:
    """Tell by which ways each real leaf reaches the objective: "objective", "loss", "optimizer", "init".

    **Cost:** four traces; nothing is compiled or run.
    """
    leaves, join = tree.split_float(hparams)
    names = [n for n, leaf in tree.named(hparams).items() if tree.is_float(leaf)]
    key = jax.random.key(0)

    def part(function):
        return lambda leaves: function(join(leaves))

    def start(hparams):
        return init_state(problem, key, jax.lax.stop_gradient(hparams))

    def slope(hparams):
        state = start(hparams)
        loss = inner_loss(problem, state.params, draw_batch(problem, state))
        return jax.grad(loss)(trained(state.params), hparams)

    def objective(hparams):
        return problem.objective(start(hparams).params, hparams, problem.valid_batch(key))

    only_reals = problem._replace(
        init=lambda key, h: problem.init(key, join(h)),
        loss=lambda params, h, batch: problem.loss(params, join(h), batch),
        optimizer=lambda h: problem.optimizer(join(h)),
    )
    later = only_reals._replace(init=lambda k, h: only_reals.init(k, jax.lax.stop_gradient(h)))
    found = {
        "objective": depends(part(objective), leaves),
        "loss": depends(part(slope), leaves),
        "optimizer": past_the_loss(later, leaves, horizon),
        "init": depends(lambda x: tree.floats(only_reals.init(key, x)), leaves),
    }
    return {name: tuple(w for w in found if found[w][i]) for i, name in enumerate(names)}


def _credited(
    problem: Problem,
    policy: Policy,
    phi: PyTree,
    response: Response,
    credit: Baseline | None,
    horizon: int,
) -> list[str]:
    """Name the real leaves that learn by credit; raise a `ValueError` for one that could not learn at all."""
    hparams = jax.eval_shape(policy.sample, jax.random.key(0), phi)
    hparams = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), hparams)
    found = []
    for name, reached in ways(problem, hparams, horizon).items():
        trains = [way for way in reached if way in ("loss", "optimizer")]
        if "objective" in reached:
            continue
        if not trains:
            where = "problem.init alone" if "init" in reached else "nothing"
            raise ValueError(
                f"hparams[{name!r}] acts through {where}, expected a leaf of the loss, the optimizer or the "
                "objective, because the shared weights go on from window to window; close over it"
            )
        unseen = [way for way in trains if way not in response.sees]
        if not unseen:
            continue
        if credit is None or policy.log_density is None or len(unseen) < len(trains):
            way = f"problem.{unseen[0]}"
            raise ValueError(
                f"hparams[{name!r}] acts through {way}, which this response does not see, expected one that "
                "the response, the objective or a credit can teach; pass response=unrolled(...), or "
                "credit=policies.running_mean() with a policy of noisy real leaves, or close over it"
            )
        found.append(name)
    return found


def _check(problem, horizon, policy, response, draws, scale, credit, restart_every, far) -> None:
    check_problem(problem)
    check_whole("horizon", horizon)
    check_kind("policy", policy, Policy, "heads.multitask(space)")
    check_kind("response", response, Response, "unrolled()")
    check_restart(restart_every)
    if credit is not None:
        check_kind("credit", credit, Baseline, "policies.running_mean()")
    if not callable(draws):
        raise ValueError(f"draws is {draws!r}, expected a function; pass e.g. hypergrad.sampled(8)")
    if not is_number(scale) or not 0 <= scale < float("inf"):
        raise ValueError(f"scale is {scale!r}, expected a number of at least 0; pass e.g. 1.0")
    if not is_number(far) or not far > 0:
        raise ValueError(
            f"far is {far!r}, expected a positive number; pass e.g. 10.0, or math.inf for any finite objective"
        )
