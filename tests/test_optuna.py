"""Optuna, both ways: its samplers drive our populations, and ours pass its own cases."""

import copy
import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad import space as sp, study
from hypergrad.cli import main as cli
from hypergrad.core import tree
from hypergrad.populations import population, vectorized
from hypergrad.searchers import Trials, bayes, random, warm_start
from hypergrad.searchers.optuna import (
    BayesSampler,
    CrossEntropySampler,
    export_trials,
    import_trials,
    optuna_searcher,
)
from hypergrad.searchers.optuna.parameters import parameters
from hypergrad.space import Choice, Integer, LogReal, Real, Sequence
from tasks import quadratic

optuna = pytest.importorskip("optuna", minversion="5")
from optuna.testing import pytest_samplers as cases  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.WARNING)
KEY = jax.random.key(3)
MIXED = {
    "lr": LogReal(1e-4, 1.0),
    "layers": Integer(1, 5),
    "width": Integer(1, 4096, log=True),
    "batch": Integer(8, 64, step=8),
    "dropout": Real(0.0, 0.5, step=0.1),
    "kind": Choice(("relu", "tanh", None)),
    "decay": Sequence(LogReal(1e-3, 1.0), 6, knots=3, decreasing=True),
    "rate": Sequence(Real(0.0, 2.0), 2),
    "scales": Real(-1.0, 1.0, shape=(2,)),
}
TPE = optuna.samplers.TPESampler
STATES = optuna.trial.TrialState


class TestCrossEntropySampler(
    cases.BasicSamplerTestCase, cases.RelativeSamplerTestCase, cases.SingleOnlySamplerTestCase
):
    @pytest.fixture
    def sampler(self):
        # generations so small that the cases, of ten trials, see a distribution that was fitted
        return partial(CrossEntropySampler, generation=4, rho=0.5, seed=0)


@pytest.mark.slow
class TestBayesSampler(
    cases.BasicSamplerTestCase, cases.RelativeSamplerTestCase, cases.SingleOnlySamplerTestCase
):
    @pytest.fixture
    def sampler(self):
        # few trials at random, so that cases of ten see the Gaussian process
        return partial(BayesSampler, num_initial=8, capacity=16, seed=0)


# ---- a sampler of Optuna as a searcher


def outcome(hparams, values, steps=None):
    num = len(values)
    steps = np.full(num, 5, np.int32) if steps is None else np.asarray(steps, np.int32)
    return Trials(hparams, np.asarray(values, np.float32), steps, np.arange(num), {})


def bowl(hparams):
    """A smooth objective over the mixed space, `[N]`."""
    lr, kind = np.log10(hparams["lr"]) + 2, np.asarray(hparams["kind"])
    return (lr**2 + (kind != 1) + np.asarray(hparams["scales"]).sum(-1) ** 2).astype(np.float32)


