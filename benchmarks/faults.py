"""Whether a study survives: kill -9, damaged bits, full disks, several writers, readers while it writes.

Every method except "prior" and those of optuna is put through it on a small problem, and every scheduler
with random search. The final digest of all trials is compared with that of a run that nothing disturbed. All
counts should be zero except those of the attempts. The full run takes about fifteen minutes on one core.
"""

import contextlib
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from benchmarks.record import Figure, Results, markdown
from hypergrad import study
from hypergrad.problem import Task
from hypergrad.schedulers import SCHEDULERS
from hypergrad.space import Choice
from hypergrad.study.disk import checkpoint, journal
from hypergrad.study.disk.files import parse_json, read_json, write_json
from hypergrad.study.disk.folder import create
from hypergrad.tuners import METHODS, TUNERS, Tuner
from hypergrad.tuning.build import build, most_trials
from hypergrad.tuning.settings import Settings
from tasks import quadratic, ridge

NUM_STEPS = 20
KILLED_STEPS = 60
FULL = {
    "kills": 200,
    "prefixes": 20,
    "flips": 1000,
    "full disks": 50,
    "races": 100,
    "reads": 10_000,
}
QUICK = {"kills": 4, "prefixes": 3, "flips": 20, "full disks": 4, "races": 3, "reads": 200}
CASES = (
    *(name for name in METHODS if name != "prior" and not name.startswith("optuna_")),
    *(f"random-{name}" for name in SCHEDULERS if name != "full"),
)
IN_MEMORY = ("prefixes", "flips")
WRITERS = 8
READERS = 3
LARGE = 4 * 2**20
"""Bytes of text in some records of the journal that is read meanwhile: too many for one write."""


def run(results: Results, options) -> None:
    """Try every fault that is not in the results yet."""
    for fault, num in (QUICK if options.quick else FULL).items():
        if fault not in results.cases:
            print(f"{fault} ...", flush=True)
            began = time.perf_counter()
            # no bit of these depends on waiting for a disk, and memory is faster
            place = "/dev/shm" if fault in IN_MEMORY and os.path.isdir("/dev/shm") else None
            with tempfile.TemporaryDirectory(dir=place) as folder:
                counts = FAULTS[fault](Path(folder), num)
            figures = [
                Figure(method, metric, value, "count")
                for method, found in counts.items()
                for metric, value in found.items()
            ]
            seconds = Figure("all", "time", time.perf_counter() - began, "s")
            results.add(fault, [*figures, seconds])


@cache
def make(method: str, num_steps: int = NUM_STEPS) -> Tuner:
    """Build the tuner of a case for a problem that trains in microseconds."""
    method, _, scheduler = method.partition("-")
    scheduler = scheduler or "full"
    budget = num_steps * (1 if method in TUNERS else most_trials(method, scheduler))
    task = quadratic.task(horizon=3, num_params=2)
    if method == "bilevel":  # takes hyperparameters of the loss alone
        task = ridge.task(horizon=3, num_features=2)
    if method == "controller":  # takes a choice
        task = with_choice(task)
    return build(task, Settings(method, budget=budget, num_seeds=1, scheduler=scheduler))[0]


def with_choice(task: Task) -> Task:
    """Add a choice that the loss reads to a task."""
    problem = task.problem

    def loss(params, hparams, batch):
        rest = {name: x for name, x in hparams.items() if name != "kind"}
        return (1 + 0.1 * hparams["kind"]) * problem.loss(params, rest, batch)

    def objective(params, hparams, batch):
        rest = {name: x for name, x in hparams.items() if name != "kind"}
        return problem.objective(params, rest, batch) + 0.1 * hparams["kind"]

    changed = problem._replace(loss=loss, objective=objective)
    return task._replace(problem=changed, space={**task.space, "kind": Choice(("a", "b"))})


