"""The checks of numbers: what counts as one, and what is said of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.core.checks import check_bytes, check_positive, check_whole, is_number


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
