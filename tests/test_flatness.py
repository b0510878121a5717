"""Measures of flatness against closed forms, and the slices through a landscape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

from hypergrad import curvature as cv
from hypergrad.curvature.models import loss_of
from hypergrad.report.diagrams import landscape_figure
from hypergrad.report.style import png
from tests.networks import data, entropy, fast, forward, network

WEIGHTS = np.array([0.5, -1.0, 2.0])
MATRIX = np.array([[3.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 2.0]])
KEY = jax.random.key(3)


def quadratic(w, batch):
    return 0.5 * w @ jnp.asarray(MATRIX) @ w


def separable(w, batch):
    return 0.5 * jnp.sum(jnp.array([3.0, 1.0, 2.0]) * w**2)


def value(w):
    return 0.5 * w @ MATRIX @ w


def relu_loss(params, batch):
    return entropy(forward(jax.nn.relu, params, batch[0]), batch[1])


def rescaled(layers, factor):
    """The same ReLU network with other weights."""
    return [
        jax.tree.map(lambda w: factor * w, layers[0]),
        {"kernel": layers[1]["kernel"] / factor, "bias": layers[1]["bias"]},
    ]


@pytest.mark.slow
def test_keskar_finds_the_corner():
    with jax.enable_x64(True):
        run = fast(lambda w: cv.keskar(separable, w, (), epsilon=0.1))
        radius = 0.1 * (np.abs(WEIGHTS) + 1)
        here, corner = (
            0.5 * np.array([3.0, 1.0, 2.0]) @ w**2 for w in (WEIGHTS, np.abs(WEIGHTS) + radius)
        )
        np.testing.assert_allclose(
            run(jnp.asarray(WEIGHTS)), (corner - here) / (1 + here), rtol=1e-12
        )
        # at a minimum, where the gradient says nothing
        np.testing.assert_allclose(run(jnp.zeros(3)), 0.5 * 6.0 * 0.01, rtol=1e-12)


def test_keskar_searches_where_no_corner_is_best():
    def bump(w, batch):
        return jnp.exp(-jnp.sum((w - 0.05) ** 2) / 0.001)

    with jax.enable_x64(True):
        got = fast(lambda w: cv.keskar(bump, w, (), epsilon=0.1, max_iterations=50))(jnp.zeros(2))
        here = np.exp(-5.0)
        np.testing.assert_allclose(got, (1 - here) / (1 + here), rtol=1e-6)


@pytest.mark.slow
def test_keskar_leaves_the_poor_corner_with_more_starts():
    """The gradient points to the corner of +1, where the rise is 0.4; that of -1 is 14.6 high."""

    def poor(w, batch):
        return 0.1 * jnp.sum(w) + 5 * jax.nn.relu(-jnp.sum(w) - 1.0)

    rises = [float(cv.keskar(poor, jnp.zeros(4), (), epsilon=1.0, num_starts=n)) for n in (1, 16)]
    np.testing.assert_allclose(rises, [0.4, 14.6], rtol=1e-6)


SIZES = [(6, 9), (9, 7), (7, 4)]


def small_network(params, batch):
    a = batch[0]
    for i, layer in enumerate(params):
        a = a @ layer["kernel"] + layer["bias"]
        a = jax.nn.relu(a) if i < len(params) - 1 else a
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(a), batch[1][:, None], 1))


@pytest.mark.slow
def test_keskar_is_as_high_as_scipy_finds():
    """Within 5 % of the best of 20 random starts of SciPy's L-BFGS-B, on three trained networks."""
    with jax.enable_x64(True):
        step = jax.jit(
            lambda p, b: jax.tree.map(lambda a, g: a - 0.3 * g, p, jax.grad(small_network)(p, b))
        )
        ours = jax.jit(lambda p, b, e: cv.keskar(small_network, p, b, epsilon=e))
        rise = jax.jit(jax.value_and_grad(lambda p, b: -small_network(p, b)))
        for seed in range(3):
            rng = np.random.default_rng(seed)
            params = [
                {
                    "kernel": jnp.asarray(rng.normal(size=s) / s[0] ** 0.5),
                    "bias": jnp.asarray(0.1 * rng.normal(size=s[1])),
                }
                for s in SIZES
            ]
            batch = jnp.asarray(rng.normal(size=(11, 6))), jnp.asarray(rng.integers(0, 4, 11))
            for _ in range(300):
                params = step(params, batch)
            flat, unflatten = ravel_pytree(params)
            start, at = np.asarray(flat), float(small_network(params, batch))
            for epsilon in (1e-3, 1e-2):
                radius = epsilon * (abs(start) + 1)

                def scaled(u, start=start, radius=radius, unflatten=unflatten, batch=batch):
                    value, slope = rise(unflatten(jnp.asarray(start + radius * u)), batch)
                    return float(value), np.asarray(ravel_pytree(slope)[0]) * radius

                found = [
                    -scipy.optimize.minimize(
                        scaled,
                        rng.uniform(-1, 1, len(start)),
                        jac=True,
                        method="L-BFGS-B",
                        bounds=[(-1, 1)] * len(start),
                    ).fun
                    for _ in range(20)
                ]
                best = (max(found) - at) / (1 + at)
                assert ours(params, batch, epsilon) >= 0.95 * best, (seed, epsilon)


