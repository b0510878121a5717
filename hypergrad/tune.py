"""The front door: tune a task, compare it with its baselines, leave a report."""

import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad import registry, space as spaces, storage, study, tree
from hypergrad.estimators import Estimator, average, plan, reverse
from hypergrad.estimators.base import StructuralZeroWarning
from hypergrad.population import population
from hypergrad.problem import Task, check, check_horizon
from hypergrad.schedulers import full
from hypergrad.searchers import Outcome, random
from hypergrad.train import init_state, unroll, unroll_losses
from hypergrad.tuners import Tuner, descent, search
from hypergrad.types import Array, HParams, Key

GENERATION = 16
"""Trials a generation of the random search."""
CURVE_POINTS = 25
"""Points of a validation curve."""


class Settings(NamedTuple):
    """How to tune.

    Attributes:
        method: "descent" or "random" (`registry.METHODS`).
        estimator: name of the hypergradient estimator ("reverse", "forward", "truncated", "implicit").
        budget: outer steps for "descent", trials for "random".
        seed: of everything.
        learning_rate: of the outer Adam, decayed to zero by a cosine over the budget.
        num_seeds: seeds averaged in each hypergradient; 1 for none.
        num_restarts: descents side by side.
        eval_seeds: fresh seeds on which every configuration is judged in the end.
        memory: bytes for the temporaries of one hypergradient by "reverse"; its default scheme where None.
    """

    method: str = "descent"
    estimator: str = "reverse"
    budget: int = 60
    seed: int = 0
    learning_rate: float = 0.05
    num_seeds: int = 4
    num_restarts: int = 1
    eval_seeds: int = 10
    memory: int | None = None


class Tuned(NamedTuple):
    """What tuning found.

    Attributes:
        hparams: the best hparams, numpy arrays.
        result: the comparison with default and random search, as written to `result.json`.
        study: the study of the method itself.
        report: path of the report, None if nothing was written.
    """

    hparams: HParams
    result: dict[str, Any]
    study: study.Study
    report: Path | None


class Progress(NamedTuple):
    """Where a run is, for a progress bar.

    Attributes:
        phase: "descent", "random" or "judge".
        done: steps done in this phase.
        total: steps in all.
        value: lowest objective of this step.
        best: lowest objective so far.
        hparams: {leaf name: value} of this step's best member; empty while judging.
    """

    phase: str
    done: int
    total: int
    value: float
    best: float
    hparams: dict[str, Any]


OnProgress = Callable[[Progress], Any]


