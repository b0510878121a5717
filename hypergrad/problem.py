"""The problem that a user writes: a training loop as pure functions of its hyperparameters."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import describe, takes
from hypergrad.core.mistakes import ARGUMENTS, LAYERS, MODULES
from hypergrad.core.types import (
    Array,
    Batch,
    HParams,
    InitFn,
    Key,
    LossFn,
    ObjectiveFn,
    OptimizerFn,
    Params,
    PyTree,
    TrainBatchFn,
    ValidBatchFn,
    Variables,
)
from hypergrad.space import static

WRITTEN = {
    "init": "write init=lambda key, hparams: ...",
    "loss": "write loss=lambda params, hparams, batch: ...",
    "objective": "write objective=lambda params, hparams, batch: ...",
    "optimizer": "write optimizer=lambda hparams: optax.sgd(hparams['lr'])",
    "train_batch": "write train_batch=lambda key, step: ...; its data may stand outside",
    "valid_batch": "write valid_batch=lambda key: ...; its data may stand outside",
}
"""What to write where a problem has no such function."""


class Examples(NamedTuple):
    """A set of examples by index, for full batches, epochs and per-example hyperparameters.

    Attributes:
        num_examples: Number of examples.
        at: (indices `[B]`) -> batch.
        draw: (key, step) -> indices `[B]` of the examples in the batch that `train_batch` returns for the same
            key and step; for `attribution`, which follows every example through training.
    """

    num_examples: int
    at: Callable[[Array], Batch]
    draw: Callable[[Key, Array], Array] | None = None


class Problem(NamedTuple):
    """A training run as a pure function of its hyperparameters.

    All functions are traced, and none may keep state. Randomness is data: a batch carries the PRNG key of its
    dropout or augmentation, which `train_batch` draws from the key and step that it is given.

    Attributes:
        init: (key, hparams) -> params, or -> `Variables(params, state)`.
        loss: (params, hparams, batch) -> `[]`, the inner (training) objective; with `Variables`,
            -> (`[]`, new state).
        objective: (params, hparams, batch) -> `[]`, the outer (validation) objective.
        optimizer: (hparams) -> optax.GradientTransformation. Its arguments may be hparams; extra arguments
            (`value`, `grad`, `value_fn`, `grad_fn`) are handed to optimizers that take them.
        train_batch: (key, step) -> batch of the inner step.
        valid_batch: (key) -> batch of the objective.
        train_set: Training examples by index, where a method needs them.
    """

    init: InitFn
    loss: LossFn
    objective: ObjectiveFn
    optimizer: OptimizerFn
    train_batch: TrainBatchFn
    valid_batch: ValidBatchFn
    train_set: Examples | None = None


class Task(NamedTuple):
    """A problem with its search space, horizon and test set, as the command line runs it.

    Attributes:
        name: Name for people.
        problem: Training loop.
        space: Pytree of dimensions (`hypergrad.space`) in the structure of the problem's hparams.
        horizon: Number of inner steps of one training run.
        test: (params, hparams) -> per-example scores `[num_test]` on the test set, which nothing else reads;
            None without a test set.
        metric: Name of the mean of those scores, e.g. "accuracy".
        higher_is_better: Direction of that metric.
        snippet: (hparams) -> plain optax code with these settings, to paste elsewhere; optional.
        description: One sentence for the report.
        policy: Policy over the space, for the method "controller"; a policy with one head for each leaf
            where None.
        diagram: (hparams) -> {"nodes": [lines of text of each], "edges": [pairs of nodes]}, the architecture
            that the report draws; optional.
        notes: {title: rows}, tables that the command line prints and the report shows, such as how the columns
            of a file were read; every row is a dict of texts and numbers, with the same names; optional.
    """

    name: str
    problem: Problem
    space: PyTree
    horizon: int
    test: Callable[[Params, HParams], Array] | None
    metric: str
    higher_is_better: bool
    snippet: Callable[[HParams], str] | None = None
    description: str = ""
    policy: Any = None
    diagram: Callable[[HParams], dict[str, Any]] | None = None
    notes: dict[str, list[dict[str, Any]]] | None = None


def with_hparams(problem: Problem, change: Callable[[HParams], HParams]) -> Problem:
    """Return the problem whose functions see `change(hparams)`."""
    return problem._replace(
        init=lambda key, h: problem.init(key, change(h)),
        loss=lambda params, h, batch: problem.loss(params, change(h), batch),
        objective=lambda params, h, batch: problem.objective(params, change(h), batch),
        optimizer=lambda h: problem.optimizer(change(h)),
    )


def fixed(task: Task, label: tuple[int, ...]) -> Task:
    """Return the task at one label of `static.split`: its functions take the remaining hparams."""
    if not label:
        return task
    change = partial(static.join, task.space, label)
    test, snippet, diagram = task.test, task.snippet, task.diagram
    return task._replace(
        problem=with_hparams(task.problem, change),
        test=test and (lambda params, h: test(params, change(h))),
        snippet=snippet and (lambda h: snippet(change(h))),
        diagram=diagram and (lambda h: diagram(change(h))),
    )


def split_loss(params: Params, out: Any) -> tuple[Array, PyTree]:
    """Split what `loss` returned into its value `[]` and the new carried state (None without one).

    Raises:
        ValueError: where the loss did not return a real number, or a number with a state.
    """
    stateful, several = isinstance(params, Variables), isinstance(out, tuple)
    if stateful != several or (several and len(out) != 2):
        got = f"a tuple of {len(out)}" if several else describe(out)
        wanted = "one real number; to carry state from step to step, return hypergrad.Variables(params, state) "
        wanted += "from problem.init"
        if several and len(out) == 2 and out[1] is None:
            wanted = "its value alone, because problem.init returned no Variables; return value"
        if stateful:
            wanted = "(value, new_state), because problem.init returned Variables; return the carried state"
        raise ValueError(f"problem.loss returned {got}, expected {wanted}")
    value, state = out if stateful else (out, None)
    if not _is_scalar(value):
        check_scalar({"problem.loss": value})
    return value, state


def _is_scalar(value: Any) -> bool:
    real = isinstance(value, float) or (hasattr(value, "shape") and tree.is_float(value))
    return real and not np.shape(value)


def check_scalar(returned: dict[str, Any]) -> None:
    """Raise a `ValueError` unless the user's functions, by their names, returned one float `[]` each."""
    for name, value in returned.items():
        if not _is_scalar(value):
            raise ValueError(
                f"{name} returned {describe(value)}, expected one real number of shape (); "
                "reduce it, for example with jnp.mean(...)"
            )


