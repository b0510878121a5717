"""Static dimensions from end to end: searched, recorded as named, resumed, repeated."""

import json
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad import study
from hypergrad.cli import main as cli
from hypergrad.populations import devices, layout_for, looped, population
from hypergrad.problem import Problem, Task, with_hparams
from hypergrad.searchers import random, warm_start
from hypergrad.space import Choice, Integer, LogReal, dynamic, static
from hypergrad.study import StudyWarning
from hypergrad.train import init_state, unroll
from hypergrad.tuning import flatness
from hypergrad.tuning.build import build, check_task
from hypergrad.tuning.settings import Settings
from hypergrad.tuning.warm_start import read_trials

HORIZON = 6
SPACE = {
    "act": Choice(("tanh", "sin"), static=True),
    "lr": LogReal(1e-2, 1.0),
    "width": Choice((1, 2), static=True),
}
MORE = SPACE | {"scale": Choice((0.5, 2), static=True), "depth": Integer(2, 3, static=True)}
SMALL = {"population": 4, "generations": 3, "eval_seeds": 2, "num_seeds": 1, "seed": 3}
X = jax.random.normal(jax.random.key(1), (12, 2))


def _net(params, h, batch):
    assert type(h["width"]) is int and type(h["act"]) is str
    hidden = getattr(jnp, h["act"])(X @ params["in"])
    return jnp.mean((hidden @ params["out"] - X[:, 0] * X[:, 1]) ** 2)


def _init(key, h):
    weights = 0.5 * jax.random.normal(key, (2, h["width"]))
    return {"in": weights, "out": jnp.ones(h["width"]) / h["width"]}


PROBLEM = Problem(
    init=_init,
    loss=_net,
    objective=_net,
    optimizer=lambda h: optax.sgd(h["lr"]),
    train_batch=lambda key, step: (),
    valid_batch=lambda key: (),
)


def task():
    return Task(
        name="shapes",
        problem=PROBLEM,
        space=SPACE,
        horizon=HORIZON,
        test=lambda params, h: jnp.square(X @ params["in"] @ params["out"]) * h["width"],
        metric="squared output",
        higher_is_better=False,
        snippet=lambda h: f"width = {h['width']!r}, act = {h['act']!r}",
    )


TASK = task()


@pytest.fixture
def compilations():
    """Count compilations by the name of what is compiled."""
    counted = Counter()

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            counted[about.get("fun_name")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("static") / "run"
    return out, hg.tune(TASK, method="random", storage=out, **SMALL)


def shapes_of(outcome):
    return list(zip(*(outcome.hparams[n].tolist() for n in ("act", "width")), strict=True))


def test_a_study_has_the_values_that_the_user_named(tuned):
    out, found = tuned
    table = found.table()
    assert set(table["act"]) <= {"tanh", "sin"} and set(table["width"]) <= {1, 2}
    assert len(table["act"]) == 12
    record = json.loads((out / "journal.jsonl").read_text().splitlines()[0])
    assert set(record["hparams"]["act"]) <= {"tanh", "sin"}
    assert set(record["hparams"]["width"]) <= {1, 2}
    assert type(found.best["width"]) is int and type(found.best["act"]) is str
    tuned_hparams = found.result["configurations"]["tuned"]["hparams"]
    assert tuned_hparams["act"] == found.best["act"]
    assert found.result["snippet"] == TASK.snippet(found.best)
    assert f"act = {found.best['act']!r}" in found.result["snippet"]
    page = found.report.read_text()
    assert f"tanh → {found.best['act']}" in page
    assert f"width: 1 → {found.best['width']}" in page, "a value, not the place of one"
    found.export(out / "best.json")
    assert json.loads((out / "best.json").read_text())["hparams"]["act"] == found.best["act"]
    assert found.to_xarray()["act"].shape == (12,)


def test_every_trial_is_the_run_of_its_shape(tuned):
    outcome = tuned[1].trials[0]
    for m in range(3):
        h = static.restored(SPACE, {n: x[m] for n, x in outcome.hparams.items()})
        fixed = PROBLEM._replace(
            init=lambda key, _, h=h: _init(key, h),
            loss=lambda params, _, batch, h=h: _net(params, h, batch),
        )

        @jax.jit
        def train(lr, key, fixed=fixed):
            return unroll(fixed, {"lr": lr}, init_state(fixed, key, {"lr": lr}), HORIZON).params

        params = train(h["lr"], jax.random.wrap_key_data(outcome.info["key"][m]))
        np.testing.assert_allclose(outcome.values[m], _net(params, h, ()), rtol=2e-5)


def tuner_of(**settings):
    chosen = Settings(**SMALL | settings)
    check_task(TASK, chosen)
    return build(TASK, chosen)[0]


def test_one_compilation_for_each_shape(compilations):
    """Of the population three programs a shape: to begin, to train and to judge; groups have all sizes."""
    found = study.run(tuner_of(method="random", population=6), jax.random.key(0), 4)
    sizes = [Counter(shapes_of(outcome)) for outcome in found.trials]
    shapes = set().union(*sizes)
    assert len(shapes) == 4 and len({n for size in sizes for n in size.values()}) > 2
    assert compilations["jit(program)"] == 3 * len(shapes), compilations


@pytest.mark.parametrize(
    "scheduler",
    [
        "halving",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("hyperband", "flatness", "pbt")),
    ],
)
def test_schedulers(scheduler):
    method = "cross_entropy" if scheduler == "halving" else "random"
    tuner = tuner_of(method=method, scheduler=scheduler)
    outcome = study.run(tuner, jax.random.key(1), 1).trials[0]
    assert np.isfinite(outcome.values).any() and set(outcome.hparams["act"]) <= {"tanh", "sin"}
    if scheduler == "pbt":
        noted = outcome.info["schedule.act"]
        assert set(noted.ravel().tolist()) <= {"tanh", "sin"}
        np.testing.assert_array_equal(noted[:, -1], outcome.hparams["act"])
        assert np.all(noted == noted[:, :1]), "a copy keeps its shape"


