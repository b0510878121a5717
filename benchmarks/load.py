"""How large a study may get: trials, dimensions, members, neighbours, bad callbacks, and too many members.

Each measurement runs in a process of its own, whose peak of memory is that beyond an idle one with jax in it.
Seconds are the processor's, except where a study is ended: so the machine's other work does not matter.
What must not grow faster than its size is measured at two sizes; the table says by which factor it grew. What
is lost is counted, and should be zero. Folders lie in memory where the system has such a place: what waiting
for a disk costs is in `storage`. The full run takes about fifteen minutes on one core.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hypergrad as hg
from benchmarks.record import Figure, Results, markdown
from hypergrad import study
from hypergrad.populations import state_bytes, total_memory
from hypergrad.report.page import write_report
from hypergrad.report.trials import columns
from hypergrad.searchers import Trials
from hypergrad.space import Real
from hypergrad.study.disk.journal import read_records
from hypergrad.tuners import Tuner
from tasks import quadratic

FULL = {
    "trials, 1 a step": (10_000, 100_000),
    "trials, 100 a step": (10_000, 100_000),
    "dimensions of one leaf": (200, 2_000),
    "leaves": (10, 50),
    "members": (1_000, 10_000),
    "studies in one folder": (8, 64),
    "callbacks": (20,),
    "too many members": (250_000,),
}
"""{case: its sizes, the smaller first}."""
QUICK = {
    "trials, 1 a step": (100, 1_000),
    "trials, 100 a step": (1_000, 10_000),
    "dimensions of one leaf": (20, 200),
    "leaves": (2, 8),
    "members": (100, 1_000),
    "studies in one folder": (2, 4),
    "callbacks": (5,),
    "too many members": (250_000,),
}
METHODS = ("random", "cross_entropy", "evolution", "tpe", "descent")
"""Methods that are tried in many dimensions; others model pairs of coordinates, or compare all trials."""
KEY = jax.random.key(0)
MB = 2**20

Numbers = dict[str, tuple[float, str]]
"""{metric: (value, unit)}."""


def run(results: Results, options: Any) -> None:
    """Measure every size of every case that is not in the results yet."""
    for case, sizes in (QUICK if options.quick else FULL).items():
        for size in sizes:
            if f"{size}" in results.cases.get(case, {}):
                continue
            print(f"{case}, {size} ...", flush=True)
            results.add(
                case,
                [Figure(f"{size}", n, x, unit) for n, (x, unit) in measure(case, size).items()],
            )


def measure(case: str, size: int) -> Numbers:
    """Measure one size of a case in a new process, which ends with it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        process = context.Process(target=_child, args=(theirs, case, size, Path(folder)))
        process.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError:
            process.join()
            found = {"lost": (1, "count"), "exit status": (float(process.exitcode or 0), "status")}
        process.join()
    return found


