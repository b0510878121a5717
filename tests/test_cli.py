"""The command line as a user meets it."""

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.shell_completion import ShellComplete

import hypergrad as hg
from hypergrad.cli import main as cli, terminal
from hypergrad.cli.options import SHELLS, command
from hypergrad.study import LOGS, Progress

ROOT = Path(__file__).parent.parent


def hypergrad(*words, timeout=240, cwd=ROOT):
    """Run the command line, without the lines of XLA's own log on standard error.

    jax 0.10.0 logs two for every program that it loads from the compilation cache.
    """
    done = subprocess.run(
        [sys.executable, "-m", "hypergrad", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        check=False,
    )
    done.stderr = re.sub(
        r"^[EWI]\d{4} [\d:.]+ +\d+ \w+\.cc:\d+\] .*\n", "", done.stderr, flags=re.M
    )
    return done


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


@pytest.mark.slow
def test_flatness_measures_the_networks_that_were_judged(finished, tmp_path, monkeypatch):
    """Their validation objectives are those that the study's comparison wrote down."""
    from hypergrad.tuning import flatness
    from tasks import digits

    shutil.copytree(finished[0], tmp_path / "copy")
    task = digits.task(width=8, horizon=20)
    problem, start = task.problem, hg.space.default(task.space)

    def objective(loss, params, batch, key):
        return problem.objective(params, start, problem.valid_batch(key))

    monkeypatch.setattr(flatness, "MEASURES", {"objective": objective})
    found = flatness.measure_flatness(task, tmp_path / "copy").measures
    judged = json.loads((tmp_path / "copy" / "result.json").read_text())["configurations"]
    assert len(found["random"]["objective"]) == flatness.MAX_SEEDS, "of the likeliest of its draws"
    for name in ("default", "tuned"):
        values = judged[name]["valid"]["values"][: flatness.MAX_SEEDS]
        assert len(set(values)) == len(values) > 1
        np.testing.assert_allclose(found[name]["objective"], values, rtol=1e-4)


@pytest.mark.slow
def test_flatness_is_said_and_kept(finished, capsys, monkeypatch):
    out, _ = finished
    said = run_json(["flatness", str(out), "digits"], capsys, monkeypatch)
    assert set(said["measures"]) == {"default", "tuned", "random"}
    tuned = said["measures"]["tuned"]
    assert np.all(np.array(tuned["Hessian norm"]) >= np.abs(tuned["largest eigenvalue"]) * 0.8)
    kept = json.loads((out / "flatness.json").read_text())
    assert kept["of"] == json.loads((out / "result.json").read_text())["final_digest"]
    # the slice goes through the network whose loss was measured
    for name, values in kept["slices"].items():
        assert values[len(values) // 2] == pytest.approx(
            said["measures"][name]["training loss"][0], rel=1e-4
        )
    assert "Hessian norm" in (out / "report.html").read_text()
    assert cli.main(["flatness", str(out)]) == 2
    assert "TASK is missing" in capsys.readouterr().err


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


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The words that tune a small table, one of whose columns has a hostile name."""
    rows = "".join(f"${i % 7},{'n/a' if i == 3 else i / 2},{'ab'[i % 2]}\n" for i in range(60))
    (tmp_path / "t.csv").write_text("price,\x1b[31mx,kind\n" + rows)
    monkeypatch.chdir(ROOT)
    words = "--method random --budget 2 --eval-seeds 2 --horizon 3 --arg width=4 --arg batch_size=8"
    places = ["--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")]
    return ["tune", "tabular", *words.split(), *places]


def test_how_columns_are_taken_is_said_before_anything_is_tuned(table, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise ValueError("stopped")

    monkeypatch.setattr(importlib.import_module("hypergrad.tuning.tune"), "tune", stop)
    assert cli.main(table) == 2
    err = capsys.readouterr().err
    assert "Columns of t.csv:\n  column" in err and "$0 = 0" in err and "'n/a' (1)" in err
    assert "\x1b" not in err
    assert cli.main([*table, "--quiet"]) == 2
    assert capsys.readouterr().err == "hypergrad: stopped\n"
    assert cli.main([*table, "--arg", "kinds={}", "--arg", "missing=[]"]) == 2
    assert "holds 'n/a' in column '\\x1b[31mx', row 5, where 59 of" in capsys.readouterr().err


@pytest.mark.slow
def test_how_columns_were_taken_is_kept(table, capsys, tmp_path):
    assert cli.main([*table, "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes == json.loads((tmp_path / "out" / "result.json").read_text())["notes"]
    (found,) = notes.values()
    assert [row["kind"] for row in found] == ["number", "number", "text, the label"]
    assert found[0]["example"] == "$0 = 0" and found[1]["missing"] == 1
    assert "Columns of t.csv" in (tmp_path / "out" / "report.html").read_text()


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


def test_a_study_is_not_overwritten_unasked(finished, capsys, monkeypatch):
    out, _ = finished
    before = (out / "result.json").read_bytes()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["tune", "digits", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "result.json").read_bytes() == before
    assert cli.main(["report", str(out)]) == 0


@pytest.mark.slow
def test_verify_compares_with_finite_differences():
    done = hypergrad("verify", "quadratic", "--horizon", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        line.split() for line in done.stdout.splitlines() if line.startswith(("reverse", "forward"))
    ]
    assert len(rows) == 4
    # this task tunes the optimizer's hparams alone, and none of them is a choice
    for name in ("implicit", "darts"):
        assert f"{name:22s} not for this task: hparams['lr'] acts" in done.stdout
    for name in ("mixed", "score", "score_shared, one step", "relaxed"):
        assert f"{name:22s} not for this task: every leaf of its space is real" in done.stdout
    assert "truncated, warm start" in done.stdout


def test_a_user_file_may_have_any_name(tmp_path, monkeypatch):
    from hypergrad.cli.loading import load_task

    (tmp_path / "json.py").write_text(
        "from tasks import quadratic\n\n\ndef task(**words):\n    return quadratic.task(**words)\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_task(f"{tmp_path / 'json.py'}:task", {"horizon": 7}).horizon == 7
    import json

    assert hasattr(json, "dumps")


def test_user_file_with_a_task(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(
        "from tasks.quadratic import task\n\n"
        "def small(*, size=2):\n"
        "    return task(horizon=5, num_params=size)\n"
    )
    words = ["tune", f"{path}:small", "--arg", "size=3", "--method", "random", "--budget", "16"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main([*words, "--out", str(tmp_path / "out"), "--quiet", "--devices", "1"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("tune digit", "did you mean 'digits'?"),
        ("tune nowhere.py:task", "a file that is not there"),
        ("tune digits --memory lots", "--memory is 'lots'"),
        ("run nowhere.toml", "a file that is not there"),
        ("resume nowhere digits", "nowhere"),
        ("export nowhere", "nowhere"),
        ("tune digits --arg width", "expected NAME=VALUE"),
        ("tune digits --arg widht=3", "did you mean 'width'?"),
        ("tune digits:absent", "cannot be imported"),
        ("tune tasks.digits:absent", "attribute of tasks.digits in TASK is 'absent'"),
        ("tune text --file book.txt", "did you mean '--data'?"),
        ("tune book.txt", "or text --data book.txt"),
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


def test_help_imports_light_files_alone():
    """It is there at once: of other libraries it loads click, of this package files that need no other."""
    commands = [[], *([name] for name in cli.COMMANDS)]
    script = (
        "import sys; before = set(sys.modules); import hypergrad.cli.main as c\n"
        f"for words in {commands}: c.main([*words, '--help'])\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.count("Usage: hypergrad") == len(commands)
    assert done.stdout.splitlines()[-1] == "click hypergrad"


def test_list_names_the_tasks():
    done = hypergrad("list")
    for name in ("digits", "tabular", "images", "quadratic", "ridge", "descent", "forward"):
        assert f"  {name} " in done.stdout


def test_list_says_what_a_task_needs(tmp_path):
    (tmp_path / "tasks").mkdir()
    source = 'def task(*, data: str):\n    """Tune what I have."""\n'
    (tmp_path / "tasks" / "mine.py").write_text(source)
    assert "Tune what I have. (needs --data)" in hypergrad("list", cwd=tmp_path).stdout


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_the_study_resumes(tmp_path):
    out = tmp_path / "study"
    words = ["quadratic", "--horizon", "5", "--seeds", "1", "--eval-seeds", "2", "--scout", "0"]
    # a suite that runs in the background passes on that Ctrl-C is ignored
    heeding = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from hypergrad.cli.main import main; sys.exit(main())"
    )
    said = tmp_path / "stderr.txt"
    with said.open("w") as file:  # a pipe that nobody reads would fill, and stop the process
        process = subprocess.Popen(
            [sys.executable, "-c", heeding, "tune", *words, "--budget", "400", "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=ROOT,
        )
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.is_file() and journal.stat().st_size > 3000):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)[0], said.read_text()
    assert process.returncode == 130, stderr
    assert "tuned" in stdout and "Traceback" not in stderr
    assert json.loads((out / "result.json").read_text())["interrupted"] is True
    before = len(journal.read_text().splitlines())
    advice = re.search(
        r"^hypergrad: ended by Ctrl-C after (\d+) steps; continue with: (.*)$", stderr, re.M
    )
    # the step in flight may be done without being on disk
    assert int(advice[1]) - before in (0, 1) and before < 400
    again = shlex.split(advice[2])
    assert again == ["hypergrad", "resume", str(out), "quadratic"]

    done = hypergrad(*again[1:], "--json", "--log", "jsonl", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["interrupted"] is False and done.stderr == ""
    assert len(journal.read_text().splitlines()) == 400
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert next(line for line in log if line["event"] == "step")["done"] == before + 1


# machines


def run_json(words, capsys, monkeypatch, status=0):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main([*words, "--json"]) == status
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def flags_of(command):
    return [text for param in command.params for text in param.opts if text.startswith("-")]


def test_an_argument_that_a_task_needs_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "needy.py").write_text('def task(*, data):\n    """Need data."""\n')
    assert cli.main(["list"]) == 0
    assert "Need data. (needs --data)" in capsys.readouterr().out
    assert cli.main(["tune", "tasks/needy.py"]) == 2
    assert "was given no data, expected a value; pass --data VALUE" in capsys.readouterr().err


def test_every_command_has_the_common_flags():
    names = "tune run resume replay export report flatness verify recommend list completion"
    assert set(cli.COMMANDS) == set(names.split())
    for one in cli.COMMANDS.values():
        flags = set(flags_of(one))
        assert {"--json", "--quiet", "--no-color"} <= flags
        assert ("--arg" in flags) == ({"--cache", "--no-cache"} <= flags), (
            "what takes a task compiles"
        )


def test_json_of_list_report_export_and_completion(finished, capsys, monkeypatch, tmp_path):
    out, _ = finished
    listed = run_json(["list"], capsys, monkeypatch)
    assert {"digits", "images", "tabular", "text"} <= set(listed["tasks"])
    assert {"descent", "random"} <= set(listed["methods"]) and "jsonl" in listed["logs"]
    assert run_json(["report", str(out)], capsys, monkeypatch) == {
        "report": str(out / "report.html")
    }
    tuned = json.loads((out / "result.json").read_text())["configurations"]["tuned"]["hparams"]
    exported = run_json(["export", str(out)], capsys, monkeypatch)
    assert exported["hparams"] == tuned
    place = str(tmp_path / "tuned.json")
    assert run_json(["export", str(out), "--out", place], capsys, monkeypatch) == {"file": place}
    assert json.loads(Path(place).read_text()) == exported
    assert "complete" in run_json(["completion", "bash"], capsys, monkeypatch)["script"]
    # in a process of its own, because the study has as many devices as there are cores
    replayed = json.loads(hypergrad("replay", str(out), "3", "digits", "--json").stdout)
    assert replayed["step"] == 3 and replayed["first_nonfinite"] is None
    assert replayed["hparams"].keys() == tuned.keys()


def test_json_of_an_error(capsys, monkeypatch):
    found = run_json(["report", "nowhere"], capsys, monkeypatch, status=2)
    assert found["status"] == 2 and "nowhere" in found["error"]
    found = run_json(["tun"], capsys, monkeypatch, status=2)
    assert "did you mean 'tune'?" in found["error"]


@pytest.mark.parametrize("error", [1e-9, 0.3])
def test_json_of_verify(error, capsys, monkeypatch):
    """What `verify` returns is written as it is; an exact estimator that is not makes the status 1."""
    monkeypatch.setenv("JAX_ENABLE_X64", "0")  # which the command sets, and this puts back
    verify = importlib.import_module("hypergrad.estimators.verify")
    rows = [
        verify.Row("reverse", error, "lr", 1.0, 4.0, 100, exact=True),
        verify.Row("es", 0.3, "lr", 0.9, 4.0, 100, exact=False, deviation=1.0),
        verify.Row("implicit", np.nan, "", np.nan, np.nan, 0, exact=True, refused="it acts"),
    ]
    monkeypatch.setattr(verify, "verify", lambda task, horizon, seed: rows)
    found = run_json(
        ["verify", "quadratic", "--horizon", "4"], capsys, monkeypatch, int(error > 1e-4)
    )
    assert found["passed"] is (error < 1e-4) and found["task"] == "quadratic"
    assert [row["estimator"] for row in found["rows"]] == ["reverse", "es", "implicit"]
    assert found["rows"][0]["error"] == error and found["rows"][2]["error"] is None


def test_ctrl_c_before_there_is_a_study(capsys, monkeypatch):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.COMMANDS["list"], "callback", interrupt)
    assert cli.main(["list"]) == 130
    assert "ended by Ctrl-C" in capsys.readouterr().err


# people


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ([], "missing command; see `hypergrad --help`"),
        (["tune"], "missing argument 'TASK'; see `hypergrad tune --help`"),
        (["tune", "digits", "--bugdet", "3"], "did you mean '--budget'?"),
        (["tune", "digits", "--bud=3"], "no such option '--bud'"),
        (["tune", "digits", "more"], "unexpected extra argument (more)"),
        (["tune", "digits", "--budget", "-3"], "--budget is -3, expected a whole number"),
        (["tune", "digits", "--budget", "3.5"], "--budget is '3.5', expected a whole number"),
        (["tune", "digits", "--learning-rate", "nan"], "--learning-rate is nan"),
        (["tune", "digits", "--seed", "-1"], "--seed is -1"),
        (["tune", "digits", "--log", "tensorbord"], "did you mean 'tensorboard'?"),
        (["replay", "x", "three"], "'three' is not a valid integer"),
        (
            ["tune", "quadratic", "--method", "random", "--learning-rate", ".1"],
            "--learning-rate is given with method 'random', which does not read it",
        ),
        (
            ["tune", "quadratic", "--method", "prior", "--prior", "lr=1", "--prior", "lr=2"],
            "--prior names 'lr' twice",
        ),
        (
            ["tune", "quadratic", "--method", "random", "--devices", "5000"],
            "--devices is 5000, expected a whole number of at least 1 and at most 1024",
        ),
        (["tune", "quadratic", "--bilevel", "saba"], "--bilevel is given with method 'descent'"),
        (["tune", "quadratic", "--method", "radnom"], "did you mean 'random'?"),
        (["tune", "quadratic", "--method", "pbt"], "pass --scheduler pbt with a method that reads"),
        (
            ["tune", "quadratic", "--method", "random", "--scheduler", "tpe"],
            "--scheduler is 'tpe', a method, expected one of full, halving, hyperband",
        ),
        (["export", "x", "--out=-y"], "--out is '-y', expected a file whose name begins with no"),
        (["export", "x", "--out="], "--out is '', expected a file"),
        (["tune", "quadratic", "--method", "random", "--out=-y"], "not led by . or -"),
        (["completion", "tcsh"], "SHELL is 'tcsh', expected one of bash, zsh, fish"),
    ],
)
def test_words_that_are_none(words, fragment, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert fragment in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_is_quick(command):
    words = [*([command] if command else []), "--help"]
    for _ in range(3):  # the machine may be busy
        before = os.times()
        done = hypergrad(*words)
        after = os.times()
        seconds = sum(after[2:4]) - sum(before[2:4])
        assert done.returncode == 0 and done.stdout.startswith("Usage: hypergrad")
        if seconds < 0.15:
            break
    assert seconds < 0.15, "processor seconds"


def test_version():
    assert hypergrad("--version").stdout == f"hypergrad-jax {hg.__version__}\n"


@pytest.mark.parametrize(
    ("environment", "words", "colored"),
    [({}, [], True), ({"NO_COLOR": "1"}, [], False), ({"NO_COLOR": ""}, [], True), ({}, ["--no-color"], False)],
)  # fmt: skip
def test_colours(environment, words, colored, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")  # which the flag sets, and this puts back
    monkeypatch.delenv("NO_COLOR")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen = []
    made = command("x", "a command")(lambda shown: seen.append(shown) or 0)
    made.main(words, standalone_mode=False)
    assert [shown.color for shown in seen] == [colored]


def test_the_bar_without_colours_writes_no_colours(monkeypatch):
    pytest.importorskip("rich")
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = Progress("descent", 1, 2, 0.5, 0.5, {"lr": np.float32(0.1)})
    texts = {}
    for color in (True, False):
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm-256color")
        bar = terminal.Bar(quiet=False, color=color)
        bar.callback.start({})
        bar.callback.step(now)
        bar.callback.end(None)
        texts[color] = re.findall(r"\x1b\[[\d;]*3\d[\d;]*m", screen.getvalue())
    assert texts[True] and not texts[False]


# completion


def complete(line):
    """What click offers at the last word: (kind, name)."""
    *words, begun = line.split(" ")[1:]
    found = ShellComplete(cli.GROUP, {}, "hypergrad", "_HYPERGRAD_COMPLETE")
    return {(one.type, one.value) for one in found.get_completions(words, begun)}


def plain(*names):
    return {("plain", name) for name in names}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hypergrad re", plain("recommend", "resume", "replay", "report")),
        ("hypergrad tune di", {("file", "di")} | plain("digits")),
        ("hypergrad tune --budget 3 di", {("file", "di")} | plain("digits")),
        ("hypergrad tune digits --meth", plain("--method")),
        ("hypergrad tune digits --method de", plain("descent")),
        ("hypergrad tune digits --scheduler h", plain("halving", "hyperband")),
        ("hypergrad tune digits --label ", set()),
        ("hypergrad tune digits --log ", plain(*LOGS)),
        ("hypergrad completion ", plain("bash", "zsh", "fish")),
        ("hypergrad resume hyperg", {("dir", "hyperg")}),
        ("hypergrad resume runs/x qua", {("file", "qua")} | plain("quadratic")),
        ("hypergrad report hypergrad tune", set()),
        ("hypergrad run REA", {("file", "REA")}),
    ],
)
def test_completion(line, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert complete(line) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path):
    script = hypergrad("completion", "bash").stdout
    (tmp_path / "hypergrad").write_text(f'#!/bin/sh\nexec {sys.executable} -m hypergrad "$@"\n')
    (tmp_path / "hypergrad").chmod(0o755)
    ask = (
        f"{script}\nCOMP_WORDS=(hypergrad tune di); COMP_CWORD=2; _hypergrad_completion hypergrad; "
    )
    ask += "printf '%s\\n' \"${COMPREPLY[@]}\""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", ask],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
    )
    assert done.stdout.split() == ["digits"]


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts_are_those_of_their_shell(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_HYPERGRAD_COMPLETE" in script and f"{shell}_complete" in script
    if shutil.which(shell):
        options = {"bash": "-n", "zsh": "-n", "fish": "--no-execute"}[shell]
        done = subprocess.run([shell, options], input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
