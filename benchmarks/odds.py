"""The hypergradient of a dropout rate: what each way sees of it, and the bias of a relaxed mask.

The case is linear regression under dropout of its inputs, the rate of which is the hyperparameter. The slope
of the mean objective comes from differences at common random numbers; every way is a mean over the same runs,
with its standard error. The full run takes half a minute.
"""

import argparse
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hypergrad as hg
from benchmarks.record import Figure, Results, markdown
from hypergrad.estimators import DrawnLeafWarning, es, reverse
from hypergrad.estimators.policies import concrete
from hypergrad.train import init_state, unroll

STEPS, RATE, LR = 40, 0.3, 0.05
NUM_RUNS, NUM_PAIRS = 1500, 6000
TEMPERATURES = (1.0, 0.5, 0.1)
GAP = 0.1
"""Distance of the rates that are compared."""
CASE, SLOPE = "dropout", "slope of the mean objective"


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every way, unless they are in the results."""
    if CASE not in results.cases:
        share = 50 if options.quick else 1
        results.add(CASE, measure(NUM_RUNS // share, NUM_PAIRS // share))


def make_problem(mask: Callable) -> hg.Problem:
    """Fit 10 weights to 24 noisy rows, with a mask on the inputs; judge by 56 others."""
    x = jax.random.normal(jax.random.key(0), (80, 10), jnp.float32)
    noise = 0.5 * jax.random.normal(jax.random.key(1), (80,), jnp.float32)
    y = x @ jnp.linspace(-1, 1, 10) + noise

    def objective(params, hparams, batch):
        return jnp.mean((batch[0] @ params - batch[1]) ** 2)

    def loss(params, hparams, batch):
        keep = 1 - hparams["rate"]
        scaled = mask(batch[2], keep, batch[0].shape) / keep
        return objective(params, hparams, (batch[0] * scaled, batch[1]))

    def train_batch(key, step):
        draw, drop = jax.random.split(key)
        rows = jax.random.randint(draw, (16,), 0, 24)
        return x[rows], y[rows], drop

    return hg.Problem(
        init=lambda key, hparams: jnp.zeros(10),
        loss=loss,
        objective=objective,
        optimizer=lambda hparams: optax.sgd(LR),
        train_batch=train_batch,
        valid_batch=lambda key: (x[24:], y[24:]),
    )


def measure(num_runs: int, num_pairs: int) -> list[Figure]:
    """Differentiate the same runs in every way."""
    keys = jax.random.split(jax.random.key(7), num_runs)
    plain = make_problem(jax.random.bernoulli)

    def value(rate: jax.Array, key: jax.Array) -> jax.Array:
        hparams = {"rate": rate}
        final = unroll(plain, hparams, init_state(plain, key, hparams), STEPS)
        return plain.objective(final.params, hparams, plain.valid_batch(key))

    values = jax.jit(jax.vmap(value, (None, 0)))
    each = {SLOPE: (values(RATE + GAP / 2, keys) - values(RATE - GAP / 2, keys)) / GAP}
    each["pathwise"] = pathwise(plain, keys)
    for temperature in TEMPERATURES:
        relaxed = lambda key, keep, shape, t=temperature: concrete(key, keep, shape, t)  # noqa: E731
        each[f"concrete at {temperature:g}"] = pathwise(make_problem(relaxed), keys)
    figures = []
    for name, slopes in each.items():
        found = np.asarray(slopes, float)
        error = found.std() / len(found) ** 0.5
        figures += figures_of(name, found.mean(), error)
    moved = es(plain, STEPS, sigma=GAP / 2, num_pairs=num_pairs).estimate
    estimate = jax.jit(moved)(jax.random.key(0), (), {"rate": jnp.float32(RATE)})[1]
    error = float(estimate.info.std_error["rate"])
    return figures + figures_of("evolved", float(estimate.hypergrad["rate"]), error)


def figures_of(name: str, mean: float, error: float) -> list[Figure]:
    return [
        Figure(name, "hypergradient", round(float(mean), 4), "a unit of rate"),
        Figure(name, "standard error", round(float(error), 4), "a unit of rate"),
    ]


def pathwise(problem: hg.Problem, keys: jax.Array) -> jax.Array:
    """Differentiate every run through its masks."""
    estimate = reverse(problem, STEPS).estimate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DrawnLeafWarning)
        one = lambda key: estimate(key, (), {"rate": jnp.float32(RATE)})[1].hypergrad["rate"]  # noqa: E731
        return jax.jit(jax.vmap(one))(keys)


def table(results: Results) -> str:
    """Write the results as Markdown."""
    found = results.cases[CASE]
    true, rows = found[SLOPE], []
    for name, metrics in found.items():
        mean, error = metrics["hypergradient"], metrics["standard error"]
        bias = mean - true["hypergradient"]
        spread = math.hypot(error, true["standard error"])
        shown = "" if name == SLOPE else f"{bias:+.2f} ± {spread:.2f}"
        rows.append([name, f"{mean:.2f} ± {error:.2f}", shown])
    return markdown(["way", "d objective / d rate", "bias"], rows)