def test_members_of_a_call_are_divided_among_devices():
    """The same program on a mesh, of one device here: what it computes is that of a loop."""
    hparams = {"lr": np.geomspace(0.01, 1, 5, dtype=np.float32)}
    one = PROBLEM._replace(
        init=lambda key, h: _init(key, {"width": 2}),
        loss=lambda p, h, b: _net(p, {"width": 2, "act": "sin"}, b),
        objective=lambda p, h, b: _net(p, {"width": 2, "act": "sin"}, b),
    )
    values = []
    for layout in (looped(), looped(2, devices.mesh(1))):
        members = population(one, layout=layout)
        states = members.init(jax.random.split(jax.random.key(0), 5), hparams)
        values.append(members.value(hparams, members.advance(hparams, states, 3)))
    np.testing.assert_allclose(*values, rtol=1e-5)
    assert layout_for(6, 1, groups=True).label == "one after another"
    assert layout_for(6, 1, 3, groups=True).width == 3


def test_resume_to_the_same_bits_and_replay(tuned, tmp_path, monkeypatch):
    out, found = tuned
    monkeypatch.setattr(sys.modules["hypergrad.tuning.tune"], "_report", lambda path: None)

    monkeypatch.setitem(study.begin.__kwdefaults__, "checkpoint_seconds", 0.0)

    def stop(now):
        if now.done == 2 or now.phase == "judge":
            raise KeyboardInterrupt

    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        hg.tune(TASK, method="random", storage=part, callbacks=[hg.Callback(step=stop)], **SMALL)
    again = hg.resume(task(), part)
    assert again.digest == found.digest
    assert again.result["final_digest"] == found.result["final_digest"]
    for ours, theirs in zip(again.trials, found.trials, strict=True):
        np.testing.assert_array_equal(ours.hparams["act"], theirs.hparams["act"])
    repeated = hg.replay(task(), out, 5)
    outcome = found.trials[1]
    assert repeated.hparams["act"] == outcome.hparams["act"][1]
    assert repeated.hparams["width"] == outcome.hparams["width"][1]
    assert repeated.losses.shape == (1, HORIZON) and np.isfinite(repeated.losses).all()
    assert float(repeated.trial.trials.values) == outcome.values[1]


@pytest.mark.slow
def test_a_search_begins_with_trials_of_shapes(tuned, tmp_path):
    out, found = tuned
    read = read_trials(out, SPACE)
    options = np.array(SPACE["act"].options)
    np.testing.assert_array_equal(
        options[read.hparams["act"]], np.concatenate([o.hparams["act"] for o in found.trials])
    )
    fewer = SPACE | {"act": Choice(("sin", "tanh_of_another_name"), static=True)}
    with pytest.warns(StudyWarning, match="lie outside the space"):
        left = read_trials(out, fewer)
    assert set(left.hparams["act"].tolist()) == {0}
    warm_start(random(dynamic(SPACE)), found.trials, SPACE).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"trials\[0\] has texts at 'act'"):
        warm_start(random(dynamic(SPACE)), found.trials)
    tuner = tuner_of(method="tpe", warm_start=str(out), prior={"act": ["sin"]})
    asked = study.run(tuner, jax.random.key(2), 1).trials[0].hparams["act"].tolist()
    assert asked.count("sin") > 3, "a prior is in the user's words"


def test_trials_go_to_optuna_by_name(tuned):
    pytest.importorskip("optuna")
    from hypergrad.searchers.optuna import export_trials, import_trials

    outcomes = tuned[1].trials
    written = export_trials(outcomes, SPACE)
    acts = np.concatenate([outcome.hparams["act"] for outcome in outcomes])
    assert [trial.params["act"] for trial in written.trials] == acts.tolist()
    assert import_trials(written, SPACE).hparams["act"].tolist() == (acts == "sin").tolist()


