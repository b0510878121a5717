"""Flatness-guided search: train all trials for an epoch, and the flattest to the end (FGHPO)."""

import contextlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_function, check_share, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.curvature import Measure, frobenius_estimate, supremum
from hypergrad.populations import Population, count
from hypergrad.problem import Problem
from hypergrad.schedulers.base import (
    ETA,
    MAX_HALVINGS,
    Rung,
    Scheduler,
    SchedulerWarning,
    best_first,
    check_one_each,
    check_steps,
    spent,
    train_up,
)
from hypergrad.schedulers.pareto import check_rows, pareto_front, pareto_ranks
from hypergrad.searchers import Trials
from hypergrad.space import units

NUM_PRODUCTS = 12
"""Products with the Hessian of each of four minibatches, from which `flatness` by name estimates its norm."""

Ranking: TypeAlias = Callable[[Array, Array], Array]
"""(measures `[M]`, objectives `[M]`) -> scores `[M]`, the lowest best; one not finite discards the trial."""


def flattest(measures: Array, values: Array) -> Array:
    """Rank by flatness alone, as the paper does; a trial whose measure is 0 is discarded."""
    return jnp.where(measures > 0, measures, jnp.inf)


def lowest_value(measures: Array, values: Array) -> Array:
    """Rank by the objective alone: plain halving, the control for every other ranking."""
    return values


def pareto(measures: Array, values: Array) -> Array:
    """Rank by fronts: first trials that no other beats in both, then those that only these beat, and so on.

    Within a front the lower objective comes first.
    """
    both = jnp.stack([flattest(measures, values), values], 1)
    alive = jnp.all(jnp.isfinite(both), 1)
    front = pareto_ranks(jnp.where(alive[:, None], both, jnp.nan))
    place = jnp.argsort(best_first(values)) / (len(values) + 1)
    return jnp.where(alive, front + place, jnp.inf)


def matched(share: float = 0.5) -> Ranking:
    """Rank by flatness among the `share` of the lowest objectives, and rank the rest after them by objective.

    Flatness at matched loss: a network that is flat because it has learned nothing does not count.
    """
    share = check_share("share", share)

    def rank(measures: Array, values: Array) -> Array:
        num = len(values)
        inside = jnp.argsort(best_first(values)) < max(1, round(share * num))
        by_flatness = jnp.argsort(best_first(flattest(measures, values)))
        score = jnp.where(inside, by_flatness, num + jnp.argsort(best_first(values)))
        return jnp.where(jnp.isfinite(values), score, jnp.inf)

    return rank


def blended(weight: float = 0.25) -> Ranking:
    """Rank by place in objective and in flatness: (1 − weight) place(value) + weight place(measure)."""
    weight = check_share("weight", weight, example=0.25)

    def rank(measures: Array, values: Array) -> Array:
        places = [jnp.argsort(best_first(x)) for x in (values, flattest(measures, values))]
        score = (1 - weight) * places[0] + weight * places[1]
        return jnp.where(jnp.isfinite(values), score, jnp.inf)

    return rank


def flatness(
    measure: Measure,
    num_steps: int,
    *,
    first_steps: int = 1,
    num_kept: int = 10,
    ranking: Ranking = flattest,
) -> Scheduler:
    """Train all trials for an epoch, and the `num_kept` best by flatness to the end.

    S[h] = sup_{x ⊂ X} μ(x; h) where that is > 0;   P[h] = Run(h) for the N_2 lowest of S

    The N_1 trials are those that are asked for (50 in the paper), trained as one population; the N_2 continue
    from where they stopped. `info["flatness"]` has S, and `info["discarded"]` tells which scores were not
    finite: with `flattest` and `pareto`, the trials whose S is 0 or NaN.

    **Cost:** N_1 first_steps + N_2 (num_steps − first_steps) steps, and N_1 measures.

    **Limits:** the number of trials that continue is fixed: where fewer than N_2 are left, discarded ones fill
    the places. Their objectives become infinite, so that they are never the best: where a measure is 0 for all
    trials, no trial is. A network that learned nothing is flat too; measured on the paper's data
    sets, ranking by the objective (`ranking=lowest_value`) is hard to beat (`docs/flatness.md`).

    Args:
        measure: Function (params, hparams) -> []; `curvature.supremum` makes one of any curvature measure. A
            validation loss, a norm of the weights or a test of your own will do as well.
        num_steps: Training steps R of the trials that continue.
        first_steps: Training steps of every trial before it is measured, an epoch in the paper; with
            `num_steps`, all are trained to the end.
        num_kept: Number N_2 of trials that continue.
        ranking: Ranking of the trials by measure and objective: `flattest`, `lowest_value`, `pareto`,
            `matched(share)` or `blended(weight)`.

    Reference:
        "Flatness-guided hyper-parameter optimization", Algorithm 1.

    Raises:
        ValueError: for invalid arguments and, when called, for a measure or a ranking that returns another
            shape.
    """
    num_steps, first_steps = check_steps("first_steps", first_steps, num_steps)
    num_kept = check_whole("num_kept", num_kept)
    _check_pair("measure", measure, "(params, hparams) -> []", "supremum(problem, curvature.sam)")
    _check_pair("ranking", ranking, "(measures [M], objectives [M]) -> scores [M]", "matched()")

    def rank(
        population: Population, hparams: HParams, states: PyTree, values: Array
    ) -> tuple[Array, dict[str, Array]]:
        found = population.measure(measure, hparams, states)
        check_one_each("measure", found, len(values))
        scores = ranking(found, values)
        check_one_each("ranking", scores, len(values))
        return scores, {"flatness": found, "discarded": ~jnp.isfinite(scores)}

    def run(population: Population, key: Key, hparams: HParams) -> Trials:
        num = count(hparams)
        like = jax.ShapeDtypeStruct((num,), jnp.result_type(float))
        with contextlib.suppress(jax.errors.JAXTypeError):  # numpy: checked when called
            check_one_each("ranking", jax.eval_shape(ranking, like, like), num)
        rungs = [Rung(num, first_steps, rank), Rung(min(num, num_kept), num_steps)]
        rungs = rungs if first_steps < num_steps else rungs[:1]
        trials = train_up(population, key, hparams, rungs)
        out = trials.info["discarded"] & jnp.isfinite(trials.values)
        return trials._replace(values=jnp.where(out, jnp.inf, trials.values))

    return run


