"""The commands that tune: tune, run and resume."""

import json
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hypergrad.cli import loading
from hypergrad.cli.lines import say
from hypergrad.cli.options import OF_TASK, Shown, command, flag, known_names, options, word
from hypergrad.core.checks import check_name
from hypergrad.tuning.settings import OPTION, OPTIONS, Settings, check_choice

if TYPE_CHECKING:
    from hypergrad.cli.studyfile import StudyFile
    from hypergrad.report.study import Study
    from hypergrad.study import Callback

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""

STUDY_FILE = """A study file has the options of `hypergrad tune` as keys, with _ for -, and the arguments of
the task in a table. Flags override it:

  task = "digits"
  method = "descent"
  budget = 60
  out = "runs/digits"
  log = ["jsonl"]

  [arg]
  width = 32

  [prior]
  lr = 1e-2
  decay = [1e-4, 0.3]"""


@command(
    "tune",
    "tune a task and write its report",
    word("task"),
    *options(option.name for option in OPTIONS if option.name != "task"),
)
def _tune(shown: Shown, **given: Any) -> int:
    _refuse_unread(given)
    return _tune_task(shown, given, loading.arguments_of(given))


@command(
    "run",
    "tune as a study file says",
    word("file"),
    *options(OPTION),
    epilog=STUDY_FILE,
)
def _run(shown: Shown, file: str, **given: Any) -> int:
    from hypergrad.cli import studyfile

    read = studyfile.read(file, known_names())
    _refuse_unread(given, read)
    merged = {**read.options, **given}
    if "prior" in merged:
        merged["prior"] = {**read.options.get("prior", {}), **given.get("prior", {})}
    if "task" not in merged:
        raise ValueError(f'{file!r} names no task, expected one; write e.g. task = "digits"')
    arguments = {**loading.arguments_of(read.options), **loading.arguments_of(given)}
    return _tune_task(shown, merged, arguments, read)


@command(
    "resume",
    "continue an unfinished study",
    word("directory"),
    word("task", required=False),
    *options((*OF_TASK, "log")),
    flag("--allow-changes", "continue although the task's source files or data have changed"),
)
def _resume(shown: Shown, directory: str, **given: Any) -> int:
    task = loading.load_recorded("resume", directory, given)
    from hypergrad.tuning.resume import resume

    def start(callbacks: "list[Callback]") -> "Study":
        changes = given["allow_changes"]
        return resume(task, directory, allow_changes=changes, callbacks=callbacks)

    return _show(shown, start, Path(directory), given["task"], given.get("log", []))


TUNING_COMMANDS = (_tune, _run, _resume)


def _refuse_unread(flags: dict[str, Any], file: "StudyFile | None" = None) -> None:
    """Refuse a setting that the method would not read, by its flag or by its line in the study file."""
    from hypergrad.tuning.build import check_used

    in_file = file.options if file else {}
    known = known_names()
    for option in flags:
        if option in known and option in Settings._fields:
            check_choice(option, flags[option], known, lambda name: OPTION[name].flag)
    method = flags.get("method", in_file.get("method", Settings().method))

    def called(name: str) -> str:
        if file is None or name in flags:
            return OPTION[name].flag
        return f"{file.place(name)}: {name}"

    check_used([n for n in {**in_file, **flags} if n in Settings._fields], method, called)


def _tune_task(
    shown: Shown,
    given: dict[str, Any],
    arguments: dict[str, Any],
    file: "StudyFile | None" = None,
) -> int:
    """Tune the task that the options name; `file` is the study file of the options, if there is one."""
    name = given["task"]
    out = Path(given.get("out") or Path("runs") / _plain_name(name))
    loading.take_cores(given.get("devices"))
    task = loading.load_task(name, arguments, file)
    from hypergrad.cli.terminal import print_notes
    from hypergrad.tuning.tune import tune

    if not shown.quiet:
        print_notes(task.notes)
    settings = {field: given[field] for field in Settings._fields if field in given}
    details = {"command": click.get_current_context().obj, "task_arguments": arguments}

    def start(callbacks: "list[Callback]") -> "Study":
        overwrite = given.get("overwrite", False)
        places = {"storage": out, "overwrite": overwrite, "callbacks": callbacks}
        return tune(task, details=details, **places, **settings)

    return _show(shown, start, out, name, given.get("log", []))


def _show(
    shown: Shown,
    start: "Callable[[list[Callback]], Study]",
    out: Path,
    task: str,
    logs: list[str],
) -> int:
    """Start or resume a study, show its progress and print its result."""
    from hypergrad.cli import terminal
    from hypergrad.study import LOGS, log

    for name in logs:
        check_name("--log", name, LOGS)
    bar = terminal.Bar(quiet=shown.quiet, color=shown.color, programs=shown.programs)
    callbacks = [bar.callback, *(log(name, out) for name in dict.fromkeys(logs))]
    again = shlex.join(["hypergrad", "resume", str(out), task])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            found = start(callbacks)
    except ValueError:
        terminal.print_warnings(caught)  # they may hold the reason
        raise
    except KeyboardInterrupt:
        begun = (out / "study.json").is_file()
        text = f"ended by Ctrl-C; {f'continue with: {again}' if begun else 'nothing was written'}"
        say(f"hypergrad: {text}", error=True)
        if shown.as_json:
            say(json.dumps({"error": text, "status": INTERRUPTED}))
        return INTERRUPTED
    status = INTERRUPTED if found.interrupted else 0
    result = found.result or {}
    terminal.print_warnings(caught, result["warnings"])
    if shown.as_json:
        report = None if found.report is None else str(found.report)
        about = {"status": status, "directory": str(out), "report": report}
        terminal.print_json(about | terminal.summary(result))
    else:
        terminal.print_result(result)
        say(f"report: {found.report}")
    if found.interrupted:
        num = len(found.trials)
        say(f"hypergrad: ended by Ctrl-C after {num} steps; continue with: {again}", error=True)
    return status


def _plain_name(task: str) -> str:
    stem = Path(task.partition(":")[0]).stem
    plain = "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "_" for c in stem)
    return plain.lstrip(".-") or "study"
