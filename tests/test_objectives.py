"""Several objectives and constraints: fronts and volumes against brute force, and searches that use them."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import study, tuners
from hypergrad.populations import population, vectorized
from hypergrad.problem import Problem
from hypergrad.schedulers import (
    chebyshev,
    constrained,
    full,
    hypervolume,
    pareto_front,
    pareto_ranks,
    scalarized,
)
from hypergrad.searchers import Trials, bayes, cross_entropy, evolution, random
from hypergrad.searchers.base import observe
from hypergrad.searchers.models import targets
from hypergrad.space import Real

KEY = jax.random.key(0)
SPACE = {"a": Real(0.0, 1.0), "b": Real(0.0, 1.0)}


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(
        x < y for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("num_objectives", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_front_and_ranks_against_brute_force(seed, num_objectives):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 5, (25, num_objectives)).astype(np.float32)  # with ties
    points[3] = np.nan
    points[4, 0], points[5, 0] = np.inf, -np.inf
    left, ranks = [i for i in range(25) if i != 3], np.full(25, 25)
    level = 0
    while left:
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        ranks[front], level = level, level + 1
        left = [i for i in left if i not in front]
    np.testing.assert_array_equal(pareto_ranks(points), ranks)
    np.testing.assert_array_equal(pareto_front(points), ranks == 0)
    np.testing.assert_array_equal(jax.jit(pareto_ranks)(points), ranks)


def volume_of_cells(points, corner):
    """The union of boxes, counted on the grid of all coordinates."""
    axes = [np.unique(np.append(points[:, k], c)) for k, c in enumerate(corner)]
    axes = [a[a <= c] for a, c in zip(axes, corner, strict=True)]
    total = 0.0
    for cell in itertools.product(*(range(len(a) - 1) for a in axes)):
        low = np.array([a[i] for a, i in zip(axes, cell, strict=True)])
        high = np.array([a[i + 1] for a, i in zip(axes, cell, strict=True)])
        if np.any(np.all(points <= low, axis=1)):
            total += np.prod(high - low)
    return total


@pytest.mark.parametrize("num_objectives", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_against_cells(seed, num_objectives):
    rng = np.random.default_rng(seed)
    points = rng.random((9, num_objectives))
    points[1], points[2, 0] = points[0], points[0, 0]  # ties
    points[3, 0] = 1.5  # beyond the reference
    corner = np.full(num_objectives, 1.0)
    expected = volume_of_cells(points, corner)
    assert hypervolume(points, corner) == pytest.approx(expected, rel=1e-12)
    with_nan = np.concatenate([points, np.full((1, num_objectives), np.nan)])
    assert hypervolume(with_nan, corner) == pytest.approx(expected, rel=1e-12)
    front = points[np.asarray(pareto_front(points))]
    assert hypervolume(front, corner) == pytest.approx(expected, rel=1e-12)


def test_hypervolume_of_known_shapes():
    assert hypervolume([[0.0, 0.0]], [2.0, 3.0]) == 6.0
    assert hypervolume([[0.0, 0.5], [0.5, 0.0]], [1.0, 1.0]) == 0.75
    corners = 1 - np.eye(3)  # three slabs that share one edge each
    assert hypervolume(np.eye(3), [2.0, 2.0, 2.0]) == pytest.approx(
        volume_of_cells(np.eye(3), np.full(3, 2.0))
    )
    assert hypervolume(corners, [1.0, 1.0, 1.0]) == 0.0
    assert hypervolume(np.zeros((0, 2)), [1.0, 1.0]) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto_front(np.zeros(3)), r"objectives has shape \(3,\), expected \[N, K\]"),
        (
            lambda: hypervolume(np.zeros((3, 4)), np.ones(4)),
            "objectives has 4 columns, expected two",
        ),
        (lambda: hypervolume(np.zeros((3, 2)), [1.0]), "reference is .*expected 2 finite numbers"),
        (lambda: hypervolume(np.full((1, 2), -np.inf), [1.0, 1.0]), "holds minus infinity"),
        (lambda: chebyshev((1.0, 0.0), (0.0, 0.0)), "weights is .*expected a positive number"),
        (lambda: chebyshev((1.0, 1.0), (0.0,)), "ideal is .*expected 2 finite numbers"),
        (lambda: chebyshev((1.0,), (0.0,), slope=-1), "slope is -1"),
        (lambda: chebyshev((1.0,), (0.0,))(np.zeros((2, 2))), r"expected \[N, 1\]"),
        (lambda: scalarized(full(3), None, chebyshev((1.0,), (0.0,))), "objectives is None"),
        (lambda: constrained(full(3), 3), "violation is 3, expected a function"),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_chebyshev_reaches_every_point_of_a_front_that_is_not_convex():
    x = np.linspace(0, 1, 201)
    front = np.stack([x, np.sqrt(1 - x**2)], -1)  # no weighted sum has its minimum inside
    for weight in (0.2, 0.5, 0.8):
        best = front[np.argmin(chebyshev((weight, 1 - weight), (0.0, 0.0), slope=1e-3)(front))]
        assert weight * best[0] == pytest.approx((1 - weight) * best[1], abs=0.01)
        assert np.argmin(front @ [weight, 1 - weight]) in (0, 200)


# ---- searches


def bowl(w, h, batch):
    """Lowest at (0.8, 0.8)."""
    value = (h["a"] - 0.8) ** 2 + (h["b"] - 0.8) ** 2
    return jnp.where(h["b"] < 0.05, jnp.nan, value)


BOWL = Problem(
    init=lambda key, h: jnp.zeros(()),
    loss=lambda w, h, b: w**2,
    objective=bowl,
    optimizer=lambda h: optax.sgd(0.1),
    train_batch=lambda key, step: (),
    valid_batch=lambda key: (),
)
MEMBERS = population(BOWL, layout=vectorized())


def size(outcome):
    return outcome.hparams["a"] + outcome.hparams["b"] - 1


@pytest.mark.parametrize(
    ("make", "num", "count", "tolerance"),
    [
        (partial(cross_entropy, rho=0.25), 32, 8, 0.02),
        (partial(evolution, num_members=16), 16, 12, 0.02),
        pytest.param(
            partial(bayes, capacity=48, num_initial=8), 4, 12, 0.12, marks=pytest.mark.slow
        ),
    ],
)
def test_searches_keep_to_a_constraint(make, num, count, tolerance):
    """The best with a + b <= 1 is (0.5, 0.5), 0.18; without the constraint it is 0."""
    tuner = tuners.search(MEMBERS, make(SPACE), constrained(full(1), size), num)
    found = study.run(tuner, KEY, count)
    assert found.best["a"] + found.best["b"] <= 1 + 1e-6
    assert 0.18 - 1e-6 <= found.best_value < 0.18 + tolerance
    last = found.trials[-1]
    broken = last.info["violation"] > 0
    np.testing.assert_array_equal(np.isinf(last.values), broken)
    whole = ~np.isnan(last.info["objective"])
    np.testing.assert_array_equal(np.isnan(last.info["violation"]), ~whole)
    expected = np.maximum(size(last), 0)[whole]
    np.testing.assert_allclose(last.info["violation"][whole], expected, atol=1e-6)
    np.testing.assert_allclose(
        last.info["objective"][whole & ~broken], last.values[whole & ~broken]
    )


def told(values, violation):
    values = np.asarray(values, np.float32)
    hparams = {name: np.linspace(0, 1, len(values)) for name in SPACE}
    steps = np.full(len(values), 3, np.int32)
    info = {"violation": np.asarray(violation, np.float32)}
    return Trials(hparams, values, steps, np.arange(len(values)), info)


see = jax.jit(partial(observe, SPACE))


def test_trials_that_break_a_constraint_rank_by_how_much():
    values = [np.inf, 5.0, np.inf, np.nan, np.inf, -3.0]
    violation = [2.0, 0.0, 0.5, np.nan, np.inf, 0.0]
    scores = np.asarray(see(told(values, violation))[1])
    assert np.argsort(scores, kind="stable").tolist() == [5, 1, 2, 0, 4, 3]
    assert np.isinf(scores[3]) and np.isfinite(scores[4])
    other = np.asarray(see(told([np.inf, np.inf], [1e-3, 1.0]))[1])
    assert other.min() > 1e29, "worse than any other of any generation"
    filled = np.ones(6, bool)
    for transform in map(jax.jit, (targets.standardize, targets.power)):
        shown = np.asarray(transform(jnp.asarray(scores), filled))
        assert np.isfinite(shown).all() and np.ptp(shown) < 10
        assert shown[5] < shown[1] and shown[0] == shown[1] == shown[3], "the worst of the others"
        alone = np.asarray(transform(jnp.asarray(other), np.ones(2, bool)))
        assert alone[0] < alone[1], "the least violation where all break it"


def test_without_violations_nothing_changes():
    values = [1.0, np.nan, -2.0, np.inf]
    plain = told(values, np.zeros(4))
    np.testing.assert_array_equal(see(plain)[1], see(plain._replace(info={}))[1])


@pytest.mark.slow
def test_a_search_over_several_objectives():
    """Value and distance from zero pull apart; the trials spread over their front."""

    def both(outcome):
        return jnp.stack([outcome.values, outcome.hparams["a"] + outcome.hparams["b"]], -1)

    scheduler = scalarized(full(1), both, chebyshev((1.0, 1.0), (0.0, 0.0)))
    tuner = tuners.search(MEMBERS, cross_entropy(SPACE, rho=0.25), scheduler, 32)
    found = study.run(tuner, KEY, 8)
    last = found.trials[-1]
    assert last.info["objectives"].shape == (32, 2)
    objectives = np.concatenate([o.info["objectives"] for o in found.trials])
    kept = objectives[np.asarray(pareto_front(objectives))]
    assert hypervolume(kept, [1.3, 2.0]) == pytest.approx(hypervolume(objectives, [1.3, 2.0]))
    a = float(found.best["a"] + found.best["b"])
    value = float(bowl(None, {n: jnp.asarray(x) for n, x in found.best.items()}, None))
    assert abs(a - value) < 0.1, "equal weights meet where both objectives are alike"
    assert found.best_value == pytest.approx(max(a, value) + 0.05 * (a + value), rel=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (constrained(full(1), lambda o: jnp.zeros(3)), r"violation returned the shape \(3,\)"),
        (
            scalarized(full(1), lambda o: o.values, chebyshev((1.0,), (0.0,))),
            r"objectives has shape \(8,\), expected \[8, K\]",
        ),
        (
            scalarized(full(1), lambda o: jnp.zeros((8, 2)), lambda x: x),
            r"scalar returned the shape \(8, 2\), expected \(8,\)",
        ),
    ],
)
def test_wrong_shapes_are_refused(scheduler, message):
    tuner = tuners.search(MEMBERS, random(SPACE), scheduler, 8)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tuner.step, KEY, jax.eval_shape(tuner.init, KEY))
