"""Train everything to the end."""

import jax

from hypergrad.checks import check_whole
from hypergrad.population import count
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
