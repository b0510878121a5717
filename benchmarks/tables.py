"""Write the tables of the documents from the results files, and from nothing else.

A table stands between `<!-- NAME table -->` (or `<!-- NAME summary -->`, or `<!-- NAME own_table -->` where the
benchmark has an `own_table`) and `<!-- end -->`.
"""

import json
import re
from importlib import import_module
from pathlib import Path

from benchmarks.record import Results

ROOT = Path(__file__).parent.parent
PICTURES = {
    "cehpo_questions": "docs/cehpo.png",
    "chaotic": "docs/chaotic.png",
    "controller": "docs/controller.png",
    "fghpo": "docs/flatness_overlap.png",
    "flatness_theory": "docs/flatness.png",
    "frobenius": "docs/frobenius.png",
    "runtime": "docs/flatness_runtime.png",
    "search_quality": "docs/search_quality.png",
}
"""{benchmark: picture that its `draw` makes of the results}."""
BLOCK = re.compile(r"<!-- (\w+) (\w*table|summary) -->\n.*?<!-- end -->", re.DOTALL)
DOCUMENTS = tuple(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        ROOT / "benchmarks/README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
    if BLOCK.search(path.read_text(encoding="utf-8"))
)
"""The pages that have a table."""


def render(text: str, folder: Path) -> str:
    """Replace every table in a document by one from the results files in `folder`."""

    def block(match: re.Match[str]) -> str:
        name, kind = match.groups()
        if not (folder / f"{name}.jsonl").exists():
            return match.group()
        results = load(folder / f"{name}.jsonl")
        made = getattr(import_module(f"benchmarks.{name}"), kind)(results)
        machine, versions = results.header["machine"], results.header["versions"]
        origin = (
            f"`{results.header['command']}`, {results.header['date']}, jax {versions['jax']}, "
            f"{machine['processor']}, cores: {machine['cores']}"
        )
        return f"<!-- {name} {kind} -->\n{made}\n\n{origin}\n<!-- end -->"

    return BLOCK.sub(block, text)


def load(path: Path) -> Results:
    """Open a kept results file without adding to it."""
    header = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    return Results(path, header["benchmark"], header["settings"], resume=False)


def write() -> None:
    """Bring all documents and pictures up to date."""
    results = ROOT / "benchmarks" / "results"
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(render(path.read_text(encoding="utf-8"), results))
    for name, picture in PICTURES.items():
        if (results / f"{name}.jsonl").exists():
            figure = import_module(f"benchmarks.{name}").draw(load(results / f"{name}.jsonl"))
            figure.savefig(ROOT / picture, dpi=150)
