"""Reverse-mode hypergradients that run training backwards exactly, in integers."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad import tree
from hypergrad.adjoint import Backward, Pulled, Run, pull_step
from hypergrad.estimators.base import (
    Estimator,
    check_real,

    split_key,
    unrolled_estimate,
    warn_structural_zeros,
)
from hypergrad.momentum import (
    Kept,
    Recursion,
    by_step,
    check_momentum,
    scan_segments,
    segment_length,
)
from hypergrad.problem import Problem, check_horizon, check_problem
from hypergrad.train import TrainState, carried, init_state, trained
from hypergrad.types import Array, HParams

DIGITS = 8
"""Bits of the fractions n/2^8 by which integers are multiplied; what they leave is done by `stretch`."""


class ReversibleInfo(NamedTuple):
    """Diagnostics of a hypergradient through a run that was undone exactly.

    Attributes:
        direct: ∂f/∂λ at the final weights, a pytree like `hparams`.
        response: (∂f/∂w)(dw/dλ), a pytree like `hparams`; hypergrad = direct + response.
        horizon: number of steps differentiated through, int32 `[]`.
        sensitivity: norm of the adjoint of the weights before each step `[horizon]`.
        growth: geometric mean growth of `sensitivity` a step towards the start, `[]`.
        first_nonfinite: first step at which the training loss was not finite or a number left the range,
            the number of steps if only the objective was not finite, -1 if none; int32 `[]`.
        exact: whether every integer came back to what it was, at the start and at every flush, bool `[]`.
            False means that the hypergradient is worthless; the value is good all the same.
        largest: largest magnitude of a weight, velocity, gradient or update on the way, `[]`.
        bits: what is stored a parameter a step, `[]`.
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


class Integers(NamedTuple):
    """Weights and velocity in fixed point, with what multiplications left over; a list over leaves each.

    Attributes:
        weights: w / unit, int32 or int64.
        velocity: v / unit, likewise.
        rest: a stack of digits that undoing takes off again, unsigned.
    """

    weights: list[Array]
    velocity: list[Array]
    rest: list[Array]


def reversible(
    problem: Problem, horizon: int, *, min_momentum: float = 0.8, limit: float = 64.0
) -> Estimator:
    """Differentiate through training by SGD with momentum in integers, undoing it bit by bit.

    V ← m V + G(∇L(w), w) / u,   W ← D W − η V,   w = u W;   undone in the opposite order

    with integers W, V of unit u. A sum of integers is undone by a difference. A product by m < 1 forgets
    log₂(1/m) bits, which go to a stack of digits in one word a parameter (`shrink`), and no more: the
    stack is stored and emptied before it can overflow, after a number of steps that follows from
    `min_momentum` and not from the data. Nothing else is stored of the weights.

    **Cost:** 3 to 5 x training; memory of `info.bits` a parameter and step (0.21 at momentum 0.9, 0.44 at
    0.8, against 64 for stored states in float32) and of a few numbers a step.

    **Limits:** SGD with momentum alone. Its rate, momentum and decoupled decay may change with the step and
    with the leaf of the params, rate x decay up to 1/256; clipping or an L2 term may come before the
    momentum. Training is that of optax but for rounding, to `limit`·2⁻³⁰ (float64 params: 2⁻⁶²). Carried
    state is stored at every step. The gradient computed again must be the same to the bit, which a
    backend does not promise: `info.exact` tells.

    Args:
        problem: the training loop.
        horizon: number of inner steps.
        min_momentum: the smallest momentum that the run will meet, in (0, 1).
        limit: what no weight, velocity, gradient or update may exceed.

    Returns:
        A stateless estimator; `info` is a `ReversibleInfo`.

    Raises:
        ValueError: for a horizon below 1, a momentum outside (0, 1) or a limit not above 0 and, when traced,
            for an optimizer that is not SGD with momentum, or a leaf that is not real.

    Reference:
        Maclaurin, Duvenaud, Adams, 2015, arXiv:1502.03492, Algorithms 2 and 3.
    """
    check_problem(problem)
    check_horizon(horizon)
    check_momentum(min_momentum)
    if not (isinstance(limit, (int, float)) and 0 < limit < 2**20):
        raise ValueError(
            f"limit is {limit!r}, expected a number above 0 and below 2**20; pass what no weight exceeds"
        )
    backward = undo(min_momentum, limit)

    def init(key, hparams):
        return ()

    def estimate(key, state, hparams):
        check_real(problem, hparams)
        warn_structural_zeros(problem, hparams, horizon)
        start = init_state(problem, split_key(key)[0], hparams)
        found, losses, certificate = unrolled_estimate(
            problem, key, hparams, start, horizon, backward
        )
        return state, found._replace(info=ReversibleInfo(*found.info, *certificate))

    return Estimator(init, estimate)


