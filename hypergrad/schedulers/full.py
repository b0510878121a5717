"""Train everything to the end."""

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_share, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.populations import Population, count
from hypergrad.problem import Problem
from hypergrad.schedulers.base import Scheduler, judge_members
from hypergrad.searchers import Trials


def full(num_steps: int) -> Scheduler:
    """Give every trial the same `num_steps` steps of training.

    **Cost:** N x `num_steps` steps.
    """
    num_steps = check_whole("num_steps", num_steps)
    return _full(num_steps)


def _full(num_steps: int) -> Scheduler:
    def run(population: Population, key: Key, hparams: HParams) -> Trials:
        num = count(hparams)
        keys = jax.random.split(key, num)
        states = population.init(keys, hparams)
        states = population.advance(hparams, states, num_steps)
        return judge_members(population, keys, hparams, states, num_steps)

    return run


def _make(problem: Problem, space: PyTree, horizon: int, size: int) -> tuple[Scheduler, float]:
    return _full(horizon), size


FULL = Method("full", "every trial is trained to the end", (), _make)


def reach(target: float, num_steps: int, *, every: int = 1) -> Scheduler:
    """Give every trial `num_steps` steps, and check its objective after every `every` of them.

    `info["reached"]` has the number of steps after which the objective of a trial was first seen to be at most
    the target, or -1. `searchers.steps_to(target)` makes `cross_entropy` minimise it.

    **Cost:** that of `full`, and ⌈`num_steps` / `every`⌉ evaluations of the objective a trial. Trials that have
    reached the target continue to the end: side by side in one program they would wait for the last trial
    anyway, and all values stay comparable.

    **Limits:** the objective is not seen between two checks: `reached` is a multiple of `every`, or the end.

    Args:
        target: Objective to reach.
        num_steps: Training steps of every trial.
        every: Training steps between two checks.

    Raises:
        ValueError: for a target that is not finite, or counts below 1.

    Reference:
        The second objective of CEHPO: steps to a given loss.
    """
    num_steps = check_whole("num_steps", num_steps)
    every = check_whole("every", every)
    target = check_share("target", target, "(-inf, inf)", what="a finite number", example=0.1)

    def run(population: Population, key: Key, hparams: HParams) -> Trials:
        num = count(hparams)
        keys = jax.random.split(key, num)

        def look(i: int | Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
            states, reached = carry
            before, after = (jnp.minimum(k * every, num_steps) for k in (i, i + 1))
            states = population.advance(hparams, states, after - before)
            there = population.value(hparams, states) <= target
            return states, jnp.where((reached < 0) & there, after, reached)

        carry = population.init(keys, hparams), jnp.full(num, -1, jnp.int32)
        looks = -(-num_steps // every)
        if population.host:
            for i in range(looks):
                carry = look(i, carry)
        else:
            carry = jax.lax.fori_loop(0, looks, look, carry)
        states, reached = carry
        trials = judge_members(population, keys, hparams, states, num_steps)
        return trials._replace(info=trials.info | {"reached": reached})

    return run
