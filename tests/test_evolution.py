"""Evolution strategies against exact gradients, judged by their own standard errors; wrong ones must fail."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import chaotic
from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.estimators import (
    advice,
    average,
    es,
    final_objective,
    mean_objective,
    nres,
    pes,
    reverse,
)
from hypergrad.estimators.evolution.moves import gaussian
from hypergrad.estimators.evolution.windows import by_windows
from hypergrad.estimators.slopes import frozen
from hypergrad.problem import Problem
from hypergrad.space import LogReal, Real, Sequence
from hypergrad.testing import assert_close, quadratic_bilevel, ridge
from hypergrad.train import init_state, unroll
from hypergrad.tuners import descent

KEY = jax.random.key(5)
HORIZON, WINDOW = 8, 2
SIGMA = 0.5
NUM = 1000
"""Independent estimates, of 8 pairs each, behind every mean."""
QUADRATIC = quadratic_bilevel()
"""Quadratic in the hparams of every window together: a smoothed gradient is the gradient, whatever σ."""
ONLINE = {
    f"{factory.__name__}, {target_name}": lambda f=factory, t=target, **words: f(
        QUADRATIC.problem, HORIZON, WINDOW, sigma=SIGMA, num_pairs=8, target=t, **words
    )
    for factory in (pes, nres)
    for target_name, target in (("final", final_objective), ("mean", mean_objective))
}
MAKERS = {"es": lambda: es(QUADRATIC.problem, HORIZON, sigma=SIGMA, num_pairs=8), **ONLINE}


def objective_at(problem, hparams, num_steps):
    state = unroll(problem, hparams, init_state(problem, KEY, hparams), num_steps)
    return problem.objective(state.params, hparams, problem.valid_batch(KEY))


@functools.cache
def exact(name):
    """The gradient by plain autodiff, of the target that the estimator names."""
    ends = range(WINDOW, HORIZON + 1, WINDOW) if name.endswith("mean") else [HORIZON]

    def target(h):
        return sum(objective_at(QUADRATIC.problem, h, n) for n in ends) / len(ends)

    return jax.jit(jax.grad(target))(QUADRATIC.hparams)


def repeat(estimator, hparams, num, length=1):
    """Make `num` independent chains of `length` estimates each, `[num, length]`."""

    def chain(key):
        first, *keys = jax.random.split(key, 1 + length)
        state = estimator.init(first, hparams)
        return jax.lax.scan(lambda s, k: estimator.estimate(k, s, hparams), state, jnp.stack(keys))[
            1
        ]

    return jax.jit(jax.vmap(chain))(jax.random.split(KEY, num))


@functools.cache
def many(name):
    """Chains of six estimates; four windows make a run, so that every pair starts anew within."""
    return repeat(MAKERS[name](), QUADRATIC.hparams, NUM, 1 if name == "es" else 6)


def errors_off(estimates, expected):
    """How many standard errors the mean of independent estimates is off, at most; and their relative size."""
    estimates, expected = np.asarray(estimates, np.float64), np.asarray(expected, np.float64)
    error = estimates.std(0, ddof=1) / len(estimates) ** 0.5
    off = np.abs(estimates.mean(0) - expected) / error
    return off.max(), np.linalg.norm(error) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", list(MAKERS))
def test_the_mean_is_the_gradient(name):
    found = many(name)
    for index in range(found.value.shape[1]):
        off, relative = errors_off(found.hypergrad["point"][:, index], exact(name)["point"])
        assert off < 4 and relative < 0.12, index
        if not name.endswith("mean"):
            assert (
                errors_off(found.info.direct["point"][:, index], QUADRATIC.direct["point"])[0] < 4
            )
    assert np.all(found.info.num_nonfinite == 0) and np.all(found.info.first_nonfinite == -1)
    assert np.all(found.info.horizon == HORIZON)


@pytest.mark.parametrize("name", list(MAKERS))
def test_the_standard_error_is_the_spread(name):
    found = many(name)
    empirical = np.asarray(found.hypergrad["point"]).std(0, ddof=1)
    reported = np.sqrt(np.mean(np.square(found.info.std_error["point"]), 0))
    low, high = (0.9, 1.1) if name == "es" else (0.85, 1.5)  # windows that differ count as noise
    ratio = reported / empirical
    assert np.all((ratio > low) & (ratio < high)), ratio
    if name == "es":
        spread = np.std(found.value, ddof=1)
        assert 0.9 < np.sqrt(np.mean(np.square(found.info.value_std_error))) / spread < 1.1


@pytest.mark.parametrize("name", ["es", "pes"])
def test_the_standard_error_sees_the_noise_of_the_validation_batch(name):
    values = jnp.asarray([-2.0, 0.5, 1.0, 3.0])
    problem = Problem(
        init=lambda key, h: jnp.zeros(()),
        loss=lambda w, h, batch: 0.5 * (w - h["x"]) ** 2,
        objective=lambda w, h, batch: batch * w,
        optimizer=lambda h: optax.sgd(0.5),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: jax.random.choice(key, values),
    )
    words = {"sigma": 0.1, "num_pairs": 8}
    estimator = es(problem, 4, **words) if name == "es" else pes(problem, 4, 2, **words)
    hparams = {"x": jnp.float32(1.0)}

    def one(key):
        init_key, key = jax.random.split(key)
        return estimator.estimate(key, estimator.init(init_key, hparams), hparams)[1]

    found = jax.jit(jax.vmap(one))(jax.random.split(KEY, 1000))
    reported = np.sqrt(np.mean(np.square(found.info.std_error["x"])))
    assert 0.9 < reported / np.std(found.hypergrad["x"], ddof=1) < 1.2
    errors = np.asarray(found.info.value_std_error)
    value = np.sqrt(np.mean(np.square(errors[np.isfinite(errors)])))
    assert 0.8 < value / np.nanstd(found.value, ddof=1) < 1.2


@pytest.mark.parametrize(("name", "share"), [("es", 0.044), ("nres, final", 0.056)])
def test_few_pairs_mislead_as_often_as_is_said(name, share):
    """The slopes of pairs are skewed; a normal error is beyond 4 standard errors 6e-5 of the time."""
    found = many(name)
    off = np.abs(found.hypergrad["point"] - exact(name)["point"]) / found.info.std_error["point"]
    assert 0.6 * share < np.mean(off > 4) < 1.6 * share


def test_reused_noise_has_less_variance_than_persistent_noise():
    spread = {
        name: np.sum(np.var(many(f"{name}, final").hypergrad["point"], (0, 1)))
        for name in ("pes", "nres")
    }
    assert spread["nres"] < 0.6 * spread["pes"]


def forgetful(starts, fresh, noise):
    """Truncated ES: only the last window's noise gets credit."""
    return fresh, fresh


