"""How many states a hypergradient stores: decided by shapes and total memory, and recorded."""

import jax
import jax.numpy as jnp
import pytest

from hypergrad.core import memory
from hypergrad.core.files import read_json, write_json
from hypergrad.core.memory import (
    SHARE,
    recorded_memory,
    side_by_side,
    states_memory,
    total_memory,
)
from hypergrad.estimators import Plan, average, reverse
from hypergrad.estimators.policies import relaxed
from hypergrad.estimators.unrolled import adjoint
from hypergrad.estimators.unrolled.adjoint import choose_checkpoint, num_stored
from hypergrad.study import Callback
from hypergrad.train import init_state
from hypergrad.tuning.resume import resume
from hypergrad.tuning.tune import tune
from tasks import quadratic
from tests.problems import CHOICES, choices

KEY = jax.random.key(0)
TASK = quadratic.task(horizon=100, num_params=2)
HPARAMS = {"lr": jnp.full(100, 0.1), "momentum": jnp.asarray(0.5)}
EACH = jnp.zeros(()).dtype.itemsize * 2 * 3
"""Bytes of one state: two weights, their momentum and their gradient."""


@pytest.fixture
def chosen(monkeypatch):
    """Every choice that is made while a hypergradient is traced."""
    made = []

    def choose(*args):
        made.append(choose_checkpoint(*args))
        return made[-1]

    monkeypatch.setattr(adjoint, "choose_checkpoint", choose)
    return made


def state_of(task=TASK):
    return jax.eval_shape(lambda h: init_state(task.problem, jax.random.key(0), h), HPARAMS)


@pytest.mark.parametrize(
    ("states", "levels"),
    [(100, ()), (99, (10,)), (20, (10,)), (19, (22, 5)), (12, (32, 10, 3)), (0, (32, 10, 3))],
)
def test_as_many_states_as_fit(states, levels):
    with recorded_memory(states * EACH):
        assert choose_checkpoint(state_of(), 100) == levels
    assert states < 12 or num_stored(100, levels) <= states


def test_an_eighth_of_the_total_memory_of_a_device():
    assert states_memory() == total_memory() // jax.local_device_count() // SHARE
    assert choose_checkpoint(state_of(), 100) == ()


@pytest.fixture(params=["cpu", "gpu"])
def platform(request, monkeypatch):
    monkeypatch.setattr(memory, "at_once", lambda num: 1 if request.param == "cpu" else num)
    return request.param


def test_runs_side_by_side_share_it(chosen, platform):
    with recorded_memory(100 * EACH):
        estimator = reverse(TASK.problem, 100)
        jax.eval_shape(estimator.estimate, KEY, (), HPARAMS)
        jax.eval_shape(average(estimator, 2).estimate, KEY, (), HPARAMS)
        with side_by_side(2):
            assert states_memory() == 50 * EACH
        assert states_memory() == 100 * EACH
    assert chosen == [(), () if platform == "cpu" else (10,)]


def test_the_draws_of_relaxed_choices_share_it(chosen, platform):
    problem, phi = choices()
    each = phi["l2"].dtype.itemsize * 2 * 18  # weights and their gradient
    all_at_once = 32 if platform == "gpu" else 16
    for states, levels in ((all_at_once, ()), (all_at_once - 1, (4,))):
        estimator = relaxed(reverse(problem, 16), CHOICES, num_samples=2)
        with recorded_memory(states * each):
            state = jax.eval_shape(estimator.init, KEY, phi)
            jax.eval_shape(estimator.estimate, KEY, state, phi)
        assert set(chosen) == {levels}
        chosen.clear()


class Stop(BaseException):
    """Ends the process, as far as a study can tell."""


def test_a_study_keeps_the_share_that_it_began_with(tmp_path, chosen, monkeypatch):
    def stop(now):
        if now.phase == "descent":
            raise Stop

    settings = {
        "method": "descent",
        "budget": 2,
        "num_seeds": 2,
        "num_restarts": 2,
        "eval_seeds": 2,
    }
    with recorded_memory(4 * 20 * EACH), pytest.raises(Stop):
        tune(TASK, storage=tmp_path / "s", callbacks=[Callback(step=stop)], **settings)
    described = read_json(tmp_path / "s" / "study.json")
    assert described["states_memory"] == 4 * 20 * EACH
    assert described["cost"] == 4 * 4  # one level of segments
    assert set(chosen) == {(10,)}
    chosen.clear()
    monkeypatch.setattr("hypergrad.report.page.write_report", lambda folder: None)
    resume(TASK, tmp_path / "s")
    assert chosen and set(chosen) == {(10,)}


def test_a_share_that_is_no_number_is_refused(tmp_path):
    settings = {"method": "descent", "budget": 1, "num_seeds": 1, "eval_seeds": 2}

    def stop(now):
        raise Stop

    with pytest.raises(Stop):
        tune(TASK, storage=tmp_path / "s", callbacks=[Callback(step=stop)], **settings)
    path = tmp_path / "s" / "study.json"
    write_json(path, read_json(path) | {"states_memory": "all"})
    with pytest.raises(ValueError, match="states_memory of the study is 'all', expected a number"):
        resume(TASK, tmp_path / "s")


def test_a_plan_says_the_trade():
    passes = {(): 345 * 2**20, (10,): 70 * 2**20}
    whole = Plan(adjoint.mixed_mode(()), (), passes[()], (((), passes[()]),), 100)
    assert (
        str(whole) == "use backward=mixed_mode(()): 345.0 MiB for every state, at about 3 trainings"
    )
    less = Plan(adjoint.mixed_mode((10,)), (10,), passes[10,], tuple(passes.items()), 100)
    assert str(less).splitlines() == [
        "use backward=mixed_mode((10,)): 70.0 MiB for 20 of 100 states, at about 4 trainings",
        "- at least 345.0 MiB for every state, at about 3 trainings: too much",
    ]
