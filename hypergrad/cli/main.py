"""The command line. Heavy libraries are imported by the commands that need them."""

import argparse
import contextlib
import json
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

from hypergrad.cli import arguments as words
from hypergrad.core.checks import check_name
from hypergrad.problem import Task
from hypergrad.report.study import Study
from hypergrad.tuning.settings import BY_GRADIENT, OPTION, Settings, check_used

MOST_DEVICES = 1024
"""More devices than a study could have been started with on one machine are not made because a file says so."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `hypergrad`; those of the process where None.

    Returns:
        The exit status: 0 done, 1 a check failed, 2 wrong input, 130 Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        given = words.parse(argv)
        if given.no_color:
            os.environ["NO_COLOR"] = "1"  # rich and whatever else a task imports read it
        return _COMMANDS[given.command](given, shlex.join(["hypergrad", *argv]))
    except ValueError as error:
        if os.environ.get("HYPERGRAD_TRACEBACK"):
            raise
        return _fail(" ".join(str(error).split()), 2, "--json" in argv)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        name = f" {str(error.filename)[:80]!r}" if error.filename else ""
        return _fail(f"the system refuses{name}: {error.strerror or error}", 2, "--json" in argv)
    except KeyboardInterrupt:
        return _fail("ended by Ctrl-C before there was a result", INTERRUPTED, "--json" in argv)


def _fail(text: str, status: int, machine: bool) -> int:
    """Say in one line what went wrong, and to a machine as JSON, too."""
    print(f"hypergrad: {text}", file=sys.stderr)
    if machine:
        print(json.dumps({"error": text, "status": status}))
    return status


def _tune(given: argparse.Namespace, command: str) -> int:
    options = words.options(given)
    if given.command == "tune":
        _check_used({}, options)
        return _tune_task(given, options, command)
    from hypergrad.cli import studyfile
    from hypergrad.study import LOGS
    from hypergrad.tuning.build import NAMES

    file = studyfile.read(given.file, {**NAMES, "log": LOGS})
    _check_used(file.options, options, file)
    merged = {**file.options, **options}
    merged["arg"] = {
        **file.options.get("arg", {}),
        **_flags(file.options),
        **options.get("arg", {}),
        **_flags(options),
    }
    if "prior" in merged:
        merged["prior"] = {**file.options.get("prior", {}), **options.get("prior", {})}
    return _tune_task(given, merged, command, file)


def _check_used(in_file: dict[str, Any], flags: dict[str, Any], file=None) -> None:
    """Refuse a setting that the method would not read, by its flag or by its line in the study file."""
    from hypergrad.tuners import METHODS

    if "method" in flags:
        check_name("--method", flags["method"], METHODS)
    method = flags.get("method", in_file.get("method", Settings().method))

    def called(name: str) -> str:
        if file is None or name in flags:
            return OPTION[name].flag
        return f"{file.place(name)}: {name}"

    check_used([n for n in {**in_file, **flags} if n in Settings._fields], method, called)


def _flags(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are arguments of the task."""
    from hypergrad.cli.loading import FLAGS

    return {flag: options[flag] for flag in FLAGS if flag in options}


def _tune_task(given: argparse.Namespace, options: dict[str, Any], command: str, file=None) -> int:
    """Tune what `options` name; `file` is the study file that they are from, if they are."""
    if "task" not in options:
        raise ValueError(f'{given.file!r} names no task, expected one; write e.g. task = "digits"')
    name = options["task"]
    out = Path(options.get("out") or Path("runs") / _plain_name(name))
    _use_cores(options.get("method"), options.get("devices"))
    task, task_arguments = _load(name, options, file=file)
    from hypergrad.tuning.tune import tune

    settings = {field: options[field] for field in Settings._fields if field in options}

    def start(callbacks):
        details = {"command": command, "task_arguments": task_arguments}
        return tune(
            task,
            storage=out,
            overwrite=options.get("overwrite", False),
            callbacks=callbacks,
            details=details,
            **settings,
        )

    return _run(given, start, out, name, options.get("log", []))


def _use_cores(method: str | None, num: int | None) -> None:
    """Make every core a device for a search, before anything computes: jax fixes its devices then."""
    if (method or Settings().method) not in BY_GRADIENT:
        from hypergrad.populations import use_cores

        if num is not None and num > MOST_DEVICES:
            raise ValueError(
                f"devices is {num}, expected at most {MOST_DEVICES}; leave it out to use every core"
            )
        try:
            use_cores(num)
        except ValueError as error:
            raise ValueError(f"devices is {num}, which this process cannot have: {error}") from None


