"""Judge configurations on fresh seeds: curves, validation objectives and test scores with intervals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import tree
from hypergrad.groups import per_shape
from hypergrad.problem import Problem, Task
from hypergrad.train import init_state, unroll, unroll_losses
from hypergrad.types import Array, HParams, Key

CURVE_POINTS = 25
"""Points of a validation curve."""


def judge(
    task: Task, configurations: dict[str, HParams], key: Key, num_seeds: int
) -> dict[str, dict[str, Any]]:
    """Train every configuration on the same fresh seeds and read its curves and test scores.

    Returns:
        For each name: validation objective of each seed, curves, and the test metric with a 95 %
        bootstrap interval over test examples (scores averaged over seeds first); empty without a test set.
    """
    interval = max(1, task.horizon // CURVE_POINTS)
    num_chunks, rest = divmod(task.horizon, interval)

    def one(task: Task, hparams: HParams, key: Key) -> tuple[Array, Array, Array]:
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
        scores = jnp.zeros(0) if task.test is None else task.test(state.params, hparams)
        return jnp.append(losses.reshape(-1), late), curve, scores

    def build(task: Task):
        return lambda hparams, keys: jax.lax.map(lambda key: one(task, hparams, key), keys)

    run = per_shape(task, build)

    keys = jax.random.split(key, num_seeds)
    steps = [*range(0, num_chunks * interval + 1, interval), task.horizon]
    judged = {}
    for name, hparams in configurations.items():
        losses, curves, scores = map(np.asarray, run(hparams, keys))
        if not rest:
            curves = curves[:, :-1]
        judged[name] = {
            "hparams": tree.named(hparams),
            "valid": {**_interval(curves[:, -1]), "values": curves[:, -1]},
            "test": {} if task.test is None else _bootstrap(scores.mean(0)),
            "train_curve": _curve(np.arange(task.horizon), losses),
            "valid_curve": _curve(np.asarray(steps[: curves.shape[1]]), curves),
        }
    return judged


def validate(task: Task, configurations: list[HParams], key: Key, num_seeds: int) -> np.ndarray:
    """Train every configuration on the same seeds; return its mean validation objective, `[N]`."""

    def one(problem: Problem, hparams: HParams, key: Key) -> Array:
        state = unroll(problem, hparams, init_state(problem, key, hparams), task.horizon)
        valid = problem.valid_batch(jax.random.fold_in(key, 1))
        return problem.objective(state.params, hparams, valid)

    def build(task: Task):
        return lambda h, keys: jnp.mean(jax.lax.map(lambda key: one(task.problem, h, key), keys))

    mean, keys = per_shape(task, build), jax.random.split(key, num_seeds)
    return np.array([mean(hparams, keys) for hparams in configurations])


def _interval(values: np.ndarray) -> dict[str, Any]:
    """Mean over seeds and its 95 % interval by Student's t; NaN where an objective is infinite."""
    with np.errstate(invalid="ignore"):  # the spread of infinite objectives is no number
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
    random = np.random.default_rng(0)
    num = len(scores)
    means = [scores[random.integers(num, size=num)].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": scores.mean(), "low": low, "high": high, "num": len(scores)}