def test_forgotten_noise_fails():
    moves = gaussian(SIGMA)
    wrong = by_windows(QUADRATIC.problem, HORIZON, WINDOW, moves, 8, final_objective, forgetful)
    found = repeat(wrong, QUADRATIC.hparams, NUM)
    assert errors_off(found.hypergrad["point"][:, 0], exact("final")["point"])[0] > 10


def test_a_wrong_scale_fails(monkeypatch):
    def wrong(sigma, space):
        moves = gaussian(sigma, space)
        return moves._replace(move=gaussian(0.5 * sigma, space).move)

    monkeypatch.setattr(sys.modules["hypergrad.estimators.evolution.es"], "gaussian", wrong)
    found = repeat(MAKERS["es"](), QUADRATIC.hparams, NUM)
    assert errors_off(found.hypergrad["point"][:, 0], exact("es")["point"])[0] > 10


@pytest.mark.slow
def test_ridge_is_approached_as_sigma_shrinks():
    """Not quadratic in its hparam: the smoothed gradient differs by O(σ²)."""
    solved = ridge()
    total = solved.direct["log_l2"] + solved.response["log_l2"]
    estimator = nres(solved.problem, 200, 100, sigma=1e-2, num_pairs=32)
    found = repeat(estimator, solved.hparams, 32)
    off, relative = errors_off(found.hypergrad["log_l2"][:, 0], total)
    assert off < 4 and relative < 0.1