def undo(min_momentum: float, limit: float) -> Backward:
    """Return the backward pass of `reversible`; it certifies (exact, largest, bits)."""

    def backward(problem, hparams, state, num_steps):
        recursion = Recursion(problem, hparams, state)
        _check_momentum(recursion, min_momentum)
        size = segment_length(num_steps, flush_interval(min_momentum, recursion))
        first = _integers(recursion, state, limit)

        def segment(carry, _, length):
            (integers, *others), ys = jax.lax.scan(
                lambda carry, _: _advance(recursion, hparams, limit, carry), carry, None, length
            )
            emptied = integers._replace(rest=[x & _mask(x) for x in integers.rest])
            return (emptied, *others), (ys, integers.rest)

        fixed = recursion.split(state.opt_state)[1]
        carry = (first, state.step, fixed, carried(state.params))
        (last, step, fixed, loss_state), ys = scan_segments(
            segment, carry, [None, None], num_steps, size
        )
        losses, largest = by_step([(value, most) for (value, most, _), _ in ys])
        stored = [(kept, rest) for (_, _, kept), rest in ys]
        end = Kept(step, fixed, loss_state, recursion.coefficients(hparams, fixed))
        final = recursion.state(end, *_floats(recursion, last, limit))

        def back(carry, stored, length):
            return _undo_segment(recursion, hparams, limit, carry, stored)

        def pullback(adjoint):
            zeros = [jnp.zeros_like(h) for h in tree.floats(hparams)]
            carry = (last, (zeros, adjoint), jnp.asarray(True))
            carry, norms = scan_segments(back, carry, stored, num_steps, size, reverse=True)
            integers, (total, adjoint), exact = carry
            bits = _num_bits(recursion, -(-num_steps // size)) / num_steps
            certificate = (exact & _equal(integers, first), jnp.max(largest), jnp.float32(bits))
            return Pulled(total, adjoint, by_step(norms), certificate)

        # a number that left the range is as good as one that is not finite
        return Run(final, jnp.where(largest < limit, losses, jnp.nan), pullback)

    return backward


def _advance(recursion, hparams, limit, carry):
    """Make one step of training in integers."""
    integers, step, fixed, loss_state = carry
    kept = Kept(step, fixed, loss_state, recursion.coefficients(hparams, fixed))
    drives, after, value, _ = recursion.drive(hparams, kept, _floats(recursion, integers, limit)[0])
    new, largest = Integers([], [], []), jnp.zeros((), jnp.float32)
    for i, (weights, velocity, rest) in enumerate(zip(*integers, strict=True)):
        m, rate, decay = _factors(kept, i)
        velocity, rest = shrink(velocity, rest, m)
        velocity = velocity + encode(drives[i], velocity.dtype, limit)
        if decay is not None:
            weights, rest = shrink(weights, rest, decay)
        update = rate * decode(velocity, limit)
        weights = weights - encode(update, weights.dtype, limit)
        for reals in (drives[i], update, decode(velocity, limit), decode(weights, limit)):
            largest = jnp.maximum(largest, jnp.max(jnp.abs(reals)).astype(jnp.float32))
        for part, leaf in zip(new, (weights, velocity, rest), strict=True):
            part.append(leaf)
    fixed, loss_state = recursion.split(after.opt_state)[1], carried(after.params)
    return (new, after.step, fixed, loss_state), (value, largest, kept)


def _undo_segment(recursion, hparams, limit, carry, stored):
    """Undo a segment to the bit, and pull the adjoint back over it."""
    integers, adjoint, exact = carry
    kept, full = stored
    # a stack that was emptied after this segment must have come back to what emptying left
    exact &= _equal(integers.rest, [x & _mask(x) for x in full])

    def undo_step(carry, kept):
        integers, adjoint = carry
        new = Integers([], [], [])
        for i, (weights, velocity, rest) in enumerate(zip(*integers, strict=True)):
            _, rate, decay = _factors(kept, i)
            weights = weights + encode(rate * decode(velocity, limit), weights.dtype, limit)
            if decay is not None:
                weights, rest = grow(weights, rest, decay)
            new.weights.append(weights)
            new.rest.append(rest)
        reals, _ = _floats(recursion, integers._replace(weights=new.weights), limit)
        drives, _, value, grads = recursion.drive(hparams, kept, reals)
        for i, velocity in enumerate(integers.velocity):
            velocity = velocity - encode(drives[i], velocity.dtype, limit)
            velocity, new.rest[i] = grow(velocity, new.rest[i], _factors(kept, i)[0])
            new.velocity.append(velocity)
        before = recursion.state(kept, *_floats(recursion, new, limit))
        adjoint, norm = pull_step(recursion.problem, hparams, (before, value, grads), adjoint)
        return (new, adjoint), norm

    carry = (integers._replace(rest=full), adjoint)
    (integers, adjoint), norms = jax.lax.scan(undo_step, carry, kept, reverse=True)
    return (integers, adjoint, exact), norms


def encode(reals: Array, word: Any, limit: float) -> Array:
    """Round to integers of dtype `word`, in units of which `limit` has at most 2^(bits − 2)."""
    return jnp.round(reals.astype(_real(word)) * (1 / _unit(word, limit))).astype(word)


def decode(integers: Array, limit: float) -> Array:
    """Return integers as real numbers, float32 for int32 and float64 for int64."""
    return integers.astype(_real(integers.dtype)) * _unit(integers.dtype, limit)


def shrink(value: Array, rest: Array, factor: Array) -> tuple[Array, Array]:
    """Multiply integers by `factor`, to within one unit, so that `grow` can undo it.

    With n = ⌊factor·d⌋, d = 2^DIGITS, the last digit of `rest`, base d, is taken for one more digit of the
    value, which makes the product by n/d whole: value·d + digit = q·d + r ↦ q·n + s. Here r goes on the
    stack and s comes off it: rest ← (rest·d + r) ÷ n, s the remainder. What n/d lacks of the factor,
    a `stretch` adds, which forgets nothing.
    """
    n, excess = _fraction(factor, value.dtype)
    quotient, remainder = _divide(rest, n.astype(rest.dtype))
    low = (value & _mask(value)) * n + remainder.astype(value.dtype)
    value = (value >> DIGITS) * n + (low >> DIGITS)
    rest = (quotient << DIGITS) | (low & _mask(value)).astype(rest.dtype)
    return value + _stretch(value, excess), rest


def grow(value: Array, rest: Array, factor: Array) -> tuple[Array, Array]:
    """Undo `shrink` exactly."""
    n, excess = _fraction(factor, value.dtype)
    stretched = value
    real = _real(value.dtype)
    value = jnp.round(stretched.astype(real) / (1 + excess)).astype(value.dtype)
    for _ in range(4):  # near enough at first that each turn divides the distance by n, to 0
        value = stretched - _stretch(value, excess)
    high, remainder = _divide(value, n)
    low = (remainder << DIGITS) | (rest & _mask(rest)).astype(value.dtype)
    digit, remainder = _divide(low, n)
    rest = (rest >> DIGITS) * n.astype(rest.dtype) + remainder.astype(rest.dtype)
    return (high << DIGITS) + digit, rest


def _stretch(value: Array, excess: Array) -> Array:
    """Return what x ↦ x + round(excess·x) adds: it never falls in x, so that no two x have one image."""
    return jnp.round(excess * value.astype(_real(value.dtype))).astype(value.dtype)


def _fraction(factor: Array, word: Any) -> tuple[Array, Array]:
    """Return n = ⌊factor·2^DIGITS⌋ and factor·2^DIGITS/n − 1."""
    scaled = factor.astype(_real(word)) * 2**DIGITS
    whole = jnp.maximum(jnp.floor(scaled), 1)
    return whole.astype(word), (scaled - whole) / whole


def _divide(value: Array, n: Array) -> tuple[Array, Array]:
    """Divide integers by a positive n: quotient towards −∞, and remainder in [0, n)."""
    quotient = jax.lax.div(value, jnp.broadcast_to(n, value.shape))
    remainder = value - quotient * n
    if jnp.issubdtype(value.dtype, jnp.unsignedinteger):
        return quotient, remainder
    below = remainder < 0
    return quotient - below, jnp.where(below, remainder + n, remainder)


def flush_interval(min_momentum: float, recursion: Recursion) -> int:
    """Return after how many steps at most the stack must be stored, whatever the data.

    Undone digit by digit, a stack bounded by U is bounded by (U ÷ n)·d + d − 1 after a product by n/d.
    """
    top = min(8 * jnp.dtype(_word(leaf.dtype)).itemsize for leaf in recursion.leaves)
    digit = 2**DIGITS - 1
    factors = [int(min_momentum * 2**DIGITS), *([digit] if recursion.decays else [])]
    bound, steps = digit, 0
    while True:
        for n in factors:
            bound = (bound // n << DIGITS) + digit
            if bound >= 2**top:
                return max(steps, 1)
        steps += 1


def _check_momentum(recursion: Recursion, min_momentum: float) -> None:
    if recursion.constant is not None and recursion.constant < min_momentum:
        raise ValueError(
            f"min_momentum is {min_momentum}, expected at most {recursion.constant:.3g}, the momentum of "
            "problem.optimizer; pass that, because the stack is stored as often as min_momentum asks"
        )


def _integers(recursion: Recursion, state: TrainState, limit: float) -> Integers:
    velocity, _ = recursion.split(state.opt_state)
    words = [_word(leaf.dtype) for leaf in recursion.leaves]

    def whole(leaves):
        return [encode(x, word, limit) for x, word in zip(leaves, words, strict=True)]

    weights = whole(jax.tree.leaves(trained(state.params)))
    rest = [jnp.zeros(w.shape, _unsigned(w.dtype)) for w in weights]
    return Integers(weights, whole(velocity), rest)


def _floats(recursion: Recursion, integers: Integers, limit: float) -> tuple[list, list]:
    """Return weights and velocity in the dtypes of the params."""

    def reals(parts):
        pairs = zip(parts, recursion.leaves, strict=True)
        return [decode(x, limit).astype(leaf.dtype) for x, leaf in pairs]

    return reals(integers.weights), reals(integers.velocity)


def _factors(kept: Kept, i: int) -> tuple[Array, Array, Array | None]:
    momenta, rates, decays = kept.coefficients
    return momenta[i], rates[i], None if decays is None else 1 + decays[i]


def _equal(left: Any, right: Any) -> Array:
    same = jax.tree.map(lambda a, b: jnp.all(a == b), left, right)
    return jnp.all(jnp.stack(jax.tree.leaves(same)))


def _num_bits(recursion: Recursion, num_segments: int) -> float:
    """Return what the stored stacks take, in bits a parameter."""
    sizes = [(leaf.size, 8 * jnp.dtype(_word(leaf.dtype)).itemsize) for leaf in recursion.leaves]
    return num_segments * sum(n * bits for n, bits in sizes) / sum(n for n, _ in sizes)


def _word(dtype: Any) -> Any:
    return jnp.int64 if jnp.finfo(dtype).bits > 32 else jnp.int32


def _unsigned(word: Any) -> Any:
    return jnp.uint64 if word == jnp.int64 else jnp.uint32


def _real(word: Any) -> Any:
    return jnp.float64 if jnp.dtype(word).itemsize == 8 else jnp.float32


def _unit(word: Any, limit: float) -> float:
    """Return the power of two of which 2^(bits − 2) are at least `limit`."""
    return 2.0 ** (math.ceil(math.log2(limit)) - 8 * jnp.dtype(word).itemsize + 2)


def _mask(value: Array) -> Array:
    """Select the last digit."""
    return jnp.asarray(2**DIGITS - 1, value.dtype)
