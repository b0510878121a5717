"""Hostile folders: no code is run, nothing outside is written, and memory is bounded."""

import importlib
import json
import os
import shutil
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks import faults
from hypergrad import study
from hypergrad.cli import main as cli
from hypergrad.core import stored
from hypergrad.core.files import read_json, write_json
from hypergrad.report.results import load_results
from hypergrad.study.disk import checkpoint
from hypergrad.tuning.provenance import describe_study
from hypergrad.tuning.settings import Settings
from tasks import quadratic
from tests.disk import KEY, ROOT, damage, one_line, refused, toy

pytestmark = pytest.mark.usefixtures("no_waiting")


def sealed(name, **entries):
    """Change entries of a JSON file, and give it its checksum again."""

    def apply(folder):
        write_json(folder / name, read_json(folder / name) | entries)

    return apply


def raw(name, content):
    def apply(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return apply


def resealed(name, body):
    """Put hostile bytes under a checksum that is right."""

    def apply(folder):
        import hashlib

        seal = hashlib.sha256(body).hexdigest().encode()
        (folder / name).write_bytes(b'{\n "sha256": "%s",%s' % (seal, body))

    return apply


def link(name, target):
    def apply(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder.parent / "outside" / target)

    return apply


def hard_link(name):
    def apply(folder):
        (folder / name).unlink(missing_ok=True)
        os.link(folder.parent / "outside" / "file", folder / name)

    return apply


def pipe(name):
    def apply(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return apply


def sparse(name, size):
    def apply(folder):
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return apply


def line(body):
    """Append a line with a right checksum to the journal."""

    def apply(folder):
        with (folder / "journal.jsonl").open("ab") as file:
            file.write(b'{"crc": "%08x", %s' % (zlib.crc32(body), body))

    return apply


def npz(**changes):
    """Rewrite the newest checkpoint as a hostile archive, with a manifest that fits it."""

    def apply(folder):
        newest = checkpoint.steps(folder)[0]
        path = folder / f"checkpoint-{newest:010d}.npz"
        with zipfile.ZipFile(path) as archive:
            members = {i.filename: archive.read(i) for i in archive.infolist()}
        members = {changes.get("rename", {}).get(n, n): data for n, data in members.items()}
        members |= changes.get("add", {})
        with zipfile.ZipFile(path, "w", changes.get("compress", zipfile.ZIP_STORED)) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        with open(path, "rb") as file:
            about = {"bytes": path.stat().st_size, "npz": stored._digest(file)}
        sealed(path.with_suffix(".json").name, **about)(folder)

    return apply


class Bomb:
    """What unpickling would run."""

    def __reduce__(self):
        return (os.system, ("touch pwned",))


def object_array():
    import io

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Bomb()], object), allow_pickle=True)
    return buffer.getvalue()


def header(text):
    text = text.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"


CODE = b"{'descr': __import__('os').system('touch pwned'), 'fortran_order': False, 'shape': ()}"


NEST = b"[" * 5000 + b"]" * 5000


KEY_OF = {"impl": "threefry2x32", "data": [0, 0]}


HOSTILE = {
    "study: link": link("study.json", "file"),
    "study: link to a device": link("study.json", "../../../../dev/zero"),
    "study: pipe": pipe("study.json"),
    "study: sparse": sparse("study.json", 2**40),
    "study: empty": raw("study.json", b""),
    "study: nested": resealed("study.json", b' "a": ' + NEST + b"}"),
    "study: nested, unclosed": raw("study.json", b"[" * 10**6),
    "study: many lists": resealed("study.json", b' "a": [' + b"[]," * 2 * 10**6 + b"[]]}"),
    "study: long number": resealed("study.json", b' "num_steps": ' + b"9" * 10**5 + b"}"),
    "study: no UTF-8": raw("study.json", b"\xff\xfe" * 100),
    "study: steps": sealed("study.json", num_steps=10**12),
    "study: steps as text": sealed("study.json", num_steps="6"),
    "study: steps true": sealed("study.json", num_steps=True),
    "study: seconds": sealed("study.json", checkpoint_seconds="now"),
    "study: key": sealed("study.json", key={"impl": "os.system", "data": [0, 0]}),
    "study: key's size": sealed("study.json", key={"impl": None, "data": [0] * 10**5}),
    "study: key's numbers": sealed("study.json", key={**KEY_OF, "data": [2**40, -1]}),
    "study: key as a list": sealed("study.json", key=[0, 0]),
    "study: key of a list": sealed("study.json", key={"impl": [], "data": [0, 0]}),
    "study: machine": sealed("study.json", machine=[]),
    "study: platform": sealed("study.json", machine={"platform": "../../x"}),
    "study: format": sealed("study.json", format=99),
    "journal: link": link("journal.jsonl", "file"),
    "journal: link to nothing": link("journal.jsonl", "new"),
    "journal: hard link": hard_link("journal.jsonl"),
    "journal: pipe": pipe("journal.jsonl"),
    "journal: sparse": sparse("journal.jsonl", 2**40),
    "journal: folder": lambda f: ((f / "journal.jsonl").unlink(), (f / "journal.jsonl").mkdir()),
    "journal: nested": raw("journal.jsonl", b'{"crc": "00000000", "step": 0, "a": ' + NEST),
    "journal: nested, sealed": line(b'"step": 4, "values": ' + NEST + b"}\n"),
    "journal: words": line(b'"step": 4, "values": ["__import__", "os"]}\n'),
    "journal: huge step": line(b'"step": 99999999, "values": [1.0, 2.0]}\n'),
    "journal: other record": line(b'"step": 4, "values": {"a": 1}}\n'),
    "journal aside: link": lambda f: (
        link("journal-damaged.jsonl", "file")(f),
        damage(f / "journal.jsonl", 1, lambda text: text.replace(b"0", b"1")),
    ),
    "temporary: link": link("study.json.tmp", "file"),
    "lock: link": link("lock", "file"),
    "lock: hard link": hard_link("lock"),
    "lock: pipe": pipe("lock"),
    "checkpoint: link": link("checkpoint-0000000004.npz", "file"),
    "checkpoint: ahead": sealed("checkpoint-0000000004.json", step=3),
    "checkpoint: leaves": sealed("checkpoint-0000000004.json", leaves=["x"] * 1000),
    "checkpoint: size": sealed("checkpoint-0000000004.json", bytes=2**50),
    "checkpoint: sparse": sparse("checkpoint-0000000004.npz", 2**40),
    "npz: traversal": npz(rename={"000000.npy": "../../outside/new"}),
    "npz: absolute": npz(add={"/tmp/hypergrad-pwned": b"x"}),
    "npz: bomb": npz(add={"000000.npy": b"\0" * 2 * 10**8}, compress=zipfile.ZIP_DEFLATED),
    "npz: compressed": npz(compress=zipfile.ZIP_DEFLATED),
    "npz: header of a bomb": npz(add={"000001.npy": header(HUGE)}),
    "npz: header of code": npz(add={"000001.npy": header(CODE)}),
    "npz: header nested": npz(add={"000001.npy": header(b"(" * 100)}),
    "npz: header cut": npz(add={"000001.npy": b"\x93NUMPY\x01\x00\xff\xff{"}),
    "npz: pickle": npz(add={"000001.npy": object_array()}),
    "npz: no array": npz(add={"000001.npy": b"x"}),
    "npz: no archive": raw("checkpoint-0000000004.npz", b"PK\x03\x04" * 100),
    "figures: link": link("figures", ""),
    "result: nested": resealed("result.json", b' "configurations": ' + NEST + b"}"),
    "result: sparse": sparse("result.json", 2**40),
    "result: link": link("result.json", "file"),
    "log: link": link("log.jsonl", "file"),
    "log: hard link": hard_link("log.jsonl"),
    "log: pipe": pipe("log.jsonl"),
    "log: folder": lambda f: (f / "log.jsonl").mkdir(),
    "random: link": link("random", ""),
    "random: file": raw("random", b"x"),
    "result: hard link": hard_link("result.json"),
    "copy: hard link": hard_link("study-copy.json"),
    "copy: pipe": pipe("study-copy.json"),
}


