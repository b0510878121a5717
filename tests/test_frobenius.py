"""Exact Hessian norms against plain autodiff in float64, on every path."""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import curvature as cv
from hypergrad.core import autodiff
from hypergrad.core.flow import elementwise
from hypergrad.curvature.frobenius import plan_layer
from hypergrad.curvature.layers import Layer, Link, links_of, trained_layers
from hypergrad.curvature.models import one_of
from tests.networks import (
    block_squares,
    data,
    dense_hessian,
    entropy,
    fast,
    forward,
    in_float64,
    network,
    sizes_of,
    squares,
)

LAYERED = (cv.frobenius_pairs, cv.frobenius_dense)


class Case(NamedTuple):
    activation: str
    widths: tuple[int, ...]
    samples: int
    bias: bool = True
    frozen: tuple[int, ...] = ()
    l2: float = 0.0
    loss: str = "entropy"
    wide: bool = True


CASES = [
    Case("relu", (5, 3), 1),
    Case("tanh", (4, 5, 3), 300, bias=False, wide=False),
    Case("gelu", (4, 6, 5, 3), 20, frozen=(0,), l2=0.05, wide=False),
    Case("relu", (4, 5, 3), 40, l2=0.02),
    Case("tanh", (3, 6, 4, 5, 2), 7, frozen=(1,), loss="squares"),
    Case("relu", (6, 4), 300, wide=False),
    Case("relu", (3, 5, 4, 4, 2), 12, frozen=(2,), wide=False),
]
CASES = {f"{c.activation}-{len(c.widths) - 1}-m{c.samples}": c for c in CASES}


def marked(names, slow):
    """Return the parameters of a test, those that are covered in kind by the others as slow ones."""
    return [pytest.param(n, marks=pytest.mark.slow if n in slow else ()) for n in names]


@pytest.mark.parametrize("name", marked(CASES, ["relu-4-m12", "gelu-3-m20", "tanh-4-m7"]))
def test_every_path_is_exact(name):
    case = CASES[name]
    with jax.enable_x64(True):
        dtype = jnp.float64 if case.wide else jnp.float32
        activation, labels = (
            getattr(jnp if case.activation == "tanh" else jax.nn, case.activation),
            case.loss == "entropy",
        )
        layers = network(case.widths, case.bias, dtype)
        batch = data(case.samples, case.widths[0], case.widths[-1], dtype, labels=labels)
        trained = {str(i): layer for i, layer in enumerate(layers) if i not in case.frozen}

        def build(trained, like):
            return [trained.get(str(i), layer) for i, layer in enumerate(like)]

        each = cv.softmax_cross_entropy if labels else cv.squared_error
        plain = cv.mlp(activation, each)
        model = cv.Layered(
            lambda dense, params, example: plain.forward(dense, build(params, layers), example),
            plain.loss,
            case.l2,
        )

        def reference(params):
            whole, (x, y) = build(params, in_float64(layers)), in_float64(batch)
            value = (entropy if labels else squares)(forward(activation, whole, x), y)
            return value + 0.5 * case.l2 * sum(jnp.sum(w**2) for w in jax.tree.leaves(params))

        matrix = dense_hessian(reference, in_float64(trained))
        expected = block_squares(matrix, sizes_of(list(trained.values())))
        tolerance = 1e-10 if case.wide else 1e-5
        paths = (*LAYERED, cv.frobenius_columns, cv.frobenius)
        found = fast(lambda p: [path(model, p, batch) for path in paths])(trained)
        # each block to the tolerance of its own norm; rounding leaves a little of the whole in a small one
        norms = np.sqrt(expected)
        allowed = tolerance * (norms + 0.01 * np.linalg.norm(norms))
        for path, got in zip(paths, found, strict=True):
            assert abs(got.value / np.linalg.norm(matrix) - 1) < tolerance, path.__name__
            assert np.all(np.abs(np.sqrt(got.blocks) - norms) < allowed), path.__name__
        assert cv.layer_names(model, trained, batch) == list(trained)


