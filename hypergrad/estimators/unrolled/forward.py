"""Forward-mode hypergradients: exact, for few hyperparameters and any horizon, in constant memory."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.core import tree
from hypergrad.core.checks import check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key
from hypergrad.estimators.advice import warn_structural_zeros
from hypergrad.estimators.base import Estimate, Estimator, first_nonfinite, no_state
from hypergrad.estimators.costs import TANGENT, num_numbers
from hypergrad.estimators.unrolled.base import (
    UnrollInfo,
    finite_leaves,
    growth_rate,
    objective_parts,
)
from hypergrad.estimators.unrolled.tangent import first_tangents, push_step
from hypergrad.problem import Problem, check_problem
from hypergrad.train import (
    init_state,
    split_key,
    trained,
)
from hypergrad.validation import check_step


def forward(problem: Problem, horizon: int, *, chunk: int | None = None) -> Estimator:
    """Push the derivative of the weights along with training, one tangent a hyperparameter.

    Z_0 = dw_0/dλ,   Z_{t+1} = (∂Φ_t/∂w) Z_t + ∂Φ_t/∂λ,   hypergrad = ∂f/∂λ + (∂f/∂w) Z_T

    **Cost:** about (1 + 1.5 num_hparams) x training, memory of `chunk` states; independent of the horizon.
    Against `reverse` it breaks even near two hyperparameters.

    **Limits:** exact except for rounding. The loss and its gradient must have forward derivatives.

    Args:
        problem: Training loop.
        horizon: Number of inner steps.
        chunk: Number of tangents that travel together; None: all of them. A shorter last chunk is filled up
            with zeros. Each chunk trains once more.

    Returns:
        A stateless estimator; `info` is an `UnrollInfo` whose `sensitivity` is ‖Z‖ after each step.

    Raises:
        ValueError: for a horizon or chunk below 1 and, when traced, for a leaf that is not real.

    Reference:
        Franceschi, Donini, Frasconi, Pontil, 2017, arXiv:1703.01785, Algorithm 2 (Forward-HG).
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    if chunk is not None:
        check_whole("chunk", chunk)

    def estimate(key: Key, state: tuple[()], hparams: HParams) -> tuple[tuple[()], Estimate]:
        check_step(problem, hparams, real=True)
        warn_structural_zeros(problem, hparams, horizon)
        run_key, valid_key = split_key(key)

        def push(directions: HParams) -> tuple[tuple, Array, Array]:
            """Train with a block of tangents; return what all share, the response and ‖Z_t‖²."""

            def body(carry: tuple, _: None) -> tuple[tuple, tuple[Array, Array]]:
                state, tangents = carry
                state, tangents, loss = push_step(problem, hparams, state, tangents, directions)
                weights = tangents[: len(jax.tree.leaves(trained(state.params)))]
                return (state, tangents), (loss, jnp.square(tree.norm(weights)))

            initial = init_state(problem, run_key, hparams)
            tangents = first_tangents(problem, run_key, hparams, directions)
            (final, tangents), (losses, squares) = jax.lax.scan(
                body, (initial, tangents), None, length=horizon
            )
            value, direct, adjoint = objective_parts(problem, valid_key, hparams, final)
            response = jax.vmap(lambda tangent: tree.dot(adjoint, tangent))(tangents)
            return (value, direct, losses, finite_leaves(final)), response, squares

        flat, unravel = ravel_pytree(hparams)
        size = flat.size if chunk is None else min(chunk, flat.size)
        num_chunks = -(-flat.size // size)
        basis = jnp.eye(num_chunks * size, flat.size, dtype=flat.dtype)
        blocks = jax.vmap(jax.vmap(unravel))(basis.reshape(num_chunks, size, flat.size))
        if num_chunks == 1:
            shared, response, squares = push(jax.tree.map(lambda x: x[0], blocks))
        else:
            shared, response, squares = jax.lax.map(push, blocks)
            shared = jax.tree.map(lambda x: x[0], shared)
            squares = squares.sum(0)
        value, direct, losses, finite = shared
        response = unravel(response.reshape(-1)[: flat.size].astype(flat.dtype))
        norms = jnp.sqrt(squares).astype(jnp.float32)
        growth = growth_rate(norms[0], norms[1:], late=True)
        nonfinite = first_nonfinite(losses, value)
        info = UnrollInfo(
            direct,
            response,
            jnp.asarray(horizon, jnp.int32),
            norms,
            growth,
            nonfinite,
            finite=finite,
        )
        return state, Estimate(value, tree.add(direct, response), info)

    return Estimator(no_state, estimate)


FORWARD = Method(
    "forward",
    "along with the run: exact, in constant memory, for a few hyperparameters",
    (),
    lambda problem, horizon, space: forward(problem, horizon),
    cost=lambda problem, horizon, space: 1 + TANGENT * num_numbers(space),
)
