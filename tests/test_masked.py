"""Masked shapes: a padded network is the network without padding, to rounding, in everything."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import buckets
from hypergrad.groups import bucketed
from hypergrad.layout import chunked, vectorized
from hypergrad.population import population
from hypergrad.problem import Problem
from hypergrad.train import init_state, unroll
from models.masked_mlp import MaskedMLP, masked_mean, mlp_cost, unpad
from models.mlp import MLP

KEY = jax.random.key(3)
_random = np.random.default_rng(0)
TOLERANCE = {"sgd": 1e-6, "adamw": 1e-5}
"""Adam divides rounding errors by the root of squared gradients, however small those are."""
X = jnp.asarray(_random.normal(size=(64, 5)), jnp.float32)
Y = jnp.asarray(_random.integers(0, 3, 64))
OPTIMIZERS = {
    "sgd": lambda h: optax.sgd(h["lr"], momentum=0.9),
    "adamw": lambda h: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(h["lr"])),
}


def problem(apply, init, optimizer, mean=lambda values, h: jnp.mean(values)):
    """Cross-entropy with a penalty of all weights, which the padding must not enter."""

    def loss(params, h, batch):
        logits = apply(params, batch[0], h)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return mean(values, h) + 1e-3 * sum(jnp.sum(w**2) for w in jax.tree.leaves(params))

    def train_batch(key, step):
        index = jax.random.randint(key, (16,), 0, 48)
        return X[index], Y[index]

    return Problem(
        init=init,
        loss=loss,
        objective=lambda p, h, b: loss(p, h | {"batch": 16}, b),
        optimizer=OPTIMIZERS[optimizer],
        train_batch=train_batch,
        valid_batch=lambda key: (X[48:], Y[48:]),
    )


def masked(optimizer, most_width=12, most_depth=3, activation=jax.nn.sigmoid):
    module = MaskedMLP(most_width, most_depth, 3, activation)
    return problem(
        lambda p, x, h: module.apply({"params": p}, x, h["width"], h["depth"]),
        lambda key, h: module.init(key, X[:1], h["width"], h["depth"])["params"],
        optimizer,
        lambda values, h: masked_mean(values, h["batch"]),
    )


def plain(optimizer, params, h, activation=jax.nn.sigmoid):
    """The network without padding, from the same first weights and on the same examples."""
    module = MLP((h["width"],) * h["depth"] + (3,), activation)
    made = problem(lambda p, x, _: module.apply({"params": p}, x), lambda key, _: params, optimizer)

    def train_batch(key, step):
        inputs, labels = masked(optimizer).train_batch(key, step)
        return inputs[: h["batch"]], labels[: h["batch"]]

    return made._replace(train_batch=train_batch)


def reference(optimizer, first, h, key, num_steps):
    """Train without padding from the padded first weights, as one program: weights, objective, gradient."""
    static = {name: h[name] for name in ("width", "depth", "batch")}

    @jax.jit
    def train(params, lr):
        small, given = plain(optimizer, params, static), static | {"lr": lr}
        state = unroll(small, given, init_state(small, key, given), num_steps)
        value = small.objective(state.params, given, small.valid_batch(key))
        batch = (X[: h["batch"]], Y[: h["batch"]])
        return state.params, value, jax.grad(small.loss)(params, given, batch)

    return train(unpad(first, h["width"], h["depth"]), h["lr"])


def close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=0)


def total(tree):
    return sum(float(jnp.sum(jnp.abs(w))) for w in jax.tree.leaves(tree))


SHAPES = [(7, 2, 10), (1, 1, 3)]


@pytest.mark.parametrize(("optimizer", "num"), [("sgd", 2), ("adamw", 1)])
def test_training_equals_that_of_the_true_shape(optimizer, num):
    """Every shape in one program, against a program each; sigmoid is not zero at zero."""
    made = masked(optimizer)
    columns = [jnp.array(c) for c in zip(*SHAPES[:num], strict=True)]
    names = ("width", "depth", "batch")
    hparams = dict(zip(names, columns, strict=True)) | {"lr": jnp.full(num, 0.05)}
    members = population(made, layout=vectorized())
    keys = jax.random.split(KEY, num)
    states = members.init(keys, hparams)
    after = members.advance(hparams, states, 12)
    values = members.value(hparams, after)
    batch = (X[:16], Y[:16])
    grads = jax.jit(jax.vmap(lambda p, h: jax.grad(made.loss)(p, h, batch)))(
        states.train.params, hparams
    )
    for i, (width, depth, size) in enumerate(SHAPES[:num]):
        h = {"width": width, "depth": depth, "batch": size, "lr": jnp.float32(0.05)}
        first, last, padded = (
            jax.tree.map(lambda x, i=i: x[i], t)
            for t in (states.train.params, after.train.params, grads)
        )
        params, value, grad = reference(optimizer, first, h, keys[i], 12)
        close(unpad(padded, width, depth), grad, 1e-6)
        np.testing.assert_allclose(values[i], value, rtol=1e-6)
        trained = unpad(last, width, depth)
        close(trained, params, TOLERANCE[optimizer])
        # what is padded never moves
        for whole, cut in ((last, trained), (padded, unpad(padded, width, depth))):
            assert total(whole) == pytest.approx(total(cut), rel=1e-6)


def test_outputs_and_first_weights():
    module = MaskedMLP(16, 3, 4, jnp.tanh)
    for width, depth in ((5, 2), (jnp.array([3, 8, 2]), 3)):
        params = jax.jit(module.init)(KEY, X[:1], width, depth)["params"]
        found = module.apply({"params": params}, X, width, depth)
        widths = np.broadcast_to(np.asarray(width), (depth,)).tolist()
        small = MLP((*widths, 4), jnp.tanh)
        expected = small.apply({"params": unpad(params, width, depth)}, X)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    wide = MaskedMLP(400, 2, 4)
    kernel = unpad(jax.jit(wide.init)(KEY, X[:1], 100, 2)["params"], 100, 2)["dense_1"]["kernel"]
    usual = jax.jit(MLP((100, 100, 4)).init)(KEY, X[:1])["params"]["dense_1"]["kernel"]
    assert float(kernel.std()) == pytest.approx(float(usual.std()), rel=0.03)
    assert float(jnp.abs(kernel).max()) == pytest.approx(float(jnp.abs(usual).max()), rel=0.03)


def test_masked_mean():
    values = jnp.arange(6.0).reshape(3, 2)
    assert masked_mean(values, 2) == 1.5 and masked_mean(values[:, 0], 3) == 2.0
    broken = jnp.array([1.0, 3.0, jnp.nan])
    assert masked_mean(broken, 2) == 2.0
    assert jax.grad(masked_mean)(broken, 2).tolist() == [0.5, 0.5, 0.0]


def test_buckets_train_the_same_members_for_less():
    hparams = {
        "width": jnp.array([2, 12, 3, 6, 2, 5]),
        "depth": jnp.array([1, 3, 1, 2, 2, 2]),
        "batch": jnp.full(6, 16),
        "lr": jnp.full(6, 0.05),
    }

    def sizes(h):
        return np.stack([h["width"], h["depth"]], axis=1)

    cost = mlp_cost(5, 3)
    planned = buckets.plan(sizes(hparams), cost, most=2)
    assert len(planned.shapes) == 2 and planned.cost < 0.6 * planned.one == 0.6 * cost((12, 3))
    keys, built = jax.random.split(KEY, 6), {}

    def build(shape):
        built[shape] = population(masked("sgd", *shape), layout=chunked(2))
        return built[shape]

    members = bucketed(build, sizes, planned)
    states = members.advance(hparams, members.init(keys, hparams), 8)
    values = members.value(hparams, states)
    assert list(built) == list(planned.shapes) and np.isfinite(values).all()
    for shape, bucket in built.items():
        index = np.flatnonzero(planned.assign(sizes(hparams)) == planned.shapes.index(shape))
        few = jax.tree.map(lambda x, i=index: x[i], hparams)
        states = bucket.advance(few, bucket.init(keys[index], few), 8)
        np.testing.assert_array_equal(values[index], bucket.value(few, states))
