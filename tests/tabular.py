"""A policy over few choices with a closed-form inner solution, in plain numpy beside the problem itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.problem import Problem
from hypergrad.space import Choice, Integer, LogReal, Real

RATE, L2 = 0.3, -1.0
SPACE = {"op": Choice(("a", "b", "c")), "num": Integer(1, 2), "l2": Real(-3.0, 1.0, L2)}
TWO = {"op": Choice(("a", "b")), "l2": Real(-3.0, 1.0, L2), "rate": LogReal(0.01, 1.0, RATE)}
_random = np.random.default_rng(5)
_root = _random.normal(size=(6, 3, 3))
A = _root @ _root.transpose(0, 2, 1) / 3 + 0.5 * np.eye(3)
A = 1.5 * A / np.linalg.eigvalsh(A)[:, -1:, None]
C, D = _random.normal(size=(6, 3)), _random.normal(size=(6, 3))
G = _random.normal(size=6)
"""Outcome k = (op, num): L = ½ (w − C)ᵀ A (w − C) + ½ e^λ ‖w‖², f = ½ ‖w − D‖² + G + 0.05 λ²."""


def constant(x):
    """Copy a constant: jax keeps what it has narrowed an array to, and gives that out with x64 on too."""
    return jnp.asarray(np.array(x))


def outcome(h):
    return 2 * h["op"] + (h["num"] - 1 if "num" in h else 0)


def problem():
    """Gradient descent from zero; `rate` and `l2` are read where the space has them, else fixed."""

    def loss(w, h, batch):
        k = outcome(h)
        gap = w - constant(C)[k]
        return 0.5 * gap @ constant(A)[k] @ gap + 0.5 * jnp.exp(h.get("l2", L2)) * jnp.sum(w**2)

    def objective(w, h, batch):
        k = outcome(h)
        return (
            0.5 * jnp.sum((w - constant(D)[k]) ** 2) + constant(G)[k] + 0.05 * h.get("l2", L2) ** 2
        )

    return Problem(
        init=lambda key, h: jnp.zeros(3),
        loss=loss,
        objective=objective,
        optimizer=lambda h: optax.sgd(h.get("rate", RATE)),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def probabilities(phi):
    """Of the six outcomes, `[6]`; of those of `TWO`, at the even places."""
    op = softmax(np.asarray(phi["op"], np.float64))
    num = softmax(np.asarray(phi["num"], np.float64)) if "num" in phi else np.array([1.0, 0.0])
    p = np.zeros(6)
    p[: 2 * len(op)] = np.outer(op, num).ravel()
    return p


def slope(w, p, l2):
    """The gradient of the loss averaged by p; p may be the shares of a sample."""
    return sum(p[k] * A[k] @ (w - C[k]) for k in range(6)) + np.exp(l2) * w


def descend(p, l2, num_steps, rate=RATE):
    """Train for `num_steps` steps on the loss averaged by p, or by one p a step."""
    w = np.zeros(3)
    for t in range(num_steps):
        w = w - rate * slope(w, p if np.ndim(p) == 1 else p[t], l2)
    return w


def minimum(p, l2):
    """Where that training comes to rest."""
    hessian = np.einsum("k,kij->ij", p, A) + np.exp(l2) * np.eye(3)
    return np.linalg.solve(hessian, np.einsum("k,kij,kj->i", p, A, C))


def judge(w, p, l2):
    """The objective averaged by p."""
    return float(p @ (0.5 * ((w - D) ** 2).sum(1) + G) + 0.05 * l2**2)


def differences(function, phi, step=1e-6):
    """Central differences of a function of φ, in float64."""
    phi = {name: np.asarray(x, np.float64) for name, x in phi.items()}
    grads = {}
    for name, x in phi.items():
        flat = np.zeros(x.size)
        for i in range(x.size):
            moved = np.zeros(x.size)
            moved[i] = step
            sides = [function({**phi, name: x + s * moved.reshape(x.shape)}) for s in (1, -1)]
            flat[i] = (sides[0] - sides[1]) / (2 * step)
        grads[name] = flat.reshape(x.shape)
    return grads


def parts(respond, phi):
    """Direct gradient, response and value of J = judge(respond(p, φ), p, λ), by differences."""
    held = {name: np.asarray(x, np.float64) for name, x in phi.items()}
    w, p = respond(held), probabilities(held)
    direct = differences(lambda f: judge(w, probabilities(f), f["l2"]), phi)
    response = differences(lambda f: judge(respond(f), p, held["l2"]), phi)
    return direct, response, judge(w, p, held["l2"])


def runs(p, num_steps, num_samples):
    """All runs of drawn shares `[num_steps, 6]` with their probabilities; one share a step."""
    alive = np.flatnonzero(p > 0)
    for trajectory in itertools.product(alive, repeat=num_steps * num_samples):
        shares = np.zeros((num_steps, 6))
        for i, k in enumerate(trajectory):
            shares[i // num_samples, k] += 1 / num_samples
        yield shares, float(np.prod(p[list(trajectory)]))


def many(estimator, phi, num, seed=0, state=None):
    """The hypergradients of `num` keys, leading axis `[num]`."""
    keys = jax.random.split(jax.random.key(seed), num)
    state = estimator.init(keys[0], phi) if state is None else state
    return jax.jit(jax.vmap(lambda k: estimator.estimate(k, state, phi)[1]))(keys)


def deviations(each, exact):
    """How many standard errors the mean over keys is from what is exact, the largest over all entries."""
    worst = 0.0
    for name, want in exact.items():
        x = np.asarray(each[name], np.float64)
        error = x.std(0, ddof=1) / np.sqrt(len(x))
        off = np.abs(x.mean(0) - want)
        worst = max(worst, float(np.max(off / np.maximum(error, 1e-6 * (1e-3 + np.abs(want))))))
    return worst
