"""Check that the functions of a problem fit one another, before anything compiles."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from hypergrad.core import tree
from hypergrad.core.autodiff import live_inputs
from hypergrad.core.cautions import (
    IndexWarning,
    UnreadWarning,
    length_amiss,
    schedule_accumulates,
    warn_drawn,
    warn_frozen,
    warn_paired,
    warn_past,
    warn_unread,
)
from hypergrad.core.checks import check_whole, describe
from hypergrad.core.draws import DATA, draws_that_lose, marks_of_batch
from hypergrad.core.flow import NOTHING, Marks, read_by_schedule, taken_for_numbers
from hypergrad.core.host import check_indices
from hypergrad.core.memory import total_memory
from hypergrad.core.mistakes import SCHEDULED
from hypergrad.core.pure import traced_program
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree
from hypergrad.problem import (
    Problem,
    Task,
    check_problem,
    check_scalar,
    fixed,
    split_loss,
)
from hypergrad.space import Choice, Sequence, check_space, static
from hypergrad.train import carried, start_state, trained, update, with_parts

CONSTANT = "return every part of the carried state, in constant shapes"

WEIGHTS = "the weights"


def validate(problem: Problem | Task, hparams: HParams = None, horizon: int = 1) -> None:
    """Check that the functions of a problem fit one another, before anything compiles.

    Each must be a function of its arguments alone. Batches are traced twice, and so is what can reach an
    iterator, a random generator or a clock; where the second trace is another program, as with
    `next(iterator)`, it is refused. So are host callbacks with effects.

    **Cost:** abstract evaluation of one training step; no arithmetic, no compilation, except that a batch that
    calls a `jax.pure_callback` of the user's is drawn twice. For a task with static dimensions, one for each of
    their bounds and options.

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
        seen = check_step(problem, hparams)
        warn_unread([seen.reads])
        warn_past(seen.programs, horizon)
        warn_frozen(problem.train_batch, seen.programs["train_batch"])
        warn_paired(seen.programs, len(seen.reads))
        return
    check_space(problem.space)
    check_whole("horizon", problem.horizon)
    found: list[Seen] = []
    for corner in static.corners(problem.space):
        label, free = static.split(problem.space, corner)
        one = fixed(problem, label).problem
        check_problem(one)
        found.append(check_step(one, free))
    warn_blind(problem, found)


class Seen(NamedTuple):
    """What one trace of a problem's functions shows of its hyperparameters.

    Attributes:
        reads: Whether any function reads a leaf, by its name.
        drawn: Where real leaves get a derivative, those that set the odds of a random draw, which loses
            it, such as a dropout rate, and the function that draws; see `core.draws`.
        programs: The programs, by the names of the problem's functions.
        numbers: Whether a leaf of whole numbers is turned into real ones, by its name.
        scheduled: Leaves that `hg.schedule` reads.
        accumulates: Whether `optax.MultiSteps` holds a schedule, which then moves once in so many steps.
    """

    reads: dict[str, bool]
    drawn: dict[str, str]
    programs: dict[str, ClosedJaxpr]
    numbers: dict[str, bool]
    scheduled: set[str]
    accumulates: bool = False


def warn_blind(task: Task, found: list[Seen]) -> None:
    """Warn of what `check_step` found unread in every corner of a task, of indices and of schedules amiss."""
    fixed_names = static.static_names(task.space)
    names = [name for name in tree.leaf_names(task.space) if name not in fixed_names]
    # a space of static dimensions alone has a number in the place of the others
    warn_unread([dict(zip(names, seen.reads.values(), strict=False)) for seen in found])
    warn_past(found[0].programs, task.horizon)
    warn_frozen(task.problem.train_batch, found[0].programs["train_batch"])
    warn_paired(found[0].programs, len(found[0].reads))
    numbers = [dict(zip(names, seen.numbers.values(), strict=False)) for seen in found]
    space, horizon = task.space, task.horizon
    dimensions = jax.tree.leaves(space)
    for name, dim in zip(tree.leaf_names(space), dimensions, strict=True):
        if isinstance(dim, Choice) and dim.is_numeric and any(n.get(name) for n in numbers):
            warnings.warn(
                f"hparams[{name!r}] is the index of an option of {dim.options!s:.80}, and is used as a number; "
                f"take its option with hg.select(hparams[{name!r}], jnp.array({list(dim.options)!s:.80}))",
                IndexWarning,
                stacklevel=3,
            )
        read = any(name in seen.scheduled for seen in found)
        if isinstance(dim, Sequence) and read:
            accumulates = any(seen.accumulates for seen in found)
            amiss = length_amiss(dim.length, horizon, accumulates)
            text = f"space[{name!r}] has length {dim.length} and the horizon is {horizon}: {amiss}"
            if amiss:
                warnings.warn(text, UnreadWarning, stacklevel=3)


