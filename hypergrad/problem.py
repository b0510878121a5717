"""What the user writes: a training loop as pure functions of its hyperparameters, and its checks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad import tree
from hypergrad.checks import check_whole
from hypergrad.settings import MAX_NODES
from hypergrad.types import (
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
)


class StructuralZeroWarning(UserWarning):
    """A hypergradient, or a part of one, is zero whatever the numbers; the message names the leaf."""


class Variables(NamedTuple):
    """Params that carry untrained state along: BatchNorm statistics, averaged weights, counters.

    A problem without such state never meets this class. One with it returns `Variables` from `init`;
    `loss` then receives the whole and returns `(value, new_state)`: the state is updated by the one
    forward pass that training makes anyway, and every estimator differentiates through it.

    Attributes:
        params: trained; the only part the optimizer sees. Floating-point leaves.
        state: carried; whatever the loss returns beside its value, of the same structure.
    """

    params: PyTree
    state: PyTree


class Examples(NamedTuple):
    """A set of examples by index, for full batches, epochs and per-example hyperparameters.

    Attributes:
        num_examples: how many there are.
        at: indices `[B]` -> batch.
    """

    num_examples: int
    at: Callable[[Array], Batch]


class Problem(NamedTuple):
    """A training run as a pure function of its hyperparameters.

    All functions are traced; none may keep state. Randomness is data: a batch carries the PRNG key of
    its dropout or augmentation, drawn by `train_batch` from the key and step it is given.

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
    """A problem with its search space, horizon and test set: what the command line runs.

    Attributes:
        name: shown to people.
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


def check(problem: Problem, hparams: HParams, horizon: int = 1) -> None:
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
                f"problem.{name} is {_describe(function)}, expected a function; see help(Problem)"
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


def with_hparams(problem: Problem, change: Callable[[HParams], HParams]) -> Problem:
    """Return the problem whose functions see `change(hparams)`."""
    return problem._replace(
        init=lambda key, h: problem.init(key, change(h)),
        loss=lambda params, h, batch: problem.loss(params, change(h), batch),
        objective=lambda params, h, batch: problem.objective(params, change(h), batch),
        optimizer=lambda h: problem.optimizer(change(h)),
    )


def check_extras(task: Task, hparams: HParams) -> None:
    """Check a task's `test`, `snippet` and `diagram`, which are otherwise first called when all is tuned.

    **Cost:** `test` is evaluated abstractly; `snippet` and `diagram` run once.

    Args:
        task: what to check; its problem fits together.
        hparams: a value of its space, to call them with.

    Raises:
        ValueError: in one line, where one of them fails or returns something else than is documented.
    """
    for name in ("test", "snippet", "diagram"):
        function = getattr(task, name)
        if function is not None and not callable(function):
            raise ValueError(
                f"task.{name} is {_describe(function)}, expected a function or None; see help(Task)"
            )
    if task.test is not None:
        key = jax.eval_shape(jax.random.key, 0)
        params = abstract("problem.init", task.problem.init, key, hparams)
        scores = abstract("task.test", task.test, params, hparams)
        shape = getattr(scores, "shape", None)
        real = (jnp.floating, jnp.integer, jnp.bool_)
        if (
            shape is None
            or len(shape) != 1
            or not shape[0]
            or not any(jnp.issubdtype(scores.dtype, kind) for kind in real)
        ):
            raise ValueError(
                f"task.test returned {_describe(scores)}, expected one real score an example, of shape "
                "(num_test,); return e.g. jnp.square(predictions - labels), without its mean"
            )
    if task.snippet is not None:
        check_snippet(task.snippet, hparams)
    if task.diagram is not None:
        check_diagram(task.diagram, hparams)


def check_snippet(snippet: Callable[[HParams], str], hparams: HParams) -> str:
    """Return the text of a task's `snippet`, or raise a `ValueError` in one line."""
    try:
        text = snippet(hparams)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"task.snippet failed on the given hparams: {lines[0] if lines else ''} ({type(error).__name__}); "
            "expected a text; run it once by itself to see where"
        ) from error
    if not isinstance(text, str):
        raise ValueError(f"task.snippet returned {_describe(text)}, expected a text; return one")
    return text


