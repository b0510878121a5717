"""Reverse mode, plain autodiff, forward mode and central differences, for every optimizer of optax."""

import inspect
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from hypergrad import estimators
from hypergrad.core import resting
from hypergrad.estimators.advice import StructuralZeroWarning
from hypergrad.problem import Problem
from hypergrad.train import init_state, unroll
from tests.optimizers import ALONE, BUILD, CONTRIB, OTHERS, REFUSED, WITHIN

ALL = {**BUILD, **CONTRIB}
QUICK = ["madgrad"]
LOOSE = {
    "mechanize": 2e-3,
    "prodigy": 2e-3,
    "dadapt_adamw": 2e-4,
    "scale_by_distance_over_gradients": 2e-3,
}
"""Those that count in float32 whatever the weights are in, which differences feel."""

LR, B = 3e-3, 0.9
X = np.abs(np.random.default_rng(0).normal(size=(5, 4)))
X[:, 1] = 0  # a dead input
W = np.random.default_rng(1).normal(size=(4, 3))
W[:, 2] = -np.abs(W[:, 2])  # a dead unit
Y = np.random.default_rng(2).normal(size=(5, 2))


def start(key, h):
    return {
        "bias": jnp.zeros(3),
        "parabola": jnp.array([-1.0, 3.0, 1.0]),  # the third at its optimum
        "rosenbrock": jnp.zeros(2),
        "saturated": jnp.array([40.0, 0.3]),
        "v": jnp.ones((3, 2)),
        "w": jnp.asarray(W),
    }


def loss(p, h, batch):
    units = jax.nn.relu(X @ p["w"] + p["bias"])
    x, y = p["rosenbrock"]
    return (
        jnp.mean((units @ p["v"] - Y) ** 2)
        + 0.05 * jnp.sum(p["bias"] ** 2)
        + jnp.sum((p["parabola"] - jnp.array([1.0, -1.0, 1.0])) ** 2)
        + (1 - x) ** 2
        + 100 * (y - x**2) ** 2
        + jnp.sum(jnp.tanh(p["saturated"]) ** 2)
    )


def objective(p, h, batch):
    return sum(jnp.sum((x - 0.37) ** 2) for x in jax.tree.leaves(p))


def problem(factory):
    return Problem(
        start,
        loss,
        objective,
        lambda h: factory(h["lr"], h["b"]),
        lambda key, step: (),
        lambda key: (),
    )


def modes(made, num_steps, plain):
    """Return one function of (lr, b): the value, and the hypergradient `[2]` in each mode."""
    estimator = estimators.reverse(made, horizon=num_steps)

    def value(x):
        h = {"lr": x[0], "b": x[1]}
        state = unroll(made, h, init_state(made, jax.random.key(0), h), num_steps)
        return objective(state.params, h, ())

    def every(x):
        h = {"lr": x[0], "b": x[1]}
        estimate = estimator.estimate(jax.random.key(0), (), h)[1]
        slopes = jnp.stack([estimate.hypergrad["lr"], estimate.hypergrad["b"]])
        forward = jax.vmap(lambda dot: jax.jvp(value, (x,), (dot,))[1])(jnp.eye(2))
        grads = [slopes, jax.grad(value)(x)] if plain else [slopes]
        return value(x), [*grads, forward]

    return every


def compare(name, num_steps, plain=False):
    """Return the hypergradient by differences and in each mode, forward last, relative to the largest."""
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore", StructuralZeroWarning)
        every = jax.jit(modes(problem(ALL[name]), num_steps, plain))
        x = jnp.array([LR, B])
        found = every(x)[1]
        differences = []
        for i, size in enumerate((1e-7, 1e-6)):
            step = size * jnp.eye(2)[i]
            differences.append((every(x + step)[0] - every(x - step)[0]) / (2 * size))
    scale = np.abs(differences).max() + 1e-3
    return np.array(differences) / scale, [np.asarray(g) / scale for g in found]