def _run(given: argparse.Namespace, start, out: Path, task: str, logs: list[str]) -> int:
    """Start or resume a study, show how it goes and print what came out."""
    from hypergrad.cli import terminal
    from hypergrad.study import LOGS, log

    for name in logs:
        check_name("--log", name, LOGS)
    bar = terminal.Bar(quiet=given.quiet, color=terminal.use_color(given.no_color))
    callbacks = [bar.callback, *(log(name, out) for name in dict.fromkeys(logs))]
    again = shlex.join(["hypergrad", "resume", str(out), task])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            found: Study = start(callbacks)
    except ValueError:
        _print_warnings(caught, [])  # they may say why
        raise
    except KeyboardInterrupt:
        begun = (out / "study.json").is_file()
        advice = f"go on with: {again}" if begun else "nothing was written"
        return _fail(f"ended by Ctrl-C; {advice}", INTERRUPTED, given.json)
    status = INTERRUPTED if found.interrupted else 0
    result = found.result or {}
    _print_warnings(caught, result["warnings"])
    if given.json:
        report = None if found.report is None else str(found.report)
        terminal.print_json(
            {"status": status, "directory": str(out), "report": report, **terminal.summary(result)}
        )
    else:
        terminal.print_result(result)
        print(f"report: {found.report}")
    if found.interrupted:
        num = len(found.trials)
        print(f"hypergrad: ended by Ctrl-C after {num} steps; go on with: {again}", file=sys.stderr)
    return status


def _print_warnings(caught: list[warnings.WarningMessage], known: list[str]) -> None:
    """Print this package's warnings in a line each, but for those that the result has, too."""
    ours = [w for w in caught if w.category.__module__.startswith("hypergrad.")]
    for text in dict.fromkeys(str(w.message) for w in ours):
        if text not in known:
            print(f"hypergrad: warning: {' '.join(text.split())}", file=sys.stderr)


def _resume(given: argparse.Namespace, command: str) -> int:
    task = _load_recorded(given)
    from hypergrad.tuning.resume import resume

    def start(callbacks):
        return resume(task, given.directory, allow_changes=given.allow_changes, callbacks=callbacks)

    logs = words.options(given).get("log", [])
    return _run(given, start, Path(given.directory), given.task, logs)


def _replay(given: argparse.Namespace, command: str) -> int:
    task = _load_recorded(given)
    from hypergrad.cli.terminal import brief, print_json
    from hypergrad.tuning.replay import replay

    if not given.trial.isdecimal():
        raise ValueError(
            f"TRIAL is {given.trial!r:.80}, expected a whole number of at least 0; pass e.g. 17"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        found = replay(
            task,
            given.directory,
            int(given.trial),
            debug_nans=given.debug_nans,
            allow_changes=given.allow_changes,
        )
    _print_warnings(caught, [])
    value, losses = float(found.trial.outcome.values), found.losses
    first = found.first_nonfinite
    if given.json:
        print_json(
            {
                "trial": int(given.trial),
                "step": found.trial.step,
                "member": found.trial.member,
                "hparams": found.hparams,
                "value": value,
                "first_loss": losses[:, 0].mean(),
                "last_loss": losses[:, -1].mean(),
                "first_nonfinite": first,
                "first_bad_operation": found.where,
            }
        )
        return 0
    print(f"trial {given.trial}: step {found.trial.step}, member {found.trial.member}")
    print("  ".join(f"{name} {brief(value)}" for name, value in found.hparams.items()))
    print(f"objective {value:.6g}, to the bits of its record")
    print(f"training loss {losses[:, 0].mean():.6g} -> {losses[:, -1].mean():.6g}", end="")
    print(f", {losses.shape[1]} steps" + (f", {len(losses)} seeds" if len(losses) > 1 else ""))
    print("every training loss is finite" if first is None else f"first non-finite step: {first}")
    if given.debug_nans:
        print(f"first bad operation: {found.where or 'none'}")
    return 0


def _load_recorded(given: argparse.Namespace) -> "Task":
    """Build the task that the command line names, with the arguments that the study has of it."""
    options = words.options(given)
    from hypergrad.study import StudyWarning, read_description as describe
    from hypergrad.study.disk.files import to_plain as plain

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StudyWarning)  # whoever reads it next warns, in a line
        described = describe(given.directory)
    if given.task is None:
        trial = f" {given.trial}" if given.command == "replay" else ""
        raise ValueError(
            f"TASK is missing, expected that of the study, {str(described.get('task'))[:80]!r} (no code is "
            f"loaded because a file names it); name it: hypergrad {given.command} {given.directory}{trial} TASK"
        )
    num = described["machine"].get("num_devices")
    if type(num) is int and 1 <= num <= MOST_DEVICES:
        # the study says what it needs where this comes too late
        with contextlib.suppress(ValueError):
            _use_cores(str(described.get("method")), num)
    recorded = described.get("task_arguments")
    recorded = recorded if isinstance(recorded, dict) else {}
    task, arguments = _load(given.task, options, recorded=recorded)
    other = [name for name, value in plain(arguments).items() if recorded.get(name) != value]
    if other and not given.allow_changes:
        raise ValueError(
            f"{other[0]} is {arguments[other[0]]!r}, expected {recorded.get(other[0])!r} as the study has it; "
            "leave it out, or pass --allow-changes"
        )
    return task