def test_ascent_has_its_closed_form():
    with jax.enable_x64(True):
        w, g = WEIGHTS, MATRIX @ WEIGHTS
        v = 0.2 * g / np.linalg.norm(g)
        np.testing.assert_allclose(
            cv.sam(quadratic, jnp.asarray(w), (), radius=0.2), value(w + v) - value(w)
        )
        v = 0.2 * w**2 * g / np.linalg.norm(np.abs(w) * g)
        np.testing.assert_allclose(
            cv.adaptive(quadratic, jnp.asarray(w), (), radius=0.2), value(w + v) - value(w)
        )
        near = [
            float(cv.sam(quadratic, jnp.asarray(w), (), radius=2.0, num_steps=k)) for k in (1, 30)
        ]
        circle = np.random.default_rng(0).normal(size=(20000, 3))
        circle *= 2.0 / np.linalg.norm(circle, axis=1, keepdims=True)
        best = max(value(w + v) - value(w) for v in circle)
        assert near[0] < near[1] and abs(near[1] / best - 1) < 1e-3


def test_adaptive_and_relative_flatness_do_not_see_rescaling():
    with jax.enable_x64(True):
        layers, batch = network((4, 6, 3)), data(10, 4, 3)

        def run(p):
            return (
                cv.adaptive(relu_loss, p, batch),
                cv.relative_flatness(relu_loss, p, batch, "1.kernel"),
                cv.sam(relu_loss, p, batch),
                cv.m_sharpness(relu_loss, p, batch, size=3),
            )

        measured = fast(run)
        one, other = measured(layers), measured(rescaled(layers, 3.0))
        np.testing.assert_allclose(one[:2], other[:2], rtol=1e-10)
        assert abs(one[2] / other[2] - 1) > 0.1
        parts = [jax.tree.map(lambda x, i=i: x[i : i + 3], batch) for i in (0, 3, 6)]
        single = fast(lambda p, part: cv.sam(relu_loss, p, part))
        np.testing.assert_allclose(one[3], np.mean([single(layers, part) for part in parts]))
        # relative flatness by its definition
        kernel = layers[1]["kernel"]

        def last(w):
            return relu_loss([layers[0], {"kernel": w, "bias": layers[1]["bias"]}], batch)

        bends = np.asarray(fast(jax.hessian(last))(kernel))
        exact = np.einsum("ra,rb,qaqb->", kernel, kernel, bends)
        np.testing.assert_allclose(one[1], exact, rtol=1e-10)


def test_expected_sharpness_is_half_the_trace():
    with jax.enable_x64(True):
        w = jnp.asarray(WEIGHTS)
        run = fast(lambda w: cv.expected_sharpness(quadratic, w, (), KEY, sigma=0.1, num_pairs=400))
        got = run(w)
        assert abs(got.value - 0.005 * np.trace(MATRIX)) < 4 * got.std_error < 0.006
        np.testing.assert_allclose(
            run(jnp.zeros(3)).value, got.value, rtol=1e-10
        )  # the gradient is out
        scaled = fast(
            lambda w: cv.expected_sharpness(
                quadratic, w, (), KEY, sigma=0.1, num_pairs=400, relative=True
            )
        )(w)
        assert abs(scaled.value - 0.005 * np.diag(MATRIX) @ WEIGHTS**2) < 4 * scaled.std_error
        width = fast(lambda w: cv.pac_bayes(quadratic, w, (), KEY, rise=0.1, num_pairs=400))(w)
        np.testing.assert_allclose(width, got.value / 0.01 / 0.1, rtol=1e-4)


