"""Schedules of hyperparameters: to the last bit those of optax where it accepts, traced where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.space import schedules

STEPS = (0, 1, 2, 3, 7, 10, 14, 20, 29, 30, 31, 50)
PAIRS = {
    "constant": (schedules.constant(0.3), optax.constant_schedule(0.3)),
    "linear": (schedules.linear(0.3, 0.07, 13), optax.linear_schedule(0.3, 0.07, 13)),
    "linear later": (schedules.linear(0.3, 0.7, 13, 5), optax.linear_schedule(0.3, 0.7, 13, 5)),
    "linear of nothing": (
        schedules.linear(0.3, 0.7, 0, -2),
        optax.linear_schedule(0.3, 0.7, 0, -2),
    ),
    "cosine": (schedules.cosine(0.3, 29, 0.1, 1.5), optax.cosine_decay_schedule(0.3, 29, 0.1, 1.5)),
    "warmup_cosine": (
        schedules.warmup_cosine(0.01, 0.3, 7, 30, 0.02),
        optax.warmup_cosine_decay_schedule(0.01, 0.3, 7, 30, 0.02),
    ),
    "warmup_cosine of zero": (
        schedules.warmup_cosine(0.01, 0.0, 7, 30, 0.0),
        optax.warmup_cosine_decay_schedule(0.01, 0.0, 7, 30, 0.0),
    ),
    "one_cycle": (schedules.one_cycle(0.3, 31), optax.cosine_onecycle_schedule(31, 0.3)),
    "piecewise": (
        schedules.piecewise(0.3, (7, 20), (0.1, 0.5)),
        optax.piecewise_constant_schedule(0.3, {7: 0.1, 20: 0.5}),
    ),
    "exponential": (
        schedules.exponential(0.3, 11, 0.6, 3, 0.1),
        optax.exponential_decay(0.3, 11, 0.6, 3, end_value=0.1),
    ),
    "exponential up": (
        schedules.exponential(0.3, 11, 1.6, -1, 1.1),
        optax.exponential_decay(0.3, 11, 1.6, -1, end_value=1.1),
    ),
    "exponential of zero": (
        schedules.exponential(0.3, 11, 0.0),
        optax.exponential_decay(0.3, 11, 0.0),
    ),
}
MADE = {
    "linear": (schedules.linear, (0.3, 0.07, 13.0)),
    "cosine": (schedules.cosine, (0.3, 29.0, 0.1, 1.5)),
    "warmup_cosine": (schedules.warmup_cosine, (0.01, 0.3, 6.5, 29.5, 0.02)),
    "one_cycle": (schedules.one_cycle, (0.3, 30.5, 0.31, 25.0, 10.0)),
    "piecewise": (lambda v, a, b: schedules.piecewise(v, (7, 20), (a, b)), (0.3, 0.1, 0.5)),
    "exponential": (schedules.exponential, (0.3, 11.0, 0.6, 2.5, 0.1)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_bits_are_those_of_optax(name, compiled):
    ours, theirs = (jax.jit(f) if compiled else f for f in PAIRS[name])
    for step in STEPS:
        for at in (step, jnp.asarray(step, jnp.int32)):
            assert np.asarray(ours(at)).tobytes() == np.asarray(theirs(at)).tobytes(), step


@pytest.mark.parametrize("name", MADE)
def test_every_argument_is_traced_and_differentiated(name):
    make, arguments = MADE[name]

    def mean(arguments):
        return jnp.mean(jax.vmap(make(*arguments))(jnp.asarray(STEPS)))

    with jax.enable_x64(True):
        values = tuple(jnp.asarray(a, jnp.float64) for a in arguments)
        assert np.isclose(jax.jit(mean)(values), mean(values), rtol=1e-6)
        slopes = jax.jit(jax.grad(mean))(values)
        for i, slope in enumerate(slopes):
            moved = [tuple(v + s * 1e-6 * (i == j) for j, v in enumerate(values)) for s in (1, -1)]
            assert np.isclose(slope, (mean(moved[0]) - mean(moved[1])) / 2e-6, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("length", [0.0, -3.0])
def test_a_traced_length_of_nothing_holds_the_start(length):
    for make in (
        lambda n: schedules.linear(0.3, 0.1, n),
        lambda n: schedules.exponential(0.3, n, 0.5),
    ):
        value, slope = jax.jit(jax.value_and_grad(lambda n, make=make: make(n)(5)))(length)
        assert value == np.float32(0.3) and slope == 0


def test_scales_that_do_not_fit_their_boundaries():
    with pytest.raises(ValueError, match="scales are 1 for 2 boundaries, expected one for each"):
        schedules.piecewise(0.3, (7, 20), (0.1,))
