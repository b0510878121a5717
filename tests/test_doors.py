"""The doors: the public names, and methods that are described in one folder each."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hypergrad as hg
from hypergrad import estimators, schedulers, searchers, tuners
from hypergrad.core.methods import Method
from hypergrad.tuning.settings import Settings

FAMILIES = {
    "estimators": estimators.ESTIMATORS,
    "searchers": searchers.SEARCHERS,
    "schedulers": schedulers.SCHEDULERS,
    "tuners": tuners.TUNERS,
}
SPECIAL = {
    "random",
    "prior",
    "bilevel",
    "controller",
    "pb2",
    "flatness",
    *Settings._field_defaults.values(),
}
"""Names that the front door knows: the baseline, the defaults, methods with a rule of their own, a command."""
PACKAGE = Path(hg.__file__).parent


# names


def test_public_names():
    # 45 until host_batches came, then mixed_mode_grad, from_equinox, from_haiku and attribution
    assert len(hg.__all__) <= 50 and len(set(hg.__all__)) == len(hg.__all__)
    for path in PACKAGE.rglob("*.py"):
        rooms = path.relative_to(PACKAGE).with_suffix("").parts
        if rooms[-1] != "__main__" and "samplers" not in rooms:
            importlib.import_module(".".join(["hypergrad", *rooms]).removesuffix(".__init__"))
    modules = {name for name in vars(hg) if f"hypergrad.{name}" in sys.modules}
    assert all(isinstance(getattr(hg, name), ModuleType) for name in modules)


def test_the_package_is_imported_without_jax():
    script = "import sys, hypergrad; print('jax' in sys.modules, 'numpy' in sys.modules)"
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.split() == ["False", "False"]


# methods


@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_is_described_once_in_its_own_file(family):
    for name, method in FAMILIES[family].items():
        assert isinstance(method, Method) and method.name == name and method.sentence
        assert set(method.reads) <= set(Settings._fields)
        homes = [
            path
            for path in (PACKAGE / family).rglob("*.py")
            if re.search(rf"^{name.upper()}\b", path.read_text(encoding="utf-8"), re.M)
        ]
        assert len(homes) == 1, name


@pytest.mark.parametrize("room", ["core", "tuning", "cli"])
def test_the_front_door_names_no_method_but_the_special_ones(room):
    """So that adding a method touches its own folder alone."""
    names = {name for family in FAMILIES.values() for name in family} - SPECIAL
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            value = node.value if isinstance(node, ast.Constant) else None
            assert not (isinstance(value, str) and value in names), f"{path.name}: {value}"
