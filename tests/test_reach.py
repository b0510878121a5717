"""What a walk through a program says of derivatives, against the derivatives themselves."""

import jax
import jax.numpy as jnp
import optax
import pytest
from optax import contrib

import hypergrad as hg
from hypergrad.core import autodiff, tree
from hypergrad.core.reach import derivative_flow
from hypergrad.estimators import structural_zeros
from hypergrad.train import init_state, unroll_losses

X = jnp.linspace(0.1, 0.9, 4)


def found(function, *args):
    """Tell for each output and each input whether the first can move with the second, by the walk."""
    closed = jax.make_jaxpr(function)(*args)
    real = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in closed.jaxpr.invars]
    marks = [frozenset([i]) if ok else frozenset() for i, ok in enumerate(real)]
    return [[i in out for i in range(len(args))] for out in derivative_flow(closed, marks)]


def expected(function, *args):
    """The same, by the derivative."""
    num = len(jax.eval_shape(function, *args))
    return [autodiff.depends(lambda *xs, i=i: function(*xs)[i], *args) for i in range(num)]


@jax.custom_jvp
def half(x, y):
    return x * y, x + y


@half.defjvp
def half_rule(xs, dots):
    return half(*xs), (dots[1] * xs[0], jnp.zeros_like(dots[0]))


@jax.custom_vjp
def twice(x, y):
    return 2 * x + y


twice.defvjp(lambda x, y: (twice(x, y), None), lambda _, bar: (2 * bar, bar))


def rotated(x, y):
    """Hand three values round in a loop."""

    def body(c, _):
        return (c[1], c[2], jnp.sign(c[0])), c[0]

    (a, b, c), out = jax.lax.scan(body, (x, y, x * y), None, length=5)
    return a, b, c, out


def solved(x, y):
    matrix = jnp.eye(4) + x[:, None] * x
    return [jnp.linalg.solve(matrix, y), jnp.linalg.cholesky(matrix), jnp.linalg.eigh(matrix)[1]]


