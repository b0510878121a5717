"""Estimators that go on with training, each against its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.estimators import (
    average,
    central_difference,
    darts,
    forward,
    hd,
    one_step,
    reverse,
    rtho,
    truncated,
)
from hypergrad.estimators.advice import StructuralZeroWarning
from hypergrad.estimators.slopes import in_float64
from hypergrad.problem import Problem
from hypergrad.space import Real
from hypergrad.testing import assert_close, quadratic_bilevel, ridge as solved_ridge
from hypergrad.train import draw_batch, init_state, split_key, step, unroll
from hypergrad.tuners import descent
from tests.problems import only, ridge, schedules, value

KEY = jax.random.key(5)
RUN_KEY, VALID_KEY = split_key(KEY)
LOSS_HPARAMS = ("smoothing", "data_weight")


def wide(problem, hparams):
    return in_float64(problem), jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), hparams)


def first(estimator, hparams, key=KEY):
    return jax.jit(estimator.estimate)(key, estimator.init(key, hparams), hparams)


def several(estimator, key, path):
    """Estimate at one value of the hparams after another."""
    state, estimates = estimator.init(key, path[0]), []
    compiled = jax.jit(estimator.estimate)
    for hparams in path:
        state, estimate = compiled(key, state, hparams)
        estimates.append(estimate)
    return estimates


def test_one_step_is_the_gradient_through_one_step():
    with jax.enable_x64(True):
        problem, hparams = wide(*schedules())
        estimates = several(one_step(problem, 3), KEY, [hparams, hparams])
        late = jax.jit(lambda: unroll(problem, hparams, init_state(problem, RUN_KEY, hparams), 5))()

        def objective(h):
            end = step(problem, h, late)[0]
            return problem.objective(end.params, h, problem.valid_batch(VALID_KEY))

        expected_value, expected = jax.jit(jax.value_and_grad(objective))(hparams)
        got = estimates[-1]
        assert_close(got.value, expected_value, 1e-4)
        for name in hparams:
            if name != "scale":  # acts before the step: zero
                assert_close(got.hypergrad[name], expected[name], 1e-4)
        assert got.hypergrad["scale"] == 0.0
        assert [int(e.info.step) for e in estimates] == [3, 6]
        assert got.info.horizon == 1 and got.info.moved == 0.0


@pytest.mark.slow
def test_a_warm_start_takes_up_the_run_where_it_ended():
    """With one key, two estimates of 3 steps are the last window of one run of 6."""
    problem, hparams = schedules()
    warm = several(truncated(problem, 3, 2, warm_start=True), KEY, [hparams] * 2)
    cold = first(truncated(problem, 6, 2), hparams)[1]
    for got, want in zip(
        jax.tree.leaves(warm[1].hypergrad), jax.tree.leaves(cold.hypergrad), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)
    begun = first(truncated(problem, 3, 2), hparams)[1]
    np.testing.assert_allclose(warm[0].value, begun.value, rtol=1e-6)
    assert warm[1].value != begun.value


@pytest.mark.slow
def test_the_bias_of_a_window_is_what_its_growth_says():
    """At the minimum K terms miss (I − ηH)^K of the response: Wu's bias, known in closed form."""
    with jax.enable_x64(True):
        solved = solved_ridge()
        problem, hparams = solved.problem, solved.hparams
        state = init_state(problem, RUN_KEY, hparams)
        trained = unroll(problem, hparams, state, 400)
        train, valid = problem.train_batch(KEY, 0), problem.valid_batch(KEY)
        hessian = jax.hessian(problem.loss)(trained.params, hparams, train)
        pull = jax.grad(problem.objective)(trained.params, hparams, valid)
        adjoint = np.linalg.solve(hessian, pull)
        most = np.exp(hparams["log_l2"]) * np.linalg.norm(trained.params) * np.linalg.norm(adjoint)
        largest = np.linalg.eigvalsh(hessian)[-1]
        shrink = np.linalg.eigvals(np.eye(4) - hessian / largest).real.max()
        errors = []
        for window in (1, 4, 16, 64):
            got = several(truncated(problem, 400, window, warm_start=True), KEY, [hparams])[0]
            response = float(got.info.response["log_l2"])
            errors.append(abs(response - float(solved.response["log_l2"])))
            assert got.info.growth <= shrink + 1e-9
            assert errors[-1] <= 1.01 * shrink**window * most + 1e-14
        assert errors[0] > 0.1 * abs(float(solved.response["log_l2"])), "one step is biased"
        assert errors[0] > errors[1] > errors[2] >= errors[3]
        full = first(reverse(problem, 400), hparams)[1]
        assert_close(full.info.response, solved.response, 1e-4)


