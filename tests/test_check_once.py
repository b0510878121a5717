"""What a user passes is checked once, at the door: one `tune` calls few functions that check."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

import hypergrad as hg
from tasks import quadratic

PACKAGE = Path(hg.__file__).parent
NAMES = ("check", "validate", "require", "ensure", "refuse")
MAX_CALLS = 20
"""Calls of functions that check in one `tune` of four trials."""


def checks(function):
    """Tell whether a function checks: by its name, or because it raises and makes nothing of its own."""
    if function.name.lstrip("_").startswith(NAMES):
        return True
    inner = {
        id(node)
        for child in ast.walk(function)
        if child is not function and isinstance(child, (ast.FunctionDef, ast.Lambda))
        for node in ast.walk(child)
    }
    own = [node for node in ast.walk(function) if id(node) not in inner]
    raises = [node for node in own if isinstance(node, ast.Raise)]
    if not raises or any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in own):
        return False
    arguments = {one.arg for one in ast.walk(function.args) if isinstance(one, ast.arg)}
    for node in own:
        value = node.value if isinstance(node, ast.Return) else None
        if value is not None and not (isinstance(value, ast.Name) and value.id in arguments):
            return False
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    lines = sum(node.end_lineno - node.lineno + 1 for node in raises)
    return 3 * lines >= function.end_lineno - first.lineno + 1


def checking_functions():
    """{(file, first line)} of the package's functions that check; decorators stand before the first line."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and checks(node):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                found[str(path), first] = f"{path.relative_to(PACKAGE)}:{node.name}"
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def check_size(x): return x", True),
        ("def _validated(x): return x + 1", True),
        ("def door(x):\n  if x < 0:\n    raise ValueError(x)\n  return x", True),
        ("def door(x):\n  if x < 0:\n    raise ValueError(x)", True),
        ("def root(x):\n  if x < 0:\n    raise ValueError(x)\n  return x**0.5", False),
        (
            "def walk(x):\n  a = 1\n  b = 2\n  c = 3\n  d = 4\n  if x:\n    raise ValueError(x)",
            False,
        ),
    ],
)
def test_what_counts_as_a_check(source, expected):
    assert checks(ast.parse(source).body[0]) is expected


@pytest.mark.parametrize(
    "method",
    [
        "descent",
        "random",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("tpe", "cross_entropy")),
    ],
)
def test_one_tune_calls_few_functions_that_check(method):
    known, calls = checking_functions(), Counter()

    def count(frame, event, argument):
        if event == "call":
            code = frame.f_code
            name = known.get((code.co_filename, code.co_firstlineno))
            if name:
                calls[name] += 1

    settings = {"budget": 4} if method == "descent" else {"population": 4, "generations": 1}
    task = quadratic.task(horizon=4, num_params=2)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        hg.tune(task, method=method, eval_seeds=2, **settings)
    finally:
        sys.setprofile(before)
    assert sum(calls.values()) <= MAX_CALLS, dict(calls)
