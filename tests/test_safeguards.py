"""What keeps a descent from falling off a cliff, against what it says it does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import study
from hypergrad.estimators import average, reverse
from hypergrad.problem import Problem
from hypergrad.space import LogReal, Real, Sequence
from hypergrad.tuners import descent
from hypergrad.tuners.safeguards import (
    RECENT,
    _median,
    clipped_mean,
    has_jumped,
    noted,
    nothing_typical,
    smoothly,
)

KEY = jax.random.key(0)
NO = jnp.asarray(False)


def after(values, norms=None):
    """What is typical after steps with these objectives."""
    typical = nothing_typical()
    for value, norm in zip(values, norms or [1.0] * len(values), strict=True):
        typical = noted(typical, jnp.float32(value), jnp.float32(norm), NO)
    return typical


def test_a_seed_is_clipped_by_what_was_typical():
    each = {"a": jnp.array([[3.0, 4.0], [0.3, 0.4], [3e4, 4e4]]), "b": jnp.zeros((3, 1))}
    mean, norm = clipped_mean(each, after([1.0] * 4, [1.0, 2.0, 3.0, 2.0]), 2.0)
    assert norm == 5.0, "the median over the seeds of this step"
    # typical is the median of 1, 2, 3, 2 and 5, which is 2: seeds longer than 4 are cut to 4
    expected = (np.array([2.4, 3.2]) + np.array([0.3, 0.4]) + np.array([2.4, 3.2])) / 3
    np.testing.assert_allclose(mean["a"], expected, rtol=1e-6)
    whole, _ = clipped_mean(each, nothing_typical(), np.inf)
    np.testing.assert_allclose(whole["a"], each["a"].mean(0), rtol=1e-6)


def test_a_mean_of_clipped_seeds_keeps_its_sign_where_the_clipped_mean_loses_it():
    """Three seeds agree, and one is beyond the edge of stability."""
    each = jnp.array([[0.1], [0.12], [0.11], [-1e4]])
    mean, _ = clipped_mean(each, nothing_typical(), 1.0)
    assert mean[0] > 0 > each.mean()


@pytest.mark.parametrize(
    ("values", "value", "expected"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.05, 0.95], 1.15, False),
        ([1.0, 1.1, 0.9, 1.0, 1.05, 0.95], 1.6, True),
        ([1.0, 1.1, 0.9, 1.0], 50.0, False),  # too few to know
        ([1.0] * 6, 1.05, False),  # a flat stretch still has its 2 %
        ([1.0] * 6, 1.12, True),
        ([-1.0, -1.1, -0.9, -1.0, -1.05, -0.95], -0.2, True),
        ([1.0, 1.1, 0.9, 1.0, 1.05, 0.95], 0.1, False),  # better is never a jump
    ],
)
def test_a_jump_is_told_from_noise(values, value, expected):
    assert bool(has_jumped(jnp.float32(value), after(values))) is expected


@pytest.mark.parametrize("num", [1, 2, 5, 10, 11])
def test_the_median_is_that_of_a_sort(num):
    random = np.random.default_rng(num)
    for missing in range(num + 1):
        x = random.integers(0, 5, num).astype(np.float32)  # with ties
        x[random.permutation(num)[:missing]] = np.nan
        expected = np.nanmedian(x) if missing < num else np.nan
        np.testing.assert_equal(np.asarray(_median(jnp.asarray(x))), expected)


def test_a_lasting_change_is_accepted_after_a_few_steps():
    typical, num = after([1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.1, 0.9, 1.0]), 0
    while has_jumped(jnp.float32(3.0), typical):
        typical, num = (
            noted(typical, jnp.float32(3.0), jnp.float32(1.0), jnp.asarray(True)),
            num + 1,
        )
        assert num < RECENT
    assert 2 <= num <= 6 and typical.pace == 0.5**num


def test_the_pace_halves_and_recovers():
    typical = noted(nothing_typical(), jnp.float32(jnp.nan), jnp.float32(1.0), jnp.asarray(True))
    assert typical.pace == 0.5 and np.isnan(typical.values).all() and np.isnan(typical.norms).all()
    for _ in range(8):
        typical = noted(typical, jnp.float32(1.0), jnp.float32(1.0), NO)
    assert typical.pace == 1.0


def matrix(length, reach):
    """Moving means, written as a person would."""
    rows = [np.abs(np.arange(length) - t) <= reach for t in range(length)]
    return np.array([row / row.sum() for row in rows])


@pytest.mark.parametrize("shape", [(), (2,)])
def test_schedules_move_by_their_moving_means(shape):
    length, width = 20, 0.3
    space = {"lr": Sequence(LogReal(1e-3, 1.0, shape=shape), length), "m": Real(0.0, 1.0)}
    mean = np.linalg.matrix_power(matrix(length, 3), 2)
    gradient = jax.random.normal(KEY, (length, *shape))
    z = {"lr": jnp.zeros((length, *shape)), "m": jnp.zeros(())}
    grads = {"lr": gradient, "m": jnp.float32(2.0)}
    for optimizer in (optax.sgd(1.0), optax.adam(0.1)):
        moved = smoothly(optimizer, space, width)
        found, _ = moved.update(grads, moved.init(z), z)
        # the same optimizer in the coordinates c of z = M c
        inner = {"lr": jnp.tensordot(mean.T, gradient, 1), "m": grads["m"]}
        steps, _ = optimizer.update(inner, optimizer.init(z), z)
        np.testing.assert_allclose(found["lr"], np.tensordot(mean, steps["lr"], 1), atol=2e-6)
        np.testing.assert_array_equal(found["m"], steps["m"])
    plain = smoothly(optax.sgd(1.0), space, 0.0)
    np.testing.assert_array_equal(plain.update(grads, plain.init(z), z)[0]["lr"], -gradient)


def cliff():
    """An objective whose best is at the edge: from x = 0.7 on, some seeds are off by 100."""

    def objective(params, hparams, batch):
        x = hparams["x"]
        over = jnp.where(x > 0.7, 1e4 * (x - 0.7) ** 2 * (batch > 0.8), 0.0)
        return 1.0 - x + over + 0.02 * batch + 0.0 * jnp.sum(params)

    problem = Problem(
        init=lambda key, hparams: jnp.zeros(()),
        loss=lambda params, hparams, batch: params**2,
        objective=objective,
        optimizer=lambda hparams: optax.sgd(0.1),
        train_batch=lambda key, step: jnp.zeros(()),
        valid_batch=lambda key: jax.random.uniform(key),
    )
    return problem, {"x": Real(0.0, 1.0)}


def test_a_step_over_the_cliff_is_taken_back_and_never_the_best():
    problem, space = cliff()
    tuner = descent(average(reverse(problem, 1), 4), space, optimizer=optax.adam(0.3))
    found = study.run(tuner, KEY, 60).trials
    back = np.array([t.info["taken_back"][0] for t in found])
    x = np.array([t.hparams["x"][0] for t in found])
    assert 1 <= back.sum() < 30
    for i in np.flatnonzero(back[:-1]):
        assert x[i + 1] <= x[i] and found[i].info["pace"][0] < 1
    assert 0.6 < x[-20:].mean() < 0.85, "it stays at the edge"
    state = tuner.init(KEY)
    best = study.run(tuner, KEY, 60).best_value
    assert best == min(t.values[0] for t in found) and state.typical.pace == 1.0
    pace = np.array([1.0, *(t.info["pace"][0] for t in found)])
    expected = np.where(back, pace[:-1] * 0.5, np.minimum(1.0, pace[:-1] * 1.1))
    np.testing.assert_allclose(pace[1:], expected, rtol=1e-6)


def test_restarts_start_where_they_are_told():
    problem, space = cliff()
    tuner = descent(reverse(problem, 1), space, num_restarts=2)
    assert tuner.init_at is not None
    state = tuner.init_at(KEY, {"x": jnp.array([0.2, 0.4])})
    _, trials = tuner.step(KEY, state)
    np.testing.assert_allclose(trials.hparams["x"], [0.2, 0.4], rtol=1e-6)
