import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hypergrad import space as sp
from hypergrad.space import Choice, Integer, LogReal, Real, Sequence

REAL = {
    "lr": Sequence(LogReal(1e-4, 1.0), 20),
    "knots": Sequence(LogReal(1e-4, 1.0), 20, knots=5),
    "down": Sequence(Real(0.5, 2.0), 20, decreasing=True),
    "down_knots": Sequence(LogReal(1e-3, 2.0, shape=(3,)), 21, knots=4, decreasing=True),
    "momentum": Real(0.0, 0.99),
    "nested": {"layers": LogReal(1e-6, 10.0, shape=(2, 3))},
}
MIXED = {
    **REAL,
    "num": Integer(-2, 5),
    "kind": Choice(("a", "b", "c")),
    "width": Integer(3, 9, static=True),
}


TRACED = sp.dynamic(MIXED)


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=5e-6)


@jax.jit
def round_trips(key):
    """A value, and what is left of it after each way there and back."""
    hparams = sp.sample(TRACED, key)
    real = {name: hparams[name] for name in REAL}
    back = sp.from_unit(TRACED, sp.to_unit(TRACED, hparams))
    return hparams, back, real, sp.constrain(REAL, sp.unconstrain(REAL, real))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_round_trips(seed):
    hparams, back, real, again = round_trips(jax.random.key(seed))
    sp.check_value(TRACED, hparams)
    close(back, hparams)
    close(again, real)


def test_static_values_go_both_ways():
    space = {"width": Integer(3, 9, static=True), "act": Choice(("a", "b"), static=True)}
    for u in (0.1, 0.4, 0.9):
        hparams = sp.from_unit(space, jnp.full(2, u))
        assert type(hparams["width"]) is int and type(hparams["act"]) is str
        sp.check_value(space, hparams)
        assert sp.from_unit(space, sp.to_unit(space, hparams)) == hparams


@jax.jit
def at(unit):
    """The value at one unit coordinate for all, and what unconstrained coordinates leave of it."""
    hparams = sp.from_unit(REAL, jnp.full(sp.num_coordinates(REAL), unit))
    return hparams, sp.constrain(REAL, sp.unconstrain(REAL, hparams))


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_exact_at_the_bounds(end):
    hparams, back = at(end)
    for name, dim in (("momentum", REAL["momentum"]), ("lr", REAL["lr"].element)):
        bound = jnp.float32(dim.high if end else dim.low)
        assert jnp.all(hparams[name] == bound), name
    chex.assert_trees_all_equal(hparams, back)


def test_decreasing_never_rises_and_is_sorted_uniform():
    dim = {"b": Sequence(Real(0.0, 1.0), 4, decreasing=True)}
    draws = jax.vmap(lambda k: sp.sample(dim, k)["b"])(jax.random.split(jax.random.key(0), 20000))
    assert jnp.all(jnp.diff(draws, axis=1) <= 0)
    expected = np.array([4, 3, 2, 1]) / 5  # means of the order statistics of four uniforms
    error = np.sqrt(expected * (1 - expected) / 6 / 20000)
    assert np.all(np.abs(draws.mean(0) - expected) < 4 * error)


def test_sampling_is_uniform_in_the_logarithm():
    draws = jax.vmap(lambda k: sp.sample({"x": LogReal(1e-4, 1.0)}, k)["x"])(
        jax.random.split(jax.random.key(1), 20000)
    )
    logs = np.log10(np.asarray(draws))
    assert abs(logs.mean() + 2) < 4 * (4 / np.sqrt(12)) / np.sqrt(20000)
    assert draws.min() >= 1e-4 and draws.max() <= 1.0


def test_integers_and_choices_are_uniform():
    draws = jax.vmap(lambda k: sp.sample({"n": Integer(1, 4), "c": Choice(["abc", "abd"])}, k))(
        jax.random.split(jax.random.key(2), 20000)
    )
    shares = np.bincount(draws["n"], minlength=5)[1:] / 20000
    assert np.all(np.abs(shares - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20000))


def test_knots_interpolate_geometrically():
    dim = {"x": Sequence(LogReal(1e-2, 1.0), 5, knots=2)}
    values = sp.from_unit(dim, jnp.asarray([0.0, 1.0]))["x"]
    np.testing.assert_allclose(values, np.geomspace(1e-2, 1.0, 5), rtol=1e-5)


def test_defaults_and_constant_sampling():
    hparams = sp.default(MIXED)
    sp.check_value(MIXED, hparams)
    assert hparams["width"] == 6 and isinstance(hparams["width"], int)
    flat = sp.sample_constant(REAL, jax.random.key(0))
    assert flat["lr"].shape == (20,) and jnp.all(flat["lr"] == flat["lr"][0])
    sp.check_value(REAL, flat)


def test_gradients_through_constrain_are_finite_everywhere():
    z = jax.tree.map(lambda x: jnp.full_like(x, 30.0), sp.unconstrain(REAL, sp.default(REAL)))
    total = lambda z: sum(jnp.sum(x) for x in jax.tree.leaves(sp.constrain(REAL, z)))  # noqa: E731
    slope = jax.jit(jax.grad(total))
    for sign in (1, -1):
        chex.assert_tree_all_finite(slope(jax.tree.map(lambda x, s=sign: s * x, z)))


def test_schedule_reads_the_last_value_past_the_end():
    at = sp.schedule(jnp.asarray([1.0, 2.0, 3.0]))
    assert [float(at(i)) for i in (0, 2, 9)] == [1.0, 3.0, 3.0]


@pytest.mark.parametrize("function", [sp.constrain, sp.unconstrain, sp.to_unit])
def test_maps_name_a_leaf_of_another_shape(function):
    space = {"lr": LogReal(1e-3, 1.0), "steps": Sequence(Real(0.0, 1.0), length=3)}
    called = "unconstrained" if function is sp.constrain else "hparams"
    with pytest.raises(ValueError, match=rf"{called}\['lr'\] has shape \(2,\), expected \(\)"):
        function(space, {"lr": jnp.ones(2), "steps": jnp.ones(3)})
    with pytest.raises(
        ValueError, match=rf"{called} has the leaves \['lr'\], expected those of the space"
    ):
        function(space, {"lr": jnp.ones(())})
