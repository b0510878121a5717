"""Check that the functions of a problem fit one another, before anything compiles."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.abstract import abstract
from hypergrad.core.checks import check_whole, describe
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree
from hypergrad.problem import (
    Problem,
    Task,
    check_problem,
    check_scalar,
    fixed,
    split_loss,
)
from hypergrad.space import check_space, static
from hypergrad.train import carried, start_state, trained, update, with_parts

CONSTANT = "return every part of the carried state, in constant shapes"

SCHEDULED = "read one value a step from a schedule, with schedule(hparams[...])"


def validate(problem: Problem | Task, hparams: HParams = None, horizon: int = 1) -> None:
    """Check that the functions of a problem fit one another, before anything compiles.

    **Cost:** abstract evaluation of one training step; no arithmetic, no compilation. For a task with static
    dimensions, one for each of their bounds and options.

    Args:
        problem: Problem to check, or a task, which brings the defaults of its space and its horizon.
        hparams: Hyperparameters of the structure and shapes to be used.
        horizon: Number of inner steps to be run.

    Raises:
        ValueError: in one line, naming the argument, what was got, what was expected and what to do.
    """
    if not isinstance(problem, Task):
        check_problem(problem)
        check_whole("horizon", horizon)
        check_step(problem, hparams)
        return
    check_space(problem.space)
    for corner in static.corners(problem.space):
        label, free = static.split(problem.space, corner)
        validate(fixed(problem, label).problem, free, problem.horizon)


def check_step(problem: Problem, hparams: HParams, *, real: bool = False) -> None:
    """Raise a `ValueError` unless one step of training and its objective can be evaluated.

    **Cost:** abstract evaluation of both; nothing is compiled or run.

    Args:
        problem: Training loop.
        hparams: Hyperparameters of the structure and shapes to be used.
        real: Whether every leaf of the hyperparameters must have a derivative.
    """
    check_hparams(hparams, real=real)
    tried = _try(problem, hparams)
    check_scalar({"problem.objective": tried.objective})
    for what, before, after, advice in (
        ("problem.loss returned state", tried.carried, tried.state, CONSTANT),
        ("problem.optimizer returned an update to params", tried.weights, tried.moved, SCHEDULED),
    ):
        form, wanted = jax.tree.structure(after), jax.tree.structure(before)
        if form != wanted:
            raise ValueError(f"{what} of structure {form}, expected {wanted}; {advice}")
        names = tree.leaf_names(before, bare=what.split()[-1])
        for name, a, b in zip(names, *map(jax.tree.leaves, (before, after)), strict=True):
            if a.shape != b.shape:
                raise ValueError(
                    f"{what}[{name!r}] of shape {b.shape}, expected {a.shape}; {advice}"
                )


class _Tried(NamedTuple):
    """Shapes of what the functions of a problem return."""

    weights: PyTree
    carried: PyTree
    value: Any
    state: PyTree
    objective: Any
    moved: PyTree


def _try(problem: Problem, hparams: HParams) -> _Tried:
    """Evaluate each function of a problem once, abstractly."""
    key, index = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), jnp.int32)
    params = abstract("problem.init", problem.init, key, hparams)
    weights = trained(params)
    if not jax.tree.leaves(weights):
        raise ValueError(
            "problem.init returned params without leaves, expected at least one array to train"
        )
    names = tree.leaf_names(weights, bare="params")
    for name, leaf in zip(names, jax.tree.leaves(weights), strict=True):
        if not tree.is_float(leaf):
            raise ValueError(
                f"params[{name!r}] has dtype {leaf.dtype}, expected floating point; carry what is not "
                "trained in Variables(params, state)"
            )
    batch = abstract("problem.train_batch", problem.train_batch, key, index)
    slope = jax.value_and_grad(partial(_loss, problem), has_aux=True)
    (_, out), grads = abstract("problem.loss", slope, weights, params, hparams, batch)
    value, state = split_loss(params, out)
    valid = abstract("problem.valid_batch", problem.valid_batch, key)
    judged = abstract("problem.objective", problem.objective, params, hparams, valid)
    step = partial(_update, problem)
    moved = abstract("problem.optimizer", step, hparams, params, key, batch, value, grads)
    return _Tried(weights, carried(params), value, state, judged, moved)


def _loss(
    problem: Problem, weights: PyTree, params: Params, hparams: HParams, batch: Batch
) -> tuple[Array, Any]:
    """Return a number to differentiate, whatever the loss returned, and what it returned."""
    out = problem.loss(with_parts(params, weights, carried(params)), hparams, batch)
    return sum(map(jnp.sum, tree.floats(out)), jnp.zeros(())), out


def _update(
    problem: Problem, hparams: HParams, params: Params, key: Key, batch: Batch, *gradient: Any
) -> PyTree:
    """Return the weights after the first step, or raise a `ValueError` for no optimizer."""
    optimizer = problem.optimizer(hparams)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"problem.optimizer returned {describe(optimizer)}, expected an "
            "optax.GradientTransformation; return e.g. optax.sgd(hparams['lr'])"
        )
    return update(problem, hparams, start_state(problem, params, hparams, key), batch, *gradient)[0]


def check_hparams(hparams: HParams, *, real: bool = False) -> None:
    """Raise a `ValueError` that names the first leaf of `hparams` that no method can work with.

    Args:
        hparams: Hyperparameters that the user passed.
        real: Whether every leaf must have a derivative.
    """
    if not jax.tree.leaves(hparams):
        raise ValueError(
            "hparams has no leaves, expected at least one array; pass e.g. {'lr': 0.1}"
        )
    for name, leaf in tree.named(hparams).items():
        try:
            dtype = jnp.result_type(leaf)
        except (TypeError, ValueError):
            raise ValueError(
                f"hparams[{name!r}] is {describe(leaf)}, expected a number or an array; "
                "keep names and functions outside hparams"
            ) from None
        if real and not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"hparams[{name!r}] has dtype {dtype}, expected floating point, because integers and choices "
                "have no hypergradient; close over it, use mixed(...) or score(...) with a policy over it, or "
                "search it with method 'random'"
            )
