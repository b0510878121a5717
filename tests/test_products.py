"""Every searcher times every scheduler: one contract, resumable, by the front door and the command line."""

import importlib
import json
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad import study
from hypergrad.cli import main as cli
from hypergrad.curvature import bounded
from hypergrad.populations import layout_for, population, vectorized
from hypergrad.problem import Examples, Problem
from hypergrad.schedulers import SCHEDULERS
from hypergrad.schedulers.base import SchedulerWarning
from hypergrad.schedulers.hyperband import brackets
from hypergrad.searchers import SEARCHERS, Prior, final_values
from hypergrad.space import Choice, Integer, LogReal, Real
from hypergrad.tuners import Tuner, search
from hypergrad.tuning.build import within_memory
from tasks import quadratic

KEY = jax.random.key(1)
SPACE = {
    "rate": LogReal(0.1, 1.0),
    "end": Real(0, 1),
    "size": Integer(1, 3),
    "kind": Choice(("a", "b", "c", "d")),
}
SIZE, HORIZON = 12, 9
PRIOR = {"rate": Prior(0.5), "kind": Prior("b")}
SEARCHES = [name for name in SEARCHERS if not name.startswith("optuna_")]


BOUND = 0.7


def objective(w, h, batch):
    """A learning curve with ties (sizes and options are few), NaN for "d", and -inf in a corner."""
    curve = h["size"] + jnp.round(4 * h["end"]) / 4 + 1 / (1 + w)
    curve = jnp.where(h["end"] > BOUND, curve - 9, curve)  # the lowest of all is beyond the bound
    curve = jnp.where(h["kind"] == 3, jnp.nan, curve)
    return jnp.where((h["kind"] == 2) & (h["size"] > 1), -jnp.inf, curve)


PLAIN = Problem(
    init=lambda key, h: jnp.zeros(()),
    loss=lambda w, h, b: -w * h["rate"],
    objective=objective,
    optimizer=lambda h: optax.sgd(1.0),
    train_batch=lambda key, step: (),
    valid_batch=lambda key: (),
)
CURVE = bounded(PLAIN, lambda w, h: h["end"], BOUND)
"""Infinite beyond the bound."""
MEMBERS = population(CURVE, layout=vectorized())


def product(method, scheduler) -> Tuner:
    prior = PRIOR if method == "prior" else None
    searcher = SEARCHERS[method].make(SPACE, 4 * SIZE, SIZE, prior)
    made, _ = SCHEDULERS[scheduler].make(CURVE, SPACE, HORIZON, SIZE)
    return search(MEMBERS, searcher, made, SIZE)


def types(tree):
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("method", SEARCHES)
def test_contract(method, scheduler):
    """A generation of any product can be compiled as a whole, and follows another in a scan."""
    tuner = product(method, scheduler)
    state = jax.eval_shape(tuner.init, KEY)
    after, outcome = jax.eval_shape(tuner.step, KEY, state)
    chex.assert_trees_all_equal_structs(after, state)
    assert types(after) == types(state)
    assert outcome.values.shape == outcome.steps.shape == outcome.parent.shape == (SIZE,)
    assert outcome.info["key"].shape == (SIZE, 2)
    assert {n: x.shape for n, x in outcome.hparams.items()} == dict.fromkeys(SPACE, (SIZE,))


PRODUCTS = [
    ("cross_entropy", "halving"),
    ("evolution", "hyperband"),
    ("tpe", "hyperband"),
    ("bayes", "pbt"),
    ("random", "flatness"),
    ("random", "pbt"),
]
"""Each scheduler, and each searcher with much state, at least once."""


LONG = ("tpe", "bayes", "evolution")
"""Searchers that take seconds to compile."""


@pytest.mark.parametrize(
    ("method", "scheduler"),
    [pytest.param(*p, marks=[pytest.mark.slow] if p[0] in LONG else []) for p in PRODUCTS],
)
def test_resumed_to_the_same_bits_with_failures_and_ties(tmp_path, method, scheduler):
    class Stop(Exception):
        pass

    def stop(index, outcome, best):
        if index == 1:
            raise Stop

    tuner = product(method, scheduler)
    cost = SCHEDULERS[scheduler].make(CURVE, SPACE, HORIZON, SIZE)[1]
    whole = study.run(tuner, KEY, 3)
    values = np.stack([o.values for o in whole.trials])
    if scheduler != "pbt":  # whose members that fail go on from others
        assert np.isnan(values).any() and np.isneginf(values).any() and np.isposinf(values).any()
        assert len(np.unique(values)) < values.size
    best = min(final_values(o).min() for o in whole.trials)
    assert whole.best_value == best and np.isfinite(best)
    check_bound(whole)
    for outcome in whole.trials:
        assert outcome.steps.max() == HORIZON and outcome.steps.sum() == round(cost * HORIZON)
    with pytest.raises(Stop):
        study.run(tuner, KEY, 3, stop, storage=tmp_path / "s", checkpoint_seconds=0)
    assert study.resume_run(tuner, tmp_path / "s").digest == whole.digest
    assert study.run(tuner, jax.random.key(2), 1).trials[0].hparams["end"].tolist() != (
        whole.trials[0].hparams["end"].tolist()
    )


