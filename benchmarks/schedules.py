"""A learning-rate schedule tuned by gradient against the best constant, the best cosine and random search.

Only the learning rate differs: each method trains the same network for the same number of steps, with the
task's defaults for everything else. Each chooses by validation loss on its own seeds; all are then judged on
ten fresh ones.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import t as student

from benchmarks.record import Results, markdown
from hypergrad import study
from hypergrad.estimators import Estimator, average, reverse
from hypergrad.problem import Problem, Task
from hypergrad.space import LogReal, Sequence, default, sample
from hypergrad.train import init_state, unroll
from hypergrad.tune import measure_ratio
from hypergrad.tuners import descent
from hypergrad.types import Array, HParams, Key
from tasks import digits, images
from tasks.supervised import Splits

RATES = LogReal(1e-3, 2.0, default=0.1)
NUM_CHOOSE = 4
"""Seeds on which every method chooses; a hypergradient is averaged over as many."""
NUM_JUDGE = 10
NUM_KNOTS = 5


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every task that is not in the results yet."""
    horizon, budget = (30, 3) if options.quick else (200, 60)
    cases: dict[str, Callable[[], tuple[Task, Splits]]] = {
        "digits": lambda: (digits.task(horizon=horizon), digits.load())
    }
    if options.data:
        cases["MNIST-10k"] = lambda: (
            images.task(data=options.data, horizon=horizon),
            images.load(options.data, 5000, 2500, 2500),
        )
    else:
        print("MNIST-10k is left out: name the folder of its files with --data DIR")
    for name, build in cases.items():
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            results.add({"case": name, **measure(*build(), budget)})


def rates_only(task: Task) -> Task:
    """Fix all hparams of a task at their defaults, but for the learning rates."""
    rest = {name: x for name, x in default(task.space).items() if name != "lr"}

    def fixed(function: Callable) -> Callable:
        """Give a function (…, hparams, …) all of them; the dictionary is the argument that has "lr"."""

        def call(*args):
            return function(
                *({**rest, **a} if isinstance(a, dict) and "lr" in a else a for a in args)
            )

        return call

    problem = task.problem
    problem = problem._replace(
        init=fixed(problem.init),
        loss=fixed(problem.loss),
        objective=fixed(problem.objective),
        optimizer=fixed(problem.optimizer),
    )
    return task._replace(problem=problem, space={"lr": Sequence(RATES, task.horizon)})


def measure(task: Task, splits: Splits, budget: int) -> dict[str, Any]:
    """Tune, search, and judge."""
    task = rates_only(task)
    keys = jax.random.split(jax.random.key(1), 4)
    estimator = reverse(task.problem, task.horizon)
    start = default(task.space)
    ratio = measure_ratio(task, estimator, start, num_repeats=5)
    num_random = round(budget * ratio)
    tuned, seconds = tune(task, estimator, keys[0], budget)
    candidates = {
        "constant": constants(num_random, task.horizon),
        "cosine": cosines(num_random, task.horizon),
        "random": randoms(keys[1], num_random, task.horizon),
    }
    choose = jax.random.split(keys[2], NUM_CHOOSE)
    schedules = {"tuned": tuned["lr"], "default": start["lr"]}
    for name, rates in candidates.items():
        began = time.perf_counter()
        values = np.asarray(validate(task.problem, task.horizon, rates, choose))
        seconds[name] = time.perf_counter() - began
        schedules[name] = rates[int(np.nanargmin(values))]
    judged = judge(task, splits, schedules, jax.random.split(keys[3], NUM_JUDGE))
    for name, rates in schedules.items():
        judged[name] |= {"rates": [float(f"{r:.4g}") for r in rates], "seconds": seconds.get(name)}
    return {
        "horizon": task.horizon,
        "outer_steps": budget,
        "ratio": ratio,
        "trials": num_random,
        "seeds_to_choose": NUM_CHOOSE,
        "seeds_to_judge": NUM_JUDGE,
        "methods": judged,
    }


