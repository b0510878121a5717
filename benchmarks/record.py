"""Helpers of every benchmark: a results file that survives a stop, and honest timing."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKAGES = ("hypergrad-jax", "jax", "jaxlib", "optax", "numpy")


class Figure(NamedTuple):
    """One measured number of a method in a case; several, with a seed each, make one list."""

    method: str
    metric: str
    value: Any
    unit: str
    seed: int | None = None


class Results:
    """A file of JSON lines: a header, then one line a figure; reopened, it continues with the next case.

    Attributes:
        cases: Dict case -> method -> metric -> value, or the list of values over seeds.

    Args:
        path: Path of the file, which is created with its folder.
        benchmark: Name in the header.
        settings: Settings that must be equal for two runs to share a file, such as the number of cores.
        resume: Whether figures will be added; versions and commit must then be equal too.
    """

    def __init__(
        self, path: Path, benchmark: str, settings: dict[str, Any], *, resume: bool = True
    ):
        self.path = path
        self.benchmark = benchmark
        self.cases: dict[str, dict[str, dict[str, Any]]] = {}
        header = {
            "benchmark": benchmark,
            "settings": settings,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "versions": versions(PACKAGES),
            "machine": machine(),
            "commit": commit(),
            "command": command(),
        }
        if path.exists():
            self._read(header, resume)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.header = header
            self._append([header])

    def _read(self, header: dict[str, Any], resume: bool) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
            if not text.endswith("\n"):  # stopped while writing; the case is not whole
                raise ValueError
            self.header, *figures = (json.loads(line) for line in text.splitlines())
            names = ("benchmark", "settings", "versions", "commit")
            same = all(self.header[name] == header[name] for name in names[: 4 if resume else 2])
            for record in figures:
                self._keep(record["case"], Figure(*(record[name] for name in Figure._fields)))
        except (ValueError, KeyError, TypeError, OSError):
            raise ValueError(
                f"out is {str(self.path)!r}, which is no whole results file; "
                "name another with --out, or remove it"
            ) from None
        if not same:
            got, expected = (
                ", ".join(str(h[name]) for name in names) for h in (self.header, header)
            )
            raise ValueError(
                f"out is {str(self.path)!r}, which holds {got}, expected {expected}; "
                "name another with --out, or remove it"
            )

    def _keep(self, case: str, figure: Figure) -> None:
        metrics = self.cases.setdefault(case, {}).setdefault(figure.method, {})
        if figure.seed is None:
            metrics[figure.metric] = figure.value
        else:
            metrics.setdefault(figure.metric, []).append(figure.value)

    def add(self, case: str, figures: list[Figure]) -> None:
        """Append the figures of one finished case, on disk before this returns."""
        head = {"benchmark": self.benchmark, "case": case}
        self._append([head | figure._asdict() for figure in figures])
        for figure in figures:
            self._keep(case, figure)

    def _append(self, records: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def command() -> str:
    """Repeat the command line, with only the last part of paths, because folders differ between machines."""
    words = (Path(word).name if "/" in word else word for word in sys.argv[1:])
    return shlex.join(["python", "-m", "benchmarks", *words])


def commit() -> str:
    """Name the commit measured, with a `+` where files differ from it, other than results and documents."""
    root = Path(__file__).parent.parent
    changed = ["status", "--porcelain", "--", ".", ":!benchmarks/results", ":!*.md", ":!docs"]
    try:
        name, dirt = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
            for words in (["rev-parse", "--short=12", "HEAD"], changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + "+" * bool(dirt.stdout.strip())


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Describe the processor, and how many of its cores this process may use."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    about = {"processor": model, "system": platform.system(), "cores": num_cores()}
    device = accelerator()
    return about | ({"accelerator": device} if device else {})


def accelerator() -> str:
    """Name the accelerator of jax; empty where there is none, which is found out without starting jax."""
    there = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("accel[0-9]*")]
    if not there or os.environ.get("JAX_PLATFORMS") == "cpu":
        return ""
    import jax

    return "" if jax.default_backend() == "cpu" else str(jax.devices()[0].device_kind)


def num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pin(cores: int) -> None:
    """Keep this process and its children on `cores` processors; call before jax is imported.

    Several processes share an accelerator: none may take all its memory at once.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def interleave(
    calls: dict[str, Callable[[], float]], repeats: int, warm: float = 0.0
) -> dict[str, dict[str, float]]:
    """Time all `calls` in turn, `repeats` times after one turn that does not count.

    Because they take turns, they share any disturbance of the machine.

    Args:
        calls: Dict name -> a function that works and returns the seconds that it took.
        repeats: Number of turns that count.
        warm: Seconds below which a call of the first turn is made twice in each later turn, and the second call
            counts: cold caches would cost short calls a good part.

    Returns:
        The median, lowest and highest seconds for each name.
    """
    first = {name: call() for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if first[name] < warm:
                call()
            seconds[name].append(call())
    return {
        name: {"median": float(np.median(s)), "lowest": min(s), "highest": max(s)}
        for name, s in seconds.items()
    }


def timed(
    function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """Turn a function of jax arrays into one that waits for them and returns the seconds taken, by a clock."""
    import jax

    def call() -> float:
        began = clock()
        jax.block_until_ready(function())
        return clock() - began

    return call


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Write a table whose columns are aligned in the source too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    cells = [header, ["-" * w for w in widths], *rows]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    )
