"""The directions of stochastic bilevel optimization, and the methods that follow them.

Weights w, linear system v and hparams λ move in one loop along

d_w = ∇_w L,   d_v = H v − ∇_w f,   d_λ = ∂f/∂λ − (∂²L/∂w∂λ)ᵀ v,

which are zero together where w minimizes L, v = H⁻¹ ∇_w f, and the implicit hypergradient vanishes. The
methods differ in the minibatches on which these are taken, and in which variable moves when;
`tuners.bilevel` runs them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_whole
from hypergrad.core.methods import Method, by_name
from hypergrad.core.types import Array, Batch, Key, Params, PyTree
from hypergrad.estimators.costs import in_minibatches, valid_minibatches
from hypergrad.estimators.implicit.response import settle
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
from hypergrad.tuners.finite_sums import FiniteSum, finite_sum, nearest_divisor

INNER_GRADIENTS = 3.0
"""Steps of training that the three terms of a training minibatch count: a derivative of a gradient."""


class Point(NamedTuple):
    """Place of the three variables.

    Attributes:
        train: Weights w with the state of their optimizer.
        v: Estimate of H⁻¹ ∇_w f, a pytree like the weights.
        linear: State of the optimizer of v.
        z: Hparams in unconstrained coordinates.
        outer: State of the optimizer of z.
        speed: Factor of the steps of z, `[]`.
    """

    train: TrainState
    v: PyTree
    linear: PyTree
    z: PyTree
    outer: PyTree
    speed: Array


class Inner(NamedTuple):
    """Terms of a minibatch of training: ∇_w L, H v, (∂²L/∂w∂λ)ᵀ v."""

    slope: PyTree
    product: PyTree
    cross: PyTree


class Outer(NamedTuple):
    """Terms of a minibatch of validation: ∇_w f, ∂f/∂λ."""

    pull: PyTree
    direct: PyTree


class Loop(NamedTuple):
    """The setting of every method: the problem as a function of z, and the optimizers.

    Attributes:
        problem: Problem whose hparams are unconstrained coordinates z.
        linear: (z) -> optimizer of v.
        outer: Optimizer of z.
    """

    problem: Problem
    linear: Callable[[PyTree], optax.GradientTransformation]
    outer: optax.GradientTransformation


class BilevelMethod(NamedTuple):
    """A stochastic bilevel method, as a value.

    Attributes:
        init: (loop, point) -> memory, a pytree of zeros.
        iterate: (loop, key, point, memory) -> (point, memory, loss `[]`). One update of the hparams.
        refresh: (memory) -> memory, without the rounding errors so far; called once in a step of the tuner.
        num_updates: Updates of the weights in one iteration.
    """

    init: Callable[[Loop, Point], PyTree]
    iterate: Callable[[Loop, Key, Point, PyTree], tuple[Point, PyTree, Array]]
    refresh: Callable[[PyTree], PyTree] = lambda memory: memory
    num_updates: int = 1


def inner_terms(
    problem: Problem, params: Params, v: PyTree, z: PyTree, batch: Batch
) -> tuple[Inner, Array, PyTree]:
    """Return the terms of a training minibatch, its loss `[]` and the new carried state.

    **Cost:** one forward derivative of one gradient, about three gradients.
    """

    def gradient(weights: PyTree) -> tuple[PyTree, tuple[Array, PyTree]]:
        def loss(weights: PyTree, z: PyTree) -> tuple[Array, PyTree]:
            return evaluate_loss(problem, with_parts(params, weights, carried(params)), z, batch)

        (value, state), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, z)
        return grads, (value, state)

    (slope, _), (product, cross), (value, state) = jax.jvp(
        gradient, (trained(params),), (v,), has_aux=True
    )
    return Inner(slope, product, cross), value, state


def outer_terms(
    problem: Problem, params: Params, z: PyTree, data: Batch, batch: Batch
) -> tuple[Outer, Array]:
    """Return the terms of a validation minibatch and its objective `[]`; `data` settles carried state."""

    def objective(weights: PyTree, z: PyTree) -> Array:
        return problem.objective(settle(problem, weights, z, params, data), z, batch)

    value, (pull, direct) = jax.value_and_grad(objective, (0, 1))(trained(params), z)
    return Outer(pull, direct), value


def move_weights(
    loop: Loop, point: Point, batch: Batch, loss: Array, slope: PyTree, state: PyTree
) -> TrainState:
    """Move w along ∇_w L by the problem's own optimizer."""
    train = point.train
    weights, opt_state = update(loop.problem, point.z, train, batch, loss, slope)
    params = with_parts(train.params, weights, state)
    return TrainState(train.step + 1, params, opt_state, train.key)


def move_system(loop: Loop, point: Point, direction: PyTree) -> tuple[PyTree, PyTree]:
    """Move v along H v − ∇_w f; return it with the state of its optimizer."""
    updates, state = loop.linear(point.z).update(direction, point.linear, point.v)
    new = optax.apply_updates(point.v, updates)
    return tree.cast_like((new, state), (point.v, point.linear))


