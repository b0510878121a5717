"""Whether a study survives: signals, lost power, damaged bits, full disks, closed outputs, writers, readers.

Every method and every scheduler with random search is put through it on a small problem; a method whose library
is missing is named. What a study arrives at is compared, to the bit, with a run that nothing disturbed. All
counts should be zero except those of the attempts. The full run takes about half an hour on one core, and goes
on where it was stopped, by fault and method. How power is lost is in `power`, how whole studies end is in
`endings`.
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
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from benchmarks import endings, power
from benchmarks.fault_cases import (
    CASES,
    MISSING,
    NUM_STEPS,
    SIGNALS,
    Stop,
    compiled_programs_are_kept,
    count_records,
    end,
    go_on,
    messages,
    needs,
    stopped,
    undisturbed,
)
from benchmarks.record import Figure, Results, markdown
from hypergrad.core.files import parse_json, read_json, write_json
from hypergrad.study.disk import checkpoint, journal
from hypergrad.study.disk.folder import create

__all__ = [
    "CASES",
    "FAULTS",
    "NUM_STEPS",
    "Stop",
    "go_on",
    "run",
    "stopped",
    "table",
    "undisturbed",
]

KILLED_STEPS = 30
FULL = {
    "power losses": 40,
    "endings": 1,
    "closed outputs": 3,
    "kills": 6,
    "full disks": 5,
    "flips": 30,
    "prefixes": 3,
}
"""{fault of every method: number of attempts for each}."""
QUICK = {**dict.fromkeys(FULL, 1), "power losses": 3, "flips": 3}
QUICK_CASES = ("descent", "random", "random-halving")
SHARED = {"races": ("8 writers", 100, 3), "reads": ("3 readers", 10_000, 200)}
"""{fault of no method: its name, and its number of attempts, full and quick}."""
IN_MEMORY = ("prefixes", "flips", "power losses", "full disks")
WRITERS = 8
READERS = 3
LARGE = 4 * 2**20
"""Bytes of text in some records of the journal that is read meanwhile: too many for one write."""


def run(results: Results, options: Any) -> None:
    """Try every fault on every method that is not in the results yet."""
    compiled_programs_are_kept()
    for name, method, num in attempts(options.quick):
        if method in results.cases.get(name, {}):
            continue
        print(f"{name}, {method} ...", flush=True)
        began = time.perf_counter()
        # no bit of these depends on waiting for a disk, and memory is faster
        place = "/dev/shm" if name in IN_MEMORY and os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(dir=place) as folder:
            count = FAULTS[name](Path(folder), method, num)
        figures = [Figure(method, metric, value, "count") for metric, value in count.items()]
        figures.append(Figure(method, "time", round(time.perf_counter() - began, 1), "s"))
        results.add(name, figures)
    if MISSING and "not tried" not in results.cases:
        figures = [Figure(name, f"needs {needs(name)}", 1, "missing") for name in MISSING]
        results.add("not tried", figures)


def attempts(quick: bool) -> Iterator[tuple[str, str, int]]:
    """List fault, method and number of attempts; the faults that no method matters to come first."""
    for name, (who, full, few) in SHARED.items():
        yield name, who, few if quick else full
    for name, num in (QUICK if quick else FULL).items():
        for method in QUICK_CASES if quick else CASES:
            yield name, method, num


def kills(folder: Path, method: str, num: int, num_steps: int = KILLED_STEPS) -> Counter:
    """End a study by a signal at random instants, continue each time, compare the end.

    Half of the instants are drawn over the life of the process, half over the time in which it takes steps.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # jax is imported once, and forked before it is used
    draw = random.Random(f"kills {method}")
    count = Counter({**dict.fromkeys((one.name for one in SIGNALS), 0), "studies": 0})
    count.update({"records lost": 0, "failed resumes": 0, "other digests": 0})
    began = time.monotonic()
    expected = undisturbed(method, num_steps)
    longest, stepping, ended = 1.0 + time.monotonic() - began, 1.0, 0
    while ended < num:
        place = folder / f"{method}-{count['studies']}"
        acknowledged, digest = -1, None
        while digest is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=_child, args=(theirs, method, place, num_steps))
            process.start()
            theirs.close()
            began, last = time.monotonic(), SIGNALS[ended % len(SIGNALS)]
            if ended < num:
                if draw.random() < 0.5 and ours.poll(longest + 60):
                    process.join(draw.uniform(0, stepping))
                else:
                    process.join(draw.uniform(0, longest))
                if end(process, last):
                    count[last.name] += 1
                    ended += 1
            first = None
            for kind, value in messages(ours):
                if kind == "step":
                    first = first or time.monotonic()
                    acknowledged = max(acknowledged, value)
                elif kind == "digest":
                    digest, longest = value, max(0.8 * longest, time.monotonic() - began)
                    stepping = time.monotonic() - (first or began)
                else:
                    print(value)
                    count["failed resumes"] += 1
                    digest = ""
            process.join()
            count["records lost"] += max(0, acknowledged + 1 - count_records(place))
        count["studies"] += 1
        count["other digests"] += digest != expected
    return count