def residual():
    """A residual network with a normalization, two parallel layers, a lone bias and a frozen kernel."""
    parts = network((5, 4, 4, 4, 4, 3), seed=3)
    first, left, right, middle, last = parts
    frozen = middle["kernel"]
    params = {
        "a": (first["kernel"], first["bias"]),
        "left": left["kernel"],
        "right": right,
        "shift": middle["bias"],
        "z": last,
    }

    def run(dense, params, example):
        h = jax.nn.gelu(dense(params["a"], example[0]))
        h = h + jnp.tanh(dense(params["left"], h)) + jax.nn.softplus(dense(params["right"], h))
        h = (h - h.mean()) / jnp.sqrt(h.var() + 0.1)
        h = h * jax.nn.sigmoid(dense((frozen, params["shift"]), h))
        return dense(params["z"], h)

    model = cv.Layered(run, lambda z, example: cv.softmax_cross_entropy(z, example[1]))
    return model, params, data(6, 5, 3)


@pytest.mark.slow
def test_any_graph_of_layers_and_its_gauss_newton_matrix():
    with jax.enable_x64(True):
        model, params, batch = residual()
        order = cv.layer_names(model, params, batch)
        assert order == ["a", "left", "right", "shift", "z"]
        sizes = sizes_of([params[name] for name in order])
        matrix = dense_hessian(lambda p: cv.models.loss_of(model)(p, batch), params)
        expected = block_squares(matrix, sizes)
        composed = cv.models.composed_of(model)

        def newton(params):
            made = composed.outputs(params, batch)
            inner = jax.hessian(lambda z: composed.convex((z, params), batch))(made[0])
            jacobian = jax.jacfwd(lambda p: composed.outputs(p, batch)[0])(params)
            columns = [j.reshape(made[0].size, -1) for j in jax.tree.leaves(jacobian)]
            flat = jnp.concatenate(columns, 1)
            return flat.T @ inner.reshape(made[0].size, -1) @ flat

        expected_newton = block_squares(np.asarray(fast(newton)(params)), sizes)

        def run(params):
            full = [path(model, params, batch) for path in LAYERED]
            return full, cv.frobenius(model, params, batch, gauss_newton=True)

        full, bent = fast(run)(params)
        for got, blocks in [*((r, expected) for r in full), (bent, expected_newton)]:
            np.testing.assert_allclose(got.blocks, blocks, rtol=1e-10, atol=1e-12 * blocks.max())


@pytest.mark.slow
@pytest.mark.parametrize("gauss_newton", [False, True], ids=["hessian", "gauss-newton"])
def test_a_unit_at_a_time_and_with_a_penalty_it_is_the_same_matrix(gauss_newton):
    with jax.enable_x64(True):
        layers, batch, model = network((3, 4, 3)), data(6, 3, 3), cv.mlp(jnp.tanh, l2=0.05)
        if gauss_newton:
            jacobian = fast(jax.jacfwd(lambda p: forward(jnp.tanh, p, batch[0])))(layers)
            flat = np.concatenate([np.reshape(j, (6, 3, -1)) for j in jax.tree.leaves(jacobian)], 2)
            p = np.asarray(jax.nn.softmax(forward(jnp.tanh, layers, batch[0])))
            inner = np.array([np.diag(q) - np.outer(q, q) for q in p]) / 6
            matrix = np.einsum("mca,mcd,mdb->ab", flat, inner, flat) + 0.05 * np.eye(flat.shape[2])
        else:
            matrix = dense_hessian(lambda p: cv.models.loss_of(model)(p, batch), layers)
        expected = block_squares(matrix, sizes_of(layers))

        def small(path, p, b, memory):
            return path(model, p, b, gauss_newton=gauss_newton, memory=memory)

        paths = {path: partial(small, path) for path in LAYERED}
        least = {path: needed(call, layers, batch) for path, call in paths.items()}

        def run(p):
            made = [call(p, batch, least[path]) for path, call in paths.items()]
            return [
                *made,
                cv.frobenius_columns(model, p, batch, gauss_newton=gauss_newton, chunk=7),
            ]

        for got in fast(run)(layers):
            np.testing.assert_allclose(got.blocks, expected, rtol=1e-10)


