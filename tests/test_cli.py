"""The command line as a user meets it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hypergrad import cli

ROOT = Path(__file__).parent.parent


def hypergrad(*words, timeout=240):
    return subprocess.run(
        [sys.executable, "-m", "hypergrad", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small study of the main task, run by the command line."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    words = [
        "tune",
        "digits",
        "--budget",
        "4",
        "--seeds",
        "2",
        "--horizon",
        "20",
        "--arg",
        "width=8",
        "--out",
    ]
    return out, hypergrad(*words, str(out))


def test_tune_writes_a_study(finished):
    out, done = finished
    assert done.returncode == 0, done.stderr
    assert "tuned" in done.stdout and "report:" in done.stdout
    assert "momentum" in done.stderr, "progress shows the hyperparameters"
    result = json.loads((out / "result.json").read_text())
    assert set(result["configurations"]) == {"default", "tuned", "random"}
    assert len(result["configurations"]["tuned"]["hparams"]["lr"]) == 20
    journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert [record["step"] for record in journal] == [0, 1, 2, 3]
    page = (out / "report.html").read_text()
    assert "Content-Security-Policy" in page and "<svg" in page
    assert json.loads((out / "study.json").read_text())["task_arguments"]["width"] == 8


def test_snippet_is_plain_optax_code(finished):
    import jax
    import jax.numpy as jnp
    import optax

    from tasks import digits

    out, _ = finished
    result = json.loads((out / "result.json").read_text())
    scope = {}
    exec(result["snippet"], scope)
    hparams = {k: jnp.asarray(v) for k, v in result["configurations"]["tuned"]["hparams"].items()}
    params = {f"dense_{i}": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for i in range(2)}
    grads = jax.tree.map(lambda x: 0.1 * x, params)
    ends = []
    for optimizer in (scope["optimizer"], digits.optimizer(hparams)):
        here, state = params, optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(grads, state, here)
            here = optax.apply_updates(here, updates)
        ends.append(here)
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_a_study_is_not_overwritten_unasked(finished):
    out, _ = finished
    before = (out / "result.json").read_bytes()
    again = hypergrad("tune", "digits", "--out", str(out))
    assert again.returncode == 2 and "--overwrite" in again.stderr
    assert (out / "result.json").read_bytes() == before
    assert hypergrad("report", str(out)).returncode == 0


def test_check_compares_with_finite_differences():
    done = hypergrad("check", "quadratic", "--horizon", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        line.split() for line in done.stdout.splitlines() if line.startswith(("reverse", "forward"))
    ]
    assert len(rows) == 4
    # this task tunes the optimizer's hparams alone
    assert "implicit               not for this task: hparams['lr'] acts" in done.stdout


def test_user_file_with_a_task(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from tasks.quadratic import task\n\n"
        "def small(*, size=2):\n"
        "    return task(horizon=5, num_params=size)\n"
    )
    words = ["tune", f"{path}:small", "--arg", "size=3", "--method", "random", "--budget", "16"]
    done = hypergrad(*words, "--out", str(tmp_path / "out"), "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("tune digit", "did you mean 'digits'?"),
        ("tune nowhere.py:task", "a file that is not there"),
        ("tune digits --memory lots", "--memory is 'lots'"),
        ("tune digits --arg width", "expected NAME=VALUE"),
        ("tune digits --arg widht=3", "did you mean 'width'?"),
        ("tune digits:absent", "cannot be imported"),
        ("tune tasks.digits:absent", "has no 'absent'"),
        ("tune images", "was given no data"),
        ("tune tabular --data absent.csv", "a file that is not there"),
        ("report nowhere", "nowhere"),
    ],
)
def test_bad_words_are_refused_in_one_line(words, fragment, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert fragment in error and error.count("\n") == 1 and "Traceback" not in error


def test_help_imports_nothing_heavy():
    script = (
        "import sys, hypergrad.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'jax','numpy','optax','flax','matplotlib','rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip().endswith("[]")


def test_list_names_the_tasks():
    done = hypergrad("list")
    for name in ("digits", "tabular", "images", "quadratic", "ridge", "descent", "forward"):
        assert f"  {name} " in done.stdout
    assert "needs --data" in done.stdout


def test_readme_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.split(" -> "))
    assert after < 0.9 * before


def test_readme_commands_parse():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^hypergrad (.*?)(?:\s+#.*)?$", text, re.M)
    assert len(commands) >= 6
    for command in commands:
        cli.parser().parse_args(command.split())


def test_ctrl_c_keeps_the_best(tmp_path):
    import signal

    out = tmp_path / "study"
    words = ["tune", "quadratic", "--budget", "100000", "--seeds", "1", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hypergrad", *words, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.is_file() and journal.stat().st_size > 3000):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "tuned" in stdout and "Traceback" not in stderr
    assert json.loads((out / "result.json").read_text())["interrupted"] is True