@cache
def undisturbed(method: str, num_steps: int = NUM_STEPS) -> str:
    """Return the digest of a run that writes nothing."""
    return study.run(make(method, num_steps), jax.random.key(0), num_steps).digest


def go_on(method: str, folder: Path, num_steps: int = NUM_STEPS, on_step=None) -> study.Run:
    """Run the study in a folder, or continue it."""
    tuner = make(method, num_steps)
    if (folder / "study.json").exists():
        return study.resume_run(tuner, folder, on_step)
    key = jax.random.key(0)
    return study.run(tuner, key, num_steps, on_step, storage=folder, checkpoint_seconds=0.0)


class Stop(Exception):
    """An error that ends a study from within, as a process that dies would."""


def stopped(method: str, folder: Path, num_steps: int) -> None:
    """Leave a study that ended after `num_steps` steps."""

    def stop(index, trials, best):
        if index + 1 == num_steps:
            raise Stop

    with contextlib.suppress(Stop):
        go_on(method, folder, on_step=stop)


def share(num: int) -> Iterator[tuple[str, int]]:
    """Divide a number among the cases; leave out those that get nothing."""
    for i, method in enumerate(CASES):
        if share_of := num // len(CASES) + (i < num % len(CASES)):
            yield method, share_of


def kills(folder: Path, num: int, num_steps: int = KILLED_STEPS) -> dict[str, Counter]:
    """Kill -9 a study at random instants, continue each time, compare the end."""
    # compiled programs are kept, so that a killed process costs a second
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # jax is imported once, and forked before it is used
    draw = random.Random(0)
    counts = {}
    for method, share_of in share(num):
        count = counts[method] = Counter(
            {"kills": 0, "records lost": 0, "failed resumes": 0, "other digests": 0, "studies": 0}
        )
        began = time.monotonic()
        expected = undisturbed(method, num_steps)
        longest = 1.0 + time.monotonic() - began
        while count["kills"] < share_of:
            place = folder / f"{method}-{count['studies']}"
            acknowledged, digest = -1, None
            while digest is None:
                ours, theirs = context.Pipe()
                process = context.Process(target=_child, args=(theirs, method, place, num_steps))
                process.start()
                theirs.close()
                began = time.monotonic()
                if count["kills"] < share_of:
                    process.join(draw.uniform(0, longest))
                    if process.is_alive():
                        process.kill()
                        count["kills"] += 1
                for kind, value in _messages(ours):
                    if kind == "step":
                        acknowledged = max(acknowledged, value)
                    elif kind == "digest":
                        digest, longest = value, max(0.8 * longest, time.monotonic() - began)
                    else:
                        print(value)
                        count["failed resumes"] += 1
                        digest = ""
                process.join()
                on_disk = sum(1 for _ in _records(place))
                count["records lost"] += max(0, acknowledged + 1 - on_disk)
            count["studies"] += 1
            count["other digests"] += digest != expected
    return counts


def _child(pipe: Connection, method: str, folder: Path, num_steps: int) -> None:
    try:
        found = go_on(method, folder, num_steps, lambda i, *_: pipe.send(("step", i)))
        pipe.send(("digest", found.digest))
    except Exception as error:
        pipe.send(("error", repr(error)))


def _messages(pipe: Connection) -> Iterator[tuple[str, Any]]:
    """Receive until the other end is closed; a message that a kill cut short ends it too."""
    while True:
        try:
            yield pipe.recv()
        except (EOFError, OSError):
            return


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from journal.read_records(folder / "journal.jsonl")
    except FileNotFoundError:
        return


