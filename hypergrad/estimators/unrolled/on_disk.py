"""Reverse-mode hypergradients whose states lie on disk: for horizons whose states no memory holds."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_function, check_whole, describe
from hypergrad.core.flow import same_bits
from hypergrad.core.scans import check_checkpoint
from hypergrad.core.stored import tree_bytes, write_tree
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.advice import warn_structural_zeros
from hypergrad.estimators.base import Estimate
from hypergrad.estimators.unrolled.adjoint import (
    choose_checkpoint,
    num_stored,
    pull_segment,
    sqrt_checkpoint,
)
from hypergrad.estimators.unrolled.base import assembled, objective_parts, through_start
from hypergrad.estimators.unrolled.run_folder import (
    AGAIN,
    check_disk,
    clear_run,
    describe_run,
    make_folder,
    one_writer,
    read_kept,
    remove_beyond,
)
from hypergrad.problem import Problem, check_problem
from hypergrad.train import TrainState, init_state, split_key, trained, unroll_losses
from hypergrad.validation import check_step


class DiskProgress(NamedTuple):
    """Progress of a run on disk, after each segment and before the first.

    Attributes:
        phase: "forward" while training, "backward" while the adjoint is pulled back.
        done: Number of segments done in this phase.
        total: Number of segments of the horizon.
        disk_bytes: Room that the files take at most.
        device_bytes: Memory of the states of the segment that is pulled back, on the device.
    """

    phase: str
    done: int
    total: int
    disk_bytes: int
    device_bytes: int

    def __str__(self) -> str:
        disk, device = self.disk_bytes / 2**20, self.device_bytes / 2**20
        return (
            f"{self.phase} {self.done} of {self.total} segments; at most {disk:.1f} MB on disk, "
            f"{device:.1f} MB of states on the device"
        )


def reverse_on_disk(
    problem: Problem,
    horizon: int,
    folder: str | os.PathLike[str],
    *,
    segment: int | None = None,
    checkpoint: tuple[int, ...] | None = None,
    report: Callable[[DiskProgress], None] | None = None,
) -> Callable[[Key, HParams], Estimate]:
    """Differentiate the objective through the whole run, with a state on disk for each segment.

    The host trains segment by segment and writes the state after each. Then it reads them from the last to the
    first, trains each segment again and pulls the adjoint back over it. The result is that of `reverse`, to
    rounding.

    A run that is killed goes on from its last whole segment when it is called again with the same arguments,
    on its way back, too, and ends with the same bits. Files are whole or absent and have checksums; what a
    damaged one held is computed again, with a `DamagedWarning`. Before a run goes on, its last segment is
    trained again: other bits mean another problem, machine or version, and are refused. At the end the files
    are removed.

    **Cost:** one training more than `reverse` with the same `checkpoint`, and two programs of training to
    compile (two more where `segment` does not divide `horizon`). The disk holds `horizon / segment` states and
    three adjoints, for which there must be room at the start; the device holds the states of one segment.

    **Limits:** driven by the host, so not under `jit`, `vmap` or `grad`, and not for several processes. The
    gradient of the loss must have forward derivatives (as for `mixed_mode`). The objective must be the same
    when a run goes on: nothing but its value is compared.

    Args:
        problem: Training loop.
        horizon: Number of inner steps.
        folder: Folder of the files, made where it is missing, for one run at a time.
        segment: Number of steps between two states on disk; None: near √horizon, a divisor where there is one.
        checkpoint: Lengths of nested segments within a segment; None: none while its states fit in an eighth
            of the memory, as in `mixed_mode`.
        report: Function that gets a `DiskProgress` before the first segment and after each; `print` will do.

    Returns:
        (key, hparams) -> an estimate, whose `info` is an `UnrollInfo`.

    Raises:
        ValueError: in one line, where the arguments are invalid or traced, the folder has another run or is in
            use, or its disk is full or too small.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    if not isinstance(folder, (str, os.PathLike)):
        got = describe(folder)
        raise ValueError(f"folder is {got}, expected the path of a folder; pass e.g. 'runs/long'")
    if segment is not None:
        check_whole("segment", segment)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    if report is not None:
        check_function("report", report, "print", "progress")
    size = min(segment or (sqrt_checkpoint(horizon) or (horizon,))[0], horizon)
    programs = _programs(problem)

    def estimate(key: Key, hparams: HParams) -> Estimate:
        _check_host((key, hparams))
        check_step(problem, hparams, real=True)
        warn_structural_zeros(problem, hparams, horizon)
        hparams = tree.strong(hparams)
        start = programs.begin(key, hparams)
        path = make_folder(Path(folder))
        with one_writer(path):
            levels = choose_checkpoint(start.state, size) if checkpoint is None else checkpoint
            about = {"horizon": horizon, "segment": size, "checkpoint": levels}
            found = describe_run(path, about, (key, hparams), start)
            run = _Run(programs, path, hparams, start, horizon, size, levels, report)
            result = _estimate(run, key, found)
            clear_run(path)
        return result

    return estimate


