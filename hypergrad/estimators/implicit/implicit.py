"""Implicit hypergradients: train to rest, solve one linear system, forget the path."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_function, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.solve import Solve, cg
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import (
    Estimate,
    Estimator,
    first_nonfinite,
    inner_loss,
)
from hypergrad.estimators.costs import TANGENT, first_shapes, in_minibatches, num_weights
from hypergrad.estimators.implicit.response import (
    BatchOf,
    Curvature,
    default_batch,
    gauss_newton,
    hessian_of_loss,
    settle,
)
from hypergrad.estimators.ways import check_implicit, warn_unused
from hypergrad.problem import Problem, check_problem
from hypergrad.train import (
    TrainState,
    init_state,
    split_key,
    step_and_grads,
    trained,
    unroll_losses,
)
from hypergrad.validation import check_step


class ImplicitInfo(NamedTuple):
    """Diagnostics of an implicit hypergradient; `advice` says in words what they mean.

    Attributes:
        direct: ∂f/∂λ at the final weights, a pytree like `hparams`.
        response: −(∂²L/∂w∂λ)ᵀ v, a pytree like `hparams`; hypergrad = direct + response.
        horizon: Number of steps trained, int32 `[]`; none is differentiated through.
        growth: Always 1, `[]`, because nothing that could grow is unrolled.
        first_nonfinite: First non-finite step, as in `UnrollInfo`.
        gradient_norm: Norm ‖∇_w L‖ at the final weights, `[]`; zero in theory, and the error is of its order.
        gap: Product v·∇_w L, to first order f(w) − f(w*), by which more training would still lower the
            objective, `[]`.
        unrest: Share |gap| / (‖∇_w f‖ ‖w‖), `[]`: the gap relative to the change from moving the weights by
            their own size, so that a constant in the objective does not matter.
        residual: ‖∇_w f − H v‖ / ‖∇_w f‖, `[]`.
        iterations: Of the linear solver, int32 `[]`.
        smallest_curvature: Smallest p·Hp / p·p that the solver met, `[]`; at or below zero H is not positive
            definite. Solvers other than `cg`, `nystrom` and `direct` meet few directions, so that a value above
            zero says little there.
        condition: Estimate from below of the condition number of H, `[]`.
        converged: Whether the solver reached its tolerance, bool `[]`.
        damping: Damping γ where the solver took H + γI in place of H, `[]`; its diagnostics are then those of H
            + γI.
    """

    direct: HParams
    response: HParams
    horizon: Array
    growth: Array
    first_nonfinite: Array
    gradient_norm: Array
    gap: Array
    unrest: Array
    residual: Array
    iterations: Array
    smallest_curvature: Array
    condition: Array
    converged: Array
    damping: Array

    def advice(self, estimate: Estimate) -> list[str]:
        """Say in words what is wrong with the estimate, and what to do."""
        said = []
        if self.first_nonfinite >= 0:
            said.append(
                f"training was not finite from step {self.first_nonfinite} on; lower the learning rate"
            )
        if not self.smallest_curvature > 0:
            said.append(
                f"the smallest curvature met is {self.smallest_curvature:.1e}, expected above 0: the Hessian "
                "is not positive definite here; train longer, or pass solve=positive(cg()), which damps it as "
                "far as it must, or curvature=gauss_newton(...)"
            )
        if not self.converged:
            said.append(
                f"the linear solver left a relative residual of {self.residual:.1e} (condition number at least "
                f"{self.condition:.0e}): the hypergradient is off by about as much; allow it more iterations, "
                "damp it, or accept the bias of a truncated solver"
            )
        if self.damping > 0:
            said.append(
                f"the Hessian was damped by {self.damping:.1e}: the response is too small where the loss is "
                "flatter than that; lower the damping to see by how much"
            )
        if not self.unrest <= 0.01:
            said.append(
                f"training has not come to rest: the gradient norm is {self.gradient_norm:.1e} and the "
                f"objective would still change by about {-self.gap:.1e} from {estimate.value:.1e}; raise the "
                "horizon, lower the learning rate, or pass warm_start=True"
            )
        return said


class ImplicitState(NamedTuple):
    """State of the estimator, which a warm start needs.

    Attributes:
        train: Trained state; None without a warm start.
        solution: Solution v of the last solve; None without a warm start.
        iteration: Number of estimates made, int32 `[]`.
    """

    train: TrainState | None
    solution: PyTree
    iteration: Array


def implicit(
    problem: Problem,
    horizon: int,
    *,
    solve: Solve | None = None,
    curvature: Curvature = hessian_of_loss,
    batch: BatchOf | None = None,
    warm_start: bool = False,
    tolerance: Callable[[Array], Array] | None = None,
) -> Estimator:
    """Differentiate the minimum that training reaches, not the way to it.

    1. w ← train(λ)                              horizon steps, or until ‖∇_w L‖ ≤ tolerance
    2. v ← solve(H v = ∇_w f)                    H = ∂²L/∂w², or another curvature
    3. hypergrad = ∂f/∂λ − (∂²L/∂w∂λ)ᵀ v

    **Cost:** training, one solve (a product is one to two gradients of the loss) and one more product;
    memory of one state and the activations of one batch, whatever the horizon.

    **Limits:** exact at a minimum with an exact solve. Elsewhere the error is O(‖∇_w L‖), plus that of the
    solve; see `info` and `advice`. An effect through the optimizer or the initial weights has no implicit
    hypergradient: a leaf that acts in no other way raises an error that names it. Where the loss reads the leaf
    too, such as rate and penalty in one array, that part is left out, with a `StructuralZeroWarning`. The
    loss must have forward derivatives. Carried state is assumed to have settled too.

    Args:
        problem: Training loop.
        horizon: Largest number of inner steps of an estimate.
        solve: Linear solver from `estimators.solve`; `cg()` where None. `solve.positive(cg())` damps
            where H bends down.
        curvature: Curvature matrix of the solve: `hessian_of_loss`, or `gauss_newton(...)`.
        batch: (problem, state) -> batch of L; `full_batch` where the problem has a `train_set`, else
            `next_batch`, the minibatch that training would draw next.
        warm_start: Whether to continue from the weights, optimizer state and v of the last estimate. The key of
            `init` then draws the initial weights and the minibatches, and the key of `estimate` the validation
            batch.
        tolerance: (iteration) -> ε: each estimate trains until the gradient of a step's batch has a norm of
            at most ε, and solves to a relative residual of ε (HOAG lets ε shrink with the iteration);
            None: the whole horizon, and the solver's own tolerance.

    Returns:
        An estimator; `info` is an `ImplicitInfo`.

    Raises:
        ValueError: for a horizon below 1 and, when traced, for a leaf that is not real or has no implicit
            hypergradient, by name, and for a loss without curvature.

    Reference:
        Pedregosa, 2016, arXiv:1602.02355, Algorithm 1 (HOAG); Lorraine, Vicol, Duvenaud, 2020,
        arXiv:1911.02590; Grazzi, Franceschi, Pontil, Salzo, 2020, arXiv:2006.16218.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    solve = cg() if solve is None else solve
    choose = default_batch(problem) if batch is None else batch
    if curvature is gauss_newton:
        raise ValueError(
            "curvature is gauss_newton itself, expected gauss_newton(outputs, convex), the loss in two parts; "
            "see help(gauss_newton)"
        )
    check_function("solve", solve, "cg()", "matvec, b, start, tolerance")
    check_function("curvature", curvature, "hessian_of_loss", "problem, params, hparams, batch")
    check_function("batch", choose, "next_batch", "problem, state")
    if tolerance is not None:
        check_function("tolerance", tolerance, "lambda iteration: 1e-3", "iteration")

    def init(key: Key, hparams: HParams) -> ImplicitState:
        nothing = ImplicitState(None, None, jnp.zeros((), jnp.int32))
        return _warm(problem, key, hparams) if warm_start else nothing

    def estimate(
        key: Key, state: ImplicitState, hparams: HParams
    ) -> tuple[ImplicitState, Estimate]:
        check_step(problem, hparams, real=True)
        check_implicit(problem, hparams, horizon, choose)
        warn_unused(problem, hparams, "search it instead")
        run_key, valid_key = split_key(key)
        goal = None if tolerance is None else tolerance(state.iteration)

        start = init_state(problem, run_key, hparams) if state.train is None else state.train
        final, num_steps, bad = _train(problem, hparams, start, horizon, goal)
        params, data = final.params, choose(problem, final)
        weights, loss = trained(params), inner_loss(problem, final.params, data)

        def objective(weights: PyTree, h: HParams, h_of_state: HParams) -> Array:
            settled = settle(problem, weights, h_of_state, params, data)
            return problem.objective(settled, h, problem.valid_batch(valid_key))

        parts = jax.value_and_grad(objective, (0, 1, 2))(weights, hparams, hparams)
        value, (adjoint, direct, through_state) = parts
        product = curvature(problem, params, hparams, data)
        v, solved = solve(product, adjoint, state.solution, goal)

        def gradient(weights: PyTree) -> tuple[PyTree, HParams]:
            return jax.grad(loss, (0, 1))(weights, hparams)

        (slope, _), (_, cross) = jax.jvp(gradient, (weights,), (v,))
        response = jax.tree.map(jnp.subtract, through_state, cross)
        gap, unrest = _gap(v, slope, adjoint, weights)
        info = ImplicitInfo(
            direct=direct,
            response=response,
            horizon=num_steps,
            growth=jnp.ones((), jnp.float32),
            first_nonfinite=jnp.where((bad < 0) & ~jnp.isfinite(value), num_steps, bad),
            gradient_norm=tree.norm(slope),
            gap=gap,
            unrest=unrest,
            **solved._asdict(),
        )
        kept = (final, v) if warm_start else (None, None)
        result = Estimate(value, tree.add(direct, response), info)
        return ImplicitState(*kept, state.iteration + 1), result

    return Estimator(init, estimate)


