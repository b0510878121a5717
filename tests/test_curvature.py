"""Products, estimates and spectra against the dense matrix."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import curvature as cv
from hypergrad.curvature import Composed, products
from hypergrad.curvature.estimate import student
from hypergrad.curvature.models import loss_of
from tests.networks import data, dense_hessian, entropy, fast, forward, network

WIDTHS, M = (4, 5, 3), 12
KEY = jax.random.key(0)
MODEL = cv.mlp(jnp.tanh, l2=0.05)
PLAIN = Composed(
    lambda p, batch: (forward(jnp.tanh, p, batch[0]), p),
    lambda made, batch: (
        entropy(made[0], batch[1]) + 0.025 * sum(jnp.sum(w**2) for w in jax.tree.leaves(made[1]))
    ),
)


@pytest.fixture(scope="module")
def known():
    """A network and its three matrices, made without the code under test."""
    with jax.enable_x64(True):
        layers, (x, y) = network(WIDTHS), data(M, WIDTHS[0], WIDTHS[-1])
        loss = loss_of(PLAIN)
        full = dense_hessian(lambda p: loss(p, (x, y)), layers)
        logits = fast(lambda p: forward(jnp.tanh, p, x))
        jacobian = fast(jax.jacfwd(lambda p: forward(jnp.tanh, p, x)))(layers)
        flat = np.concatenate(
            [np.asarray(j).reshape(M, WIDTHS[-1], -1) for j in jax.tree.leaves(jacobian)], 2
        )
        p = np.asarray(jax.nn.softmax(logits(layers)))
        soft = np.array([np.diag(q) - np.outer(q, q) for q in p])
        newton = np.einsum("mca,mcd,mdb->ab", flat, soft, flat) / M + 0.05 * np.eye(full.shape[0])
        each = np.einsum("mca,mc->ma", flat, p - np.eye(WIDTHS[-1])[np.asarray(y)])
        return layers, (x, y), {"hvp": full, "ggn_vp": newton, "fisher_vp": each.T @ each / M}


def quadratic(matrix):
    """A loss whose Hessian is `matrix`: products cost nothing."""
    return lambda w, batch: 0.5 * w @ jnp.asarray(matrix) @ w


def spectrum(values, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    return (basis * values) @ basis.T


@pytest.mark.parametrize("name", ["hvp", "ggn_vp", "fisher_vp"])
def test_products_make_the_matrix(known, name):
    with jax.enable_x64(True):
        layers, batch, matrices = known
        product = getattr(cv, name)

        one = products.bytes_of_product(product, MODEL, layers, batch)

        def run(layers):
            made = [cv.hessian(MODEL, layers, batch, product=product)]
            if name != "fisher_vp":
                made.append(cv.hessian(PLAIN, layers, batch, product=product))
            return (
                made,
                cv.diagonal(MODEL, layers, batch, product=product, chunk=7),
                cv.trace(MODEL, layers, batch, product=product, memory=5 * one),
            )

        made, diagonal, trace = fast(run)(layers)
        for matrix in made:
            assert np.abs(matrix - matrices[name]).max() < 1e-12
        assert jax.tree.structure(diagonal) == jax.tree.structure(layers)
        flat = np.concatenate([np.asarray(d).reshape(-1) for d in jax.tree.leaves(diagonal)])
        np.testing.assert_allclose(flat, np.diag(matrices[name]), atol=1e-12)
        np.testing.assert_allclose(trace, np.trace(matrices[name]), rtol=1e-12)


def test_blocks_are_those_of_the_matrix(known):
    with jax.enable_x64(True):
        layers, batch, matrices = known
        blocks, newton = fast(
            lambda p: (
                cv.hessian_blocks(MODEL, p, batch),
                cv.frobenius_columns(PLAIN, p, batch, gauss_newton=True).value,
            )
        )(layers)
        np.testing.assert_allclose(newton, np.linalg.norm(matrices["ggn_vp"]), rtol=1e-10)
        size = sum(w.size for w in jax.tree.leaves(layers[0]))
        assert set(blocks) == {(a, b) for a in "01" for b in "01"}
        np.testing.assert_allclose(blocks["0", "1"], matrices["hvp"][:size, size:], atol=1e-12)


SPECTRA = {
    "one large": np.r_[10.0, np.full(39, 0.1)],
    "geometric": 0.7 ** np.arange(40),
    "both signs": np.r_[5.0, -4.0, 3.0, np.linspace(-0.3, 0.3, 37)],
}


@pytest.mark.parametrize(
    ("kind", "num_products"),
    [
        ("one large", 30),
        *(
            pytest.param(kind, num, marks=pytest.mark.slow)
            for kind in ("one large", "geometric", "both signs")
            for num in (30, 60)
            if (kind, num) != ("one large", 30)
        ),
    ],
)
def test_intervals_cover_what_they_say(kind, num_products):
    values = SPECTRA[kind]
    norm, trace, repeats = np.linalg.norm(values), values.sum(), 1000

    def run(key, rank):
        arguments = quadratic(spectrum(values)), jnp.zeros(40), (), key
        return (
            cv.frobenius_estimate(*arguments, num_products=num_products, rank=rank),
            cv.trace_estimate(*arguments, num_products=num_products, rank=rank),
        )

    def both(keys):  # Hutchinson's mean and Hutch++
        return [jax.vmap(partial(run, rank=rank))(keys) for rank in (0, num_products // 3)]

    with jax.enable_x64(True):
        made = jax.jit(both)(jax.random.split(jax.random.key(0), repeats))
    for norms, traces in made:
        for true, (low, high) in ((norm, norms.interval), (trace, traces.interval)):
            inside = (np.asarray(low) <= true) & (true <= np.asarray(high))
            assert 0.91 <= np.mean(inside) <= 0.99
        for true, each in ((norm**2, np.square(norms.value)), (trace, np.asarray(traces.value))):
            assert abs(np.mean(each) - true) < 4 * np.std(each) / np.sqrt(repeats)
        assert np.all(np.asarray(norms.num_products) == num_products)


def test_an_interval_without_width_holds_the_truth():
    spanned = spectrum(np.r_[5.0, -5.1, 0.3, np.zeros(37)]).astype(np.float32)  # by the sketch
    matrices = {10: spanned, 0: np.eye(40, dtype=np.float32) * 0.3}  # all terms are equal

    def run(key, rank):
        arguments = quadratic(matrices[rank]), jnp.zeros(40), (), key
        return (
            cv.frobenius_estimate(*arguments, num_products=30, rank=rank),
            cv.trace_estimate(*arguments, num_products=30, rank=rank),
        )

    def both(keys):
        return {rank: jax.vmap(partial(run, rank=rank))(keys) for rank in matrices}

    for rank, found in jax.jit(both)(jax.random.split(KEY, 50)).items():
        exact = matrices[rank].astype(np.float64)
        for true, made in zip((np.linalg.norm(exact), np.trace(exact)), found, strict=True):
            low, high = (np.asarray(bound, np.float64) for bound in made.interval)
            assert np.all((low <= true) & (true <= high))
            assert np.all(high - low < 1e-4 * np.linalg.norm(exact))


def test_norms_have_gradients_where_the_curvature_is_zero():
    def loss(w, batch):
        return jnp.sum(w) + jnp.sum(w[:2] ** 3)

    def norms(w):
        return (
            cv.frobenius(loss, w, ()).value,
            cv.frobenius_estimate(loss, w, (), KEY, num_products=30).value,
            cv.frobenius_estimate(loss, w, (), KEY, num_products=30, rank=0).value,
        )

    at_zero, beside = (
        fast(jax.jacrev(norms))(w) for w in (jnp.zeros(4), jnp.asarray([0.5, 0.0, 0.2, 0.1]))
    )
    for zero, other in zip(at_zero, beside, strict=True):
        np.testing.assert_array_equal(zero, 0)
        np.testing.assert_allclose(other, [6.0, 0, 0, 0], rtol=1e-5)  # of |6 w_0|, by hand
    trace = fast(
        jax.grad(lambda w: cv.trace_estimate(loss, w, (), KEY, num_products=30, rank=3).value)
    )
    np.testing.assert_allclose(trace(jnp.asarray([0.5, 0.0, 0.2, 0.1])), [6.0, 6, 0, 0], rtol=1e-5)


def test_no_interval_from_few_products():
    matrix = spectrum(np.arange(1.0, 9.0))
    for count in (9, 29):
        for estimate in (cv.frobenius_estimate, cv.trace_estimate):
            got = jax.eval_shape(
                lambda key, estimate=estimate, count=count: estimate(
                    quadratic(matrix), jnp.zeros(8), (), key, num_products=count
                ),
                jax.random.key(0),
            )
            assert got.interval is None


def test_the_stopping_rule_stops_at_one_percent():
    values = np.r_[8.0, 5.0, 3.0, np.linspace(0.1, 1.0, 57)]
    matrix, true = spectrum(values).astype(np.float32), np.linalg.norm(values)

    def run(key, most=4000):
        return cv.frobenius_estimate(
            quadratic(matrix), jnp.zeros(60), (), key, num_products=most, rank=10, tolerance=0.01
        )

    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 100))
    assert np.all(found.converged) and np.all(found.num_products < 4000)
    assert np.all(found.num_products >= 30)
    assert np.mean(np.abs(found.value / true - 1) <= 0.01) >= 0.91
    short = jax.jit(lambda key: run(key, 40))(jax.random.key(1))
    assert not short.converged and short.num_products == 40


def test_estimates_agree_with_the_matrix(known):
    with jax.enable_x64(True):
        layers, batch, matrices = known
        full, key = matrices["hvp"], jax.random.key(5)

        def run(layers):
            return (
                cv.frobenius_estimate(MODEL, layers, batch, key, num_products=60),
                cv.trace_estimate(MODEL, layers, batch, key, num_products=60),
                cv.diagonal_estimate(MODEL, layers, batch, key, num_products=400),
            )

        norm, trace, diagonal = fast(run)(layers)
        assert abs(norm.value - np.linalg.norm(full)) < 4 * norm.std_error + 1e-9
        assert abs(trace.value - np.trace(full)) < 4 * trace.std_error + 1e-9
        assert trace.interval[0] < trace.value < trace.interval[1]
        flat, error = (
            np.concatenate([np.asarray(d).reshape(-1) for d in jax.tree.leaves(t)])
            for t in diagonal
        )
        assert np.mean(np.abs(flat - np.diag(full)) < 3 * error) > 0.95
        assert np.linalg.norm(flat - np.diag(full)) < 0.3 * np.linalg.norm(np.diag(full))


def test_eigenvalues(known):
    with jax.enable_x64(True):
        layers, batch, matrices = known
        exact = np.linalg.eigvalsh(matrices["hvp"])

        def run(layers, key):
            return (
                cv.top_eigenvalues(MODEL, layers, batch, key, num=3),
                cv.top_eigenvalues(MODEL, layers, batch, key, num=2, num_steps=40, smallest=True),
                cv.power_iteration(MODEL, layers, batch, key, num_steps=500, tolerance=1e-8),
            )

        top, low, power = fast(run)(layers, jax.random.key(2))
        np.testing.assert_allclose(top.values, exact[::-1][:3], rtol=1e-8)
        np.testing.assert_allclose(low.values, exact[:2], rtol=1e-6)
        np.testing.assert_allclose(power.values, exact[-1:], rtol=1e-8)
        for pairs in (top, low, power):
            vectors = np.concatenate(
                [
                    np.asarray(v).reshape(len(pairs.values), -1)
                    for v in jax.tree.leaves(pairs.vectors)
                ],
                1,
            )
            error = np.linalg.norm(
                vectors @ matrices["hvp"] - np.asarray(pairs.values)[:, None] * vectors, axis=1
            )
            np.testing.assert_allclose(error, pairs.residuals, atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-10)


def test_lanczos_makes_no_ghosts():
    values = np.r_[100.0, 50.0, np.linspace(0, 1, 58)].astype(np.float32)
    loss = quadratic(spectrum(values).astype(np.float32))
    many = jax.jit(lambda: cv.top_eigenvalues(loss, jnp.zeros(60), (), KEY, num=4, num_steps=55))()
    np.testing.assert_allclose(many.values[:2], [100.0, 50.0], rtol=1e-4)
    assert many.values[2] < 1.001  # without reorthogonalization 100 comes again


@pytest.mark.parametrize("smallest", [False, True])
def test_lanczos_goes_on_where_one_vector_reaches_no_more(smallest):
    # a diagonal of one number, of none, and of three numbers, two of them many times
    spectra = jnp.stack([jnp.full(9, -2.0), jnp.zeros(9), jnp.asarray([3.0] * 4 + [2] + [-1] * 4)])

    def run(diagonal):
        loss = lambda w, batch: 0.5 * jnp.sum(diagonal * w**2)  # noqa: E731
        return cv.top_eigenvalues(loss, jnp.zeros(9), (), KEY, num=7, smallest=smallest)

    alone = [jax.jit(run)(d) for d in spectra]
    together = jax.jit(jax.vmap(run))(spectra)
    for index, (diagonal, found) in enumerate(zip(np.asarray(spectra), alone, strict=True)):
        wanted = np.sort(diagonal)[:7] if smallest else np.sort(diagonal)[::-1][:7]
        np.testing.assert_allclose(found.values, wanted, atol=5e-6)
        np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(7), atol=5e-6)
        error = found.vectors * diagonal - found.values[:, None] * found.vectors
        assert np.all(np.linalg.norm(error, axis=1) <= found.residuals + 1e-5)
        np.testing.assert_allclose(together.values[index], wanted, atol=5e-6)


def test_the_smallest_eigenvalues_where_few_samples_leave_a_penalty_alone():
    layers, batch = network(WIDTHS, dtype=jnp.float32), data(2, WIDTHS[0], WIDTHS[-1], jnp.float32)
    found = jax.jit(
        lambda p: (
            cv.top_eigenvalues(MODEL, p, batch, KEY, num=3, smallest=True, product=cv.ggn_vp).values
        )
    )(layers)
    np.testing.assert_allclose(found, 0.05, rtol=1e-4)


def test_lanczos_at_many_weights():
    diagonal = jnp.linspace(0.0, 1.0, 100_000).at[:3].set(jnp.asarray([10.0, 9.0, 8.0]))
    loss = lambda w, batch: 0.5 * jnp.sum(diagonal * w**2)  # noqa: E731
    found = jax.jit(lambda p: cv.top_eigenvalues(loss, p, (), KEY, num=4, num_steps=16))(
        jnp.zeros(100_000)
    )
    np.testing.assert_allclose(found.values[:3], [10.0, 9.0, 8.0], rtol=1e-5)
    error = jnp.linalg.norm(
        diagonal * found.vectors - found.values[:, None] * found.vectors, axis=1
    )
    np.testing.assert_allclose(error, found.residuals, rtol=1e-3, atol=1e-4)
    assert found.residuals[3] > 1e-3  # the bulk is not resolved by so few steps, and it says so


@pytest.mark.slow
def test_spectral_density_at_many_weights():
    diagonal = jnp.linspace(0.0, 1.0, 1_000_000)
    loss = lambda w, batch: 0.5 * jnp.sum(diagonal * w**2)  # noqa: E731
    found = jax.jit(lambda p: cv.spectral_density(loss, p, (), KEY, num_probes=1, num_steps=5))(
        jnp.zeros(1_000_000)
    )
    nodes, weights = np.polynomial.legendre.leggauss(5)  # of the uniform density
    np.testing.assert_allclose(found.nodes[0], (nodes + 1) / 2, atol=5e-3)
    np.testing.assert_allclose(found.weights[0], weights / 2, atol=5e-3)


def test_spectral_density(known):
    with jax.enable_x64(True):
        layers, batch, matrices = known
        exact, num_probes = np.linalg.eigvalsh(matrices["hvp"]), 200
        found = fast(
            lambda p, key: cv.spectral_density(MODEL, p, batch, key, num_probes=num_probes)
        )(layers, jax.random.key(0))
        np.testing.assert_allclose(np.sum(found.weights, 1), 1, rtol=1e-10)
        assert abs(np.trapezoid(found.density, found.grid) - 1) < 1e-3
        for power in (1, 2, 3, 4):
            each = np.sum(found.weights * found.nodes**power, 1)
            error = np.std(each, ddof=1) / np.sqrt(num_probes)
            assert abs(np.mean(each) - np.mean(exact**power)) < 3 * error
            assert error < 0.1 * np.mean(np.abs(exact) ** power)
        grid = np.asarray(found.grid)
        sigma = (np.max(found.nodes) - np.min(found.nodes)) / 100
        smooth = np.exp(-0.5 * ((grid[:, None] - exact) / sigma) ** 2).sum(1)
        smooth /= np.trapezoid(smooth, grid)
        assert np.trapezoid(np.abs(smooth - found.density), grid) < 0.08


@pytest.mark.parametrize("value", [-2.0, 0.0])
def test_spectral_density_of_one_eigenvalue(value):
    found = jax.jit(
        lambda p: cv.spectral_density(
            lambda w, batch: 0.5 * value * jnp.sum(w**2), p, (), KEY, num_probes=3
        )
    )(jnp.zeros(9))
    np.testing.assert_allclose(found.nodes, value, atol=5e-6)
    np.testing.assert_allclose(np.sum(found.weights, 1), 1, rtol=1e-5)
    sigma = max(abs(value), 1) / 100
    np.testing.assert_allclose(found.grid[jnp.asarray([0, -1])], value + np.r_[-5, 5] * sigma, 1e-4)
    assert abs(np.trapezoid(found.density, found.grid) - 1) < 1e-3


def test_samples_in_chunks_change_nothing_and_bound_the_memory():
    layers = network((6, 40, 3), dtype=jnp.float32)
    batch, wide = data(1100, 6, 3, jnp.float32), loss_of(MODEL)
    narrow, key = cv.chunked_loss(MODEL, 100), jax.random.key(0)
    few = jax.tree.map(lambda x: x[:130], batch)  # a whole part and a rest
    wanted, got = (
        fast(
            lambda p, loss=loss: (
                loss(p, few),
                cv.hvp(loss, p, few, p),
            )
        )(layers)
        for loss in (wide, narrow)
    )
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def top(loss, p):
        return cv.top_eigenvalues(loss, p, batch, key, num=1, num_steps=4).values

    whole, parts = (
        jax.jit(partial(top, loss)).lower(layers).compile().memory_analysis()
        for loss in (wide, narrow)
    )
    assert parts.temp_size_in_bytes < 0.4 * whole.temp_size_in_bytes


@fast
def derived(logits, label):
    """Return the cross-entropy of one sample with its first two derivatives."""
    loss = cv.softmax_cross_entropy
    return loss(logits, label), jax.grad(loss)(logits, label), jax.hessian(loss)(logits, label)


def test_a_label_that_is_no_class_is_no_number():
    logits = jnp.asarray([0.5, -1.0, 2.0])
    for label, lost in ((-1, True), (0, False), (2, False), (3, True)):
        made = derived(logits, label)
        assert all(bool(np.all(np.isnan(x))) == lost for x in made)
        assert all(bool(np.all(np.isfinite(x))) != lost for x in made)


def test_a_masked_class_has_no_part():
    logits, kept = jnp.asarray([1.0, 2.0, -jnp.inf]), jnp.asarray([1.0, 2.0])
    for label in (0, 1):
        for got, true in zip(derived(logits, label), derived(kept, label), strict=True):
            part = np.asarray(got)[(slice(2),) * got.ndim]
            np.testing.assert_allclose(part, true, rtol=1e-6)
            assert np.sum(np.abs(got)) == np.sum(np.abs(part))


def test_student_is_right():
    for freedom, exact in ((3, 3.182), (9, 2.262), (29, 2.045), (199, 1.972)):
        assert abs(student(0.95, freedom) / exact - 1) < 0.02


BAD = {
    r"loss returned an array of shape \(12, 3\).*expected one real number": lambda p, b: (
        cv.frobenius(lambda q, batch: forward(jnp.tanh, q, batch[0]), p, b)
    ),
    r"loss returned an array of shape \(\).*expected the losses of the samples": lambda p, b: (
        cv.fisher_vp(loss_of(PLAIN), p, b, p)
    ),
    r"params\['1.bias'\] is not finite": lambda p, b: cv.frobenius(
        MODEL, [p[0], {"kernel": p[1]["kernel"], "bias": jnp.full(3, jnp.nan)}], b
    ),
    r"params has leaves of float32 .*and bfloat16 .*expected one dtype": lambda p, b: cv.frobenius(
        MODEL, [p[0], jax.tree.map(lambda w: w.astype(jnp.bfloat16), p[1])], b
    ),
    "params has no leaves": lambda p, b: cv.frobenius(MODEL, [], b),
    r"params\['n'\] has dtype int32": lambda p, b: cv.frobenius(
        loss_of(PLAIN), {"n": jnp.arange(3, dtype=jnp.int32)}, b
    ),
    "memory is 1000 bytes, expected at least .* for a matrix of 43 x 43 .*or use frobenius": lambda p, b: (
        cv.hessian(MODEL, p, b, memory=1000)
    ),
    "memory is 1000 bytes, expected at least .*pass memory=": lambda p, b: cv.frobenius(
        MODEL, p, b, memory=1000
    ),
    "its two parts, because Gauss-Newton": lambda p, b: cv.frobenius(
        loss_of(PLAIN), p, b, gauss_newton=True
    ),
    "rank is 5, expected at most 4": lambda p, b: cv.frobenius_estimate(
        MODEL, p, b, jax.random.key(0), num_products=10, rank=5
    ),
    "num_products is 20, expected at least 30 with a tolerance": lambda p, b: cv.frobenius_estimate(
        MODEL, p, b, jax.random.key(0), num_products=20, tolerance=0.01
    ),
    "num is 50, expected at most 10": lambda p, b: cv.top_eigenvalues(
        MODEL, p, b, jax.random.key(0), num=50, num_steps=10
    ),
    "layers has 'out', expected names among": lambda p, b: cv.frobenius(
        MODEL, p, b, layers=["out"]
    ),
    "layers has 'in', expected names among": lambda p, b: cv.frobenius(
        loss_of(PLAIN), p, b, layers=["in"]
    ),
    r"layers is '1', expected a list of names among \['0', '1'\]": lambda p, b: cv.frobenius(
        MODEL, p, b, layers="1"
    ),
    r"layers is \[\], expected a list of names": lambda p, b: cv.frobenius(MODEL, p, b, layers=[]),
    r"layers is \(\), expected a list of names": lambda p, b: cv.frobenius_columns(
        loss_of(PLAIN), p, b, layers=()
    ),
    rf"label is an array of shape \(3,\) and dtype {jnp.result_type(float)}, expected the index of a class": (
        lambda p, b: cv.frobenius(MODEL, p, (b[0], jax.nn.one_hot(b[1], 3)))
    ),
    r"label is an array of shape \(3,\) and dtype int32, .*pass jnp.argmax\(labels, -1\)": (
        lambda p, b: cv.frobenius(MODEL, p, (b[0], jax.nn.one_hot(b[1], 3, dtype=jnp.int32)))
    ),
    r"label is an array of shape \(\) and dtype float32, .*astype": lambda p, b: cv.frobenius(
        MODEL, p, (b[0], b[1].astype(jnp.float32))
    ),
    r"loss of one sample returned an array of shape \(3,\)": lambda p, b: cv.frobenius(
        cv.Layered(MODEL.forward, lambda z, example: (z - 1) ** 2), p, b
    ),
    r"loss of one sample returned an array of shape \(3,\) .*expected one real": lambda p, b: (
        cv.frobenius_columns(cv.Layered(MODEL.forward, lambda z, example: (z - 1) ** 2), p, b)
    ),
    "batch has arrays of shapes .* a leading axis": lambda p, b: cv.frobenius(
        MODEL, p, (b[0], b[1][:3])
    ),
    "logits has shape .* expected at least two classes": lambda p, b: cv.frobenius(
        MODEL, network((4, 1), dtype=jnp.float32), b
    ),
    "layer has arrays of shapes": lambda p, b: cv.frobenius(
        MODEL, [p[0], {"a": p[1], "b": p[1]}], b
    ),
    "loss failed on the given params": lambda p, b: cv.frobenius(MODEL, p[::-1], b),
    r"l2 holds an array of shape \(5,\) .*, expected one number": lambda p, b: cv.frobenius(
        cv.mlp(jnp.tanh, l2=p), p, b
    ),
    "l2 holds nan, expected one number": lambda p, b: cv.frobenius(
        cv.mlp(jnp.tanh, l2=float("nan")), p, b
    ),
    "params is a dict, expected a list or tuple of layers; name its layers": lambda p, b: (
        cv.frobenius(MODEL, {"a": p[0], "b": p[1]}, b)
    ),
    "l2 has the structure": lambda p, b: cv.frobenius(cv.mlp(jnp.tanh, l2={"x": 1.0}), p, b),
    "params.* is used outside of dense": lambda p, b: cv.frobenius_pairs(
        cv.Layered(lambda dense, q, e: forward(jnp.tanh, q, e[0]), MODEL.loss), p, b
    ),
    "loss is <function .*, expected a Layered, because the norm": lambda p, b: cv.frobenius_pairs(
        loss_of(PLAIN), p, b
    ),
    r"loss returned an array of shape \(12,\)": lambda p, b: cv.hvp(
        lambda q, batch: forward(jnp.tanh, q, batch[0])[:, 0], p, b, p
    ),
    "vector is unlike the params": lambda p, b: cv.ggn_vp(MODEL, p, b, p[0]),
    "memory is 99 bytes, expected at least 4128 for 24 vectors of 43 numbers; lower num_steps": (
        lambda p, b: cv.top_eigenvalues(MODEL, p, b, KEY, num=1, memory=99)
    ),
    "memory is 99 bytes, expected at least 6880 for 40 vectors of 43 numbers; lower num_steps": (
        lambda p, b: cv.spectral_density(MODEL, p, b, KEY, memory=99)
    ),
    "memory is 99 bytes, expected at least 10320 for 60 vectors of 43 numbers; lower rank": (
        lambda p, b: cv.trace_estimate(MODEL, p, b, KEY, memory=99)
    ),
    "memory is 98 bytes, expected at least 10320 for 60 vectors of 43 numbers; lower rank": (
        lambda p, b: cv.frobenius_estimate(MODEL, p, b, KEY, memory=98)
    ),
    "memory is 99 bytes, expected at least .* for one column of the Hessian; pass memory=": (
        lambda p, b: cv.frobenius_columns(MODEL, p, b, memory=99)
    ),
    "memory is 99 bytes, expected at least .* for one product; pass memory=.*chunked": (
        lambda p, b: cv.trace(MODEL, p, b, memory=99)
    ),
    "memory is -1, expected a positive number of bytes": lambda p, b: cv.diagonal(
        MODEL, p, b, memory=-1, chunk=7
    ),
    "size is 0": lambda p, b: cv.chunked_loss(MODEL, 0),
    r"target has shape \(\), expected that of the outputs, \(3,\)": lambda p, b: cv.frobenius(
        cv.mlp(jnp.tanh, cv.squared_error), p, b
    ),
    "chunk is 0": lambda p, b: cv.frobenius_columns(MODEL, p, b, chunk=0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_before_anything_compiles(message):
    layers, batch = network(WIDTHS, dtype=jnp.float32), data(M, WIDTHS[0], WIDTHS[-1], jnp.float32)
    with pytest.raises(ValueError, match=message) as caught:
        BAD[message](layers, batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("measure", [cv.trace, cv.hessian, cv.frobenius_columns])
def test_too_little_memory_is_said_before_anything_runs(measure):
    ran = []

    def loss(w, batch):
        jax.debug.callback(lambda: ran.append(1))
        return jnp.sum(w**4)

    with pytest.raises(ValueError, match="memory is 9 bytes"):
        measure(loss, jnp.ones(3), (), memory=9)
    jax.effects_barrier()
    assert not ran
