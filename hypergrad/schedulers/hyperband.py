"""Hyperband: several successive halvings, from the boldest to the most patient."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.methods import Method
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.populations import Population, count
from hypergrad.problem import Problem
from hypergrad.schedulers.base import (
    ETA,
    Rung,
    Scheduler,
    check_halving,
    geometric_rungs,
    num_halvings,
    shortest_run,
    spent,
    train_up,
)
from hypergrad.searchers import Searcher, Trials


def hyperband(
    num_steps: int, *, min_steps: int = 1, eta: float = 3.0, searcher: Searcher | None = None
) -> Scheduler:
    """Divide the trials among the brackets of Hyperband, and halve each by itself.

    Bracket s = s_max, ..., 0 starts n_s = ⌈(s_max + 1) η^s / (s + 1)⌉ trials at R η^{−s} steps.

    **Cost:** about (s_max + 1)² R steps for N = Σ_s n_s trials (`num_trials`).

    **Limits:** another N (at least one a bracket) is divided among the brackets in the same proportions.
    Objectives of different numbers of steps (`trials.steps`) are not comparable.

    Args:
        num_steps: Training steps R of the trials that reach a last rung.
        min_steps: Smallest number of training steps of any trial.
        eta: Factor η above 1 of each halving.
        searcher: Searcher that is told of every bracket and chooses the hparams of the next, in place of the
            given ones. A `tpe` makes it BOHB, an `evolution` DEHB. The given hparams are used where None.

    Reference:
        Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar, 2018, arXiv:1603.06560, Algorithm 1 and Table 1.
    """
    num_steps, min_steps = check_halving(num_steps, min_steps, eta)
    if searcher is not None and not searcher.host:
        ask, tell = jax.jit(searcher.ask, static_argnums=2), jax.jit(searcher.tell)
        searcher = searcher._replace(ask=ask, tell=tell)

    def run(population: Population, key: Key, hparams: HParams) -> Trials:
        ladder = brackets(num_steps, min_steps=min_steps, eta=eta, num=count(hparams))
        ask_key, key = jax.random.split(key)
        memory = None if searcher is None else searcher.init(ask_key)
        told, start = [], 0
        for i, rungs in enumerate(ladder):
            size = rungs[0].num
            given = _cut(hparams, start, size)
            if searcher is not None and told:
                memory = searcher.tell(memory, told[-1])
                given = searcher.ask(jax.random.fold_in(ask_key, i), memory, size)
            told.append(train_up(population, jax.random.fold_in(key, i), given, rungs))
            start += size
        return _join(told)

    return run


def brackets(
    num_steps: int, *, min_steps: int = 1, eta: float = 3.0, num: int | None = None
) -> tuple[tuple[Rung, ...], ...]:
    """Return the rungs of every bracket, the boldest first: Table 1 of the paper for R = 81, η = 3.

    Args:
        num_steps: Training steps R.
        min_steps: Smallest number of training steps of any trial.
        eta: Factor η.
        num: Number of trials to divide among the brackets; the paper's number where None.

    Raises:
        ValueError: for fewer trials than brackets.
    """
    most = num_halvings(num_steps, min_steps, eta)
    sizes = [math.ceil((most + 1) * eta**s / (s + 1) - 1e-9) for s in range(most, -1, -1)]
    sizes = sizes if num is None else _divided(num, sizes)
    levels = range(most, -1, -1)
    return tuple(
        geometric_rungs(size, num_steps, s, eta) for size, s in zip(sizes, levels, strict=True)
    )


def _divided(num: int, sizes: list[int]) -> list[int]:
    """Divide `num` trials in the proportions of `sizes`: one for each, the rest by rounded shares."""
    if num < len(sizes):
        raise ValueError(
            f"hparams has {num} members, expected at least {len(sizes)}, the brackets; ask for more of them"
        )
    above = np.array(sizes) - 1 if max(sizes) > 1 else np.ones(len(sizes))
    edges = np.floor(np.cumsum(above) / np.sum(above) * (num - len(sizes)) + 0.5).astype(int)
    return (1 + np.diff(edges, prepend=0)).tolist()


def num_trials(num_steps: int, *, min_steps: int = 1, eta: float = 3.0) -> int:
    """Return N, the trials that one pass over the brackets takes in the paper."""
    return sum(rungs[0].num for rungs in brackets(num_steps, min_steps=min_steps, eta=eta))


@partial(jax.jit, static_argnums=(1, 2))
def _cut(hparams: HParams, start: int, size: int) -> HParams:
    return jax.tree.map(lambda x: x[start : start + size], hparams)


@jax.jit
def _join(told: list[Trials]) -> Trials:
    """Concatenate the trials of the brackets."""
    joined = jax.tree.map(lambda *xs: jnp.concatenate([jnp.atleast_1d(x) for x in xs]), *told)
    sizes = [len(trials.values) for trials in told]
    bracket = jnp.repeat(
        jnp.arange(len(sizes), dtype=jnp.int32), jnp.array(sizes), total_repeat_length=sum(sizes)
    )
    info = joined.info | {"bracket": bracket, "budget": jnp.sum(joined.info["budget"])}
    return joined._replace(parent=jnp.arange(sum(sizes), dtype=jnp.int32), info=info)


def _make(problem: Problem, space: PyTree, horizon: int, size: int) -> tuple[Scheduler, float]:
    least = shortest_run(size, horizon)
    ladder = brackets(horizon, min_steps=least, eta=ETA, num=size)
    return hyperband(horizon, min_steps=least, eta=ETA), sum(map(spent, ladder)) / horizon


HYPERBAND = Method(
    "hyperband",
    "several halvings, from the boldest to the most patient; with tpe as in BOHB",
    (),
    _make,
)
