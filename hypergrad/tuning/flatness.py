"""How flat the networks of a finished study are: measures of its configurations, and a slice through each."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import curvature as cv, space as spaces, study
from hypergrad.core import tree
from hypergrad.core.types import Array, Batch, HParams, Key, Params
from hypergrad.populations import per_shape
from hypergrad.problem import Problem, Task, split_loss
from hypergrad.report.results import FLATNESS_FILE, load_results
from hypergrad.study.disk import files, folder
from hypergrad.train import carried, init_state, trained, unroll, with_parts
from hypergrad.tuning.provenance import settings_of

MOST_SAMPLES = 256
"""Training examples that everything is measured on."""

MOST_SEEDS = 3
"""Networks measured for each configuration: the first of those that it was judged by."""

NUM_POINTS = 41
"""Of a slice."""

PRODUCTS = 60
"""With the Hessian, for each estimate."""

Loss = Callable[[Params, Batch], Array]

MEASURES: dict[str, Callable[[Loss, Params, Batch, Key], Array]] = {
    "training loss": lambda loss, p, b, key: loss(p, b),
    "Hessian norm": lambda loss, p, b, key: (
        cv.frobenius_estimate(loss, p, b, key, num_products=PRODUCTS).value
    ),
    "largest eigenvalue": lambda loss, p, b, key: cv.top_eigenvalues(loss, p, b, key, num=1).values[
        0
    ],
    "trace": lambda loss, p, b, key: (
        cv.trace_estimate(loss, p, b, key, num_products=PRODUCTS).value
    ),
    "sharpness (SAM, radius 0.05)": lambda loss, p, b, key: cv.sam(loss, p, b),
    "adaptive sharpness (radius 0.5)": lambda loss, p, b, key: cv.adaptive(loss, p, b),
}
"""Name -> (loss, params, batch, key) -> []; each takes any network."""


class Flatness(NamedTuple):
    """What was measured.

    Attributes:
        measures: configuration -> measure -> values over seeds `[S]`, NaN where training diverged.
        steps: of the slices, in lengths of the filters, `[NUM_POINTS]`.
        slices: configuration -> training loss along a filter-normalized direction, of its first network.
    """

    measures: dict[str, dict[str, np.ndarray]]
    steps: np.ndarray
    slices: dict[str, np.ndarray]


def measure_flatness(task: Task, directory: str | Path, *, allow_changes: bool = False) -> Flatness:
    """Measure the networks of a finished study, and keep what was found in its `flatness.json`.

    The default, tuned and random configurations are trained again on the first seeds they were judged by,
    and measured at the end of training on up to 256 training examples. The report shows it from then on.

    **Cost:** three trainings a configuration, and some 200 products with the Hessian for each.

    **Limits:** the Hessian's norm and its trace are estimates; `curvature.frobenius` has the exact norm. The
    measures compare networks of one task under one loss, no others.

    Args:
        task: the same as at the start.
        directory: of the study.
        allow_changes: go on although the task's source files are not what they were.

    Raises:
        ValueError: where there is no finished study, or it is of another task.
    """
    described = study.read_description(folder.check_folder(directory))
    settings = settings_of(task, described, allow_changes)
    found = load_results(directory)
    judge_key = jax.random.split(jax.random.key(settings.seed), 4)[2]
    keys = jax.random.split(judge_key, settings.eval_seeds)[:MOST_SEEDS]
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
    """Return up to `MOST_SAMPLES` training examples, spread over the set; a minibatch where there is none."""
    if problem.train_set is None:
        return problem.train_batch(jax.random.key(0), jnp.zeros((), jnp.int32))
    num = problem.train_set.num_examples
    index = np.linspace(0, num - 1, min(num, MOST_SAMPLES)).astype(np.int32)
    return problem.train_set.at(jnp.asarray(index))


def _measure(task: Task, hparams: HParams, key: Key) -> tuple[dict[str, Array], cv.Landscape]:
    """Train one network and return its measures and its slice."""
    problem, batch = task.problem, batch_of(task.problem)
    params = unroll(problem, hparams, init_state(problem, key, hparams), task.horizon).params
    state, weights = carried(params), trained(params)

    def loss(weights, batch):
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
        got = leaves.get(leaf)
        text = like.dtype.kind == "U"
        if not isinstance(got, str if text else np.ndarray) or np.shape(got) != like.shape:
            raise ValueError(
                f"result.json has no {leaf!r} of shape {like.shape} for {name!r}, expected the hparams of the "
                "task; the file is damaged or was edited, restore it or tune again"
            )
    values = [np.asarray(leaves[leaf], like.dtype.type) for leaf, like in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(start), values)
