"""Flatness as an objective, a penalty and a constraint; SAM's radius by gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import curvature
from hypergrad.core.types import Variables
from hypergrad.curvature import bounded, judged_by, penalized, supremum
from hypergrad.estimators import forward, reverse
from hypergrad.populations import population, vectorized
from hypergrad.problem import Examples, Problem
from hypergrad.schedulers.base import best_first
from hypergrad.searchers import Trials
from hypergrad.searchers.base import observe
from hypergrad.space import Real
from hypergrad.train import init_state, split_key, unroll
from tests.networks import data, fast, network

KEY = jax.random.key(4)
MODEL = curvature.mlp(jnp.tanh)
HORIZON = 4


def sharpness_aware(dtype=jnp.float64):
    """A small network trained by SAM, whose radius, rate and decay are tuned."""
    x, y = data(24, 3, 2, dtype)
    loss = curvature.models.loss_of(MODEL)

    def optimizer(h):
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(h["radius"]))
        descent = optax.chain(optax.add_decayed_weights(h["decay"]), optax.sgd(h["rate"]))
        return optax.contrib.sam(descent, ascent, opaque_mode=True)

    def at(index):
        return x[index], y[index]

    return Problem(
        init=lambda key, h: network((3, 4, 2), dtype=dtype),
        loss=lambda p, h, b: loss(p, b),
        objective=lambda p, h, b: loss(p, b),
        optimizer=optimizer,
        train_batch=lambda key, step: at(jax.random.randint(key, (8,), 0, 16)),
        valid_batch=lambda key: (x[16:], y[16:]),
        train_set=Examples(16, at),
    )


def exact(loss, params, batch):
    return curvature.frobenius(MODEL, params, batch).value


def by_columns(loss, params, batch):
    return curvature.frobenius(loss, params, batch).value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "make"),
    [
        (exact, reverse),
        (exact, forward),
        (curvature.sam, reverse),
    ],
)
def test_hypergradients_of_flatness(measure, make):
    """Of radius, rate and decay through SAM and a curvature measure, against float64 differences."""
    with jax.enable_x64(True):
        problem = sharpness_aware()
        problem = penalized(problem, supremum(problem, measure, batch_size=8), 0.5)
        hparams = {n: jnp.asarray(v) for n, v in (("radius", 0.3), ("rate", 0.5), ("decay", 0.02))}
        if measure is not exact:
            problem = judged_by(problem, supremum(problem, measure, num_batches=1))

        @jax.jit
        def final(h):
            run_key, valid_key = split_key(KEY)
            state = unroll(problem, h, init_state(problem, run_key, h), HORIZON)
            return problem.objective(state.params, h, problem.valid_batch(valid_key))

        estimator = make(problem, HORIZON)
        estimate = jax.jit(estimator.estimate)(KEY, estimator.init(KEY, hparams), hparams)[1]
        for name in hparams:
            ahead, back = (final({**hparams, name: hparams[name] + s}) for s in (1e-5, -1e-5))
            slope = (ahead - back) / 2e-5
            assert abs(slope) > 1e-4, name
            assert abs(estimate.hypergrad[name] / slope - 1) < 1e-6, name


@pytest.mark.slow
def test_hypergradient_of_keskar():
    """Of a convex loss, whose maximum in the box is a corner: the move is exact, and so is its derivative."""
    bends = jnp.array([3.0, 1.0, 2.0])
    problem = Problem(
        init=lambda key, h: jnp.array([0.5, -1.0, 2.0]),
        loss=lambda w, h, b: 0.5 * jnp.sum((bends + h["decay"]) * w**2),
        objective=lambda w, h, b: jnp.sum((w - 0.1) ** 2),
        optimizer=lambda h: optax.sgd(h["rate"]),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    problem = judged_by(problem, supremum(problem, curvature.keskar, num_batches=1))
    hparams = {"rate": jnp.float32(0.1), "decay": jnp.float32(0.2)}

    def zeta(rate, decay):
        h = np.float64(bends) + decay
        w = np.array([0.5, -1.0, 2.0]) * (1 - rate * h) ** 2
        here, corner = (0.5 * h @ x**2 for x in (w, np.abs(w) + 1e-3 * (np.abs(w) + 1)))
        return (corner - here) / (1 + here)

    estimator = reverse(problem, 2)
    estimate = fast(estimator.estimate)(KEY, estimator.init(KEY, hparams), hparams)[1]
    at, step = (0.1, 0.2), 1e-5
    slopes = [
        (zeta(at[0] + step * a, at[1] + step * b) - zeta(at[0] - step * a, at[1] - step * b))
        / (2 * step)
        for a, b in ((1, 0), (0, 1))
    ]
    got = [float(estimate.hypergrad[name]) for name in ("rate", "decay")]
    np.testing.assert_allclose(got, slopes, rtol=1e-3)


def test_objectives_and_constraints_of_a_search():
    problem = sharpness_aware(jnp.float32)
    measure = supremum(problem, exact, batch_size=8)
    hparams = {
        "radius": jnp.linspace(0.0, 0.5, 12),
        "rate": jnp.geomspace(0.01, 2.0, 12),
        "decay": jnp.full(12, 0.01),
    }
    members = population(problem, layout=vectorized())
    states = members.init(jax.random.split(KEY, 12), hparams)
    states = members.advance(hparams, states, HORIZON)

    def judged(changed):
        return np.asarray(population(changed, layout=vectorized()).judge(hparams, states)[0])

    value, norm = judged(problem), judged(judged_by(problem, measure))
    np.testing.assert_allclose(
        judged(penalized(problem, measure, 0.1)), value + 0.1 * norm, rtol=1e-5
    )
    bound = float(np.median(norm))
    infeasible = judged(bounded(problem, measure, bound))
    np.testing.assert_array_equal(infeasible, np.where(norm <= bound, value, np.inf))
    # a searcher and a scheduler rank what is beyond the bound last
    assert set(best_first(jnp.asarray(infeasible))[:6].tolist()) == set(
        np.flatnonzero(norm <= bound)
    )
    told = Trials(hparams, jnp.asarray(infeasible), jnp.full(12, HORIZON), jnp.arange(12), {})
    space = {n: Real(0.0, 2.0) for n in hparams}
    scores = observe(space, told)[1]
    assert np.min(scores[norm > bound]) > np.max(scores[norm <= bound])


def test_carried_state_is_closed_over():
    problem = sharpness_aware(jnp.float32)
    carrying = problem._replace(
        init=lambda key, h: Variables(problem.init(key, h), jnp.float32(3.0)),
        loss=lambda p, h, b: (problem.loss(p.params, h, b) * p.state, p.state),
    )
    params = problem.init(KEY, {})
    got = supremum(carrying, by_columns, batch_size=8)(Variables(params, jnp.float32(3.0)), {})
    np.testing.assert_allclose(
        got, 3 * supremum(problem, exact, batch_size=8)(params, {}), rtol=1e-4
    )


@pytest.mark.parametrize("number", [np.float32(0.25), np.array(0.25), jnp.asarray(0.25)])
def test_numbers_of_any_library(number):
    problem = sharpness_aware(jnp.float32)
    for make in (penalized, bounded):
        assert make(problem, supremum(problem, exact), number).init is problem.init
    w = {"w": jnp.arange(4.0)}

    def loss(params, batch):
        return jnp.mean(jnp.square(batch @ params["w"]))

    batch = jnp.eye(4)
    assert curvature.sam(loss, w, batch, radius=number) == curvature.sam(
        loss, w, batch, radius=0.25
    )
    assert curvature.m_sharpness(loss, w, batch, size=np.int64(2)) > 0


REFUSED = {
    "weight is -1": lambda p, m: penalized(p, m, -1),
    "bound is nan": lambda p, m: bounded(p, m, float("nan")),
    "measure is None": lambda p, m: judged_by(p, None),
    "num_batches is 0": lambda p, m: supremum(p, exact, num_batches=0),
    "batch_size is 17 for a problem with 16 examples": lambda p, m: supremum(
        p, exact, batch_size=17
    ),
    "num_batches is 3, expected at most the 2 batches of 8 among 16 examples": lambda p, m: (
        supremum(p, exact, num_batches=3, batch_size=8)
    ),
    "weight is an array of shape (3,) and dtype float": (lambda p, m: penalized(p, m, jnp.ones(3))),
    "bound is True": lambda p, m: bounded(p, m, True),
    "curvature is None": lambda p, m: supremum(p, None),
    "curvature returned": lambda p, m: supremum(p, lambda loss, w, b: jnp.ones(2))(
        p.init(KEY, {}), {}
    ),
    "problem is": lambda p, m: supremum(None, exact),
    "measure returned": lambda p, m: judged_by(p, lambda w, h: jnp.ones(2)).objective(
        p.init(KEY, {}), {}, p.valid_batch(KEY)
    ),
}


@pytest.mark.parametrize("fragment", REFUSED)
def test_refused_in_one_line(fragment):
    problem = sharpness_aware(jnp.float32)
    with pytest.raises(ValueError) as caught:
        REFUSED[fragment](problem, supremum(problem, exact))
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
