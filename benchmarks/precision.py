"""What sixteen bits take of a hypergradient, and whether the rounding certificate says so.

A small tanh network on digits learns with a weight for each of 192 examples, for 200 steps. Its hypergradient
in the weights and the learning rate is compared with that of the same run, from the same numbers, in float64;
the certificate knows float32 alone. The full run takes a minute.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hypergrad as hg
from benchmarks.record import Figure, Results, markdown
from hypergrad.core.widen import cast_wide
from hypergrad.estimators import reverse, rounding

HORIZON, NUM_TRAIN = 200, 192
CASES = {
    "SGD, stored and computed in bfloat16": ("bfloat16", "bfloat16", optax.sgd, 3e-2),
    "SGD, computed in bfloat16": ("float32", "bfloat16", optax.sgd, 3e-2),
    "Adam, computed in bfloat16": ("float32", "bfloat16", optax.adam, 3e-3),
    "Adam, computed in float16": ("float32", "float16", optax.adam, 3e-3),
    "Adam, in float32": ("float32", "float32", optax.adam, 3e-3),
}


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every case that is not in the results yet."""
    horizon = 10 if options.quick else HORIZON
    for case, (store, compute, optimizer, rate) in list(CASES.items())[
        : 2 if options.quick else None
    ]:
        if case not in results.cases:
            results.add(case, measure(store, compute, optimizer, rate, horizon))


def make_problem(store: str, compute: str, optimizer: Any) -> hg.Problem:
    """Weigh examples of digits for a network that is kept in one dtype and computed with in another."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), labels.astype(np.int32)

    def init(key, hparams):
        one, two = jax.random.split(key)
        params = {
            "one": jax.random.normal(one, (64, 16), jnp.float32) / 8,
            "two": jax.random.normal(two, (16, 10), jnp.float32) / 4,
        }
        # the same numbers in every dtype
        return jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(store), params)

    def losses(params, images, labels):
        one, two = (params[name].astype(compute) for name in ("one", "two"))
        logits = jnp.tanh(jnp.asarray(images).astype(compute) @ one) @ two
        logits = logits.astype(jnp.promote_types(compute, jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def loss(params, hparams, batch):
        return jnp.mean(jax.nn.sigmoid(hparams["weights"]) * losses(params, *batch))

    return hg.Problem(
        init=init,
        loss=loss,
        objective=lambda params, hparams, batch: jnp.mean(losses(params, *batch)),
        optimizer=lambda hparams: optimizer(hparams["lr"]),
        train_batch=lambda key, step: (x[:NUM_TRAIN], y[:NUM_TRAIN]),
        valid_batch=lambda key: (x[1000:1400], y[1000:1400]),
    )


def measure(store: str, compute: str, optimizer: Any, rate: float, horizon: int) -> list[Figure]:
    """Compare an estimate and its certificate with the same run in float64."""
    key = jax.random.key(0)
    problem = make_problem(store, compute, optimizer)
    hparams = {"weights": jnp.zeros(NUM_TRAIN, jnp.float32), "lr": jnp.float32(rate)}
    certified = rounding(problem, horizon)
    state = certified.init(key, hparams)
    found = jax.jit(certified.estimate)(key, state, hparams)[1]
    with jax.enable_x64(True):
        wide = make_problem("float64", "float64", optimizer)
        exact = jax.jit(reverse(wide, horizon).estimate)(key, (), cast_wide(hparams))[1].hypergrad
        exact = jax.tree.map(np.asarray, exact)
    figures = []
    for name in hparams:
        gap = np.asarray(found.hypergrad[name], float) - exact[name]
        error = np.linalg.norm(gap) / np.linalg.norm(exact[name])
        figures += [
            Figure(name, "error", significant(error), "of its size"),
            Figure(name, "certificate", significant(found.info.rounding[name]), "of its size"),
        ]
    return figures


def significant(value: Any) -> float:
    return float(f"{float(value):.3g}")


def table(results: Results) -> str:
    """Write the results as Markdown."""
    rows = [
        [case, name, *(f"{100 * figures[metric]:.3g} %" for metric in ("error", "certificate"))]
        for case, found in results.cases.items()
        for name, figures in found.items()
    ]
    return markdown(["training", "leaf", "true error", "certificate"], rows)
