"""Train everything to the end."""

import jax
import jax.numpy as jnp

from hypergrad.population import count
from hypergrad.problem import check_horizon
from hypergrad.schedulers.base import Scheduler
from hypergrad.searchers.base import Outcome


def full(num_steps: int) -> Scheduler:
    """Give every trial the same `num_steps` steps of training.

    **Cost:** N x `num_steps` steps.
    """
    check_horizon(num_steps, "num_steps")

    def run(population, key, hparams):
        num = count(hparams)
        keys = jax.random.split(key, num)
        states = population.init(keys, hparams)
        states = population.advance(hparams, states, num_steps)
        values, info = population.judge(hparams, states)
        steps = jnp.full(num, num_steps, jnp.int32)
        info |= {"key": jax.random.key_data(keys)}  # with it, a trial can be trained again alone
        return Outcome(hparams, values, steps, jnp.arange(num, dtype=jnp.int32), info)

    return run
