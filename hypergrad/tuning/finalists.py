"""Finalists: the candidates of a study, trained again on equal seeds, and the best of them."""

from typing import Any

import jax
import numpy as np

from hypergrad import space as spaces
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.populations import Population
from hypergrad.problem import Task
from hypergrad.report.study import Study
from hypergrad.searchers import Trials, final_values
from hypergrad.space import static
from hypergrad.tuners import TUNERS
from hypergrad.tuning.pool import Mixture, best_of_draws

FINALISTS = 10
"""Number of trials of each method that are trained again before one of them is chosen."""

LAST_SHARE = 3
"""One in so many points of a descent, the last ones, is part of its average."""


SURE = 2.0
"""Standard errors by which another candidate of a descent must be better than its average to be chosen."""


def choose_best(
    task: Task, members: Population, found: Study, method: str, keys: Key
) -> tuple[HParams, float]:
    """Choose among the finalists of a method by their mean objective over the same keys `[S]`."""
    if found.best is None:
        start = spaces.default(task.space)
        return static.restored(task.space, jax.tree.map(np.asarray, start)), float("inf")
    candidates = of_descent(task, found) if method == "descent" else of_trials(found, method)
    candidates = distinct(candidates)
    each = objectives(task, members, candidates, keys)
    best = favoured(each) if method == "descent" else int(np.argmin(each.mean(1)))
    if not np.isfinite(each[best].mean()):
        return static.restored(task.space, found.best), found.best_value
    return static.restored(task.space, candidates[best]), float(each[best].mean())


def expected_best(task: Task, members: Population, found: Study, keys: Key) -> Mixture:
    """Return what a search ends with by chance, where its trials are a pool that as many are drawn from.

    The finalists, ranked by their mean objectives over the same keys `[S]`, with the probability of each that
    it is the best of the draws.
    """
    candidates = best_trials(found.trials, FINALISTS)
    values = objectives(task, members, candidates, keys).mean(1)
    weights = best_of_draws(sum(len(told.values) for told in found.trials), len(candidates))
    order = np.argsort(values, kind="stable")[: len(weights)]
    return Mixture([static.restored(task.space, candidates[i]) for i in order], weights)


def of_trials(found: Study, method: str) -> list[HParams]:
    """Return the finalists among the trials of a method, and its best.

    Later iterates by gradient are better than earlier ones, whose values may be lucky.
    """
    last = found.trials[-FINALISTS:] if method in TUNERS else found.trials
    return [*best_trials(last, FINALISTS), found.best]


def favoured(each: np.ndarray) -> int:
    """Return the best of candidates by objectives `[N, S]` on equal seeds; the first unless surely worse.

    The best is another only where mean(d) > 2 std(d) / √S, of the differences d seed by seed: the luck of a few
    seeds at the edge of stability is no reason to leave an average of many steps.
    """
    best, num = int(np.argmin(each.mean(1))), each.shape[1]
    if not np.isfinite(each[0]).all() or not np.isfinite(each[best]).all():
        return best
    gain = each[0] - each[best]
    spread = gain.std(ddof=1) / num**0.5 if num > 1 else 0.0
    return best if gain.mean() > SURE * spread else 0


def best_trials(trials: list[Trials], num: int) -> list[HParams]:
    """Return the best trials by their own finite values, at most `num`."""
    told = [
        (float(value), step, member)
        for step, those in enumerate(trials)
        for member, value in enumerate(final_values(those))
        if np.isfinite(value)
    ]
    best = sorted(told)[:num]
    return [jax.tree.map(lambda x, m=m: x[m], trials[step].hparams) for _, step, m in best]


def distinct(candidates: list[HParams]) -> list[HParams]:
    """Return candidates without repetitions: the best of all is often among the others, too."""
    kept: list[HParams] = []
    for one in candidates:
        leaves = jax.tree.leaves(one)
        if not any(all(map(np.array_equal, leaves, jax.tree.leaves(other))) for other in kept):
            kept.append(one)
    return kept


def of_descent(task: Task, found: Study) -> list[HParams]:
    """Return what a descent may end with: for each restart its average, last point and start; the best of all.

    The average is that of the last third of its points, in unconstrained coordinates, without those that were
    taken back. It is less noisy than any of them; their own values are of different seeds, and the lowest is
    partly luck.
    """
    candidates = []
    for restart in range(len(found.trials[0].values)):
        kept = [
            jax.tree.map(lambda x, m=restart: x[m], trials.hparams)
            for trials in found.trials
            if np.isfinite(trials.values[restart]) and not _is_back(trials.info, restart)
        ]
        if kept:
            last = kept[-max(1, len(kept) // LAST_SHARE) :]
            candidates += [_average(task.space, last)] if len(last) > 1 else []
            candidates += [kept[-1], kept[0]]
    return [*candidates, found.best]


def _is_back(info: dict, restart: int) -> bool:
    return bool(info["skipped"][restart] or info["taken_back"][restart])


def _average(space: PyTree, points: list[HParams]) -> HParams:
    """Return the mean of points in unconstrained coordinates."""

    @jax.jit  # operation by operation it would be dozens of programs
    def mean(stacked: HParams) -> HParams:
        z = jax.vmap(lambda hparams: spaces.unconstrain(space, hparams))(stacked)
        return spaces.constrain(space, jax.tree.map(lambda x: x.mean(0), z))

    return jax.tree.map(np.asarray, mean(jax.tree.map(lambda *xs: np.stack(xs), *points)))


def objectives(task: Task, members: Population, candidates: list[HParams], keys: Key) -> np.ndarray:
    """Train candidates from the same keys `[S]`; return their objectives `[N, S]`, infinity for others."""
    hparams, states = first_states(task, members, candidates, keys)
    states = members.advance(hparams, states, task.horizon)
    values = np.asarray(members.value(hparams, states), np.float64).reshape(-1, len(keys))
    return np.where(np.isfinite(values), values, np.inf)


def first_states(
    task: Task, members: Population, configurations: list[HParams], keys: Key
) -> tuple[HParams, PyTree]:
    """Return the hparams and the first states of every configuration with every key, `[C S]`."""
    num = len(keys)
    hparams = static.stacked(task.space, [one for one in configurations for _ in range(num)])
    again: Any = np.tile(np.asarray(jax.random.key_data(keys)), (len(configurations), 1))
    same = jax.random.wrap_key_data(again, impl=jax.random.key_impl(keys))
    return hparams, members.init(same, hparams)
