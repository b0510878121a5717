"""Warn of what a problem's traced programs show: leaves unread, indices past an array, batches amiss."""

import dis
import warnings
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import jax
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr

from hypergrad.core.autodiff import live_inputs
from hypergrad.core.flow import NOTHING
from hypergrad.core.intervals import Span, every
from hypergrad.core.masks import for_value, unmasked
from hypergrad.core.pairs import FROM_BATCH, FROM_WEIGHTS, averages_all_pairs, num_examples
from hypergrad.core.pure import FETCH
from hypergrad.core.spans import Notes, Past, follow_spans
from hypergrad.core.types import PyTree


class UnreadWarning(UserWarning):
    """A hyperparameter, or a part of a schedule, is read by no function of the problem."""


def warn_unread(found: list[dict[str, bool]]) -> None:
    """Warn of every hyperparameter that no function of the problem reads, in any corner; see `check_step`."""
    for name in dict.fromkeys(name for reads in found for name in reads):
        if not any(reads.get(name, False) for reads in found):
            warnings.warn(
                f"hparams[{name!r}] is never read: its hypergradient is zero, and a search over it is blind; "
                "read it in problem.init, loss, objective or optimizer (an optimizer made outside of "
                "problem.optimizer knows no hparams), or leave it out",
                UnreadWarning,
                stacklevel=3,
            )


class DrawnLeafWarning(UserWarning):
    """A random draw loses a part of the derivative of a hyperparameter; the message names the leaf."""


def warn_drawn(drawn: dict[str, str], stacklevel: int = 4) -> None:
    """Warn of leaves whose derivative a draw loses, given the function that draws by the name of each."""
    for name, function in drawn.items():
        warnings.warn(
            f"a random draw in {function} depends on {name}, and only part of its derivative is seen, or none: "
            "the odds of a mask or a choice have none; use estimators.evolved for that leaf, or relax the draw "
            "(estimators.policies.concrete)",
            DrawnLeafWarning,
            stacklevel=stacklevel,
        )


class IndexWarning(UserWarning):
    """An index reaches past an array, or the index of an option is used as if it were the option."""


def warn_past(programs: dict[str, ClosedJaxpr], horizon: int) -> None:
    """Warn of a batch whose indices reach past its data within a horizon, and of labels past the outputs.

    Args:
        programs: Programs of the problem's functions, as `check_step` saw them.
        horizon: Number of inner steps.
    """
    step = every(0, horizon - 1, "step", 0)
    for batch, reader in (("train_batch", "loss"), ("valid_batch", "objective")):
        given: list[Span | None] = [None, step] if batch == "train_batch" else [None]
        notes = Notes([], set(), set())
        outs = follow_spans(programs[batch], given, notes)
        early = len(notes.past)
        own = [x if isinstance(x, Span) else None for x in outs]
        value = for_value(programs[reader])
        others = len(value.jaxpr.invars) - len(own)
        follow_spans(value, [None] * others + own, notes)
        free = unmasked(programs[batch], value, notes)
        if any(x.aval.dtype == bool for x in programs[batch].jaxpr.outvars):
            del notes.past[early:]  # the batch brings a mask
        for name, found in ((batch, notes.past[:early]), (reader, notes.past[early:])):
            for one in [x for x in found if x in free][:1]:
                warnings.warn(
                    f"problem.{name} reads index {one.index} of an axis of {one.size} in an array of shape "
                    f"{one.shape}, by step {horizon - 1}: jax takes the last one, or NaN, in silence; "
                    f"{_cure(one, name == reader, horizon)}",
                    IndexWarning,
                    stacklevel=4,
                )


def _cure(one: Past, read: bool, horizon: int) -> str:
    """Say how to keep an index within an array that a batch takes from, or that is read for a batch."""
    if read and "step" in one.kinds:
        has = f"the table has {one.size} entries and the horizon is {horizon}"
        return f"{has}; give it one for each step, or read it at jnp.minimum(step, {one.size - 1})"
    if read and "random" not in one.kinds:
        return "count labels from 0, or give the model more outputs"
    draw = f"jax.random.randint(key, shape, 0, {one.size})"
    return f"keep them below it, for example step % num_batches, or {draw}"


class BatchWarning(UserWarning):
    """A batch is the same one at every step, or its labels and its predictions are paired each with each."""