def check(name, num_steps, plain=False):
    differences, found = compare(name, num_steps, plain)
    np.testing.assert_allclose(found[-1], differences, atol=LOOSE.get(name, 2e-5), err_msg=name)
    for grads in found[:-1]:
        np.testing.assert_allclose(grads, found[-1], atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", QUICK)
def test_all_modes_agree(name):
    check(name, 4, plain=True)


@pytest.mark.slow
@pytest.mark.skipif(
    not jax.config.read("jax_enable_x64"),
    reason="float64 throughout: JAX_ENABLE_X64=1 runs it, as the second environment of .ci/run does",
)
@pytest.mark.parametrize("name", list(ALL))
def test_all_modes_agree_for_every_optimizer(name):
    check(name, 8)


@pytest.mark.parametrize("module", [optax, contrib])
def test_every_public_name_of_optax_is_known(module):
    """A new optimizer fails here, by name, until it has a line in tests/optimizers.py."""
    known = {*ALL, *REFUSED, *ALONE, *WITHIN, *OTHERS}
    public = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    functions = {name for name, value in public.items() if inspect.isfunction(value)}
    assert not functions - known
    wrappers = {n for n, v in public.items() if hasattr(v, "gradient_transformation")}
    assert not wrappers - known


def run(optimizer, x, num_steps=12, dtype=float, **parts):
    """Estimate by reverse mode, and by forward mode, on three parabolas; the third starts at its optimum."""
    target = jnp.array([1.0, -1.0, 1.0], dtype)
    made = Problem(
        parts.get("init", lambda key, h: jnp.array([-1.0, 10.0, 1.0], dtype)),
        parts.get("loss", lambda w, h, b: jnp.sum((w - target) ** 2)),
        parts.get("objective", lambda w, h, b: jnp.sum((w - 0.37) ** 2)),
        optimizer,
        lambda key, step: (),
        lambda key: (),
    )
    reverse, forward = (
        jax.jit(f(made, num_steps).estimate)(jax.random.key(0), (), x)[1]
        for f in (estimators.reverse, estimators.forward)
    )
    return made, reverse, forward


def test_a_weight_at_rest_neither_overflows_nor_counts_as_chaos():
    """Its adjoint grows by 1e6 a step, and is infinite after 6 in float32."""
    h = {"b": jnp.float32(0.9)}
    _, reverse, forward = run(lambda h: optax.adam(1e-2, b1=h["b"]), h, dtype=jnp.float32)
    np.testing.assert_allclose(reverse.hypergrad["b"], forward.hypergrad["b"], rtol=1e-4)
    assert reverse.info.growth < 1.05 and reverse.info.resting > 1e6
    (said,) = estimators.advice(reverse)
    assert "entries of params that rest" in said and "chaotic" not in said


@pytest.mark.parametrize("name", ["adamw", "lamb", "schedule_free_adamw", "madgrad"])
def test_only_a_state_made_from_weights_is_kept_apart(name, monkeypatch):
    """Else nothing cancels, and the two more derivatives would cost AdamW a fifth of a hypergradient."""
    apart = []
    separated = resting._separated
    monkeypatch.setattr(resting, "_separated", lambda *x: apart.append(name) or separated(*x))
    made, h = problem(ALL[name]), {"lr": jnp.asarray(LR), "b": jnp.asarray(B)}
    jax.eval_shape(lambda h: unroll(made, h, init_state(made, jax.random.key(0), h), 1).params, h)
    assert bool(apart) == (name in ("schedule_free_adamw", "madgrad"))


def warm(lr, b):
    return optax.sgd(lambda count: lr * count / (count + 1.0), momentum=b)


@pytest.mark.parametrize(("make", "bounds"), [(warm, 0), (optax.adam, 2)])
def test_only_a_quotient_of_what_moves_needs_bounds(make, bounds, monkeypatch):
    """That of a schedule's count has no slope 1/ε in a gradient that is zero; Adam's root has."""
    asked = []
    bounded = resting._bounded
    monkeypatch.setattr(resting, "_bounded", lambda *x: asked.append(1) or bounded(*x))
    made, h = problem(make), {"lr": jnp.asarray(LR), "b": jnp.asarray(B)}
    jax.eval_shape(lambda h: unroll(made, h, init_state(made, jax.random.key(0), h), 1).params, h)
    assert len(asked) == bounds


@pytest.mark.parametrize("name", ["b1", pytest.param("b2", marks=pytest.mark.slow)])
def test_what_builds_up_from_nothing_is_not_chaos_in_forward_mode(name):
    """The derivative in b1 is a rounding error after one step of Adam, and real after two."""
    h = {name: jnp.float32(0.9)}
    found = [run(lambda h: optax.adam(1e-2, **h), h, steps, jnp.float32)[2] for steps in (12, 100)]
    assert all(x.info.sensitivity[-1] > 1e2 * x.info.sensitivity[1] for x in found)
    assert not any(estimators.advice(x) for x in found)


def test_what_builds_up_from_nothing_is_not_chaos_in_a_run_that_continues():
    h = {"b1": jnp.float32(0.9)}
    made = run(lambda h: optax.adam(1e-2, **h), h, 1, jnp.float32)[0]
    estimator = estimators.rtho(made, 1)
    state, estimate = estimator.init(jax.random.key(0), h), jax.jit(estimator.estimate)
    for _ in range(6):
        state, found = estimate(jax.random.key(0), state, h)
        assert not estimators.advice(found)


def test_chaos_is_named_in_forward_mode():
    """Descent on a parabola upside down: 1.3-fold a step."""
    upside_down = lambda w, h, b: -0.15 * h["lr"] * jnp.sum(w**2)  # noqa: E731
    h = {"lr": jnp.float32(1.0)}
    (said,) = estimators.advice(
        run(lambda h: optax.sgd(1.0), h, 60, jnp.float32, loss=upside_down)[2]
    )
    assert "grows 1.3" in said and "chaotic" in said


def test_a_momentum_in_float32_does_not_overflow_at_rest():
    def adafactor(h):
        return optax.adafactor(h["lr"], momentum=0.9, multiply_by_parameter_scale=False)

    with jax.enable_x64(True):
        _, reverse, forward = run(adafactor, {"lr": jnp.asarray(5e-3)})
        np.testing.assert_allclose(reverse.hypergrad["lr"], forward.hypergrad["lr"], rtol=1e-6)


UNREAD_BY = {
    "reverse": estimators.reverse,
    "forward": estimators.forward,
    "rtho": estimators.rtho,
    "hd": estimators.hd,
    "es": lambda problem, num: estimators.es(problem, num, sigma=EVOLVED, num_pairs=4),
    "pes": lambda problem, num: estimators.pes(problem, num, 1, sigma=EVOLVED, num_pairs=32),
    "nres": lambda problem, num: estimators.nres(problem, num, 1, sigma=EVOLVED, num_pairs=32),
}
EVOLVED = {"lr": 0.01, "eps": 1e-9}
EXACT = [UNREAD_BY[name] for name in ("reverse", "forward", "rtho", "hd")]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=pytest.mark.slow if name in ("es", "nres") else ())
        for name, make in UNREAD_BY.items()
    ],
)
def test_weights_that_nothing_reads_are_named_where_they_are_not_finite(make):
    """In float16 the 1e-8 of Adam is 0, and 0/0 at a gradient of zero."""
    half = jnp.float16
    made = Problem(
        lambda key, h: {"read": jnp.zeros(2, half), "unread": jnp.zeros(2, half)},
        lambda w, h, b: jnp.sum((w["read"] - jnp.array([1, -1], half)) ** 2),
        lambda w, h, b: jnp.sum(w["read"] ** 2),
        lambda h: optax.adam(h["lr"], eps=h["eps"]),
        lambda key, step: (),
        lambda key: (),
    )
    h = {"lr": jnp.float32(0.1), "eps": half(1e-8)}

    def said(problem, h):
        method, key = make(problem, 3), jax.random.key(0)
        estimate = jax.jit(lambda h: method.estimate(key, method.init(key, h), h)[1])
        return estimators.advice(estimate(h))

    about = "params['unread'] are not finite"
    (one,) = [line for line in said(made, h) if make in EXACT or about in line]
    assert about in one
    rest = said(made, {**h, "eps": half(1e-4)})
    assert not (rest if make in EXACT else [line for line in rest if about in line])
    if make is estimators.reverse:  # where the loss reads them, the rate is not the only suspect
        (one,) = said(
            made._replace(loss=lambda w, h, b: made.loss(w, h, b) + 0 * w["unread"][0]), h
        )
        assert "not finite from step 1 on" in one and "params['unread'] alone" in one


