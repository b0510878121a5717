"""The forward pass over a training run, along which the derivative of the weights travels with them.

Z_0 = dw_0/dλ,   Z_{t+1} = (∂Φ_t/∂w) Z_t + ∂Φ_t/∂λ

A column of Z is a list of arrays like the float leaves of the state (`adjoint.state_floats`).
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.core.types import Array, HParams, Key
from hypergrad.estimators.unrolled.adjoint import state_floats
from hypergrad.problem import Problem
from hypergrad.train import TrainState, init_state, step


def basis(hparams: HParams) -> HParams:
    """Return the unit directions of the hparams, a pytree like them with the leading axis `[num_hparams]`."""
    flat, unravel = ravel_pytree(hparams)
    return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))


def first_tangents(
    problem: Problem, key: Key, hparams: HParams, directions: HParams
) -> list[Array]:
    """Return Z_0 along each direction, leading axis `[num_directions]`."""

    def start(hparams: HParams) -> list[Array]:
        return state_floats(init_state(problem, key, hparams))[0]

    return jax.vmap(lambda direction: jax.jvp(start, (hparams,), (direction,))[1])(directions)


def push_step(
    problem: Problem,
    hparams: HParams,
    state: TrainState,
    tangents: list[Array],
    directions: HParams,
) -> tuple[TrainState, list[Array], Array]:
    """Make one step of training, and push one tangent a direction through it.

    Returns:
        The next state, its tangents, and the loss `[]` before the step.
    """
    leaves, join = state_floats(state)

    def advance(leaves: list[Array], hparams: HParams) -> tuple[list[Array], tuple]:
        new, loss = step(problem, hparams, join(leaves))
        return state_floats(new)[0], (new, loss)

    def along(tangent: list[Array], direction: HParams) -> tuple[list[Array], tuple]:
        primals, moving = (leaves, hparams), (tangent, direction)
        _, moved, kept = jax.jvp(advance, primals, moving, has_aux=True)
        return moved, kept

    tangents, (state, loss) = jax.vmap(along, out_axes=(0, None))(tangents, directions)
    return state, tangents, loss
