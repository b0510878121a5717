"""Reverse-mode hypergradients that run training backwards exactly, in integers."""

import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_share, check_whole
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
)
from hypergrad.estimators.unrolled.base import unrolled_estimate
from hypergrad.estimators.unrolled.integers import DIGIT, capacity, grow, real, shrink
from hypergrad.estimators.unrolled.momentum import MOMENTUM_SPAN, Coefficients, Course, Recursion
from hypergrad.estimators.unrolled.pull_step import Adjoint, pull_step
from hypergrad.problem import Problem, check_problem
from hypergrad.train import (
    TrainState,
    carried,
    init_state,
    split_key,
    trained,
)
from hypergrad.validation import check_step

MIN_DECAY = 255 / 256
"""Smallest decoupled decay D of a step for which the stack has room."""


class ReversibleInfo(NamedTuple):
    """Diagnostics of a hypergradient through a run that was undone exactly.

    Attributes:
        direct: ∂f/∂λ at the final weights, a pytree like `hparams`.
        response: (∂f/∂w)(dw/dλ), a pytree like `hparams`; hypergrad = direct + response.
        horizon: Number of steps differentiated through, int32 `[]`.
        sensitivity: Norm of the adjoint of the weights before each step `[horizon]`.
        growth: Geometric mean growth of `sensitivity` a step towards the start, `[]`.
        first_nonfinite: First step at which the training loss was not finite or a number left the range,
            the number of steps if only the objective was not finite, -1 if none; int32 `[]`.
        exact: Certificate that every integer came back to its value, at the start and wherever the stack was
            stored, bool `[]`.
        largest: Largest magnitude of a weight, update, gradient or velocity during the run, `[]`.
        bits: Number of bits stored a parameter and step, `[]`.
    """

    direct: HParams
    response: HParams
    horizon: Array
    sensitivity: Array
    growth: Array
    first_nonfinite: Array
    exact: Array
    largest: Array
    bits: Array

    def advice(self, estimate: Estimate) -> list[str]:
        """Say in words what is wrong with the estimate, and what to do."""
        if self.first_nonfinite >= 0 and np.isfinite(self.largest) and np.isnan(estimate.value):
            return [
                f"a weight, update, gradient or velocity came to {self.largest:.3g} (step "
                f"{self.first_nonfinite}), beyond `limit`; pass a larger limit, or lower the learning rate"
            ]
        if not self.exact and self.first_nonfinite < 0:
            return [
                "training did not come back to the bits it started from; pass the smallest momentum that the "
                "run meets as min_momentum, or use reverse or drift"
            ]
        return unrolled_advice(self)


class Integers(NamedTuple):
    """The weights and velocities in fixed point, each a vector `[P]` of int32, or int64 for float64 params.

    Attributes:
        weights: Weights w / unit.
        velocity: Velocities v / unit.
        rest: Remainders of the multiplications, a stack of digits from which undoing takes them again.
    """

    weights: Array
    velocity: Array
    rest: Array