FUNCTIONS = {
    "ends": lambda x, y: [
        jnp.round(x) * y,
        jnp.sign(x) + jnp.floor(y),
        jax.lax.stop_gradient(x) * y,
    ],
    "choices": lambda x, y: [jnp.where(x > y, x, 1.0), jnp.clip(x, 0, y), (x > y) * y, x == y],
    "integers": lambda x, y: [x.astype(int).astype(float), x[jnp.argmax(y)], jnp.argsort(x) * 1.0],
    "rules": lambda x, y: [*half(x, y), twice(x, y), jax.nn.relu(x), jax.nn.softmax(x * y)],
    "pairs": lambda x, y: [
        *jax.lax.optimization_barrier((x, y)),
        *jax.lax.sort((x, y), num_keys=1),
    ],
    "odd": lambda x, y: [x % y, jnp.fmod(y, x), jnp.arctan2(x, y), x**y],
    "linear algebra": solved,
    "sums": lambda x, y: [jnp.cumsum(x), jnp.max(x) - y, jax.nn.logsumexp(y), jnp.convolve(x, y)],
    "slots": lambda x, y: [
        x.at[1].set(y[0]),
        x.at[0].set(0.0),
        jnp.take(x, jnp.arange(2)),
        y[::-1],
    ],
    "calls": lambda x, y: [jax.jit(lambda a, b: a)(x, y), jax.jit(jnp.sign)(x) * y],
    "loop": rotated,
    "smooth": lambda x, y: jax.grad(lambda a: jnp.sum(autodiff.smooth(lambda b: b / y)(a)))(x)[
        None
    ],
    "fourier": lambda x, y: [jnp.fft.fft(x).real, jnp.abs(jnp.fft.rfft(y)), jax.lax.complex(x, y)],
    "draws": lambda x, y: [
        x + jax.random.normal(jax.random.key(0), (4,)),
        jax.random.gamma(jax.random.key(0), y),
    ],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_walk_finds_what_the_derivative_finds(name):
    function = FUNCTIONS[name]
    assert found(function, X, 2 * X) == expected(function, X, 2 * X)


def test_a_walk_enters_what_the_derivative_does_not():
    def within(x, y):
        inner = jax.checkpoint(lambda a, b: [a, jnp.sign(b)])
        chosen = jax.lax.cond(jnp.sum(x) > 0, lambda a, b: (a, b), lambda a, b: (2 * a, b), x, y)
        looped = jax.lax.while_loop(
            lambda c: jnp.all(c[0] < 9), lambda c: (c[0] + 1, 2 * c[1]), (x, y)
        )
        return [*inner(x, y), *chosen, *looped]

    only_x, only_y = [True, False], [False, True]
    assert found(within, X, X) == [only_x, [False, False], only_x, only_y, only_x, only_y]


def test_every_output_of_a_program_that_writes_in_place_counts():
    def writes(x, y):
        ref = jax.new_ref(jnp.zeros_like(x))
        ref[...] = y
        return [ref[...] + 1, x]

    assert found(writes, X, X) == [[True, True], [True, True]]


def by_derivative(problem, hparams, num_steps, through_init=True):
    """Name the structural zeros by the derivative of a whole run."""

    def value(hparams):
        first = hparams if through_init else jax.lax.stop_gradient(hparams)
        state = init_state(problem, jax.random.key(0), first)
        state, _ = unroll_losses(problem, hparams, state, num_steps)
        return problem.objective(state.params, hparams, problem.valid_batch(jax.random.key(1)))

    used = autodiff.depends(value, hparams)
    return [name for name, alive in zip(tree.leaf_names(hparams), used, strict=True) if not alive]


OPTIMIZERS = {
    "adamw": lambda h: optax.adamw(h["lr"], b1=h["b"], weight_decay=h["decay"]),
    "lion": lambda h: optax.lion(h["lr"], b1=h["b"], weight_decay=h["decay"]),
    "lookahead-like": lambda h: optax.chain(optax.trace(h["b"]), optax.scale(-h["lr"])),
    "sign": lambda h: optax.chain(
        optax.scale(h["b"]), optax.scale_by_sign(), optax.scale(-h["lr"])
    ),
    "clipped": lambda h: optax.chain(optax.clip_by_global_norm(h["b"]), optax.sgd(h["lr"])),
    "schedule-free": lambda h: contrib.schedule_free_adamw(
        h["lr"], b1=h["b"], weight_decay=h["decay"]
    ),
    "adafactor": lambda h: optax.adafactor(h["lr"], momentum=h["b"]),
    "every two": lambda h: optax.MultiSteps(optax.adam(h["lr"]), 2).gradient_transformation(),
    "outside": lambda h: optax.lamb(1e-2, weight_decay=h["decay"]),
}


def loss(params, hparams, batch):
    hidden = jax.nn.relu(batch @ params["a"] + params["b"])
    penalty = hparams["l2"] * sum(jnp.sum(w**2) for w in params.values())
    return jnp.mean((hidden.sum(1) - 1) ** 2) + penalty * jnp.round(hparams["bits"])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("num_steps", [1, 4])
def test_structural_zeros_are_those_of_the_derivative(name, num_steps):
    problem = hg.Problem(
        init=lambda key, h: {"a": h["scale"] * jax.random.normal(key, (3, 4)), "b": jnp.zeros(4)},
        loss=loss,
        objective=lambda p, h, batch: loss(p, {"l2": 0.0, "bits": 0.0}, batch),
        optimizer=OPTIMIZERS[name],
        train_batch=lambda key, step: jax.random.normal(key, (2, 3)),
        valid_batch=lambda key: jax.random.normal(key, (2, 3)),
    )
    values = {"lr": 0.01, "b": 0.9, "decay": 0.1, "l2": 0.1, "bits": 3.0, "scale": 0.5}
    hparams = {k: jnp.asarray(v) for k, v in values.items()}
    for through_init in (True, False):
        wanted = by_derivative(problem, hparams, num_steps, through_init)
        assert structural_zeros(problem, hparams, num_steps, through_init) == wanted
