"""The rounding certificate: the error of a hypergradient in narrow numbers, and a draw of it in the widest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.core.widen import in_widest, narrowest, widest
from hypergrad.estimators import (
    advice,
    average,
    darts,
    drift,
    es,
    evolved,
    forward,
    hd,
    implicit,
    one_step,
    reverse,
    reversible,
    rounding,
    rtho,
    truncated,
)

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(24, 3)).astype(np.float32), RANDOM.normal(size=24).astype(np.float32)
H = {"weights": jnp.zeros(16), "lr": jnp.float32(0.02)}


def problem(store=jnp.float32, compute=jnp.float32, optimizer=optax.adam):
    """Weights of examples for a small network, kept in one dtype and computed with in another."""

    def init(key, hparams):
        first, second = jax.random.normal(key, (3, 4), jnp.float32), jnp.linspace(-1, 1, 4)
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"in": first, "out": second})
        return jax.tree.map(lambda x: x.astype(store), rounded)

    def errors(params, x, y):
        params = jax.tree.map(lambda w: w.astype(compute), params)
        hidden = jnp.tanh(jnp.asarray(x).astype(compute) @ params["in"])
        return (hidden @ params["out"] - jnp.asarray(y).astype(compute)).astype(jnp.float32) ** 2

    def loss(params, hparams, batch):
        return jnp.mean(jax.nn.sigmoid(hparams["weights"]) * errors(params, *batch))

    return hg.Problem(
        init=init,
        loss=loss,
        objective=lambda params, h, batch: jnp.mean(errors(params, *batch)),
        optimizer=lambda h: optimizer(h["lr"]),
        train_batch=lambda key, step: (X[:16], Y[:16]),
        valid_batch=lambda key: (X[16:], Y[16:]),
    )


def certified(problem, horizon, hparams=H, **settings):
    estimator = rounding(problem, horizon, **settings)
    return jax.jit(estimator.estimate)(KEY, estimator.init(KEY, hparams), hparams)[1]


def error(found, exact):
    gaps = jax.tree.map(lambda a, b: np.asarray(a, float) - b, found, exact)
    return jax.tree.map(lambda a, b: np.linalg.norm(a) / np.linalg.norm(b), gaps, exact)


@pytest.mark.parametrize(
    ("store", "compute"),
    [
        pytest.param("bfloat16", "bfloat16", marks=pytest.mark.slow),
        ("float32", "bfloat16"),
        pytest.param("float16", "float16", marks=pytest.mark.slow),
    ],
)
def test_the_certificate_of_narrow_numbers_is_the_error(store, compute):
    optimizer = lambda lr: optax.adam(lr, eps=1e-4)  # noqa: E731
    found = certified(problem(store, compute, optimizer), 8)
    wide = problem(widest(), widest(), optimizer)
    exact = jax.jit(reverse(wide, 8).estimate)(KEY, (), H)[1].hypergrad
    assert found.info.eps == jnp.finfo(compute).eps
    got, want = found.info.rounding, error(found.hypergrad, exact)
    for name in H:
        np.testing.assert_allclose(got[name], want[name], rtol=0.02, atol=1e-5)
    assert got["weights"] > 1e-4


def test_advice_names_the_leaf_and_the_numbers():
    stuck = certified(
        problem("bfloat16", "bfloat16", optax.sgd), 200, H | {"lr": jnp.float32(3e-3)}
    )
    assert stuck.info.rounding["weights"] > 0.1  # the updates of most weights round to nothing
    said = advice(stuck)
    assert any("rounding moves the hypergradient of hparams['weights'] by" in line for line in said)
    assert all("\n" not in line and "bfloat16" in line for line in said)


def test_in_the_widest_numbers_a_last_bit_moves_little():
    found = certified(problem(widest(), widest()), 8)
    assert not advice(found)
    assert 0 < found.info.rounding["weights"] < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(
    jax.config.read("jax_enable_x64"),
    reason="its arrays of 32 bits were made with 64, as the file was read",
)
def test_in_the_widest_numbers_it_is_a_draw_of_the_error():
    with jax.enable_x64(False):
        found = certified(problem(optimizer=optax.sgd), 8)
        got, hypergrad = (
            float(found.info.rounding["weights"]),
            jax.tree.map(np.asarray, found.hypergrad),
        )
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), H)
        made = problem(jnp.float64, jnp.float64, optax.sgd)
        exact = jax.jit(reverse(made, 8).estimate)(KEY, (), wide)[1].hypergrad
        true = error(hypergrad, jax.tree.map(np.asarray, exact))["weights"]
    assert true / 10 < got < 10 * true


LEAVES = {"implicit": ("weights",), "darts": ("weights",), "hd": ("lr",)}
THROUGH = {
    "reverse": reverse,
    "forward": forward,
    "truncated": lambda p, n: truncated(p, n, 2),
    "drift": drift,
    "reversible": reversible,
    "rtho": rtho,
    "one_step": one_step,
    "darts": lambda p, n: darts(p, 0.1, n),
    "hd": hd,
    "implicit": implicit,
    "es": lambda p, n: es(p, n, sigma=0.1, num_pairs=2),
    "evolved": lambda p, n: evolved(p, n, ["lr"], lambda p, n: es(p, n, sigma=0.1)),
}


@pytest.mark.parametrize("name", THROUGH)
def test_every_estimator_can_be_certified(name):
    made = problem(compute=jnp.bfloat16, optimizer=lambda lr: optax.sgd(lr, 0.9))
    hparams = {leaf: H[leaf] for leaf in LEAVES.get(name, H)}
    made = hg.problem.with_hparams(made, lambda h: H | h)
    estimator = rounding(made, 3, through=THROUGH[name])
    state = jax.eval_shape(estimator.init, KEY, hparams)
    after, found = jax.eval_shape(estimator.estimate, KEY, state, hparams)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(jnp.shape, found.info.rounding) == dict.fromkeys(hparams, ())


@pytest.mark.slow
def test_both_runs_go_on_and_averages_hear_of_it():
    made = problem(compute=jnp.bfloat16)
    made = hg.problem.with_hparams(made, lambda h: H | h)
    estimator = average(rounding(made, 2, through=rtho), 2)
    estimate, state = jax.jit(estimator.estimate), estimator.init(KEY, {"lr": H["lr"]})
    for _ in range(2):
        state, found = estimate(KEY, state, {"lr": H["lr"]})
    assert np.all(found.info.each.through.step == 4)
    loud = found.info.each._replace(rounding={"lr": jnp.array([0.01, 0.5])})
    line, noise = advice(found._replace(info=found.info._replace(each=loud)))
    assert "mostly noise" in noise
    assert line.startswith("in 1 of 2 estimates rounding moves the hypergradient of hparams['lr']")


def test_programs_are_computed_in_the_widest_numbers():
    def narrow(x, n):
        y = x.astype(jnp.bfloat16)

        def body(carry, t):
            carry = jax.nn.relu(carry * jnp.bfloat16(1.01)) + t
            return carry, jnp.sum(carry.astype(jnp.float16))

        y, sums = jax.lax.scan(
            jax.checkpoint(body), y, jnp.ones((3, 1), jnp.bfloat16) / 3, reverse=True
        )
        steps = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] / 3), (0, y[0]))[0]
        y = y / 27 + (steps - 3)
        y = jax.lax.cond(n > 0, lambda y: y @ y, lambda y: y[0], y)
        z = jax.jit(lambda y: jax.lax.reduce_precision(jnp.sin(y), 5, 3))(y)
        return z.astype(jnp.float32) + n, sums, {"n": n}

    def wide(x, n):
        y, sums = x, []
        for _ in range(3):
            y = jax.nn.relu(y * float(jnp.bfloat16(1.01))) + 1 / 3
            sums.append(jnp.sum(y))
        y = y / 27
        return jnp.sin(y @ y if n > 0 else y[0]) + n, jnp.stack(sums[::-1]), {"n": n}

    for n in (1, -1):
        x = jnp.linspace(0.1, 0.9, 5, dtype=widest())
        like = (jax.ShapeDtypeStruct(x.shape, jnp.float32), n)
        got = in_widest(narrow, like, (x, n))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wide(x, n)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        slope = jax.grad(lambda x, n=n, like=like: in_widest(narrow, like, (x, n))[0])(x)
        np.testing.assert_allclose(slope, jax.grad(lambda x, n=n: wide(x, n)[0])(x), rtol=1e-5)
    assert narrowest(jax.make_jaxpr(narrow)(X[0], 1)) == jnp.bfloat16
    assert narrowest(jax.make_jaxpr(lambda n: n + 1)(1)) is None
