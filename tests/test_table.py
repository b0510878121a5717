"""The table: every estimator against closed forms in float64, biased ones against their own definition too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import solve as solvers
from hypergrad.adjoint import plain
from hypergrad.estimators import drift, forward, implicit, reverse, reversible, truncated
from hypergrad.response import best_response
from hypergrad.testing import quadratic_bilevel, ridge, ridge_many, weighted_least_squares

KEY = jax.random.key(2)
STEPS = 400
PROBLEMS = (ridge, ridge_many, weighted_least_squares, quadratic_bilevel)
UNROLLED = {
    "reverse": reverse,
    "reverse, plain": lambda p, n: reverse(p, n, backward=plain()),
    "forward": forward,
    "drift": drift,
    "reversible": reversible,
    "truncated, whole": lambda p, n: truncated(p, n, n),
}
SOLVED = {
    "cg": solvers.cg(),
    "normal_cg": solvers.normal_cg(),
    "gmres": solvers.gmres(),
    "bicgstab": solvers.bicgstab(),
    "direct": solvers.direct(),
    "fixed_point": solvers.fixed_point(),
    "neumann, 2000 terms": solvers.neumann(2000),
}
BIASED = {
    "neumann, 5 terms": (solvers.neumann(5, step_size=0.2), 5, 0.2),
    "identity": (solvers.identity(0.2), 1, 0.2),
}


def with_momentum(problem):
    """Train by what `drift` and `reversible` undo; the minimum is the same."""
    return problem._replace(optimizer=lambda h: optax.sgd(0.15, momentum=0.8))


def estimate(estimator, hparams):
    return jax.jit(estimator.estimate)(KEY, estimator.init(KEY, hparams), hparams)[1]


def error(got, expected):
    """Largest distance of a leaf, relative to the norm of the whole."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(expected)]
    scale = np.sqrt(sum(np.sum(x**2) for x in leaves))
    pairs = zip(jax.tree.leaves(got), leaves, strict=True)
    return max(float(np.linalg.norm(np.asarray(a) - b)) for a, b in pairs) / scale


@pytest.mark.parametrize("make", PROBLEMS)
def test_exact_estimators_meet_the_closed_form(make):
    with jax.enable_x64(True):
        tolerance = 10 * float(jnp.finfo(jnp.float64).eps) ** 0.5
        solved = make()
        expected = jax.tree.map(np.add, solved.direct, solved.response)
        problem, hparams = with_momentum(solved.problem), solved.hparams
        rows = {name: make(problem, STEPS) for name, make in UNROLLED.items()}
        rows |= {f"implicit, {n}": implicit(problem, STEPS, solve=s) for n, s in SOLVED.items()}
        found = {name: estimate(estimator, hparams) for name, estimator in rows.items()}
        errors = {name: error(got.hypergrad, expected) for name, got in found.items()}
        errors |= {f"{n}, value": abs(g.value / solved.value - 1) for n, g in found.items()}

        respond = best_response(problem, STEPS)

        def objective(h):
            return problem.objective(respond(h, KEY), h, problem.valid_batch(KEY))

        errors["best_response"] = error(jax.jit(jax.grad(objective))(hparams), expected)
        missed = {name: e for name, e in errors.items() if not e <= tolerance}
        assert not missed, missed


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("name", BIASED)
def test_biased_solves_are_the_series_that_they_say_and_report_it(make, name):
    """v = α Σ_{k < K} (I − αH)^k ∇_w f, with a dense Hessian at the minimum."""
    solve, num_terms, rate = BIASED[name]
    with jax.enable_x64(True):
        solved = make()
        problem, h = with_momentum(solved.problem), solved.hparams
        got = estimate(implicit(problem, STEPS, solve=solve), h)
        weights = best_response(problem, STEPS)(h, KEY)
        batch = problem.train_batch(KEY, jnp.zeros((), jnp.int32))
        matrix = np.asarray(jax.hessian(problem.loss)(weights, h, batch))
        slope = np.asarray(jax.grad(problem.objective)(weights, h, problem.valid_batch(KEY)))
        series = np.zeros_like(slope)
        term = rate * slope
        for _ in range(num_terms):
            series, term = series + term, term - rate * matrix @ term
        cross = jax.jacrev(jax.grad(problem.loss), argnums=1)(weights, h, batch)
        response = jax.tree.map(lambda c: -np.asarray(series) @ np.asarray(c), cross)
        expected = jax.tree.map(np.add, solved.direct, response)
        assert error(got.hypergrad, expected) <= 1e-6
        exact = jax.tree.map(np.add, solved.direct, solved.response)
        assert error(got.hypergrad, exact) > 1e-3, "this one is biased"
        residual = np.linalg.norm(slope - matrix @ series) / np.linalg.norm(slope)
        np.testing.assert_allclose(got.info.residual, residual, rtol=1e-5)
        assert residual > 1e-3 and not got.info.converged