def tune(
    task: Task,
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    details: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> Tuned:
    """Tune a task, judge the result on fresh seeds, and write the study and its report.

    The default hparams, the tuned ones and (for "descent") the best of as many random trials as cost
    the same training time are trained again on the same fresh seeds; the test set is read then, once.

    **Cost:** descent: budget x num_seeds x num_restarts hypergradients, and as much again for the random
    baseline.

    Args:
        task: what to tune.
        settings: how; the defaults of `Settings` where None.
        out: folder of the study; nothing is written where None.
        overwrite: replace a study that is there.
        details: further entries for `study.json` (the command, the task's arguments).
        on_progress: called after every step of every phase.

    Raises:
        ValueError: for a task or settings that cannot work, before anything compiles.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned = _tune(
            task, settings or Settings(), out, overwrite, details or {}, on_progress, caught
        )
    for text in _structural(caught):
        warnings.warn(text, StructuralZeroWarning, stacklevel=2)
    return tuned


def _structural(caught: list[warnings.WarningMessage]) -> list[str]:
    """List the warnings of structural zeros, each once; every compiled variant repeats them."""
    texts = [str(w.message) for w in caught if issubclass(w.category, StructuralZeroWarning)]
    return list(dict.fromkeys(texts))


def _tune(task, settings, out, overwrite, details, on_progress, caught) -> Tuned:
    began = time.perf_counter()
    _check_settings(task, settings)
    directory = None if out is None else storage.create(out, overwrite)
    show = on_progress or (lambda _: None)
    start = spaces.default(task.space)
    if directory is not None:
        storage.write_json(directory / "study.json", _describe(task, settings, details))

    tune_key, random_key, judge_key = jax.random.split(jax.random.key(settings.seed), 3)
    tuner, per_step = _build(task, settings)
    cost = per_step
    if settings.method == "descent":
        cost = per_step * measure_ratio(task, _estimator(task, settings), start)
    found = _run(settings.method, tuner, tune_key, _num_steps(settings), cost, directory, show)
    best = _best(task, found)

    configurations = {"default": start, "tuned": best}
    baseline = None
    if settings.method == "descent" and not found.interrupted:
        num_trials = max(1, round(cost * len(found.outcomes)))
        searcher = _random_tuner(task)
        generations = -(-num_trials // GENERATION)
        baseline = _run("random", searcher, random_key, generations, GENERATION, None, show)
        if baseline.best is not None:
            configurations["random"] = baseline.best

    show(Progress("judge", 0, 1, found.best_value, found.best_value, {}))
    judged = judge(task, configurations, judge_key, settings.eval_seeds)
    show(Progress("judge", 1, 1, found.best_value, found.best_value, {}))
    result = _result(task, settings, found, baseline, judged, cost)
    result["warnings"] += _structural(caught)
    result["seconds"] = time.perf_counter() - began
    path = None
    if directory is not None:
        storage.write_json(directory / "result.json", result)
        from hypergrad.report import report  # matplotlib is loaded for pictures only

        path = report(directory)
    return Tuned(best, result, found, path)


def _check_settings(task: Task, settings: Settings) -> None:
    if not isinstance(task, Task):
        raise ValueError(
            f"task is {type(task).__name__}, expected a hypergrad.Task; build one as tasks/digits.py does"
        )
    registry.check_name("method", settings.method, registry.METHODS)
    registry.check_name("estimator", settings.estimator, registry.ESTIMATORS)
    for name in ("budget", "num_seeds", "num_restarts", "eval_seeds"):
        check_horizon(getattr(settings, name), name)
    rate = settings.learning_rate
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
        raise ValueError(f"learning_rate is {rate!r}, expected a positive number; pass e.g. 0.05")
    if settings.method == "descent":
        spaces.check_differentiable(task.space)
    else:
        spaces.check_traceable(task.space)
    check(task.problem, spaces.default(task.space), task.horizon)


def _build(task: Task, settings: Settings) -> tuple[Tuner, float]:
    """Build the tuner, and say how many estimates or trials one of its steps costs."""
    if settings.method == "random":
        return _random_tuner(task), GENERATION
    estimator = _estimator(task, settings)
    if settings.num_seeds > 1:
        estimator = average(estimator, settings.num_seeds)
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.budget)
    tuner = descent(
        estimator, task.space, optimizer=optax.adam(rate), num_restarts=settings.num_restarts
    )
    return tuner, settings.num_seeds * settings.num_restarts


def _estimator(task: Task, settings: Settings) -> Estimator:
    if settings.memory is None:
        return registry.estimator(settings.estimator, task.problem, task.horizon)
    if settings.estimator != "reverse":
        raise ValueError(
            f"memory is given with estimator {settings.estimator!r}, expected 'reverse'; leave one out"
        )
    share = settings.memory // (settings.num_seeds * settings.num_restarts)
    chosen = plan(task.problem, spaces.default(task.space), task.horizon, max(1, share))
    return reverse(task.problem, task.horizon, backward=chosen.backward)


def _random_tuner(task: Task) -> Tuner:
    members = population(task.problem)
    return search(
        members, random(task.space, spaces.sample_constant), full(task.horizon), GENERATION
    )


def _num_steps(settings: Settings) -> int:
    if settings.method == "random":
        return -(-settings.budget // GENERATION)
    return settings.budget


def _run(method, tuner, key, num_steps, cost, directory, on_progress) -> study.Study:
    """Run a tuner, with a journal where there is a folder."""
    began = time.perf_counter()
    journal = None if directory is None else storage.Journal(directory / "journal.jsonl")

    def on_step(index, outcome, best):
        seconds = time.perf_counter() - began
        record = _record(index, outcome, best, cost * (index + 1), seconds)
        if journal is not None:
            journal.append(record)
        lowest = float(np.min(np.where(np.isfinite(outcome.values), outcome.values, np.inf)))
        on_progress(Progress(method, index + 1, num_steps, lowest, best, record["hparams"]))

    try:
        return study.run(tuner, key, num_steps, on_step)
    finally:
        if journal is not None:
            journal.close()


def _record(index: int, outcome: Outcome, best: float, trainings: float, seconds: float) -> dict:
    values = np.where(np.isfinite(outcome.values), outcome.values, np.inf)
    member = int(np.argmin(values))
    hparams = jax.tree.map(lambda x: x[member], outcome.hparams)
    return {
        "step": index,
        "values": outcome.values,
        **{name: value for name, value in outcome.info.items() if np.ndim(value) == 1},
        "best": best,
        "trainings": trainings,
        "seconds": seconds,
        "hparams": named(hparams),
    }


def named(hparams: HParams) -> dict[str, Any]:
    """Flatten hparams to {leaf name: value}."""
    return dict(zip(tree.leaf_names(hparams), jax.tree.leaves(hparams), strict=True))


def measure_ratio(
    task: Task, estimator: Estimator, hparams: HParams, num_repeats: int = 3
) -> float:
    """Measure the time of one hypergradient as a multiple of one training run, compilation excluded."""
    key = jax.random.key(0)

    def train(hparams):
        state = init_state(task.problem, key, hparams)
        return unroll(task.problem, hparams, state, task.horizon).params

    state = estimator.init(key, hparams)
    programs = (jax.jit(train), jax.jit(lambda h: estimator.estimate(key, state, h)))
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(num_repeats + 1):
        for program, seconds in zip(programs, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program(hparams))
            if repeat:  # the first call compiles
                seconds.append(time.perf_counter() - began)
    return float(np.median(times[1]) / np.median(times[0]))


def judge(
    task: Task, configurations: dict[str, HParams], key: Key, num_seeds: int
) -> dict[str, dict[str, Any]]:
    """Train every configuration on the same fresh seeds and read its curves and test scores.

    Returns:
        For each name: validation objective of each seed, curves, and the test metric with a 95 %
        bootstrap interval over test examples (scores averaged over seeds first).
    """
    interval = max(1, task.horizon // CURVE_POINTS)
    num_chunks, rest = divmod(task.horizon, interval)

    def one(hparams: HParams, key: Key) -> tuple[Array, Array, Array]:
        problem = task.problem
        state = init_state(problem, key, hparams)
        valid = problem.valid_batch(jax.random.fold_in(key, 1))

        def objective(state):
            return problem.objective(state.params, hparams, valid)

        def chunk(state, _):
            state, losses = unroll_losses(problem, hparams, state, interval)
            return state, (losses, objective(state))

        first = objective(state)
        state, (losses, values) = jax.lax.scan(chunk, state, None, length=num_chunks)
        state, late = unroll_losses(problem, hparams, state, rest)
        curve = jnp.concatenate([first[None], values, objective(state)[None]])
        return jnp.append(losses.reshape(-1), late), curve, task.test(state.params, hparams)

    @jax.jit
    def run(hparams, keys):
        return jax.lax.map(lambda key: one(hparams, key), keys)

    keys = jax.random.split(key, num_seeds)
    steps = [*range(0, num_chunks * interval + 1, interval), task.horizon]
    judged = {}
    for name, hparams in configurations.items():
        losses, curves, scores = map(np.asarray, run(jax.tree.map(jnp.asarray, hparams), keys))
        if not rest:
            curves = curves[:, :-1]
        judged[name] = {
            "hparams": named(hparams),
            "valid": {**_interval(curves[:, -1]), "values": curves[:, -1]},
            "test": _bootstrap(scores.mean(0)),
            "train_curve": _curve(np.arange(task.horizon), losses),
            "valid_curve": _curve(np.asarray(steps[: curves.shape[1]]), curves),
        }
    return judged


def _interval(values: np.ndarray) -> dict[str, Any]:
    """Mean over seeds and its 95 % interval by Student's t."""
    mean = values.mean(0)
    half = (
        _t95(len(values)) * values.std(0, ddof=1) / np.sqrt(len(values))
        if len(values) > 1
        else np.nan
    )
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _t95(num: int) -> float:
    """Two-sided 95 % quantile of Student's t with num − 1 degrees of freedom."""
    from scipy.stats import t  # comes with jax

    return float(t.ppf(0.975, num - 1))


def _curve(steps: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Thin a curve over seeds to what a picture can show."""
    keep = np.unique(np.round(np.linspace(0, len(steps) - 1, 400)).astype(int))
    return {"step": steps[keep], **_interval(values[:, keep])}


def _bootstrap(scores: np.ndarray, num_resamples: int = 2000) -> dict[str, Any]:
    """Mean of per-example scores with its 95 % percentile bootstrap interval over examples."""
    draws = np.random.default_rng(0).integers(len(scores), size=(num_resamples, len(scores)))
    means = scores[draws].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": scores.mean(), "low": low, "high": high, "num": len(scores)}


def _trace(found: study.Study, cost: float) -> dict[str, Any]:
    values = [np.where(np.isfinite(o.values), o.values, np.inf) for o in found.outcomes]
    lowest = [float(v.min()) for v in values]
    trace = {
        "trainings": [cost * (i + 1) for i in range(len(lowest))],
        "value": lowest,
        "best": np.minimum.accumulate(lowest) if lowest else [],
    }
    names = ("direct_norm", "response_norm", "adjoint_growth")
    if found.outcomes and all(name in found.outcomes[0].info for name in names):
        members = [int(v.argmin()) for v in values]
        for name in names:
            pairs = zip(found.outcomes, members, strict=True)
            trace[name] = [float(o.info[name][m]) for o, m in pairs]
        trace["skipped"] = int(sum(o.info["skipped"].sum() for o in found.outcomes))
    return trace


def _result(task, settings, found, baseline, judged, cost) -> dict[str, Any]:
    notes = []
    trace = _trace(found, cost)
    if trace.get("skipped"):
        notes.append(f"{trace['skipped']} steps were not finite; they were skipped")
    growth = trace.get("adjoint_growth", [])
    if len(growth) and np.nanmax(growth) > 1.05:
        worst = int(np.nanargmax(growth))
        notes.append(
            f"the adjoint grew by {growth[worst]:.3f} a training step at outer step {worst}: training is "
            "near chaos there, and its gradients are hardly useful; lower the learning rates"
        )
    if found.best is None:
        notes.append("no trial had a finite objective; 'tuned' shows the defaults")
    result = {
        "metric": {"name": task.metric, "higher_is_better": task.higher_is_better},
        "objective_name": "validation loss",
        "configurations": judged,
        "trace": trace,
        "snippet": task.snippet(_best(task, found)) if task.snippet else None,
        "warnings": notes,
        "interrupted": found.interrupted,
        "num_seeds": settings.eval_seeds,
    }
    if baseline is not None:
        result["random_trace"] = _trace(baseline, GENERATION)
    return result


def _best(task: Task, found: study.Study) -> HParams:
    best = spaces.default(task.space) if found.best is None else found.best
    return jax.tree.map(np.asarray, best)


def _describe(task: Task, settings: Settings, details: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("hypergrad-jax", "jax", "jaxlib", "flax", "optax", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "format": storage.FORMAT,
        "task": task.name,
        "task_arguments": {},
        "method": settings.method,
        "settings": settings._asdict(),
        "seed": settings.seed,
        "horizon": task.horizon,
        "space": {n: repr(d) for n, d in named(task.space).items()},
        "versions": versions,
        "device": str(jax.devices()[0]),
        "command": "hypergrad.tune(...)",
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "description": task.description,
        **details,
    }
