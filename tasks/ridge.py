"""Ridge regression: the hypergradient of its penalties is known in closed form."""

import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.core.checks import check_whole
from hypergrad.problem import Problem, Task
from hypergrad.space import LogReal


def task(*, horizon: int = 300, num_features: int = 8, seed: int = 0) -> Task:
    """Tune one L2 penalty a feature of a ridge regression trained by gradient descent.

    L(w) = ½ mean (Xw − y)² + ½ Σ_i penalty_i w_i²; `exact` gives its minimizer's objective and
    hypergradient, which training approaches as the horizon grows.

    Args:
        horizon: Number of training steps.
        num_features: Size of w.
        seed: Seed of the data.
    """
    check_whole("horizon", horizon)
    check_whole("num_features", num_features)
    sets = make_data(num_features, seed)
    train, valid, test = (tuple(jnp.asarray(x, jnp.float32) for x in part) for part in sets)
    rate = float(1.0 / np.linalg.eigvalsh(sets[0][0].T @ sets[0][0] / len(sets[0][1]))[-1])

    def squared(params, batch):
        return 0.5 * jnp.mean((batch[0] @ params - batch[1]) ** 2)

    problem = Problem(
        init=lambda key, hparams: jnp.zeros(num_features),
        loss=lambda params, h, batch: (
            squared(params, batch) + 0.5 * jnp.sum(h["penalty"] * params**2)
        ),
        objective=lambda params, h, batch: squared(params, batch),
        optimizer=lambda h: optax.sgd(0.5 * rate),
        train_batch=lambda key, step: train,
        valid_batch=lambda key: valid,
    )
    return Task(
        name="ridge",
        problem=problem,
        space={"penalty": LogReal(1e-4, 1.0, default=0.1, shape=(num_features,))},
        horizon=horizon,
        test=lambda params, h: (test[0] @ params - test[1]) ** 2,
        metric="squared error",
        higher_is_better=False,
        description=f"Ridge regression with {num_features} penalties, {horizon} steps of gradient descent.",
    )


def make_data(num_features: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Make (inputs, targets) of 40 training, 40 validation and 40 test examples, float64."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=num_features) * (np.arange(num_features) < (num_features + 1) // 2)
    sets = []
    for _ in range(3):
        inputs = random.normal(size=(40, num_features))
        sets.append((inputs, inputs @ weights + random.normal(size=40)))
    return sets


def exact(
    penalty: np.ndarray, sets: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, np.ndarray]:
    """Return the validation objective at the minimizer and its hypergradient, float64.

    w* = (XᵀX/m + diag λ)⁻¹ Xᵀy/m,   df/dλ_i = −w*_i [(XᵀX/m + diag λ)⁻¹ ∇_w f]_i
    """
    (inputs, targets), (valid_inputs, valid_targets), _ = sets
    hessian = inputs.T @ inputs / len(targets) + np.diag(penalty)
    weights = np.linalg.solve(hessian, inputs.T @ targets / len(targets))
    residual = valid_inputs @ weights - valid_targets
    gradient = valid_inputs.T @ residual / len(residual)
    return 0.5 * float(np.mean(residual**2)), -weights * np.linalg.solve(hessian, gradient)