@pytest.mark.slow
def test_a_run_starts_anew_and_is_one_run():
    """Follow the pairs over more than a run: restarts, credited noise, and the weights at its end."""
    hparams = QUADRATIC.hparams
    estimator = nres(QUADRATIC.problem, 6, 2, sigma=SIGMA, num_pairs=3)
    state = jax.jit(estimator.init)(KEY, hparams)
    assert sorted(np.asarray(state.train.step[:, 0])) == [0, 2, 4]
    step, moves = jax.jit(estimator.estimate), gaussian(SIGMA)

    def train(num_steps):
        return jax.jit(
            lambda h: (
                unroll(
                    QUADRATIC.problem, h, init_state(QUADRATIC.problem, KEY, h), num_steps
                ).params
            )
        )

    replay = {num_steps: train(num_steps) for num_steps in (2, 4, 6)}
    for key in jax.random.split(KEY, 7):
        before, (state, _) = state, step(key, state, hparams)
        for i in range(3):
            was, now = int(before.train.step[i, 0]), int(state.train.step[i, 0])
            assert now == (2 if was in (0, 6) else was + 2)
            renewed = bool(np.any(state.noise["point"][i] != before.noise["point"][i]))
            assert renewed == (now == 2)
            for side, sign in enumerate((1, -1)):
                unit = jax.tree.map(lambda x, i=i, s=sign: s * x[i], state.noise)
                moved = moves.move(hparams, unit)
                assert_close(state.train.params[i, side], replay[now](moved), 1e-2)


def test_persistent_noise_is_summed_over_a_run_and_no_longer():
    estimator = pes(QUADRATIC.problem, 4, 2, sigma=SIGMA, num_pairs=2)
    state = jax.jit(estimator.init)(KEY, QUADRATIC.hparams)
    moves, step = gaussian(SIGMA), jax.jit(estimator.estimate)
    for key in jax.random.split(KEY, 5):
        before, (state, _) = state, step(key, state, QUADRATIC.hparams)
        for i, pair_key in enumerate(jax.random.split(jax.random.split(key)[0], 2)):
            draw = jax.random.fold_in(jax.random.split(pair_key)[0], before.num_windows[i])
            fresh = moves.draw(draw, QUADRATIC.hparams)["point"]
            old = before.noise["point"][i] if state.train.step[i, 0] > 2 else 0.0
            np.testing.assert_allclose(state.noise["point"][i], old + fresh, rtol=1e-5)


def test_a_key_used_again_draws_new_moves_of_the_same_run():
    """`descent(resample=False)` gives every step the same key; PES would otherwise credit one noise twice."""
    estimator = pes(QUADRATIC.problem, 2, 2, sigma=SIGMA, num_pairs=2)
    state, step = estimator.init(KEY, QUADRATIC.hparams), jax.jit(estimator.estimate)
    once, _ = step(KEY, state, QUADRATIC.hparams)
    twice, _ = step(KEY, once, QUADRATIC.hparams)
    assert np.all(once.noise["point"] != twice.noise["point"])
    same = jax.random.key_data(once.train.key) == jax.random.key_data(twice.train.key)
    assert np.all(same)


SPACE = {
    "free": Sequence(LogReal(1e-3, 1.0), 5),
    "knots": Sequence(Real(0.0, 1.0, shape=(2,)), 7, knots=3),
    "falling": Sequence(LogReal(1e-3, 1.0), 6, knots=4, decreasing=True),
    "momentum": Real(0.0, 1.0),
    "decay": LogReal(1e-5, 1.0, shape=(3,)),
}
HPARAMS = {
    "free": jnp.geomspace(0.01, 0.5, 5),
    "knots": jnp.linspace(0.1, 0.9, 14).reshape(7, 2),
    "falling": jnp.geomspace(0.5, 0.01, 6),
    "momentum": jnp.asarray(0.9),
    "decay": jnp.array([1e-4, 1e-2, 0.5]),
}


def test_moves_stay_within_the_space():
    moves = gaussian(
        {"free": 3.0, "knots": 5.0, "falling": 2.0, "momentum": 9.0, "decay": 1.0}, SPACE
    )
    move = jax.jit(jax.vmap(lambda key: moves.move(HPARAMS, moves.draw(key, HPARAMS))))
    moved = move(jax.random.split(KEY, 50))
    for i in range(50):
        spaces.check_value(SPACE, jax.tree.map(lambda x, i=i: x[i], moved))
    assert np.all(np.diff(moved["falling"]) <= 0)
    assert all(np.std(x, 0).min() > 0 for x in jax.tree.leaves(moved))