def check_problem(problem: Any) -> None:
    """Raise a `ValueError` unless `problem` is a `Problem` of functions."""
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem is {describe(problem)}, expected a hypergrad.Problem; "
            "build one with Problem(init=..., loss=..., ...)"
        )
    for name, arguments in ARGUMENTS.items():
        function = getattr(problem, name, None)
        if name in WRITTEN and not _fits(function, arguments):
            raise ValueError(
                f"problem.{name} is {_called(function)}, expected a function of ({arguments}); "
                f"{MODULES.get(_library_of(function), WRITTEN[name])}"
            )


def _fits(function: Any, arguments: str) -> bool:
    """Tell whether a function takes as many arguments, and is not that of a module, which takes others."""
    num = len(arguments.split(","))
    return callable(function) and takes(function, num) and not _library_of(function)


def _library_of(function: Any) -> str:
    """Return the library of networks whose layer a function is, or a method of one; "" for all others.

    A transformation of such a library and a method of the user's own class are functions like any other.
    """
    own = getattr(function, "__func__", type(function).__call__)
    homes = [getattr(own, "__module__", None) or ""]
    homes += [kind.__module__ for kind in type(function).__mro__ if kind.__name__ == "Module"]
    return next((home.partition(".")[0] for home in homes if home.startswith(LAYERS)), "")


def _called(function: Any) -> str:
    """Describe what stands in the place of a function; a function by its arguments."""
    library = _library_of(function)
    if library:
        name = type(getattr(function, "__self__", function)).__name__
        return f"of the module {name} of {library}"
    if not hasattr(function, "__code__"):
        return describe(function)
    return f"a function of ({', '.join(signature(function).parameters)})"
