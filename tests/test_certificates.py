"""Certificates in the report: what `advice` says of a study's hypergradients, and nothing where all is good."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.core.cautions import UnreadWarning
from hypergrad.estimators import advice, average, forward, reverse
from hypergrad.estimators.advice import exploded_step, kind_of
from hypergrad.report.contents import page_contents
from hypergrad.report.page import render, write_report
from hypergrad.report.results import load_results
from hypergrad.searchers import Trials
from hypergrad.tuners import descent
from hypergrad.tuning.certificates import troubles

SETTINGS = {"budget": 3, "num_seeds": 2, "eval_seeds": 2}
HORIZON, KEY = 24, jax.random.key(0)
PAGE = importlib.import_module("hypergrad.report.page")


class Stop(BaseException):
    """Ends the process, as far as a study can tell."""


def swing(low, high, **unread) -> tuple[hg.Problem, dict]:
    """Return steps w − lr sin(w) and their rates: at rest for rates below 2, chaotic above about 6."""
    problem = hg.Problem(
        init=lambda key, hparams: {"angle": 1 + 0.1 * jax.random.normal(key, (2,))},
        loss=lambda params, hparams, batch: -jnp.sum(jnp.cos(params["angle"])),
        objective=lambda params, hparams, batch: jnp.sum(jnp.sin(params["angle"]) ** 2),
        optimizer=lambda hparams: optax.sgd(hparams["lr"]),
        train_batch=lambda key, step: jnp.zeros(1),
        valid_batch=lambda key: jnp.zeros(1),
    )
    return problem, {"lr": hg.LogReal(low, high), **unread}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """The report is drawn where a test looks at it."""
    monkeypatch.setattr(PAGE, "write_report", lambda folder: Path(folder) / "report.html")


def tuned(low, high, folder=None, **settings):
    problem, space = swing(low, high)
    return hg.tune(problem, space, horizon=HORIZON, storage=folder, **{**SETTINGS, **settings})


@pytest.mark.slow
def test_chaos_is_quoted_with_its_steps_and_also_after_a_pause(tmp_path):
    problem, space = swing(8.0, 12.0)
    whole = tuned(8.0, 12.0, tmp_path / "whole").result["warnings"]
    said = [line for line in whole if "training is chaotic here" in line]
    assert len(said) == 1, whole
    assert said[0].startswith("in 3 of 3 outer steps, first at step 0: in 2 of 2 estimates the ")

    def stop(now):
        if now.done == 2:
            raise Stop

    with pytest.raises(Stop):
        tuned(8.0, 12.0, tmp_path / "cut", callbacks=[hg.Callback(step=stop)])
    again = hg.resume(problem, tmp_path / "cut", space=space)
    assert again.result["warnings"] == whole
    texts = again.table()["advice"]
    assert all("chaotic" in text for text in texts)

    page = render(load_results(tmp_path / "whole"), {})
    assert page.count("training is chaotic here") == 1 and "<h2>Warnings</h2>" in page


def test_nothing_is_said_where_all_is_good(tmp_path):
    found = tuned(0.3, 0.8, tmp_path / "s")
    assert found.result["warnings"] == []
    assert all(text == "" for trials in found.trials for text in trials.info["advice"])
    results = load_results(tmp_path / "s")
    assert page_contents(results)["warnings"] == []
    assert "<h2>Warnings</h2>" not in render(results, {})


def test_a_leaf_that_nothing_reads_is_in_the_report_by_its_name():
    problem, space = swing(0.3, 0.8, idle=hg.Real(0.0, 1.0))
    with pytest.warns(UnreadWarning, match=r"hparams\['idle'\] is never read"):
        found = hg.tune(problem, space, horizon=4, method="random", budget=2, eval_seeds=2)
    assert [line for line in found.result["warnings"] if "hparams['idle'] is never read" in line]


@pytest.mark.slow
def test_training_that_is_not_at_rest_is_quoted():
    problem, space = swing(0.3, 0.8)
    problem = problem._replace(
        loss=lambda params, hparams, batch: jnp.sum((params["angle"] - hparams["lr"]) ** 2),
        optimizer=lambda hparams: optax.sgd(0.05),
        objective=lambda params, hparams, batch: jnp.sum(params["angle"] ** 2),
    )
    found = hg.tune(problem, space, horizon=2, estimator="implicit", **SETTINGS)
    (said,) = [x for x in found.result["warnings"] if "training has not come to rest" in x]
    assert said.startswith("in 3 of 3 outer steps, first at step 0: in 2 of 2 estimates")
    assert not [x for x in found.result["warnings"] if "residual" in x]


def study_of(*infos):
    """Return a study of one restart, each of whose steps has an info."""
    hparams = {"lr": np.ones((1, 100), np.float32), "w": np.ones(1, np.float32)}
    zero = np.zeros(1)
    trials = [Trials(hparams, zero, zero.astype(int), zero.astype(int), info) for info in infos]
    return hg.Study(None, 0.0, trials, False, 0.0)


def test_each_trouble_is_quoted_once_by_the_name_of_its_leaf():
    """Lines that differ in numbers are one; the numbers of a leaf's name are none of them."""
    texts = [
        "",
        "the derivative grew 2e+08 fold at entries of params['layers.0'] that rest",
        "the derivative grew 3e+09 fold at entries of params['layers.0'] that rest\n"
        "the derivative grew 3e+09 fold at entries of params['layers.1'] that rest",
    ]
    said = troubles(study_of(*({"advice": np.array([text])} for text in texts)))
    assert said == [
        "in 2 of 3 outer steps, first at step 1: " + texts[1],
        "in 1 of 3 outer steps, first at step 2: " + texts[2].splitlines()[1],
    ]
    assert kind_of("params['w2'] 1.5e-3, w3 -7") == "params['w2'] , w3 "
    assert troubles(study_of()) == troubles(study_of({}, {})) == []


