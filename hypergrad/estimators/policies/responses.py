"""Responses of the shared weights to a change of the hyperparameters."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.autodiff import depends
from hypergrad.core.checks import check_function, check_share, check_whole
from hypergrad.core.methods import Method, by_name
from hypergrad.core.solve import Solve, cg, positive
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import inner_loss
from hypergrad.estimators.costs import TANGENT, pass_back
from hypergrad.estimators.implicit.response import default_batch, hessian_of_loss
from hypergrad.estimators.policies.baselines import Baseline
from hypergrad.estimators.policies.policy import Policy
from hypergrad.estimators.unrolled.adjoint import Backward, mixed_mode
from hypergrad.estimators.unrolled.base import growth_rate
from hypergrad.estimators.ways import past_the_loss
from hypergrad.problem import Problem
from hypergrad.train import TrainState, carried, draw_batch, init_state, trained, unroll_losses


class Pull(NamedTuple):
    """Response of the objective to φ through the weights.

    Attributes:
        response: Response (dw/dφ)ᵀ ∂f/∂w, a pytree like φ.
        solution: Start of the next pull.
        growth: Growth of the adjoint a step, `[]`; 1 where nothing is unrolled.
        residual, damping: Diagnostics of the linear solve, `[]`; 0 without one.
        sound: Whether the response can be trusted, bool `[]`.
    """

    response: PyTree
    solution: PyTree
    growth: Array
    residual: Array
    damping: Array
    sound: Array


def _unsolved(response: PyTree, solution: PyTree, growth: Array) -> Pull:
    """Return the response of a pull without a linear solve."""
    return Pull(response, solution, growth, jnp.zeros(()), jnp.zeros(()), jnp.array(True))


class ResponseWindow(NamedTuple):
    """Some steps of training on a policy's draws, which can be pulled back.

    Attributes:
        state: State after the last step.
        losses: Loss before each step, `[num_steps]`.
        pull: (key, adjoint of the state's float leaves, solution of the window before) -> `Pull`.
    """

    state: TrainState
    losses: Array
    pull: Callable[[Key, list[Array], PyTree], Pull]


class Response(NamedTuple):
    """A response of shared weights to a policy, as a value: `left_out()`, `unrolled(...)` or `at_rest(...)`.

    Attributes:
        follow: (expected problem, problem, φ, first state, horizon) -> `Window`. The problem itself draws the
            examples, so that independent draws can be made over the same ones.
        sees: Names of the ways of a real leaf that have a derivative here, among "objective", "loss" and
            "optimizer".
        solution: (weights) -> start of the first pull.
    """

    follow: Callable[[Problem, Problem, PyTree, TrainState, int], ResponseWindow]
    sees: tuple[str, ...]
    solution: Callable[[PyTree], PyTree]


def left_out() -> Response:
    """Take the response as zero, as ENAS does: the weights are held constant when the policy moves.

    Reference:
        Pham, Guan, Zoph, Le, Dean, 2018, arXiv:1802.03268.
    """

    def follow(
        whole: Problem, problem: Problem, phi: PyTree, start: TrainState, horizon: int
    ) -> ResponseWindow:
        state, losses = _train(whole, phi, start, horizon)

        def pull(key: Key, adjoint: list[Array], solution: PyTree) -> Pull:
            zero = jax.tree.map(jnp.zeros_like, phi)
            return _unsolved(zero, solution, jnp.ones(()))

        return ResponseWindow(state, losses, pull)

    return Response(follow, ("objective",), lambda weights: ())


def unrolled(window: int | None = None, *, backward: Backward | None = None) -> Response:
    """Differentiate through the last `window` steps of training, including the draws.

    response = Σ_t ᾱ_{t+1} ∂Φ_t/∂φ,   Φ_t an optimizer's step on (1/S) Σ_s □_s L(w_t, a_s)

    The response sees whatever acts in these steps: losses, learning rates, momenta, decays. With a window and
    horizon of one step of SGD and a `policies.mixture` this is DARTS of second order.

    **Limits:** the steps before the window are dropped (short-horizon bias). With S draws per step, the last
    weights depend on the draws and f is not linear in them: the bias is O(1/S).

    Args:
        window: Number of steps, at most the horizon; all steps of an estimate where None.
        backward: Backward pass, as in `reverse`.
    """
    if window is not None:
        check_whole("window", window)
    backward = mixed_mode() if backward is None else backward

    def follow(
        whole: Problem, problem: Problem, phi: PyTree, start: TrainState, horizon: int
    ) -> ResponseWindow:
        depth = horizon if window is None else window
        if depth > horizon:
            raise ValueError(
                f"window is {depth}, expected at most horizon = {horizon}; leave it out for all steps"
            )
        start, early = _train(whole, phi, start, horizon - depth)
        run = backward(whole, phi, start, depth)
        num_weights = len(jax.tree.leaves(trained(run.state.params)))

        def pull(key: Key, adjoint: list[Array], solution: PyTree) -> Pull:
            pulled = run.pullback(adjoint)
            response = jax.tree.unflatten(jax.tree.structure(phi), pulled.hparams)
            growth = growth_rate(tree.norm(adjoint[:num_weights]), pulled.norms[::-1])
            return _unsolved(response, solution, growth)

        return ResponseWindow(run.state, jnp.append(early, run.losses), pull)

    return Response(follow, ("objective", "loss", "optimizer"), lambda weights: ())


def at_rest(
    solve: Solve | None = None, *, full: bool = True, max_residual: float = 1.0
) -> Response:
    """Take the weights as the minimum of the expected loss, and differentiate that minimum.

    response = −Mᵀ H⁻¹ E[∇_w f],   H = E[∇²_w L],   M = E[∇_w L ∇_φ log π_φ(a)ᵀ] + E[∂²L/∂w∂λ ∂λ/∂φ]

    The three expectations use separate draws, so that the mean of their product is the product of their means.
    The remaining bias is that of E[Ĥ⁻¹] ≠ H⁻¹, O(1/S). Mᵀv is the score-function gradient of the scalar ⟨∇_w L,
    v⟩, with the mean of the other draws as its baseline.

    The Hessian of a network bends down in some directions, where H⁻¹ does not describe a minimum. The default
    damps it until it is positive, by `solve.positive`, and reports the damping.

    **Cost:** a solve, each of whose products takes one gradient of the loss for each draw, and one more
    product.

    **Limits:** exact where the weights are at rest; elsewhere wrong by O(‖∇_w L‖). The response does not see
    learning rates, momenta and decoupled decays.

    Args:
        solve: Linear solver of `hypergrad.core.solve`, e.g. `neumann(10)`; `positive(cg())` where None. The
            solve of a window starts from the solution of the one before.
        full: Whether the loss is that of the whole `train_set` (where the problem has one) or of the next
            minibatch.
        max_residual: Largest relative residual of the solve; with a larger one the response is left out, and
            `info.refused` says so. A solution of zero has a residual of 1.

    Reference:
        Adam and Lorraine, "More Efficient Stochastic Hyperparameter Optimization"; Pedregosa, 2016,
        arXiv:1602.02355; Lorraine, Vicol, Duvenaud, 2020, arXiv:1911.02590.
    """
    solve = positive(cg()) if solve is None else solve
    check_function("solve", solve, "hypergrad.core.solve.cg()", "matvec, b, start")
    check_share("max_residual", max_residual, "(0, inf]", what="a number", example=1.0)

    def follow(
        whole: Problem, problem: Problem, phi: PyTree, start: TrainState, horizon: int
    ) -> ResponseWindow:
        state, losses = _train(whole, phi, start, horizon)
        if tree.floats(carried(state.params)):
            raise ValueError(
                "problem.init returned Variables with floating-point state, expected weights alone for a "
                "response at rest; use response=unrolled(...)"
            )

        def pull(key: Key, adjoint: list[Array], solution: PyTree) -> Pull:
            curve_key, cross_key = jax.random.split(key)
            data = default_batch(problem)(problem, state) if full else draw_batch(problem, state)
            weights = trained(state.params)
            target = jax.tree.unflatten(
                jax.tree.structure(weights), adjoint[: len(jax.tree.leaves(weights))]
            )
            product = hessian_of_loss(whole, state.params, phi, (data, curve_key))
            v, solved = solve(product, target, solution)
            loss = inner_loss(whole, state.params, (data, cross_key))

            def slope(phi: PyTree) -> Array:
                return jax.jvp(lambda w: loss(w, phi), (weights,), (v,))[1]

            response = jax.tree.map(jnp.negative, jax.grad(slope)(phi))
            sound = solved.residual <= max_residual
            return Pull(response, v, jnp.ones(()), solved.residual, solved.damping, sound)

        return ResponseWindow(state, losses, pull)

    def solution(weights: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, weights)

    return Response(follow, ("objective", "loss"), solution)


def _train(
    whole: Problem, phi: PyTree, start: TrainState, num_steps: int
) -> tuple[TrainState, Array]:
    return unroll_losses(whole, jax.lax.stop_gradient(phi), start, num_steps)


def ways(problem: Problem, hparams: HParams, horizon: int) -> dict[str, tuple[str, ...]]:
    """Tell by which ways each real leaf reaches the objective: "objective", "loss", "optimizer", "init".

    **Cost:** four traces; nothing is compiled or run.
    """
    leaves, join = tree.split_float(hparams)
    names = [n for n, leaf in tree.named(hparams).items() if tree.is_float(leaf)]
    key = jax.random.key(0)

    def part(function: Callable[[HParams], PyTree]) -> Callable[[list[Array]], PyTree]:
        return lambda leaves: function(join(leaves))

    def start(hparams: HParams) -> TrainState:
        return init_state(problem, key, jax.lax.stop_gradient(hparams))

    def slope(hparams: HParams) -> PyTree:
        state = start(hparams)
        loss = inner_loss(problem, state.params, draw_batch(problem, state))
        return jax.grad(loss)(trained(state.params), hparams)

    def objective(hparams: HParams) -> Array:
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


def credited(
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
                "objective, because the shared weights continue from window to window; close over it"
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


_PRODUCTS = 5


def _implicit() -> Response:
    """Solve on a minibatch, damped because the loss of a network bends down in some directions."""
    return at_rest(positive(cg(_PRODUCTS)), full=False)


RESPONSES: dict[str, Method] = by_name(
    Method("none", "left out, as in ENAS; real leaves learn by the score function", (), left_out),
    Method("unrolled", "through the last steps of training", (), unrolled, cost=pass_back),
    Method(
        "implicit",
        "at rest, by a few steps of conjugate gradients, damped where the loss bends down",
        (),
        _implicit,
        cost=lambda problem, window, space: TANGENT * (3 * _PRODUCTS + 1),  # three dampings
    ),
)
"""Responses of shared weights by name; `make` takes no arguments, `cost` counts steps for each draw."""