def move_hparams(loop: Loop, point: Point, direction: PyTree) -> tuple[PyTree, PyTree]:
    """Move z along the hypergradient; return it with the state of its optimizer."""
    updates, state = loop.outer.update(direction, point.outer, point.z)
    new = jax.tree.map(lambda z, u: z + point.speed * u, point.z, updates)
    return tree.cast_like((new, state), (point.z, point.outer))


def _minus(left: PyTree, right: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, left, right)


def _move_all(
    loop: Loop, point: Point, batch: Batch, loss: Array, state: PyTree, inner: Inner, outer: Outer
) -> Point:
    """Move all three variables at once, from the terms at one point."""
    train = move_weights(loop, point, batch, loss, inner.slope, state)
    v, linear = move_system(loop, point, _minus(inner.product, outer.pull))
    z, outer_state = move_hparams(loop, point, _minus(outer.direct, inner.cross))
    return Point(train, v, linear, z, outer_state, point.speed)


def soba() -> BilevelMethod:
    """Move all three variables at once, on one minibatch of training and one of validation.

    **Cost:** an iteration: about four gradients.

    **Limits:** unbiased directions with the noise of their minibatches: with constant rates the
    iterates stay within a ball of the noise. Let the rates fall, or use `saba`.

    Reference:
        Dagréou, Ablin, Vaiter, Moreau, 2022, arXiv:2201.13409, Algorithm 1 with equation 5 (SOBA).
    """

    def iterate(loop: Loop, key: Key, point: Point, memory: PyTree) -> tuple[Point, PyTree, Array]:
        batch = draw_batch(loop.problem, point.train)
        inner, loss, state = inner_terms(loop.problem, point.train.params, point.v, point.z, batch)
        valid = loop.problem.valid_batch(key)
        outer, _ = outer_terms(loop.problem, point.train.params, point.z, batch, valid)
        return _move_all(loop, point, batch, loss, state, inner, outer), memory, loss

    return BilevelMethod(lambda loop, point: (), iterate)


def amigo(num_inner: int = 10, num_linear: int = 10) -> BilevelMethod:
    """Move w, then v, then the hparams, each from the point that the one before it has reached.

    1. w ← num_inner steps along ∇_w L                 a fresh minibatch each
    2. v ← num_linear steps along H v − ∇_w f          a fresh minibatch each, ∇_w f on one
    3. λ ← one step along ∂f/∂λ − (∂²L/∂w∂λ)ᵀ v        a fresh minibatch

    **Cost:** an iteration: num_inner + 2 num_linear + 4 gradients, about.

    **Limits:** those of `soba`.

    Reference:
        Arbel, Mairal, 2022, arXiv:2111.14580, Algorithm 1 (AmIGO).
    """
    check_whole("num_inner", num_inner)
    check_whole("num_linear", num_linear)

    def iterate(loop: Loop, key: Key, point: Point, memory: PyTree) -> tuple[Point, PyTree, Array]:
        problem = loop.problem
        system_key, cross_key, valid_key = jax.random.split(key, 3)

        def descend(point: Point, _: None) -> tuple[Point, Array]:
            params, batch = point.train.params, draw_batch(problem, point.train)

            def loss(weights: PyTree) -> tuple[Array, PyTree]:
                whole = with_parts(params, weights, carried(params))
                return evaluate_loss(problem, whole, point.z, batch)

            (value, state), slope = jax.value_and_grad(loss, has_aux=True)(trained(params))
            return point._replace(
                train=move_weights(loop, point, batch, value, slope, state)
            ), value

        point, losses = jax.lax.scan(descend, point, None, length=num_inner)
        params, step = point.train.params, point.train.step
        data, valid = problem.train_batch(cross_key, step), problem.valid_batch(valid_key)
        outer, _ = outer_terms(problem, params, point.z, data, valid)

        def solve(point: Point, key: Key) -> tuple[Point, None]:
            batch = problem.train_batch(key, step)
            inner, *_ = inner_terms(problem, params, point.v, point.z, batch)
            v, linear = move_system(loop, point, _minus(inner.product, outer.pull))
            return point._replace(v=v, linear=linear), None

        point, _ = jax.lax.scan(solve, point, jax.random.split(system_key, num_linear))
        inner, *_ = inner_terms(problem, params, point.v, point.z, data)
        z, state = move_hparams(loop, point, _minus(outer.direct, inner.cross))
        return point._replace(z=z, outer=state), memory, losses[-1]

    return BilevelMethod(lambda loop, point: (), iterate, num_updates=num_inner)


class Table(NamedTuple):
    """The last value of a term on each minibatch, `rows` `[num, ...]`, and their `mean`."""

    rows: PyTree
    mean: PyTree


