"""The table: every estimator against closed forms in float64, biased ones against their own definition too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.core import solve as solvers
from hypergrad.estimators import (
    darts,
    drift,
    es,
    forward,
    hd,
    implicit,
    nres,
    one_step,
    pes,
    plain,
    reverse,
    reversible,
    rtho,
    truncated,
)
from hypergrad.estimators.implicit.response import best_response
from hypergrad.estimators.policies import factorized, mixed, sampled, score, score_shared
from hypergrad.problem import Problem
from hypergrad.space import Choice, Real
from hypergrad.testing import quadratic_bilevel, ridge, ridge_many, weighted_least_squares

KEY = jax.random.key(2)
STEPS, SHORT = 400, 25
RATE, MOMENTUM = 0.15, 0.8
PROBLEMS = (ridge, ridge_many, weighted_least_squares, quadratic_bilevel)
LONG = (ridge, ridge_many, weighted_least_squares)
"""Problems whose programs take seconds to compile."""
UNROLLED = {
    "reverse": reverse,
    "reverse, plain": lambda p, n: reverse(p, n, backward=plain()),
    "forward": forward,
    "drift": drift,
    "reversible": reversible,
    "truncated, whole": lambda p, n: truncated(p, n, n),
    "truncated, warm start": lambda p, n: truncated(p, n, n, warm_start=True),
    "rtho, from its start": rtho,
}
SOLVED = {
    "cg": solvers.cg(),
    "normal_cg": solvers.normal_cg(),
    "gmres": solvers.gmres(),
    "bicgstab": solvers.bicgstab(),
    "direct": solvers.direct(),
    "fixed_point": solvers.fixed_point(),
    "neumann, 2000 terms": solvers.neumann(2000),
    # of all rows nothing is left out, and what is left is the damping
    "nystrom, all rows": solvers.nystrom(8, damping=1e-8),
}
BIASED = {
    "neumann, 5 terms": (solvers.neumann(5, step_size=0.2), 5, 0.2),
    "identity": (solvers.identity(0.2), 1, 0.2),
}
NYSTROM = 0.05
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""The programs run once, and take far longer to compile than to run."""


def with_momentum(problem):
    """Train by what `drift` and `reversible` undo; the minimum is the same."""
    return problem._replace(optimizer=lambda h: optax.sgd(RATE, momentum=MOMENTUM))


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile(compiler_options=FAST)(*args)


def estimates(rows, hparams, key=KEY):
    """One estimate of each, made by one program."""
    return compiled(
        lambda h: {n: e.estimate(key, e.init(key, h), h)[1] for n, e in rows.items()}, hparams
    )


