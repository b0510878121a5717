"""Read the imports and fail when a floor is broken."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "types": 0, "checks": 0, "tree": 0.1, "devices": 0.1, "buckets": 0.1, "settings": 0.1,
    "integers": 1, "segments": 1,
    "layout": 1, "space": 1, "autodiff": 1, "solve": 1,
    "quasirandom": 1, "truncnorm": 1, "gaussian_process": 1, "acquisition": 1, "outputs": 1, "pareto": 1,
    "coordinates": 1.1, "static": 1.1, "beliefs": 1.1, "families": 1.1, "chains": 1.2, "distribution": 1.3,
    "policies": 1.5, "heads": 1.6, "perturb": 1.5, "expected": 2.5, "history": 2.1,
    "problem": 2, "adapters": 2.1, "train": 2.1, "testing": 2.2, "momentum": 2.2, "adjoint": 2.5,
    "measures": 2.5,
    "curvature": 2, "response": 2.5, "tangent": 2.6, "directions": 2.6, "pairs": 2.5, "estimators": 3,
    "population": 3, "searchers": 3, "groups": 3.1, "sizing": 3.1, "schedulers": 4, "tuners": 5, "storage": 6,
    "plots": 6, "judge": 6, "loading": 6, "studyfile": 6, "journal": 6.1, "checkpoint": 6.1,
    "records": 6.1, "trials": 6.1, "export": 6.1, "study": 6.2, "results": 6.2, "callbacks": 6.3,
    "earlier": 6.2, "integrations": 6.4, "registry": 6.45, "report": 6.5, "slopes": 6.5,
    "tune": 7, "verify": 7, "recommend": 7, "resume": 7.5, "flatness": 7.6, "arguments": 7.5,
    "completion": 7.6, "terminal": 7.6, "cli": 8, "__main__": 9,
}  # fmt: skip
LADDERS = {
    "curvature": (
        "base",
        "sharpness",
        "chunked",
        "layers",
        "result",
        "blocks",
        "columns",
        "products",
        "frobenius",
        "surrogate",
        "estimate",
        "trace",
        "eigen",
        "density",
        "expected",
        "measures",
        "differences",
        "landscape",
        "__init__",
    ),
}
"""Packages whose files import one another, lower ones only, in this order."""
FAMILIES = ("estimators", "searchers", "schedulers", "tuners", "integrations")
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
            elif other == top and top in LADDERS:
                ladder = LADDERS[top]
                below = (
                    ladder[: ladder.index(member or "__init__")]
                    if (member or "__init__") in ladder
                    else ()
                )
                if rest[1] not in below:
                    found.append(f"{name} imports {module}, which is not below it")
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
        ("curvature.base", "from hypergrad.curvature.frobenius import frobenius"),
        ("curvature.novel", "from hypergrad.curvature.base import check"),
    ],
)
def test_the_check_finds_violations(name, source):
    assert len(violations(name, source)) == 1


DANGEROUS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def dangers(source):
    """What in a source runs code that a file holds, or could."""
    found = sorted(DANGEROUS & {m.split(".")[0] for m in modules_of(source)})
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in ("eval", "exec", "compile", "os.system", "yaml.load", "yaml.unsafe_load"):
                found.append(name)
            if keywords.get("allow_pickle") == "True" or "shell" in keywords:
                found.append(name)
    return found


@pytest.mark.parametrize("folder", ["hypergrad", "tasks", "models", "benchmarks"])
def test_nothing_dangerous_is_called(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert not dangers(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "source",
    ["import pickle", "eval(x)", "exec(x)", "import yaml\nyaml.load(x)",
     "np.load(x, allow_pickle=True)", "np.savez(x, allow_pickle=True)", "from joblib import load",
     "subprocess.run(x, shell=True)"],
)  # fmt: skip
def test_the_scan_finds_dangers(source):
    assert len(dangers(source)) >= 1