def test_a_slope_pulls_back_to_that_of_the_coordinates():
    sigma = {
        "free": 0.1,
        "knots": 0.2,
        "falling": 0.3,
        "momentum": 0.4,
        "decay": np.array([1, 2, 3.0]),
    }
    with jax.enable_x64(True):
        moves = gaussian(sigma, SPACE)
        hparams = jax.tree.map(lambda x: x.astype(jnp.float64), HPARAMS)

        @jax.jit
        def there_and_back(hparams):
            unit = moves.draw(KEY, hparams)
            slope = moves.slope(hparams, unit, jnp.asarray(0.7))
            z = spaces.unconstrain(SPACE, hparams)
            pulled = jax.vjp(lambda z: spaces.constrain(SPACE, z), z)[1](slope)[0]
            derivative = jax.jacfwd(lambda k: spaces.constrain(SPACE, z | {"knots": k})["knots"])
            return unit, slope, pulled, derivative(z["knots"])

        unit, slope, pulled, derivative = there_and_back(hparams)
        assert jax.tree.map(jnp.shape, slope) == jax.tree.map(jnp.shape, hparams)
        expected = jax.tree.map(lambda u, s: 0.7 * u / (2 * s), unit, sigma)
        assert_close(pulled, expected, 1e-3)
        # the shortest such slope lies in the range of the derivative
        derivative, target = np.reshape(derivative, (14, 6)), np.ravel(slope["knots"])
        inside = derivative @ np.linalg.lstsq(derivative, target)[0]
        assert np.allclose(inside, target, atol=1e-10 * np.abs(target).max())


def test_a_value_at_a_bound_gets_zero_and_advice_says_so():
    space = {"point": Real(-1.0, 1.0, shape=(3,))}
    hparams = {"point": jnp.array([-1.0, 1.0, 1.0])}
    estimator = es(QUADRATIC.problem, 2, space=space, num_pairs=2)
    found = jax.jit(estimator.estimate)(KEY, (), hparams)[1]
    assert np.all(found.hypergrad["point"] == 0.0)
    assert any("moving hparams['point'] changed nothing" in line for line in advice(found))


def test_noise_is_independent_for_every_leaf():
    hparams = {"a": jnp.zeros(500), "b": jnp.zeros(500), "c": jnp.zeros(())}
    unit = gaussian(1.0).draw(KEY, hparams)
    assert abs(np.corrcoef(unit["a"], unit["b"])[0, 1]) < 0.2
    moved = gaussian({"a": 1e-3, "b": 10.0, "c": 1.0}).move(hparams, unit)
    assert 0.8e-3 < np.std(moved["a"]) < 1.2e-3 and 8 < np.std(moved["b"]) < 12


EXPLODING = Problem(
    init=lambda key, h: jnp.ones(()),
    loss=lambda p, h, b: p * jnp.where(h["rate"] > 0.5, jnp.inf, 1.0),
    objective=lambda p, h, b: p + h["rate"],
    optimizer=lambda h: optax.sgd(h["rate"]),
    train_batch=lambda key, step: (),
    valid_batch=lambda key: (),
)
"""A straight line, dead where the rate is above one half: w_T = 1 − T · rate."""


@pytest.mark.parametrize("factory", [es, lambda p, n, **w: nres(p, n, 1, **w)])
def test_pairs_that_are_not_finite_are_left_out_and_counted(factory):
    estimator = factory(EXPLODING, 3, sigma=0.3, num_pairs=32)
    state = jax.jit(estimator.init)(KEY, {"rate": jnp.float32(0.3)})
    found = jax.jit(estimator.estimate)(KEY, state, {"rate": jnp.float32(0.3)})[1]
    assert 4 <= found.info.num_nonfinite <= 28 and found.info.num_pairs == 32
    assert 0 <= found.info.first_nonfinite <= 2
    # every pair that lives sees the same slope, times u², within |u| < 0.2 / 0.3
    assert np.isfinite(found.value) and -2 * 0.45 < found.hypergrad["rate"] < 0
    lines = advice(found)
    assert any(f"{found.info.num_nonfinite} of 32 pairs were not finite" in line for line in lines)
    dead = jax.jit(estimator.estimate)(KEY, state, {"rate": jnp.float32(5.0)})[1]
    assert dead.info.num_nonfinite == 32 and np.isnan(dead.hypergrad["rate"])
    assert np.isnan(dead.value)


