"""The scout of a descent: what it costs, where the descent starts, and that a study goes on without it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad import study
from hypergrad.core.methods import StepCost
from hypergrad.study import StudyWarning
from hypergrad.tuning.finalists import distinct, favoured
from hypergrad.tuning.scout import scout_of, with_share
from hypergrad.tuning.settings import Settings, check_settings, scout_steps
from tasks import quadratic

TASK = quadratic.task(horizon=4, num_params=2)
SETTINGS = {"budget": 20, "num_seeds": 2, "eval_seeds": 2}
COST = StepCost(11.2, "")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("scout") / "run"
    return out, hg.tune(TASK, storage=out, **SETTINGS)


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, 0.3),
        ({"budget": 19}, 0.0),
        ({"budget": 19, "scout": 0.5}, 0.5),
        ({"scout": 0}, 0.0),
        ({"prior": {"lr": 0.1}}, 0.0),
        ({"warm_start": "runs/before"}, 0.0),
        ({"estimator": "hd"}, 0.0),
        ({"method": "random"}, None),
    ],
)
def test_who_has_a_scout(given, share):
    assert with_share(check_settings(given)).scout == share


def test_a_scout_costs_its_share():
    settings = Settings(budget=60, scout=0.25)
    scout = scout_of(settings, COST)
    search = scout.settings
    assert scout_steps(settings) == 15 and scout.num_finalists == 7 and scout.num_seeds == 8
    assert search.population * search.generations + 56 == scout.trainings
    assert abs(scout.trainings - 15 * 11.2) < search.generations + 1
    assert scout_of(settings._replace(scout=0.0), COST) is None


@pytest.mark.parametrize(
    "given", [{"budget": 3, "scout": 0.3, "num_seeds": 1}, {"budget": 2, "scout": 0.9}]
)
def test_a_budget_too_small_for_a_scout_is_refused(given, tmp_path):
    with pytest.raises(
        ValueError, match=r"^scout is 0\.\d of a budget of \d, .*pass a larger budget, or scout=0"
    ):
        hg.tune(TASK, storage=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"scout is 1, expected a share in \[0, 1\)"):
        hg.tune(TASK, scout=1)


def test_a_small_scout_that_nobody_asked_for_is_left_out(tmp_path):
    found = hg.tune(TASK, storage=tmp_path / "run", budget=20, num_seeds=1, eval_seeds=2)
    assert study.read_description(tmp_path / "run")["settings"]["scout"] == 0.0
    assert len(found.trials) == 20 and not (tmp_path / "run" / "scout").exists()


def test_the_descent_starts_at_the_best_of_the_scout(done):
    out, found = done
    records = [json.loads(line) for line in (out / "scout" / "journal.jsonl").open()]
    tried = np.concatenate([r["hparams"]["lr"] for r in records])
    values = np.concatenate([r["values"] for r in records])
    start = np.asarray(found.trials[0].hparams["lr"][0])
    place = np.argmin(np.abs(tried - start).max(1))
    np.testing.assert_allclose(tried[place], start, rtol=1e-4)
    assert place in np.argsort(values)[:8]
    assert len(found.trials) == 14, "the scout has taken six of twenty steps"


def test_random_search_costs_as_much_as_scout_and_descent(done):
    out, found = done
    described = study.read_description(out)
    assert described["settings"]["scout"] == 0.3
    trials = len(found.result["random_trace"]["trainings"]) and found.result["random_trace"]
    spent = scout_of(Settings(**SETTINGS, scout=0.3), StepCost(described["cost"], "")).trainings
    total = spent + 14 * described["cost"]
    assert found.result["trace"]["trainings"][-1] == total
    assert abs(trials["trainings"][-1] - total) < 2


def test_same_command_same_study_and_replay_knows_the_start(done, tmp_path):
    out, found = done
    again = hg.tune(TASK, **SETTINGS)
    assert again.result["final_digest"] == found.result["final_digest"]
    assert again.digest == found.digest
    shown = hg.replay(TASK, out, 9)
    assert np.isfinite(shown.losses).all()


def test_a_study_goes_on_from_its_scout(tmp_path, done):
    """Ctrl-C in the scout, and then in the descent; the result is that of a study without either."""
    out = tmp_path / "run"

    def stop_in(phase):
        def step(now):
            if (now.phase, now.done) == (phase, 1):
                raise KeyboardInterrupt

        return hg.study.Callback(step=step)

    first = hg.tune(TASK, storage=out, callbacks=[stop_in("scout")], **SETTINGS)
    assert first.interrupted and not first.trials
    second = hg.resume(TASK, out, callbacks=[stop_in("descent")])
    assert second.interrupted and len(second.trials) == 1
    last = hg.resume(TASK, out)
    assert not last.interrupted
    assert last.result["final_digest"] == done[1].result["final_digest"]


def test_where_all_scouts_diverge_the_defaults_are_the_start():
    default = hg.space.default(TASK.space)["lr"]

    def objective(params, hparams, batch):
        value = TASK.problem.objective(params, hparams, batch)
        return jnp.where(jnp.abs(hparams["lr"] - default).max() < 1e-5, value, jnp.nan)

    problem = TASK.problem._replace(objective=objective)
    with pytest.warns(StudyWarning, match="no objective of the scout's .* trials is finite"):
        found = hg.tune(problem, TASK.space, horizon=4, **SETTINGS)
    np.testing.assert_allclose(found.trials[0].hparams["lr"][0], default, rtol=1e-5)


def test_an_average_stays_unless_another_is_surely_better():
    average, seeds = np.array([1.0, 1.2, 0.8, 1.0]), np.array([0.3, -0.2, 0.1, -0.3])
    assert favoured(np.stack([average, average + seeds])) == 0
    assert favoured(np.stack([average, average - 0.1, average - 0.2 + 0.01 * seeds])) == 2
    assert favoured(np.stack([average * np.inf, average])) == 1
    assert favoured(np.stack([average, average * np.inf])) == 0


def test_a_candidate_is_trained_once():
    one, other = {"x": np.arange(3.0), "kind": "a"}, {"x": np.arange(3.0), "kind": "b"}
    again = {"x": np.arange(3.0), "kind": "a"}
    assert distinct([one, other, again, other]) == [one, other]
