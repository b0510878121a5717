"""Stochastic bilevel methods: unbiased directions, the closed-form solution, and what may go wrong."""

import json
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad import study
from hypergrad.cli import main as cli
from hypergrad.estimators.advice import StructuralZeroWarning
from hypergrad.space import Choice, Real, constrain, unconstrain
from hypergrad.testing import assert_close, quadratic_bilevel
from hypergrad.train import averaged, init_state
from hypergrad.tuners import FiniteSum, amigo, bilevel, finite_sum, saba, soba
from hypergrad.tuners.bilevel_methods import (
    Inner,
    Loop,
    Point,
    Table,
    inner_terms,
    nearest_divisor,
    outer_terms,
)
from hypergrad.tuning.tune import tune
from tasks import ridge

KEY = jax.random.key(6)
ROOT = Path(__file__).parent.parent
SPACE = {"point": Real(-10.0, 10.0, default=0.0, shape=(3,))}
SMALL = quadratic_bilevel(4).problem
METHODS = {
    "soba": soba,
    "amigo": lambda: amigo(3, 4),
    "saba": lambda: saba(finite_sum(SMALL, 4)),
}


def matrices():
    """A, the mean coupling and shift, and the centre, from the problem's own functions."""
    problem = quadratic_bilevel().problem
    coupling, shift = problem.train_set.at(jnp.arange(16))
    zero, point = jnp.zeros(5), {"point": jnp.zeros(3)}
    a = jax.hessian(problem.loss)(zero, point, (coupling, shift))
    centre = -jax.grad(problem.objective)(zero, point, ())
    return (np.asarray(x, np.float64) for x in (a, coupling.mean(0), shift.mean(0), centre))


def solution():
    """Minimize ½ ‖A⁻¹(Bλ + b) − c‖² + 0.05 ‖λ‖²."""
    a, b, shift, centre = matrices()
    slope, rest = np.linalg.solve(a, b), np.linalg.solve(a, shift) - centre
    point = -np.linalg.solve(slope.T @ slope + 0.1 * np.eye(3), slope.T @ rest)
    value = 0.5 * np.sum((slope @ point + rest) ** 2) + 0.05 * point @ point
    return point, value


@pytest.mark.slow
def test_saba_converges_to_the_solution_on_minibatches():
    # the noise that its memory removes allows a third of the rate of full batches, 1/(3 λ_max)
    calm = SMALL._replace(optimizer=lambda h: optax.sgd(0.1))
    tuner = bilevel(calm, SPACE, 500, method=METHODS["saba"](), optimizer=optax.sgd(0.002))
    found = study.run(tuner, KEY, 6)
    point, value = solution()
    last = found.trials[-1]
    np.testing.assert_allclose(last.hparams["point"][0], point, atol=3e-5)
    np.testing.assert_allclose(last.values[0], value, rtol=1e-5)
    for name in ("gradient_norm", "residual", "hypergrad_norm"):
        assert last.info[name][0] < 1e-4, name
    noisy = bilevel(calm, SPACE, 500, method=soba(), optimizer=optax.sgd(0.002))
    stays = study.run(noisy, KEY, 6).trials[-1]
    assert stays.info["gradient_norm"][0] > 100 * last.info["gradient_norm"][0], "soba is noisy"
    assert np.linalg.norm(stays.hparams["point"][0] - point) < 1.0


def loop_of(problem):
    local = problem._replace(
        loss=lambda p, z, b: problem.loss(p, constrain(SPACE, z), b),
        objective=lambda p, z, b: problem.objective(p, constrain(SPACE, z), b),
    )
    return Loop(local, lambda z: problem.optimizer(z), optax.sgd(0.5))


def point_of(loop):
    z = unconstrain(SPACE, {"point": jnp.asarray([0.5, -1.0, 0.3])})
    train = init_state(loop.problem, KEY, z)._replace(params=jnp.linspace(-1.0, 1.0, 5))
    v = jnp.linspace(0.5, -0.2, 5)
    return Point(train, v, loop.linear(z).init(v), z, loop.outer.init(z), jnp.ones(()))


def moved(method, problem, num):
    """Where one iteration from a fixed point leads, over `num` draws of the minibatches: w, v, z."""
    loop = loop_of(problem)
    point = point_of(loop)
    memory = method.init(loop, point)
    if memory:  # tables that have seen other points
        random = np.random.default_rng(0)
        filled = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), memory)
        memory = method.refresh(filled)

    def one(key):
        draw, run = jax.random.split(key)
        start = point._replace(train=point.train._replace(key=draw))
        end, *_ = method.iterate(loop, run, start, memory)
        return end.train.params, end.v, end.z["point"]

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, num))