def _load(
    name: str, options: dict[str, Any], file=None, recorded: dict[str, Any] | None = None
) -> "tuple[Task, dict[str, Any]]":
    """Build a task with the arguments among `options`, which go before the `recorded` ones."""
    from hypergrad.cli.loading import ArgumentError, load_task

    arguments = {**(recorded or {}), **_flags(options), **options.get("arg", {})}
    try:
        return load_task(name, arguments), arguments
    except ArgumentError as error:
        if file is None or error.name not in file.options.get("arg", {}):
            raise
        raise ValueError(f"{file.place('arg', error.name)}: {error}") from None


def _export(given: argparse.Namespace, command: str) -> int:
    from hypergrad.cli.terminal import print_json
    from hypergrad.report.results import load_results as load
    from hypergrad.study.export import document, write

    if given.out is not None and given.out[:1] in ("", "-"):
        raise ValueError(
            f"--out is {given.out!r:.80}, expected a file whose name begins with no dash; write e.g. "
            f"./{given.out.lstrip('-') or 'hparams.json'}"
        )
    found = load(given.directory)
    tuned = found.configurations.get("tuned")
    if tuned is None:
        raise ValueError(
            f"{given.directory!r} has no tuned hyperparameters, expected a finished study; "
            "finish it with `hypergrad resume`"
        )
    early = ["the study was ended by Ctrl-C; these are the best until then"]
    for text in (early if found.interrupted else []) + found.warnings:
        print(f"hypergrad: warning: {' '.join(text.split())}", file=sys.stderr)
    if given.out is None:
        print_json(document(tuned.leaves))
        return 0
    write(given.out, tuned.leaves)
    print_json({"file": given.out}) if given.json else print(given.out)
    return 0


def _report(given: argparse.Namespace, command: str) -> int:
    from hypergrad.report.page import write_report as report

    path = str(report(given.directory))
    print(json.dumps({"report": path}) if given.json else path)
    return 0


def _flatness(given: argparse.Namespace, command: str) -> int:
    task = _load_recorded(given)
    from hypergrad.cli.terminal import brief, print_json
    from hypergrad.report.page import write_report as report
    from hypergrad.tuning.flatness import measure_flatness as flatness

    found = flatness(task, given.directory, allow_changes=given.allow_changes)
    page = str(report(given.directory))
    if given.json:
        print_json({"measures": found.measures, "report": page})
        return 0
    names = list(found.measures)
    print(f"{'mean over seeds (range)':32s}" + "".join(f"{name:>30s}" for name in names))
    for label in next(iter(found.measures.values()), {}):
        cells = [found.measures[name][label] for name in names]
        said = [f"{brief(c.mean())} ({brief(c.min())} to {brief(c.max())})" for c in cells]
        print(f"{label:32s}" + "".join(f"{text:>30s}" for text in said))
    if not given.quiet:
        print(f"report: {page}")
    return 0


