"""Names that were given up do not come back: one name is one thing, and a thing has one name."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REMOVED = set((Path(__file__).parent / "removed_names.txt").read_text(encoding="utf-8").split())


def identifiers(source):
    """Every name that a source binds, reads, imports, or passes as a keyword."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
            case ast.alias(name=name, asname=other):
                yield from (*name.split("."), other)
            case ast.ImportFrom(module=str(name)):
                yield from name.split(".")


@pytest.mark.parametrize("folder", ["hypergrad", "tests", "benchmarks", "tasks", "models"])
def test_removed_names_stay_removed(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert not REMOVED & set(identifiers(path.read_text(encoding="utf-8"))), path


def test_the_search_finds_a_name_wherever_it_stands():
    source = "import a.b as c\nfrom d.e import f\ndef g(h, i=1): return j.k(l=m)\nclass n: pass"
    assert {*"abcdefghijklmn"} - {"b", "i"} <= set(identifiers(source))


def public_definitions():
    """Public functions and classes of the package, and constants: name -> the places that define it."""
    things, constants = defaultdict(set), defaultdict(set)
    for path in sorted((ROOT / "hypergrad").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                things[node.name].add(path)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
                for name in (n.id for n in names if isinstance(n.ctx, ast.Store)):
                    constants[name].add(path)
    return things, constants


def test_one_name_is_one_thing():
    things, constants = public_definitions()
    for found in (things, constants):
        several = {n: places for n, places in found.items() if len(places) > 1 and n[0] != "_"}
        assert not several
    assert not {n for n in set(things) & set(constants) if n[0] != "_"}