def test_links_are_found():
    with jax.enable_x64(True):
        model, params, batch = residual()
        layers = trained_layers(model, params, batch)
        assert [at.name for at in layers] == ["a", "left", "right", "shift", "z"]
        none, full = Link.NONE, Link.FULL
        diagonal = Link.DIAGONAL
        assert links_of(model, params, layers, one_of(batch), 0) == [
            none,
            diagonal,
            diagonal,
            none,
            full,
        ]
        assert links_of(model, params, layers, one_of(batch), 1) == [none, none, none, full]
        assert links_of(model, params, layers, one_of(batch), 3) == [none, diagonal]
    x = jnp.ones(3)
    functions = [
        jax.nn.gelu,
        jnp.cumsum,
        lambda z: z[::-1],
        lambda z: z / z.sum(),
        lambda z: jnp.ones(3),
        jax.nn.silu,
    ]
    assert [elementwise(lambda z, f=f: [f(z)], x)[0] for f in functions] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]


@pytest.mark.slow
def test_chunks_change_nothing_and_bound_the_memory():
    layers = network((6, 40, 30, 4), dtype=jnp.float32)
    batch, model = data(64, 6, 4, jnp.float32), cv.mlp(jnp.tanh, l2=0.1)
    values, temporary = [], []
    for memory in (2**28, 1_100_000):
        run = jax.jit(
            lambda p, memory=memory: cv.frobenius_pairs(model, p, batch, memory=memory).value
        )
        compiled = run.lower(layers).compile()
        values.append(float(compiled(layers)))
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert abs(values[0] / values[1] - 1) < 1e-5
    assert temporary[1] < 1_100_000 < temporary[0]


def needed(call, layers, batch):
    """Return the bytes that a call says it needs, where it has none."""
    with pytest.raises(ValueError, match=r"memory is 1 bytes") as caught:
        jax.eval_shape(lambda p, b: call(p, b, 1), layers, batch)
    words = str(caught.value).split()
    return int(words[words.index("least") + 1])


def bounded(model, size=32):
    """Return calls that must do with the bytes that they say they need."""
    plain = cv.models.loss_of(model)
    losses = {
        "plain": plain,
        "jit": jax.jit(plain),
        "checkpoint": jax.checkpoint(plain),
        "chunked": cv.chunked_loss(plain, size),
        "chunked jit": cv.chunked_loss(jax.jit(plain), size),
    }
    calls = {
        f"columns of {name}": lambda p, b, memory, loss=loss: cv.frobenius_columns(
            loss, p, b, memory=memory
        )
        for name, loss in losses.items()
    }
    others = (*LAYERED, cv.frobenius, cv.sample_pairs, cv.hessian, cv.difference_hessian)
    return calls | {
        path.__name__: lambda p, b, memory, path=path: path(model, p, b, memory=memory)
        for path in others
    }


@pytest.mark.parametrize(
    "name",
    marked(
        bounded(cv.mlp(jnp.tanh)),
        ["columns of jit", "columns of checkpoint", "columns of chunked jit"],
    ),
)
def test_memory_is_a_bound(name):
    # whatever grows fastest is large: the samples side by side, their pairs, or the pairs of weights
    shapes = {
        "columns": ((6, 16, 4), 400),
        "hessian": ((8, 12, 3), 4000),
        "difference_hessian": ((8, 12, 3), 30),
    }
    widths, samples = shapes.get(name.split()[0], ((6, 16, 12, 4), 256))
    layers = network(widths, dtype=jnp.float32)
    batch, calls = data(samples, widths[0], widths[-1], jnp.float32), bounded(cv.mlp(jnp.tanh))
    call, other = calls[name], "frobenius_dense" if name == "frobenius" else name
    memory = needed(calls[other], layers, batch) * (4 if name.startswith("columns") else 1)
    compiled = fast(lambda p, b: call(p, b, memory)).lower(layers, batch).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= memory