def reversible(
    problem: Problem, horizon: int, *, min_momentum: float = 0.8, limit: float = 8.0
) -> Estimator:
    """Differentiate through training by SGD with momentum in integers, undoing it bit by bit.

    V ← m V + G(∇L(w), w)/u,   W ← D W − η V,   w = u W,   undone in the opposite order,

    with integers V and W of unit u. Sums of integers are undone by differences. A product by m < 1 forgets
    log₂(1/m) bits, which go on a stack of digits, one word a parameter (`shrink`). The stack is stored and
    emptied before it can overflow, after a number of steps that depends on `min_momentum` alone, not on the
    data. Nothing else of the weights and velocities is stored.

    **Cost:** 4 to 5 x training; memory of `info.bits` a parameter and step (0.26 at momentum 0.9, 0.5 at
    0.8, where two float32 states take 64), and of a few numbers per step.

    **Limits:** SGD with momentum alone. Its rate, momentum and decoupled decay may change with the step and
    with the leaf of the params, rate x decay at most 1/256; clipping or an L2 term may come before the
    momentum. Training is optax's except for rounding to `limit`·2⁻³⁰ (float64 params: 2⁻⁶²), whatever the size
    of a gradient. Carried state is stored at every step. The gradient must be the same to the bit when it is
    computed again: compilers do that, but do not promise it. Where `info.exact` is false (other bits, or a
    momentum below the declared one) the hypergradient is NaN rather than a wrong number. Where a number left
    the range, the value is NaN too, and `info.first_nonfinite` is the step. The estimate itself has no
    derivative, because integers have none; differentiating it raises an error.

    Args:
        problem: Training loop.
        horizon: Number of inner steps.
        min_momentum: Smallest momentum that the run will meet, in [0.25, 1).
        limit: Magnitude that no weight, update, gradient or velocity may reach; half the limit makes rounding
            half as coarse.

    Returns:
        A stateless estimator; `info` is a `ReversibleInfo`.

    Raises:
        ValueError: for a horizon below 1, a momentum outside [0.25, 1), a limit not above 0 and, when traced,
            for an optimizer that is not SGD with momentum, or a leaf that is not real.

    Reference:
        Maclaurin, Duvenaud, Adams, 2015, arXiv:1502.03492, Algorithms 2 and 3.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    # below 0.25 a step forgets more bits than are worth storing
    check_share("min_momentum", min_momentum, "[0.25, 1)", what=MOMENTUM_SPAN, example=0.8)
    what = "a magnitude that no weight and no velocity reaches"
    check_share("limit", limit, f"(0, {2**20})", what=what, example=8.0)
    backward = undo_exactly(min_momentum, limit)

    def estimate(key: Key, state: tuple[()], hparams: HParams) -> tuple[tuple[()], Estimate]:
        check_step(problem, hparams, real=True)
        hparams = _once(hparams)
        warn_structural_zeros(problem, hparams, horizon)
        start = init_state(problem, split_key(key)[0], hparams)
        found, _, certificate, _ = unrolled_estimate(
            problem, key, hparams, start, horizon, backward
        )
        exact, largest, _ = certificate
        inside = largest < limit

        def vouched(parts: PyTree, sound: Array) -> PyTree:
            return jax.tree.map(lambda x: jnp.where(sound, x, jnp.nan), parts)

        response, hypergrad = vouched((found.info.response, found.hypergrad), exact & inside)
        info = ReversibleInfo(*found.info._replace(response=response)[:6], *certificate)
        return state, Estimate(vouched(found.value, inside), hypergrad, info)

    return Estimator(no_state, estimate)


REVERSIBLE = Method(
    "reversible",
    "backwards through SGD with momentum, whose steps are undone in integers: exact, in the least memory",
    (),
    lambda problem, horizon, space: reversible(problem, horizon),
    cost=lambda problem, horizon, space: 2 + BACKWARD,  # every step is undone, too
)


@jax.custom_jvp
def _once(hparams: HParams) -> HParams:
    """Return the hparams; raise a `ValueError` where they are differentiated: integers would give zero."""
    return hparams


@_once.defjvp
def _refuse(primals: tuple, tangents: tuple) -> tuple:
    raise ValueError(
        "an estimate of reversible is being differentiated, expected its values alone, because integers have "
        "no derivative; use estimators.forward or reverse for second derivatives"
    )


class _Scheme(NamedTuple):
    """The layout of the params in integers.

    Attributes:
        recursion: Momentum recursion, which knows the leaves.
        word: Dtype of the integers.
        unit: Value of the integer 1, a power of two.
        interval: Number of steps after which the stack must be stored.
    """

    recursion: Recursion
    word: Any
    unit: float
    interval: int

    def encode(self, reals: Array) -> Array:
        """Round to integers."""
        return jnp.round(reals * (1 / self.unit)).astype(self.word)

    def decode(self, integers: Array) -> Array:
        """Return integers as real numbers, float32 for int32 and float64 for int64."""
        return real(integers) * self.unit

    def join(self, leaves: list[Array]) -> Array:
        """Lay leaves out as one vector `[P]` of reals."""
        wide = jnp.float64 if self.word == jnp.int64 else jnp.float32
        return jnp.concatenate([x.reshape(-1).astype(wide) for x in leaves])

    def leaves(self, integers: Array) -> list[Array]:
        """Cut a vector `[P]` into leaves of the params' shapes and dtypes."""
        found, at = [], 0
        for leaf in self.recursion.leaves:
            part = self.decode(integers[at : at + leaf.size])
            found.append(part.reshape(leaf.shape).astype(leaf.dtype))
            at += leaf.size
        return found

    def spread(self, coefficients: Coefficients) -> tuple[Array, Array, Array | None]:
        """Return m, η and D of each entry `[P]`."""
        momenta, rates, decays = coefficients

        def each(numbers: Array) -> Array:
            pairs = zip(numbers, self.recursion.leaves, strict=True)
            return jnp.concatenate([jnp.full((leaf.size,), x) for x, leaf in pairs])

        return each(momenta), each(rates), None if decays is None else each(1 + decays)

    def encode_all(self, state: TrainState) -> Integers:
        """Round the weights and velocities of a state to integers, with an empty stack."""
        velocity, _ = self.recursion.split(state.opt_state)
        weights = self.encode(self.join(jax.tree.leaves(trained(state.params))))
        velocity = self.encode(self.join(velocity))
        return Integers(weights, velocity, jnp.zeros_like(weights))

    def decode_all(self, integers: Integers) -> tuple[list[Array], list[Array]]:
        """Return the leaves of the weights and of the velocities."""
        return self.leaves(integers.weights), self.leaves(integers.velocity)