def saba(sums: FiniteSum) -> BilevelMethod:
    """Move all three variables at once, with the noise of every term removed by the memory of its past.

    For each term g of the directions, with its last value on each minibatch in a table:

    d = g_i − table_i + mean(table),   table_i ← g_i

    The expectation of d is that of the full sum, and its noise vanishes as the variables come to rest. So
    constant rates converge to the solution.

    **Cost:** an iteration: about four gradients; memory of num_train (2 params + hparams) and num_valid
    (params + hparams) numbers.

    **Limits:** a finite sum; the method calls neither `problem.train_batch` nor `valid_batch`. The tables
    begin at zero, so the first passes over the sum are as noisy as `soba`'s. The rate of the weights must
    stay near 1/(3 λ_max); at 1/λ_max, which serves full batches, it diverged on a quadratic.

    Args:
        sums: Minibatches, from `finite_sum(problem, batch_size)` or of your own.

    Reference:
        Dagréou, Ablin, Vaiter, Moreau, 2022, arXiv:2201.13409, section 3.3 (SABA).
    """
    check_kind("sums", sums, FiniteSum, "finite_sum(problem, 64)")
    check_whole("num_train", sums.num_train)
    check_whole("num_valid", sums.num_valid)

    def init(loop: Loop, point: Point) -> PyTree:
        weights, z = trained(point.train.params), point.z
        train = _zeros(Inner(weights, weights, z), sums.num_train)
        return train, _zeros(Outer(weights, z), sums.num_valid)

    def iterate(loop: Loop, key: Key, point: Point, memory: PyTree) -> tuple[Point, PyTree, Array]:
        problem, params = loop.problem, point.train.params
        train_key, valid_key = jax.random.split(key)
        i = jax.random.randint(train_key, (), 0, sums.num_train)
        j = jax.random.randint(valid_key, (), 0, sums.num_valid)
        batch = sums.train(i)
        inner, loss, state = inner_terms(problem, params, point.v, point.z, batch)
        outer, _ = outer_terms(problem, params, point.z, batch, sums.valid(j))
        inner, train = _corrected(inner, memory[0], i, sums.num_train)
        outer, valid = _corrected(outer, memory[1], j, sums.num_valid)
        return _move_all(loop, point, batch, loss, state, inner, outer), (train, valid), loss

    def refresh(memory: PyTree) -> PyTree:
        return tuple(Table(t.rows, jax.tree.map(lambda x: jnp.mean(x, 0), t.rows)) for t in memory)

    return BilevelMethod(init, iterate, refresh)


def _zeros(terms: PyTree, num: int) -> Table:
    rows = jax.tree.map(lambda x: jnp.zeros((num, *x.shape), x.dtype), terms)
    return Table(rows, jax.tree.map(jnp.zeros_like, terms))


def _corrected(new: Any, table: Table, index: Array, num: int) -> tuple[Any, Table]:
    """Return new − table_i + mean, and the table with `new` in its row."""
    change = jax.tree.map(lambda g, rows: g - rows[index], new, table.rows)
    direction = jax.tree.map(jnp.add, change, table.mean)
    rows = jax.tree.map(lambda rows, g: rows.at[index].set(g), table.rows, new)
    mean = jax.tree.map(lambda m, c: m + c / num, table.mean, change)
    return direction, Table(rows, mean)


SUM_BATCH = 64
"""Examples in a minibatch of `saba` by name, as nearly as they divide the training set."""


def _soba(problem: Problem) -> BilevelMethod:
    return soba()


def _sum_size(problem: Problem) -> int:
    if problem.train_set is None:
        return SUM_BATCH  # which `finite_sum` refuses in words of its own
    return nearest_divisor(problem.train_set.num_examples, SUM_BATCH)


def _saba(problem: Problem) -> BilevelMethod:
    return saba(finite_sum(problem, _sum_size(problem)))


def _amigo(problem: Problem) -> BilevelMethod:
    return amigo()


def _saba_cost(problem: Problem) -> float:
    """Count its own minibatches, which may be larger or smaller than those of training."""
    sums = finite_sum(problem, _sum_size(problem))
    batch = in_minibatches(problem, lambda problem: sums.train(jnp.zeros((), jnp.int32)))
    return INNER_GRADIENTS * batch + valid_minibatches(problem)


SOBA = Method(
    "soba",
    "all three variables at once, each on one minibatch",
    (),
    _soba,
    cost=lambda problem: INNER_GRADIENTS + valid_minibatches(problem),
)
SABA = Method(
    "saba",
    "as soba, without the noise: a memory of every minibatch's terms",
    (),
    _saba,
    cost=_saba_cost,
)
AMIGO = Method(
    "amigo",
    "several steps of the weights, of the system, then one",
    (),
    _amigo,
    # products with the Hessian alone count 2, without the part to the hparams
    cost=lambda problem: 10 + 10 * 2 + INNER_GRADIENTS + valid_minibatches(problem),
)

BILEVEL_METHODS: dict[str, Method] = by_name(SOBA, SABA, AMIGO)
"""Stochastic bilevel methods by name; `make` and `cost`, in steps of training an iteration, take the
problem."""
