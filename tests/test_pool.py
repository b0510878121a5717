"""Random search as a pool of trials, against searches drawn from it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.train import init_state, split_key, unroll
from hypergrad.tuning.build import keys_of
from hypergrad.tuning.pool import best_of_draws, over_draws, spread_of
from hypergrad.tuning.settings import Settings
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


def test_random_search_counts_with_its_expectation(tmp_path):
    """Its entry is the weighted mean of its finalists, here ranked and trained again one by one."""
    task = quadratic.task(horizon=4, num_params=2)
    found = hg.tune(task, storage=tmp_path / "run", budget=6, num_seeds=2, eval_seeds=3)
    random, keys = found.result["configurations"]["random"], keys_of(Settings())
    lines = (tmp_path / "run" / "random" / "journal.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    own = np.concatenate([one["values"] for one in told])
    pool = {n: np.concatenate([one["hparams"][n] for one in told]) for n in random["hparams"]}

    def reached(member, keys):
        hparams = {name: jnp.asarray(x[member], jnp.float32) for name, x in pool.items()}

        def one(key):
            first, last = split_key(key)
            params = unroll(
                task.problem, hparams, init_state(task.problem, first, hparams), 4
            ).params
            return task.problem.objective(params, hparams, task.problem.valid_batch(last))

        return np.mean([float(one(key)) for key in keys])

    finalists = np.argsort(own, kind="stable")[:10]
    chosen = [reached(m, jax.random.split(keys.choose, 4)) for m in finalists]
    weights = best_of_draws(len(own), len(finalists))
    order = finalists[np.argsort(chosen, kind="stable")][: len(weights)]
    judged = np.array([reached(m, jax.random.split(keys.judge, 3)) for m in order])
    assert random["valid"]["mean"] == pytest.approx(np.sum(weights * judged), rel=1e-5)
    assert random["draws_std"] == pytest.approx(spread_of(weights, judged), rel=1e-3)
    np.testing.assert_allclose(random["hparams"]["lr"], pool["lr"][order[0]], rtol=1e-6)
    assert "draws_std" not in found.result["configurations"]["tuned"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "in expectation over its draws (standard deviation" in " ".join(page.split())
