"""Whole studies, as `hypergrad tune` makes them, that are ended late or lose their outputs."""

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.fault_cases import CASES, SIGNALS, end, messages, settings_of, task_of
from hypergrad.core.files import read_json
from hypergrad.study import Callback, has_begun
from hypergrad.tuners import TUNERS, is_read
from hypergrad.tuning.settings import Settings

NUM_STEPS = 3
EVAL_SEEDS = 2
PHASES = ("judge", "result", "report")
"""Parts of a study after its last step: trained again, about to be written, about to be drawn."""
STREAMS = {"stdout": (1,), "stderr": (2,), "both": (1, 2)}


def finish(method: str, folder: Path, say: Any = None) -> str:
    """Run a whole study, or continue it, and return its digest; `say` is told of each phase as it begins."""
    tuning: Any = import_module("hypergrad.tuning.tune")
    going_on = import_module("hypergrad.tuning.resume").resume
    say = say or (lambda phase: None)
    real = {name: getattr(tuning, name) for name in ("check_journal", "_report")}

    def before(phase: str, function: Any) -> Any:
        return lambda *args: (say(phase), function(*args))[1]

    tuning.check_journal = before("result", real["check_journal"])
    tuning._report = before("report", real["_report"])
    shown = Callback(
        step=lambda now: say(now.phase) if now.phase == "judge" and not now.done else None
    )
    try:
        if has_begun(folder):
            found = going_on(task_of(method), folder, callbacks=[shown])
        else:
            settings = settings_of(method, NUM_STEPS)._replace(eval_seeds=EVAL_SEEDS)._asdict()
            given = {name: x for name, x in settings.items() if x is not None and _is_set(name, x)}
            found = tuning.tune(task_of(method), storage=folder, callbacks=[shown], **given)
    finally:
        for name, function in real.items():
            setattr(tuning, name, function)
    return (found.result or {})["final_digest"]


def _is_set(name: str, value: Any) -> bool:
    return value != Settings._field_defaults[name]


@cache
def whole(method: str) -> tuple[str, dict[str, float]]:
    """Return the digest of a study that nothing ends, and the seconds of each of its last phases."""
    began: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        digest = finish(
            method, Path(folder) / "s", lambda name: began.setdefault(name, time.monotonic())
        )
    times = [*began.values(), time.monotonic()]
    return digest, {name: times[i + 1] - times[i] for i, name in enumerate(began)}


def endings(folder: Path, method: str, num: int) -> Counter:
    """End whole studies by signals while they judge, before they write the result and while they draw."""
    context = multiprocessing.get_context("forkserver")
    draw = random.Random(f"endings {method}")
    count = Counter(dict.fromkeys((*(f"ended in {phase}" for phase in PHASES), "too late"), 0))
    count.update({"torn files": 0, "failed resumes": 0, "other digests": 0, "without report": 0})
    expected, seconds = whole(method)
    first = CASES.index(method)  # so that every phase is ended by every signal
    for attempt in range(num):
        place = folder / f"{method}-{attempt}"
        for number, phase in enumerate(PHASES):
            ours, theirs = context.Pipe()
            process = context.Process(target=_child, args=(theirs, method, place))
            process.start()
            theirs.close()
            last = SIGNALS[(first + attempt + number) % len(SIGNALS)]
            count[_end(ours, process, phase, last, draw.uniform(0, 0.8 * seconds[phase]))] += 1
            count["torn files"] += _torn(place)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                count["other digests"] += finish(method, place) != expected
        except Exception as error:
            print(repr(error))
            count["failed resumes"] += 1
        count["without report"] += not (place / "report.html").is_file()
    return count


def _end(pipe: Connection, process: Any, phase: str, number: signal.Signals, most: float) -> str:
    """Send a signal within `most` seconds after a phase has begun, or right then; say what came of it."""
    for said in messages(pipe):
        if said == phase:
            process.join(most)
            break
    end(process, number)
    process.join()
    return f"ended in {phase}" if process.exitcode == -number else "too late"


def _child(pipe: Connection, method: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    finish(method, folder, pipe.send)


def _torn(folder: Path) -> int:
    """Count the files of a study that are there in part."""
    torn = 0
    for name in ("study.json", "study-copy.json", "result.json"):
        try:
            read_json(folder / name)
        except FileNotFoundError:
            continue
        except ValueError:
            torn += 1
    page = folder / "report.html"
    return torn + (page.is_file() and not page.read_text().rstrip().endswith("</html>"))


def closed_outputs(folder: Path, method: str, num: int) -> Counter:
    """Run the command line while nobody reads its standard output, its standard error, or both."""
    context = multiprocessing.get_context("forkserver")
    names = ("outputs closed", "other statuses", "tracebacks", "other digests", "without report")
    count = Counter(dict.fromkeys(names, 0))
    expected, _ = whole(method)
    for stream in list(STREAMS)[:num]:
        place, said = folder / f"{method}-{stream}", folder / f"{method}-{stream}.txt"
        process = context.Process(target=_command, args=(method, place, STREAMS[stream], said))
        process.start()
        process.join()
        count["outputs closed"] += 1
        count["other statuses"] += process.exitcode != 0
        count["tracebacks"] += "Traceback" in said.read_text()
        result = read_json(place / "result.json") if (place / "result.json").is_file() else {}
        count["other digests"] += result.get("final_digest") != expected
        count["without report"] += not (place / "report.html").is_file()
    return count


def _command(method: str, folder: Path, closed: tuple[int, ...], said: Path) -> None:
    """Be `hypergrad tune` in a process of its own, some of whose outputs are pipes that nobody reads."""
    main = import_module("hypergrad.cli.main").main
    name, _, scheduler = method.partition("-")
    budget = settings_of(method, NUM_STEPS).budget
    words = [
        "tune",
        "benchmarks.fault_cases:task_of",
        "--arg",
        f"method={method}",
        "--method",
        name,
    ]
    words += ["--budget", str(budget), "--eval-seeds", str(EVAL_SEEDS), "--out", str(folder)]
    words += ["--scheduler", scheduler] if scheduler else []
    words += ["--seeds", "1"] if is_read("num_seeds", name) else []
    words += [] if name in TUNERS else ["--devices", "1"]
    words += ["--prior", "lr=0.05"] if name == "prior" else []
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(file, number)
    for number in closed:
        reads, writes = os.pipe()
        os.close(reads)
        os.dup2(writes, number)
        os.close(writes)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    status = main(words)
    sys.stdout.flush()
    os._exit(status)
