"""A space as JSON: what is described reads back, and what describes none is refused in one line."""

import json

import jax
import pytest

from hypergrad.core import tree
from hypergrad.space import (
    Choice,
    Integer,
    LogReal,
    Real,
    Sequence,
    describe_space,
    space_from_description,
)

SPACE = {
    "lr": Sequence(LogReal(1e-3, 1.0, default=0.1), 20, knots=4, decreasing=True),
    "layers": [Real(0, 4, shape=(2,)), {"decay": Real(-1.5, 2)}],
    "width": Integer(2, 30, default=4, static=True),
    "act": Choice(("tanh", 2, 0.5, True), default=0.5),
}


def test_every_dimension_reads_back_from_json():
    described = json.loads(json.dumps(describe_space(SPACE), allow_nan=False))
    assert described == describe_space(SPACE)
    assert space_from_description(described) == tree.named(SPACE)


def test_options_that_json_cannot_say_have_names():
    odd = {"f": Choice((jax.nn.relu, lambda x: x, lambda x: -x, (1, 2)), default=(1, 2))}
    options = space_from_description(json.loads(json.dumps(describe_space(odd))))["f"].options
    assert "relu" in options[0] and len(set(options)) == 4 and options[3] == "(1, 2)"


@pytest.mark.parametrize(
    "found",
    [
        None,
        "Real(0, 1)",
        [],
        {},
        {"kind": "Real"},
        {"kind": "Rael", "low": 0, "high": 1},
        {"kind": [], "low": 0, "high": 1},
        {"kind": "Real", "low": 0, "high": 1, "more": 2},
        {"kind": "Real", "low": None, "high": 1},
        {"kind": "Real", "low": 0, "high": 10**400},
        {"kind": "Real", "low": 0, "high": 1, "shape": 3},
        {"kind": "Real", "low": "0\n", "high": 1},
        {"kind": "Choice", "options": "ab"},
        {"kind": "Choice", "options": [[1], {}, "x" * 10**5], "default": "y" * 10**5},
        {"kind": "Sequence", "element": {"kind": "Integer", "low": 0, "high": 1}, "length": 3},
        {"kind": "Sequence", "element": [[[]]], "length": 3},
    ],
)
def test_what_describes_no_dimension_is_refused_in_one_line(found):
    with pytest.raises(
        ValueError, match=r"^file: space\['a\\nb'\] describes no dimension"
    ) as caught:
        space_from_description({"a\nb": found}, "file: space")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