def test_the_volume_of_an_ellipsoid():
    with jax.enable_x64(True):

        def run(w, key):
            return cv.flat_volume(quadratic, w, (), key, epsilon=0.02, num_directions=2000)

        found = fast(run)(jnp.zeros(3), KEY)
        exact = 4 / 3 * np.pi * 0.04**1.5 / np.sqrt(np.linalg.det(MATRIX))
        assert abs(np.exp(found.log_volume) / exact - 1) < 0.05 and found.met == 1
        flat = cv.flat_volume(lambda w, batch: 0 * w.sum(), jnp.zeros(3), (), KEY, num_directions=2)
        assert flat.met == 0 and np.all(flat.radii == 100)


def test_gradients_and_paths():
    with jax.enable_x64(True):
        layers, batch = network((4, 5, 3), bias=False), data(7, 4, 3)
        model = cv.mlp(jax.nn.relu)

        def each(p, x, y):
            return relu_loss(p, (x[None], y[None]))

        grads = fast(lambda p: jax.vmap(jax.grad(each), (None, 0, 0))(p, *batch))(layers)
        flat = np.concatenate([np.asarray(g).reshape(7, -1) for g in jax.tree.leaves(grads)], 1)
        exact = np.mean(np.sum((flat - flat.mean(0)) ** 2, 1))
        for chunk in (3, 32):
            got = fast(lambda p, chunk=chunk: cv.gradient_variance(model, p, batch, chunk=chunk))(
                layers
            )
            np.testing.assert_allclose(got, exact, rtol=1e-10)
        paths = (
            np.ones(4) @ np.asarray(layers[0]["kernel"]) ** 2 @ np.asarray(layers[1]["kernel"]) ** 2
        )
        np.testing.assert_allclose(cv.path_norm(model, layers, batch), np.sqrt(paths.sum()))


def test_paths_of_frozen_layers_and_whole_numbers():
    """√(Σ_paths Π w²), path by path, of a net whose last layer is closed over and whose inputs are counts."""
    with jax.enable_x64(True):
        layers = network((3, 4, 2))
        frozen = {"kernel": -jnp.abs(layers[1]["kernel"]), "bias": layers[1]["bias"]}

        def forward(dense, params, example):
            return dense(frozen, jax.nn.relu(dense(params, example[0])))

        model = cv.Layered(forward, lambda z, e: cv.softmax_cross_entropy(z, e[1]))
        x, y = jnp.arange(15, dtype=jnp.int32).reshape(5, 3), data(5, 3, 2)[1]
        (k, b), (K, B) = (
            [np.asarray(layer[name]) for name in ("kernel", "bias")]
            for layer in (layers[0], frozen)
        )
        paths = sum(
            (k[i, j] * K[j, o]) ** 2 for i in range(3) for j in range(4) for o in range(2)
        ) + sum((b[j] * K[j, o]) ** 2 for j in range(4) for o in range(2))
        for order in (slice(None), slice(None, None, -1)):
            got = cv.path_norm(model, layers[0], (x[order], y[order]))
            np.testing.assert_allclose(got, np.sqrt(paths + np.sum(B**2)), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 1e-4), (jnp.bfloat16, 1.0)])
def test_a_sum_is_no_mean(dtype, size):
    """However narrow its params, however small the loss: 12 samples, and a sum 12 times their mean."""
    w = jnp.asarray([0.5, -1.0, 2.0], dtype)
    batch = data(12, 3, 1, jnp.float32, labels=False)

    def each(w, batch):
        return size * jnp.square(batch[0] @ w - batch[1][:, 0])

    def total(w, batch):
        return jnp.sum(each(w, batch))

    def mean(w, batch):
        return jnp.mean(each(w, batch))

    refused = "as the mean of its halves, expected a mean over samples"
    for measure in (cv.gradient_variance, lambda *a: cv.m_sharpness(*a, size=4)):
        with pytest.raises(ValueError, match=refused):
            measure(total, w, batch)
    assert cv.gradient_variance(mean, w, batch) > 0
    # in chunks, by itself and under a derivative
    for run in (lambda f: f(w, batch), lambda f: cv.hvp(f, w, batch, w)):
        with pytest.raises(ValueError, match=refused):
            run(cv.chunked_loss(total, 5))
    np.testing.assert_allclose(cv.chunked_loss(mean, 5)(w, batch), mean(w, batch), rtol=1e-3)
    assert jnp.isnan(
        cv.chunked_loss(mean, 5)(jnp.nan * w, batch)
    )  # what is no number is left to the caller


