"""What happens to a study whose files or folder are moved, deleted or looked at by others while it runs."""

import errno
import os
import stat
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from hypergrad import study
from hypergrad.core.files import failed
from hypergrad.study.disk.folder import check_folder_name, create
from hypergrad.study.disk.journal import check_journal, read_records
from hypergrad.study.export import write
from tests.disk import KEY, refused, toy

pytestmark = pytest.mark.usefixtures("no_waiting")


def run_with(change, folder, at=2, every=1e9):
    """Run the toy and change its folder after a step; return the refusal."""

    def on_step(index, trials, best):
        if index == at:
            change(folder)

    call = lambda: study.run(toy(), KEY, 6, on_step, storage=folder, checkpoint_seconds=every)  # noqa: E731
    return refused(call)


def renamed(folder):
    os.rename(folder, folder.with_name("elsewhere"))


def deleted(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


CHANGES = {
    "journal deleted": lambda f: (f / "journal.jsonl").unlink(),
    "journal renamed": lambda f: os.rename(f / "journal.jsonl", f / "mine.jsonl"),
    "journal replaced": lambda f: (
        (f / "journal.jsonl").unlink(),
        (f / "journal.jsonl").write_bytes(b"other\n"),
    ),
    "journal copied over": lambda f: (
        (f / "copy").write_bytes((f / "journal.jsonl").read_bytes()),
        os.replace(f / "copy", f / "journal.jsonl"),
    ),
}


@pytest.mark.parametrize("at", [2, 5])
@pytest.mark.parametrize("change", CHANGES)
def test_a_journal_that_vanished_ends_in_an_error_and_nothing_is_lost(change, at, tmp_path, whole):
    """Also after the last step, when nothing is appended any more."""
    folder = tmp_path / "s"
    error = run_with(CHANGES[change], folder, at)
    kept = min(at + 2, 6)  # the step after the change is taken, and noticed
    assert f"its {kept} steps so far are kept as journal" in error and "hypergrad resume" in error
    again, steps = toy(), []
    with pytest.warns() if "replaced" in change else nullcontext():
        found = study.resume_run(again, folder, lambda i, *_: steps.append(i))
    assert found.digest == whole.digest and len(list(read_records(folder / "journal.jsonl"))) == 6
    assert steps == list(range(kept, 6)) or "over" in change or "replaced" in change


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_a_renamed_folder_is_found_and_resumes_there(tmp_path, whole, every):
    error = run_with(renamed, tmp_path / "s", every=every)
    assert "was deleted or renamed" in error
    if sys.platform == "linux":
        assert f"the 4 steps so far are in {str(tmp_path / 'elsewhere')!r}; resume it" in error
    found = study.resume_run(toy(), tmp_path / "elsewhere")
    assert found.digest == whole.digest


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_a_deleted_folder_is_not_to_be_resumed(tmp_path, every):
    error = run_with(deleted, tmp_path / "s", every=every)
    assert "nothing of it is left; start the study again" in error and "resume" not in error
    assert not (tmp_path / "s").exists(), "nothing is written in its place"


def test_what_is_gone_when_a_study_is_judged(tmp_path, kept):
    check_journal(kept)
    (kept / "journal.jsonl").unlink()
    assert "takes the steps again" in refused(check_journal, kept)
    assert "give it its name again" in refused(check_journal, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "make room, then"),
        (errno.EFBIG, "make room, then"),
        (errno.EROFS, "allow it, then"),
        (errno.EACCES, "allow it, then"),
        (errno.ENOENT, "'runs/s' was renamed or deleted, or is on a disk that is gone: give it its name"),
        (errno.EIO, "make room or allow it, then"),
    ],
)  # fmt: skip
def test_the_advice_is_for_what_went_wrong(tmp_path, number, cure):
    text = str(failed("write", Path("runs/s/journal.jsonl"), OSError(number, os.strerror(number))))
    assert cure in text and text.endswith("continue with `hypergrad resume`")


NAMES = ["a b", "größe", "gro\u0308ße", "実験 3", "опыт", "тест(2)", "run=3,5@home+x", "_", "9"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_every_script_are_taken(tmp_path, name, whole):
    folder = tmp_path / name
    assert study.run(toy(), KEY, 6, storage=folder).digest == whole.digest
    assert study.resume_run(toy(), folder).digest == whole.digest


ODD = ["", " a", "a ", ".hidden", "-x", "a\nb", "a\x1b[2Jb", "a\u202eb", "x" * 201, "ж" * 101]
ODD += ["a/b", "a\\b", "a:b", "a*", "a?", "'a'", '"a"', "a|b", "a$b", "a\udcffb", "a\u2028b"]


@pytest.mark.parametrize("name", ODD)
def test_names_that_hide_or_break_something_are_not(name):
    assert "name another folder" in refused(check_folder_name, name, "out")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_study_is_its_owners_alone(tmp_path):
    before = os.umask(0o022)
    try:
        folder = tmp_path / "runs" / "s"
        study.run(toy(), KEY, 6, storage=folder, checkpoint_seconds=0.0)
        study.jsonl(folder / "log.jsonl").start({})
        write(tmp_path / "hparams.json", {"lr": 0.1})
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    files = list(folder.iterdir())
    assert len(files) >= 8 and {mode(path) for path in files} == {0o600}
    assert mode(tmp_path / "hparams.json") == 0o644, "what a user exports is for others, too"
    (tmp_path / "mine").mkdir(mode=0o755)
    with create(tmp_path / "mine"):
        assert mode(tmp_path / "mine") == 0o755, "a folder that was there stays as it was made"
