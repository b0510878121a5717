"""Schedulers by name."""

import warnings

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_name
from hypergrad.core.scans import largest_divisor
from hypergrad.core.types import PyTree
from hypergrad.curvature import frobenius_estimate, supremum
from hypergrad.problem import Problem
from hypergrad.schedulers.base import Rung, Scheduler, SchedulerWarning, geometric_rungs, spent
from hypergrad.schedulers.flatness import flatness, matched
from hypergrad.schedulers.full import full
from hypergrad.schedulers.halving import halving
from hypergrad.schedulers.hyperband import brackets, hyperband
from hypergrad.schedulers.pb2 import pb2
from hypergrad.schedulers.pbt import pbt, perturb
from hypergrad.space import sample_constant

SCHEDULERS: dict[str, str] = {
    "full": "every trial is trained to the end",
    "halving": "all trials a little, the best third three times as long, and so on",
    "hyperband": "several halvings, from the boldest to the most patient; with tpe as in BOHB",
    "flatness": "all trials for an epoch, and the flattest fifth to the end (FGHPO at matched loss)",
    "pbt": "the worst go on from copies of the best, with other hyperparameters",
    "pb2": "as pbt, these from a Gaussian process over what improved the others",
}

BY_COPIES = ("pbt", "pb2")
"""Schedulers whose members go on from one another."""

ETA = 3
"""Of `halving` and `hyperband`: one of so many goes on, and so many times as far."""

MOST_HALVINGS = 3
"""The shortest runs have at least a 27th of the steps: what they say of the longest is little enough."""

NUM_PERIODS = 8
"""Comparisons of `pbt` and `pb2` in a run, or a few more: the steps are divided evenly."""

NUM_PRODUCTS = 12
"""Products with the Hessian of each of four minibatches, from which `flatness` estimates its norm."""


def scheduler(
    name: str, problem: Problem, space: PyTree, horizon: int, size: int
) -> tuple[Scheduler, float]:
    """Build a scheduler by name, with the settings the command line uses.

    Args:
        name: one of `SCHEDULERS`.
        problem: of the task.
        space: of the task.
        horizon: training steps of the trials that are trained longest.
        size: trials of a generation.

    Returns:
        The scheduler, and what a generation costs in trainings of `horizon` steps.
    """
    check_name("scheduler", name, SCHEDULERS)
    if name == "full":
        return full(horizon), size
    if name in BY_COPIES:
        explore = pb2(space) if name == "pb2" else perturb(space, draw=sample_constant)
        return pbt(horizon, explore, period=largest_divisor(horizon, horizon // NUM_PERIODS)), size
    if name == "flatness":
        first, kept = min(horizon, _epoch(problem, horizon)), max(1, size // 5)
        if first == horizon:
            warnings.warn(
                f"scheduler 'flatness' trains every trial to the end, because an epoch has no fewer steps than "
                f"the horizon of {horizon}; tune with a longer one, or with 'halving'",
                SchedulerWarning,
                stacklevel=2,
            )
        rungs = [Rung(size, first), Rung(kept, horizon)]
        built = flatness(
            supremum(problem, _norm), horizon, first_steps=first, num_kept=kept, ranking=matched()
        )
        return built, spent(rungs if first < horizon else rungs[:1]) / horizon
    last = next(s for s in range(MOST_HALVINGS, -1, -1) if ETA**s <= min(size, horizon))
    least = horizon // ETA**last
    if name == "halving":
        cost = spent(geometric_rungs(size, horizon, last, ETA))
        return halving(horizon, min_steps=least, eta=ETA), cost / horizon
    ladder = brackets(horizon, min_steps=least, eta=ETA, num=size)
    return hyperband(horizon, min_steps=least, eta=ETA), sum(map(spent, ladder)) / horizon


def _norm(loss, params, batch):
    """Estimate the Hessian's norm of any network, the same way for all."""
    key = jax.random.key(0)
    return frobenius_estimate(loss, params, batch, key, num_products=NUM_PRODUCTS).value


def _epoch(problem: Problem, horizon: int) -> int:
    """Return the steps of an epoch, or a 27th of the training where that is not known."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    batch = jax.eval_shape(problem.train_batch, jax.eval_shape(jax.random.key, 0), step)
    sizes = [leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.shape]
    if problem.train_set is None or not sizes or not sizes[0]:
        return max(1, horizon // ETA**MOST_HALVINGS)
    return max(1, problem.train_set.num_examples // sizes[0])
