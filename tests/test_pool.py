"""Random search as a pool of trials, against searches drawn from it."""

import jax
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.tuning.pool import best_of_draws, over_draws, spread_of
from tasks import quadratic


@pytest.mark.parametrize("num", [3, 12, 200])
def test_the_best_of_draws_is_what_drawing_gives(num):
    """20,000 searches, each of `num` draws from a pool of `num`; rank 1 is the best."""
    random = np.random.default_rng(0)
    best = random.integers(1, num + 1, size=(20_000, num)).min(1)
    weights = best_of_draws(num, 10)
    seen = np.array([(best == i + 1).mean() for i in range(len(weights))])
    seen, error = seen / seen.sum(), np.sqrt(weights * (1 - weights) / 20_000)
    assert np.all(np.abs(weights - seen) < 4 * error)
    assert weights.sum() == pytest.approx(1) and np.all(np.diff(weights) < 0)


def test_means_and_spread_are_those_of_the_draws():
    random = np.random.default_rng(1)
    weights, values = np.array([0.6, 0.3, 0.1]), random.normal(size=(3, 4))
    drawn = random.choice(3, size=100_000, p=weights)
    np.testing.assert_allclose(over_draws(weights, values), values[drawn].mean(0), atol=0.02)
    means = values.mean(1)
    assert spread_of(weights, means) == pytest.approx(means[drawn].std(), rel=0.02)
    assert spread_of(np.ones(1), np.array([3.0])) == 0


def test_random_search_counts_with_its_expectation():
    """Its entry is the weighted mean of its finalists, trained from the same seeds as the others."""
    task = quadratic.task(horizon=4, num_params=2)
    found = hg.tune(task, budget=6, num_seeds=2, eval_seeds=3)
    random = found.result["configurations"]["random"]
    assert random["draws_std"] > 0 and "draws_std" not in found.result["configurations"]["tuned"]
    # the likeliest alone is better than the expectation, as it is the best of the pool
    own = {name: np.asarray(x, np.float32) for name, x in random["hparams"].items()}
    problem, values = task.problem, []
    from hypergrad.train import init_state, split_key, unroll
    from hypergrad.tuning.build import keys_of
    from hypergrad.tuning.settings import Settings

    for key in jax.random.split(keys_of(Settings()).judge, 3):
        first, last = split_key(key)
        params = unroll(problem, own, init_state(problem, first, own), 4).params
        values.append(float(problem.objective(params, own, problem.valid_batch(last))))
    assert np.mean(values) < random["valid"]["mean"]
    again = hg.tune(task, budget=6, num_seeds=2, eval_seeds=3)
    assert again.result["final_digest"] == found.result["final_digest"]
