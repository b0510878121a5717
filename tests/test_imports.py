"""Imports run one way, through the rooms from left to right, and nothing dangerous is imported or called."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RULE = (
    "core < space < problem < train < validation < curvature, estimators, populations, searchers "
    "< schedulers < tuners < study < report < tuning < cli"
)
FLOOR = {room.strip(): i for i, rooms in enumerate(RULE.split("<")) for room in rooms.split(",")}
FLOOR |= {"testing": FLOOR["train"], "__main__": len(FLOOR), "__init__": len(FLOOR)}
ONLY_IN = {
    "flax": "core/flax.py",
    "jaxopt": "core/jaxopt.py",
    "equinox": "nowhere: core/equinox.py loads it",
    "haiku": "nowhere: core/haiku.py loads it",
}


def modules_of(source):
    """Every module that a source imports, wherever the statement stands; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows_up(path, source):
    """The imports of a file `path` of the package that run against the rule."""
    room = Path(path).parts[0].removesuffix(".py")
    for name in modules_of(source):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        inside = top == "hypergrad" and other in FLOOR
        if (inside and other != room and FLOOR[other] >= FLOOR[room]) or (
            top in ("models", "tasks", "benchmarks") or ONLY_IN.get(top, path) != path
        ):
            yield f"{path} imports {name}"


def files():
    package = ROOT / "hypergrad"
    return {str(p.relative_to(package)): p.read_text("utf-8") for p in package.rglob("*.py")}


def test_imports_run_one_way():
    assert [arrow for path, source in files().items() for arrow in arrows_up(path, source)] == []


def test_no_circle_of_files():
    names = {path.removesuffix(".py").replace("/", "."): source for path, source in files().items()}
    homes = {name.removesuffix(".__init__"): name for name in names}
    below = {}
    for name, source in names.items():
        asked = [m.partition(".")[2] for m in modules_of(source) if m.startswith("hypergrad.")]
        below[name] = {
            homes[m] if m in homes else homes[m.rpartition(".")[0]]
            for m in asked
            if m in homes or m.rpartition(".")[0] in homes
        } - {name, "__init__"}
    while leaves := [name for name, needs in below.items() if not needs & below.keys()]:
        for name in leaves:
            del below[name]
    assert not below


def test_the_rule_is_one_line_of_contributing():
    assert f"`{RULE}`" in (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()


def test_every_room_says_what_is_in_it():
    for room in {path.parent for path in (ROOT / "hypergrad").rglob("*.py")} - {ROOT / "hypergrad"}:
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8")))
        inside = {path.stem for path in room.glob("*.py")} - {"__init__"}
        inside |= {f"{path.parent.name}/" for path in room.glob("*/__init__.py")}
        assert inside == {
            line.split("`")[1] for line in docstring.splitlines() if line[:3] == "- `"
        }


def test_models_never_import_hypergrad():
    for path in (ROOT / "models").glob("*.py"):
        assert not [m for m in modules_of(path.read_text()) if m.split(".")[0] == "hypergrad"], path


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/tree.py", "from hypergrad.train import step"),
        ("train.py", "from hypergrad import populations"),
        ("estimators/verify.py", "def f():\n    from hypergrad.searchers import base"),
        ("train.py", "def f():\n    import flax"),
        ("space/maps.py", "import tasks.digits"),
        ("study/run.py", "import hypergrad.cli.main"),
    ],
)
def test_the_rule_finds_what_breaks_it(path, source):
    assert len(list(arrows_up(path, source))) == 1


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