REST = sorted(set(SEARCHES) - {method for method, _ in PRODUCTS})


@pytest.mark.parametrize("method", REST)
def test_what_is_beyond_the_bound_is_never_best(method):
    tuner = product(method, "full")
    found = study.run(tuner, KEY, 2)
    check_bound(found)
    assert any(np.isposinf(o.values).any() for o in found.trials)
    values = np.concatenate([o.values for o in found.trials])
    assert found.best_value == values[np.isfinite(values)].min()


def check_bound(found):
    """What is beyond the bound is infinite, and a low objective within it is the best."""
    beyond = np.concatenate([o.hparams["end"] for o in found.trials]) > BOUND
    values = np.concatenate([o.values for o in found.trials])
    assert not np.isfinite(values[beyond]).any()
    assert np.isfinite(found.best_value) and found.best["end"] <= BOUND


def test_flatness_says_that_it_stops_nothing_within_an_epoch():
    examples = Examples(40, lambda index: index)
    sized = CURVE._replace(train_set=examples, train_batch=lambda key, step: jnp.zeros(8))
    with pytest.warns(
        SchedulerWarning, match="an epoch has no fewer steps than the horizon of 5"
    ) as said:
        assert SCHEDULERS["flatness"].make(sized, SPACE, 5, SIZE)[1] == SIZE
    assert len(said) == 1 and "\n" not in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cost = SCHEDULERS["flatness"].make(sized, SPACE, 6, SIZE)[1]
    assert cost == (SIZE * 5 + SIZE // 5) / 6


@pytest.mark.filterwarnings("ignore:scheduler 'flatness' trains every trial to the end")
@pytest.mark.parametrize("size", [1, 3, 16, 27, 64, 300])
@pytest.mark.parametrize("horizon", [1, 2, 7, 100, 997])
def test_any_size_and_horizon_has_rungs(size, horizon):
    for name in ("halving", "hyperband", "pbt", "flatness"):
        cost = SCHEDULERS[name].make(CURVE, SPACE, horizon, size)[1]
        assert size / horizon <= cost <= size
    for last in range(4):
        if 3**last <= min(size, horizon):
            ladder = brackets(horizon, min_steps=horizon // 3**last, eta=3, num=size)
            assert len(ladder) == last + 1 and sum(rungs[0].num for rungs in ladder) == size
            for s, rungs in enumerate(ladder):
                steps = [rung.steps for rung in rungs]
                assert steps == sorted(set(steps)) and steps[-1] == horizon
                assert len(rungs) == last + 1 - s and rungs[-1].num >= 1
    with pytest.raises(ValueError, match="hparams has 2 members, expected at least 3"):
        brackets(9, num=2)


# ---- layouts of the command line


@pytest.mark.parametrize(
    ("num", "width", "label", "expected"),
    [
        (16, None, "chunks of 4", 4),
        (3, None, "all side by side", None),
        (16, 5, "chunks of 5", 5),
        (16, 40, "all side by side", None),
    ],
)
def test_layout_of_one_device(num, width, label, expected):
    layout = layout_for(num, 1, width)
    assert (layout.label, layout.width) == (label, expected)


def test_a_memory_bound_is_measured_and_recorded():
    task = quadratic.task(horizon=4, num_params=2)
    settings = hg.Settings(method="random", population=6, generations=1, memory=2**30)
    chosen = within_memory(task, settings)
    assert chosen == settings._replace(chunk=chosen.chunk) and chosen.chunk in (1, 4, 6)
    assert within_memory(task, chosen) == chosen
    with pytest.raises(ValueError, match="memory is 10 bytes, expected at least"):
        within_memory(task, settings._replace(memory=10))


# ---- the front door


TASK = quadratic.task(horizon=9, num_params=2)
SETTINGS = {
    "method": "cross_entropy",
    "scheduler": "halving",
    "population": 12,
    "generations": 3,
    "eval_seeds": 2,
    "devices": 1,
}


@pytest.fixture
def no_report(monkeypatch):
    """The report has tests of its own; drawing takes seconds."""
    module = importlib.import_module("hypergrad.report.page")
    monkeypatch.setattr(module, "write_report", lambda folder: Path(folder) / "report.html")


@pytest.mark.slow
def test_tuned_resumed_and_told_by_generation(tmp_path, no_report, capsys, monkeypatch):
    seen, root = [], Path(__file__).parent.parent

    def stop(now):
        if now.phase == "cross_entropy":
            seen.append(now)
            if len(seen) == 2:
                raise KeyboardInterrupt

    half = hg.tune(TASK, storage=tmp_path / "a", callbacks=[hg.Callback(step=stop)], **SETTINGS)
    assert half.interrupted and [len(o.values) for o in half.trials] == [12, 12]
    assert [now.total for now in seen] == [3, 3]
    for now, outcome in zip(seen, half.trials, strict=True):
        assert now.value == final_values(outcome).min() and now.numbers["failures"] == 0
        assert now.numbers["median"] == np.median(outcome.values)
        assert now.numbers["trainings"] == pytest.approx(now.done * outcome.steps.sum() / 9)
    resumed = hg.resume(TASK, tmp_path / "a")
    assert resumed.result["trace"]["trainings"][-1] == pytest.approx(3 * (12 + 4 * 2 + 1 * 6) / 9)
    finalists = {tuple(o.hparams["lr"][final_values(o).argmin()]) for o in resumed.trials}
    assert tuple(resumed.best["lr"]) in finalists, "the best is of those trained to the end"

    monkeypatch.chdir(root)
    words = [w for n, v in SETTINGS.items() for w in ("--" + n.replace("_", "-"), str(v))]
    out = ["--horizon", "9", "--arg", "num_params=2", "--out", str(tmp_path / "b")]
    assert cli.main(["tune", "quadratic", *words, *out]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "compiling the first step" in said[0]
    lines = [line for line in said if line.startswith("cross_entropy ")]
    assert len(lines) == 3
    assert "cross_entropy 2/3, " in lines[1] and " s left  loss " in lines[1]
    assert "  best " in lines[1] and "  median " in lines[1] and "  failed 0" in lines[1]
    digest = json.loads((tmp_path / "b" / "result.json").read_text())["digest"]
    assert digest == resumed.digest == resumed.result["digest"]

    file = tmp_path / "s.toml"
    keys = [f"{n} = {json.dumps(v)}" for n, v in SETTINGS.items()]
    table = ["[arg]", "horizon = 9", "num_params = 2"]
    file.write_text("\n".join(['task = "quadratic"', *keys, *table]))
    assert cli.main(["run", str(file), "--quiet", "--out", str(tmp_path / "c")]) == 0
    assert json.loads((tmp_path / "c" / "result.json").read_text())["digest"] == digest
    assert cli.main(["resume", str(tmp_path / "c"), "quadratic", "--quiet"]) == 0


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_infinite_objectives_are_judged_in_silence(no_report):
    """The default lies beyond the bound: its objective has a mean, infinity, and no interval."""
    changed = bounded(TASK.problem, lambda w, h: jnp.max(h["lr"]), 1e-3)
    start = hg.space.default(TASK.space)["lr"]
    assert jnp.max(start) > 1e-3
    found = hg.tune(
        TASK._replace(problem=changed), method="random", budget=4, eval_seeds=2, devices=1
    )
    valid = found.result["configurations"]["default"]["valid"]
    assert np.isposinf(valid["mean"]) and np.isnan(valid["low"]) and np.isnan(valid["high"])


BAD = {
    "scheduler is 'halvin'": (
        {"method": "random", "scheduler": "halvin"},
        "did you mean 'halving'",
    ),
    "scheduler": ({"method": "descent", "scheduler": "halving"}, "scheduler is given with method"),
    "devices": ({"method": "bilevel", "devices": 1}, "devices is given with method 'bilevel'"),
    "too many": ({"method": "random", "devices": 99}, "devices is 99, expected a number from 1"),
    "none": ({"method": "random", "devices": 0}, "devices is 0, expected a whole number"),
    "chunk": ({"method": "random", "chunk": 0}, "chunk is 0, expected a whole number"),
    "elites": (
        {"method": "cross_entropy", "population": 2, "scheduler": "pbt"},
        "population is 2 with",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(tmp_path, name):
    settings, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        hg.tune(TASK, storage=tmp_path / "s", **settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "s").exists()
