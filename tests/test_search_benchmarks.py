"""The benchmarks of searches: their functions, and how they count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cehpo_questions, functions, search_quality
from benchmarks.functions import CEILING, NETWORK_SPACE, SYNTHETIC
from benchmarks.record import Figure, Results
from hypergrad.searchers import Smoothing, distribution
from hypergrad.space import from_units

CUBE = {
    "Rosenbrock, 6": 0.75,
    "Levy, 6": 0.55,
    "Hartmann, 6": [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573],
}
"""Where the minima of the functions over the unit cube lie."""
ELSEWHERE = {
    "bowl of logarithms, 8": {f"x{i:02d}": 10 ** (-4 + 4 * i / 7) for i in range(8)},
    "Ackley, mixed, 7": {**{f"x{i}": 0.0 for i in range(4)}, "x4": 0, "x5": 0, "kind": 1},
    "tuning made up, mixed, 8": {
        "lr": 1e-3, "decay": 1e-3, "warmup": 10**1.5, "eps": 1e-8, "momentum": 0.9, "width": 97,
        "optimizer": 1, "activation": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_minimum_is_where_it_is_said_to_be(name):
    function = SYNTHETIC[name]()
    if name in CUBE:
        point = np.broadcast_to(CUBE[name], 6)
        at = dict(zip(sorted(function.space), point, strict=True))
    else:
        at = ELSEWHERE[name]
    assert set(at) == set(function.space)
    value = jax.jit(function.value)
    assert float(value((), at)) == pytest.approx(function.least, abs=2e-5)
    units = jax.random.uniform(jax.random.key(0), (256, len(function.space)))
    drawn = jax.vmap(function.value, (None, 0))((), from_units(function.space, units))
    assert np.all(np.isfinite(drawn)) and float(jnp.min(drawn)) >= function.least


def test_a_network_is_the_same_within_padded_arrays():
    """Rows, features and classes that do not count change nothing."""
    data = functions.load("iris")
    h = jax.tree.map(
        lambda x: x[0], from_units(NETWORK_SPACE, jnp.full((1, len(NETWORK_SPACE)), 0.6))
    )
    value = jax.jit(functions.trained)
    found = float(value(data, h))
    assert 0 < found < CEILING
    row = jnp.arange(functions.ROWS)[:, None] < data.num_train + data.num_valid
    column = jnp.arange(functions.FEATURES) < data.num_features
    dirty = data._replace(inputs=jnp.where(row, data.inputs, 7.0))
    assert float(value(dirty, h)) == found
    assert not np.any(np.where(column, 0, data.inputs))


def fabricated(tmp_path, ours, theirs):
    results = Results(tmp_path / "r.jsonl", "search_quality", {})
    for method, values in (("ours", ours), ("Optuna TPE", theirs)):
        best = [[float(v)] for v in values]
        results.add(
            "bowl, 2",
            [
                Figure(method, "evaluations", [512], "count"),
                Figure(method, "best", best, "value"),
                Figure(method, "least", 0.0, "value"),
            ],
        )
    return results


@pytest.mark.parametrize(
    ("ours", "theirs", "counts"),
    [
        (np.arange(10), 20 + np.arange(8), [1, 0, 0]),
        (20 + np.arange(10), np.arange(8), [0, 0, 1]),
        (np.arange(10), np.arange(10) + 0.5, [0, 1, 0]),
        (np.zeros(10), np.zeros(8), [0, 1, 0]),
    ],
)
def test_wins_ties_and_losses(tmp_path, ours, theirs, counts):
    results = fabricated(tmp_path, ours, theirs)
    assert search_quality.duels(results) == {("ours", "Optuna TPE"): counts}
    assert "-".join(map(str, counts)) in search_quality.table(results)


def test_checkpoints_count_what_was_spent():
    values = np.array([5.0, 3.0, 4.0, 1.0])
    lowest, at = search_quality.at_checkpoints(values, 64, cost=16.0)
    assert at == [16, 32, 64] and lowest.tolist() == [5.0, 3.0, 1.0]
    lowest, at = search_quality.at_checkpoints(values[:3], 64, cost=20.0)
    assert at == [32, 64] and lowest.tolist() == [5.0, 3.0]


def test_a_traced_smoothing_is_that_of_the_library():
    space = functions.cube(2)
    theirs = distribution(
        space, smoothing=Smoothing(c=0.6, beta=0.6, q=cehpo_questions.SMOOTHING.q)
    )
    ours = cehpo_questions.with_smoothing(distribution(space), 0.6)
    units = jax.random.uniform(jax.random.key(0), (8, 2))
    fitted = theirs.fit(theirs.start, units, jnp.ones(8))
    for step in (1, 4):
        got, expected = (f.blend(f.start, fitted, jnp.asarray(step)) for f in (ours, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


def test_a_stopping_rule_counts_from_where_it_is_met():
    gamma = np.array([[9.0, 5.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0]])
    found = {
        "gamma": gamma,
        "unchanged": np.array([[0, 0, 0, 0, 1, 2, 3, 4, 5, 0]]),
        "largest_std": np.full((1, 10), 0.1),
        "lowest": gamma,
    }
    figures = {(f.method, f.metric): f.value for f in cehpo_questions.stopping(found)}
    assert figures["stop: gamma unchanged in 5", "generation"] == 9
    assert figures["stop: gamma unchanged in 5", "regret"] == [2.0]
    assert figures["stop: sigma below 1e-2", "met"] == 0
    assert figures["stop: budget", "regret"] == [1.0]


def test_what_diverged_is_never_the_lowest():
    values = np.full(32, np.nan)
    values[20:24] = [3.0, 1.0, np.inf, 2.0]
    lowest, at = search_quality.at_checkpoints(values, 32)
    assert at == [16, 32] and lowest.tolist() == [search_quality.WORST, 1.0]