def _count(problem: Problem, horizon: int, space: PyTree) -> float:
    """Count a training, as many products as `cg()` takes at most, and one more."""
    products = min(100, num_weights(problem, space)) + 1
    state = first_shapes(problem, space)
    return 1 + TANGENT * products * in_minibatches(problem, default_batch(problem), state) / horizon


IMPLICIT = Method(
    "implicit",
    "by one linear solve where training has come to rest, for hyperparameters of the loss",
    (),
    lambda problem, horizon, space: implicit(problem, horizon),
    cost=_count,
)


def _warm(problem: Problem, key: Key, hparams: HParams) -> ImplicitState:
    """Return the state before the first estimate with a warm start."""
    start = init_state(problem, key, hparams)
    solution = jax.tree.map(jnp.zeros_like, trained(start.params))
    return ImplicitState(start, solution, jnp.zeros((), jnp.int32))


def _gap(v: PyTree, slope: PyTree, adjoint: PyTree, weights: PyTree) -> tuple[Array, Array]:
    """Return `gap` and `unrest` of `ImplicitInfo`, each `[]`."""
    gap = tree.dot(jax.tree.leaves(v), jax.tree.leaves(slope))
    whole = tree.norm(adjoint) * tree.norm(weights)
    return gap, jnp.abs(gap) / jnp.where(whole == 0, 1, whole)


