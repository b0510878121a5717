"""What `hypergrad verify` compares: the estimators of integers and choices, each with its own objective."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.estimators.policies import factorized
from hypergrad.estimators.slopes import in_float64
from hypergrad.estimators.verify import drawn_once, trained_apart, verify
from hypergrad.problem import Task
from tests import tabular

PHI = {
    "op": jnp.asarray([0.5, -0.3, 0.1]),
    "num": jnp.asarray([0.2, -0.4]),
    "l2": jnp.asarray(-1.0),
}


def test_objectives_that_are_compared():
    """Against sums over the outcomes in plain numpy."""
    phi = {name: np.asarray(x, np.float64) for name, x in PHI.items()}
    p, l2, horizon = tabular.probabilities(phi), float(phi["l2"]), 3
    sure = np.eye(6)
    apart = sum(
        p[k] * tabular.judge(tabular.descend(sure[k], l2, horizon), sure[k], l2) for k in range(6)
    )
    once = sum(p[k] * tabular.judge(tabular.descend(sure[k], l2, 1), p, l2) for k in range(6))
    with jax.enable_x64(True):
        problem, policy = in_float64(tabular.problem()), factorized(tabular.SPACE)
        got = jax.jit(lambda phi: trained_apart(problem, policy, horizon, phi))(phi)
        np.testing.assert_allclose(got, apart, rtol=1e-12)
        got = jax.jit(lambda phi: drawn_once(problem, policy, phi))(phi)
        np.testing.assert_allclose(got, once, rtol=1e-12)


@pytest.mark.slow
def test_integers_and_choices_are_compared(monkeypatch):
    module = importlib.import_module("hypergrad.estimators.verify")
    for name in ("_deterministic", "_evolution"):
        monkeypatch.setattr(module, name, lambda *_: {})
    task = Task("table", tabular.problem(), tabular.SPACE, 2, None, "error", False)
    with jax.enable_x64(True):
        rows = {row.estimator: row for row in verify(task)}
    assert rows.keys() == module.DRAWN_ESTIMATORS.keys()
    assert rows["mixed"].exact and rows["mixed"].error < 1e-6
    for name in ("score", "score_shared, one step"):
        assert rows[name].deviation < 5 and rows[name].cosine > 0.7, rows[name]
    assert rows["mixed, 8 draws"].deviation is None and rows["mixed, 8 draws"].error < 2
    # this problem reads its choices as indices
    assert "problem.loss failed on the given hparams" in rows["relaxed"].refused


@pytest.mark.slow
def test_a_wrong_score_is_seen(monkeypatch):
    module = importlib.import_module("hypergrad.estimators.verify")

    def twice(*arguments):
        right = module_score(*arguments)

        def estimate(key, state, phi):
            state, found = right.estimate(key, state, phi)
            return state, found._replace(hypergrad=jax.tree.map(lambda g: 2 * g, found.hypergrad))

        return right._replace(estimate=estimate)

    module_score = module.score
    monkeypatch.setattr(module, "score", twice)
    for name in ("_deterministic", "_evolution"):
        monkeypatch.setattr(module, name, lambda *_: {})
    monkeypatch.setattr(module, "DRAWN_ESTIMATORS", {"score": False})
    drawn = module._drawn
    monkeypatch.setattr(module, "_drawn", lambda *a: {"score": drawn(*a)["score"]})
    task = Task("table", tabular.problem(), tabular.SPACE, 2, None, "error", False)
    with jax.enable_x64(True):
        (row,) = verify(task)
    assert row.deviation > 5