def test_a_real_response_at_rest_is_not_hidden():
    """The gradient −2 x is zero at x = 0 and answers to x: the weight moves by 2 η x / ε in one step."""

    def loss(w, h, batch):
        return jnp.sum((w - h["x"]) ** 2)

    with jax.enable_x64(True):
        h = {"x": jnp.asarray(0.0), "decay": jnp.asarray(0.0)}
        _, reverse, forward = run(
            lambda h: optax.adamw(1e-2, eps=1e-3, weight_decay=h["decay"]),
            h,
            1,
            init=lambda key, h: jnp.array([0.0, 3.0]),
            loss=loss,
            objective=lambda w, h, b: jnp.sum((w - 1.0) ** 2),
        )
        # decay acts on weights whose gradient is zero, too
        np.testing.assert_allclose(reverse.hypergrad["x"], -2 * 2 * 1e-2 / 1e-3, rtol=1e-3)
        np.testing.assert_allclose(reverse.hypergrad["x"], forward.hypergrad["x"], rtol=1e-9)
        np.testing.assert_allclose(reverse.hypergrad["decay"], forward.hypergrad["decay"])
        assert reverse.hypergrad["decay"] < -0.1


def test_a_decay_of_weights_at_rest_is_not_hidden():
    """At a decay of zero a weight without gradient rests, and still answers to the decay."""
    h = {"decay": jnp.float32(0.0)}
    _, reverse, forward = run(
        lambda h: optax.adamw(1e-2, weight_decay=h["decay"]),
        h,
        3,
        loss=lambda w, h, b: 0.0 * jnp.sum(w),
        dtype=jnp.float32,
    )
    # w ← (1 − η d) w a step
    w = np.array([-1.0, 10.0, 1.0])
    want = np.sum(2 * (w - 0.37) * -3e-2 * w)
    np.testing.assert_allclose(reverse.hypergrad["decay"], want, rtol=1e-5)
    np.testing.assert_allclose(forward.hypergrad["decay"], want, rtol=1e-5)


def test_lookahead():
    def optimizer(h):
        return optax.lookahead(optax.sgd(h["lr"]), 2, 0.5)

    _, reverse, forward = run(
        optimizer,
        {"lr": jnp.float32(0.1)},
        2,
        init=lambda key, h: optax.LookaheadParams.init_synced(jnp.array([3.0])),
        loss=lambda p, h, b: 0.5 * jnp.sum(p.fast**2),
        objective=lambda p, h, b: 0.5 * jnp.sum(p.slow**2),
    )
    # two steps of the fast weight, then half the way: s = 3 (1 + (1 − η)²) / 2
    slow, slope = 1.5 * (1 + 0.9**2), -3 * 0.9
    np.testing.assert_allclose(reverse.value, slow**2 / 2, rtol=1e-6)
    np.testing.assert_allclose(reverse.hypergrad["lr"], slow * slope, rtol=1e-5)
    np.testing.assert_allclose(forward.hypergrad["lr"], slow * slope, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if "search" in n else []) for n in REFUSED],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_a_problem_cannot_train_with_says_so(name):
    factory, words = REFUSED[name]
    estimator = estimators.reverse(problem(factory), horizon=3)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(estimator.estimate, jax.random.key(0), (), {"lr": LR, "b": B})