def test_noise_is_named_where_a_whole_descent_could_not_see_through_it():
    """A sum of S draws of noise alone stays near its error; one that rose above it once has moved its leaf."""

    def info(lr, w):
        return {"leaf_norms": np.array([[lr, w]]), "leaf_errors": np.array([[1.0, 1.0]])}

    assert troubles(study_of(info(1.2, 3.0), info(1.3, 1.0))) == []
    said = troubles(study_of(info(1.0, 1.0), info(1.1, 2.0)))
    assert [line.split(" are mostly noise")[0] for line in said] == [
        "the hypergradients of hparams['lr']",
        "the hypergradients of hparams['w']",
    ]
    only = troubles(study_of(info(1.0, 1.0), info(1.1, 2.6)))
    assert len(only) == 1 and "hparams['lr']" in only[0] and "norm 1.1e+00" in only[0]
    advised = study_of({"advice": np.array(["the hypergradient is mostly noise; raise it"])})
    assert troubles(advised) == [], "one step of a descent may be noise"


def test_the_sums_of_a_descent_are_those_of_its_estimates():
    """Against the same estimates, made one by one."""
    problem, space = swing(0.3, 0.8)
    estimator = average(reverse(problem, 4), 3)
    tuner = descent(estimator, space, optimizer=optax.sgd(0.1))
    state, total, errors = tuner.init(jax.random.key(1)), 0.0, 0.0
    for step in range(2):
        hparams = {"lr": hg.space.constrain(space, {"lr": state.unconstrained["lr"][0]})["lr"]}
        key = jax.random.fold_in(jax.random.key(2), step)
        _, one = estimator.estimate(jax.random.split(key, 1)[0], (), hparams)
        total += float(one.hypergrad["lr"])
        errors += float(one.info.std_error["lr"]) ** 2
        state, trials = tuner.step(key, state)
        assert trials.info["leaf_norms"][0, 0] == pytest.approx(abs(total), rel=1e-4)
        assert trials.info["leaf_errors"][0, 0] == pytest.approx(errors**0.5, rel=1e-4)


def test_an_average_says_which_leaf_is_noise():
    problem = swing(0.3, 0.8)[0]
    found = average(reverse(problem, 4), 3).estimate(KEY, (), {"lr": jnp.float32(0.5)})[1]
    noisy = found._replace(info=found.info._replace(std_error={"lr": 10 * found.hypergrad["lr"]}))
    (said,) = advice(noisy)
    assert "hypergradient of hparams['lr'] has the norm" in said and "raise num_seeds" in said
    sure = found._replace(info=found.info._replace(std_error={"lr": 0 * found.hypergrad["lr"]}))
    assert advice(sure) == []


def test_a_system_that_bilevel_left_unsolved_is_named():
    def info(residual):
        return {"gradient_norm": np.ones(2), "residual": np.array([0.01, residual])}

    assert troubles(study_of(info(9.0), info(0.1))) == [], "at first it lags, and then it follows"
    (said,) = troubles(study_of(info(0.1), info(0.7)))
    assert "relative residual of 0.7 at the end" in said


@pytest.mark.slow
def test_the_page_is_written_with_its_quotes(tmp_path):
    tuned(8.0, 12.0, tmp_path / "s")
    text = write_report(tmp_path / "s").read_text()
    assert "in 3 of 3 outer steps, first at step 0: in 2 of 2 estimates the derivative" in text


@pytest.mark.parametrize("make", [reverse, forward])
def test_a_derivative_that_dies_out_has_not_exploded(make):
    """Training that contracts, in either direction; and the norms of one that grows and then dies out."""
    problem = swing(0.3, 0.8)[0]._replace(objective=lambda params, h, b: jnp.sum(params["angle"]))
    found = make(problem, 36).estimate(KEY, (), {"lr": jnp.float32(0.5)})[1]
    norms = np.asarray(found.info.sensitivity)
    assert found.info.growth < 0.6 and max(norms[0] / norms[-1], norms[-1] / norms[0]) > 1e6
    assert advice(found) == []
    assert exploded_step(np.array([1e-5, 1e8, 1e2, 1.0]), 0.1) == 1, (
        "towards the start, from 1 to 1e8"
    )
    towards_the_end = np.array([*np.ones(10), 1e7, *np.full(10, 1e-2)])
    assert exploded_step(towards_the_end, 0.1) == 10