def test_a_dead_pair_comes_back_with_its_next_run():
    estimator = pes(EXPLODING, 3, 1, sigma=0.01, num_pairs=6)
    state = jax.jit(estimator.init)(KEY, {"rate": jnp.float32(0.1)})
    step, dead = jax.jit(estimator.estimate), []
    for rate in (0.9, 0.1, 0.1, 0.1):
        state, found = step(KEY, state, {"rate": jnp.float32(rate)})
        dead.append(int(found.info.num_nonfinite))
    assert dead == [6, 4, 2, 0]  # a third of the pairs ends its run at every window
    assert found.info.first_nonfinite == -1 and np.isfinite(found.hypergrad["rate"])


def test_noise_above_the_gradient_is_said():
    flat = QUADRATIC.problem._replace(
        objective=lambda w, h, b: 0.01 * jnp.sum(w) + jnp.sum(jnp.sin(1e4 * h["point"]))
    )
    found = jax.jit(es(flat, 2, sigma=1.0, num_pairs=8).estimate)(KEY, (), QUADRATIC.hparams)[1]
    assert any("mostly noise" in line for line in advice(found))


def test_it_composes_with_average():
    estimator = average(MAKERS["pes, final"](), 2)
    state = jax.eval_shape(estimator.init, KEY, QUADRATIC.hparams)
    _, found = jax.eval_shape(estimator.estimate, KEY, state, QUADRATIC.hparams)
    assert found.info.std_error["point"].shape == (3,)
    assert found.info.each.std_error["point"].shape == (2, 3)


@pytest.mark.slow
def test_descent_arrives_at_the_minimum():
    space = {"point": Real(-3.0, 3.0, shape=(3,))}
    estimator = nres(QUADRATIC.problem, HORIZON, WINDOW, space=space, num_pairs=4)
    tuner = descent(estimator, space, optimizer=optax.adam(0.1))
    state, values = tuner.init(KEY), []
    for key in jax.random.split(KEY, 60):
        state, outcome = tuner.step(key, state)
        values.append(np.asarray(outcome.values))
    zero = {"point": jnp.zeros(3)}
    value = functools.partial(objective_at, QUADRATIC.problem, num_steps=HORIZON)
    slope, bend = jax.jit(lambda h: (jax.grad(value)(h), jax.hessian(value)(h)))(zero)
    slope, bend = slope["point"], bend["point"]["point"]
    lowest = value(zero) - 0.5 * slope @ np.linalg.solve(bend, slope)
    assert np.all(np.mean(values[-10:], 0) - lowest < 0.2 * (values[0] - lowest))


def test_frozen_problems_repeat_the_run_of_a_key():
    noisy = quadratic_bilevel(batch_size=2)
    value = {
        name: jax.jit(reverse(problem, 3).estimate)
        for name, problem in (("free", noisy.problem), ("frozen", frozen(noisy.problem, KEY)))
    }
    want = value["free"](KEY, (), noisy.hparams)[1].value
    other = jax.random.key(77)
    assert value["frozen"](other, (), noisy.hparams)[1].value == want
    assert value["free"](other, (), noisy.hparams)[1].value != want


@pytest.mark.slow
def test_where_training_is_chaotic_reverse_explodes_and_says_so_and_pes_does_not():
    """The start of `benchmarks/chaotic.py`, shorter: the objective falls with the later rates there."""
    problem = chaotic.make_problem(width=8, num_train=50)
    space = {"lr": Sequence(chaotic.RATES, 40, knots=2)}
    hparams = spaces.default(space)
    found = jax.jit(reverse(problem, 40).estimate)(KEY, (), hparams)[1]
    (line,) = advice(found)
    assert found.info.growth > 1.3 and float(tree.norm(found.hypergrad)) > 1e6
    assert f"grows {found.info.growth:.3g}x a step and exploded" in line and "at step " in line
    assert found.info.first_nonfinite == -1 and np.isfinite(found.value)

    for factory, num in ((pes, 48), (nres, 16)):
        estimator = factory(problem, 40, 10, space=space, sigma=0.2, num_pairs=24)

        def estimate(key, estimator=estimator):
            found = estimator.estimate(key, estimator.init(key, hparams), hparams)[1]
            sizes = tree.norm(found.hypergrad), tree.norm(found.info.std_error)
            lr = found.hypergrad["lr"]
            return jnp.sum(lr), jnp.sum(lr[20:]), *sizes, found.info.num_nonfinite

        all_rise, rises, norms, errors, nonfinite = jax.jit(jax.vmap(estimate))(
            jax.random.split(KEY, num)
        )
        assert np.all(norms < 100) and np.all(errors < 100) and not np.any(nonfinite)
        # one estimate alone has any sign; the later rates have the least noise
        assert np.mean(all_rise) > 0 and np.mean(rises) > 2 * np.std(rises) / num**0.5


