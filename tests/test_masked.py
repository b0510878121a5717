"""Masked shapes: a padded network is the network without padding, to rounding, in everything."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.populations import bucketed, chunked, groups, population, vectorized
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
        index = jax.random.bits(key, (16,)) % 48
        return X[index], Y[index]

    return Problem(
        init=init,
        loss=loss,
        objective=lambda p, h, b: loss(p, h | {"batch": 16}, b),
        optimizer=OPTIMIZERS[optimizer],
        train_batch=train_batch,
        valid_batch=lambda key: (X[48:], Y[48:]),
    )


def masked(optimizer, most_width=12, most_depth=2, activation=jax.nn.sigmoid):
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
    """Train without padding from the padded first weights, as one program: weights and objective."""
    static = {name: h[name] for name in ("width", "depth", "batch")}

    @jax.jit
    def train(params, lr):
        small, given = plain(optimizer, params, static), static | {"lr": lr}
        state = unroll(small, given, init_state(small, key, given), num_steps)
        return state.params, small.objective(state.params, given, small.valid_batch(key))

    return train(unpad(first, h["width"], h["depth"]), h["lr"])


def close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=0)


def total(tree):
    return sum(float(np.sum(np.abs(w))) for w in jax.tree.leaves(tree))


SHAPES = {"sgd": [(7, 2, 10), (1, 1, 3)], "adamw": [(7, 1, 10)]}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", SHAPES)
def test_training_equals_that_of_the_true_shape(optimizer):
    """Every shape in one program, against a program each; sigmoid is not zero at zero."""
    shapes = SHAPES[optimizer]
    num = len(shapes)
    made = masked(optimizer, most_depth=max(depth for _, depth, _ in shapes))
    columns = [jnp.array(c) for c in zip(*shapes, strict=True)]
    names = ("width", "depth", "batch")
    hparams = dict(zip(names, columns, strict=True)) | {"lr": jnp.full(num, 0.05)}
    members = population(made, layout=vectorized())
    keys = jax.random.split(KEY, num)
    states = members.init(keys, hparams)
    after = members.advance(hparams, states, 12)
    values = members.value(hparams, after)
    for i, (width, depth, size) in enumerate(shapes):
        h = {"width": width, "depth": depth, "batch": size, "lr": jnp.float32(0.05)}
        first, last = (
            jax.tree.map(lambda x, i=i: np.asarray(x)[i], t)
            for t in (states.train.params, after.train.params)
        )
        params, value = reference(optimizer, first, h, keys[i], 12)
        np.testing.assert_allclose(values[i], value, rtol=1e-6)
        trained = unpad(last, width, depth)
        close(trained, params, TOLERANCE[optimizer])
        # what is padded never moves
        assert total(last) == pytest.approx(total(trained), rel=1e-6)


def test_outputs_and_first_weights():
    module = MaskedMLP(16, 3, 4, jnp.tanh)
    init, apply = jax.jit(module.init), jax.jit(module.apply)
    for width, depth in ((np.array([5, 4, 16]), 2), (np.array([3, 8, 2]), 3)):
        params = init(KEY, X[:1], width, depth)["params"]
        found = apply({"params": params}, X, width, depth)
        widths = width[:depth].tolist()
        small = MLP((*widths, 4), jnp.tanh)
        few = unpad(jax.tree.map(np.asarray, params), width[:depth], depth)
        expected = jax.jit(small.apply)({"params": few}, X)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    wide = MaskedMLP(400, 1, 100)
    params = jax.tree.map(np.asarray, jax.jit(wide.init)(KEY, X[:1], 100, 1)["params"])
    kernel = unpad(params, 100, 1)["dense_1"]["kernel"]
    usual = jax.jit(MLP((100, 100)).init)(KEY, X[:1])["params"]["dense_1"]["kernel"]
    assert float(kernel.std()) == pytest.approx(float(usual.std()), rel=0.03)
    assert float(np.abs(kernel).max()) == pytest.approx(float(np.abs(usual).max()), rel=0.03)


def test_masked_mean():
    values = jnp.arange(6.0).reshape(3, 2)
    assert masked_mean(values, 2) == 1.5 and masked_mean(values[:, 0], 3) == 2.0
    broken = jnp.array([1.0, 3.0, jnp.nan])
    assert masked_mean(broken, 2) == 2.0
    assert jax.grad(masked_mean)(broken, 2).tolist() == [0.5, 0.5, 0.0]


def test_buckets_train_the_same_members_for_less():
    """Each member in the program of its bucket, at its own place; the network itself is tested above."""
    hparams = {
        "width": np.array([2, 12, 3, 6, 2, 5]),
        "depth": np.array([1, 3, 1, 2, 2, 2]),
        "lr": np.linspace(0.01, 0.06, 6, dtype=np.float32),
    }

    def sizes(h):
        return np.stack([h["width"], h["depth"]], axis=1)

    def padded(shape):
        live = lambda h: jnp.arange(shape[0]) < h["width"]  # noqa: E731
        return Problem(
            init=lambda key, h: jnp.where(live(h), 1.0, 0.0),
            loss=lambda w, h, b: jnp.sum(w**2) / 2,
            objective=lambda w, h, b: jnp.sum(w),
            optimizer=lambda h: optax.sgd(h["lr"]),
            train_batch=lambda key, step: (),
            valid_batch=lambda key: (),
        )

    cost = mlp_cost(5, 3)
    planned = groups.plan_buckets(sizes(hparams), cost, most=2)
    assert len(planned.shapes) == 2 and planned.cost < 0.6 * planned.one == 0.6 * cost((12, 3))
    built = []

    def build(shape):
        built.append(shape)
        return population(padded(shape), layout=chunked(2))

    members = bucketed(build, sizes, planned)
    states = members.advance(hparams, members.init(jax.random.split(KEY, 6), hparams), 8)
    assert built == [planned.shapes[b] for b in dict.fromkeys(planned.assign(sizes(hparams)))]
    for group in states:
        assert group.states.train.params.shape == (len(group.index), group.label[0])
    expected = hparams["width"] * (1 - hparams["lr"].astype(np.float64)) ** 8
    np.testing.assert_allclose(members.value(hparams, states), expected, rtol=1e-6)
