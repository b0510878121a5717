"""Help for tests: tolerances that come from the dtype, and problems whose hypergradients are known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.core.types import Array, Batch, HParams, Key, PyTree
from hypergrad.problem import Examples, Problem
from hypergrad.space import schedule


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
        problem: Training loop, in the default float dtype of the moment.
        hparams: Hyperparameters at which the answer holds.
        value: Objective at these hparams.
        direct: Direct gradient, a pytree like `hparams` of float64 numpy arrays.
        response: Response gradient, likewise.
    """

    problem: Problem
    hparams: HParams
    value: float
    direct: PyTree
    response: PyTree


def geometric(horizon: int) -> Solved:
    """Build gradient descent on separate parabolas, with a rate per step and the initial scale as hparams.

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
    """Build ridge regression by gradient descent: after enough steps the hypergradient is the implicit one.

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

    def squared(w: Array, batch: Batch) -> Array:
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


def ridge_many() -> Solved:
    """Build ridge regression with a penalty a weight, by gradient descent.

    w* = (A + diag e^λ)⁻¹ b,   df/dλ_i = −e^{λ_i} w*_i v_i,   v = (A + diag e^λ)⁻¹ ∇_w f
    """
    inputs, targets = _regression(8)
    log_l2 = np.linspace(-3.0, 0.0, 4)
    hessian = inputs[0].T @ inputs[0] / 30 + np.diag(np.exp(log_l2))
    weights, adjoint, value = _minimum(hessian, inputs, targets, inputs[0].T @ targets[0] / 30)
    problem = _least_squares(
        inputs,
        targets,
        hessian,
        lambda w, h, x, y: (
            0.5 * jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(h["log_l2"]) * w**2)
        ),
    )
    return Solved(
        problem=problem,
        hparams={"log_l2": jnp.asarray(log_l2)},
        value=value,
        direct={"log_l2": np.zeros(4)},
        response={"log_l2": -np.exp(log_l2) * weights * adjoint},
    )


def weighted_least_squares() -> Solved:
    """Build least squares with a weight an example and a fixed penalty of 0.1, by gradient descent.

    L = (1/2n) Σ_i e^{λ_i} (x_i·w − y_i)² + 0.05 ‖w‖²,   df/dλ_i = −e^{λ_i} (x_i·w* − y_i) x_i·v / n
    """
    inputs, targets = _regression(9)
    log_weight = np.linspace(-1.0, 1.0, 30)
    scaled = np.exp(log_weight)[:, None] * inputs[0] / 30
    hessian = scaled.T @ inputs[0] + 0.1 * np.eye(4)
    weights, adjoint, value = _minimum(hessian, inputs, targets, scaled.T @ targets[0])
    problem = _least_squares(
        inputs,
        targets,
        hessian,
        lambda w, h, x, y: (
            0.5 * jnp.mean(jnp.exp(h["log_weight"]) * (x @ w - y) ** 2) + 0.05 * jnp.sum(w**2)
        ),
    )
    return Solved(
        problem=problem,
        hparams={"log_weight": jnp.asarray(log_weight)},
        value=value,
        direct={"log_weight": np.zeros(30)},
        response={"log_weight": -(inputs[0] @ weights - targets[0]) * (scaled @ adjoint)},
    )


def quadratic_bilevel(batch_size: int | None = None) -> Solved:
    """Build a quadratic in the weights under a quadratic in the hparams, as a mean over 16 examples.

    L = ½ wᵀAw − mean_i (B_i λ + b_i)ᵀ w,   f = ½ ‖w − c‖² + 0.05 ‖λ‖²
    w* = A⁻¹ (B̄λ + b̄),   df/dλ = λ/10 + B̄ᵀ A⁻¹ (w* − c)

    The loss is linear in the examples. So, with minibatches and an exact solve, the expectation of every
    implicit hypergradient is that of the full batch.

    Args:
        batch_size: Size of the minibatches, drawn with replacement; all examples where None.
    """
    random = np.random.default_rng(10)
    root = random.normal(size=(5, 5))
    a = root @ root.T / 5 + 0.5 * np.eye(5)
    coupling, shift = random.normal(size=(16, 5, 3)), random.normal(size=(16, 5))
    centre, point = random.normal(size=5), np.array([0.5, -1.0, 0.3])
    weights = np.linalg.solve(a, coupling.mean(0) @ point + shift.mean(0))
    adjoint = np.linalg.solve(a, weights - centre)
    rate = float(1 / np.linalg.eigvalsh(a)[-1])
    examples = Examples(16, lambda index: (jnp.asarray(coupling)[index], jnp.asarray(shift)[index]))

    def loss(w: Array, h: HParams, batch: Batch) -> Array:
        pull = jnp.mean(batch[0], 0) @ h["point"] + jnp.mean(batch[1], 0)
        return 0.5 * w @ jnp.asarray(a) @ w - pull @ w

    def train_batch(key: Key, step: Array) -> Batch:
        if batch_size is None:
            return examples.at(jnp.arange(16))
        return examples.at(jax.random.randint(key, (batch_size,), 0, 16))

    problem = Problem(
        init=lambda key, h: jnp.zeros(5),
        loss=loss,
        objective=lambda w, h, batch: (
            0.5 * jnp.sum((w - centre) ** 2) + 0.05 * jnp.sum(h["point"] ** 2)
        ),
        optimizer=lambda h: optax.sgd(rate),
        train_batch=train_batch,
        valid_batch=lambda key: (),
        train_set=examples,
    )
    return Solved(
        problem=problem,
        hparams={"point": jnp.asarray(point)},
        value=float(0.5 * np.sum((weights - centre) ** 2) + 0.05 * point @ point),
        direct={"point": 0.1 * point},
        response={"point": coupling.mean(0).T @ adjoint},
    )


def _regression(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make inputs `[2, 30, 4]` and targets `[2, 30]`, for training and validation."""
    random = np.random.default_rng(seed)
    return random.normal(size=(2, 30, 4)), random.normal(size=(2, 30))


def _minimum(hessian, inputs, targets, moment) -> tuple[np.ndarray, np.ndarray, float]:
    """Return w* = H⁻¹ moment, v = H⁻¹ ∇_w f and f, for f half the mean squared error on validation."""
    weights = np.linalg.solve(hessian, moment)
    residual = inputs[1] @ weights - targets[1]
    adjoint = np.linalg.solve(hessian, inputs[1].T @ residual / len(residual))
    return weights, adjoint, float(0.5 * np.mean(residual**2))


def _least_squares(inputs, targets, hessian, loss) -> Problem:
    """Make the problem of a linear model from its loss (w, hparams, inputs, targets) -> []."""
    rate = float(1 / np.linalg.eigvalsh(hessian)[-1])
    train, valid = ((jnp.asarray(inputs[i]), jnp.asarray(targets[i])) for i in range(2))
    return Problem(
        init=lambda key, h: jnp.zeros(inputs.shape[-1]),
        loss=lambda w, h, batch: loss(w, h, *batch),
        objective=lambda w, h, batch: 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2),
        optimizer=lambda h: optax.sgd(rate),
        train_batch=lambda key, step: train,
        valid_batch=lambda key: valid,
    )