def test_the_growth_of_an_adjoint_that_overflows_is_that_before():
    bent = Problem(
        init=lambda key, h: jnp.ones(()),
        loss=lambda p, h, b: jnp.sin(p),
        objective=lambda p, h, b: jnp.sin(p) + h["offset"],
        optimizer=lambda h: optax.sgd(20.0 + h["offset"]),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    found = jax.jit(reverse(bent, 60).estimate)(KEY, (), {"offset": jnp.float32(0.0)})[1]
    assert not np.all(np.isfinite(found.info.sensitivity)) and np.isfinite(found.value)
    assert 2 < found.info.growth < 21
    (line,) = advice(found)
    assert "exploded (grew past 1e+06 fold) at step " in line


GOOD, H = QUADRATIC.problem, QUADRATIC.hparams
REFUSED = {
    "num_pairs is 0": lambda: es(GOOD, 3, sigma=0.1, num_pairs=0),
    "num_pairs is 1, expected a whole number of at least 2": lambda: pes(
        GOOD, 3, 1, sigma=0.1, num_pairs=1
    ),
    "num_pairs is 2.5": lambda: nres(GOOD, 3, 1, sigma=0.1, num_pairs=2.5),
    "sigma is 0, expected positive": lambda: es(GOOD, 3, sigma=0),
    "sigma is -0.1": lambda: pes(GOOD, 3, 1, sigma=-0.1),
    "sigma is nan": lambda: nres(GOOD, 3, 1, sigma=float("nan")),
    "sigma is True": lambda: es(GOOD, 3, sigma=True),
    "sigma is '0.1'": lambda: es(GOOD, 3, sigma="0.1"),
    "sigma is None, expected how far": lambda: es(GOOD, 3),
    "sigma['b'] is array([0.1, 0. ])": lambda: es(
        GOOD, 3, sigma={"a": 1.0, "b": np.array([0.1, 0.0])}
    ),
    "sigma has the leaves ['other']": lambda: es(GOOD, 3, sigma={"other": 0.1}).estimate(
        KEY, (), H
    ),
    "sigma['point'] has shape (2,)": lambda: es(GOOD, 3, sigma={"point": np.ones(2)}).estimate(
        KEY, (), H
    ),
    "window is 4, expected a divisor of horizon = 6; pass e.g. window=3": lambda: pes(
        GOOD, 6, 4, sigma=0.1
    ),
    "window is 9, expected a divisor of horizon = 6": lambda: nres(GOOD, 6, 9, sigma=0.1),
    "window is 0": lambda: nres(GOOD, 6, 0, sigma=0.1),
    "horizon is 0": lambda: es(GOOD, 0, sigma=0.1),
    "target is str 'final', expected a Target": lambda: pes(GOOD, 6, 3, sigma=0.1, target="final"),
    "hparams['point'] has dtype int32": lambda: es(GOOD, 3, sigma=0.1).estimate(
        KEY, (), {"point": jnp.arange(3, dtype=jnp.int32)}
    ),
    "hparams['point'] has dtype int32, expected floating": lambda: pes(GOOD, 4, 2, sigma=0.1).init(
        KEY, {"point": jnp.arange(3, dtype=jnp.int32)}
    ),
    "space['point'] is Integer": lambda: es(GOOD, 3, space={"point": spaces.Integer(0, 3)}),
    "space['point'] is Choice": lambda: nres(GOOD, 4, 2, space={"point": spaces.Choice((1, 2))}),
    "problem is 3": lambda: es(3, 3, sigma=0.1),
}


@pytest.mark.parametrize("fragment", list(REFUSED))
def test_bad_input_is_refused_in_one_line(fragment):
    with pytest.raises(ValueError) as caught:
        REFUSED[fragment]()
    message = str(caught.value)
    assert fragment in message
    assert "\n" not in message and len(message) < 500