def plain_darts(problem, hparams, state, step_size):
    """Equation 6 of the paper, by nothing but `jax.grad`."""
    batch = draw_batch(problem, state)

    def objective(h):
        slope = jax.grad(problem.loss)(state.params, h, batch)
        virtual = jax.tree.map(lambda w, g: w - step_size * g, state.params, slope)
        return problem.objective(virtual, h, problem.valid_batch(VALID_KEY))

    return jax.value_and_grad(objective)(hparams)


def test_darts_is_its_definition():
    with jax.enable_x64(True):
        problem, hparams = only(*wide(*schedules()), LOSS_HPARAMS)
        state = unroll(problem, hparams, init_state(problem, RUN_KEY, hparams), 3)
        expected_value, expected = plain_darts(problem, hparams, state, 0.2)
        got = first(darts(problem, 0.2, 3), hparams)[1]
        assert_close(got.value, expected_value, 1e-4)
        assert_close(got.hypergrad, expected, 1e-4)
        assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.any(x != 0)), expected))
        coarse = central_difference(1e-4)
        near = first(darts(problem, 0.2, 3, product=coarse), hparams)[1]
        assert_close(near.hypergrad, expected, 10.0)  # 1.5e-7: O(ε²)
        none = first(darts(problem, 0.0, 3), hparams)[1]
        assert_close(none.hypergrad, none.info.direct, 1e-4)
        assert jnp.abs(got.info.growth - near.info.growth) < 1e-5


@pytest.mark.slow
def test_rtho_is_forward_mode_while_the_hparams_stand_still():
    with jax.enable_x64(True):
        problem, hparams = only(*wide(*schedules()), ("lr", "momentum", "scale", "smoothing"))
        last = several(rtho(problem, 2), KEY, [hparams] * 3)[-1]
        expected = first(forward(problem, 6), hparams)[1]
        assert_close(last.hypergrad, expected.hypergrad, 1e-4)
        assert_close(last.info.response, expected.info.response, 1e-4)
        assert last.info.horizon == last.info.step == 6 and last.info.moved == 0.0
        scale = last.hypergrad["scale"]
        assert scale != 0.0, "what acts through init is carried along"


@pytest.mark.slow
def test_rtho_differentiates_a_common_shift_of_moving_hparams():
    """Z is the derivative along a shift of every λ_t at once, by definition."""
    with jax.enable_x64(True):
        problem, hparams = only(*wide(*schedules()), ("momentum", "smoothing"))
        path = [jax.tree.map(lambda x, f=f: f * x, hparams) for f in (1.0, 0.9, 1.1)]
        last = several(rtho(problem, 2), KEY, path)[-1]

        def objective(shift):
            moved = [jax.tree.map(jnp.add, h, shift) for h in path]
            state = init_state(problem, RUN_KEY, moved[0])
            for h in moved:
                state = unroll(problem, h, state, 2)
            return problem.objective(state.params, moved[-1], problem.valid_batch(VALID_KEY))

        expected = jax.jit(jax.jacfwd(objective))(jax.tree.map(jnp.zeros_like, hparams))
        assert_close(last.hypergrad, expected, 1e-4)
        assert 0 < last.info.moved < 1


