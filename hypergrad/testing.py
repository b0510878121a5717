"""Help for tests: tolerances that come from the dtype, and problems whose hypergradients are known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.problem import Problem
from hypergrad.space import schedule
from hypergrad.types import HParams, PyTree


def assert_close(actual: PyTree, expected: PyTree, scale: float = 10.0) -> None:
    """Assert that two trees agree to `scale` x √eps of the actual dtype, relative to each leaf's norm.

    Raises:
        AssertionError: naming the leaf and the relative error.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(actual)
    assert structure == jax.tree.structure(expected), (structure, jax.tree.structure(expected))
    for (path, a), e in zip(flat, jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        assert np.shape(a) == np.shape(e), f"{name}: shape {np.shape(a)}, expected {np.shape(e)}"
        tolerance = scale * float(jnp.finfo(jnp.result_type(a)).eps) ** 0.5
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        norm = max(float(np.linalg.norm(e)), 1e-30)
        error = float(np.linalg.norm(a - e)) / norm
        assert error <= tolerance, f"{name}: relative error {error:.2e}, expected {tolerance:.2e}"


class Solved(NamedTuple):
    """A problem with its answer.

    Attributes:
        problem: the training loop, in the default float dtype of the moment.
        hparams: where the answer holds.
        value: the objective there.
        direct: its direct gradient, a pytree like `hparams` of float64 numpy arrays.
        response: its response gradient, likewise.
    """

    problem: Problem
    hparams: HParams
    value: float
    direct: PyTree
    response: PyTree


def geometric(horizon: int) -> Solved:
    """Gradient descent on separate parabolas, with a rate a step and the initial scale as hparams.

    w_T = s w_0 Π_t (1 − η_t a),   f = ½ ‖w_T − c‖² + ½ s²;   with r = w_T − c,
    df/dη_t = −Σ_i r_i a_i w_{T,i} / (1 − η_t a_i),   df/ds = s + Σ_i r_i w_{T,i} / s
    """
    curvature = np.array([0.2, 0.7, 1.5])
    first, centre = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -0.4])
    rates, scale = np.linspace(0.1, 0.4, horizon), 1.3
    shrunk = 1 - rates[:, None] * curvature
    last = scale * first * shrunk.prod(0)
    residual = last - centre
    problem = Problem(
        init=lambda key, h: h["scale"] * jnp.asarray(first),
        loss=lambda w, h, batch: 0.5 * jnp.sum(curvature * w**2),
        objective=lambda w, h, batch: 0.5 * jnp.sum((w - centre) ** 2) + 0.5 * h["scale"] ** 2,
        optimizer=lambda h: optax.sgd(schedule(h["rates"])),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    return Solved(
        problem=problem,
        hparams={"rates": jnp.asarray(rates), "scale": jnp.asarray(scale)},
        value=float(0.5 * residual @ residual + 0.5 * scale**2),
        direct={"rates": np.zeros(horizon), "scale": np.asarray(scale)},
        response={
            "rates": -(residual * curvature * last / shrunk).sum(1),
            "scale": np.asarray(residual @ last / scale),
        },
    )


def ridge() -> Solved:
    """Ridge regression by gradient descent: after enough steps the hypergradient is the implicit one.

    w* = (A + e^λ I)⁻¹ b,   df/dλ = λ/10 − e^λ w*ᵀ (A + e^λ I)⁻¹ ∇_w f
    """
    random = np.random.default_rng(7)
    inputs, targets = random.normal(size=(2, 30, 4)), random.normal(size=(2, 30))
    gram, moment = inputs[0].T @ inputs[0] / 30, inputs[0].T @ targets[0] / 30
    log_l2 = -1.0
    hessian = gram + np.exp(log_l2) * np.eye(4)
    weights = np.linalg.solve(hessian, moment)
    residual = inputs[1] @ weights - targets[1]
    adjoint = np.linalg.solve(hessian, inputs[1].T @ residual / 30)
    rate = float(1 / np.linalg.eigvalsh(hessian)[-1])
    train, valid = ((jnp.asarray(inputs[i]), jnp.asarray(targets[i])) for i in range(2))

    def squared(w, batch):
        return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

    problem = Problem(
        init=lambda key, h: jnp.zeros(4),
        loss=lambda w, h, batch: squared(w, batch) + 0.5 * jnp.exp(h["log_l2"]) * jnp.sum(w**2),
        objective=lambda w, h, batch: squared(w, batch) + 0.05 * h["log_l2"] ** 2,
        optimizer=lambda h: optax.sgd(rate),
        train_batch=lambda key, step: train,
        valid_batch=lambda key: valid,
    )
    return Solved(
        problem=problem,
        hparams={"log_l2": jnp.asarray(log_l2)},
        value=float(0.5 * np.mean(residual**2) + 0.05 * log_l2**2),
        direct={"log_l2": np.asarray(0.1 * log_l2)},
        response={"log_l2": np.asarray(-np.exp(log_l2) * weights @ adjoint)},
    )