def _check(given: argparse.Namespace, command: str) -> int:
    os.environ["JAX_ENABLE_X64"] = "1"
    options = words.options(given)
    horizon = options.pop("horizon", None)
    task, _ = _load(options["task"], options)
    from hypergrad.cli.terminal import print_json
    from hypergrad.estimators.verify import verify

    rows = verify(task, horizon=horizon, seed=options.get("seed", 0))
    bad = [
        (row.exact and not row.refused and not row.error < 1e-4)
        or (row.deviation is not None and not row.deviation <= 5)
        for row in rows
    ]
    if given.json:
        print_json({"task": task.name, "passed": not any(bad), "rows": [r._asdict() for r in rows]})
        return int(any(bad))
    if not given.quiet:
        print(f"{task.name}: derivatives along one random direction a leaf, float64, against")
        print("central differences (h = 1e-6)")
    print(
        f"{'estimator':22s} {'rel. error':>10s}  {'cosine':>7s} {'time':>7s} {'memory':>9s}  worst leaf"
    )
    for row, wrong in zip(rows, bad, strict=True):
        if row.refused:
            print(f"{row.estimator:22s} not for this task: {row.refused}")
            continue
        size = f"{row.num_bytes / 2**20:.1f} MiB"
        print(
            f"{row.estimator:22s} {row.error:10.1e}  {row.cosine:7.4f} {row.ratio:6.1f}x {size:>9s}  "
            f"{row.worst}{_note(row, wrong)}"
        )
    if not given.quiet:
        print("time: multiples of one training run; memory: temporaries of the compiled program")
    if any(bad):
        print("kinks (ReLU), chaos, or an objective that is not smooth explain errors too:")
        print("try a shorter --horizon or a smooth activation")
    return int(any(bad))


def _recommend(given: argparse.Namespace, command: str) -> int:
    options = words.options(given)
    task, _ = _load(options["task"], options)
    from hypergrad.cli.terminal import print_json
    from hypergrad.estimators.recommend import recommend

    limits = {name: options[name] for name in ("memory", "seed") if name in options}
    found = recommend(task.problem, task.space, task.horizon, **limits)
    if given.json:
        said = {"estimator": found.name, "call": found.call, "reasons": found.reasons}
        print_json({"task": task.name, **said})
    else:
        print(found.name if given.quiet else found)
    return 0


def _note(row: Any, wrong: bool) -> str:
    """Say what an error means: it should be nothing, is by design, or is noise."""
    look = " <- look at it" if wrong else ""
    if row.deviation is not None:
        return f" (noise: {row.deviation:.1f} standard errors){look}"
    if row.exact:
        return " <- exact in theory: look at it" if wrong else ""
    return " (biased by design)"


def _list(given: argparse.Namespace, command: str) -> int:
    from hypergrad.cli.loading import known_tasks
    from hypergrad.study import LOGS
    from hypergrad.tuning.build import NAMES

    def first_line(function: Any) -> str:
        return (function.__doc__ or "").partition("\n")[0]

    tasks = known_tasks()
    methods, schedulers, estimators, bilevel, responses = (
        {name: method.sentence for name, method in NAMES[option].items()}
        for option in ("method", "scheduler", "estimator", "bilevel", "response")
    )
    logs = {name: first_line(factory) for name, factory in LOGS.items()}
    groups = {
        "methods": methods,
        "schedulers": schedulers,
        "estimators": estimators,
        "bilevel": bilevel,
        "responses": responses,
        "logs": logs,
    }
    if given.json:
        from hypergrad.cli.terminal import print_json

        listed = {name: known._asdict() for name, known in tasks.items()}
        print_json({"tasks": listed, **groups})
        return 0
    print("tasks (of ./tasks; your own: file.py:name)")
    for name, known in tasks.items():
        needs = f" (needs --{', --'.join(known.needs)})" if known.needs else ""
        print(f"  {name:12s} {known.summary}{needs}")
    if not tasks:
        print("  none: there is no folder ./tasks here")
    for title, texts in groups.items():
        print(title)
        for name, text in texts.items():
            print(f"  {name:12s} {text}")
    return 0


def _completion(given: argparse.Namespace, command: str) -> int:
    from hypergrad.cli.completion import script
    from hypergrad.study import LOGS
    from hypergrad.tuning.build import NAMES

    known = {**NAMES, "log": LOGS}
    names = {f"--{option}": list(known[option]) for option in known}
    text = script(given.shell, names)
    print(json.dumps({"shell": given.shell, "script": text}) if given.json else text.rstrip())
    return 0


def _plain_name(task: str) -> str:
    stem = Path(task.partition(":")[0]).stem
    plain = "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "_" for c in stem)
    return plain.lstrip(".-") or "study"


_COMMANDS = {
    "tune": _tune,
    "run": _tune,
    "resume": _resume,
    "replay": _replay,
    "export": _export,
    "report": _report,
    "flatness": _flatness,
    "check": _check,
    "recommend": _recommend,
    "list": _list,
    "completion": _completion,
}
