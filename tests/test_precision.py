"""Gradient accumulation, loss scales and mixed precision: reverse, forward and `jax.grad` of `unroll` agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.estimators import forward, reverse
from hypergrad.problem import Problem
from hypergrad.train import init_state, split_key, unroll

STEPS = 4
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(12, 3))
Y = np.tanh(X @ np.array([1.0, -2.0, 0.5]))
SCALE = 2.0**10


def made(wrap, compute=None, loss_of=lambda loss: loss, begin=lambda w: w):
    """Make a regression whose arithmetic is in `compute`, and its hparams; its weights are never narrow."""

    def error(w, compute):
        wide = jnp.result_type(float)
        w, x, y = (jnp.asarray(a, compute or wide) for a in (w["w"], X, Y))
        return jnp.mean((jnp.tanh(x @ w) - y) ** 2).astype(wide)

    problem = Problem(
        init=lambda key, h: begin({"w": jnp.array([0.3, -0.1, 0.2])}),
        loss=loss_of(lambda w, h, b: error(w, compute) + h["decay"] * jnp.sum(w["w"] ** 2)),
        objective=lambda w, h, b: error(w, None),
        optimizer=wrap,
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    return problem, {"lr": jnp.asarray(0.2), "decay": jnp.asarray(0.05)}


def sgd(h):
    return optax.sgd(h["lr"], 0.5)


def accumulated(h, every=2):
    wide = jnp.result_type(float)
    return optax.MultiSteps(sgd(h), every, accumulator_dtype=wide).gradient_transformation()


def scaled(loss):
    return lambda w, h, b: SCALE * loss(w, h, b)


def unscaled(h):
    return optax.chain(optax.scale(1 / SCALE), sgd(h))


def with_scale(first):
    """Begin with a loss scale among the weights, where the loss and the optimizer see it."""
    return lambda weights: {**weights, "scale": jnp.asarray(first)}


def scaled_by_state(loss):
    return lambda w, h, b: w["scale"] * loss(w, h, b)


def scaled_narrowly(loss):
    def narrow(w, h, b):
        return (w["scale"].astype(jnp.float16) * loss(w, h, b).astype(jnp.float16)).astype(float)

    return narrow


def dynamic(h):
    """Leave out steps whose gradient is not finite, and halve the scale there; double it after the others."""
    inner = sgd(h)

    def init(params):
        return inner.init({"w": params["w"]})

    def update(grads, state, params):
        scale = params["scale"]
        unscaled = {"w": grads["w"] / scale}
        finite = jnp.all(jnp.isfinite(unscaled["w"]))
        updates, new = inner.update(unscaled, state)
        updates = {"w": jnp.where(finite, updates["w"], 0)}
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return {**updates, "scale": jnp.where(finite, scale, -scale / 2)}, new

    return optax.GradientTransformation(init, update)


def ways(problem, hparams, steps=STEPS):
    """Return the hypergradients of reverse, of forward, and of `jax.grad` through `unroll`."""
    key, valid = split_key(KEY)

    def through(h):
        state = unroll(problem, h, init_state(problem, key, h), steps)
        return problem.objective(state.params, h, problem.valid_batch(valid))

    one, two = reverse(problem, steps).estimate, forward(problem, steps).estimate
    return jax.jit(
        lambda h: (one(KEY, (), h)[1].hypergrad, two(KEY, (), h)[1].hypergrad, jax.grad(through)(h))
    )(hparams)


def agree(trees, tolerance):
    for other in trees[1:]:
        for name, number in trees[0].items():
            assert abs(float(number)) > 1e-6, name
            assert float(other[name]) == pytest.approx(float(number), rel=tolerance), name


def quick(names, *fast):
    """Mark all but some of the names as slow."""
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]


WIDE = {
    "MultiSteps": lambda: made(accumulated),
    "a static scale": lambda: made(unscaled, None, scaled),
    "a dynamic scale": lambda: made(dynamic, None, scaled_by_state, with_scale(SCALE)),
}


@pytest.mark.parametrize("name", quick(WIDE, "MultiSteps", "a dynamic scale"))
def test_three_ways_agree_in_float64(name):
    with jax.enable_x64(True):
        problem, hparams = WIDE[name]()
        found = ways(problem, hparams)
        agree(found, 1e-11)
        if "scale" in name:  # a power of two, which changes nothing
            agree([found[0], ways(*made(sgd))[0]], 1e-11)
            return
        state = init_state(problem, KEY, hparams)

        @jax.jit
        def end(h):
            return problem.objective(unroll(problem, h, state, STEPS).params, h, ())

        for leaf, number in found[0].items():
            up, down = ({**hparams, leaf: hparams[leaf] + d} for d in (1e-5, -1e-5))
            assert float(number) == pytest.approx(float(end(up) - end(down)) / 2e-5, rel=1e-6)


NARROW = {
    "bfloat16": lambda: made(sgd, jnp.bfloat16),
    "float16 and a static scale": lambda: made(unscaled, jnp.float16, scaled),
    "float16 and a dynamic scale": lambda: made(
        dynamic, jnp.float16, scaled_by_state, with_scale(SCALE)
    ),
}


@pytest.mark.parametrize("name", quick(NARROW, "float16 and a dynamic scale"))
def test_three_ways_agree_in_mixed_precision(name):
    found = ways(*NARROW[name]())
    agree(found, 5e-2)
    agree([found[0], ways(*made(sgd))[0]], 5e-2)


def test_a_step_that_overflows_is_left_out_of_the_derivative_too():
    """Plain reverse mode multiplies the adjoint of the gradient, which is zero, by an infinite slope."""
    problem, hparams = made(dynamic, jnp.float16, scaled_narrowly, with_scale(2.0**17))
    scales = []
    state = init_state(problem, split_key(KEY)[0], hparams)
    for _ in range(STEPS):
        state = jax.jit(unroll, static_argnums=(0, 3))(problem, hparams, state, 1)
        scales.append(float(state.params["scale"]))
    left_out = STEPS - len([s for s in scales if s == scales[-1]]) + 1
    assert 1 <= left_out < STEPS
    found = ways(problem, hparams)
    agree([*found[:2], ways(*made(sgd), STEPS - left_out)[0]], 5e-2)
    assert not np.isfinite(found[2]["lr"])