def run(searcher, state, count, num=6):
    """Run some generations; a trial fails in each, and one is stopped early."""
    asked = []
    for generation in range(count):
        hparams = searcher.ask(jax.random.fold_in(KEY, generation), state, num)
        values = bowl(hparams)
        values[1] = np.nan
        steps = [5, 5, 2] + [5] * (num - 3)
        state = searcher.tell(state, outcome(hparams, values, steps))
        asked.append(jax.tree.map(np.asarray, hparams))
    return state, asked


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    "make",
    [
        partial(TPE, n_startup_trials=4),
        pytest.param(
            partial(
                optuna.samplers.CmaEsSampler, n_startup_trials=4, warn_independent_sampling=False
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(optuna.samplers.QMCSampler, marks=pytest.mark.slow),
    ],
)
def test_trials_are_those_of_optuna_itself(make):
    """The searcher proposes what a plain loop of Optuna does with the same seed, resumed or not."""
    searcher = optuna_searcher(MIXED, make)
    assert searcher.host
    first = searcher.init(KEY)
    asked = run(searcher, first, 5)[1]
    for generation in asked:
        for member in range(6):
            sp.check_value(MIXED, jax.tree.map(lambda x, m=member: x[m], generation))

    plain = optuna.create_study(sampler=make(seed=int(first.seed)))
    found = parameters(MIXED)
    kinds = {one.name: one.distribution for one in found}
    for generation in asked:
        trials = [plain.ask(kinds) for _ in range(6)]
        units = [[one.unit(t.params[one.name]) for one in found] for t in trials]
        theirs = jax.vmap(partial(sp.from_unit, MIXED))(jnp.array(units, jnp.result_type(float)))
        for name, leaf in tree.named(theirs).items():
            np.testing.assert_allclose(generation[name], leaf, rtol=1e-6, atol=1e-6)
        values = bowl(generation)
        for member, trial in enumerate(trials):
            if member == 1:
                plain.tell(trial, state=STATES.FAIL)
            elif member == 2:
                trial.report(float(values[2]), 2)
                plain.tell(trial, state=STATES.PRUNED)
            else:
                plain.tell(trial, float(values[member]))

    # from the state alone, as a resume has it: another searcher, told nothing
    fresh = optuna_searcher(MIXED, make)
    halfway = run(searcher, searcher.init(KEY), 3)[0]
    again = jax.tree.map(np.array, halfway)
    hparams = fresh.ask(KEY, again, 6)
    assert same(hparams, asked[3]) and same(fresh.ask(KEY, again, 6), hparams)
    assert len(jax.tree.leaves(fresh.ask(KEY, again, 2))[0]) == 2, "another number is asked anew"
    assert not same(fresh.ask(KEY, fresh.init(jax.random.key(9)), 6), asked[0]), "another seed"


@pytest.mark.slow
def test_trials_that_were_not_asked_for_are_added():
    given = run(random(MIXED), (), 2)[1]
    searcher = optuna_searcher(MIXED, partial(TPE, n_startup_trials=0))
    warm = warm_start(searcher, [outcome(h, bowl(h)) for h in given])
    assert warm.host
    state = warm.init(KEY)
    assert int(state.count) == 12 and not state.asked.any()
    hparams = warm.ask(KEY, state, 4)
    changed = jax.tree.map(np.array, hparams)
    changed["lr"][2] = 1e-3  # a scheduler moved it
    after = warm.tell(state, outcome(changed, bowl(changed)))
    told = jax.tree.map(np.array, after)
    other = optuna_searcher(MIXED, partial(TPE, n_startup_trials=0))
    assert same(other.ask(KEY, told, 4), warm.ask(KEY, after, 4))
    small = optuna_searcher(MIXED, TPE, capacity=16)
    start = small.init(KEY)
    with pytest.raises(ValueError, match="capacity is 16, expected room for 18"):
        run(small, start, 3)


@pytest.mark.parametrize(
    ("space", "sampler", "message"),
    [
        (MIXED, TPE(), "sampler is TPESampler, expected a function of the seed"),
        (MIXED, lambda seed: 3, "sampler made int, expected"),
        ({"n": Integer(1, 3, static=True)}, TPE, "space\\['n'\\] is static"),
        ({}, TPE, "space has no dimensions"),
    ],
)
def test_invalid_arguments_are_refused(space, sampler, message):
    def ask():
        searcher = optuna_searcher(space, sampler)
        searcher.ask(KEY, searcher.init(KEY), 2)

    with pytest.raises(ValueError, match=message) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_it_works_on_the_host_and_says_so():
    searcher = optuna_searcher({"a": Real(0, 1)}, TPE)
    with pytest.raises(ValueError, match=r"state is traced.*works on the host"):
        jax.jit(lambda s: searcher.ask(KEY, s, 2))(searcher.init(KEY))


def test_a_missing_library_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna.distributions", None)
    with pytest.raises(ValueError, match=r"'optuna' needs optuna.*hypergrad-jax\[optuna\]"):
        optuna_searcher(MIXED, TPE)

    def needy(seed):
        raise ImportError("Tried to import 'torch'\nbut failed")

    monkeypatch.undo()
    searcher = optuna_searcher({"a": Real(0, 1)}, needy)
    with pytest.raises(
        ValueError,
        match=r"needy needs a library that is not installed .Tried to import 'torch' but",
    ):
        searcher.ask(KEY, searcher.init(KEY), 2)


def test_a_study_is_killed_and_resumed(tmp_path):
    task = quadratic.task(horizon=5, num_params=2)
    members = population(task.problem, layout=vectorized())

    def tuner():
        searcher = hg.searchers.held_constant(
            task.space, partial(optuna_searcher, sampler=partial(TPE, n_startup_trials=3))
        )
        return hg.tuners.search(members, searcher, hg.schedulers.halving(5, eta=2), 4)

    whole = study.run(tuner(), KEY, 5)
    first = study.run(tuner(), KEY, 2, storage=tmp_path / "a", checkpoint_seconds=0)
    assert [o.values.tolist() for o in first.trials] == [
        o.values.tolist() for o in whole.trials[:2]
    ]
    stopped = tuner()
    steps = []

    def step(key, state):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(0)
        return stopped.step(key, state)

    study.run(stopped._replace(step=step), KEY, 5, storage=tmp_path / "b", checkpoint_seconds=0)
    resumed = study.resume_run(tuner(), tmp_path / "b")
    assert len(resumed.trials) == 5 and resumed.digest == whole.digest


@pytest.mark.slow
@pytest.mark.parametrize("method", ["optuna_tpe", "optuna_cma"])
def test_by_name_from_the_command_line(method, tmp_path, capsys):
    path = tmp_path / "task.py"
    path.write_text(
        "from tasks import quadratic\n\n\ndef task():\n"
        "    return quadratic.task(horizon=4, num_params=2)\n"
    )
    words = ["--method", method, "--population", "3", "--generations", "2", "--eval-seeds", "2"]
    words += ["--scheduler", "halving", "--out", str(tmp_path / "run"), "--json", "--devices", "1"]
    assert cli.main(["tune", f"{path}:task", *words]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == 0
    (tmp_path / "run" / "result.json").unlink()
    assert cli.main(["resume", str(tmp_path / "run"), f"{path}:task", "--quiet"]) == 0
    assert "Optuna" in (tmp_path / "run" / "report.html").read_text()


def test_a_sampler_without_torch_is_refused_before_the_study(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    task = quadratic.task(horizon=4, num_params=2)
    with pytest.raises(ValueError, match="GPSampler needs a library that is not installed"):
        hg.tune(task, method="optuna_gp", storage=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- our searchers for users of Optuna


def mixed_trial(trial):
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    lr = trial.suggest_float("lr", 1e-5, 1.0, log=True)
    width = trial.suggest_int("width", 8, 256, log=True)
    rate = trial.suggest_float("rate", 0.0, 2.0, step=0.25)
    return (np.log10(lr) + 2) ** 2 + (kind != "b") + (width / 100 - 1) ** 2 + (rate - 0.5) ** 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "num"),
    [
        (partial(CrossEntropySampler, generation=16, rho=0.25), 160),
        (partial(BayesSampler, capacity=24), 24),
    ],
)
def test_samplers_learn_and_repeat_themselves(make, num):
    """They end better than random search, and repeat all their trials, maximising as minimising."""

    def search(seed, sign=1.0):
        direction = "minimize" if sign > 0 else "maximize"
        found = optuna.create_study(sampler=make(seed=seed), direction=direction)
        found.optimize(lambda t: sign * mixed_trial(t), n_trials=num)
        return found

    ours = [search(seed) for seed in range(2)]
    theirs = []
    for seed in range(6):
        found = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        found.optimize(mixed_trial, n_trials=num)
        theirs.append(found.best_value)
    assert max(s.best_value for s in ours) < np.median(theirs)
    last = np.median([t.value for t in ours[0].trials[-num // 4 :]])
    assert last < np.median([t.value for t in ours[0].trials[: num // 4]])
    params = [t.params for t in ours[0].trials]
    assert [t.params for t in search(0).trials] == params
    assert [t.params for t in search(0, -1.0).trials] == params


@pytest.mark.slow
def test_a_sampler_goes_on_in_another_process():
    """A copy has no model; it learns again from the study, and proposes what the first would have."""
    make = partial(CrossEntropySampler, generation=8, rho=0.5, seed=1)
    whole = optuna.create_study(sampler=make())
    whole.optimize(mixed_trial, n_trials=25)
    part = optuna.create_study(sampler=make())
    part.optimize(mixed_trial, n_trials=25)
    part.sampler = copy.deepcopy(part.sampler)
    assert part.sampler._model is None
    part.optimize(mixed_trial, n_trials=8)
    assert len(part.trials) == 33 and all(t.state == STATES.COMPLETE for t in part.trials)
    assert part.sampler._model[1].searcher.info(part.sampler._model[1].state)["gamma"] < 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(CrossEntropySampler, rho=2.0), "rho is 2.0"),
        (partial(CrossEntropySampler, generation=4, rho=0.1), "num is 4, expected at least 11"),
        (partial(BayesSampler, num_initial=0), "num_initial is 0"),
        (partial(BayesSampler, capacity=2), "capacity is 2"),
    ],
)
def test_settings_of_samplers_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_pruned_and_failed_trials_are_never_elite():
    sampler = CrossEntropySampler(generation=6, rho=0.5, seed=0)
    found = optuna.create_study(sampler=sampler)

    def objective(trial):
        x = trial.suggest_float("x", 0.0, 1.0)
        if trial.number % 3 == 1:
            return float("nan")
        if trial.number % 3 == 2:
            trial.report(-100.0, 1)  # low, but after one step
            raise optuna.TrialPruned
        return 1 + x

    found.optimize(objective, n_trials=7)
    model = found.sampler._model[1]
    assert int(model.state.step) == 1
    whole = [t.params["x"] for t in found.trials[:6] if t.state == STATES.COMPLETE]
    assert float(model.state.gamma) >= 1 + max(whole)
    assert int(model.state.num_elites) == 3


# ---- studies written to Optuna, and read from it


def test_trials_go_to_optuna_and_come_back(tmp_path):
    asked = run(random(MIXED), (), 2)[1]
    outcomes = []
    for generation, hparams in enumerate(asked):
        values, steps = bowl(hparams), [5, 5, 2, 5, 5, 5]
        values[generation] = np.nan
        told = outcome(hparams, values, steps)
        outcomes.append(told._replace(info={"spread": np.arange(6.0), "gamma": np.float32(1)}))
    path = f"sqlite:///{tmp_path / 'optuna.db'}"
    export_trials(outcomes, MIXED, storage=path, name="ours")
    with pytest.raises(ValueError, match="name is 'ours', which the storage has already"):
        export_trials(outcomes, MIXED, storage=path, name="ours")
    read = optuna.load_study(study_name="ours", storage=path)
    assert [t.state for t in read.trials[:3]] == [STATES.FAIL, STATES.COMPLETE, STATES.PRUNED]
    assert read.trials[8].intermediate_values == {2: pytest.approx(outcomes[1].values[2])}
    attrs = read.trials[7].user_attrs
    assert attrs == {"step": 1, "member": 1, "steps": 5, "parent": 1, "spread": 1.0}
    low = np.nanmin([np.where(np.array(o.steps) == 5, o.values, np.nan) for o in outcomes])
    assert read.best_value == pytest.approx(low)
    assert set(read.trials[0].params) >= {"lr", "kind", "rate.1", "decay.2", "scales.0"}

    back = import_trials(read, MIXED)
    hparams = jax.tree.map(lambda *xs: np.concatenate(xs), *asked)
    for name, leaf in tree.named(back.hparams).items():
        np.testing.assert_allclose(leaf, hparams[name], rtol=1e-4)
    np.testing.assert_array_equal(back.values, np.concatenate([o.values for o in outcomes]))
    np.testing.assert_array_equal(back.steps, np.concatenate([o.steps for o in outcomes]))
    told = jax.eval_shape(warm_start(bayes(MIXED, 16), [back]).init, KEY)
    assert told.memory.units.shape == (16, sp.num_coordinates(MIXED))


def test_trials_of_others_are_read_where_they_fit():
    space = {"lr": LogReal(1e-3, 1.0), "kind": Choice(("a", "b"))}
    found = optuna.create_study(direction="maximize")

    def objective(trial):
        lr = trial.suggest_float("lr", 1e-5, 10.0, log=True)
        if trial.number % 2:
            trial.suggest_categorical("kind", ["a", "b", "c"])
        return lr

    found.enqueue_trial({"lr": 0.5, "kind": "b"})
    found.sampler = optuna.samplers.RandomSampler(seed=0)
    found.optimize(objective, n_trials=20)
    read = import_trials(found, space)
    fits = [
        t
        for t in found.trials
        if "kind" in t.params and t.params["kind"] != "c" and 1e-3 <= t.params["lr"] <= 1
    ]
    assert 0 < len(fits) < 10
    np.testing.assert_allclose(read.values, [-t.value for t in fits], rtol=1e-6)
    np.testing.assert_allclose(read.hparams["lr"], [t.params["lr"] for t in fits], rtol=1e-5)
    with pytest.raises(ValueError, match="no finished trial of the space, expected the parameters"):
        import_trials(found, {"momentum": Real(0, 1)})
    several = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="study has 2 objectives, expected one"):
        import_trials(several, space)
