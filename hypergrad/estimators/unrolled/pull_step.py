"""One step of the backward pass: the adjoint goes back through the optimizer and through the gradient."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.abstract import program_of
from hypergrad.core.autodiff import as_function, equations, live_inputs
from hypergrad.core.types import Array, Batch, HParams, Params, PyTree
from hypergrad.problem import Problem
from hypergrad.train import (
    TrainState,
    carried,
    draw_batch,
    evaluate_loss,
    trained,
    update,
    with_parts,
)

Adjoint: TypeAlias = tuple[list[Array], list[Array]]
"""Cotangent of the hparams' float leaves so far, adjoint of the state's float leaves."""

Join: TypeAlias = Callable[[list[Array]], PyTree]
"""Float leaves -> the pytree that they were taken from."""


class _Step(NamedTuple):
    """One step of training, Φ(w, c, o, λ), cut into what carries a derivative.

    Attributes:
        problem: Training loop.
        state: State before the step.
        batch: Batch of the step.
        weights: Weights w, a pytree.
        carried: Float leaves c of the state that the loss carries along.
        opt_state: Float leaves o of the optimizer's state.
        hparams: Float leaves λ of the hyperparameters.
        joins: Functions from `carried`, `opt_state` and `hparams` back to the whole of each.
    """

    problem: Problem
    state: TrainState
    batch: Batch
    weights: PyTree
    carried: list[Array]
    opt_state: list[Array]
    hparams: list[Array]
    joins: tuple[Join, Join, Join]

    def at(self, weights: PyTree, carried: list[Array]) -> Params:
        """Return params with these weights and this carried state."""
        return with_parts(self.state.params, weights, self.joins[0](carried))

    def apply(
        self,
        grads: PyTree,
        opt_state: list[Array],
        weights: PyTree,
        hparams: list[Array],
        value: Array,
        carried: list[Array],
    ) -> list[list[Array]]:
        """Apply the optimizer; return the new weights and the float leaves of its new state."""
        _, join_opt_state, join_hparams = self.joins
        here = self.state._replace(
            params=self.at(weights, carried), opt_state=join_opt_state(opt_state)
        )
        new = update(self.problem, join_hparams(hparams), here, self.batch, value, grads)
        return [tree.floats(x) for x in new]

    def evaluate(
        self, weights: PyTree, carried: list[Array], hparams: list[Array]
    ) -> tuple[Array, list[Array]]:
        """Return the loss `[]` and the float leaves of the new carried state."""
        params = self.at(weights, carried)
        value, new = evaluate_loss(self.problem, params, self.joins[2](hparams), self.batch)
        return value, tree.floats(new)


class _Bars(NamedTuple):
    """Adjoints of the arrays that a step reads.

    Attributes:
        weights: Adjoint w̄ of the weights, a pytree.
        carried: Adjoint c̄ of the carried state.
        opt_state: Adjoint ō of the optimizer's state.
        hparams: Adjoint λ̄ of the hyperparameters.
    """

    weights: PyTree
    carried: list[Array]
    opt_state: list[Array]
    hparams: list[Array]


class _UpdateBars(NamedTuple):
    """Adjoints of the arrays that the optimizer reads.

    Attributes:
        grads: Adjoint v of the gradient, a pytree.
        opt_state: Adjoint ō of the optimizer's state.
        weights: Adjoint w̄ through the optimizer, a pytree.
        hparams: Adjoint λ̄ through the optimizer.
        loss: Adjoints of the loss and of the carried state at which it is evaluated, where the optimizer reads
            it, else `()`.
        leaves_out: Whether the optimizer asks what is finite, and so may leave out a step.
    """

    grads: PyTree
    opt_state: list[Array]
    weights: PyTree
    hparams: list[Array]
    loss: tuple[Array, list[Array]] | tuple[()]
    leaves_out: bool


def pull_step(
    problem: Problem,
    hparams: HParams,
    kept: tuple[TrainState, Array, PyTree],
    adjoint: Adjoint,
) -> tuple[Adjoint, Array]:
    """Pull the adjoint back over one step of training, whose loss and gradient were kept.

    Args:
        problem: Training loop.
        hparams: Hyperparameters.
        kept: State before the step, its loss `[]`, and the gradient of its weights.
        adjoint: Cotangent of the hparams' float leaves so far, adjoint of the state after the step.

    Returns:
        Both adjoints before the step, and the norm of the adjoint of the weights there, float32 `[]`.
    """
    state, value, grads = kept
    total, state_bar = adjoint
    step = _open(problem, hparams, state)
    num_w, num_c = len(jax.tree.leaves(step.weights)), len(step.carried)
    middle = num_w + num_c
    w_bar, c_bar, o_bar = state_bar[:num_w], state_bar[num_w:middle], state_bar[middle:]
    optimizer = _pull_update(step, value, grads, w_bar, o_bar)
    slopes, through = _pull_gradient(step, optimizer.grads, c_bar)
    if optimizer.leaves_out and not step.carried:
        through = _unless_left_out(optimizer.grads, through)
    bars = _Bars(
        jax.tree.leaves(tree.add(optimizer.weights, through.weights)),
        through.carried,
        optimizer.opt_state,
        tree.add(optimizer.hparams, through.hparams),
    )
    if optimizer.loss:
        bars = _pull_loss(bars, slopes, *optimizer.loss)
    before = tree.cast_like([*bars.weights, *bars.carried, *bars.opt_state], state_bar)
    norm = tree.norm(before[:num_w]).astype(jnp.float32)
    return (tree.cast_like(tree.add(total, bars.hparams), total), before), norm


def _open(problem: Problem, hparams: HParams, state: TrainState) -> _Step:
    batch = draw_batch(problem, state)
    h, join_h = tree.split_float(hparams)
    c, join_c = tree.split_float(carried(state.params))
    o, join_o = tree.split_float(state.opt_state)
    joins = (join_c, join_o, join_h)
    return _Step(problem, state, batch, trained(state.params), c, o, h, joins)


def _pull_update(
    step: _Step, value: Array, grads: PyTree, w_bar: list[Array], o_bar: list[Array]
) -> _UpdateBars:
    """Pull the adjoints of the new weights and optimizer state back through the optimizer."""
    inputs = (grads, step.opt_state, step.weights, step.hparams)
    loss = (value, step.carried)
    # most optimizers see neither the loss nor, through value_fn, the carried state
    program, shapes = program_of(step.apply, *inputs, *loss)
    jaxpr, apply = program.jaxpr, as_function(program, jax.tree.structure(shapes))
    live = live_inputs(jaxpr, [True] * len(jaxpr.outvars))
    asks = any(eqn.primitive.name == "is_finite" for eqn in equations(jaxpr))
    if any(live[len(live) - 1 - len(step.carried) :]):
        _, pull = jax.vjp(apply, *inputs, *loss)
        v, o, w, h, value_bar, c_bar = pull([w_bar, o_bar])
        return _UpdateBars(v, o, w, h, (value_bar, c_bar), asks)
    _, pull = jax.vjp(lambda g, o, w, h: apply(g, o, w, h, *loss), *inputs)
    v, o, w, h = pull([w_bar, o_bar])
    return _UpdateBars(v, o, w, h, (), asks)


def _pull_gradient(step: _Step, v: PyTree, c_bar: list[Array]) -> tuple[_Bars, _Bars]:
    """Pull v, the adjoint of the gradient, and c̄ back through the gradient and the carried state.

    The new carried state s(w, c, λ) has an adjoint too. With κ⟨c̄, s⟩ added to the loss, a single derivative
    along (v, κ̇ = 1) at κ = 0 returns Hv + ∂⟨c̄, s⟩.

    Returns:
        The gradient of the loss in everything that it reads, and the adjoints.
    """

    def gradient(weights: PyTree, kappa: Array) -> tuple[PyTree, list[Array], list[Array]]:
        def lagrangian(weights: PyTree, carried: list[Array], hparams: list[Array]) -> Array:
            value, new = step.evaluate(weights, carried, hparams)
            return value + kappa * tree.dot(new, c_bar) if carried else value

        return jax.grad(lagrangian, (0, 1, 2))(weights, step.carried, step.hparams)

    zero, one = jnp.zeros(()), jnp.ones(())
    (w, c, h), (w_bar, c_bar, h_bar) = jax.jvp(gradient, (step.weights, zero), (v, one))
    return _Bars(w, c, [], h), _Bars(w_bar, c_bar, [], h_bar)


def _unless_left_out(v: PyTree, through: _Bars) -> _Bars:
    """Return zeros where v, the adjoint of the gradient, is zero: an overflow would make NaN of 0 · ∞."""
    moves = jnp.any(jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(v)]))
    return jax.tree.map(lambda x: jnp.where(moves, x, 0), through)


def _pull_loss(bars: _Bars, slopes: _Bars, value_bar: Array, c_bar: list[Array]) -> _Bars:
    """Add the path through the loss that the optimizer reads: its adjoint times the gradient of the loss."""

    def add(bar: list[Array], slope: PyTree) -> list[Array]:
        pairs = zip(bar, jax.tree.leaves(slope), strict=True)
        return [a + jnp.where(value_bar == 0, 0, value_bar * b) for a, b in pairs]

    return bars._replace(
        weights=add(bars.weights, slopes.weights),
        carried=add(tree.add(bars.carried, c_bar), slopes.carried),
        hparams=add(bars.hparams, slopes.hparams),
    )
