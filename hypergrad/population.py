"""Train many members of one problem at once."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from hypergrad.problem import Problem, check_horizon, check_problem
from hypergrad.train import TrainState, init_state, unroll
from hypergrad.types import Array, HParams, Key


class Population(NamedTuple):
    """N members of one problem; every argument has the leading axis `[N]`.

    Attributes:
        init: (keys, hparams) -> states.
        advance: (hparams, states, num_steps) -> states. `num_steps` is one static number for all, or an
            array `[N]` with a number for each member.
        value: (hparams, states) -> objectives `[N]`; NaN and infinities are kept as they are.
    """

    init: Callable[[Key, HParams], TrainState]
    advance: Callable[[HParams, TrainState, int | Array], TrainState]
    value: Callable[[HParams, TrainState], Array]


def population(problem: Problem, *, batch_size: int | None = 4) -> Population:
    """Build a population of one problem.

    **Cost:** on a CPU about that of a loop of one compiled program (`batch_size` of 4 was fastest on one
    core); memory of `batch_size` runs.

    Args:
        problem: the training loop; hyperparameters are traced, so other values never recompile.
        batch_size: how many members are trained side by side (`vmap`); the chunks follow one another
            (`lax.map`). None: all at once, as an accelerator likes it.
    """
    check_problem(problem)
    if batch_size is not None:
        check_horizon(batch_size, "batch_size")

    def each(function, *args):
        if batch_size is None:
            return jax.vmap(function)(*args)
        return jax.lax.map(lambda xs: function(*xs), args, batch_size=batch_size)

    def init(keys, hparams):
        return each(lambda key, h: init_state(problem, key, h), keys, hparams)

    def advance(hparams, states, num_steps):
        if isinstance(num_steps, int):
            return each(lambda h, s: unroll(problem, h, s, num_steps), hparams, states)

        def some(h, state, num):
            return jax.lax.fori_loop(0, num, lambda _, s: unroll(problem, h, s, 1), state)

        return each(some, hparams, states, num_steps)

    def value(hparams, states):
        def one(h, state):
            return problem.objective(state.params, h, problem.valid_batch(state.key))

        return each(one, hparams, states)

    return Population(init, advance, value)