def test_what_the_search_is_guided_by():
    with jax.enable_x64(True):
        layers, (x, y) = network((4, 6, 5, 3), bias=False), data(9, 4, 3)
        model = cv.mlp(jax.nn.relu)
        measures = (cv.theorem_1, cv.section_3, cv.published, cv.last_layer, cv.rescaled)
        run = fast(lambda p: [measure(model, p, (x, y)) for measure in measures])
        kernels = [np.asarray(layer["kernel"]) for layer in layers]
        hidden = np.maximum(np.maximum(np.asarray(x) @ kernels[0], 0) @ kernels[1], 0)
        logits = hidden @ kernels[2]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        size = np.linalg.norm(kernels[2])
        found = run(layers)
        np.testing.assert_allclose(found[0], np.sqrt(np.mean(np.sum(p**2, 1))) / size)
        np.testing.assert_allclose(found[1], np.linalg.norm(hidden, axis=1).min() / 9 / size)
        np.testing.assert_allclose(found[2], np.linalg.norm(hidden) * np.linalg.norm(p) / size)
        soft = np.array([np.diag(q) - np.outer(q, q) for q in p])
        exact = np.einsum("iab,ic,id->acbd", soft, hidden, hidden) / 9
        np.testing.assert_allclose(found[3], np.linalg.norm(exact), rtol=1e-10)
        blocks = np.asarray(fast(lambda p: cv.frobenius(model, p, (x, y)).blocks)(layers))
        squares = np.array([np.sum(kernel**2) for kernel in kernels])
        np.testing.assert_allclose(found[4], np.sqrt(squares @ blocks @ squares), rtol=1e-10)
        moved = run(
            [
                {"kernel": c * layer["kernel"]}
                for c, layer in zip((4, 0.5, 0.5), layers, strict=True)
            ]
        )
        np.testing.assert_allclose(moved[4], found[4], rtol=1e-10)
        assert abs(moved[3] / found[3] - 1) > 0.5


def test_finite_differences():
    with jax.enable_x64(True):
        layers, batch = network((2, 3, 2)), data(6, 2, 2)

        @jax.custom_vjp
        def opaque(z):
            return jnp.tanh(z)

        opaque.defvjp(lambda z: (jnp.tanh(z), z), lambda z, g: (g * (1 - jnp.tanh(z) ** 2),))

        def loss(activation):
            return lambda p, batch: entropy(forward(activation, p, batch[0]), batch[1])

        exact = fast(lambda p: cv.hessian(loss(jnp.tanh), p, batch))(layers)
        for central, tolerance in ((True, 1e-6), (False, 1e-3)):
            found = fast(
                lambda p, central=central: cv.difference_hessian(
                    loss(opaque), p, batch, central=central
                )
            )(layers)
            assert np.abs(found - exact).max() < tolerance
            np.testing.assert_array_equal(found, found.T)


def test_a_direction_of_vectors_alone_moves_them():
    """Each is one filter; among kernels a vector does not move."""
    vectors = {"w": jnp.array([3.0, 4.0]), "scale": jnp.asarray(2.0)}
    direction = cv.filter_direction(vectors, jax.random.key(0))
    np.testing.assert_allclose(jnp.linalg.norm(direction["w"]), 5.0, rtol=1e-6)
    np.testing.assert_allclose(abs(direction["scale"]), 2.0, rtol=1e-6)
    loss = lambda p, batch: jnp.sum(p["w"] ** 2) + p["scale"] ** 2  # noqa: E731
    values = cv.landscape(loss, vectors, (), [direction], num=3).values
    assert len(set(np.asarray(values).tolist())) == 3
    among = cv.filter_direction({**vectors, "kernel": jnp.ones((2, 2))}, jax.random.key(0))
    assert not jnp.any(among["w"]) and jnp.any(among["kernel"])
    still = jax.tree.map(jnp.zeros_like, vectors)
    with pytest.raises(
        ValueError, match=r"directions\[0\] is zero, expected one that moves a weight"
    ):
        cv.landscape(loss, vectors, (), [cv.filter_direction(still, jax.random.key(0))], num=3)