def test_values_go_both_ways():
    given = {
        "act": np.array([1, 0, 1]),
        "lr": np.ones(3),
        "scale": np.array([0, 1, 1]),
        "depth": np.array([3, 2, 2]),
        "width": np.array([0, 0, 1]),
    }
    named = static.to_options(MORE, given)
    assert named["act"].tolist() == ["sin", "tanh", "sin"]
    assert named["scale"].tolist() == [0.5, 2, 2]
    back = static.to_numbers(MORE, named)
    assert all(np.array_equal(back[n], given[n]) for n in given)
    one = static.restored(MORE, jax.tree.map(lambda x: x[1], named))
    assert one == {"act": "tanh", "lr": 1.0, "scale": 2, "depth": 2, "width": 1}
    assert type(one["depth"]) is int and type(one["scale"]) is int
    with pytest.raises(ValueError, match=r"hparams\['act'\] has 'relu', expected one of"):
        static.to_numbers(MORE, named | {"act": np.array(["relu"])})


REFUSED = {
    "space['act'] is Choice, expected a real dimension": {"method": "descent"},
    "space['act'] is static, expected a dimension": {"method": "controller"},
    "scheduler is 'pb2', expected another because space['act'] is static": {"scheduler": "pb2"},
    "memory is 1000, expected None because space['act'] is static": {"memory": 1000},
    "devices is 99": {"devices": 99},
}


@pytest.mark.parametrize("fragment", list(REFUSED))
def test_invalid_settings_are_refused_before_compilation(fragment, compilations):
    settings = {"method": "random"} | REFUSED[fragment]
    hg.tune  # noqa: B018 - imports compile a little
    compilations.clear()
    with pytest.raises(ValueError) as caught:
        hg.tune(TASK, **settings)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
    assert not compilations["jit_program"]


@pytest.mark.parametrize(
    "options", [(jnp.tanh, jnp.sin), (1, "two"), ((8, 8), (16,)), (1.0, float("nan"))]
)
def test_options_that_no_study_can_record(options):
    space = SPACE | {"act": Choice(options, static=True)}
    with pytest.raises(ValueError, match=r"space\['act'\] is static and has the options") as caught:
        hg.tune(PROBLEM, space, horizon=2, method="random")
    assert "\n" not in str(caught.value)


def test_an_option_that_does_not_work_is_found_before_training():
    space = SPACE | {"act": Choice(("tanh", "sine"), static=True)}
    with pytest.raises(ValueError, match=r"problem\.loss failed on the given hparams.*sine"):
        hg.tune(PROBLEM, space, horizon=2, method="random")


def test_a_space_of_static_dimensions_only():
    space = {"width": Integer(2, 3, static=True)}
    problem = with_hparams(PROBLEM, lambda h: {"act": "sin", "lr": 0.1} | h)
    found = hg.tune(problem, space, horizon=2, method="grid", budget=2, eval_seeds=2, num_seeds=1)
    assert sorted(found.table()["width"]) == [2, 3] and found.best["width"] in (2, 3)


@pytest.mark.slow
def test_the_command_line(tuned, tmp_path, capsys, monkeypatch):
    """On the study that Python made, and the words that begin one."""
    out = str(tuned[0])
    monkeypatch.setattr("hypergrad.cli.loading.load_task", lambda *_: task())
    monkeypatch.setattr("hypergrad.cli.loading.take_cores", lambda *_: None)
    seen = []

    def measure(task, hparams, key):
        seen.append(jax.eval_shape(lambda k: task.problem.init(k, hparams), key)["out"].shape[0])
        return dict.fromkeys(flatness.MEASURES, jnp.zeros(())), (jnp.zeros(2), jnp.zeros(2))

    monkeypatch.setattr(flatness, "_measure", measure)
    best = tuned[1].best
    assert cli.main(["flatness", out, "shapes", "--json"]) == 0
    assert set(seen) == {1, best["width"]}, "the widths of the default and of the tuned network"
    assert cli.main(["export", out]) == 0
    assert f'"act": "{best["act"]}"' in capsys.readouterr().out
    assert cli.main(["replay", out, "2", "shapes"]) == 0
    assert f"act {tuned[1].trials[0].hparams['act'][2]}" in capsys.readouterr().out
    start = ["tune", "shapes", "--method", "random", "--out", str(tmp_path / "new")]
    for words in (["--scheduler", "pb2"], ["--memory", "2G"]):
        assert cli.main([*start, *words]) == 2
        assert "space['act'] is static" in capsys.readouterr().err
    small = ["--population", "3", "--generations", "1", "--eval-seeds", "2", "--seeds", "1"]
    assert cli.main([*start, *small, "--log", "jsonl", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)["configurations"]["tuned"]["hparams"]
    assert found["act"] in ("tanh", "sin") and "  act " in said.err