def quadratic(optimizer):
    matrix = np.diag([0.5, 1.0, 2.0]) + 0.1
    a = jnp.asarray(matrix)
    problem = Problem(
        init=lambda key, h: jnp.asarray([1.0, -2.0, 0.5]),
        loss=lambda w, h, batch: 0.5 * w @ a @ w,
        objective=lambda w, h, batch: 0.5 * jnp.sum((w - 0.1) ** 2),
        optimizer=optimizer,
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    return problem, matrix


def test_hd_for_sgd_is_minus_the_product_of_two_gradients():
    """SGD-HD, Algorithm 4, by numpy: α_t = α_{t−1} + β g_t · g_{t−1}."""
    with jax.enable_x64(True):
        problem, a = quadratic(lambda h: optax.sgd(h["lr"]))
        estimator, rate = hd(problem), 0.02
        hparams = {"lr": jnp.asarray(0.01)}
        state, compiled = estimator.init(KEY, hparams), jax.jit(estimator.estimate)
        w, lr = np.array([1.0, -2.0, 0.5]), 0.01
        for _ in range(12):
            state, got = compiled(KEY, state, hparams)
            before = a @ w
            w = w - lr * before
            np.testing.assert_allclose(got.hypergrad["lr"], -(a @ w) @ before, rtol=1e-12)
            np.testing.assert_allclose(got.value, 0.5 * np.sum((w - 0.1) ** 2), rtol=1e-12)
            lr = lr + rate * (a @ w) @ before
            hparams = {"lr": hparams["lr"] - rate * got.hypergrad["lr"]}
        np.testing.assert_allclose(hparams["lr"], lr, rtol=1e-12)
        assert lr > 0.1, "a rate that is too low rises"


def test_hd_for_adam_has_its_closed_form():
    """Adam-HD, Algorithm 6: −g_t · m̂ / (√v̂ + ε)."""
    with jax.enable_x64(True):
        problem, a = quadratic(lambda h: optax.adam(h["lr"], b1=h["b1"]))
        estimator = hd(problem, 2)
        hparams = {"lr": jnp.asarray(0.05), "b1": jnp.asarray(0.9)}
        w, m, v = np.array([1.0, -2.0, 0.5]), np.zeros(3), np.zeros(3)
        for t in (1, 2):
            g = a @ w
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            w = w - 0.05 * direction
        got = first(estimator, hparams)[1]
        np.testing.assert_allclose(got.hypergrad["lr"], -(a @ w) @ direction, rtol=1e-10)
        assert got.hypergrad["b1"] != 0.0 and got.info.horizon == 1 and got.info.step == 2


@pytest.mark.slow
def test_hd_on_minibatches_is_the_derivative_of_the_next_loss():
    with jax.enable_x64(True):
        problem, hparams = wide(*schedules())
        problem, hparams = only(problem, hparams, ("lr", "momentum", "decay"))
        got = first(hd(problem, 3), hparams)[1]
        last = unroll(problem, hparams, init_state(problem, RUN_KEY, hparams), 2)

        def next_loss(h):
            after = step(problem, h, last)[0]
            return problem.loss(after.params, hparams, draw_batch(problem, after))

        assert_close(got.hypergrad, jax.grad(next_loss)(hparams), 1e-4)


@pytest.mark.parametrize(
    ("make", "names", "fragment"),
    [
        (
            lambda p: darts(p, 0.1),
            ("lr",),
            "hparams['lr'] acts on training through problem.optimizer",
        ),
        (lambda p: darts(p, 0.1), ("scale",), "hparams['scale'] acts on training"),
        (hd, ("smoothing",), "hparams['smoothing'] is read by problem.loss"),
        (hd, ("scale",), "hparams['scale'] does not reach the optimizer's update"),
    ],
)
def test_what_cannot_be_served_is_named(make, names, fragment):
    problem, hparams = only(*schedules(), names)

    def estimate():
        estimator = make(problem)
        jax.eval_shape(estimator.estimate, KEY, estimator.init(KEY, hparams), hparams)

    with pytest.raises(ValueError) as caught:
        estimate()
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def test_darts_names_what_the_optimizer_reads_beside_the_loss():
    problem, hparams = ridge()
    both = problem._replace(optimizer=lambda h: optax.sgd(jnp.exp(h["l2"])))
    estimator = darts(both, 0.1)
    line = r"one-step hypergradient of the loss leaves out what hparams\['l2'\] does"
    with pytest.warns(StructuralZeroWarning, match=line):
        jax.eval_shape(estimator.estimate, KEY, estimator.init(KEY, hparams), hparams)


def test_one_step_names_what_acts_before_it():
    problem, hparams = schedules()
    estimator = one_step(problem)
    with pytest.warns(StructuralZeroWarning, match=r"hparams\['scale'\].*the initial weights"):
        jax.eval_shape(estimator.estimate, KEY, estimator.init(KEY, hparams), hparams)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda p: one_step(p, 0), "interval is 0"),
        (lambda p: rtho(p, 2, restart_every=0), "restart_every is 0"),
        (lambda p: truncated(p, 3, 2, restart_every=6), "without warm_start"),
        (lambda p: darts(p, -1.0), "step_size is -1.0"),
        (lambda p: darts(p, float("nan")), "step_size is nan"),
        (lambda p: central_difference(0), "scale is 0"),
        (lambda p: hd(p, 2.5), "interval is 2.5"),
        (lambda p: hd(None), "problem is None"),
    ],
)
def test_bad_settings(make, fragment):
    with pytest.raises(ValueError) as caught:
        make(ridge()[0])
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [one_step, rtho])
def test_a_run_ends_and_another_begins(make):
    problem, hparams = only(*schedules(), ("momentum", "smoothing"))
    moved = jax.tree.map(lambda x: 0.9 * x, hparams)
    estimates = several(make(problem, 2, restart_every=4), KEY, [hparams, moved, hparams, moved])
    assert [int(e.info.step) for e in estimates] == [2, 4, 2, 4]
    assert [bool(e.info.moved > 0) for e in estimates] == [False, True, False, True]
    np.testing.assert_allclose(estimates[2].value, estimates[0].value, rtol=1e-6)
    for a, b in zip(*(jax.tree.leaves(estimates[i].hypergrad) for i in (0, 2)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("make", [one_step, rtho])
def test_a_run_that_is_not_finite_says_when_and_starts_anew(make):
    def loss(w, h, batch):
        return 0.5 * jnp.sum((1 + h["penalty"]) * w**2)

    rate = float(jnp.finfo(jnp.result_type(float)).max) ** 0.4
    problem, _ = quadratic(lambda h: optax.sgd(rate))
    problem = problem._replace(loss=loss)
    wild = {"penalty": value(1.0)}
    estimates = several(make(problem, 2), KEY, [wild] * 4)
    steps = [int(e.info.step) for e in estimates]
    bad = [int(e.info.first_nonfinite) for e in estimates]
    assert bad[0] == -1 or bad[0] == 2
    seen = [i for i, b in enumerate(bad) if b >= 0]
    assert seen, "the run overflows"
    assert steps[seen[0]] == 2 * (seen[0] + 1) and bad[seen[0]] <= steps[seen[0]]
    if seen[0] + 1 < len(steps):
        assert steps[seen[0] + 1] == 2


@pytest.mark.parametrize("make", [one_step, rtho])
def test_descent_and_average_take_them(make):
    problem, calls = solved_ridge().problem, []

    def loss(*given):
        calls.append(1)
        return problem.loss(*given)

    inner = make(problem._replace(loss=loss), 2)
    space = {"log_l2": Real(-3.0, 1.0)}
    tuner = descent(average(inner, 2), space, optimizer=optax.adam(0.1), num_restarts=2)
    state, _ = tuner.step(KEY, tuner.init(KEY))
    traced = len(calls)
    _, outcome = tuner.step(KEY, state)
    assert np.all(np.isfinite(outcome.values)) and len(calls) == traced
    assert np.all(outcome.info["hypergrad_norm"] > 0)


def test_one_step_follows_the_implicit_hypergradient_of_a_quadratic():
    """Its response is η times the first term of the Neumann series, so it points downhill here."""
    solved = quadratic_bilevel()
    got = several(one_step(solved.problem, 200), KEY, [solved.hparams])[0].info.response["point"]
    want = solved.response["point"]
    cosine = got @ want / (np.linalg.norm(got) * np.linalg.norm(want))
    assert cosine > 0.5
