"""Schedules whose peaks, lengths and ends may be hyperparameters.

optax's own schedules compare their arguments in Python, which traced values refuse. These have the same
formulas: where optax accepts the arguments, the values agree to the last bit. Each returns a function of the
step, as optax's do: `optax.adam(schedules.warmup_cosine(0.0, hparams["peak"], hparams["warmup"], 1000))`.
A length may be any positive number; the schedule is differentiable in it.

Reference: optax.schedules (DeepMind, 2020); Loshchilov and Hutter, 2017, arXiv:1608.03983 (cosine); Smith and
Topin, 2019, arXiv:1708.07120 (one-cycle).
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core.types import Array

Number: TypeAlias = float | Array
Schedule: TypeAlias = Callable[[Number], Number]
"""step -> value."""


def constant(value: Number) -> Schedule:
    """Hold one value: s(t) = v."""
    return lambda step: value


def linear(start: Number, end: Number, num_steps: Number, begin: Number = 0) -> Schedule:
    """Go from `start` to `end` on a line.

    s(t) = (start − end)(1 − clip(t − begin, 0, n) / n) + end

    Args:
        start: Value up to step `begin`, and for ever where n <= 0.
        end: Value from step `begin` + n on.
        num_steps: Number n of steps.
        begin: First step that changes; 0 where negative.
    """
    begin, length = _clipped(begin), _positive(num_steps)

    def schedule(step: Number) -> Number:
        count = jnp.clip(step - begin, 0, length)
        value = (start - end) * (1 - count / length) + end
        return _where(num_steps > 0, value, start)

    return schedule


def cosine(
    start: Number, num_steps: Number, alpha: Number = 0.0, exponent: Number = 1.0
) -> Schedule:
    """Fall from `start` to `alpha` times that along half a cosine.

    s(t) = start ((1 − α) (½ (1 + cos(π min(t, n) / n)))^p + α)

    Args:
        start: Value at step 0.
        num_steps: Number n of steps, positive.
        alpha: α, the last value as a share of the first.
        exponent: Exponent p.
    """
    length = float(num_steps) if isinstance(num_steps, int) else num_steps

    def schedule(step: Number) -> Number:
        count = jnp.minimum(float(step) if isinstance(step, int) else step, length)
        fallen = 0.5 * (1 + jnp.cos(jnp.pi * count / length))
        return start * ((1 - alpha) * fallen**exponent + alpha)

    return schedule


def warmup_cosine(
    start: Number,
    peak: Number,
    warmup_steps: Number,
    num_steps: Number,
    end: Number = 0.0,
    exponent: Number = 1.0,
) -> Schedule:
    """Rise to `peak` on a line, then fall to `end` along half a cosine.

    Args:
        start: Value at step 0.
        peak: Value after the warm-up.
        warmup_steps: Length of the rise.
        num_steps: Length of the whole, the rise included.
        end: Last value.
        exponent: Exponent of the cosine.
    """
    none = peak == 0.0
    alpha = _where(none, 0.0, end / _where(none, 1.0, peak))
    rise = linear(start, peak, warmup_steps)
    fall = cosine(peak, num_steps - warmup_steps, alpha, exponent)
    return lambda step: jnp.where(step < warmup_steps, rise(step), fall(step - warmup_steps))


def one_cycle(
    peak: Number,
    num_steps: Number,
    rising: Number = 0.3,
    first: Number = 25.0,
    last: Number = 1e4,
) -> Schedule:
    """Rise to `peak` and fall again, both along half a cosine.

    From peak / first at step 0 over `peak` at rising · n to peak / (first · last) at step n.

    Args:
        peak: Largest value.
        num_steps: Number n of steps.
        rising: Share of the steps that rise.
        first: `peak` as a multiple of the first value.
        last: First value as a multiple of the last one.
    """
    top = rising * num_steps
    # optax rounds down to whole steps; an array, a hyperparameter, keeps the fraction that it learns by
    bounds = [int(at) if isinstance(at, (int, float)) else at for at in (top, num_steps)]
    scales = (first, 1.0 / (first * last))

    def schedule(step: Number) -> Number:
        edges = jnp.stack((0, *bounds))
        values = jnp.cumprod(jnp.stack((peak / first, *scales)))
        lengths = jnp.maximum(edges[1:] - edges[:-1], 1)
        inside = jnp.logical_and(edges[:-1] <= step, step < edges[1:])
        share = (step - edges[:-1]) / lengths
        turned = values[1:] + (values[:-1] - values[1:]) / 2.0 * (jnp.cos(jnp.pi * share) + 1)
        return inside.dot(turned) + (edges[-1] <= step) * values[-1]

    return schedule


def piecewise(start: Number, boundaries: Sequence[Number], scales: Sequence[Number]) -> Schedule:
    """Multiply the value by a scale at each boundary.

    s(t) = start · Π {scale_i : t >= boundary_i}

    Args:
        start: First value.
        boundaries: Steps, in rising order. A boundary has no derivative: the value jumps there.
        scales: Factor at each boundary, not negative.

    Raises:
        ValueError: where there are not as many scales as boundaries.
    """
    if len(boundaries) != len(scales):
        raise ValueError(
            f"scales are {len(scales)} for {len(boundaries)} boundaries, expected one for each; add "
            "what is missing"
        )

    def schedule(step: Number) -> Number:
        value = start
        for boundary, scale in zip(boundaries, scales, strict=True):
            before = jnp.maximum(0.0, jnp.sign(boundary - step))
            value = value * before + (1 - before) * scale * value
        return value

    return schedule


def exponential(
    start: Number, num_steps: Number, rate: Number, begin: Number = 0, end: Number | None = None
) -> Schedule:
    """Decay by the factor `rate` every `num_steps` steps.

    s(t) = start · rate^((t − begin) / n), no further than `end`

    Args:
        start: Value up to step `begin`, and for ever where n <= 0 or the rate is 0.
        num_steps: Number n of steps.
        rate: Factor in n steps.
        begin: First step that changes; 0 where negative.
        end: Bound of the value, from below where the rate is less than 1, else from above; None for none.
    """
    begin, length = _clipped(begin), _positive(num_steps)
    moves = _and(num_steps > 0, rate != 0)
    safe = _where(rate == 0, 1.0, rate)

    def schedule(step: Number) -> Number:
        count = step - begin
        value = jnp.where(count <= 0, start, start * jnp.power(safe, count / length))
        if end is not None:
            bounded = (jnp.maximum(value, end), jnp.minimum(value, end))
            value = _where(rate < 1.0, *bounded)
        return _where(moves, value, start)

    return schedule


def _where(condition: bool | Array, yes: Number, no: Number) -> Number:
    """Choose in Python where that is possible, as optax does, so that the bits are the same."""
    if isinstance(condition, jax.Array):
        return jnp.where(condition, yes, no)
    return yes if condition else no


def _and(a: bool | Array, b: bool | Array) -> bool | Array:
    both = isinstance(a, jax.Array) or isinstance(b, jax.Array)
    return jnp.logical_and(a, b) if both else a and b


def _clipped(begin: Number) -> Number:
    return _where(begin < 0, 0, begin)


def _positive(length: Number) -> Number:
    """Keep a division finite where the schedule is held constant."""
    return _where(length > 0, length, 1)