def prefixes(folder: Path, num: int) -> dict[str, Counter]:
    """Cut a journal of `num` records at every byte; open it, count its records, continue."""
    counts = {}
    for method in CASES:
        count = counts[method] = Counter({"prefixes": 0, "whole records lost": 0, "failed": 0})
        stopped(method, folder / method, num)
        data = (folder / method / "journal.jsonl").read_bytes()
        lines = data.splitlines(keepends=True)
        path = folder / "journal.jsonl"
        for cut in range(len(data) + 1):
            path.write_bytes(data[:cut])
            whole = sum(len(line) - 1 <= rest for line, rest in _rest(lines, cut))
            try:
                opened = journal.Journal(path)
                count["whole records lost"] += opened.count != whole
                if whole < len(lines):
                    record = parse_json(lines[whole], "line")
                    del record["crc"]
                    opened.append(record)
                opened.close()
                again = b"".join(lines[: whole + 1])
                count["failed"] += path.read_bytes() != again
            except ValueError:
                count["failed"] += 1
            count["prefixes"] += 1
    return counts


def _rest(lines: list[bytes], cut: int) -> Iterator[tuple[bytes, int]]:
    """Pair each line with the bytes that are left where it begins."""
    for line in lines:
        yield line, cut
        cut -= len(line)


def flips(folder: Path, num: int) -> dict[str, Counter]:
    """Flip one bit of one file of a stopped study; continue, compare the end."""
    draw = random.Random(1)
    counts = {}
    for method, share_of in share(num):
        count = counts[method] = Counter({"flips": 0, "silent": 0, "other digests": 0})
        base = folder / method
        stopped(method, base, NUM_STEPS * 3 // 5)
        names = sorted(path.name for path in base.iterdir() if path.name != "lock")
        for _ in range(share_of):
            place = folder / "copy"
            shutil.copytree(base, place)
            path = place / draw.choice(names)
            data = bytearray(path.read_bytes())
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    digest = go_on(method, place).digest
                except ValueError as error:
                    count["refused in one line"] += "\n" not in str(error)
                    digest = None
                    caught.append(error)  # type: ignore[arg-type]
                else:
                    count["made again"] += 1
            count["flips"] += 1
            count["silent"] += not caught
            count["other digests"] += digest != undisturbed(method)
            shutil.rmtree(place)
    return counts


def full_disks(folder: Path, num: int) -> dict[str, Counter]:
    """Let a file-size limit stop a study somewhere; lift it, continue, compare the end."""
    draw = random.Random(2)
    counts = {}
    for method, share_of in share(num):
        count = counts[method] = Counter(
            {"points": 0, "stopped": 0, "long errors": 0, "records lost": 0, "other digests": 0}
        )
        go_on(method, folder / method)
        largest = max(path.stat().st_size for path in (folder / method).iterdir())
        for point in range(share_of):
            place, acknowledged = folder / f"{method}-{point}", []
            with file_limit(draw.randrange(1, largest)):
                try:
                    go_on(method, place, on_step=lambda i, *_, a=acknowledged: a.append(i))
                except ValueError as error:
                    count["stopped"] += 1
                    count["long errors"] += "\n" in str(error) or "cannot write" not in str(error)
            count["records lost"] += max(0, len(acknowledged) - sum(1 for _ in _records(place)))
            count["other digests"] += go_on(method, place).digest != undisturbed(method)
            count["points"] += 1
    return counts


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Refuse to let any file of this process grow beyond `size` bytes, until the end of the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def races(folder: Path, num: int) -> dict[str, Counter]:
    """Let eight processes make the same study at the same moment."""
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(WRITERS)
    pipes, processes = [], []
    for _ in range(WRITERS):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_racer, args=(theirs, barrier, folder, num)))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    count = Counter({"races": 0, "without one winner": 0, "not told the process": 0, "slow": 0})
    for _ in range(num):
        answers = [pipe.recv() for pipe in pipes]
        winners = [pid for pid, error, _ in answers if error is None]
        count["races"] += 1
        count["without one winner"] += len(winners) != 1
        for _, error, seconds in answers:
            if error is not None:
                count["not told the process"] += f"process {winners[0]}," not in error
                count["slow"] += seconds > 1
    for process in processes:
        process.join()
    return {"8 writers": count}