def tune(
    task: Task, estimator: Estimator, key: Key, budget: int
) -> tuple[HParams, dict[str, float]]:
    """Descend on the schedule, with the defaults of `hypergrad tune`; keep the best by validation."""
    rate = optax.cosine_decay_schedule(0.05, budget)
    tuner = descent(average(estimator, NUM_CHOOSE), task.space, optimizer=optax.adam(rate))
    began = time.perf_counter()
    best = study.run(tuner, key, budget).best
    assert best is not None, "no hypergradient was finite"
    return best, {"tuned": time.perf_counter() - began}


def constants(num: int, horizon: int) -> Array:
    """Rates from the lowest to the highest allowed, `[num, horizon]`."""
    return jnp.broadcast_to(jnp.geomspace(RATES.low, RATES.high, num)[:, None], (num, horizon))


def cosines(num: int, horizon: int) -> Array:
    """Half cosines to zero from the same rates, `[num, horizon]`."""
    return constants(num, horizon) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(horizon) / horizon))


def randoms(key: Key, num: int, horizon: int) -> Array:
    """Schedules through a few random knots, `[num, horizon]`; one draw a step would be a straw man."""
    space = {"lr": Sequence(RATES, horizon, knots=NUM_KNOTS)}
    return jax.vmap(lambda k: sample(space, k)["lr"])(jax.random.split(key, num))


def validate(problem: Problem, horizon: int, rates: Array, keys: Array) -> Array:
    """Mean validation loss over seeds of each schedule, `[num]`; NaN where one diverged."""

    def one(rates, key):
        hparams = {"lr": rates}
        state = unroll(problem, hparams, init_state(problem, key, hparams), horizon)
        return problem.objective(state.params, hparams, problem.valid_batch(key))

    @jax.jit
    def every(rates):
        return jax.lax.map(lambda r: jnp.mean(jax.vmap(lambda k: one(r, k))(keys)), rates)

    return every(rates)


def judge(task: Task, splits: Splits, schedules: dict[str, Array], keys: Array) -> dict[str, Any]:
    """Train each schedule on the same fresh seeds; differences to the tuned one are paired by seed."""
    problem, test = task.problem, tuple(map(jnp.asarray, splits.test))

    def one(rates, key):
        hparams = {"lr": rates}
        params = unroll(problem, hparams, init_state(problem, key, hparams), task.horizon).params
        valid = problem.objective(params, hparams, problem.valid_batch(key))
        accuracy = jnp.mean(task.test(params, hparams))
        return valid, problem.objective(params, hparams, test), accuracy

    every = jax.jit(lambda rates: jax.lax.map(lambda key: one(rates, key), keys))
    names = ("valid_loss", "test_loss", "test_accuracy")
    scores = {
        s: dict(zip(names, map(np.asarray, every(r)), strict=True)) for s, r in schedules.items()
    }
    return {
        schedule: {
            name: {
                **interval(values),
                "tuned_minus_this": interval(scores["tuned"][name] - values),
            }
            for name, values in found.items()
        }
        for schedule, found in scores.items()
    }


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean over seeds with its 95 % interval by Student's t."""
    values = values.astype(np.float64)
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return {
        "mean": float(values.mean()),
        "low": float(values.mean() - half),
        "high": float(values.mean() + half),
    }


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, case in results.cases.items():
        rows = []
        for method, scores in case["methods"].items():
            row = [method]
            for score, digits_ in (("valid_loss", 4), ("test_loss", 4), ("test_accuracy", 4)):
                x = scores[score]
                row.append(
                    f"{x['mean']:.{digits_}f} [{x['low']:.{digits_}f}, {x['high']:.{digits_}f}]"
                )
            rows.append(row)
        head = (
            f"**{name}**, {case['horizon']} steps; {case['outer_steps']} hypergradients of {case['ratio']:.1f} "
            f"trainings each = {case['trials']} trials of the others"
        )
        columns = ["schedule", "validation loss", "test loss", "test accuracy"]
        parts.append(f"{head}\n\n{markdown(columns, rows)}")
    return "\n\n".join(parts)
