import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.core import autodiff
from hypergrad.problem import Problem
from hypergrad.train import init_state, unroll

ALIASES = """
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam
    nadamw noisy_sgd novograd optimistic_adam_v2 optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd
    sm3 yogi polyak_sgd
""".split()  # noqa: SIM905
VARIANTS = {
    **{name: getattr(optax, name) for name in ALIASES},
    **{
        name: getattr(optax.contrib, name)
        for name in ("acprop", "adopt", "cocob", "dog", "dowg", "momo", "momo_adam")
    },
    "rmsprop_eps_outside": lambda lr: optax.rmsprop(lr, eps_in_sqrt=False),
    "rmsprop_centered": lambda lr: optax.rmsprop(lr, centered=True, momentum=0.9),
    "adam_nesterov": lambda lr: optax.adam(lr, nesterov=True),
    "clipped": lambda lr: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(lr)),
    "adaptive_clip": lambda lr: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(lr)),
    "normalized": lambda lr: optax.chain(optax.contrib.normalize(), optax.sgd(lr)),
    "muon": optax.contrib.muon,
    "ademamix": optax.contrib.ademamix,
    "schedule_free": lambda lr: optax.contrib.schedule_free_adamw(lr, warmup_steps=2),
    "prodigy": optax.contrib.prodigy,
    "dadapt": optax.contrib.dadapt_adamw,
}
KINDS = (
    *("adafactor", "adam", "adaptive_clip", "clipped", "dog", "lamb", "momo", "muon"),
    *("normalized", "novograd", "rmsprop_centered", "schedule_free", "sm3", "yogi"),
)
"""One of each kind, for the quick suite."""
X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3).at[:, 1].set(0.0)
LR = jnp.float32(0.05)
KEY = jax.random.key(0)
CASES = {"dead_input": (0.5, 1.0), "zero_gradient": (0.5, 0.0), "zero_init": (0.0, 1.0)}
"""Scale of the first weights and factor of the loss: traced, so that one program serves the three."""


def problem(factory):
    """Train a small ReLU net whose gradient has entries that are exactly zero."""

    def init(key, h):
        return {
            "w": h["scale"] * jax.random.normal(key, (3, 4)),
            "v": h["scale"] * jnp.ones((4, 2)),
        }

    def loss(params, h, batch):
        return h["factor"] * jnp.mean((jax.nn.relu(X @ params["w"]) @ params["v"] - 1.0) ** 2)

    return Problem(
        init=init,
        loss=loss,
        objective=lambda p, h, b: sum(jnp.sum((x - 0.3) ** 2) for x in jax.tree.leaves(p)),
        optimizer=lambda h: factory(h["lr"]),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in KINDS else pytest.mark.slow) for n in VARIANTS]
)
def test_no_nan_wherever_the_training_is_finite(name):
    made = problem(VARIANTS[name])

    def objective(h):
        params = unroll(made, h, init_state(made, KEY, h), 3).params
        return made.objective(params, h, ()), params

    compiled = jax.jit(jax.grad(objective, has_aux=True))
    for case, (scale, factor) in CASES.items():
        grads, params = compiled(
            {"lr": LR, "scale": jnp.float32(scale), "factor": jnp.float32(factor)}
        )
        # dividing by the norm of a zero gradient is NaN in optax itself; no derivative mends that
        trains = all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(params))
        assert trains or case != "dead_input", (name, case)
        assert not trains or all(map(jnp.isfinite, grads.values())), (name, case)


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb", "radam", "adafactor", "clipped", "yogi"])
def test_the_training_is_that_of_optax_bit_for_bit(name):
    made = problem(VARIANTS[name])
    h = {"lr": LR, "scale": jnp.float32(0.5), "factor": jnp.float32(1.0)}

    def plainly(h):
        optimizer = optax.with_extra_args_support(VARIANTS[name](h["lr"]))
        start = init_state(made, KEY, h)

        def body(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(made.loss)(params, h, ())
            updates, state = optimizer.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (start.params, start.opt_state), None, length=3)[0][0]

    ours = jax.jit(lambda h: unroll(made, h, init_state(made, KEY, h), 3).params)(h)
    theirs = jax.jit(plainly)(h)
    assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(theirs)))


