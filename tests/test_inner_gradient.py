"""`mixed_mode_grad` against plain autodiff: the same numbers, in less memory."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close

KEY = jax.random.key(0)
SIZES = (5, 6, 6, 3)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 5)).astype(np.float32)
LABELS = RANDOM.integers(3, size=24).astype(np.int32)


def init(sizes=SIZES):
    shapes = list(pairwise(sizes))
    keys = jax.random.split(KEY, len(shapes))
    return [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, shapes, strict=True)]


def loss(params, hparams, batch, *, scale=1.0):
    """A loss that reads floats, integers, a key and a number of Python."""
    x, labels, key = batch
    x = x + hparams["noise"] * jax.random.normal(key, x.shape)
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    logits = jax.nn.log_softmax(x @ params[-1])
    squares = sum(jnp.sum(w**2) for w in params)
    return scale * (hparams["l2"] * squares - jnp.mean(logits[jnp.arange(len(labels)), labels]))


def with_aux(params, hparams, batch):
    """The value and what a BatchNorm would keep, which carry derivatives, and an integer."""
    value = loss(params, hparams, batch)
    mean = jnp.tanh(batch[0] @ params[0]).mean(0)
    return value, {"value": value, "mean": hparams["l2"] * mean, "count": jnp.asarray(len(X))}


def trained(grad, hparams, params, num_steps=4, aux=False):
    """A loop of one's own, with momentum, and with aux a carried average that the next gradient sees."""

    def step(carry, index):
        params, moment, mean = carry
        key = jax.random.fold_in(KEY, index)
        rows = jax.random.randint(key, (8,), 0, 24)
        batch = jnp.asarray(X)[rows], jnp.asarray(LABELS)[rows], key
        if aux:
            grads, got = grad(with_aux, has_aux=True)(params, hparams, batch)
            mean = 0.9 * mean + got["mean"] * got["value"]
        else:
            grads = grad(partial(loss, scale=0.5))(params, hparams, batch)
        moment = jax.tree.map(lambda m, g: 0.8 * m + g, moment, grads)
        return (
            jax.tree.map(lambda w, m: w - hparams["lr"] * m, params, moment),
            moment,
            mean,
        ), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    start = (params, zeros, jnp.zeros(params[0].shape[1]))
    (params, _, mean), _ = jax.lax.scan(step, start, jnp.arange(num_steps))
    return loss(params, {**hparams, "noise": 0.0}, (X, LABELS, KEY)) + jnp.sum(mean**2)


def hparams():
    return {"lr": jnp.asarray(0.3), "l2": jnp.asarray(0.02), "noise": jnp.asarray(0.2)}


def test_hypergradients_are_those_of_plain_autodiff():
    """Of the hyperparameters and of the first params, the derivative of the aux included."""
    with jax.enable_x64(True):
        at = (hparams(), init())
        mixed, plain = (
            jax.jit(jax.grad(partial(trained, grad, aux=True), (0, 1)))(*at)
            for grad in (hg.mixed_mode_grad, jax.grad)
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), mixed, plain)
        assert all(abs(plain[0][name]) > 1e-4 for name in ("lr", "l2", "noise"))


def test_the_gradient_and_its_aux_are_those_of_jax():
    batch = (jnp.asarray(X), jnp.asarray(LABELS), KEY)
    got = hg.mixed_mode_grad(with_aux, has_aux=True)(init(), hparams(), batch)
    expected = jax.grad(with_aux, has_aux=True)(init(), hparams(), batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), got, expected)
    assert hg.mixed_mode_grad(loss).__name__ == "loss"


@pytest.mark.slow
def test_what_is_closed_over_has_its_derivative():
    """Hyperparameters, floats of the batch, and integers that are traced where the loss is written."""

    def outer(grad, hparams, x):
        def step(params, rows):
            labels = jnp.asarray(LABELS)[rows]
            grads = grad(lambda p: loss(p, hparams, (x[rows], labels, KEY)))(params)
            return jax.tree.map(lambda w, g: w - hparams["lr"] * g, params, grads), None

        params, _ = jax.lax.scan(step, init(), jnp.arange(12).reshape(3, 4))
        return sum(jnp.sum(jnp.sin(w)) for w in params)

    at = (hparams(), jnp.asarray(X))
    mixed = jax.grad(partial(outer, hg.mixed_mode_grad), (0, 1))(*at)
    assert_close(mixed, jax.grad(partial(outer, jax.grad), (0, 1))(*at), scale=0.1)
    assert (mixed[1][:12] != 0).all()


@pytest.mark.slow
def test_vmap_is_a_loop():
    def hypergrad(h):
        return jax.grad(partial(trained, hg.mixed_mode_grad, num_steps=2))(h, init())

    many = jax.tree.map(lambda x: x * jnp.array([0.5, 1.0, 1.5]), hparams())
    found = jax.jit(jax.vmap(hypergrad))(many)
    one = jax.jit(hypergrad)
    for i in range(3):
        assert_close(
            jax.tree.map(lambda x, i=i: x[i], found), one(jax.tree.map(lambda x, i=i: x[i], many))
        )


@pytest.mark.slow
def test_second_derivatives_are_plain_and_forward_mode_is_refused():
    params, batch = init(), (jnp.asarray(X), jnp.asarray(LABELS), KEY)

    def size(noise, grad):
        grads = grad(loss)(params, {**hparams(), "noise": noise}, batch)
        return sum(jnp.sum(g**2) for g in grads)

    twice = jax.grad(jax.grad(size))
    found, expected = (twice(jnp.float32(0.2), g) for g in (hg.mixed_mode_grad, jax.grad))
    assert abs(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jvp(lambda noise: size(noise, hg.mixed_mode_grad), (0.2,), (1.0,))


@pytest.mark.slow
def test_memory_is_that_of_the_params():
    """Six layers of width 4 on 8 examples a step: activations are several times the weights."""
    params = init((5, *[4] * 6, 3))

    def temporary(grad):
        hypergrad = jax.jit(jax.grad(partial(trained, grad, num_steps=64)))
        return hypergrad.lower(hparams(), params).compile().memory_analysis().temp_size_in_bytes

    assert temporary(hg.mixed_mode_grad) < 0.4 * temporary(jax.grad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.mixed_mode_grad(3), "loss is 3, expected a function"),
        (lambda: hg.mixed_mode_grad(lambda w: w)(jnp.ones(3)), r"loss returned an array .* \(\)"),
        (
            lambda: hg.mixed_mode_grad(jnp.sum, has_aux=True)(jnp.ones(3)),
            "loss returned one value, expected",
        ),
    ],
)
def test_wrong_losses_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