def _child(pipe: Connection, method: str, folder: Path, num_steps: int) -> None:
    try:
        found = go_on(method, folder, num_steps, lambda i, *_: pipe.send(("step", i)))
        pipe.send(("digest", found.digest))
    except Exception as error:
        pipe.send(("error", repr(error)))


def power_losses(folder: Path, method: str, num: int) -> Counter:
    """Lose the power at random instants between two calls of the system, continue, compare the end."""
    draw = random.Random(f"power {method}")
    kept: list[tuple[Path, int]] = []
    seen, acknowledged = 0, -1
    root = folder / "disk"
    root.mkdir()
    disk = power.Disk(root, draw)

    def lose() -> None:  # of all instants, each is as likely among those that are kept
        nonlocal seen
        seen += 1
        place = folder / f"lost-{seen}"
        if len(kept) < num:
            kept.append((place, acknowledged))
        elif (at := draw.randrange(seen)) < num:
            shutil.rmtree(kept[at][0])
            kept[at] = (place, acknowledged)
        else:
            return
        disk.after_power_loss(place)

    def on_step(index: int, *_: Any) -> None:
        nonlocal acknowledged
        acknowledged = index

    with power.watched(disk, lose):
        go_on(method, root / "study", on_step=on_step)
    count = Counter({"losses": 0, "instants": seen, "made again": 0, "records lost": 0})
    count.update({"failed resumes": 0, "other digests": 0})
    for place, steps in kept:
        count["losses"] += 1
        count["records lost"] += max(0, steps + 1 - count_records(place / "study"))
        _continue(method, place / "study", count)
        shutil.rmtree(place)
    return count


def _continue(method: str, folder: Path, count: Counter) -> None:
    """Go on with a study that something happened to, and count what it arrives at."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            digest = go_on(method, folder).digest
        except Exception as error:
            print(repr(error))
            count["failed resumes"] += 1
            return
    count["made again"] += bool(caught)
    count["other digests"] += digest != undisturbed(method)


def prefixes(folder: Path, method: str, num: int) -> Counter:
    """Cut a journal of `num` records at every byte; open it, count its records, continue."""
    count = Counter({"prefixes": 0, "whole records lost": 0, "failed": 0})
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
    return count


def _rest(lines: list[bytes], cut: int) -> Iterator[tuple[bytes, int]]:
    """Pair each line with the bytes that are left where it begins."""
    for line in lines:
        yield line, cut
        cut -= len(line)


def flips(folder: Path, method: str, num: int) -> Counter:
    """Flip one bit of one file of a stopped study; continue, compare the end."""
    draw = random.Random(f"flips {method}")
    count = Counter({"flips": 0, "silent": 0, "other digests": 0})
    base = folder / method
    stopped(method, base, NUM_STEPS * 3 // 5)
    names = sorted(path.name for path in base.iterdir() if path.name != "lock")
    for _ in range(num):
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
    return count


def full_disks(folder: Path, method: str, num: int) -> Counter:
    """Let a file-size limit stop a study somewhere; lift it, continue, compare the end."""
    draw = random.Random(f"full disks {method}")
    names = ("points", "stopped", "long errors", "records lost", "failed resumes", "other digests")
    count = Counter(dict.fromkeys(names, 0))
    go_on(method, folder / method)
    largest = max(path.stat().st_size for path in (folder / method).iterdir())
    for point in range(num):
        place, acknowledged = folder / f"{method}-{point}", []
        with file_limit(draw.randrange(1, largest)):
            try:
                go_on(method, place, on_step=lambda i, *_, a=acknowledged: a.append(i))
            except ValueError as error:
                count["stopped"] += 1
                count["long errors"] += "\n" in str(error) or "cannot write" not in str(error)
        count["records lost"] += max(0, len(acknowledged) - count_records(place))
        _continue(method, place, count)
        count["points"] += 1
    return count


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Refuse to let any file of this process grow beyond `size` bytes, until the end of the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def races(folder: Path, who: str, num: int) -> Counter:
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
    return count


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


def reads(folder: Path, who: str, num: int) -> Counter:
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
    return count


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


FAULTS: dict[str, Callable[[Path, str, int], Counter]] = {
    "kills": kills,
    "power losses": power_losses,
    "endings": endings.endings,
    "closed outputs": endings.closed_outputs,
    "prefixes": prefixes,
    "flips": flips,
    "full disks": full_disks,
    "races": races,
    "reads": reads,
}


def table(results: Results) -> str:
    """Write the results as Markdown: a row for each fault, summed over the methods, and what was not zero."""
    rows = []
    for fault, methods in results.cases.items():
        methods = {name: found for name, found in methods.items() if name != "all"}
        total: Counter = Counter()
        for found in methods.values():
            total.update({name: value for name, value in found.items() if name != "time"})
        text = ", ".join(f"{name}: {value}" for name, value in total.items())
        who = f"{len(methods)} methods" if len(methods) > 1 else ", ".join(methods)
        rows.append([fault, who, text])
    return markdown(["fault", "of", "count"], rows)
