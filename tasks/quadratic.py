"""A quadratic trained by momentum: every iterate is known in closed form."""

import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.core.checks import check_whole
from hypergrad.problem import Problem, Task
from hypergrad.space import LogReal, Real, Sequence, schedule


def task(*, horizon: int = 50, num_params: int = 5, seed: int = 0) -> Task:
    """Tune the per-step learning rate and the momentum on L(w) = ½ (w − c)ᵀA(w − c).

    The objective is ½ ‖w − target‖². Training from w_0 = 0 is the linear recurrence

    m_{t+1} = A (w_t − c) + momentum · m_t,   w_{t+1} − c = (w_t − c) − lr_t m_{t+1},

    so that (w_T − c, m_T) = B_{T−1} ⋯ B_0 (−c, 0) with
    B_t = [[I − lr_t A, −lr_t momentum I], [A, momentum I]]; `exact` multiplies it out.

    Args:
        horizon: Number of training steps.
        num_params: Size of w.
        seed: Seed of A, c and the target.
    """
    check_whole("horizon", horizon)
    check_whole("num_params", num_params)
    matrix, centre, target = make_data(num_params, seed)
    a, c, goal = (jnp.asarray(x, jnp.float32) for x in (matrix, centre, target))
    problem = Problem(
        init=lambda key, hparams: jnp.zeros(num_params),
        loss=lambda params, h, batch: 0.5 * (params - c) @ a @ (params - c),
        objective=lambda params, h, batch: 0.5 * jnp.sum((params - goal) ** 2),
        optimizer=lambda h: optax.chain(
            optax.trace(h["momentum"]), optax.scale_by_learning_rate(schedule(h["lr"]))
        ),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    return Task(
        name="quadratic",
        problem=problem,
        space={
            "lr": Sequence(LogReal(1e-3, 0.5, default=0.05), horizon),
            "momentum": Real(0.0, 0.95, default=0.5),
        },
        horizon=horizon,
        test=lambda params, h: (params - goal) ** 2,
        metric="squared error",
        higher_is_better=False,
        description=f"A quadratic in {num_params} dimensions, {horizon} steps of momentum.",
    )


def make_data(num_params: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make A (eigenvalues 0.2 to 2), c and the objective's target, float64."""
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.normal(size=(num_params, num_params)))
    matrix = basis @ np.diag(np.linspace(0.2, 2.0, num_params)) @ basis.T
    centre = random.normal(size=num_params)
    return matrix, centre, centre + 0.3 * random.normal(size=num_params)


def exact(lr: np.ndarray, momentum: float, num_params: int, seed: int) -> float:
    """Return the final objective from the linear recurrence of (w − c, velocity), float64."""
    matrix, centre, target = make_data(num_params, seed)
    eye = np.eye(num_params)
    state = np.concatenate([-centre, np.zeros(num_params)])
    for rate in lr:
        top = np.hstack([eye - rate * matrix, -rate * momentum * eye])
        bottom = np.hstack([matrix, momentum * eye])
        state = np.vstack([top, bottom]) @ state
    return 0.5 * float(np.sum((state[:num_params] + centre - target) ** 2))
