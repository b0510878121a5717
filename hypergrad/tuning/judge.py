"""Judge configurations on fresh seeds: curves, validation objectives and test scores with intervals."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.methods import StepCost
from hypergrad.core.types import Array, HParams, Key
from hypergrad.populations import per_shape
from hypergrad.problem import Problem, Task
from hypergrad.report.extras import check_diagram, check_snippet
from hypergrad.report.study import Study
from hypergrad.searchers import final_values
from hypergrad.space import static
from hypergrad.train import TrainState, init_state, split_key, unroll, unroll_losses
from hypergrad.tuners import TUNERS
from hypergrad.tuning.certificates import troubles
from hypergrad.tuning.provenance import final_digest
from hypergrad.tuning.settings import Settings

CURVE_POINTS = 25
"""Number of points of a validation curve."""

FINALISTS = 10
"""Number of trials of each method that are trained again before one of them is chosen."""


def judge(
    task: Task, configurations: dict[str, HParams], key: Key, num_seeds: int
) -> dict[str, dict[str, Any]]:
    """Train every configuration on the same fresh seeds, and read its curves and test scores.

    Returns:
        For each name: the validation objective of each seed, curves, and the test metric with a 95 %
        bootstrap interval over test examples, whose scores are averaged over seeds first. The test metric is
        empty without a test set.
    """
    interval = max(1, task.horizon // CURVE_POINTS)
    steps = [*range(0, task.horizon - task.horizon % interval + 1, interval)]
    steps += [task.horizon] * (task.horizon % interval > 0)

    def build(task: Task) -> Callable[[HParams, Key], _Measured]:
        return lambda h, keys: jax.lax.map(lambda key: _measure(task, interval, h, key), keys)

    run, keys = per_shape(task, build), jax.random.split(key, num_seeds)
    judged = {}
    for name, hparams in configurations.items():
        losses, curves, scores = map(np.asarray, run(hparams, keys))
        curves = curves[:, : len(steps)]
        judged[name] = {
            "hparams": tree.named(hparams),
            "valid": {**_interval(curves[:, -1]), "values": curves[:, -1]},
            "test": {} if task.test is None else _bootstrap(scores.mean(0)),
            "train_curve": _curve(np.arange(task.horizon), losses),
            "valid_curve": _curve(np.asarray(steps), curves),
        }
    return judged


_Measured = tuple[Array, Array, Array]
"""Training losses `[T]`, validation objectives `[C]`, test scores `[num_test]`."""


def _measure(task: Task, interval: int, hparams: HParams, key: Key) -> _Measured:
    """Train one network, and evaluate its objective every `interval` steps, at the start and at the end."""
    problem = task.problem
    state = init_state(problem, key, hparams)
    valid = problem.valid_batch(split_key(key)[1])
    num_chunks, rest = divmod(task.horizon, interval)

    def objective(state: TrainState) -> Array:
        return problem.objective(state.params, hparams, valid)

    def chunk(state: TrainState, _: None) -> tuple[TrainState, tuple[Array, Array]]:
        state, losses = unroll_losses(problem, hparams, state, interval)
        return state, (losses, objective(state))

    first = objective(state)
    state, (losses, values) = jax.lax.scan(chunk, state, None, length=num_chunks)
    state, late = unroll_losses(problem, hparams, state, rest)
    curve = jnp.concatenate([first[None], values, objective(state)[None]])
    scores = jnp.zeros(0) if task.test is None else task.test(state.params, hparams)
    return jnp.append(losses.reshape(-1), late), curve, scores


def choose_best(
    task: Task, settings: Settings, found: Study, method: str, key: Key
) -> tuple[HParams, float]:
    """Choose among the finalists of a method by their mean objective over the same seeds."""
    if found.best is None:
        start = spaces.default(task.space)
        return static.restored(task.space, jax.tree.map(np.asarray, start)), float("inf")
    ranked = [
        (float(value), trials, member)
        for trials in (found.trials[-FINALISTS:] if method in TUNERS else found.trials)
        for member, value in enumerate(final_values(trials))
        if np.isfinite(value)
    ]
    ranked = sorted(ranked, key=lambda trial: trial[0])[:FINALISTS]
    finalists = [jax.tree.map(lambda x, m=m: x[m], trials.hparams) for _, trials, m in ranked]
    finalists.append(found.best)
    values = mean_objectives(task, finalists, key, max(settings.num_seeds, 4))
    if not np.any(np.isfinite(values)):
        return static.restored(task.space, found.best), found.best_value
    best = int(np.nanargmin(np.where(np.isfinite(values), values, np.nan)))
    return static.restored(task.space, finalists[best]), float(values[best])


def mean_objectives(
    task: Task, configurations: list[HParams], key: Key, num_seeds: int
) -> np.ndarray:
    """Train every configuration on the same seeds; return its mean validation objective, `[N]`."""

    def one(problem: Problem, hparams: HParams, key: Key) -> Array:
        state = unroll(problem, hparams, init_state(problem, key, hparams), task.horizon)
        valid = problem.valid_batch(split_key(key)[1])
        return problem.objective(state.params, hparams, valid)

    def build(task: Task) -> Callable[[HParams, Key], Array]:
        return lambda h, keys: jnp.mean(jax.lax.map(lambda key: one(task.problem, h, key), keys))

    mean, keys = per_shape(task, build), jax.random.split(key, num_seeds)
    return np.array([mean(hparams, keys) for hparams in configurations])


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
    from scipy.stats import t  # comes with jax

    return float(t.ppf(0.975, num - 1))


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
    """
    trace = _trace(found, cost.trainings)
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


def _trace(found: Study, cost: float) -> dict[str, Any]:
    """Return columns with one value per step: its cost, its best trial, and the terms of the hypergradient."""
    values = [final_values(trials) for trials in found.trials]
    lowest = [float(v.min()) for v in values]
    trace = {
        "trainings": [cost * (i + 1) for i in range(len(lowest))],
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
    return trace


def _total(found: Study, name: str) -> int:
    """Return the sum of an entry of `info` over all trials; zero where the method has no such entry."""
    return sum(int(t.info[name].sum()) for t in found.trials if name in t.info)


def _said(found: Study, trace: dict[str, Any]) -> list[str]:
    """Return the troubles of a study, in sentences."""
    said = []
    if trace.get("skipped"):
        said.append(f"steps that were not finite, and were skipped: {trace['skipped']}")
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