def test_what_fits_no_layered_path_is_left_to_columns():
    with jax.enable_x64(True):
        layers, model = network((5, 8, 3)), cv.mlp(jnp.tanh)
        batch = data(40, 5, 3)
        pairs, tiles, columns = (
            needed(lambda p, b, m, path=path: path(model, p, b, memory=m), layers, batch)
            for path in (*LAYERED, cv.frobenius_columns)
        )
        assert columns < tiles < pairs
        with pytest.warns(
            cv.FallbackWarning,
            match=rf"memory is {tiles - 1} bytes, expected at least {tiles} for 40 samples .*: taking",
        ):
            got = fast(lambda p: cv.frobenius(model, p, batch, memory=tiles - 1))(layers)
        true = fast(lambda p: cv.frobenius_dense(model, p, batch, memory=tiles))(layers)
        np.testing.assert_allclose(got.blocks, true.blocks, rtol=1e-10)
        with pytest.raises(
            ValueError, match=rf"expected at least {columns} .*pass memory={columns}"
        ):
            cv.frobenius(model, layers, batch, memory=columns - 1)


def test_every_product_of_matrices_is_precise():
    layers, batch = network((3, 4, 2), dtype=jnp.float32), data(5, 3, 2, jnp.float32)
    model = cv.mlp(jnp.tanh)
    plain = cv.models.loss_of(model)
    composed = cv.Composed(
        lambda p, b: forward(jnp.tanh, p, b[0]), lambda z, b: entropy(z @ jnp.eye(2), b[1])
    )
    runs = {
        "hvp": lambda p: cv.hvp(
            lambda p, b: entropy(forward(jnp.tanh, p, b[0]), b[1]), p, batch, p
        ),
        "ggn_vp": lambda p: cv.ggn_vp(composed, p, batch, p),
        "fisher_vp": lambda p: cv.fisher_vp(
            lambda p, b: jnp.sum(forward(jnp.tanh, p, b[0]), 1), p, batch, p
        ),
        "hessian": lambda p: cv.hessian(plain, p, batch),
        "columns": lambda p: cv.frobenius_columns(
            lambda p, b: entropy(forward(jnp.tanh, p, b[0]), b[1]), p, batch
        ),
        "newton": lambda p: cv.frobenius_columns(composed, p, batch, gauss_newton=True),
        "frobenius": lambda p: cv.frobenius(model, p, batch),
    }
    highest = jax.lax.Precision.HIGHEST
    for name, run in runs.items():
        made = autodiff.equations(jax.make_jaxpr(run)(layers).jaxpr)
        found = [e.params["precision"] for e in made if e.primitive.name == "dot_general"]
        assert found and all(p == (highest, highest) for p in found), name


@pytest.mark.slow
def test_parts_of_a_batch_and_single_layers():
    with jax.enable_x64(True):
        layers, batch, model = network((5, 4, 3)), data(12, 5, 3), cv.mlp(jax.nn.relu)

        def run(layers):
            part = jax.tree.map(lambda x: x[3:8], batch)
            return (
                cv.sample_pairs(model, layers, batch),
                cv.frobenius(model, layers, part).value,
                cv.frobenius(model, layers, batch),
                cv.frobenius(model, layers, batch, layers=["1"]),
            )

        pairs, of_part, whole, last = fast(run)(layers)
        assert abs(pairs[3:8, 3:8].sum() / 25 / of_part**2 - 1) < 1e-10
        assert (
            last.blocks.shape == (1, 1) and abs(last.blocks[0, 0] / whole.blocks[1, 1] - 1) < 1e-12
        )
        # the closed form of the last layer: (1/m²) Σ_ij (ã_i·ã_j)² ⟨S_i, S_j⟩
        a = np.maximum(np.asarray(batch[0] @ layers[0]["kernel"] + layers[0]["bias"]), 0)
        p = np.asarray(jax.nn.softmax(forward(jax.nn.relu, layers, batch[0])))
        s = np.array([np.diag(q) - np.outer(q, q) for q in p]).reshape(12, -1)
        closed = np.sum((a @ a.T + 1) ** 2 * (s @ s.T)) / 144
        assert abs(last.value**2 / closed - 1) < 1e-10


