"""Reverse-mode hypergradients that undo training in floating point, from one stored state to the next."""

import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_positive, check_share, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.scans import by_step, cut, scan_segments, segment_length
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.advice import unrolled_advice, warn_structural_zeros
from hypergrad.estimators.base import Estimate, Estimator, no_state
from hypergrad.estimators.costs import BACKWARD
from hypergrad.estimators.unrolled.adjoint import (
    Backward,
    DifferentiableRun,
    Pulled,
    mixed_mode,
    sqrt_checkpoint,
)
from hypergrad.estimators.unrolled.base import unrolled_estimate
from hypergrad.estimators.unrolled.momentum import MOMENTUM_SPAN, Coefficients, Course, Recursion
from hypergrad.estimators.unrolled.pull_step import Adjoint, pull_step
from hypergrad.problem import Problem, check_problem
from hypergrad.train import (
    TrainState,
    carried,
    init_state,
    split_key,
    step,
    trained,
)
from hypergrad.validation import check_step


class DriftInfo(NamedTuple):
    """Diagnostics of a hypergradient through a run that was undone in floating point.

    Attributes:
        direct: ∂f/∂λ at the final weights, a pytree like `hparams`.
        response: (∂f/∂w)(dw/dλ), a pytree like `hparams`; hypergrad = direct + response.
        horizon: Number of steps differentiated through, int32 `[]`.
        sensitivity: Norm of the adjoint of the weights before each step `[horizon]`.
        growth: Geometric mean growth of `sensitivity` a step towards the start, `[]`.
        first_nonfinite: First step whose training loss was not finite, the number of steps if only the
            objective was not, -1 if none; int32 `[]`.
        mismatch: Largest relative distance, over all segments and leaves, between the state that undoing the
            segment came to and the one stored there, `[]`.
        num_recomputed: Number of segments that missed it by more than `tolerance` and were computed again
            from checkpoints, int32 `[]`; 0 where `tolerance` is infinite.
    """

    direct: HParams
    response: HParams
    horizon: Array
    sensitivity: Array
    growth: Array
    first_nonfinite: Array
    mismatch: Array
    num_recomputed: Array

    def advice(self, estimate: Estimate) -> list[str]:
        """Say in words what is wrong with the estimate, and what to do."""
        said = unrolled_advice(self)
        if not self.mismatch < 0.01 and self.num_recomputed == 0 and self.first_nonfinite < 0:
            said.append(
                f"undone steps missed the stored state by {self.mismatch:.1e} and nothing was computed again: "
                "leave tolerance out, or pass the smallest momentum that the run meets as min_momentum"
            )
        return said


