"""The environments in which `python -m benchmarks compat` runs the suite."""

import re

from benchmarks import compat


def test_both_ends_of_jax():
    oldest, newest = compat.constraints("oldest"), compat.constraints("newest")
    assert "jax==0.10.0" in oldest and "jaxlib==0.10.0" in oldest
    assert not any(re.match("jax(lib)?==", line) for line in newest)
    assert set(newest) < set(oldest)


def test_the_suite_s_packages_and_no_tools():
    names = {re.match(r"[\w-]+", line)[0] for line in compat.requirements()}
    assert {"jax", "optax", "pytest", "hypothesis", "pandas"} <= names
    assert not {"ruff", "pyright", "pre-commit"} & names


def test_cells_are_four_a_python(monkeypatch):
    monkeypatch.setattr(compat, "find_python", lambda minor: None if minor == 12 else compat.ROOT)
    cells = list(compat.find_cells())
    assert len(cells) == 8 == len({cell.name for cell in cells})
    assert cells[-1].name == "python 3.13, newest jax, x64 on"