def check_diagram(diagram: Callable[[HParams], dict[str, Any]], hparams: HParams) -> dict[str, Any]:
    """Return the graph of a task's `diagram`, or raise a `ValueError` in one line."""
    try:
        graph = diagram(hparams)
        nodes = [[str(line) for line in node] for node in graph["nodes"]]
        edges = [[int(a), int(b)] for a, b in graph["edges"]]
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"task.diagram failed on the given hparams: {lines[0] if lines else ''} ({type(error).__name__}); "
            'expected {"nodes": [[text, ...], ...], "edges": [[0, 1], ...]}; run it once by itself to see where'
        ) from error
    if not 1 <= len(nodes) <= MAX_NODES or any(not 0 <= i < len(nodes) for e in edges for i in e):
        raise ValueError(
            f"task.diagram returned {len(nodes)} nodes and the edges {str(edges)[:80]}, expected 1 to "
            f"{MAX_NODES} nodes and edges between them by their number from 0; leave out what is not there"
        )
    return {"nodes": nodes, "edges": edges}


def check_problem(problem: Any) -> None:
    """Raise a `ValueError` unless `problem` is a `Problem`."""
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem is {_describe(problem)}, expected a hypergrad.Problem; "
            "build one with Problem(init=..., loss=..., ...)"
        )


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
                f"hparams[{name!r}] is {_describe(leaf)}, expected a number or an array; "
                "keep names and functions outside hparams"
            ) from None


def check_scalar(name: str, value: Any) -> None:
    """Raise a `ValueError` unless what the user's function `name` returned is one float `[]`."""
    shape = getattr(value, "shape", None)
    if shape is None and isinstance(value, float):
        return
    if shape != () or not tree.is_float(value):
        raise ValueError(
            f"{name} returned {_describe(value)}, expected one real number of shape (); "
            "reduce it, for example with jnp.mean(...)"
        )


def split_loss(params: Params, out: Any) -> tuple[Array, PyTree]:
    """Split what `loss` returned into its value `[]` and the new carried state (None without one)."""
    if not isinstance(params, Variables):
        if isinstance(out, tuple):
            raise ValueError(
                f"problem.loss returned a tuple of {len(out)}, expected one real number; to carry state "
                "from step to step, return hypergrad.Variables(params, state) from problem.init"
            )
        check_scalar("problem.loss", out)
        return out, None
    if not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(
            f"problem.loss returned {_describe(out)}, expected (value, new_state), because "
            "problem.init returned Variables; return the carried state beside the loss"
        )
    value, state = out
    check_scalar("problem.loss", value)
    got, expected = jax.tree.structure(state), jax.tree.structure(params.state)
    if got != expected:
        raise ValueError(
            f"problem.loss returned a state of structure {got}, expected {expected} as problem.init "
            "made it; return every part of the carried state, changed or not"
        )
    return value, state


def abstract(name: str, function: Callable, *args) -> Any:
    """Evaluate a user's function abstractly; put its name before what it raises."""
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:
        text = str(error).strip().splitlines()
        reason = text[0] if text else type(error).__name__
        if isinstance(error, ValueError) and reason.startswith("problem."):
            raise
        if isinstance(error, KeyError):
            reason = f"hparams or batch has no entry {reason}"
        raise ValueError(
            f"{name} failed on the given hparams: {reason} ({type(error).__name__}); "
            "expected a traceable function of its documented arguments; run it once by itself to see where"
        ) from error


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
                f"problem.optimizer returned {_describe(optimizer)}, expected an "
                "optax.GradientTransformation; return e.g. optax.sgd(hparams['lr'])"
            )
        return optimizer.init(trained)

    abstract("problem.optimizer", init, hparams, trained)


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)} and dtype {value.dtype}"
    if value is None:
        return "None"
    return f"{type(value).__name__} {str(value)[:60]!r}"
