"""Measure how flat the networks of a finished study are, with a slice through the loss of each."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import curvature as cv, space as spaces, study
from hypergrad.core import files, tree
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree
from hypergrad.populations import per_shape
from hypergrad.problem import Problem, Task, split_loss
from hypergrad.report.results import FLATNESS_FILE, Flatness, load_results
from hypergrad.study.disk import folder
from hypergrad.train import carried, init_state, trained, unroll, with_parts
from hypergrad.tuning.build import keys_of
from hypergrad.tuning.provenance import settings_of

MAX_SAMPLES = 256
"""Number of training examples on which every network is measured."""

MAX_SEEDS = 3
"""Number of networks measured for each configuration: the first of its judged networks."""

NUM_POINTS = 41
"""Number of points of a slice."""

PRODUCTS = 60
"""Number of products with the Hessian for each estimate."""

Loss = Callable[[Params, Batch], Array]

NetworkMeasure = Callable[[Loss, Params, Batch, Key], Array]


def _hessian_norm(loss: Loss, params: Params, batch: Batch, key: Key) -> Array:
    return cv.frobenius_estimate(loss, params, batch, key, num_products=PRODUCTS).value


def _largest_eigenvalue(loss: Loss, params: Params, batch: Batch, key: Key) -> Array:
    return cv.top_eigenvalues(loss, params, batch, key, num=1).values[0]


def _trace(loss: Loss, params: Params, batch: Batch, key: Key) -> Array:
    return cv.trace_estimate(loss, params, batch, key, num_products=PRODUCTS).value


MEASURES: dict[str, NetworkMeasure] = {
    "training loss": lambda loss, params, batch, key: loss(params, batch),
    "Hessian norm": _hessian_norm,
    "largest eigenvalue": _largest_eigenvalue,
    "trace": _trace,
    "sharpness (SAM, radius 0.05)": lambda loss, params, batch, key: cv.sam(loss, params, batch),
    "adaptive sharpness (radius 0.5)": lambda loss, params, batch, key: cv.adaptive(
        loss, params, batch
    ),
}
"""Name -> (loss, params, batch, key) -> []; each measure takes any network."""


def measure_flatness(task: Task, directory: str | Path, *, allow_changes: bool = False) -> Flatness:
    """Measure how flat the networks of a finished study are, and write its `flatness.json`.

    The default, the tuned and the likeliest random configuration are trained again on the first seeds of their
    comparison. Each network is measured at the end of its training, on up to 256 training examples. The report
    shows the measures from then on.

    **Cost:** three trainings a configuration, and some 200 products with the Hessian for each of them.

    **Limits:** the Hessian's norm and its trace are estimates; `curvature.frobenius` has the exact norm. The
    measures compare only networks of one task under one loss.

    Args:
        task: Task of the study, unchanged since its start.
        directory: Folder of the study.
        allow_changes: Whether to continue although the task's source files or its data have changed.

    Raises:
        ValueError: If there is no finished study in the folder, or it is of another task.
    """
    described = study.read_description(folder.check_folder(directory))
    settings = settings_of(task, described, allow_changes)
    found = load_results(directory)
    keys = jax.random.split(keys_of(settings).judge, settings.eval_seeds)[:MAX_SEEDS]
    measure = per_shape(task, lambda task: partial(_measure, task))
    measures, slices, steps = {}, {}, np.zeros(0)
    for name, configuration in found.configurations.items():
        hparams = _hparams(task, configuration.leaves, name)
        rows = [jax.tree.map(np.asarray, measure(hparams, key)) for key in keys]
        measures[name] = {label: np.stack([row[0][label] for row in rows]) for label in MEASURES}
        steps, slices[name] = rows[0][1]
    result = Flatness(measures, steps, slices)
    files.write_json(Path(directory) / FLATNESS_FILE, {"of": found.digest, **result._asdict()})
    return result


def batch_of(problem: Problem) -> Batch:
    """Return up to `MAX_SAMPLES` examples, spread over the training set; one minibatch if there is no set."""
    if problem.train_set is None:
        return problem.train_batch(jax.random.key(0), jnp.zeros((), jnp.int32))
    num = problem.train_set.num_examples
    index = np.linspace(0, num - 1, min(num, MAX_SAMPLES)).astype(np.int32)
    return problem.train_set.at(jnp.asarray(index))


def _measure(task: Task, hparams: HParams, key: Key) -> tuple[dict[str, Array], cv.Landscape]:
    """Train one network and return its measures and its slice."""
    problem, batch = task.problem, batch_of(task.problem)
    params = unroll(problem, hparams, init_state(problem, key, hparams), task.horizon).params
    state, weights = carried(params), trained(params)

    def loss(weights: PyTree, batch: Batch) -> Array:
        whole = with_parts(params, weights, state)
        return split_loss(whole, problem.loss(whole, hparams, batch))[0]

    made = {name: f(loss, weights, batch, jax.random.key(0)) for name, f in MEASURES.items()}
    direction = cv.filter_direction(weights, jax.random.key(0))
    return made, cv.landscape(loss, weights, batch, [direction], num=NUM_POINTS)


def _hparams(task: Task, leaves: dict[str, Any], name: str) -> HParams:
    """Return the hparams of a configuration as the task takes them."""
    start = jax.tree.map(np.asarray, spaces.default(task.space))
    wanted = tree.named(start)
    for leaf, like in wanted.items():
        got, kind = leaves.get(leaf), str if like.dtype.kind == "U" else np.ndarray
        if not isinstance(got, kind) or np.shape(got) != like.shape:
            found = f"has no {leaf!r} of shape {like.shape} for {name!r}"
            raise ValueError(f"result.json {found}, expected the task's hparams; tune again")
    values = [np.asarray(leaves[leaf], like.dtype.type) for leaf, like in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(start), values)
