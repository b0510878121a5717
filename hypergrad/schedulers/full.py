"""Train everything to the end."""

import jax

from hypergrad.population import count
from hypergrad.problem import check_horizon
from hypergrad.schedulers.base import Scheduler, ended


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
        return ended(population, keys, hparams, states, num_steps)

    return run
