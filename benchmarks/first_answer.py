"""How long a user waits: for the first generation of a search, and for the first step of the command line.

Each measurement runs in a new process that has compiled nothing: a character transformer by hand; a search of
64 members over the same training, by cross-entropy and halving; and `hypergrad tune digits` twice, of which the
second finds the programs that the first compiled. A full run takes about a minute and a half.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import Figure, Results, markdown
from benchmarks.worker import Worker

SEARCH, COMMAND = "a search over a transformer", "hypergrad tune digits"
STEP = re.compile(r"(?:scout|descent) \d+/\d+")
COMPILED = re.compile(r"Finished XLA compilation of .* in ([\d.]+) sec")


def run(results: Results, options: Any) -> None:
    """Measure what is not in the results yet."""
    for case, measure in ((SEARCH, search), (COMMAND, command)):
        if case not in results.cases:
            print(f"{case} ...", flush=True)
            results.add(case, measure(options.quick))


def search(quick: bool) -> list[Figure]:
    """Compile one training alone, and run a study of 64 members beside it, each in a process of its own."""
    found = {}
    for way in ("alone", "study"):
        with Worker(sys.executable, "benchmarks.first_answer_worker", {"quick": quick}) as worker:
            found |= worker.ask({"run": way})
    ratio = found["first generation"] / found["training compiles"]
    figures = [Figure("hypergrad", name, seconds, "s") for name, seconds in found.items()]
    return [*figures, Figure("hypergrad", "ratio", ratio, "first generation / compilation")]


def command(quick: bool) -> list[Figure]:
    """Run the command twice with a cache of programs that is empty at first, as it is after `make`."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for which in ("first run", "second run"):
            whole, first, compiled = tune(Path(folder), quick)
            figures += [
                Figure(which, "whole", whole, "s"),
                Figure(which, "first step", first, "s"),
                Figure(which, "compiling", compiled, "s"),
                Figure(which, "share compiling", compiled / whole, "of the whole"),
            ]
    return figures


def tune(folder: Path, quick: bool) -> tuple[float, float, float]:
    """Tune digits; return the seconds of all, those to the first step, and those in which XLA compiled."""
    words = [sys.executable, "-m", "hypergrad", "tune", "digits", "--overwrite", "--out"]
    words += [str(folder / "study"), *(["--budget", "2", "--arg", "horizon=4"] if quick else [])]
    variables = {name: x for name, x in os.environ.items() if not name.startswith("JAX_COMP")}
    variables |= {"HYPERGRAD_CACHE": str(folder / "cache"), "JAX_LOG_COMPILES": "1"}
    first, compiled, began = 0.0, 0.0, time.perf_counter()
    process = subprocess.Popen(
        words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if not first and STEP.search(line):
            first = time.perf_counter() - began
        compiled += sum(map(float, COMPILED.findall(line)))
    if process.wait() or not first:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}")
    return time.perf_counter() - began, first, compiled


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    if SEARCH in results.cases:
        found = results.cases[SEARCH]["hypergrad"]
        units = {"ratio": "first generation / training compiles"}
        rows = [[name, f"{value:.3g}", units.get(name, "s")] for name, value in found.items()]
        parts.append(f"**{SEARCH}** of 64 members\n\n{markdown(['', 'value', 'unit'], rows)}")
    if COMMAND in results.cases:
        rows = [
            [
                which,
                *(f"{found[name]:.3g}" for name in ("whole", "first step", "compiling")),
                f"{found['share compiling']:.0%}",
            ]
            for which, found in results.cases[COMMAND].items()
        ]
        header = ["", "whole, s", "first step, s", "compiling, s", "share"]
        parts.append(f"**`{COMMAND}`**\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)