@pytest.mark.slow
def test_confident_networks_do_not_cancel():
    layers = network((4, 6, 3), dtype=jnp.float32)
    last = {"kernel": 0.2 * layers[1]["kernel"], "bias": jnp.array([15.0, 0.0, 0.5], jnp.float32)}
    layers, labels = [layers[0], last], jnp.zeros(8, jnp.int32)
    batch = (data(8, 4, 3, jnp.float32)[0], labels)
    with jax.enable_x64(True):
        wide, (x, y) = in_float64(layers), in_float64(batch)
        matrix = dense_hessian(lambda p: entropy(forward(jnp.tanh, p, x), y), wide)

    def error(each):
        norm = fast(lambda p: cv.frobenius(cv.mlp(jnp.tanh, each), p, batch).value)(layers)
        return abs(float(norm) / np.linalg.norm(matrix) - 1)

    assert error(cv.softmax_cross_entropy) < 1e-5
    assert error(lambda z, label: -jax.nn.log_softmax(z)[label]) > 1e-3


def test_populations_gradients_and_one_trace():
    with jax.enable_x64(True):
        batch, traces = data(9, 3, 3), []

        def activation(z):
            traces.append(1)
            return jnp.tanh(z)

        model = cv.mlp(activation, l2=0.1)
        members = [network((3, 4, 3), seed=s) for s in range(3)]
        stacked = jax.tree.map(lambda *w: jnp.stack(w), *members)
        single = fast(lambda p: cv.frobenius_pairs(model, p, batch).value)
        values = np.array([single(p) for p in members])
        count = len(traces)
        single(members[0])
        assert len(traces) == count
        many = fast(jax.vmap(lambda p: cv.frobenius_pairs(model, p, batch).value))(stacked)
        np.testing.assert_allclose(many, values, rtol=1e-12)
        gradient = fast(jax.grad(lambda p: cv.frobenius_pairs(model, p, batch).value))(members[0])
        direction = network((3, 4, 3), seed=9)
        ahead, back = (
            single(jax.tree.map(lambda w, d, s=s: w + s * d, members[0], direction))
            for s in (1e-5, -1e-5)
        )
        slope = sum(
            jnp.vdot(g, d)
            for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        assert abs(slope / ((ahead - back) / 2e-5) - 1) < 1e-6


def test_shared_weights_fall_back_to_columns_and_say_so():
    with jax.enable_x64(True):
        layers, batch = network((4, 4, 3)), data(5, 4, 3)

        def run(dense, params, example):
            h = jnp.tanh(dense(params[0], example[0]))
            return dense(params[1], jnp.tanh(dense(params[0], h)))

        model = cv.Layered(run, lambda z, example: cv.softmax_cross_entropy(z, example[1]))
        with pytest.warns(
            cv.FallbackWarning,
            match=r"params\['0.bias'\] is used in 2 layers: taking frobenius_columns",
        ):
            got = fast(lambda p: cv.frobenius(model, p, batch))(layers)
        matrix = dense_hessian(lambda p: cv.models.loss_of(model)(p, batch), layers)
        np.testing.assert_allclose(got.blocks, block_squares(matrix, sizes_of(layers)), rtol=1e-10)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fast(lambda p: cv.frobenius(cv.mlp(jnp.tanh), p, batch).value)(layers)


def read_by(how):
    """Return a model that reads one sample of tokens `[5, 4]` with one layer, written in one of many ways."""

    def run(dense, params, example):
        def read(token):
            return jnp.tanh(dense(params["read"], token))

        tokens = example[0]
        hidden = {
            "matrix": lambda: jnp.mean(read(tokens), 0),
            "vmap": lambda: jnp.mean(jax.vmap(read)(tokens), 0),
            "scan": lambda: jax.lax.scan(
                lambda carry, token: (carry + read(token), None), jnp.zeros(4), tokens
            )[0],
            "jit": lambda: jax.jit(read)(tokens[0]),
            "checkpoint": lambda: jax.checkpoint(read)(tokens[0]),
        }[how]()
        return dense(params["out"], hidden)

    return cv.Layered(run, lambda z, example: cv.softmax_cross_entropy(z, example[1]))


@pytest.mark.parametrize(
    "how", marked(["matrix", "vmap", "scan", "jit", "checkpoint"], ["scan", "checkpoint"])
)
def test_a_layer_within_another_transformation_falls_back(how):
    with jax.enable_x64(True):
        read, out = network((4, 4, 3))
        params, model = {"read": read["kernel"], "out": out}, read_by(how)
        x, y = data(30, 4, 3)
        batch, reason = (x.reshape(6, 5, 4), y[:6]), "inputs of shape" if how == "matrix" else how
        matrix = dense_hessian(lambda p: cv.models.loss_of(model)(p, batch), params)
        expected = block_squares(matrix, [15, 16])

        def run(params):
            whole = cv.frobenius(model, params, batch)
            if how != "vmap":
                return (whole,)
            first = cv.frobenius(model, params, batch, layers=["read"])
            return whole, first, cv.last_layer(model, params, batch)

        with pytest.warns(
            cv.FallbackWarning,
            match=rf"params\['read'\] meets .*{reason}.*: taking frobenius_columns",
        ):
            whole, *alone = fast(run)(params)
        np.testing.assert_allclose(whole.blocks, expected, rtol=1e-10)
        for got in alone:
            first = isinstance(got, cv.Frobenius)
            square = got.blocks[0, 0] if first else got**2
            np.testing.assert_allclose(square, expected[int(first), int(first)], rtol=1e-10)
        with pytest.raises(ValueError, match=r"meets .*, expected .*use frobenius_columns"):
            cv.frobenius_pairs(model, params, batch)


@jax.custom_vjp
def backwards_only(z):
    return jnp.tanh(z)


backwards_only.defvjp(lambda z: (jnp.tanh(z), z), lambda z, g: (g * (1 - jnp.tanh(z) ** 2),))


def test_without_forward_derivatives_columns_are_taken():
    with jax.enable_x64(True):
        layers, batch = network((4, 5, 3)), data(7, 4, 3)
        wanted, narrow = (cv.mlp(f) for f in (jnp.tanh, backwards_only))
        with pytest.warns(cv.FallbackWarning, match="jax.custom_vjp in it: taking frobenius_col"):
            got, true = fast(
                lambda p: [cv.frobenius(model, p, batch).blocks for model in (narrow, wanted)]
            )(layers)
        np.testing.assert_allclose(got, true, rtol=1e-10)
        with pytest.raises(ValueError, match=r"loss failed .*custom_vjp"):
            cv.frobenius_columns(narrow, layers, batch, gauss_newton=True)


@pytest.mark.slow
def test_chosen_layers_are_the_same_submatrix_on_every_path():
    with jax.enable_x64(True):
        layers, batch, model = network((4, 5, 4, 3)), data(6, 4, 3), cv.mlp(jnp.tanh)
        plain, some = cv.models.loss_of(model), ["2", "0"]
        squares = block_squares(dense_hessian(lambda p: plain(p, batch), layers), sizes_of(layers))

        def run(layers):
            return [
                cv.frobenius(plain, layers, batch, layers=some),
                cv.frobenius_columns(model, layers, batch, layers=some),
                *(path(model, layers, batch, layers=some) for path in LAYERED),
            ]

        for got in fast(run)(layers):
            np.testing.assert_allclose(got.blocks, squares[::2, ::2], rtol=1e-10)
            np.testing.assert_allclose(got.value**2, squares[::2, ::2].sum(), rtol=1e-10)


def test_layers_that_stand_in_one_dict_have_names_of_their_own():
    with jax.enable_x64(True):
        first, last = network((4, 5, 3))
        batch = data(6, 4, 3)
        net = {
            "w1": first["kernel"],
            "b1": first["bias"],
            "w2": last["kernel"],
            "b2": last["bias"],
        }

        def run(dense, params, example):
            of = params["net"]
            hidden = jnp.tanh(dense((of["w1"], of["b1"]), example[0]))
            return dense((of["w2"], of["b2"]), hidden)

        model = cv.Layered(run, lambda z, example: cv.softmax_cross_entropy(z, example[1]))
        assert cv.layer_names(model, {"net": net}, batch) == ["net.w1", "net.w2"]
        got, true = fast(
            lambda net, layers: (
                cv.last_layer(model, {"net": net}, batch),
                cv.last_layer(cv.mlp(jnp.tanh), layers, batch),
            )
        )(net, [first, last])
        np.testing.assert_allclose(got, true, rtol=1e-12)


def test_an_array_without_entries_counts_nothing():
    with jax.enable_x64(True):
        layers, batch = network((3, 2)), data(4, 3, 2)
        plain = cv.models.loss_of(cv.mlp(jnp.tanh))
        whole = {"net": layers, "none": jnp.zeros((0,))}
        columns, known, trace, differences = fast(
            lambda whole: (
                cv.frobenius_columns(lambda p, b: plain(p["net"], b), whole, batch),
                cv.frobenius_columns(plain, whole["net"], batch).value,
                cv.trace(lambda w, b: jnp.sum(w), whole["none"], ()),
                cv.difference_hessian(lambda w, b: jnp.sum(w), whole["none"], ()),
            )
        )(whole)
        np.testing.assert_allclose(columns.value, known, rtol=1e-12)
        assert not columns.blocks[1].any() and not columns.blocks[:, 1].any() and trace == 0
        assert differences.shape == (0, 0)


def test_one_class_and_one_dtype_down():
    layers, batch = network((4, 5, 3), dtype=jnp.bfloat16), data(6, 4, 3, jnp.bfloat16)
    single = (batch[0], jnp.zeros_like(batch[1]))
    got = fast(lambda p: cv.frobenius(cv.mlp(jnp.tanh), p, single).value)(layers)
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), layers)
    columns = fast(
        lambda p: (
            cv.frobenius_columns(
                cv.mlp(jnp.tanh), p, (single[0].astype(jnp.float32), single[1])
            ).value
        )
    )(wide)
    assert got.dtype == jnp.float32 and abs(got / columns - 1) < 1e-5


def test_the_cost_model_switches():
    layers = [Layer("a", 0, 0, 1, 4, 5), Layer("b", 1, 2, 3, 200, 300)]
    none, diagonal, full = Link.NONE, Link.DIAGONAL, Link.FULL
    few, many = (plan_layer(layers, 0, [none, full], m, 4, 2**30, None) for m in (16, 4096))
    assert few.by_pairs == [True, True]
    assert many.by_pairs == [False, False]
    assert plan_layer(layers, 1, [none], 4096, 4, 2**30, None).by_pairs == [True]
    assert plan_layer(layers, 1, [none], 4096, 4, 2**27, None).by_pairs == [False]  # do not fit
    # over a diagonal link pairs need no scan: measured at these sizes, many times as fast as tiles
    layers = [Layer("a", 0, 0, 1, 49, 32), Layer("b", 1, 2, 3, 33, 10)]
    by_link = [
        plan_layer(layers, 0, [none, link], 256, 4, 2**30, None).by_pairs[1]
        for link in (none, diagonal, full)
    ]
    assert by_link == [True, True, False]
