"""Train everything to the end."""

import math

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole, is_number
from hypergrad.core.methods import Method
from hypergrad.core.types import PyTree
from hypergrad.populations import count
from hypergrad.problem import Problem
from hypergrad.schedulers.base import Scheduler, ended


def full(num_steps: int) -> Scheduler:
    """Give every trial the same `num_steps` steps of training.

    **Cost:** N x `num_steps` steps.
    """
    check_whole("num_steps", num_steps)

    def run(population, key, hparams):
        num = count(hparams)
        keys = jax.random.split(key, num)
        states = population.init(keys, hparams)
        states = population.advance(hparams, states, num_steps)
        return ended(population, keys, hparams, states, num_steps)

    return run


def _make(problem: Problem, space: PyTree, horizon: int, size: int) -> tuple[Scheduler, float]:
    return full(horizon), size


FULL = Method("full", "every trial is trained to the end", (), _make)


def reach(target: float, num_steps: int, *, every: int = 1) -> Scheduler:
    """Give every trial `num_steps` steps, and look at its objective every so many.

    `info["reached"]` has the number of steps after which the objective of a trial was first seen to be at most
    the target, or -1. `searchers.steps_to(target)` makes `cross_entropy` minimise it.

    **Cost:** that of `full`, and ⌈`num_steps` / `every`⌉ evaluations of the objective a trial. Trials that are
    there go on to the end: side by side in a program they would wait for the last one anyway, and
    the values of all stay comparable.

    **Limits:** what happens between two looks is not seen: `reached` is a multiple of `every`, or the end.

    Args:
        target: objective to reach.
        num_steps: training steps of every trial.
        every: steps from one look to the next.

    Raises:
        ValueError: for a target that is not finite, or counts below 1.

    Reference:
        the second objective of CEHPO: steps to a given loss.
    """
    check_whole("num_steps", num_steps)
    check_whole("every", every)
    if not is_number(target) or not math.isfinite(target):
        raise ValueError(
            f"target is {target!r:.80}, expected a finite number; pass the objective to reach"
        )

    def run(population, key, hparams):
        num = count(hparams)
        keys = jax.random.split(key, num)

        def look(i, carry):
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
        outcome = ended(population, keys, hparams, states, num_steps)
        return outcome._replace(info=outcome.info | {"reached": reached})

    return run
