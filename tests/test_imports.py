"""Read the imports and fail when a floor is broken."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "types": 0, "tree": 0.1, "space": 1, "autodiff": 1, "problem": 2, "adapters": 2.1, "train": 2.1,
    "testing": 2.2, "integers": 1, "segments": 1, "momentum": 2.2, "adjoint": 2.5, "estimators": 3,
    "population": 3, "searchers": 3, "schedulers": 4, "tuners": 5, "storage": 6, "study": 6, "registry": 6, "plots": 6, "results": 6.2, "report": 6.5,
    "tune": 7, "verify": 7, "cli": 8, "__main__": 9,
}  # fmt: skip
FAMILIES = ("estimators", "searchers", "schedulers", "tuners")
ONLY_IN = {"flax": "adapters", "jaxopt": "solve"}


def modules_of(source):
    """Every module name that a source imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "hypergrad":
                yield from (f"hypergrad.{alias.name}" for alias in node.names)
            else:
                yield node.module


def violations(name, source):
    """What a file called `name` (`train`, `estimators.reverse`) may not import."""
    top, _, member = name.partition(".")
    if top not in FLOORS:
        return [f"{name} stands on no floor: add it to FLOORS in tests/test_imports.py"]
    found = []
    for module in modules_of(source):
        first, *rest = module.split(".")
        if first in ("models", "tasks", "benchmarks"):
            found.append(f"{name} imports {module}")
        elif first in ONLY_IN and top != ONLY_IN[first]:
            found.append(f"{name} imports {first}, which only {ONLY_IN[first]} may")
        elif first == "hypergrad" and rest:
            other = rest[0]
            if other == top and top in FAMILIES:
                if member and rest[1:] != ["base"]:
                    found.append(f"{name} imports its sibling {module}")
            elif FLOORS.get(other, 99) >= FLOORS[top]:
                found.append(f"{name} imports {module}, which is not below it")
    return found


def test_floors():
    found = []
    for path in sorted((ROOT / "hypergrad").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "hypergrad").with_suffix("").parts)
        if name == "__init__":
            continue
        found += violations(name.removesuffix(".__init__"), path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def test_models_never_import_hypergrad():
    for path in (ROOT / "models").glob("*.py"):
        assert not [m for m in modules_of(path.read_text()) if m.split(".")[0] == "hypergrad"], path


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tree", "from hypergrad.train import step"),
        ("train", "from hypergrad import population"),
        ("estimators.reverse", "from hypergrad.estimators.forward import forward"),
        ("train", "def f():\n    import flax"),
        ("space", "import tasks.digits"),
        ("novel", "import jax"),
    ],
)
def test_the_check_finds_violations(name, source):
    assert len(violations(name, source)) == 1


def test_nothing_dangerous_is_called():
    for path in (ROOT / "hypergrad").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not {"pickle", "marshal", "shelve"} & {m.split(".")[0] for m in modules_of(source)}
        calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
        names = {n.func.id for n in calls if isinstance(n.func, ast.Name)}
        assert not names & {"eval", "exec"}, path