@pytest.mark.parametrize("name", METHODS)
def test_directions_are_unbiased(name):
    """All is linear in the examples, so the mean over draws is one iteration on the full batch."""
    num = 4000
    method = METHODS[name]()
    full = soba() if name == "saba" else method
    exact = moved(full, quadratic_bilevel().problem, 1)
    for got, want, variable in zip(moved(method, SMALL, num), exact, "wvz", strict=True):
        error = np.std(got, axis=0, ddof=1) / np.sqrt(num)
        gap = np.abs(np.mean(got, axis=0) - want[0])
        rounding = 1e-5 * np.abs(want[0]).max()
        assert np.all(gap <= 4 * error + rounding), variable
        if not (name == "soba" and variable == "v"):  # A is that of every example
            assert np.any(error > 1e-5), "the draws have no effect"


def test_a_biased_direction_would_be_seen():
    """Without its table's mean, SABA's correction leads elsewhere by many standard errors."""
    num, method = 4000, METHODS["saba"]()

    def forgetful(memory):
        return tuple(Table(t.rows, jax.tree.map(jnp.zeros_like, t.mean)) for t in memory)

    exact = moved(soba(), quadratic_bilevel().problem, 1)
    got = moved(method._replace(refresh=forgetful), SMALL, num)
    error = np.std(got[0], axis=0, ddof=1) / np.sqrt(num)
    assert np.any(np.abs(np.mean(got[0], axis=0) - exact[0][0]) > 4 * error)


@pytest.mark.slow
def test_terms_are_those_of_the_implicit_hypergradient():
    a, b, shift, centre = matrices()
    problem = quadratic_bilevel().problem
    loop = loop_of(problem)
    point = point_of(loop)
    data = problem.train_batch(KEY, 0)
    inner, loss, _ = inner_terms(loop.problem, point.train.params, point.v, point.z, data)
    outer, value = outer_terms(loop.problem, point.train.params, point.z, data, ())
    w, v, z = (np.asarray(x, np.float64) for x in (point.train.params, point.v, point.z["point"]))
    hparams = np.array([0.5, -1.0, 0.3])
    scale = 20 / (1 + np.exp(-z)) / (1 + np.exp(z))  # dλ/dz
    assert_close(inner.slope, a @ w - b @ hparams - shift, 0.1)
    assert_close(inner.product, a @ v, 0.1)
    assert_close(inner.cross["point"], -scale * (b.T @ v), 0.1)
    assert_close(outer.pull, w - centre, 0.1)
    assert_close(outer.direct["point"], scale * 0.1 * hparams, 0.1)
    assert_close(loss, 0.5 * w @ a @ w - (b @ hparams + shift) @ w, 0.1)
    assert_close(value, 0.5 * np.sum((w - centre) ** 2) + 0.05 * hparams @ hparams, 0.1)