def _child(pipe: Connection, case: str, size: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    jax.block_until_ready(jnp.zeros(1) + 1)
    idle = _peak()
    found = CASES[case](size, folder)
    found["peak"] = (round(_peak() - idle, 1), "MB")
    pipe.send(found)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def clock(found: Numbers, name: str) -> Iterator[None]:
    """Note the processor's seconds of a block: those of the clock depend on what else the machine does."""
    began = time.process_time()
    yield
    found[name] = (round(time.process_time() - began, 3), "s")


def counter(num: int, dimensions: int = 4) -> Tuner:
    """Draw `num` trials a step on the host, for as little as that can cost: what is timed is the study."""

    def step(key: Any, state: int) -> tuple[int, Trials]:
        draw = np.random.default_rng(state)
        hparams: Any = {f"x{i}": draw.random(num, np.float32) for i in range(dimensions)}
        index: Any = np.arange(num, dtype=np.int32)
        return state + 1, Trials(hparams, hparams["x0"], index * 0 + 3, index, {})

    return Tuner(lambda key: 0, step)


def trials(num: int, size: int, folder: Path) -> Numbers:
    """Record `size` trials, read them all back, tabulate them, write the report."""
    found: Numbers = {}
    steps, tuner, place = size // num, counter(num), folder / "s"
    with clock(found, "record"):
        done = study.run(tuner, KEY, steps, storage=place, checkpoint_seconds=1.0)
    found["journal"] = (round((place / "journal.jsonl").stat().st_size / MB, 2), "MB")
    with clock(found, "read"):
        count = sum(len(record["values"]) for record in read_records(place / "journal.jsonl"))
    with clock(found, "resume"):
        again = study.resume_run(tuner, place)
    with clock(found, "digest"):
        same = again.digest == done.digest
    with clock(found, "table"):
        table = columns(again.trials)
    with clock(found, "frame"):
        hg.Study(*again).table()
    if num > 1:
        found |= _reported(num, steps, folder)
    lost = 2 * size - count - len(table["value"]) + (not same)
    return found | {"lost": (lost, "count")}


def _reported(num: int, steps: int, folder: Path) -> Numbers:
    """Tune a task by as many trials, so that there is a result to report."""
    found: Numbers = {}
    place = folder / "tuned"
    task = quadratic.task(horizon=3, num_params=2)
    with clock(found, "tune"):
        hg.tune(
            task, method="random", population=num, generations=steps, eval_seeds=2, storage=place
        )
    with clock(found, "report"):
        page = write_report(place)
    found["page"] = (round(page.stat().st_size / MB, 2), "MB")
    found["result.json"] = (round((place / "result.json").stat().st_size / MB, 2), "MB")
    with clock(found, "resume of tune"):
        hg.resume(task, place)
    return found


def sphere(dimensions: int, leaves: int = 1) -> tuple[hg.Problem, dict[str, Any]]:
    """Return a problem whose objective is a sum over all hyperparameters, and its space."""
    names = [f"x{i}" for i in range(leaves)]

    def objective(params: Any, hparams: Any, batch: Any) -> Any:
        return params**2 + sum(jnp.mean((hparams[name] - 0.3) ** 2) for name in names)

    problem = hg.Problem(
        init=lambda key, hparams: jnp.zeros(()),
        loss=lambda params, hparams, batch: 0.5 * (params - jnp.mean(hparams["x0"])) ** 2,
        objective=objective,
        optimizer=lambda hparams: optax.sgd(0.1),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    shape = (dimensions,) if dimensions > 1 else ()
    return problem, {name: Real(0.0, 1.0, shape=shape) for name in names}


def wide(dimensions: int, leaves: int, folder: Path) -> Numbers:
    """Tune in many dimensions by several methods: seconds to the first step, and of a step after it."""
    found: Numbers = {}
    problem, space = sphere(dimensions, leaves)
    for method in METHODS:
        times = [time.process_time()]
        shown = hg.Callback(
            step=lambda now, t=times: (
                t.append(time.process_time()) if now.phase == now.phase else None
            )
        )
        how: dict[str, Any] = (
            {"budget": 5, "num_seeds": 1}
            if method == "descent"
            else {"population": 16, "generations": 5}
        )
        done = hg.tune(
            problem,
            space,
            horizon=3,
            method=method,
            eval_seeds=2,
            storage=folder / method,
            callbacks=[shown],
            **how,
        )
        found[f"{method}, first step"] = (round(times[1] - times[0], 2), "s")
        found[f"{method}, a step"] = (round(float(np.median(np.diff(times[1:6]))), 4), "s")
        found[f"{method}, whole study"] = (round(time.process_time() - times[0], 2), "s")
        assert len(done.trials) == 5
    return found


def members(size: int, folder: Path) -> Numbers:
    """Train `size` members in one generation, twice, and go on."""
    found: Numbers = {}
    task = quadratic.task(horizon=20, num_params=10)
    given: dict[str, Any] = {"population": size, "generations": 2, "eval_seeds": 2}
    with clock(found, "tune"):
        done = hg.tune(task, method="random", storage=folder / "s", **given)
    with clock(found, "resume"):
        again = hg.resume(task, folder / "s")
    found["journal"] = (round((folder / "s" / "journal.jsonl").stat().st_size / MB, 2), "MB")
    lost = 2 * size - sum(len(one.values) for one in again.trials) + (again.digest != done.digest)
    return found | {"lost": (lost, "count")}


def neighbours(size: int, folder: Path) -> Numbers:
    """Run `size` studies at once, each in a thread, with their folders in one; then go on with each."""
    found: Numbers = {}
    expected, tuner = study.run(counter(4), KEY, 50).digest, counter(4)
    digests: dict[int, str] = {}

    def one(index: int) -> None:
        place = folder / f"s{index}"
        study.run(tuner, KEY, 50, storage=place, checkpoint_seconds=0.0)
        digests[index] = study.resume_run(tuner, place).digest

    threads = [threading.Thread(target=one, args=(index,)) for index in range(size)]
    with clock(found, "all at once"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found["a study"] = (round(found["all at once"][0] / size, 4), "s")
    lost = size - sum(digest == expected for digest in digests.values())
    return found | {"lost": (lost, "count")}


def callbacks(size: int, folder: Path) -> Numbers:
    """Follow studies by callbacks that raise and hang; end what hangs by Ctrl-C and by kill -9, and go on."""
    found: Numbers = {}
    digest = (hg.tune(*_small(), **_small_settings(size)).result or {})["final_digest"]
    lost = 0
    for name in ("start", "step", "end"):
        how = {"storage": folder / name, "callbacks": [hg.Callback(**{name: _raises})]}
        done = hg.tune(*_small(), **how, **_small_settings(size))
        lost += (done.result or {})["final_digest"] != digest
    found["studies harmed by a callback that raises"] = (lost, "count")
    for how, status in (("Ctrl-C", 0), ("kill -9", -signal.SIGKILL)):
        place = folder / how.split()[0]
        seconds, exit_code = _hang(place, size, how)
        found[f"{how} to the end of one that hangs"] = (round(seconds, 2), "s")
        again = hg.resume(*_small(), place)
        lost += (again.result or {})["final_digest"] != digest
        # a second Ctrl-C that comes while the first is obeyed ends the process otherwise, on a busy machine
        found[f"{how} with another exit status"] = (int(exit_code != status), "count")
    return found | {"lost": (lost, "count")}


def _raises(*_: Any) -> None:
    raise RuntimeError("the tracker is away")


def _hang(place: Path, size: int, how: str) -> tuple[float, int | None]:
    """Run a study whose callback hangs, and end it; return the seconds to its end and its exit status."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hanging, args=(theirs, place, size))
    process.start()
    theirs.close()
    ours.poll(300)
    began = time.perf_counter()
    for _ in range(2):  # the first Ctrl-C asks, the second insists
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
        process.join(1)
    process.join(300)
    process.kill()
    process.join()
    return time.perf_counter() - began, process.exitcode


def _hanging(pipe: Connection, place: Path, size: int) -> None:
    def hang(now: Any) -> None:
        if now.done == 3:
            pipe.send("hanging")
            threading.Event().wait()

    # what runs in the background passes on that Ctrl-C is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("ignore")
    found = hg.tune(
        *_small(), storage=place, callbacks=[hg.Callback(step=hang)], **_small_settings(size)
    )
    os._exit(0 if found.interrupted else 2)


def _small() -> tuple[hg.Task]:
    return (quadratic.task(horizon=3, num_params=2),)


def _small_settings(size: int) -> dict[str, Any]:
    return {"method": "random", "population": 4, "generations": size, "eval_seeds": 2}


def too_many(size: int, folder: Path) -> Numbers:
    """Ask for more members than the memory of the machine holds, and for more than this process may have.

    The first is refused before there is a study. The second ends with an error in one line, after fewer and
    fewer were tried side by side, and goes on where there is more memory.
    """
    found: Numbers = {}
    problem, space = heavy(size)
    each = state_bytes(problem, space)
    with clock(found, "refused after"):
        text = _refusal(problem, space, 2 * total_memory() // each, folder / "s")
    found["refused in one line"] = (int("population is" in text), "count")
    found["folders left behind"] = (int((folder / "s").exists()), "count")
    num, place = 400, folder / "t"
    whole = hg.tune(problem, space, **_heavy_settings(num))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + num * each // 2, hard))
    with clock(found, "out of memory after"):
        text = _refusal(problem, space, num, place)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    found["out of memory in one line"] = (int("needs more memory" in text), "count")
    again = hg.resume(problem, place, space=space)
    gap = np.max(np.abs(again.trials[0].values / whole.trials[0].values - 1))
    return found | {
        "gap after the resume": (float(gap), "relative"),
        "lost": (int(gap > 1e-5), "count"),
    }


def heavy(width: int) -> tuple[hg.Problem, dict[str, Any]]:
    """Return a problem with `width` weights, for the sake of their memory."""
    problem, space = sphere(1)
    problem = problem._replace(
        init=lambda key, hparams: jnp.zeros(width),
        loss=lambda params, hparams, batch: jnp.mean((params - hparams["x0"]) ** 2),
        objective=lambda params, hparams, batch: jnp.mean(params**2) + hparams["x0"],
    )
    return problem, space


def _heavy_settings(num: int) -> dict[str, Any]:
    return {"horizon": 2, "method": "random", "population": num, "generations": 1, "eval_seeds": 2}


def _refusal(problem: hg.Problem, space: Any, num: int, place: Path) -> str:
    """Return the error of a study if it has one line; an empty text where there is none."""
    try:
        hg.tune(problem, space, storage=place, **_heavy_settings(num))
    except ValueError as error:
        return str(error) if "\n" not in str(error) else ""
    return ""


CASES: dict[str, Callable[[int, Path], Numbers]] = {
    "trials, 1 a step": partial(trials, 1),
    "trials, 100 a step": partial(trials, 100),
    "dimensions of one leaf": lambda size, folder: wide(size, 1, folder),
    "leaves": lambda size, folder: wide(1, size, folder),
    "members": members,
    "studies in one folder": neighbours,
    "callbacks": callbacks,
    "too many members": too_many,
}


def table(results: Results) -> str:
    """Write the results as Markdown: a table for each case, with the factor by which each figure grew."""
    parts = []
    for case, sizes in results.cases.items():
        names = list(sizes)
        rows = []
        for metric in sizes[names[-1]]:
            found = [sizes[name].get(metric) for name in names]
            grew = (
                f"{found[-1] / found[0]:.2g}" if len(found) > 1 and found[0] and found[-1] else ""
            )
            rows.append([metric, *(f"{x:.4g}" if x is not None else "" for x in found), grew])
        head = [case, *(f"{int(name):,}" for name in names), "times"]
        parts.append(markdown(head, rows))
    return "\n\n".join(parts)


SHOWN = {
    "trials, 1 a step": ("record", "resume", "table", "journal", "peak"),
    "trials, 100 a step": (
        "record",
        "resume",
        "table",
        "tune",
        "report",
        "journal",
        "result.json",
        "peak",
    ),
    "dimensions of one leaf": (
        "random, a step",
        "cross_entropy, a step",
        "tpe, a step",
        "descent, a step",
    ),
    "members": ("tune", "resume", "peak"),
    "studies in one folder": ("all at once",),
}
"""{case: what the summary shows of it}."""


def summary(results: Results) -> str:
    """Write the largest size of each case as Markdown, with the factor by which its figures grew."""
    rows = []
    for case, metrics in SHOWN.items():
        sizes = results.cases.get(case, {})
        if len(sizes) < 2:
            continue
        small, large = (list(sizes)[i] for i in (0, -1))
        for metric in metrics:
            unit = "MB" if metric in ("journal", "result.json", "peak", "page") else "s"
            now, before = sizes[large][metric], sizes[small][metric]
            grew = (
                f"{now / before:.2g} at {int(large) / int(small):g} times the size"
                if before
                else ""
            )
            rows.append([f"{int(large):,} {case}", metric, f"{now:.3g} {unit}", grew])
    return markdown(["study", "figure", "", "grew by"], rows)