def check_step(
    problem: Problem, hparams: HParams, *, real: bool = False, pathwise: bool | None = None
) -> Seen:
    """Raise a `ValueError` unless one step of training and its objective can be evaluated.

    Whatever differentiates a run calls this first, when it first sees its hparams. A `DrawnLeafWarning` names
    the leaves whose derivative a random draw loses.

    **Cost:** abstract evaluation of both, once a trace; nothing is compiled or run.

    Args:
        problem: Training loop.
        hparams: Hyperparameters of the structure and shapes to be used.
        real: Whether every leaf of the hyperparameters must have a derivative.
        pathwise: Whether the run is differentiated, rather than whole runs compared; as `real` where None.

    Returns:
        What was seen of the hyperparameters.
    """
    pathwise = real if pathwise is None else pathwise
    check_hparams(hparams, real=real)
    tried = _try(problem, hparams, real or pathwise)
    if pathwise:
        warn_drawn(tried.seen.drawn)
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
    return tried.seen


def drawn_leaves(problem: Problem, hparams: HParams) -> set[str]:
    """Name the leaves whose derivative a random draw loses, as in `hparams['rate']`; see `check_step`."""
    return set(_try(problem, hparams, True).seen.drawn)


class _Tried(NamedTuple):
    """Shapes of what the functions of a problem return."""

    weights: PyTree
    carried: PyTree
    value: Any
    state: PyTree
    objective: Any
    moved: PyTree
    seen: Seen


def _try(problem: Problem, hparams: HParams, real: bool) -> _Tried:
    """Trace each function of a problem once, the batches twice, and check what is seen."""
    key, index = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), jnp.int32)
    unread = dict.fromkeys(tree.leaf_names(hparams), False)
    programs: dict[str, ClosedJaxpr] = {}
    drawn: dict[str, str] = {}
    seen = Seen({**unread}, drawn, programs, {**unread}, set())
    rows: list[tuple[str, ClosedJaxpr, list[str | None]]] = []
    marked: list[tuple[str, list[Marks]]] = []

    def traced(
        name: str, function: Callable, *args, params: PyTree = (), drawn_by: str = ""
    ) -> Any:
        title = f"problem.{name}"
        own, batch = getattr(problem, name), name.endswith("_batch")
        program, out = traced_program(title, function, *args, twice=batch, of=own, hparams=hparams)
        programs[name] = program
        if real:
            origins = [x for arg in args for x in _origins(arg, hparams, params)]
            rows.append((title, program, origins))
            marks = [DATA if x in (None, WEIGHTS) else frozenset([x]) for x in origins]
            if drawn_by:
                ends = marks_of_batch(programs[drawn_by])
                marks[len(marks) - len(ends) :] = ends
            marked.append((name, marks))
        _note_reads(seen, program, args, hparams)
        return out

    params = traced("init", problem.init, key, hparams)
    weights = trained(params)
    batch = traced("train_batch", problem.train_batch, key, index)
    valid = traced("valid_batch", problem.valid_batch, key)
    _check_shapes(weights, {"train_batch": batch, "valid_batch": valid})
    slope = jax.value_and_grad(partial(_loss, problem), has_aux=True)
    (_, out), grads = traced(
        "loss", slope, weights, params, hparams, batch, params=params, drawn_by="train_batch"
    )
    value, state = split_loss(params, out)
    judged = traced(
        "objective",
        problem.objective,
        params,
        hparams,
        valid,
        params=params,
        drawn_by="valid_batch",
    )
    step = partial(_update, problem)
    moved, opt_state = traced(
        "optimizer", step, hparams, params, key, batch, value, grads, params=params
    )
    check_indices(rows)
    for name, marks in marked:
        live = _live_results(programs, weights, params) if name == "loss" else None
        found = draws_that_lose(programs[name], marks, live)
        drawn.update(dict.fromkeys(found, f"problem.{name}"))
    seen = seen._replace(accumulates=schedule_accumulates(opt_state))
    return _Tried(weights, carried(params), value, state, judged, moved, seen)


