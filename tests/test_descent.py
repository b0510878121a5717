import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import study
from hypergrad.estimators import reverse
from hypergrad.populations import chunked, looped, population, vectorized
from hypergrad.schedulers import full
from hypergrad.searchers import random
from hypergrad.space import LogReal, Real, Sequence, sample_constant, schedule
from hypergrad.train import init_state, unroll
from hypergrad.tuners import descent, search
from tasks import quadratic, ridge

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def made():
    return ridge.task(horizon=60)


def test_descends_to_the_optimum_of_ridge(made):
    tuner = descent(
        reverse(made.problem, 60), made.space, optimizer=optax.adam(0.3), num_restarts=2
    )
    found = study.run(tuner, KEY, 80)
    sets = ridge.make_data(8, 0)
    grid = [ridge.exact(np.full(8, p), sets)[0] for p in np.geomspace(1e-4, 1, 60)]
    assert found.best_value < min(grid), "eight penalties beat the best single one"
    last = found.trials[-1]
    assert np.all(last.info["hypergrad_norm"] < 0.2 * found.trials[0].info["hypergrad_norm"])
    assert last.values.shape == (2,) and not found.interrupted
    assert found.best["penalty"].shape == (8,)


def test_starts_where_it_is_told(made):
    given = {"penalty": jnp.linspace(0.01, 0.1, 8)}
    estimator = reverse(made.problem, 5)
    tuner = descent(estimator, made.space, start=given, num_restarts=2)
    first, second = study.run(tuner, KEY, 1).trials[0].hparams["penalty"]
    np.testing.assert_allclose(first, given["penalty"], rtol=1e-4)
    assert not np.allclose(second, first, rtol=0.1), "only the first restart starts there"
    with pytest.raises(ValueError, match="penalty"):
        descent(estimator, made.space, start={"penalty": jnp.ones(3)})


@pytest.mark.parametrize("length", [5, 300])
def test_a_decreasing_schedule_starts_at_its_default(length):
    task = quadratic.task(horizon=5)
    space = {"lr": Sequence(LogReal(1e-3, 2.0, default=0.1), length, decreasing=True)}
    problem = task.problem._replace(optimizer=lambda h: optax.sgd(schedule(h["lr"])))
    found = study.run(descent(reverse(problem, 5), space), KEY, 1)
    np.testing.assert_allclose(found.trials[0].hparams["lr"][0], 0.1, rtol=0.01)


def diverging(made):
    """A space where the start is fine and a step too far is not."""

    def objective(params, hparams, batch):
        good = jnp.sum((hparams["x"] - 0.9) ** 2) + 0.0 * jnp.sum(params)
        return jnp.where(hparams["x"] > 0.6, jnp.nan, good)

    problem = made.problem._replace(
        loss=lambda p, h, b: jnp.sum(p**2),
        objective=objective,
        optimizer=lambda h: optax.sgd(h["x"]),
    )
    return problem, {"x": Real(0.0, 1.0)}


def test_non_finite_steps_are_skipped_counted_and_never_best(made):
    problem, space = diverging(made)
    tuner = descent(reverse(problem, 2), space, optimizer=optax.sgd(1.0))
    found = study.run(tuner, KEY, 12)
    skipped = [bool(o.info["skipped"][0]) for o in found.trials]
    assert any(skipped) and not all(skipped)
    assert np.isfinite(found.best_value) and found.best["x"] <= 0.6
    after = skipped.index(True) + 1
    assert found.trials[after].hparams["x"][0] < found.trials[after - 1].hparams["x"][0]


def test_clip_bounds_the_step_and_patience_ends(made):
    tuner = descent(
        reverse(made.problem, 5), made.space, optimizer=optax.sgd(1.0), clip=1e-3, resample=False
    )
    state = tuner.init(KEY)
    moved, _ = tuner.step(KEY, state)
    length = optax.tree.norm(jax.tree.map(jnp.subtract, moved.unconstrained, state.unconstrained))
    assert 0 < length <= 1.001e-3
    still = descent(reverse(made.problem, 5), made.space, optimizer=optax.sgd(0.0), patience=3)
    assert len(study.run(still, KEY, 50).trials) == 4


def test_same_key_same_bits_and_no_retrace(made):
    tuner = descent(reverse(made.problem, 5), made.space)
    runs = [study.run(tuner, KEY, 3).trials for _ in range(2)]
    chex.assert_trees_all_equal(*runs)
    assert tuner.step.__wrapped__._cache_size() < 2  # 0 where jax did not keep it for its fast path


@pytest.mark.parametrize("layout", [vectorized(), chunked(1), chunked(3), looped(), looped(3)])
def test_population_equals_a_loop(layout):
    task = quadratic.task(horizon=6)
    members = population(task.problem, layout=layout)
    hparams = jax.vmap(lambda k: sample_constant(task.space, k))(jax.random.split(KEY, 4))
    keys = jax.random.split(KEY, 4)
    states = members.advance(hparams, members.init(keys, hparams), 6)
    values = members.value(hparams, states)
    uneven = members.advance(hparams, members.init(keys, hparams), jnp.asarray([0, 1, 6, 6]))
    for i in range(4):
        one = jax.tree.map(lambda x, i=i: x[i], hparams)
        start = init_state(task.problem, keys[i], one)
        params = unroll(task.problem, one, start, 6).params
        np.testing.assert_allclose(values[i], task.problem.objective(params, one, ()), rtol=1e-5)
        np.testing.assert_allclose(
            uneven.train.params[i],
            unroll(task.problem, one, start, [0, 1, 6, 6][i]).params,
            rtol=1e-5,
            atol=1e-6,
        )


def test_random_search_and_a_nan_trial():
    task = quadratic.task(horizon=6)

    def objective(params, hparams, batch):
        value = task.problem.objective(params, hparams, batch)
        return jnp.where(hparams["momentum"] < 0.5, jnp.nan, value)

    members = population(task.problem._replace(objective=objective))
    found = study.run(search(members, random(task.space), full(6), 8), KEY, 3)
    values = np.concatenate([o.values for o in found.trials])
    assert np.isnan(values).any() and found.best_value == np.nanmin(values)
    assert found.best["momentum"] >= 0.5
    assert found.trials[0].steps.tolist() == [6] * 8


def test_ctrl_c_keeps_the_best(made):
    tuner = search(
        population(made.problem), random({"penalty": LogReal(1e-4, 1.0, shape=(8,))}), full(5), 2
    )

    def stop(index, trials, best):
        if index == 1:
            raise KeyboardInterrupt

    found = study.run(tuner, KEY, 10, stop)
    assert found.interrupted and len(found.trials) == 2 and np.isfinite(found.best_value)
