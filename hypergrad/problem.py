"""What the user writes: a training loop as pure functions of its hyperparameters."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from hypergrad.core.checks import describe
from hypergrad.core.types import (
    Array,
    Batch,
    HParams,
    InitFn,
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


class Examples(NamedTuple):
    """A set of examples by index, for full batches, epochs and per-example hyperparameters.

    Attributes:
        num_examples: number of examples.
        at: indices `[B]` -> batch.
    """

    num_examples: int
    at: Callable[[Array], Batch]


class Problem(NamedTuple):
    """A training run as a pure function of its hyperparameters.

    All functions are traced, and none may keep state. Randomness is data: a batch carries the PRNG key of its
    dropout or augmentation, which `train_batch` draws from the key and step that it is given.

    Attributes:
        init: (key, hparams) -> params, or -> `Variables(params, state)`.
        loss: (params, hparams, batch) -> `[]`, the inner (training) objective; with `Variables`,
            -> (`[]`, new state).
        objective: (params, hparams, batch) -> `[]`, the outer (validation) objective.
        optimizer: (hparams) -> optax.GradientTransformation. Its arguments may be hparams; extra
            arguments (`value`, `grad`, `value_fn`, `grad_fn`) are handed to those that take them.
        train_batch: (key, step) -> batch of the inner step.
        valid_batch: (key) -> batch of the objective.
        train_set: the training examples by index, where a method needs them.
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
        name: name for people.
        problem: the training loop.
        space: a pytree of dimensions (`hypergrad.space`) in the structure of the problem's hparams.
        horizon: number of inner steps of one training run.
        test: (params, hparams) -> per-example scores `[num_test]` on the test set, which nothing else reads;
            None without a test set.
        metric: name of the mean of those scores, e.g. "accuracy".
        higher_is_better: direction of that metric.
        snippet: (hparams) -> plain optax code with these settings, to paste elsewhere; optional.
        description: one sentence for the report.
        policy: a `Policy` over the space, for the method "controller"; one with a head of its own for each leaf
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
    """Return the task at one label of `static.split`: its functions take the hparams that are left."""
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
    """Split what `loss` returned into its value `[]` and the new carried state (None without one)."""
    return out if isinstance(params, Variables) else (out, None)


def check_problem(problem: Any) -> None:
    """Raise a `ValueError` unless `problem` is a `Problem` of functions."""
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem is {describe(problem)}, expected a hypergrad.Problem; "
            "build one with Problem(init=..., loss=..., ...)"
        )
    for name, function in problem._asdict().items():
        if name != "train_set" and not callable(function):
            raise ValueError(
                f"problem.{name} is {describe(function)}, expected a function; see help(Problem)"
            )