def _live_results(programs: dict[str, ClosedJaxpr], weights: PyTree, params: Params) -> list[bool]:
    """Tell which results of the program of `_loss` act on training or the objective.

    The loss does, its gradient depends on nothing else, and so does what is carried, where the loss or the
    objective reads it; an accuracy that is only written down does not.
    """
    program, judged = programs["loss"].jaxpr, programs["objective"].jaxpr
    num = len(jax.tree.leaves(weights))
    num_state = len(jax.tree.leaves(params)) - num
    if len(program.outvars) != 2 + num_state + num:  # refused later: another structure than before
        return [True] * len(program.outvars)
    read = live_inputs(judged, [True] * len(judged.outvars))[num : num + num_state]
    while True:  # the results are a sum, the loss, what is carried, and the gradient of the sum
        live = [False, True, *read, *[False] * num]
        used = live_inputs(program, live)[2 * num : 2 * num + num_state]
        grown = [a or b for a, b in zip(read, used, strict=True)]
        if grown == read:
            return live
        read = grown


def _note_reads(seen: Seen, program: ClosedJaxpr, args: tuple, hparams: HParams) -> None:
    """Note which hyperparameters a program reads, reads as a schedule, or takes for numbers."""
    named = [x for arg in args for x in _named(arg, hparams)]
    seen.numbers.update(dict.fromkeys(taken_for_numbers(program, _whole(named, program)), True))
    seen.scheduled.update(read_by_schedule(program, named))
    live = live_inputs(program.jaxpr, [True] * len(program.jaxpr.outvars))
    seen.reads.update(
        {x: True for marks, used in zip(named, live, strict=True) if used for x in marks}
    )


def _check_shapes(weights: PyTree, batches: dict[str, Batch]) -> None:
    """Raise a `ValueError` unless there are weights, all floating point, and each batch fits in the memory."""
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
    room = total_memory() * jax.process_count()
    for name, batch in batches.items():
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
        if size > room:
            raise ValueError(
                f"problem.{name} returned a batch of {size / 2**30:.3g} GiB, expected at most the "
                f"{room / 2**30:.3g} GiB of memory that there are; draw fewer examples"
            )


def _origins(arg: PyTree, hparams: HParams, params: Params) -> list[str | None]:
    """Name what each leaf of an argument depends on, None where on no real hyperparameter."""
    if arg is hparams:
        named = tree.named(hparams).items()
        return [f"hparams[{name!r}]" if tree.is_float(leaf) else None for name, leaf in named]
    ours = arg is params or arg is trained(params)
    return [WEIGHTS if ours else None for _ in jax.tree.leaves(arg)]


def _named(arg: PyTree, hparams: HParams) -> list[Marks]:
    """Mark the hyperparameters with their names."""
    if arg is not hparams:
        return [NOTHING] * len(jax.tree.leaves(arg))
    return [frozenset([name]) for name in tree.leaf_names(hparams)]


def _whole(named: list[Marks], program: ClosedJaxpr) -> list[Marks]:
    """Keep the marks of whole numbers."""
    pairs = zip(named, program.jaxpr.invars, strict=True)
    return [NOTHING if tree.is_float(v.aval) else marks for marks, v in pairs]


def _loss(
    problem: Problem, weights: PyTree, params: Params, hparams: HParams, batch: Batch
) -> tuple[Array, Any]:
    """Return a number to differentiate, whatever the loss returned, and what it returned."""
    out = problem.loss(with_parts(params, weights, carried(params)), hparams, batch)
    return sum(map(jnp.sum, tree.floats(out)), jnp.zeros(())), out


def _update(
    problem: Problem, hparams: HParams, params: Params, key: Key, batch: Batch, *gradient: Any
) -> PyTree:
    """Return weights and optimizer state after the first step, or raise a `ValueError` for no optimizer."""
    optimizer = problem.optimizer(hparams)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"problem.optimizer returned {describe(optimizer)}, expected an "
            "optax.GradientTransformation; return e.g. optax.sgd(hparams['lr'])"
        )
    return update(problem, hparams, start_state(problem, params, hparams, key), batch, *gradient)


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
