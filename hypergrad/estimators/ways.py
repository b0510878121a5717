"""Ways by which each hyperparameter acts on training, read off its program; nothing is compiled or run."""

import warnings
from collections.abc import Callable

import jax

from hypergrad.core import tree
from hypergrad.core.autodiff import depends
from hypergrad.core.types import Array, Batch, HParams, Params, PyTree
from hypergrad.estimators.advice import StructuralZeroWarning
from hypergrad.estimators.base import inner_loss
from hypergrad.problem import Problem
from hypergrad.train import (
    TrainState,
    carried,
    draw_batch,
    evaluate_loss,
    init_state,
    trained,
    unroll_losses,
    with_parts,
)


def check_implicit(
    problem: Problem,
    hparams: HParams,
    horizon: int,
    batch: Callable[[Problem, TrainState], Batch],
) -> None:
    """Raise a `ValueError` where the implicit function theorem does not apply, leaf by leaf.

    The check warns of leaves of which the theorem covers only a part (`check_leaves`).

    **Cost:** traces of a gradient and of three steps; nothing is compiled or run.
    """
    in_weights, in_state, in_loss = _stationarity_reads(problem, hparams, batch)
    if not in_weights:
        raise ValueError(
            "problem.loss is linear in the params (its gradient does not depend on them), expected "
            "curvature; add a penalty on the weights, or use reverse(...)"
        )
    if in_state:
        raise ValueError(
            "problem.loss reads its carried state, expected weights alone to decide its gradient; use "
            "reverse(...), which differentiates through the state"
        )
    check_leaves(problem, hparams, horizon, in_loss, "implicit hypergradient")


def check_leaves(
    problem: Problem, hparams: HParams, horizon: int, in_loss: list[bool], what: str
) -> None:
    """Raise for a leaf that moves the weights, but not through the loss; warn of each that does both.

    A leaf counts as a whole: where one array has rates and penalties, nothing tells which entry does what.

    Args:
        problem: Training loop.
        hparams: Hyperparameters of the shapes to be used.
        horizon: Number of inner steps.
        in_loss: Flag of each leaf, whether the gradient of the loss reads it.
        what: Name of the hypergradient that sees the loss alone.
    """
    elsewhere = past_the_loss(problem, hparams, horizon)
    names = zip(tree.leaf_names(hparams), in_loss, elsewhere, strict=True)
    for name, loss_reads in [(name, reads) for name, reads, acts in names if acts]:
        if not loss_reads:
            raise ValueError(
                f"hparams[{name!r}] acts on training through problem.optimizer or problem.init alone, "
                f"where the {what} is zero, expected a leaf of problem.loss; use "
                "reverse(...) or forward(...) for it, or close over it"
            )
        _warn_left_out(name, what)


def _warn_left_out(name: str, what: str) -> None:
    warnings.warn(
        f"the {what} leaves out what hparams[{name!r}] does through problem.optimizer or "
        "problem.init: that part counts as zero, which at rest it is for a rate, and not for a decay; "
        "split the leaf where its entries do one or the other, or use reverse(...) or forward(...)",
        StructuralZeroWarning,
        stacklevel=5,
    )


def _stationarity_reads(
    problem: Problem, hparams: HParams, batch: Callable[[Problem, TrainState], Batch]
) -> tuple[bool, bool, list[bool]]:
    """Tell whether ∇_w L reads the weights, whether it reads the carried state, and which leaves it reads."""
    key = jax.random.key(0)

    def stationarity(weights: PyTree, floats: list[Array], hparams: HParams) -> PyTree:
        start = init_state(problem, key, jax.lax.stop_gradient(hparams))
        # integers and keys of the carried state cannot be arguments of a derivative: they are made here
        join = tree.split_float(carried(start.params))[1]
        params = with_parts(start.params, weights, join(floats))
        loss = inner_loss(problem, params, batch(problem, start._replace(params=params)))
        return jax.grad(loss)(weights, hparams)

    shapes = jax.eval_shape(lambda h: init_state(problem, key, h).params, hparams)
    weights, floats = trained(shapes), tree.floats(carried(shapes))
    used = depends(stationarity, weights, floats, hparams)
    num_w, num_c = len(jax.tree.leaves(weights)), len(floats)
    return any(used[:num_w]), any(used[num_w : num_w + num_c]), used[num_w + num_c :]


def past_the_loss(problem: Problem, hparams: HParams, horizon: int) -> list[bool]:
    """Tell, for each leaf, whether it moves the weights through the optimizer or the initial weights.

    **Cost:** a trace of three steps.
    """

    def loss(params: Params, h: HParams, batch: Batch) -> Array:
        return problem.loss(params, jax.lax.stop_gradient(h), batch)

    blind = problem._replace(loss=loss)

    def run(hparams: HParams) -> list[Array]:
        start = init_state(blind, jax.random.key(0), hparams)
        return tree.floats(unroll_losses(blind, hparams, start, min(horizon, 3))[0].params)

    return depends(run, hparams)


def in_gradient(problem: Problem, hparams: HParams) -> list[bool]:
    """Tell, for each leaf, whether the gradient of the loss at the initial weights reads it."""

    def slope(hparams: HParams) -> PyTree:
        start = init_state(problem, jax.random.key(0), jax.lax.stop_gradient(hparams))
        loss = inner_loss(problem, start.params, draw_batch(problem, start))
        return jax.grad(loss)(trained(start.params), hparams)

    return depends(slope, hparams)


def warn_unused(problem: Problem, hparams: HParams, advice: str) -> None:
    """Warn of the leaves that neither the gradient of the loss nor the objective reads, and say what to do."""
    for name in unused(problem, hparams):
        warnings.warn(
            f"the hypergradient of hparams[{name!r}] is zero by structure: neither the gradient of "
            "problem.loss nor problem.objective reads it but through a sign, a rounding or an integer; "
            f"{advice}",
            StructuralZeroWarning,
            stacklevel=3,
        )


def unused(problem: Problem, hparams: HParams) -> list[str]:
    """Name the leaves that neither the gradient of the loss nor the objective reads."""

    def reads(hparams: HParams) -> tuple[PyTree, list[Array], Array]:
        key = jax.random.key(0)
        start = init_state(problem, key, jax.lax.stop_gradient(hparams))
        params, batch = start.params, draw_batch(problem, start)
        grads = jax.grad(inner_loss(problem, params, batch))(trained(params), hparams)
        state = tree.floats(evaluate_loss(problem, params, hparams, batch)[1])
        return (
            grads,
            state,
            problem.objective(params, hparams, problem.valid_batch(jax.random.key(1))),
        )

    alive = depends(reads, hparams)
    return [name for name, lives in zip(tree.leaf_names(hparams), alive, strict=True) if not lives]