def _check_pair(name: str, function: Any, expected: str, example: str) -> None:
    """Raise a `ValueError` unless this is a function of two arguments, as far as its signature tells."""
    check_function(name, function, example)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have none
        return
    try:
        signature.bind(None, None)
    except TypeError:
        got = ", ".join(signature.parameters)
        raise ValueError(
            f"{name} is a function of ({got}), expected a function {expected}; pass e.g. {example}"
        ) from None


def _make(problem: Problem, space: PyTree, horizon: int, size: int) -> tuple[Scheduler, float]:
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


def _norm(loss: Callable[..., Array], params: PyTree, batch: PyTree) -> Array:
    """Estimate the Hessian's norm, in the same way for every network."""
    key = jax.random.key(0)
    return frobenius_estimate(loss, params, batch, key, num_products=NUM_PRODUCTS).value


def _epoch(problem: Problem, horizon: int) -> int:
    """Return the steps of an epoch, or a 27th of the training where that is not known."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    batch = jax.eval_shape(problem.train_batch, jax.eval_shape(jax.random.key, 0), step)
    sizes = [leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.shape]
    if problem.train_set is None or not sizes or not sizes[0]:
        return max(1, horizon // ETA**MAX_HALVINGS)
    return max(1, problem.train_set.num_examples // sizes[0])


FLATNESS = Method(
    "flatness",
    "all trials for an epoch, and the flattest fifth to the end (FGHPO at matched loss)",
    (),
    _make,
)


def traverse(
    space: PyTree, hparams: HParams, scores: Array, num: int, key: Key | None = None
) -> HParams:
    """Return settings between neighbours on the Pareto front of two scores, to be tried for a preference.

    The members that no other beats in both scores, sorted by the first, are the corners of a path; `num`
    convex combinations of adjacent corners, evenly spaced along it, are quantized to values that the space has:
    whole numbers to the nearest, options to those of the nearer corner.

    **Limits:** a combination is worth a test because it may be good: its scores are not the combination of
    the corners' scores.

    Args:
        space: Space of traceable dimensions.
        hparams: Settings tried so far, `[N]`.
        scores: Two scores of each, `[N, 2]`, the lower the better: loss and flatness, or two error rates.
        num: Number of combinations.
        key: Seed that moves the points along the path, by at most half their distance; they do not move where
            None.

    Returns:
        hparams `[num]`, from the best in the first score to the best in the second.

    Reference:
        "Flatness-guided hyper-parameter optimization", section 5.
    """
    num = check_whole("num", num)
    coords = units.coordinates(space)
    scores = jnp.asarray(scores)
    check_rows("scores", scores, count(hparams), 2)
    finite = jnp.all(jnp.isfinite(scores), 1, keepdims=True)
    outside = ~pareto_front(jnp.where(finite, scores, jnp.nan))
    path = jnp.lexsort((scores[:, 1], scores[:, 0], outside))
    corners = units.to_units(space, tree.rows(hparams, path))
    last = jnp.maximum(jnp.sum(~outside) - 1, 0)
    shares = (jnp.arange(num) + 0.5) / num
    if key is not None:
        shares = shares + jax.random.uniform(key, (num,), minval=-0.5, maxval=0.5) / num
    along = shares * last
    left = jnp.minimum(jnp.floor(along).astype(jnp.int32), jnp.maximum(last - 1, 0))
    weight = (along - left)[:, None]
    low, high = corners[left], corners[jnp.minimum(left + 1, last)]
    mixed = jnp.where(
        coords.ordered, (1 - weight) * low + weight * high, jnp.where(weight < 0.5, low, high)
    )
    return units.from_units(space, units.snap(coords, mixed))