def warn_frozen(train_batch: Callable, program: ClosedJaxpr) -> None:
    """Warn of a batch of training that depends on no key and no step, and is the first one of several."""
    frozen = not any(live_inputs(program.jaxpr, [True] * len(program.jaxpr.outvars)))
    if frozen and _takes_first(train_batch):
        warnings.warn(
            "problem.train_batch returns one batch, whatever its key and step, because a trace takes the "
            f"first one of an iterator; {FETCH}, or take that batch outside of the function if it is meant",
            BatchWarning,
            stacklevel=4,
        )


def _takes_first(batch: Callable) -> bool:
    """Tell whether a function of (key, step) takes, in its own lines, the first of several batches."""
    own = batch.__func__ if isinstance(batch, MethodType) else batch
    if not isinstance(own, FunctionType):
        return False
    if _leaves_loop(own.__code__):
        return True
    if "next" not in own.__code__.co_names or "next" in own.__globals__:
        return False
    drawn: list[tuple[Iterator, Any]] = []

    def drawing(iterator: Iterator, *default: Any) -> Any:
        drawn.append((iterator, next(iterator, *default)))
        return drawn[-1][1]

    named = {**own.__globals__, "next": drawing}
    copy = FunctionType(own.__code__, named, own.__name__, own.__defaults__, own.__closure__)
    copy.__kwdefaults__ = own.__kwdefaults__
    call = MethodType(copy, batch.__self__) if isinstance(batch, MethodType) else copy
    try:
        jax.eval_shape(call, jax.random.key(0), 0)
        arrays = [it for it, x in drawn if any(map(np.ndim, jax.tree.leaves(x)))]
        return any(next(iterator, None) is not None for iterator in arrays)
    except Exception:  # an iterator of another kind
        return False


def _leaves_loop(code: CodeType) -> bool:
    """Tell whether a function has a loop that ends in its first turn: `for batch in loader: return batch`."""
    steps = list(dis.get_instructions(code))
    starts = [x.offset for x in steps if x.opname == "FOR_ITER"]
    jumps = [x.argval for x in steps if "JUMP" in x.opname]
    # words of a long argument may stand before the loop's
    return any(not any(at - 6 <= to <= at for to in jumps) for at in starts)


def warn_paired(programs: dict[str, ClosedJaxpr], num_leaves: int) -> None:
    """Warn of a loss or objective that averages `[N, N]` of labels `[N]` and predictions `[N, 1]`.

    Args:
        programs: Programs of the problem's functions, as `check_step` saw them.
        num_leaves: Number of leaves of the hyperparameters.
    """
    for batch, reader in (("train_batch", "loss"), ("valid_batch", "objective")):
        shapes = [x.aval.shape for x in programs[batch].jaxpr.outvars]
        before = len(programs[reader].jaxpr.invars) - len(shapes) - num_leaves
        ins = [FROM_WEIGHTS] * before + [NOTHING] * num_leaves + [FROM_BATCH] * len(shapes)
        num = averages_all_pairs(programs[reader], ins, num_examples(shapes))
        if num:
            warnings.warn(
                f"problem.{reader} averages over an array of shape {(num, num)}, because labels and "
                f"predictions of shapes {(num,)} and {(num, 1)} broadcast to every pair, expected one number "
                "for each example; give both one shape, for example predictions[:, 0]; if every pair is meant, "
                "write predictions[:, 0][:, None]",
                BatchWarning,
                stacklevel=4,
            )


def length_amiss(length: int, horizon: int, accumulates: bool) -> str:
    """Say what is wrong with the length of a schedule, if anything is."""
    if accumulates:
        lost = "optax.MultiSteps moves a schedule within it once in k steps, and leaves the values after that "
        lost += "unread, whose hypergradient is zero; pass length=horizon // k"
        return lost if length >= horizon else ""
    if length == horizon:
        return ""
    holds = f"`schedule` holds its last value from step {length} on"
    lost = f"a value per step leaves the last {length - horizon} unread"
    return f"{holds if length < horizon else lost}; pass length={horizon} for a value per step"


def schedule_accumulates(opt_state: PyTree) -> bool:
    """Tell whether the state of an optimizer has that of a schedule within that of `optax.MultiSteps`."""

    def has(node: PyTree, kind: type) -> list[Any]:
        nodes = jax.tree.leaves(node, is_leaf=lambda x: isinstance(x, kind))
        return [x for x in nodes if isinstance(x, kind)]

    outer = has(opt_state, optax.MultiStepsState)
    return any(has(one.inner_opt_state, optax.ScaleByScheduleState) for one in outer)
