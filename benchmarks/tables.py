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
        made = [one_table(path, kind) for path in files(name, folder)]
        if not made:
            return match.group()
        return "\n".join([f"<!-- {name} {kind} -->", "\n\n".join(made), "<!-- end -->"])

    return BLOCK.sub(block, text)


def files(name: str, folder: Path) -> list[Path]:
    """List the results of a benchmark on a CPU, and on each accelerator."""
    others = sorted(folder.glob(f"{name}-*.jsonl"))
    found = [folder / f"{name}.jsonl", *(path for path in others if "-quick" not in path.name)]
    return [path for path in found if path.exists()]


def one_table(path: Path, kind: str) -> str:
    """Write the table of one results file, and where it comes from."""
    results = load(path)
    made = getattr(import_module(f"benchmarks.{results.benchmark}"), kind)(results)
    machine, versions = results.header["machine"], results.header["versions"]
    where = machine.get("accelerator") or f"{machine['processor']}, cores: {machine['cores']}"
    origin = (
        f"`{results.header['command']}`, {results.header['date']}, jax {versions['jax']}, {where}"
    )
    return f"{made}\n\n{origin}"


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
