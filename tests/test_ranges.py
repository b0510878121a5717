"""Every value that a dimension can give is one of its own, ends included; what would not be is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad import space as sp

WIDE = {
    "int32": hg.Integer(2**31 - 9, 2**31 - 1),
    "below": hg.Integer(-(2**31), -(2**31) + 5),
    "many": hg.Integer(-7, 2**22 - 8),
    "real": hg.Real(-1e37, 1e37),
    "small": hg.Real(0.0, 1e-30),
    "log": hg.LogReal(1e-37, 1e37),
    "narrow": hg.LogReal(1.0, 1.001),
    "steps": hg.Sequence(hg.LogReal(1e-37, 1e37), 3),
}


@jax.jit
def there_and_back(units):
    hparams = jax.vmap(lambda unit: sp.from_unit(WIDE, unit))(units)
    again = jax.vmap(lambda one: sp.from_unit(WIDE, sp.to_unit(WIDE, one)))(hparams)
    return hparams, again


def test_the_widest_ranges_give_their_own_values():
    num = sp.num_coordinates(WIDE)
    even = np.linspace(0, 1, 1001)
    below = np.nextafter(np.float32(1), np.float32(0))
    units = np.repeat(np.append(even, below)[:, None], num, 1).astype(np.float32)
    hparams, again = jax.device_get(there_and_back(units))
    for name, dim in WIDE.items():
        bounds = dim.element if isinstance(dim, hg.Sequence) else dim
        low, high = np.float32(bounds.low), np.float32(bounds.high)
        if isinstance(dim, hg.Integer):
            low, high = dim.low, dim.high
        values = hparams[name]
        assert np.all((values >= low) & (values <= high)), name
        assert np.all(values[0] == low) and np.all(values[1000] == high), name
        assert np.all(np.diff(values[:1001], axis=0) >= 0), name
        if isinstance(dim, hg.Integer):
            np.testing.assert_array_equal(again[name], values, name)
        else:
            part = np.abs(again[name] / np.maximum(np.abs(values), 1e-38) - np.sign(values))
            # a share of the range is known to ε, a value to ε times the logarithm of the range
            assert np.median(part) < 3e-5, name
        sp.check_value({name: dim}, {name: values[1000]})
        sp.check_value({name: dim}, sp.default({name: dim}))


def test_every_number_of_the_largest_integer_comes_back():
    dim = {"many": WIDE["many"]}
    numbers = np.arange(-7, 2**22 - 7, dtype=np.int32)

    @jax.jit
    def back(numbers):
        return jax.vmap(lambda n: sp.from_unit(dim, sp.to_unit(dim, {"many": n}))["many"])(numbers)

    np.testing.assert_array_equal(back(numbers), numbers)


def test_unconstrained_coordinates_of_the_widest_ranges_are_finite():
    real = {name: WIDE[name] for name in ("real", "log", "small")}
    start = sp.default(real)
    z = sp.unconstrain(real, start)
    assert all(jnp.isfinite(x) for x in jax.tree.leaves(z))
    back = sp.constrain(real, z)
    np.testing.assert_allclose(back["log"], start["log"], rtol=1e-4)
    np.testing.assert_allclose(back["small"], start["small"], rtol=1e-6)
    assert abs(back["real"]) < 1e31


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (
            lambda: hg.Integer(0, 2**31 - 1),
            "high is 2147483647 in Integer, expected at most low + 41",
        ),
        (lambda: hg.Integer(0, 2**22), "expected at most low + 4194303"),
        (
            lambda: hg.Integer(10**10, 10**10 + 5, static=True),
            "expected a number in [-2147483648, ",
        ),
        (lambda: hg.Integer(0, 10**8), "high is 100000000 in Integer"),
        (lambda: hg.Real(0.0, 1e300), "high is 1e+300 in Real, expected a number in [-1e37, 1e37]"),
        (lambda: hg.Real(-1e38, 3e38), "low is -1e+38 in Real"),
        (lambda: hg.Real(0.0, 1e-39), "where they are one number"),
        (lambda: hg.Real(1.0, 1 + 1e-9), "low < high = 1.000000001 in float32"),
        (lambda: hg.Real(1e8, 1e8 + 1), "where they are one number"),
        (lambda: hg.LogReal(1e-38, 1.0), "low is 1e-38 in LogReal, expected at least 1e-37"),
        (lambda: hg.LogReal(1e-3, 1e38), "high is 1e+38 in LogReal"),
        (lambda: hg.Integer(np.float32(1), 8), "low is np.float32(1.0) in Integer"),
        (lambda: hg.Real(np.True_, 8), "in Real, expected a finite number"),
        (lambda: hg.Real(np.array([1.0]), 8), "low is an array of shape (1,)"),
        (lambda: sp.default({1: hg.Real(0, 1), "a": hg.Real(0, 1)}), "space has the keys [1, 'a']"),
        (
            lambda: sp.default([{"b": {2: hg.Real(0, 1), "a": hg.Real(0, 1)}}]),
            "expected keys of one",
        ),
        (
            lambda: hg.searchers.random({1: hg.Real(0, 1), "a": hg.Real(0, 1)}),
            "space has the keys [1, 'a']",
        ),
    ],
)
def test_what_overflows_is_refused_in_one_line(make, fragment):
    with pytest.raises(ValueError) as caught:
        make()
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def test_scalars_of_numpy_are_numbers():
    assert hg.Integer(np.int64(1), np.int64(8), default=np.int8(3)) == hg.Integer(1, 8, default=3)
    made = hg.Real(np.float32(0.25), np.float64(1), default=np.int32(1), shape=(np.int64(2),))
    assert made == hg.Real(0.25, 1.0, default=1, shape=(2,)) and type(made.low) is float
    steps = hg.Sequence(hg.LogReal(np.float32(0.5), np.int32(4)), np.int64(6), knots=np.int8(3))
    space = {"n": hg.Integer(np.int64(1), np.int64(8)), "r": made, "s": steps}
    described = json.loads(json.dumps(sp.describe_space(space)))
    assert sp.space_from_description(described) == space