_Back: TypeAlias = tuple[Integers, Adjoint, Array]
"""Quantities that travel back between segments: integers, adjoint, whether all came back to the bit."""

_Kept: TypeAlias = tuple[Course, PyTree, Array]
"""Stored parts of a segment: its part of the course, the carried states, and the full stack."""


def undo_exactly(min_momentum: float, limit: float) -> Backward:
    """Return the backward pass of `reversible`; it certifies (exact, largest, bits)."""

    def backward(
        problem: Problem, hparams: HParams, state: TrainState, num_steps: int
    ) -> DifferentiableRun:
        recursion = Recursion(problem, hparams, state, num_steps)
        scheme = _scheme(recursion, min_momentum, limit)
        size = segment_length(num_steps, scheme.interval)
        course, first, counters = recursion.course(hparams, num_steps)
        course = cut(course, num_steps, size)

        def advance(carry: tuple, at: Course) -> tuple[tuple, tuple]:
            return _advance(recursion, scheme, hparams, first, carry, at)

        def segment(carry: tuple, at: Course, length: int) -> tuple[tuple, tuple]:
            (integers, loss_state), ys = jax.lax.scan(advance, carry, at)
            emptied = integers._replace(rest=integers.rest & DIGIT)
            return (emptied, loss_state), (ys, integers.rest)

        begin = scheme.encode_all(state)
        carry = (begin, carried(state.params))
        (end, loss_state), ys = scan_segments(segment, carry, course, num_steps, size)
        losses, largest = by_step([(value, most) for (value, most, _), _ in ys])
        stored = [(at, kept, rest) for at, ((_, _, kept), rest) in zip(course, ys, strict=True)]
        after = Course(state.step + num_steps, counters, None)
        final = recursion.state(after, loss_state, *scheme.decode_all(end))

        def back(carry: _Back, stored: _Kept, length: int) -> tuple[_Back, Array]:
            return _undo_segment(recursion, scheme, hparams, first, carry, stored)

        def pullback(adjoint: list[Array]) -> Pulled:
            zeros = [jnp.zeros_like(h) for h in tree.floats(hparams)]
            carry = (end, (zeros, adjoint), jnp.asarray(True))
            carry, norms = scan_segments(back, carry, stored, num_steps, size, reverse=True)
            integers, (total, first_adjoint), exact = carry
            for found, expected in zip(integers, begin, strict=True):
                exact &= jnp.all(found == expected)
            bits = 8 * begin.rest.dtype.itemsize * -(-num_steps // size) / num_steps
            certificate = (exact, jnp.max(largest), jnp.asarray(bits, jnp.float32))
            return Pulled(total, first_adjoint, by_step(norms), certificate)

        # a number that left the range counts as one that is not finite
        return DifferentiableRun(final, jnp.where(largest < limit, losses, jnp.nan), pullback)

    return backward


def _advance(
    recursion: Recursion,
    scheme: _Scheme,
    hparams: HParams,
    first: Coefficients,
    carry: tuple[Integers, PyTree],
    at: Course,
) -> tuple[tuple[Integers, PyTree], tuple[Array, Array, PyTree]]:
    """Make one step of training in integers.

    Returns:
        The integers and carried state after the step; its loss `[]`, the largest magnitude in it `[]`, and the
        carried state before it.
    """
    (weights, velocity, rest), loss_state = carry
    m, rate, decay = scheme.spread(at.coefficients or first)
    reals = scheme.leaves(weights)
    drive, new_loss_state, value, _ = recursion.drive(hparams, at, loss_state, reals)
    drive = scheme.join(drive)
    velocity, rest = shrink(velocity, rest, m)
    velocity = velocity + scheme.encode(drive)
    if decay is not None:
        weights, rest = shrink(weights, rest, decay)
    update = rate * scheme.decode(velocity)
    weights = weights - scheme.encode(update)
    largest = jnp.maximum(jnp.abs(drive), jnp.abs(update))
    for integers in (velocity, weights):
        largest = jnp.maximum(largest, jnp.abs(scheme.decode(integers)))
    new = Integers(weights, velocity, rest)
    return (new, new_loss_state), (value, jnp.max(largest).astype(jnp.float32), loss_state)


def _undo_segment(
    recursion: Recursion,
    scheme: _Scheme,
    hparams: HParams,
    first: Coefficients,
    carry: _Back,
    stored: _Kept,
) -> tuple[_Back, Array]:
    """Undo a segment to the bit, and pull the adjoint back over it; return the norms `[length]` as well."""
    (weights, velocity, emptied), adjoint, exact = carry
    course, loss_states, full = stored
    # on the way back, the stack must come to its value after it was emptied here
    exact &= jnp.all(emptied == full & DIGIT)

    def undo_step(
        carry: tuple[Integers, Adjoint], kept: tuple[Course, PyTree]
    ) -> tuple[tuple[Integers, Adjoint], Array]:
        ((weights, velocity, rest), adjoint), (at, loss_state) = carry, kept
        m, rate, decay = scheme.spread(at.coefficients or first)
        weights = weights + scheme.encode(rate * scheme.decode(velocity))
        if decay is not None:
            weights, rest = grow(weights, rest, decay)
        reals = scheme.leaves(weights)
        drive, _, value, grads = recursion.drive(hparams, at, loss_state, reals)
        velocity = velocity - scheme.encode(scheme.join(drive))
        velocity, rest = grow(velocity, rest, m)
        before = recursion.state(at, loss_state, reals, scheme.leaves(velocity))
        adjoint, norm = pull_step(recursion.problem, hparams, (before, value, grads), adjoint)
        return (Integers(weights, velocity, rest), adjoint), norm

    end = (Integers(weights, velocity, full), adjoint)
    (integers, adjoint), norms = jax.lax.scan(undo_step, end, (course, loss_states), reverse=True)
    return (integers, adjoint, exact), norms


def _scheme(recursion: Recursion, min_momentum: float, limit: float) -> _Scheme:
    """Choose the word, the unit and the interval."""
    if recursion.constant is not None and recursion.constant < min_momentum:
        raise ValueError(
            f"min_momentum is {min_momentum}, expected at most {recursion.constant:.3g}, the momentum of "
            "problem.optimizer; pass that, because it decides how much room is kept"
        )
    word_bits = 64 if any(jnp.finfo(leaf.dtype).bits > 32 for leaf in recursion.leaves) else 32
    # an integer of two bits less than the word holds `limit`, so that a sum of two does not overflow
    unit = 2.0 ** (math.ceil(math.log2(limit)) - word_bits + 2)
    factors = [min_momentum, *([MIN_DECAY] if recursion.decays else [])]
    interval = capacity(factors, word_bits)
    return _Scheme(recursion, jnp.int64 if word_bits == 64 else jnp.int32, unit, interval)