class _Programs(NamedTuple):
    """Compiled parts of a run.

    Attributes:
        begin: (key, hparams) -> the first `_Kept`.
        train: (hparams, kept, num_steps) -> the next one.
        turn: (key, hparams, last state) -> value, direct gradient, adjoint, and the size of its weights' part.
        pull: (hparams, first weights, size, kept, back, num_steps, levels) -> `_Back` before those steps.
        end: (key, hparams, last `_Kept`, what `turn` returned, back) -> the estimate.
    """

    begin: Callable[..., "_Kept"]
    train: Callable[..., "_Kept"]
    turn: Callable[..., tuple[Array, HParams, list[Array]]]
    pull: Callable[..., "_Back"]
    end: Callable[..., Estimate]


class _Kept(NamedTuple):
    """A file of the way forward: a state, and the first step before it whose loss was not finite, or -1."""

    state: TrainState
    bad: Array


class _Back(NamedTuple):
    """A file of the way back.

    Attributes:
        total: Cotangent of the hparams' float leaves so far.
        adjoint: Adjoint of the state's float leaves.
        norms: Norm of the adjoint of the weights before each step `[horizon]`, 0 where it is not known yet.
        peaks: Largest adjoint at rest so far in each leaf `[L]`, see `AdjointSizes`.
        value: Objective `[]`, so that another one is noticed.
    """

    total: list[Array]
    adjoint: list[Array]
    norms: Array
    peaks: Array
    value: Array


