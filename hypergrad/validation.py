"""Check that the functions of a problem fit one another, before anything compiles."""

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.abstract import abstract
from hypergrad.core.checks import check_whole, describe
from hypergrad.core.types import Batch, HParams, Params, PyTree, Variables
from hypergrad.problem import Problem, check_problem, check_scalar, split_loss
from hypergrad.train import init_state, step, trained


def validate(problem: Problem, hparams: HParams, horizon: int = 1) -> None:
    """Check that the functions of a problem fit one another, before anything compiles.

    **Cost:** abstract evaluation of one training step; no arithmetic, no compilation.

    Args:
        problem: what to check.
        hparams: hyperparameters of the structure and shapes to be used.
        horizon: number of inner steps to be run.

    Raises:
        ValueError: in one line, naming the argument, what was got, what was expected and what to do.
    """
    check_problem(problem)
    for name, function in problem._asdict().items():
        if name != "train_set" and not callable(function):
            raise ValueError(
                f"problem.{name} is {describe(function)}, expected a function; see help(Problem)"
            )
    check_whole("horizon", horizon)
    check_hparams(hparams)
    key = jax.eval_shape(jax.random.key, 0)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    params = abstract("problem.init", problem.init, key, hparams)
    trained = params.params if isinstance(params, Variables) else params
    _check_trained(trained)
    batch = abstract("problem.train_batch", problem.train_batch, key, step)
    _check_loss(problem, params, hparams, batch)
    valid = abstract("problem.valid_batch", problem.valid_batch, key)
    value = abstract("problem.objective", problem.objective, params, hparams, valid)
    check_scalar("problem.objective", value)
    _check_optimizer(problem, hparams, trained)


def check_floating(hparams: HParams) -> None:
    """Raise a `ValueError` that names the first leaf of `hparams` that has no derivative."""
    check_hparams(hparams)
    for name, leaf in tree.named(hparams).items():
        if not tree.is_float(leaf):
            raise ValueError(
                f"hparams[{name!r}] has dtype {jnp.result_type(leaf)}, expected floating point, because "
                "integers and choices have no hypergradient; close over it, use mixed(...) or score(...) "
                "with a policy over it, or search it with method 'random'"
            )


def check_hparams(hparams: HParams) -> None:
    """Raise a `ValueError` that names the first leaf of `hparams` that is no number or array."""
    leaves = jax.tree.leaves(hparams)
    if not leaves:
        raise ValueError(
            "hparams has no leaves, expected at least one array; pass e.g. {'lr': 0.1}"
        )
    for name, leaf in zip(tree.leaf_names(hparams), leaves, strict=True):
        try:
            jnp.result_type(leaf)
        except (TypeError, ValueError):
            raise ValueError(
                f"hparams[{name!r}] is {describe(leaf)}, expected a number or an array; "
                "keep names and functions outside hparams"
            ) from None


def _check_trained(trained: PyTree) -> None:
    leaves = jax.tree.leaves(trained)
    if not leaves:
        raise ValueError(
            "problem.init returned params without leaves, expected at least one array to train"
        )
    for name, leaf in zip(tree.leaf_names(trained, bare="params"), leaves, strict=True):
        if not tree.is_float(leaf):
            raise ValueError(
                f"params[{name!r}] has dtype {leaf.dtype}, expected floating point; carry what is not "
                "trained in Variables(params, state)"
            )


def _check_loss(problem: Problem, params: Params, hparams: HParams, batch: Batch) -> None:
    def loss(params, hparams, batch):
        return split_loss(params, problem.loss(params, hparams, batch))

    _, state = abstract("problem.loss", loss, params, hparams, batch)
    if not isinstance(params, Variables):
        return
    names = tree.leaf_names(params.state, bare="state")
    pairs = zip(names, jax.tree.leaves(params.state), jax.tree.leaves(state), strict=True)
    for name, before, after in pairs:
        if before.shape != after.shape:
            raise ValueError(
                f"problem.loss returned state[{name!r}] of shape {after.shape}, expected {before.shape} "
                "as problem.init made it; keep the shapes of carried state constant"
            )


def _check_optimizer(problem: Problem, hparams: HParams, trained: PyTree) -> None:
    def init(hparams, trained):
        optimizer = problem.optimizer(hparams)
        if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise ValueError(
                f"problem.optimizer returned {describe(optimizer)}, expected an "
                "optax.GradientTransformation; return e.g. optax.sgd(hparams['lr'])"
            )
        return optimizer.init(trained)

    abstract("problem.optimizer", init, hparams, trained)


def check_step(problem: Problem, hparams: HParams) -> None:
    """Raise a one-line `ValueError` where one step of training fails or changes the shape of a weight.

    **Cost:** abstract evaluation of one step; nothing is compiled or run.
    """
    key = jax.eval_shape(jax.random.key, 0)
    start = jax.eval_shape(lambda key, h: init_state(problem, key, h), key, hparams)
    end, _ = abstract("problem.optimizer", lambda h, s: step(problem, h, s), hparams, start)
    before, after = trained(start.params), trained(end.params)
    for name, a, b in zip(
        tree.leaf_names(before), jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    ):
        if a.shape != b.shape:
            raise ValueError(
                f"problem.optimizer returned an update that makes params[{name!r}] of shape {b.shape}, "
                f"expected {a.shape}; read one value a step from a schedule, with schedule(hparams[...])"
            )