@pytest.fixture
def harm(tmp_path, monkeypatch):
    """Watch a folder's surroundings; at the end nothing outside is new, changed or run."""
    monkeypatch.chdir(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")

    def check():
        assert [p.name for p in outside.iterdir()] == ["file"]
        assert (outside / "file").read_text() == "precious"
        assert sorted(tmp_path.iterdir()) == before and not list(tmp_path.rglob("pwned"))
        assert not Path("/tmp/hypergrad-pwned").exists()

    before = sorted({*tmp_path.iterdir(), tmp_path / "study"})
    return check


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_do_no_harm(case, harm, kept, whole):
    HOSTILE[case](kept)
    tracemalloc.start()
    outcomes = []
    for call in (lambda: study.resume_run(toy(), kept), lambda: study.replay_trial(toy(), kept, 7)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcomes.append(call())
            except ValueError as error:
                one_line(error)
    refused(load_results, kept)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20
    assert all(found.digest == whole.digest for found in outcomes if isinstance(found, study.Run))
    harm()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A study of a task as `hypergrad tune` leaves it when killed, but that the toy trained."""
    task, chosen = quadratic.task(), Settings(method="random", population=2, generations=6)

    def stop(index, outcome, best):
        if index == 3:
            raise faults.Stop

    about = describe_study(task, chosen, {"cost": 2})
    path = tmp_path_factory.mktemp("tuned") / "study"
    with pytest.raises(faults.Stop):
        study.run(toy(), KEY, 6, stop, storage=path, details=about, checkpoint_seconds=0.0)
    return path


@pytest.fixture
def of_task(tmp_path, tuned, monkeypatch):
    """A copy of it, in a process where nothing is compiled, judged or drawn."""
    tuning, resuming = map(
        importlib.import_module, ("hypergrad.tuning.tune", "hypergrad.tuning.resume")
    )
    valid = {"mean": 0.0, "low": 0.0, "high": 0.0, "values": [0.0]}
    judged = {"tuned": {"hparams": {"lr": 0.1}, "valid": valid, "test": {}}}
    monkeypatch.setattr(resuming, "build", lambda *_: (toy(), 2))
    monkeypatch.setattr(tuning, "choose_best", lambda *_: ({"lr": 0.1}, 0.0))
    monkeypatch.setattr(tuning, "judge", lambda *_: judged)
    monkeypatch.setattr(tuning, "_report", lambda path: path)
    return shutil.copytree(tuned, tmp_path / "study")


@pytest.mark.parametrize("case", ["nothing", *HOSTILE])
def test_hostile_folders_do_no_harm_through_the_command_line(case, of_task, harm, whole, capsys):
    HOSTILE.get(case, lambda folder: None)(of_task)
    module = ROOT / "tasks" / "quadratic.py"
    status = cli.main(["resume", str(of_task), f"{module}:task", "--log", "jsonl", "--json"])
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (
        answer["status"] == status and "Traceback" not in err and (status == 0 or case != "nothing")
    )
    if status == 0:
        assert read_json(of_task / "result.json")["digest"] == whole.digest
    else:
        assert status == 2 and one_line(answer["error"])
    assert (status == 0) == bool((of_task / "result.json").is_file()) or case.startswith("result")
    harm()


def test_there_are_forty_hostile_folders():
    assert len(HOSTILE) >= 40