def drift(
    problem: Problem,
    horizon: int,
    *,
    min_momentum: float = 0.8,
    tolerance: float | None = None,
) -> Estimator:
    """Differentiate through training by SGD with momentum, undoing its steps in floating point.

    w_t = (w_{t+1} + η v_{t+1}) / D,   v_t = (v_{t+1} − G(∇L(w_t), w_t)) / m

    are the states that the adjoint meets on its way back, so they need not be stored. Undoing a step
    multiplies rounding errors by 1/m. Therefore one state in S is stored and used again, with min_momentum^(−S)
    = 1/(30√ε). Where undoing a segment misses the state stored at its start by more than
    `tolerance`, its part of the hypergradient is computed again by `mixed_mode`, from that state.

    **Cost:** 3 to 4 x training with memory of horizon/S states (in float32 S is 43 at momentum 0.9, 20 at
    0.8); computing a segment again costs 4 more trainings of it.

    **Limits:** SGD with momentum alone. Its rate, momentum and decoupled decay may change with the step and
    with the leaf of the params; clipping or an L2 term may come before the momentum. Carried state is
    stored at every step. The result is exact except for rounding, which `info.mismatch` shows.

    Args:
        problem: Training loop.
        horizon: Number of inner steps.
        min_momentum: Smallest momentum that the run will meet, in (0, 1). A smaller one costs time, not
            accuracy.
        tolerance: Relative mismatch up to which a segment counts; None: 3√ε of the params' dtype. With
            `math.inf` the mismatch is reported and nothing is computed again, which saves its memory.

    Returns:
        A stateless estimator; `info` is a `DriftInfo`.

    Raises:
        ValueError: for a horizon below 1 or a momentum outside (0, 1) and, when traced, for an optimizer that
            is not SGD with momentum, params narrower than float32, or a leaf that is not real.

    Reference:
        Maclaurin, Duvenaud, Adams, 2015, arXiv:1502.03492, Algorithm 2 in floating point.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    check_share("min_momentum", min_momentum, "(0, 1)", what=MOMENTUM_SPAN, example=0.8)
    if tolerance is not None and tolerance != math.inf:
        check_positive("tolerance", tolerance, example=1e-3)
    backward = undo_by_drift(min_momentum, tolerance)

    def estimate(key: Key, state: tuple[()], hparams: HParams) -> tuple[tuple[()], Estimate]:
        check_step(problem, hparams, real=True)
        warn_structural_zeros(problem, hparams, horizon)
        start = init_state(problem, split_key(key)[0], hparams)
        found, _, certificate, _ = unrolled_estimate(
            problem, key, hparams, start, horizon, backward
        )
        return state, found._replace(info=DriftInfo(*found.info[:6], *certificate))

    return Estimator(no_state, estimate)


DRIFT = Method(
    "drift",
    "backwards through SGD with momentum, whose steps are undone in floating point: exact, in little memory",
    (),
    lambda problem, horizon, space: drift(problem, horizon),
    cost=lambda problem, horizon, space: 2 + BACKWARD,  # every step is undone, too
)


_Parts: TypeAlias = tuple[list[Array], list[Array]]
"""Leaves of the weights, and the velocity of each."""

_Back: TypeAlias = tuple[_Parts, Adjoint]
"""Quantities that travel back from segment to segment."""


def undo_by_drift(min_momentum: float, tolerance: float | None) -> Backward:
    """Return the backward pass of `drift`; it certifies (mismatch, number of segments recomputed)."""

    def backward(
        problem: Problem, hparams: HParams, state: TrainState, num_steps: int
    ) -> DifferentiableRun:
        recursion = Recursion(problem, hparams, state, num_steps)
        epsilon = _epsilon(recursion)
        limit = 3 * math.sqrt(epsilon) if tolerance is None else tolerance
        size = segment_length(num_steps, longest_segment(min_momentum, epsilon))
        course, first, _ = recursion.course(hparams, num_steps)
        course = cut(course, num_steps, size)

        def advance(state: TrainState, _: None) -> tuple[TrainState, tuple[Array, PyTree]]:
            after, loss = step(problem, hparams, state)
            return after, (loss, carried(state.params))

        def segment(start: TrainState, _: None, length: int) -> tuple[TrainState, tuple]:
            end, (losses, loss_states) = jax.lax.scan(advance, start, None, length=length)
            return end, (losses, (start, loss_states))

        final, ys = scan_segments(segment, state, [None] * 2, num_steps, size)
        losses = by_step([part for part, _ in ys])
        stored = [(*kept, at) for (_, kept), at in zip(ys, course, strict=True)]

        def back(carry: _Back, stored: tuple, length: int) -> tuple[_Back, tuple]:
            return _undo_segment(recursion, hparams, first, limit, carry, stored, length)

        def pullback(adjoint: list[Array]) -> Pulled:
            zeros = [jnp.zeros_like(h) for h in tree.floats(hparams)]
            carry = (_parts(recursion, final), (zeros, adjoint))
            carry, ys = scan_segments(back, carry, stored, num_steps, size, reverse=True)
            _, (total, first_adjoint) = carry
            norms = by_step([part for part, *_ in ys])
            distances, missed = by_step([part for _, *part in ys])
            certificate = (jnp.max(distances), jnp.sum(missed, dtype=jnp.int32))
            return Pulled(total, first_adjoint, norms, certificate)

        return DifferentiableRun(final, losses, pullback)

    return backward


def longest_segment(min_momentum: float, epsilon: float) -> int:
    """Return the number of steps S with min_momentum^(−S) = 1/(30√ε), at least 1.

    Rounding alone would allow ten times that. But undoing the first steps of a network loses more than a factor
    of 1/m a step: longer segments missed the first state, and had to be computed again.
    """
    return max(1, int(math.log(30 * math.sqrt(epsilon)) / math.log(min_momentum)))


def _undo_segment(
    recursion: Recursion,
    hparams: HParams,
    coefficients: Coefficients,
    limit: float,
    carry: _Back,
    stored: tuple[TrainState, PyTree, Course],
    length: int,
) -> tuple[_Back, tuple[Array, Array, Array]]:
    """Pull the adjoint back over a segment, from the state at its end.

    Returns:
        The stored state at its start and the adjoint there; the norms `[length]`, the mismatch `[]` and
        whether the segment was computed again `[]`.
    """
    end, adjoint = carry
    start, loss_states, course = stored

    def undo_step(carry: tuple, kept: tuple[PyTree, Course]) -> tuple[tuple, Array]:
        (weights, velocity, adjoint), (loss_state, at) = carry, kept
        momenta, rates, decays = at.coefficients or coefficients
        weights = [w + rate * v for w, v, rate in zip(weights, velocity, rates, strict=True)]
        if decays is not None:
            weights = [w / (1 + d) for w, d in zip(weights, decays, strict=True)]
        drives, _, value, grads = recursion.drive(hparams, at, loss_state, weights)
        triples = zip(velocity, drives, momenta, strict=True)
        velocity = [(v - drive) / m for v, drive, m in triples]
        before = recursion.state(at, loss_state, weights, velocity)
        adjoint, norm = pull_step(recursion.problem, hparams, (before, value, grads), adjoint)
        return (weights, velocity, adjoint), norm

    (*reached, moved), norms = jax.lax.scan(
        undo_step, (*end, adjoint), (loss_states, course), reverse=True
    )
    anchor = _parts(recursion, start)
    distances = [_distance(*x) for x in zip(reached, anchor, end, strict=True)]
    distance = jnp.max(jnp.stack(distances))
    missed = ~(distance <= limit)
    if math.isinf(limit):
        return (anchor, moved), (norms, distance, jnp.zeros_like(missed))

    def recompute(_: tuple) -> tuple[Array, Adjoint, Array]:
        again = mixed_mode(sqrt_checkpoint(length))(recursion.problem, hparams, start, length)
        pulled = again.pullback(adjoint[1])
        total = tree.add(adjoint[0], pulled.hparams)
        return jnp.zeros_like(missed), (total, pulled.state), pulled.norms

    # a loop of at most one turn: unlike a `cond` under vmap, it takes no time where no member missed
    first_guess = (missed, moved, norms)
    _, moved, norms = jax.lax.while_loop(lambda carry: carry[0], recompute, first_guess)
    return (anchor, moved), (norms, distance, missed)


def _parts(recursion: Recursion, state: TrainState) -> _Parts:
    """Return the weights and velocities of a state."""
    return jax.tree.leaves(trained(state.params)), recursion.split(state.opt_state)[0]


def _distance(reached: list[Array], anchor: list[Array], end: list[Array]) -> Array:
    """Return the largest ‖reached − anchor‖ of a leaf, relative to the larger of its ‖anchor‖ and ‖end‖.

    Each leaf has its own distance, so that a small leaf is not lost beside a large one. `end` counts because a
    first velocity is 0.
    """

    def relative(reached: Array, anchor: Array, end: Array) -> Array:
        scale = jnp.maximum(tree.norm(anchor), tree.norm(end))
        return tree.norm(reached - anchor) / jnp.where(scale == 0, 1, scale)

    return jnp.max(jnp.stack(list(map(relative, reached, anchor, end))))


def _epsilon(recursion: Recursion) -> float:
    """Return the rounding unit of the params; in a narrow dtype, steps cannot be undone."""
    kinds = sorted({str(leaf.dtype) for leaf in recursion.leaves})
    if len(kinds) > 1:
        raise ValueError(
            f"params have the dtypes {' and '.join(kinds)}, expected a single one; cast them in problem.init, "
            "or use estimators.reverse"
        )
    for name, leaf in zip(recursion.names, recursion.leaves, strict=True):
        if jnp.finfo(leaf.dtype).bits < 32:
            raise ValueError(
                f"params[{name!r}] has dtype {leaf.dtype}, expected float32 or float64, because in "
                "fewer bits a step cannot be undone; use estimators.reverse, or reversible, which "
                "trains in integers"
            )
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in recursion.leaves)