def _racer(pipe: Connection, barrier: Any, folder: Path, num: int) -> None:
    for race in range(num):
        barrier.wait()
        began, error = time.monotonic(), None
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(create(folder / f"race-{race}"))
            except ValueError as refused:
                error = str(refused)
            seconds = time.monotonic() - began
            barrier.wait()  # the winner keeps the lock until all have tried
        pipe.send((os.getpid(), error, seconds))


def reads(folder: Path, num: int) -> dict[str, Counter]:
    """Read a study over and over from other processes while it is written."""
    context = multiprocessing.get_context("forkserver")
    writer = context.Process(target=_write_forever, args=(folder,))
    writer.start()
    count = Counter({"reads": 0, "torn": 0})
    pipes = []
    for i in range(READERS):
        ours, theirs = context.Pipe()
        share_of = num // READERS + (i < num % READERS)
        context.Process(target=_reader, args=(theirs, folder, share_of)).start()
        pipes.append(ours)
    for pipe in pipes:
        count.update(pipe.recv())
    writer.kill()
    writer.join()
    return {f"{READERS} readers": count}


def _write_forever(folder: Path) -> None:
    path = folder / "journal.jsonl"
    for time_around in itertools.count():
        path.unlink(missing_ok=True)
        opened = journal.Journal(path)
        for step in range(50):
            opened.append(_record(step, large=time_around % 2 == 0))
            state = {"x": jax.numpy.full(1000, step), "key": jax.random.key(step)}
            checkpoint.save(folder, step, state)
            write_json(
                folder / "study.json", {"first": step, "middle": "x" * step * 100, "last": step}
            )
        opened.close()
        for step in checkpoint.steps(folder):
            checkpoint.remove(folder, step)


def _reader(pipe: Connection, folder: Path, num: int) -> None:
    like = {"x": jax.numpy.zeros(1000, int), "key": jax.random.key(0)}
    count, kinds = Counter(), (_read_journal, _read_study, _read_checkpoint)
    while count["reads"] < num:
        try:
            fine = kinds[count["reads"] % len(kinds)](folder, like)
        except FileNotFoundError:
            continue  # the writer has just begun anew
        except ValueError as error:
            if "is not there" in str(error) or "of another" in str(error):
                continue  # forgotten between the list and the reading
            fine = False
        count["reads"] += 1
        count["torn"] += not fine
    pipe.send(count)


def _record(step: int, large: bool) -> dict[str, Any]:
    """Make a record of a step; of a large journal, every sixteenth has several MB."""
    text = "x" * LARGE if large and step % 16 == 5 else ""
    return {"step": step, "values": [float(step)] * 16, "text": text}


def _read_journal(folder: Path, like: Any) -> bool:
    found = enumerate(journal.read_records(folder / "journal.jsonl"))
    return all(record in (_record(i, False), _record(i, True)) for i, record in found)


def _read_study(folder: Path, like: Any) -> bool:
    found = read_json(folder / "study.json")
    return found["first"] == found["last"] and len(found["middle"]) == 100 * found["first"]


def _read_checkpoint(folder: Path, like: Any) -> bool:
    found = checkpoint.steps(folder)
    if not found:
        raise FileNotFoundError
    state = checkpoint.load(folder, found[0], like)
    key = jax.random.key(found[0])
    return bool((state["x"] == found[0]).all() and (state["key"] == key).all())


FAULTS = {
    "kills": kills,
    "prefixes": prefixes,
    "flips": flips,
    "full disks": full_disks,
    "races": races,
    "reads": reads,
}


def table(results: Results) -> str:
    """Write the results as Markdown."""
    rows = []
    for fault, methods in results.cases.items():
        for method, found in methods.items():
            if method != "all":
                text = ", ".join(f"{name}: {value}" for name, value in found.items())
                rows.append([fault, method, text])
    return markdown(["fault", "method", "count"], rows)