class _Run(NamedTuple):
    """A run on disk; `size` is the length of a segment, `levels` are the segments within."""

    programs: _Programs
    path: Path
    hparams: HParams
    start: _Kept
    horizon: int
    size: int
    levels: tuple[int, ...]
    report: Callable[[DiskProgress], None] | None

    def file(self, kind: str, step: int) -> Path:
        """Return the path of the file of a kind before a step."""
        return self.path / f"{kind}-{step:010d}.npz"

    def length(self, step: int) -> int:
        """Return the length of the segment that begins at a step."""
        return min(self.size, self.horizon - step)

    def before(self, step: int) -> int:
        """Return where the segment begins that ends at a step."""
        return (step - 1) // self.size * self.size

    def say(self, phase: str, num_steps: int, room: tuple[int, int]) -> None:
        """Report that a phase has done a number of steps."""
        if self.report is not None:
            total = -(-self.horizon // self.size)
            self.report(DiskProgress(phase, -(-num_steps // self.size), total, *room))


def _programs(problem: Problem) -> _Programs:
    """Make the parts of a run, each to be compiled once."""

    def begin(key: Key, hparams: HParams) -> _Kept:
        return _Kept(init_state(problem, split_key(key)[0], hparams), jnp.asarray(-1, jnp.int32))

    def train(hparams: HParams, kept: _Kept, num_steps: int) -> _Kept:
        state, losses = unroll_losses(problem, hparams, kept.state, num_steps)
        bad = ~jnp.isfinite(losses)
        first = kept.state.step + jnp.argmax(bad).astype(jnp.int32)
        return _Kept(state, jnp.where((kept.bad < 0) & jnp.any(bad), first, kept.bad))

    def turn(key: Key, hparams: HParams, final: TrainState) -> tuple[Array, HParams, list[Array]]:
        return objective_parts(problem, split_key(key)[1], hparams, final)

    def pull(
        hparams: HParams,
        since: tuple[PyTree, Array],
        start: TrainState,
        back: _Back,
        num_steps: int,
        levels: tuple[int, ...],
    ) -> _Back:
        bars = (back.total, back.adjoint)
        (total, adjoint), sizes = pull_segment(
            problem, hparams, start, num_steps, levels, bars, since
        )
        norms = jax.lax.dynamic_update_slice(back.norms, sizes.norm, (start.step,))
        peaks = jnp.maximum(back.peaks, jnp.max(sizes.resting, 0, initial=0))
        return _Back(total, adjoint, norms, peaks, back.value)

    def end(key: Key, hparams: HParams, last: _Kept, parts: Any, back: _Back) -> Estimate:
        first = through_start(problem, split_key(key)[0], hparams, back.adjoint)
        total = tree.add(back.total, first)
        ended = jnp.where(jnp.isfinite(parts[0]), -1, len(back.norms)).astype(jnp.int32)
        bad = jnp.where(last.bad < 0, ended, last.bad)
        return assembled(hparams, last.state, parts, total, back.norms, back.peaks[None], bad)

    return _Programs(
        jax.jit(begin),
        jax.jit(train, static_argnums=2),
        jax.jit(turn),
        jax.jit(pull, static_argnums=(4, 5)),
        jax.jit(end),
    )


def _estimate(run: _Run, key: Key, found: bool) -> Estimate:
    """Go forward and back, from where the files say."""
    first = trained(run.start.state.params)
    back = _Back(
        [jnp.zeros_like(h) for h in tree.floats(run.hparams)],
        [jnp.zeros_like(x) for x in tree.floats(run.start.state[1:3])],
        jnp.zeros((run.horizon,), jnp.float32),
        jnp.zeros((len(jax.tree.leaves(first)),), jnp.float32),
        jnp.zeros(()),
    )
    room = _room(run, back)
    last = _forward(run, room, found)
    parts = run.programs.turn(key, run.hparams, last.state)
    value, _, adjoint = parts
    back = back._replace(adjoint=adjoint, value=value)
    step, back = _newest_back(run, back)
    since = (first, tree.norm(adjoint))
    while step > 0:
        step = run.before(step)
        state = _reached(run, step).state
        back = run.programs.pull(run.hparams, since, state, back, run.length(step), run.levels)
        write_tree(run.file("adjoint", step), step, back, AGAIN)
        remove_beyond(run.path, "adjoint", above=step + run.size)
        run.say("backward", run.horizon - step, room)
    return jax.block_until_ready(run.programs.end(key, run.hparams, last, parts, back))


def _room(run: _Run, back: _Back) -> tuple[int, int]:
    """Return the bytes of a run on disk and on the device; refuse it where the disk has no room."""
    num, one, others = -(-run.horizon // run.size), tree_bytes(run.start), 3 * tree_bytes(back)
    check_disk(run.path, num, one, others)
    state = run.start.state
    held = sum(x.nbytes for x in [*tree.floats(state), *jax.tree.leaves(trained(state.params))])
    return num * one + others, num_stored(run.size, run.levels) * held


def _forward(run: _Run, room: tuple[int, int], found: bool) -> _Kept:
    """Train to the end; a run that was found on disk first shows that it still gives the same bits."""
    done, kept = _newest(run, run.horizon)
    if found and done:
        begin = run.before(done)
        again = run.programs.train(run.hparams, _reached(run, begin), run.length(begin))
        if not all(map(same_bits, jax.tree.leaves(again), jax.tree.leaves(kept))):
            raise ValueError(
                f"folder is {str(run.path)!r}, of a run whose steps {begin} to {done} gave other numbers, "
                "expected the same problem, machine and versions; delete it to start again, or name another one"
            )
    run.say("forward", done, room)
    return _trained(run, done, kept, run.horizon, partial(run.say, "forward", room=room))


def _trained(
    run: _Run, done: int, kept: _Kept, goal: int, say: Callable[[int], None] | None = None
) -> _Kept:
    """Train from step `done` to `goal`; write each state while the next one is computed."""
    waiting = None
    while done < goal:
        ahead = run.programs.train(run.hparams, kept, run.length(done))
        if waiting is not None:
            waiting()
        done, kept = done + run.length(done), ahead
        waiting = partial(_write_state, run, done, kept, say)
    if waiting is not None:
        waiting()
    return kept


def _write_state(run: _Run, step: int, kept: _Kept, say: Callable[[int], None] | None) -> None:
    write_tree(run.file("state", step), step, kept, AGAIN)
    if say is not None:
        say(step)


def _reached(run: _Run, step: int) -> _Kept:
    """Return the state before a step: read, or where its file is damaged, trained from the one before."""
    done, kept = _newest(run, step)
    return _trained(run, done, kept, step)


def _newest(run: _Run, step: int) -> tuple[int, _Kept]:
    """Return the last whole state of at most `step` steps, and how many those are."""
    while step > 0:
        kept = read_kept(run.file("state", step), step, run.start)
        if kept is not None:
            return step, kept
        step = run.before(step)
    return 0, run.start


def _newest_back(run: _Run, turned: _Back) -> tuple[int, _Back]:
    """Return the last whole adjoint of this objective and its step, or the one at the end of the run."""
    step = 0
    while step < run.horizon:
        back = read_kept(run.file("adjoint", step), step, turned)
        if back is not None and same_bits(back.value, turned.value):
            return step, back
        step += run.size
    return run.horizon, turned


def _check_host(given: PyTree) -> None:
    """Raise a `ValueError` where a run cannot be driven by the host."""
    if traced(given) or traced(jnp.add(1, 1)):
        raise ValueError(
            "key or hparams is traced, expected numbers, because the host drives a run on disk; call it "
            "outside of jit, vmap and grad, or use reverse(...) within"
        )
    if jax.process_count() > 1:
        raise ValueError(
            f"jax.process_count() is {jax.process_count()}, expected 1, because one process writes the states; "
            "use reverse(...)"
        )