def test_plain_autodiff_of_adam_has_the_nan_that_is_cured():
    """Without the cure the hypergradient is NaN: the test above can fail."""

    def objective(lr):
        optimizer = optax.adam(lr)
        params = jnp.ones(2)
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(jnp.asarray([1.0, 0.0]) * params, state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sum(params**2)

    assert jnp.isnan(jax.grad(objective)(LR))
    assert jnp.isfinite(jax.grad(autodiff.smooth(objective))(LR))


@pytest.mark.parametrize(
    "function",
    [
        jnp.sqrt,
        jax.lax.rsqrt,
        lambda x: 1 / x,
        lambda x: x / x,
        lambda x: x**0.3,
        lambda x: x**-1.5,
    ],
)
def test_values_stay_and_derivatives_are_finite(function):
    x = jnp.asarray([0.0, 1e-30, 0.3, 4.0])
    tame = jax.jit(autodiff.smooth(function))
    assert np.array_equal(tame(x), jax.jit(function)(x), equal_nan=True)
    slopes = jax.vmap(jax.grad(autodiff.smooth(function)))(x)
    assert slopes[0] == 0 and np.all(np.isfinite(slopes))
    np.testing.assert_allclose(
        slopes[2:], jax.vmap(jax.grad(function))(x[2:]), rtol=2e-6, atol=1e-6
    )
    curved = jax.vmap(jax.grad(jax.grad(autodiff.smooth(function))))(x)
    assert np.all(np.isfinite(curved[np.array([0, 2, 3])]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: jax.jit(f),
        lambda f: jax.checkpoint(f),
        lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=1)[0],
        lambda f: lambda x: jax.lax.cond(jnp.sum(x) >= 0, f, lambda x: x, x),
        lambda f: lambda x: jax.lax.map(f, x[None])[0],
    ],
)
def test_smooth_sqrt_reaches_inside(wrap):
    inner = wrap(lambda x: jnp.sqrt(x) * 2)
    x = jnp.asarray([0.0, 4.0])
    grads = jax.grad(lambda x: jnp.sum(autodiff.smooth(inner)(x)))(x)
    np.testing.assert_allclose(grads, [0.0, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(autodiff.smooth(inner)(x), inner(x))


def test_depends():
    def function(tree):
        a, b, c, d, e = (tree[k] for k in "abcde")
        carried = jax.lax.scan(lambda s, _: (s + jnp.sign(b) + a, None), 0.0, None, length=2)[0]
        return carried + jnp.round(c) + jnp.where(d > 0, 1.0, 2.0) + jax.lax.stop_gradient(e)

    tree = dict.fromkeys("abcde", jnp.float32(0.3))
    assert autodiff.depends(function, tree) == [True, False, False, False, False]


def test_curvature_products_are_those_of_the_matrices():
    w = {"a": jnp.asarray([0.3, -0.2]), "b": jnp.asarray(0.7)}
    v = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray(-1.0)}

    def outputs(w):
        return jnp.stack([jnp.sin(w["a"][0] * w["b"]), w["a"][1] ** 2, w["b"] * w["a"][1]])

    def convex(z):
        return jnp.sum(jnp.exp(z))

    flat, unravel = jax.flatten_util.ravel_pytree(w)
    flat_v = jax.flatten_util.ravel_pytree(v)[0]

    @jax.jit
    def both(flat, flat_v):
        w, v = unravel(flat), unravel(flat_v)
        whole = autodiff.hessian_product(lambda w: convex(outputs(w)), w)(v)
        part = autodiff.gauss_newton_product(outputs, convex, w)(v)
        hessian = jax.hessian(lambda x: convex(outputs(unravel(x))))(flat)
        jacobian = jax.jacobian(lambda x: outputs(unravel(x)))(flat)
        matrix = jacobian.T @ jax.hessian(convex)(outputs(w)) @ jacobian
        return whole, part, unravel(hessian @ flat_v), unravel(matrix @ flat_v)

    whole, part, want_whole, want_part = both(flat, flat_v)
    chex.assert_trees_all_close(whole, want_whole, rtol=1e-5)
    chex.assert_trees_all_close(part, want_part, rtol=1e-5)
    assert not np.allclose(whole["a"], part["a"])


def test_a_smooth_derivative_has_no_more_equations_than_a_plain_one():
    """Each singular primitive costs what its own derivative costs: tracing once took five times as long."""

    def objective(lr, transform):
        optimizer = optax.adamw(lr, weight_decay=lr)
        params = {str(i): jnp.ones(i + 1) for i in range(8)}
        state = optimizer.init(params)

        def change(lr, params, state):
            updates, state = optax.adamw(lr, weight_decay=lr).update(params, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(2):
            params, state = transform(change)(lr, params, state)
        return sum(jnp.sum(p**2) for p in params.values())

    def count(transform):
        program = jax.make_jaxpr(jax.grad(lambda lr: objective(lr, transform)))(LR)
        return sum(1 for _ in autodiff.equations(program.jaxpr))

    assert count(autodiff.smooth) <= 1.1 * count(lambda change: change)


@pytest.mark.slow
def test_a_smooth_function_maps_over_any_axis_of_any_operand():
    def function(x, y):
        return jnp.sqrt(x) / y * x**y + jnp.where(x > 1, x * y, 2.0 / y)

    x, y = jnp.asarray([[0.2, 1.0, 3.0], [0.5, 2.0, 4.0]]), jnp.asarray([0.7, 1.3])
    for axes, args in [((0, None), (x, y[0])), ((1, None), (x, y)), ((0, 0), (x, y))]:
        grads = [
            jax.vmap(jax.grad(lambda *a, f=f: jnp.sum(f(*a)), (0, 1)), axes)(*args)
            for f in (function, autodiff.smooth(function))
        ]
        for plain, tame in zip(*grads, strict=True):
            np.testing.assert_allclose(tame, plain, rtol=1e-5, atol=1e-6)
