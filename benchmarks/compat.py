"""Whether the suite passes: oldest and newest Python here, oldest and newest supported jax, x64 on and off.

Each cell has its own environment in `.cache/compat`, made once, and runs the whole suite in it. Four of the
eight combinations are run, in which any two settings meet; `make test` is a fifth. `--quick` runs the one cell
that is farthest from `make test`: the newest Python, the oldest jax, x64 on. Cells that are in the results file
are not run again. The full run takes about ten minutes a cell, and 25 where the environment has `XLA_FLAGS=`:
then every program is compiled as users compile it, whereas the suite by itself asks for plain code (see
tests/conftest.py). Nothing here touches the environment that runs it.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.record import Figure, Results, commit, markdown, num_cores

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".cache" / "compat"
MINORS = (11, 12, 13)
COUNTED = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
MINUTES = 60
"""How long the suite may take in one cell."""


class Cell(NamedTuple):
    """One run of the suite."""

    python: Path
    version: str
    jax: str
    x64: bool

    @property
    def name(self) -> str:
        return f"python {self.version}, {self.jax} jax, x64 {'on' if self.x64 else 'off'}"


def run(results: Results, options) -> None:
    """Run every cell that is not in the results yet, then name those that failed."""
    cells = list(find_cells())
    if not cells:
        raise ValueError(
            "no python3.11, python3.12 or python3.13 is on PATH or in ~/.pyenv, expected one; install one"
        )
    if options.quick:
        cells = [cell for cell in cells if cell.x64][-1:]
    for cell in cells:
        if cell.name not in results.cases:
            print(f"{cell.name} ...", flush=True)
            results.add(cell.name, run_cell(cell))
    bad = [
        name
        for name, methods in results.cases.items()
        if any(m["exit status"] != 0 for m in methods.values())
    ]
    if bad:
        print(table(results))
        raise ValueError(
            f"the suite failed in {'; '.join(bad)}, expected it to pass everywhere; see {PLACE}/*.log"
        )


def find_cells() -> Iterator[Cell]:
    """Choose half of the cells, such that any two of Python, jax and x64 meet at both ends."""
    found = [(f"3.{minor}", python) for minor in MINORS if (python := find_python(minor))]
    for end, (version, python) in enumerate(found[:: max(1, len(found) - 1)]):
        for jax in ("oldest", "newest"):
            yield Cell(python, version, jax, x64=(end == 1) == (jax == "oldest"))


def find_python(minor: int) -> Path | None:
    """Find a Python 3.minor that runs and can make environments: on PATH, then among those of pyenv."""
    name = f"python3.{minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    kept = sorted(pyenv.glob(f"3.{minor}.*/bin/{name}"), key=_patch, reverse=True)
    for python in (shutil.which(name), *kept):
        if python and _runs([str(python), "-c", "import ensurepip, venv"]):
            return Path(python)
    return None


def _patch(python: Path) -> int:
    """Return the third number of a version of pyenv: 3.11.10 is newer than 3.11.9."""
    number = re.match(r"3\.\d+\.(\d+)", python.parent.parent.name)
    return int(number[1]) if number else -1


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run_cell(cell: Cell) -> list[Figure]:
    """Run the suite in the environment of a cell, and read its last line."""
    python = build(cell)
    environment = {
        **os.environ,
        "JAX_ENABLE_X64": "1" if cell.x64 else "0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),  # this checkout, wherever the package was installed from
    }
    log = PLACE / (re.sub(r"[^a-z0-9.]+", "-", cell.name) + ".log")
    command = [python, "-m", "pytest", "-n", str(num_cores()), "--dist", "worksteal", "-rfE"]
    with open(log, "w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [*command, "-o", "addopts=", "--strict-markers"],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                check=False,
                timeout=60 * MINUTES,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"the suite in {cell.name!r} has not ended after {MINUTES} minutes, expected 25 at most; "
                f"see {log}"
            ) from None
    last = log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
    counts = {kind: int(num) for num, kind in re.findall(r"(\d+) (\w+)", last)}
    if "errors" in counts:
        counts["error"] = counts["errors"]
    took = re.search(r"in ([\d.]+)s", last)
    versions = _versions(python)
    method = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "numpy"))
    if "XLA_FLAGS" in os.environ:
        method += f", XLA_FLAGS={os.environ['XLA_FLAGS']}"
    return [
        Figure(method, "exit status", done.returncode, "status"),
        Figure(method, "commit", commit(), "git"),
        *(Figure(method, kind, counts[kind], "tests") for kind in COUNTED if kind in counts),
        *([Figure(method, "time", float(took[1]), "s")] if took else []),
    ]


def build(cell: Cell) -> str:
    """Make the environment of a cell, unless it is there, and return its Python."""
    place = PLACE / f"python{cell.version}-{cell.jax}"
    python, stamp = place / "bin" / "python", place / "made.json"
    wanted = {
        "python": str(cell.python),
        "packages": requirements(),
        "constraints": constraints(cell.jax),
    }
    if not stamp.is_file() or json.loads(stamp.read_text()) != wanted:
        PLACE.mkdir(parents=True, exist_ok=True)
        limits = PLACE / f"{place.name}.txt"
        limits.write_text("\n".join(wanted["constraints"]) + "\n")
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        upgrade = ["--upgrade", "--upgrade-strategy", "only-if-needed"]
        try:
            subprocess.run([str(cell.python), "-m", "venv", "--clear", str(place)], check=True)
            subprocess.run([*install, *upgrade, *wanted["packages"], "-c", str(limits)], check=True)
        except subprocess.CalledProcessError as error:
            raise ValueError(
                f"the environment of {cell.name!r} cannot be built ({error.cmd[0]} exits with "
                f"{error.returncode}), expected pip to find every package; see its messages above"
            ) from None
        stamp.write_text(json.dumps(wanted))
    return str(python)


def requirements() -> list[str]:
    """List what the suite needs, from pyproject.toml: the package's dependencies and its extra `dev`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tools = ("ruff", "pyright", "pre-commit")
    development = project["optional-dependencies"]["dev"]
    return [*project["dependencies"], *(d for d in development if not d.startswith(tools))]


def constraints(jax: str) -> list[str]:
    """List the versions to use: those of constraints.txt except for jax, which is the oldest or free.

    Each flax reads internals of its jax, so the newest jax needs the newest flax.
    """
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    others = [line for line in pinned if not re.match(r"(jax|jaxlib)==", line)]
    if jax == "newest":
        return [line for line in others if not line.startswith("flax==")]
    lowest = next(d for d in requirements() if re.match(r"jax\b", d)).partition(">=")[2]
    oldest = ".".join([*lowest.split("."), "0", "0"][:3])
    return [*others, f"jax=={oldest}", f"jaxlib=={oldest}"]


def _versions(python: str) -> dict[str, str]:
    script = (
        "import json, platform; from importlib.metadata import version;"
        "print(json.dumps({'python': platform.python_version()} |"
        " {name: version(name) for name in ('jax', 'jaxlib', 'numpy', 'optax', 'flax')}))"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def table(results: Results) -> str:
    """Show one line a cell."""
    rows = []
    for name, methods in results.cases.items():
        for method, found in methods.items():
            counts = ", ".join(f"{found[kind]} {kind}" for kind in COUNTED if kind in found)
            rows.append(
                [
                    name,
                    method,
                    counts or "none ran",
                    f"{found.get('time', 0):.0f} s",
                    found["commit"],
                ]
            )
    return markdown(["cell", "versions", "tests", "time", "commit"], rows)
