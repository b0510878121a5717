"""Successive halving: train many trials a little, and the best of them further."""

from collections.abc import Sequence

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
from hypergrad.searchers import Trials


def halving(num_steps: int, *, min_steps: int = 1, eta: float = 3.0) -> Scheduler:
    """Train all trials for about `min_steps`, the best 1/η of them for η times as long, and so on.

    n_i = ⌊N η^{−i}⌋,   r_i = R η^{i−s},   s = ⌊log_η(R / r_min)⌋,   i = 0, ..., s

    **Cost:** Σ_i n_i (r_i − r_{i−1}) steps, about N R η^{−s} (1 + s (1 − 1/η)): trials that continue do so from
    where they stopped. Under `jit`, one compiled program with s + 1 sizes.

    **Limits:** a trial whose objective falls late is lost. Objectives of trials that stopped early are those
    of fewer steps (`trials.steps`); trials that diverged stop first, and ties go to the lower index.

    Args:
        num_steps: Training steps R of the trials that reach the last rung.
        min_steps: Smallest number r_min of training steps of any trial.
        eta: Factor η above 1: the best 1/η continue, for η times as long.

    Reference:
        Jamieson, Talwalkar, 2016, arXiv:1502.07943; Li et al., 2018, arXiv:1603.06560, Algorithm 1.
    """
    num_steps, min_steps = check_halving(num_steps, min_steps, eta)
    last = num_halvings(num_steps, min_steps, eta)

    def run(population: Population, key: Key, hparams: HParams) -> Trials:
        rungs = geometric_rungs(count(hparams), num_steps, last, eta)
        return train_up(population, key, hparams, rungs)

    return run


def _make(problem: Problem, space: PyTree, horizon: int, size: int) -> tuple[Scheduler, float]:
    least = shortest_run(size, horizon)
    rungs = geometric_rungs(size, horizon, num_halvings(horizon, least, ETA), ETA)
    return halving(horizon, min_steps=least, eta=ETA), spent(rungs) / horizon


HALVING = Method(
    "halving", "all trials a little, the best third three times as long, and so on", (), _make
)


def staged(rungs: Sequence[Rung]) -> Scheduler:
    """Train from rung to rung as listed, each with its own ranking where it has one.

    Args:
        rungs: Rungs, whose numbers of members never grow and whose training steps do.

    Raises:
        ValueError: for rungs out of order and, when called, for another number of members than that of the
            first rung.
    """
    rungs = tuple(rungs)
    if not rungs or not all(isinstance(rung, Rung) for rung in rungs):
        raise ValueError(
            f"rungs is {rungs!r:.80}, expected a list of Rung(num, steps); pass e.g. [Rung(50, 10)]"
        )
    before = Rung(rungs[0].num, 0)
    for i, rung in enumerate(rungs):
        if not 1 <= rung.num <= before.num or rung.steps <= before.steps:
            room = f"1 to {before.num} members and more than {before.steps} steps"
            raise ValueError(
                f"rungs[{i}] has {rung.num} members and {rung.steps} steps, expected {room}; order them"
            )
        before = rung

    def run(population: Population, key: Key, hparams: HParams) -> Trials:
        if count(hparams) != rungs[0].num:
            raise ValueError(
                f"hparams has {count(hparams)} members, expected {rungs[0].num} for the first rung; ask for all"
            )
        return train_up(population, key, hparams, rungs)

    return run