@pytest.mark.slow
def test_averaged_weights_pull_as_the_weights_do():
    """At rest the average is the weights, so the objective's gradient reaches them whole."""
    problem = quadratic_bilevel().problem
    loop = loop_of(problem)
    point, data = point_of(loop), problem.train_batch(KEY, 0)
    expected = outer_terms(loop.problem, point.train.params, point.z, data, ())[0]
    slow = averaged(loop.problem, 0.9)
    params = slow.init(KEY, point.z)._replace(params=point.train.params)
    params = params._replace(state={"inner": None, "mean": point.train.params})
    got = outer_terms(slow, params, point.z, data, ())[0]
    assert_close(got, expected, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_same_key_same_bits_and_no_retrace(name):
    tuner = bilevel(SMALL, SPACE, 5, method=METHODS[name](), num_restarts=2)
    runs = [study.run(tuner, KEY, 3).trials for _ in range(2)]
    chex.assert_trees_all_equal(*runs)
    assert tuner.step.__wrapped__._cache_size() < 2  # 0 where jax did not keep it for its fast path
    state = tuner.init(KEY)
    after, trials = tuner.step(KEY, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert trials.values.shape == (2,) and trials.hparams["point"].shape == (2, 3)
    updates = 3 if name == "amigo" else 1
    assert trials.steps.tolist() == [5 * updates] * 2
    assert not np.allclose(trials.values[0], trials.values[1]), "restarts differ"


def test_the_loop_is_the_plain_one_without_jit():
    """One step of SOBA on the full batch, by numpy."""
    a, b, shift, centre = matrices()
    problem, rate, outer_rate = quadratic_bilevel().problem, 0.0, 0.01
    rate = 1 / np.linalg.eigvalsh(a)[-1]
    tuner = bilevel(problem, SPACE, 7, optimizer=optax.sgd(outer_rate))
    state = tuner.init(KEY)
    w, v, z = np.zeros(5), np.zeros(5), np.zeros(3)
    for _ in range(7):
        share = 1 / (1 + np.exp(-z))
        hparams, scale = -10 + 20 * share, 20 * share * (1 - share)
        d_w = a @ w - b @ hparams - shift
        d_v = a @ v - (w - centre)
        d_z = scale * (0.1 * hparams + b.T @ v)
        w, v, z = w - rate * d_w, v - rate * d_v, z - outer_rate * d_z
    state, trials = tuner.step(KEY, state)
    np.testing.assert_allclose(state.point.train.params[0], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.point.v[0], v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.point.z["point"][0], z, rtol=1e-4, atol=1e-5)
    hparams = -10 + 20 / (1 + np.exp(-z))
    np.testing.assert_allclose(trials.hparams["point"][0], hparams, rtol=1e-4, atol=1e-5)


def test_a_step_that_is_not_finite_is_recorded_and_never_best():
    """The weights diverge where the penalty is above 2 / rate, and the objective lures there."""

    def objective(w, h, batch):
        return jnp.sum(w**2) * 1e-3 + (h["penalty"] - 9.0) ** 2

    problem = hg.Problem(
        init=lambda key, h: jnp.ones(2),
        loss=lambda w, h, batch: 0.5 * h["penalty"] * jnp.sum((w - 1.5) ** 2),
        objective=objective,
        optimizer=lambda h: optax.sgd(0.4),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    space = {"penalty": Real(0.0, 10.0, default=2.0)}
    tuner = bilevel(problem, space, 400, optimizer=optax.sgd(2e-4))
    found = study.run(tuner, KEY, 8)
    skipped = np.array([o.info["skipped"][0] for o in found.trials])
    values = np.array([o.values[0] for o in found.trials])
    bad = np.array([o.info["first_nonfinite"][0] for o in found.trials])
    assert skipped.any() and not skipped.all()
    assert np.array_equal(np.isnan(values), skipped) and np.array_equal(bad >= 0, skipped)
    assert np.all(bad[skipped] < 401) and found.best_value == np.nanmin(values)
    assert all(np.isfinite(o.hparams["penalty"]).all() for o in found.trials)
    after = int(np.argmax(skipped)) + 1
    assert not skipped[after:].all(), "it goes on from where training is finite"


def polyak(h):
    return optax.polyak_sgd(max_learning_rate=1.0)


LINEAR = {"penalty": Real(0.01, 1.0)}
RIDGE = ridge.task(horizon=5).problem


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (
            lambda: bilevel(
                RIDGE._replace(optimizer=lambda h: optax.sgd(h["lr"])),
                {"penalty": Real(0.01, 1.0, shape=(8,)), "lr": Real(0.01, 1.0)},
                5,
            ),
            "hparams['lr'] acts on training through problem.optimizer or problem.init alone",
        ),
        (lambda: bilevel(SMALL, {"point": Choice((1, 2))}, 5), "space['point'] is Choice"),
        (lambda: bilevel(SMALL, SPACE, 0), "num_iterations is 0"),
        (lambda: bilevel(SMALL, SPACE, 5, num_restarts=0), "num_restarts is 0"),
        (lambda: bilevel(SMALL, SPACE, 5, method="soba"), "method is str"),
        (lambda: bilevel(SMALL, SPACE, 5, optimizer=0.1), "optimizer is float 0.1"),
        (lambda: bilevel(SMALL, SPACE, 5, linear=polyak), "linear fails on the linear system"),
        (lambda: bilevel(SMALL, SPACE, 5, start={"point": jnp.ones(2)}), "hparams['point']"),
        (lambda: saba(64), "sums is int"),
        (lambda: saba(FiniteSum(0, lambda i: (), 1, lambda i: ())), "num_train is 0"),
        (lambda: finite_sum(RIDGE, 8), "problem.train_set is None"),
        (
            lambda: finite_sum(SMALL, 5),
            "expected a divisor of the 16 training examples; pass e.g. 4",
        ),
        (lambda: amigo(0), "num_inner is 0"),
        (lambda: amigo(1, 0), "num_linear is 0"),
    ],
)
def test_bad_input(make, fragment):
    with pytest.raises(ValueError) as caught:
        make()
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def test_what_nothing_reads_is_warned_of():
    space = SPACE | {"idle": Real(0.0, 1.0)}
    with pytest.warns(StructuralZeroWarning, match=r"hparams\['idle'\]"):
        bilevel(SMALL, space, 5)


def test_what_the_optimizer_reads_beside_the_loss_is_warned_of():
    both = SMALL._replace(optimizer=lambda h: optax.sgd(0.01 * jnp.exp(h["point"][0])))
    with pytest.warns(StructuralZeroWarning, match=r"leaves out what hparams\['point'\] does"):
        bilevel(both, SPACE, 5, linear=lambda h: optax.sgd(0.01))


@pytest.mark.parametrize("make", [optax.adam, optax.lion, optax.rmsprop, optax.adamw])
def test_an_optimizer_that_rescales_gradients_is_warned_of_as_that_of_the_system(make):
    problem = SMALL._replace(optimizer=lambda h: make(0.1))
    with pytest.warns(
        UserWarning, match="^linear is None and problem.optimizer rescales"
    ) as caught:
        bilevel(problem, SPACE, 5)
    assert "\n" not in str(caught[0].message) and "optax.sgd(0.1)" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        bilevel(problem, SPACE, 5, linear=lambda h: optax.sgd(0.1))
        for fine in (
            optax.sgd(0.1, momentum=0.9, nesterov=True),
            optax.chain(
                optax.clip_by_global_norm(1.0), optax.sgd(optax.linear_schedule(0.0, 0.1, 9))
            ),
        ):
            bilevel(SMALL._replace(optimizer=lambda h, fine=fine: fine), SPACE, 5)


def test_minibatches_cover_the_set_once():
    sums = finite_sum(SMALL, 4)
    assert sums.num_train == 4 and sums.num_valid == 1
    whole = SMALL.train_set.at(jnp.arange(16))[1]
    parts = jnp.concatenate([sums.train(jnp.asarray(i))[1] for i in range(4)])
    assert sorted(map(tuple, np.asarray(parts))) == sorted(map(tuple, np.asarray(whole)))
    assert nearest_divisor(1000, 64) == 50 and nearest_divisor(7, 64) == 7
    assert Inner(1, 2, 3).cross == 3


@pytest.mark.slow
def test_the_command_line_tunes_resumes_and_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "s"
    words = ["tune", "ridge", "--horizon", "20", "--method", "bilevel", "--budget", "3"]
    words += ["--eval-seeds", "2", "--seeds", "1", "--learning-rate", "0.5", "--quiet"]
    assert cli.main([*words, "--out", str(out)]) == 0
    before = json.loads((out / "result.json").read_text())
    assert "stochastic bilevel optimization" in (out / "report.html").read_text()
    assert (out / "random" / "journal.jsonl").is_file(), "random search at equal cost"
    (out / "result.json").unlink()
    assert cli.main(["resume", str(out), "ridge", "--quiet"]) == 0
    after = json.loads((out / "result.json").read_text())
    differs = {name for name in before if before[name] != after[name]}
    assert differs <= {"sha256", "seconds", "clock", "steps_per_second"}, differs
    capsys.readouterr()
    assert cli.main(["replay", str(out), "1", "ridge"]) == 2
    assert "hypergrad.study.replay" in capsys.readouterr().err
    assert cli.main(["tune", "quadratic", "--method", "bilevel", "--out", str(tmp_path / "q")]) == 2
    assert "hparams['lr'] acts on training" in capsys.readouterr().err
    assert not (tmp_path / "q").exists(), "refused before anything is written"


def test_tune_takes_the_method_by_name():
    settings = {"method": "bilevel", "budget": 2, "eval_seeds": 2, "num_seeds": 1}
    found = tune(SMALL, SPACE, horizon=10, bilevel="saba", **settings)
    assert len(found.trials) == 2 and found.trials[0].steps.tolist() == [10]
    with pytest.raises(ValueError, match="did you mean 'soba'"):
        tune(SMALL, SPACE, horizon=10, bilevel="sobar", **settings)
