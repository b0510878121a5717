"""Judge configurations on fresh seeds: curves, validation objectives and test scores with intervals."""

from itertools import pairwise
from typing import Any

import numpy as np

from hypergrad.core import tree
from hypergrad.core.methods import StepCost
from hypergrad.core.types import HParams, Key
from hypergrad.populations import Population
from hypergrad.problem import Task
from hypergrad.report.extras import check_diagram, check_snippet
from hypergrad.report.study import Study
from hypergrad.searchers import final_values
from hypergrad.tuning.certificates import troubles
from hypergrad.tuning.finalists import first_states
from hypergrad.tuning.pool import Mixture, over_draws, spread_of
from hypergrad.tuning.provenance import final_digest
from hypergrad.tuning.settings import Settings

CURVE_POINTS = 25
"""Number of points of a validation curve."""


def judge(
    task: Task, members: Population, configurations: dict[str, Mixture], keys: Key
) -> dict[str, dict[str, Any]]:
    """Train every configuration from the same keys, and read its curves and test scores.

    What a pool of trials ends with by chance is the mean over its candidates, each with its probability.

    Args:
        task: Task that was tuned.
        members: Population of any number of members.
        configurations: What each way ends with, by name.
        keys: Fresh keys of the runs of each, `[S]`.

    Returns:
        For each name: the validation objective of each seed, curves, and the test metric with a 95 %
        bootstrap interval over test examples, whose scores are averaged over seeds first. The test metric is
        empty without a test set. Several candidates have the standard deviation of their objectives from
        draw to draw, and the hparams of the likeliest.
    """
    interval = max(1, task.horizon // CURVE_POINTS)
    steps = [*range(0, task.horizon - task.horizon % interval + 1, interval)]
    steps += [task.horizon] * (task.horizon % interval > 0)
    candidates = [one for found in configurations.values() for one in found.hparams]
    hparams, states = first_states(task, members, candidates, keys)
    curves, losses = [members.value(hparams, states)], []
    for before, after in pairwise(steps):
        states, found = members.follow(hparams, states, after - before)
        losses.append(np.asarray(found)[:, : after - before])
        curves.append(members.value(hparams, states))
    scores = None if task.test is None else members.measure(task.test, hparams, states)

    def of_each(found: Any) -> np.ndarray:
        found = np.asarray(found)
        return found.reshape(len(candidates), len(keys), *found.shape[1:])

    loss, curve = of_each(np.concatenate(losses, 1)), of_each(np.stack(curves, 1))
    test = None if scores is None else of_each(scores)
    judged, first = {}, 0
    for name, found in configurations.items():
        own, weights = slice(first, first + len(found.hparams)), found.weights
        valid = over_draws(weights, curve[own])
        judged[name] = {
            "hparams": tree.named(found.hparams[0]),
            "valid": {**_interval(valid[:, -1]), "values": valid[:, -1]},
            "test": {} if test is None else _bootstrap(over_draws(weights, test[own]).mean(0)),
            "train_curve": _curve(np.arange(task.horizon), over_draws(weights, loss[own])),
            "valid_curve": _curve(np.asarray(steps), valid),
        }
        if len(weights) > 1:
            judged[name]["draws_std"] = spread_of(weights, curve[own, :, -1].mean(1))
        first = own.stop
    return judged


def _interval(values: np.ndarray) -> dict[str, Any]:
    """Return the mean over seeds and its 95 % interval by Student's t; NaN where an objective is infinite."""
    with np.errstate(invalid="ignore"):  # infinite objectives have no spread
        mean = values.mean(0)
        half = (
            _t95(len(values)) * values.std(0, ddof=1) / np.sqrt(len(values))
            if len(values) > 1
            else np.nan
        )
        return {"mean": mean, "low": mean - half, "high": mean + half}


def _t95(num: int) -> float:
    """Return the two-sided 95 % quantile of Student's t with num − 1 degrees of freedom."""
    from scipy.special import stdtrit  # comes with jax; `scipy.stats` takes half a second to import

    return float(stdtrit(num - 1, 0.975))


def _curve(steps: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Thin a curve over seeds to the points that a picture can show."""
    keep = np.unique(np.round(np.linspace(0, len(steps) - 1, 400)).astype(int))
    return {"step": steps[keep], **_interval(values[:, keep])}


def _bootstrap(scores: np.ndarray, num_resamples: int = 2000) -> dict[str, Any]:
    """Return the mean of per-example scores with its 95 % percentile bootstrap interval over examples."""
    random = np.random.default_rng(0)
    num = len(scores)
    means = [scores[random.integers(num, size=num)].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": scores.mean(), "low": low, "high": high, "num": len(scores)}


def result_of(
    task: Task,
    settings: Settings,
    found: Study,
    baseline: Study | None,
    judged: dict[str, dict[str, Any]],
    cost: StepCost,
    best: HParams,
    before: float = 0.0,
) -> dict[str, Any]:
    """Return the content of `result.json` for a finished study.

    Args:
        task: Task that was tuned.
        settings: Settings of the study.
        found: Trials of the method.
        baseline: Trials of random search; None where it was not run.
        judged: Result of `judge`.
        cost: Cost of one step of the method.
        best: Chosen hparams.
        before: Trainings of the scout before the method.
    """
    trace = _trace(found, cost.trainings, before)
    said = _said(found, trace)
    snippet = diagram = None
    try:
        snippet = task.snippet and check_snippet(task.snippet, best)
        diagram = task.diagram and check_diagram(task.diagram, best)
    except ValueError as error:  # it worked for the defaults; the study must not be lost
        said.append(str(error))
    result = {
        "metric": {"name": task.metric, "higher_is_better": task.higher_is_better},
        "objective_name": "validation loss",
        "configurations": judged,
        "trace": trace,
        "snippet": snippet,
        "diagram": diagram,
        "notes": task.notes or {},
        "warnings": said,
        "interrupted": found.interrupted or (baseline is not None and baseline.interrupted),
        "num_seeds": settings.eval_seeds,
        "digest": found.digest,
        "final_digest": final_digest(found, baseline, judged),
        "cost": cost._asdict(),
        "clock": {settings.method: found.seconds},
    }
    if baseline is not None:
        result["clock"]["random"] = baseline.seconds
        size = len(baseline.trials[0].values) if baseline.trials else 1
        result["random_trace"] = _trace(baseline, size)
    return result


def _trace(found: Study, cost: float, before: float = 0.0) -> dict[str, Any]:
    """Return columns with one value per step: its cost, its best trial, and the terms of the hypergradient."""
    values = [final_values(trials) for trials in found.trials]
    lowest = [float(v.min()) for v in values]
    trace = {
        "trainings": [before + cost * (i + 1) for i in range(len(lowest))],
        "value": lowest,
        "best": np.minimum.accumulate(lowest) if lowest else [],
    }
    names = ("direct_norm", "response_norm", "adjoint_growth")
    if found.trials and all(name in found.trials[0].info for name in names):
        members = [int(v.argmin()) for v in values]
        for name in names:
            pairs = zip(found.trials, members, strict=True)
            trace[name] = [float(trials.info[name][m]) for trials, m in pairs]
        trace["skipped"] = _total(found, "skipped")
        trace["taken_back"] = _total(found, "taken_back")
    return trace


def _total(found: Study, name: str) -> int:
    """Return the sum of an entry of `info` over all trials; zero where the method has no such entry."""
    return sum(int(t.info[name].sum()) for t in found.trials if name in t.info)


def _said(found: Study, trace: dict[str, Any]) -> list[str]:
    """Return the troubles of a study, in sentences."""
    said = []
    if trace.get("skipped"):
        said.append(f"steps that were not finite, and were skipped: {trace['skipped']}")
    if back := trace.get("taken_back"):
        said.append(f"steps that were taken back, because the objective jumped: {back}")
    if refused := _total(found, "refused"):
        said.append(
            f"updates that left the response out, because its solve was not finite or no better than zero: "
            f"{refused}"
        )
    if dropped := _total(found, "dropped"):
        said.append(
            f"windows of training dropped because the shared weights diverged: {dropped}; some of the policy's "
            "rates are too large"
        )
    said += troubles(found)
    if found.best is None:
        said.append("no trial had a finite objective; 'tuned' shows the defaults")
    return said