_Progress: TypeAlias = tuple[TrainState, Array, Array, Array]
"""State, number of steps made, first bad step, norm of the last gradient."""


def _train(
    problem: Problem, hparams: HParams, start: TrainState, horizon: int, goal: Array | None
) -> tuple[TrainState, Array, Array]:
    """Train for `horizon` steps, or until the gradient of a step has a norm of at most `goal`.

    Returns:
        The last state, the number of steps and the first step whose loss was not finite (-1 if none).
    """
    if goal is None:
        final, losses = unroll_losses(problem, hparams, start, horizon)
        return final, jnp.asarray(horizon, jnp.int32), first_nonfinite(losses, jnp.zeros(()))

    def unfinished(carry: _Progress) -> Array:
        _, count, _, norm = carry
        return (count < horizon) & ~(norm <= goal)

    def body(carry: _Progress) -> _Progress:
        state, count, bad, _ = carry
        state, value, grads = step_and_grads(problem, hparams, state)
        bad = jnp.where((bad < 0) & ~jnp.isfinite(value), count, bad)
        return state, count + 1, bad, tree.norm(grads).astype(jnp.float32)

    zero = jnp.zeros((), jnp.int32)
    final, count, bad, _ = jax.lax.while_loop(
        unfinished, body, (start, zero, zero - 1, jnp.asarray(jnp.inf, jnp.float32))
    )
    return final, count, bad
