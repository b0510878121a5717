"""The environments in which `python -m benchmarks compat` runs the suite."""

import itertools
import re

from benchmarks import compat


def test_both_ends_of_jax():
    oldest, newest = compat.constraints("oldest"), compat.constraints("newest")
    assert "jax==0.10.0" in oldest and "jaxlib==0.10.0" in oldest
    assert not any(re.match("jax(lib)?==", line) for line in newest)
    assert set(newest) < set(oldest)


def test_the_suite_s_packages_and_no_tools():
    names = {re.match(r"[\w-]+", line)[0] for line in compat.requirements()}
    assert {"jax", "optax", "pytest", "hypothesis", "pandas"} <= names
    assert not {"ruff", "pyright", "pre-commit"} & names


def test_any_two_settings_meet_in_a_cell(monkeypatch):
    monkeypatch.setattr(compat, "find_python", lambda minor: compat.ROOT)
    cells = list(compat.find_cells())
    assert len(cells) == 4
    for i, j in itertools.combinations(("version", "jax", "x64"), 2):
        met = {(getattr(cell, i), getattr(cell, j)) for cell in cells}
        assert met == set(itertools.product(*zip(*met, strict=True))) and len(met) == 4
    assert cells[2].name == "python 3.13, oldest jax, x64 on"  # that of --quick
    assert [cell for cell in cells if cell.x64][-1] == cells[2]
    monkeypatch.setattr(compat, "find_python", lambda minor: compat.ROOT if minor == 12 else None)
    assert [cell.jax for cell in compat.find_cells()] == ["oldest", "newest"]


def test_the_newest_python_of_pyenv_is_found(tmp_path, monkeypatch):
    for version in ("3.12.9", "3.12.10", "3.12.2", "3.13.1"):
        python = tmp_path / "versions" / version / "bin" / f"python{version.rpartition('.')[0]}"
        python.parent.mkdir(parents=True)
        python.touch()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setattr(compat.shutil, "which", lambda name: None)
    monkeypatch.setattr(compat, "_runs", lambda command: "3.12.10" in command[0])
    assert compat.find_python(12).parts[-3] == "3.12.10"
    assert compat.find_python(13) is None
    tried = []
    monkeypatch.setattr(compat, "_runs", lambda command: tried.append(command[0]))
    assert compat.find_python(12) is None
    assert [path.split("/")[-3] for path in tried] == ["3.12.10", "3.12.9", "3.12.2"]


def test_the_end_of_a_log_is_read(tmp_path, monkeypatch):
    """A stub in the place of the suite: its exit status, counts and time become figures."""
    stub = tmp_path / "python"
    stub.write_text(
        "#!/bin/sh\n"
        'case $1 in -c) echo \'{"python": "3.12.1", "jax": "0.10.0", "numpy": "2"}\';;\n'
        "*) echo \"x64 is $JAX_ENABLE_X64\"; echo '= 1 failed, 7 passed, 2 errors in 61.50s (0:01:01) ='\n"
        "exit 1;; esac\n"
    )
    stub.chmod(0o755)
    monkeypatch.setattr(compat, "PLACE", tmp_path)
    monkeypatch.setattr(compat, "build", lambda cell: str(stub))
    monkeypatch.setenv("XLA_FLAGS", "")
    figures = compat.run_cell(compat.Cell(stub, "3.12", "oldest", True))
    assert {f.metric: f.value for f in figures} == {
        "exit status": 1, "commit": compat.commit(), "passed": 7, "failed": 1, "error": 2, "time": 61.5
    }  # fmt: skip
    assert {f.method for f in figures} == {"python 3.12.1, jax 0.10.0, numpy 2, XLA_FLAGS="}
    assert "x64 is 1" in (tmp_path / "python-3.12-oldest-jax-x64-on.log").read_text()
