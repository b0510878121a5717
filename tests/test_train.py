import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.core.types import Variables
from hypergrad.problem import Problem
from hypergrad.train import averaged, init_state, split_key, step, unroll, unroll_losses
from tests.problems import ALL, schedules, value

KEY = jax.random.key(5)


def test_equals_a_loop_written_by_hand():
    problem, hparams = schedules()

    @jax.jit
    def by_hand(hparams):
        init_key, run_key = jax.random.split(KEY)
        params = problem.init(init_key, hparams)
        optimizer = problem.optimizer(hparams)
        state = optimizer.init(params)
        for t in range(3):
            batch = problem.train_batch(jax.random.fold_in(run_key, t), t)
            grads = jax.grad(problem.loss)(params, hparams, batch)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    ours = jax.jit(lambda h: unroll(problem, h, init_state(problem, KEY, h), 3).params)(hparams)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(by_hand(hparams)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_the_second_half_of_a_key_draws_the_batches_of_its_run():
    problem, hparams = schedules()
    key = init_state(problem, KEY, hparams).key
    assert np.array_equal(*map(jax.random.key_data, (key, split_key(KEY)[1])))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda h: optax.polyak_sgd(max_learning_rate=1.0),
        lambda h: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
        lambda h: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8)),
    ],
)
def test_optimizers_with_extra_arguments_train(optimizer):
    problem, _ = ALL["sam"]()
    problem = problem._replace(
        optimizer=optimizer, train_batch=lambda key, step: problem.valid_batch(key)
    )
    state = init_state(problem, KEY, {})
    _, losses = jax.jit(lambda s: unroll_losses(problem, {}, s, 12))(state)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_average_equals_its_definition():
    problem, hparams = schedules()
    mean = averaged(problem, 0.8)
    state = init_state(mean, KEY, hparams)
    expected = state.params.params
    for _ in range(4):
        before = state.params.params
        state, _ = step(mean, hparams, state)
        del before
        expected = jax.tree.map(lambda m, w: 0.8 * m + 0.2 * w, expected, state.params.params)
    batch = problem.valid_batch(KEY)
    got = mean.objective(state.params, hparams, batch)
    np.testing.assert_allclose(got, problem.objective(expected, hparams, batch), rtol=1e-5)


def test_average_trains_the_same_weights():
    problem, hparams = ALL["batch_norm_dropout"]()
    mean = averaged(problem, lambda h: value(0.5))
    plain = unroll(problem, hparams, init_state(problem, KEY, hparams), 2).params
    both = unroll(mean, hparams, init_state(mean, KEY, hparams), 2).params
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(both.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_batch_norm_statistics_move_and_dropout_differs_by_step():
    problem, hparams = ALL["batch_norm_dropout"]()
    start = init_state(problem, KEY, hparams)
    end = unroll(problem, hparams, start, 2)
    assert isinstance(end.params, Variables)
    moved = [
        jnp.any(a != b)
        for a, b in zip(
            jax.tree.leaves(start.params.state), jax.tree.leaves(end.params.state), strict=True
        )
    ]
    assert all(moved)
    frozen = problem._replace(
        optimizer=lambda h: optax.sgd(0.0),
        train_batch=lambda key, step: (
            *problem.train_batch(jax.random.key(0), step)[:2],
            jax.random.fold_in(key, 1),
        ),
    )
    _, losses = unroll_losses(frozen, hparams, init_state(frozen, KEY, hparams), 3)
    assert len(set(map(float, losses))) == 3


def test_counter_in_carried_state_keeps_its_type():
    problem = Problem(
        init=lambda key, h: Variables(jnp.ones(2), {"count": 0}),
        loss=lambda p, h, b: (jnp.sum(p.params**2), {"count": p.state["count"] + 1}),
        objective=lambda p, h, b: jnp.sum(p.params) * h,
        optimizer=lambda h: optax.sgd(h),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    end = unroll(problem, value(0.1), init_state(problem, KEY, value(0.1)), 5)
    assert end.params.state["count"] == 5 and end.step == 5


def test_a_loss_that_is_no_number_is_named_without_a_validation():
    problem, hparams = schedules()
    state = init_state(problem, KEY, hparams)
    for out, message in [
        (jnp.ones(3), r"problem\.loss returned an array of shape \(3,\)"),
        ((jnp.ones(()), None, None), r"problem\.loss returned a tuple of 3, expected one real"),
    ]:
        wrong = problem._replace(loss=lambda params, hparams, batch, out=out: out)
        with pytest.raises(ValueError, match=message):
            unroll(wrong, hparams, state, 2)
