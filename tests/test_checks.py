"""The checks of numbers: what counts as one, and what is said of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.core.checks import (
    check_bytes,
    check_function,
    check_kind,
    check_least,
    check_positive,
    check_share,
    check_whole,
    is_number,
)


def test_numbers_of_python_and_whole_ones_of_numpy_pass():
    for value in (3, np.int8(3), np.uint64(3)):
        made = check_whole("num", value)
        assert made == 3 and type(made) is int
        check_bytes(value)
    for value in (1, 0.5, np.float64(2.0)):
        check_positive("scale", value)
    assert is_number(float("nan")) and is_number(float("inf")) and not is_number(True)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (True, "True"),
        (np.bool_(True), r"an array of shape \(\) and dtype bool"),
        (0, "0"),
        (2.0, "2.0"),
        ("3", "'3'"),
        (None, "None"),
        (jnp.int32(3), r"an array of shape \(\) and dtype int32"),
        (np.ones((2, 3), int), r"an array of shape \(2, 3\) and dtype int64"),
    ],
)
def test_others_are_refused_by_name(value, got):
    message = rf"^num is {got}, expected a whole number of at least 1; pass e.g. num=10$"
    with pytest.raises(ValueError, match=message):
        check_whole("num", value)
    with pytest.raises(ValueError, match="expected a positive number of bytes"):
        check_bytes(value)


def test_a_traced_number_is_not_known_yet():
    with pytest.raises(
        ValueError, match=r"num is an array of shape \(\) and dtype int32, expected"
    ):
        jax.eval_shape(lambda n: check_whole("num", n), jnp.int32(3))


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_positive_numbers_are_finite(value):
    with pytest.raises(
        ValueError, match=r"scale is .*, expected a positive number; pass e.g. scale=0.01"
    ):
        check_positive("scale", value)


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        ("[0, 1]", (0, 0.5, 1, np.float64(1)), (-1e-9, 1.1, float("nan"), True, "0.5", None)),
        ("(0, 1)", (0.5,), (0, 1, np.ones(2))),
        ("(0, 1]", (1e-9, 1), (0, 2)),
        ("[0, 10)", (0, 9.5), (10, -1)),
    ],
)
def test_an_interval_includes_the_ends_that_its_brackets_say(span, inside, outside):
    for value in inside:
        check_share("rho", value, span)
    for value in outside:
        with pytest.raises(ValueError, match=r"^rho is .*, expected a share in .*; pass e.g. 0.1$"):
            check_share("rho", value, span, example=0.1)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, "1", None, np.ones(3)])
def test_a_number_of_at_least_the_least(value):
    check_least("scale", 0)
    message = r"^scale is .*, expected a number of at least 0; pass e.g. 1.0$"
    with pytest.raises(ValueError, match=message):
        check_least("scale", value)


def test_kinds_and_functions():
    check_kind("count", 3, int, "3")
    with pytest.raises(ValueError, match=r"^count is str 'a', expected an int; pass e.g. 3$"):
        check_kind("count", "a", int, "3")
    check_function("draw", len, "len")
    with pytest.raises(ValueError, match=r"^draw is 3, expected a function; pass e.g. len$"):
        check_function("draw", 3, "len")
    with pytest.raises(ValueError, match=r"^draw is an array of shape \(2,\) and dtype float"):
        check_function("draw", jnp.ones(2), "len")
    for fits in (lambda a, b: a, lambda a, b, c=3: a, lambda *a: a, max, dict):
        check_function("draw", fits, "f", "key, step")
    for other in (lambda a: a, lambda a, b, c: a, lambda: 0, lambda a, *, b: a):
        with pytest.raises(ValueError, match=r"expected a function of \(key, step\); pass e.g. f$"):
            check_function("draw", other, "f", "key, step")
