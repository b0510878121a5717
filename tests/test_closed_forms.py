"""Every estimator against hypergradients known in closed form, in float32 and, tightly, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.estimators import forward, mixed_mode, plain, reverse, truncated
from hypergrad.testing import assert_close, geometric, ridge

KEY = jax.random.key(2)
STEPS = 10
ESTIMATORS = {
    "reverse": reverse,
    "reverse_all_states": lambda p, n: reverse(p, n, backward=mixed_mode(())),
    "reverse_nested": lambda p, n: reverse(p, n, backward=mixed_mode((4, 2))),
    "reverse_plain": lambda p, n: reverse(p, n, backward=plain((3, 1))),
    "forward": forward,
    "forward_chunked": lambda p, n: forward(p, n, chunk=4),
}


def estimate(estimator, hparams):
    return jax.jit(estimator.estimate)(KEY, estimator.init(KEY, hparams), hparams)[1]


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("wide", [False, True])
def test_geometric_descent(name, wide):
    with jax.enable_x64(wide):
        solved = geometric(STEPS)
        got = estimate(ESTIMATORS[name](solved.problem, STEPS), solved.hparams)
        assert got.value.dtype == (jnp.float64 if wide else jnp.float32)
        scale = 1e-4 if wide else 1e-1  # 1.5e-12 and 3.5e-5
        assert_close(got.value, solved.value, scale)
        assert_close(got.info.direct, solved.direct, scale)
        assert_close(got.info.response, solved.response, scale)
        total = jax.tree.map(np.add, solved.direct, solved.response)
        assert_close(got.hypergrad, total, scale)


def test_a_window_keeps_its_terms_and_drops_the_others():
    solved = geometric(STEPS)
    got = estimate(truncated(solved.problem, STEPS, 4), solved.hparams)
    kept = np.where(np.arange(STEPS) >= STEPS - 4, solved.response["rates"], 0.0)
    assert_close(got.hypergrad["rates"], kept, 1e-1)
    assert np.all(got.hypergrad["rates"][: STEPS - 4] == 0.0)
    assert_close(got.hypergrad["scale"], solved.direct["scale"], 1e-1)
    assert got.info.horizon == 4


def test_a_window_of_the_whole_run_drops_only_what_came_through_init():
    solved = geometric(STEPS)
    got = estimate(truncated(solved.problem, STEPS, STEPS), solved.hparams)
    assert_close(got.info.response["rates"], solved.response["rates"], 1e-1)
    assert got.info.response["scale"] == 0.0
    fixed = ridge()
    whole = estimate(reverse(fixed.problem, STEPS), fixed.hparams)
    window = estimate(truncated(fixed.problem, STEPS, STEPS), fixed.hparams)
    assert_close(window.hypergrad, whole.hypergrad, 1e-2)


@pytest.mark.parametrize("name", ["reverse", "forward"])
def test_a_long_run_has_the_implicit_hypergradient(name):
    with jax.enable_x64(True):
        solved = ridge()
        near = estimate(ESTIMATORS[name](solved.problem, 200), solved.hparams)
        assert_close(near.value, solved.value, 1e-4)
        assert_close(near.info.direct, solved.direct, 1e-4)
        assert_close(near.info.response, solved.response, 1e-4)
        early = estimate(ESTIMATORS[name](solved.problem, 2), solved.hparams)
        error = abs(early.info.response["log_l2"] - solved.response["log_l2"])
        assert error > 1e-2 * abs(solved.response["log_l2"])


def test_the_sensitivity_is_the_norm_of_the_adjoint():
    """Here the adjoint is known: it shrinks by |1 − η_t a| a step, parabola by parabola."""
    solved = geometric(STEPS)
    got = estimate(reverse(solved.problem, STEPS), solved.hparams)
    curvature, centre = np.array([0.2, 0.7, 1.5]), np.array([0.3, 0.1, -0.4])
    rates = np.asarray(solved.hparams["rates"], np.float64)
    last = 1.3 * np.array([1.0, -2.0, 0.5]) * np.prod(1 - rates[:, None] * curvature, 0)
    adjoint, norms = last - centre, []
    first = np.linalg.norm(adjoint)
    for rate in rates[::-1]:
        adjoint = (1 - rate * curvature) * adjoint
        norms.append(np.linalg.norm(adjoint))
    assert_close(got.info.sensitivity, np.array(norms[::-1]), 1e-1)
    assert_close(got.info.growth, (norms[-1] / first) ** (1 / STEPS), 1e-1)


def test_assert_close_can_fail():
    with pytest.raises(AssertionError, match=r"\['a'\]: relative error"):
        assert_close({"a": jnp.float32(1.0)}, {"a": 1.01})
    with pytest.raises(AssertionError, match="shape"):
        assert_close(jnp.ones(2), np.ones(()))
    assert_close({"a": jnp.float32(1.0)}, {"a": 1.001})
    with jax.enable_x64(True), pytest.raises(AssertionError):
        assert_close(jnp.float64(1.0), 1.001)