def test_landscapes():
    with jax.enable_x64(True):
        layers, batch = network((4, 5, 3)), data(8, 4, 3)
        model = cv.mlp(jax.nn.relu)
        directions = [cv.filter_direction(layers, jax.random.key(i)) for i in (0, 1)]
        for move, layer in zip(directions[0], layers, strict=True):
            lengths = [np.linalg.norm(np.asarray(x["kernel"]), axis=0) for x in (move, layer)]
            np.testing.assert_allclose(*lengths)
            assert not np.any(move["bias"])
        plane = fast(lambda p: cv.landscape(model, p, batch, directions, radius=0.5, num=5))(layers)
        line = fast(lambda p: cv.landscape(model, p, batch, directions[:1], radius=0.5, num=5))(
            layers
        )
        assert plane.values.shape == (5, 5)
        np.testing.assert_allclose(plane.values[:, 2], line.values)
        loss = fast(lambda p: loss_of(model)(p, batch))
        np.testing.assert_allclose(plane.values[2, 2], loss(layers))
        moved = jax.tree.map(lambda w, a, b: w - 0.25 * a + 0.5 * b, layers, *directions)
        np.testing.assert_allclose(plane.values[1, 4], loss(moved))
        for values, surface in ((line.values, False), (plane.values, False), (plane.values, True)):
            figure = landscape_figure(plane.steps, values, surface=surface)
            assert len(png(figure)) > 2000
        assert landscape_figure(plane.steps, np.full(5, np.nan)) is None


BAD = {
    "loss is .* on 8 samples and .* as the mean of its halves": lambda p, b: cv.gradient_variance(
        lambda q, batch: 8 * relu_loss(q, batch) * len(batch[0]), p, b
    ),
    "size is 9, expected at most the 8 samples": lambda p, b: cv.m_sharpness(
        relu_loss, p, b, size=9
    ),
    "model is <function .*, expected a Layered": lambda p, b: cv.theorem_1(relu_loss, p, b),
    "model is <function .*, expected a Layered, because paths": lambda p, b: cv.path_norm(
        relu_loss, p, b
    ),
    "model is <function .*, expected a Layered, because the norm": lambda p, b: cv.last_layer(
        relu_loss, p, b
    ),
    "loss is nan on this batch": lambda p, b: cv.gradient_variance(
        relu_loss, p, (jnp.nan * b[0], b[1])
    ),
    r"model returned outputs of shape \(5,\)": lambda p, b: cv.section_3(
        cv.Layered(
            lambda dense, q, e: jnp.append(dense(q[1], dense(q[0], e[0])), jnp.zeros(2)),
            lambda z, e: cv.softmax_cross_entropy(z, e[1]),
        ),
        p,
        b,
    ),
    r"radius is an array of shape \(3,\).*, expected a positive number": lambda p, b: cv.sam(
        relu_loss, p, b, radius=jnp.ones(3)
    ),
    r"size is an array of shape \(2,\)": lambda p, b: cv.m_sharpness(
        relu_loss, p, b, size=np.ones(2, int)
    ),
    "radius is True": lambda p, b: cv.sam(relu_loss, p, b, radius=True),
    "radius is -1": lambda p, b: cv.sam(relu_loss, p, b, radius=-1),
    "epsilon is 0": lambda p, b: cv.keskar(relu_loss, p, b, epsilon=0),
    "layer is 'x', expected the path of a matrix, among": lambda p, b: cv.relative_flatness(
        relu_loss, p, b, "x"
    ),
    "directions has 0 entries": lambda p, b: cv.landscape(relu_loss, p, b, []),
    "directions has a pytree unlike the params": lambda p, b: cv.landscape(relu_loss, p, b, [p[0]]),
    "memory is 10 bytes, expected at least": lambda p, b: cv.difference_hessian(
        relu_loss, p, b, memory=10
    ),
    "rise is 0": lambda p, b: cv.pac_bayes(relu_loss, p, b, KEY, rise=0),
    "num_pairs is 1": lambda p, b: cv.expected_sharpness(relu_loss, p, b, KEY, num_pairs=1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message):
    layers, batch = network((4, 5, 3), dtype=jnp.float32), data(8, 4, 3, jnp.float32)
    with pytest.raises(ValueError, match=message) as caught:
        BAD[message](layers, batch)
    assert "\n" not in str(caught.value)