def error(got, expected):
    """Largest distance of a leaf, relative to the norm of the whole."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(expected)]
    scale = np.sqrt(sum(np.sum(x**2) for x in leaves))
    pairs = zip(jax.tree.leaves(got), leaves, strict=True)
    return max(float(np.linalg.norm(np.asarray(a) - b)) for a, b in pairs) / scale


def total(solved):
    return jax.tree.map(np.add, solved.direct, solved.response)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(m, marks=pytest.mark.slow if m in (*LONG, quadratic_bilevel) else ())
        for m in PROBLEMS
    ],
)
def test_at_rest_all_meet_the_closed_form(make):
    with jax.enable_x64(True):
        tolerance = 10 * float(jnp.finfo(jnp.float64).eps) ** 0.5
        solved = make()
        problem, hparams = with_momentum(solved.problem), solved.hparams
        rows = {"reverse": reverse(problem, STEPS)}
        solves = SOLVED if make in (ridge_many, quadratic_bilevel) else {"cg": SOLVED["cg"]}
        solves = solves | {name: solve for name, (solve, *_) in BIASED.items()}
        rows |= {f"implicit, {n}": implicit(problem, STEPS, solve=s) for n, s in solves.items()}
        found = estimates(rows, hparams)
        biased = {f"implicit, {name}" for name in BIASED}
        errors = {n: error(g.hypergrad, total(solved)) for n, g in found.items() if n not in biased}
        errors |= {f"{n}, value": abs(g.value / solved.value - 1) for n, g in found.items()}

        respond = best_response(problem, STEPS)

        def objective(h):
            return problem.objective(respond(h, KEY), h, problem.valid_batch(KEY))

        errors["best_response"] = error(compiled(jax.grad(objective), hparams), total(solved))
        missed = {name: e for name, e in errors.items() if not e <= tolerance}
        assert not missed, missed
        weights = compiled(respond, hparams, KEY)
        for name, (_, *series) in BIASED.items():
            check_series(solved, weights, found[f"implicit, {name}"], *series)


def check_series(solved, weights, got, num_terms, rate):
    """v = α Σ_{k < K} (I − αH)^k ∇_w f, with a dense Hessian at the minimum; and it is reported."""
    problem, h = solved.problem, solved.hparams
    batch = problem.train_batch(KEY, jnp.zeros((), jnp.int32))
    matrix = np.asarray(jax.hessian(problem.loss)(weights, h, batch))
    slope = np.asarray(jax.grad(problem.objective)(weights, h, problem.valid_batch(KEY)))
    series = np.zeros_like(slope)
    term = rate * slope
    for _ in range(num_terms):
        series, term = series + term, term - rate * matrix @ term
    cross = jax.jacrev(jax.grad(problem.loss), argnums=1)(weights, h, batch)
    response = jax.tree.map(lambda c: -np.asarray(series) @ np.asarray(c), cross)
    assert error(got.hypergrad, jax.tree.map(np.add, solved.direct, response)) <= 1e-6
    assert error(got.hypergrad, total(solved)) > 1e-3, "this one is biased"
    residual = np.linalg.norm(slope - matrix @ series) / np.linalg.norm(slope)
    np.testing.assert_allclose(got.info.residual, residual, rtol=1e-5)
    assert residual > 1e-3 and not got.info.converged


def descend(problem, h, num_steps):
    """SGD with momentum as one writes it down; return the weights before and after each step."""
    w = problem.init(KEY, h)
    trace, path = jnp.zeros_like(w), [w]
    for step in range(num_steps):
        batch = problem.train_batch(KEY, jnp.asarray(step, jnp.int32))
        trace = jax.grad(problem.loss)(w, h, batch) + MOMENTUM * trace
        w = w - RATE * trace
        path.append(w)
    return path, trace


@pytest.mark.slow
def test_before_rest_what_unrolls_is_plain_autodiff():
    """From a start away from the minimum, so that the first steps count."""
    with jax.enable_x64(True):
        solved = ridge_many()
        problem = with_momentum(solved.problem)._replace(init=lambda key, h: jnp.ones(4))

        def objective(h):
            return problem.objective(descend(problem, h, SHORT)[0][-1], h, problem.valid_batch(KEY))

        value, expected = compiled(jax.value_and_grad(objective), solved.hparams)
        rows = {name: make(problem, SHORT) for name, make in UNROLLED.items()}
        rows["but for five steps"] = truncated(problem, SHORT, SHORT - 5)
        found = estimates(rows, solved.hparams)
        errors = {name: error(got.hypergrad, expected) for name, got in found.items()}
        assert errors.pop("but for five steps") > 1e-3, "steps that are left out would be seen"
        errors |= {f"{n}, value": abs(g.value / value - 1) for n, g in found.items()}
        missed = {name: e for name, e in errors.items() if not e <= 1e-10}
        assert not missed, missed


def test_short_horizons_are_their_definitions():
    """One step back, one virtual step ahead, and the next training loss; damped rows of the Hessian."""
    with jax.enable_x64(True):
        solved = ridge()
        problem, h = with_momentum(solved.problem), solved.hparams
        (*_, before, last), trace = descend(problem, h, SHORT)
        old_trace = descend(problem, h, SHORT - 1)[1]
        batch, valid = problem.train_batch(KEY, jnp.zeros((), jnp.int32)), problem.valid_batch(KEY)
        slope = jax.grad(problem.loss)

        def back(h):
            end = before - RATE * (slope(before, h, batch) + MOMENTUM * old_trace)
            return problem.objective(end, h, valid)

        def ahead(h):
            return problem.objective(last - 0.3 * slope(last, h, batch), h, valid)

        matrix = np.asarray(jax.hessian(problem.loss)(last, h, batch))
        pull = np.asarray(jax.grad(problem.objective)(last, h, valid))
        # K holds all rows, so that C = M = A: v = (ρI + A)⁻¹ ∇_w f
        v = np.linalg.solve(matrix + NYSTROM * np.eye(4), pull)
        cross = np.asarray(jax.jacrev(slope, argnums=1)(last, h, batch)["log_l2"])
        direct = jax.grad(problem.objective, argnums=1)(last, h, valid)["log_l2"]
        expected = {
            "one_step": jax.grad(back)(h),
            "darts": jax.grad(ahead)(h),
            "nystrom": {"log_l2": direct - cross @ v},
        }
        damped = solvers.nystrom(8, damping=NYSTROM)
        rows = {
            "one_step": one_step(problem, SHORT),
            "darts": darts(problem, 0.3, SHORT),
            "nystrom": implicit(problem, SHORT, solve=damped),
        }
        found = estimates(rows, h)
        missed = {name: error(g.hypergrad, expected[name]) for name, g in found.items()}
        assert max(missed.values()) < 1e-8, missed

        def loss(w, h, batch):
            return solved.problem.loss(w, {"log_l2": -1.0}, batch)

        rated = problem._replace(
            loss=loss,
            objective=lambda w, h, b: solved.problem.objective(w, {"log_l2": -1.0}, b),
            optimizer=lambda h: optax.sgd(h["rate"], momentum=MOMENTUM),
        )
        got = estimates({"hd": hd(rated, SHORT)}, {"rate": jnp.asarray(RATE)})["hd"]
        expected = -jax.grad(loss)(last, h, batch) @ trace
        np.testing.assert_allclose(got.hypergrad["rate"], expected, rtol=1e-8)


def several(estimator, hparams, num):
    """Make independent estimates of the hypergradient, leading axis `[num]`."""

    def one(key):
        first, second = jax.random.split(key)
        return estimator.estimate(second, estimator.init(first, hparams), hparams)[1].hypergrad

    return compiled(jax.vmap(one), jax.random.split(KEY, num))


def off(each, expected):
    """How many standard errors the mean of the estimates is off, at most."""
    worst = 0.0
    for got, want in zip(jax.tree.leaves(each), jax.tree.leaves(expected), strict=True):
        spread = np.std(got, 0, ddof=1) / len(got) ** 0.5
        spread = np.maximum(spread, 1e-8 * np.linalg.norm(want))  # a leaf without noise
        worst = max(worst, float(np.max(np.abs(np.mean(got, 0) - want) / spread)))
    return worst


@pytest.mark.slow
def test_evolution_meets_the_closed_form_in_the_mean():
    """On a quadratic the smoothed gradient is the gradient, whatever σ."""
    with jax.enable_x64(True):
        solved = quadratic_bilevel()
        problem, settings = solved.problem, {"sigma": 0.5, "num_pairs": 8}
        rows = {
            "es": es(problem, 80, **settings),
            "pes": pes(problem, 80, 40, **settings),
            "nres": nres(problem, 80, 40, **settings),
        }
        wrong = jax.tree.map(lambda x: 1.5 * x, total(solved))
        for name, estimator in rows.items():
            each = several(estimator, solved.hparams, 300)
            assert off(each, total(solved)) < 4 < off(each, wrong), name


PULLS = np.random.default_rng(3).normal(size=(3, 2))
GAINS, TOWARDS = np.array([0.3, -0.2, 0.4]), np.array([1.0, -0.5])


def drawn_linear(num_steps):
    """Weights and objective linear in what is drawn: shared weights or their own, the objective is the same.

    L_a = ½ ‖w‖² − (c_a + λ 1)·w from w = 0,   f_a = d·w + g_a
    J(φ) = (1 − (1 − η)^T) d·(Σ_a p_a c_a + λ 1) + Σ_a p_a g_a,   p = softmax(φ)
    """

    def loss(w, h, batch):
        return 0.5 * w @ w - (jnp.asarray(PULLS)[h["op"]] + h["shift"]) @ w

    problem = Problem(
        init=lambda key, h: jnp.zeros(2),
        loss=loss,
        objective=lambda w, h, b: jnp.asarray(TOWARDS) @ w + jnp.asarray(GAINS)[h["op"]],
        optimizer=lambda h: optax.sgd(0.3),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    phi = {"op": np.array([0.4, -0.2, 0.1]), "shift": np.asarray(0.5)}
    share = 1 - (1 - 0.3) ** num_steps
    p = np.exp(phi["op"]) / np.exp(phi["op"]).sum()
    each = share * PULLS @ TOWARDS + GAINS
    slopes = {"op": p * (each - p @ each), "shift": share * TOWARDS.sum()}
    return problem, jax.tree.map(jnp.asarray, phi), slopes


@pytest.mark.slow
def test_policies_meet_the_closed_form_in_the_mean():
    space = {"op": Choice(("a", "b", "c")), "shift": Real(-1.0, 1.0)}
    with jax.enable_x64(True):
        problem, phi, slopes = drawn_linear(4)
        policy = factorized(space)
        rows = {
            "score": score(problem, 4, policy, num_samples=4),
            "score_shared": score_shared(problem, 4, policy, num_runs=4),
            "mixed": mixed(problem, 4, policy, draws=sampled(4)),
        }
        wrong = slopes | {"op": 1.5 * slopes["op"]}
        for name, estimator in rows.items():
            each = several(estimator, phi, 1000)
            assert off(each, slopes) < 4 < off(each, wrong), name
