"""The backward pass over a training run: how the adjoint of the weights becomes a hypergradient.

Both passes here compute the same numbers,

    ᾱ_T = ∂f/∂w_T,   ᾱ_t = ᾱ_{t+1} ∂Φ_t/∂w_t,   response = Σ_t ᾱ_{t+1} ∂Φ_t/∂λ + ᾱ_0 ∂w_0/∂λ,

and differ in what they store and in how they differentiate the inner gradient.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.memory import SHARE, host_memory, states_memory
from hypergrad.core.scans import check_checkpoint, nested_scan
from hypergrad.core.types import Array, HParams, PyTree
from hypergrad.estimators.unrolled.offload import check_host_memory, to_device, to_host
from hypergrad.estimators.unrolled.pull_step import Adjoint, pull_step
from hypergrad.problem import Problem
from hypergrad.train import (
    TrainState,
    step,
    step_and_grads,
    trained,
)


class Pulled(NamedTuple):
    """What a run's pullback returns.

    Attributes:
        hparams: Cotangent of the hparams' float leaves.
        state: Adjoint of the first state's float leaves.
        norms: Norm of the adjoint of the weights before each step `[num_steps]`.
        certificate: How well a pass reconstructed states; `()` where all were stored.
        resting: Largest entry of the adjoint of each leaf of the weights at entries that rest
            (`AdjointSizes`) before each step `[num_steps, L]`, which `norms` leaves out; `()` from a
            pass that does not tell.
    """

    hparams: list[Array]
    state: list[Array]
    norms: Array
    certificate: Any = ()
    resting: Any = ()


class AdjointSizes(NamedTuple):
    """How large the adjoint of the weights is before a step.

    An entry rests while it is where it started and its gradient is exactly zero. Its adjoint grows by the
    optimizer's slope 1/ε though nothing moves there (`core.resting`). What has grown beyond `OUTGROWN` so
    is counted apart, as it says nothing about the weights that move.

    Attributes:
        norm: Norm over all other entries, float32 `[]`.
        resting: Largest absolute value over those entries in each leaf, 0 without any, float32 `[L]`.
    """

    norm: Array
    resting: Array


class DifferentiableRun(NamedTuple):
    """A training run that can be pulled back.

    Attributes:
        state: The state after the last step.
        losses: Training loss before each step `[num_steps]`.
        pullback: Adjoint of the last state's float leaves -> `Pulled`.
    """

    state: TrainState
    losses: Array
    pullback: Callable[[list[Array]], Pulled]


OUTGROWN = 1e3
"""How often the size of the last adjoint an entry that rests must be to be counted apart."""

Backward: TypeAlias = Callable[[Problem, HParams, TrainState, int], DifferentiableRun]
"""(problem, hparams, first state, num_steps) -> the run, ready to be pulled back."""


def state_floats(state: TrainState) -> tuple[list[Array], Callable[[list[Array]], TrainState]]:
    """List the leaves of a state that carry a derivative, and the way back."""
    leaves, join = tree.split_float((state.params, state.opt_state))

    def rejoin(leaves: list[Array]) -> TrainState:
        params, opt_state = join(leaves)
        return state._replace(params=params, opt_state=opt_state)

    return leaves, rejoin


def sqrt_checkpoint(num_steps: int) -> tuple[int, ...]:
    """Return the segment length near √num_steps that divides it, or the nearest one if none does.

    A divisor saves the compilation of a shorter last segment.
    """
    root = math.isqrt(num_steps)
    divisors = [d for d in range(max(1, root // 2), 2 * root + 2) if num_steps % d == 0]
    best = min(divisors, key=lambda d: d + num_steps // d, default=max(root, 1))
    return (best,) if best > 1 else ()


def choose_checkpoint(
    state: TrainState, num_steps: int, memory: int | None = None
) -> tuple[int, ...]:
    """Return the fewest levels of segments whose states fit in `memory` bytes, or `core.memory.states_memory`.

    These are () where all states and gradients fit, else one level of about √num_steps, two or three.
    """
    gradient = jax.tree.leaves(trained(state.params))
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in [*tree.floats(state), *gradient])
    most = (states_memory() if memory is None else memory) // max(num_bytes, 1)
    *ladder, leanest = segment_ladder(num_steps)
    return next((levels for levels in ladder if num_stored(num_steps, levels) <= most), leanest)


def segment_ladder(num_steps: int) -> list[tuple[int, ...]]:
    """List the segments of a backward pass from the fastest to the leanest: none, one, two, three levels."""
    nested = [nested_checkpoint(num_steps, depth) for depth in (2, 3)]
    return list(dict.fromkeys([(), sqrt_checkpoint(num_steps), *nested]))


def nested_checkpoint(num_steps: int, depth: int) -> tuple[int, ...]:
    """Return `depth` nested segment lengths, about num_steps^(d/(depth + 1)) each, outermost first."""
    lengths = []
    for level in range(depth, 0, -1):
        size = round(num_steps ** (level / (depth + 1)))
        if 1 < size < (lengths[-1] if lengths else num_steps):
            lengths.append(size)
    return tuple(lengths)


def num_stored(num_steps: int, checkpoint: tuple[int, ...]) -> int:
    """Return how many states a pass over `num_steps` holds at once."""
    total, left = 0, num_steps
    for size in (*checkpoint, 1):
        total, left = total + left // size, size
    return total


def mixed_mode(checkpoint: tuple[int, ...] | None = None, *, offload: bool = False) -> Backward:
    """Pull back with mixed-mode inner gradients, storing states only.

    A step's backward needs Hv and (∂²L/∂λ∂w)ᵀv for one v, the adjoint of the gradient. The Hessian is
    symmetric, so both come from one forward derivative of the gradient map along v,
    (d/dε) ∇_{(w,λ)} L(w + εv, λ). The optimizer's own pullback yields v; the gradient at which it is
    taken was kept on the way forward. No activations are kept, no reverse-over-reverse is needed.

    **Cost:** 2.5 x training where arithmetic dominates and up to 5 x for small steps, with memory of
    `num_steps` states and gradients, for `checkpoint=()`; about one training more for each nested level,
    with O(√num_steps) of them for one level, O(∛num_steps) for two (`benchmarks/README.md`).

    **Limits:** the gradient of the loss must have forward derivatives; that of a `jax.custom_vjp` has them
    where its backward rule has. A loop of unknown length (`lax.while_loop`, as in line searches) needs the
    estimator `forward`. Second derivatives of the run need `unroll`.

    Args:
        checkpoint: Lengths of nested segments, outermost first; None means none while the states of all
            steps fit in an eighth of the memory of the device (on a CPU, of the machine), else one level of
            about √num_steps, and two or three where even these do not fit. The total memory decides, not
            what is free. Runs that `average` and `tune` make side by side share the eighth; a `vmap` of
            your own is not seen.
        offload: Whether what the outermost level keeps lies in the memory of the host, from where it comes back
            segment by segment. An eighth of that memory then counts for `checkpoint`. For accelerators; where
            the device has no other memory than the host's, tracing raises a `ValueError`.

    Reference:
        Kemaev, Calian, Zintgraf, Farquhar, van Hasselt, "Scalable Meta-Learning via Mixed-Mode
        Differentiation", 2025. Segments: Chen, Xu, Zhang, Guestrin, arXiv:1604.06174.
    """
    if checkpoint is not None:
        check_checkpoint(checkpoint)

    return partial(_mixed, checkpoint, offload, False)


def _mixed(
    checkpoint: tuple[int, ...] | None,
    offload: bool,
    apart: bool,
    problem: Problem,
    hparams: HParams,
    state: TrainState,
    num_steps: int,
) -> DifferentiableRun:
    if offload:
        check_host_memory()
    levels = checkpoint
    if levels is None:
        memory = host_memory() // SHARE if offload else None
        levels = choose_checkpoint(state, num_steps, memory)
    final, losses, stored = _store(problem, hparams, state, num_steps, levels, offload)

    def pullback(adjoint: list[Array]) -> Pulled:
        start = [jnp.zeros_like(h) for h in tree.floats(hparams)], adjoint
        size = partial(_sizes, trained(state.params), tree.norm(adjoint))
        keep = partial(_keep, size, apart)
        end, (parts, sizes) = _sweep(problem, hparams, stored, start, levels, keep)
        return Pulled(parts or end[0], end[1], sizes.norm, resting=sizes.resting)

    return DifferentiableRun(final, losses, pullback)


each_step: Backward = partial(_mixed, None, False, True)
"""Pull back as `mixed_mode()` does, with the cotangent of the hparams of each step, `[num_steps, ...]`."""


def pull_segment(
    problem: Problem,
    hparams: HParams,
    start: TrainState,
    num_steps: int,
    levels: tuple[int, ...],
    adjoint: Adjoint,
    since: tuple[PyTree, Array],
) -> tuple[Adjoint, AdjointSizes]:
    """Train a part of a run again from its first state, and pull the adjoint back over it (`mixed_mode`).

    Args:
        problem: Training loop.
        hparams: Hyperparameters.
        start: State before the part.
        num_steps: Number of its steps.
        levels: Lengths of nested segments within.
        adjoint: Adjoint after the part.
        since: First weights of the whole run, and the size of its last adjoint `[]`.

    Returns:
        The adjoint before the part, and its sizes before each step.
    """
    stored = _store(problem, hparams, start, num_steps, levels)[2]
    keep = partial(_keep, partial(_sizes, *since), False)
    adjoint, (_, sizes) = _sweep(problem, hparams, stored, adjoint, levels, keep)
    return adjoint, sizes


class _Stored(NamedTuple):
    """States kept on the way forward.

    Attributes:
        starts: state before every whole segment, leading axis `[num_segments]`; where a segment is a single
            step, (state, value, grads) with that step's loss and gradient.
        tail: state before the shorter last segment.
        size: Number of steps in a whole segment.
        rest: Number of steps in the shorter last segment, or 0.
        offload: Whether the states in `starts` lie in the memory of the host.
    """

    starts: Any
    tail: TrainState
    size: int
    rest: int
    offload: bool


def _store(
    problem: Problem,
    hparams: HParams,
    state: TrainState,
    num_steps: int,
    levels: tuple[int, ...],
    offload: bool = False,
) -> tuple[TrainState, Array, _Stored]:
    """Train; return the last state, the losses `[num_steps]`, and what the outermost level keeps."""
    size = min(levels[0], num_steps) if levels else 1
    num_segments, rest = divmod(num_steps, size)
    keep = to_host if offload else lambda kept: kept

    def train(start: TrainState, length: int) -> tuple[TrainState, Array]:
        return jax.lax.scan(lambda s, _: step(problem, hparams, s), start, None, length=length)

    def advance(start: TrainState, _: None) -> tuple[TrainState, tuple[Any, Array]]:
        if size > 1:
            end, losses = train(start, size)
            return end, (keep(start), losses)
        end, value, grads = step_and_grads(problem, hparams, start)
        return end, (keep((start, value, grads)), value)

    tail, (starts, losses) = jax.lax.scan(advance, state, None, length=num_segments)
    losses = losses.reshape(-1)
    final, last = train(tail, rest) if rest else (tail, losses[:0])
    return final, jnp.concatenate([losses, last]), _Stored(starts, tail, size, rest, offload)


def _sweep(
    problem: Problem,
    hparams: HParams,
    stored: _Stored,
    adjoint: Adjoint,
    levels: tuple[int, ...],
    keep: Callable[[TrainState, PyTree, Adjoint], tuple[Adjoint, Any]],
) -> tuple[Adjoint, Any]:
    """Pull the adjoint back over all stored segments, the last one first; return it and what is kept `[T]`."""

    def segment(adjoint: Adjoint, start: TrainState, length: int) -> tuple[Adjoint, Any]:
        inner = _store(problem, hparams, start, length, levels[1:])[2]
        return _sweep(problem, hparams, inner, adjoint, levels[1:], keep)

    def pull(adjoint: Adjoint, start: Any) -> tuple[Adjoint, Any]:
        start = to_device(start) if stored.offload else start
        if stored.size > 1:
            return segment(adjoint, start, stored.size)
        adjoint, _ = pull_step(problem, hparams, start, adjoint)
        before, _, grads = start
        return keep(before, grads, adjoint)

    last = []
    if stored.rest:
        adjoint, tail = segment(adjoint, stored.tail, stored.rest)
        last = [tail]
    adjoint, kept = jax.lax.scan(pull, adjoint, stored.starts, reverse=True)
    if stored.size > 1:
        kept = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)
    return adjoint, jax.tree.map(lambda *xs: jnp.concatenate(xs), kept, *last)


def _keep(
    size: Callable, apart: bool, before: TrainState, grads: PyTree, adjoint: Adjoint
) -> tuple[Adjoint, tuple[list[Array], AdjointSizes]]:
    """Keep the sizes of the adjoint and, `apart`, the cotangent of the hparams, which begins anew."""
    total, bars = adjoint
    part, rest = (total, [jnp.zeros_like(x) for x in total]) if apart else ([], total)
    return (rest, bars), (part, size(before, grads, bars))


def _sizes(
    first: PyTree, scale: Array, before: TrainState, grads: PyTree, adjoint: list[Array]
) -> AdjointSizes:
    """Measure the adjoint of the state before a step; `scale` `[]` is the size of the last one."""
    others, resting = [], []
    parts = (jax.tree.leaves(x) for x in (first, trained(before.params), grads))
    for start, w, g, bar in zip(*parts, adjoint, strict=False):
        rests = (w == start) & (g == 0) & ~(jnp.abs(bar) <= OUTGROWN * scale)
        others.append(jnp.where(rests, 0, bar))
        peak = jnp.max(jnp.where(rests, jnp.abs(bar), 0), initial=0)
        resting.append(peak.astype(jnp.float32))
    return AdjointSizes(tree.norm(others).astype(jnp.float32), jnp.stack(resting))


def plain(checkpoint: tuple[int, ...] = (1,)) -> Backward:
    """Pull back with JAX's own reverse mode, over nested checkpointed segments.

    For losses whose gradient has no forward derivative, such as one whose `jax.custom_vjp` calls out to
    the host. `checkpoint=()` is the naive `grad` of a `scan`, which stores the activations of every step.

    **Cost:** 3.5 to 5.5 x training with `(1,)` and memory of `num_steps` states (`benchmarks/README.md`).
    """
    check_checkpoint(checkpoint)

    def backward(
        problem: Problem, hparams: HParams, state: TrainState, num_steps: int
    ) -> DifferentiableRun:
        h, join_h = tree.split_float(hparams)
        s, join_s = state_floats(state)
        num_w = len(jax.tree.leaves(trained(state.params)))

        def run(
            h: list[Array], s: list[Array], probes: Array
        ) -> tuple[list[Array], tuple[TrainState, Array]]:
            # a probe is a zero whose cotangent is, by rule, the norm of the adjoint at its step
            def body(state: TrainState, probe: Array) -> tuple[TrainState, Array]:
                leaves, join = state_floats(state)
                tapped = _tap(leaves[:num_w], probe)
                return step(problem, join_h(h), join([*tapped, *leaves[num_w:]]))

            final, losses = nested_scan(body, join_s(s), probes, num_steps, checkpoint)
            return state_floats(final)[0], (final, losses)

        probes = jnp.zeros((num_steps,), jnp.float32)
        _, pull, (final, losses) = jax.vjp(run, h, s, probes, has_aux=True)
        return DifferentiableRun(final, losses, lambda adjoint: Pulled(*pull(adjoint)))

    return backward


@jax.custom_vjp
def _tap(weights: list[Array], probe: Array) -> list[Array]:
    return weights


_tap.defvjp(
    lambda weights, probe: (weights, None),
    lambda _, bars: (bars, tree.norm(bars).astype(jnp.float32)),
)
