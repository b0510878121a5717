"""The commands that look at a study: replay, export, report and flatness."""

import json
from typing import TYPE_CHECKING, Any

import click

from hypergrad.cli.lines import say
from hypergrad.cli.loading import load_recorded
from hypergrad.cli.options import OF_TASK, Shown, command, flag, options, word

if TYPE_CHECKING:
    from hypergrad.tuning.replay import Replayed

ALLOW_CHANGES = "continue although the task's source files or data have changed"


@command(
    "replay",
    "train one trial of a study again and show where it went wrong",
    word("directory"),
    click.Argument(["trial"], type=int),
    word("task", required=False),
    *options(OF_TASK),
    flag("--allow-changes", ALLOW_CHANGES),
    flag("--debug-nans", "name the operation that made the first NaN"),
)
def _replay(shown: Shown, directory: str, trial: int, **given: Any) -> int:
    task = load_recorded("replay", directory, {**given, "trial": trial})
    from hypergrad.cli.terminal import print_json, printing_warnings
    from hypergrad.tuning.replay import replay

    with printing_warnings():
        how = {name: given[name] for name in ("debug_nans", "allow_changes")}
        found = replay(task, directory, trial, **how)
    if shown.as_json:
        print_json({"trial": trial, **_summary(found)})
    else:
        _print_replayed(trial, found, given["debug_nans"])
    return 0


def _summary(found: "Replayed") -> dict[str, Any]:
    return {
        "step": found.trial.step,
        "member": found.trial.member,
        "hparams": found.hparams,
        "value": float(found.trial.trials.values),
        "first_loss": found.losses[:, 0].mean(),
        "last_loss": found.losses[:, -1].mean(),
        "first_nonfinite": found.first_nonfinite,
        "first_bad_operation": found.where,
    }


def _print_replayed(trial: int, found: "Replayed", debug_nans: bool) -> None:
    from hypergrad.cli.terminal import brief

    value, losses, first = (
        float(found.trial.trials.values),
        found.losses,
        found.first_nonfinite,
    )
    say(f"trial {trial}: step {found.trial.step}, member {found.trial.member}")
    say("  ".join(f"{name} {brief(value)}" for name, value in found.hparams.items()))
    say(f"objective {value:.6g}, to the bits of its record")
    say(f"training loss {losses[:, 0].mean():.6g} -> {losses[:, -1].mean():.6g}", end="")
    say(f", {losses.shape[1]} steps" + (f", {len(losses)} seeds" if len(losses) > 1 else ""))
    say("every training loss is finite" if first is None else f"first non-finite step: {first}")
    if debug_nans:
        say(f"first bad operation: {found.where or 'none'}")


@command(
    "export",
    "write the tuned hyperparameters of a study as JSON",
    word("directory"),
    click.Option(["--out"], metavar="FILE", help="file to write (default: the terminal)"),
)
def _export(shown: Shown, directory: str, out: str | None = None) -> int:
    from hypergrad.cli.terminal import print_json, printing_warnings
    from hypergrad.report.results import load_results
    from hypergrad.study.export import document, write

    if out is not None and out[:1] in ("", "-"):
        raise ValueError(
            f"--out is {out!r:.80}, expected a file whose name begins with no dash; write e.g. "
            f"./{out.lstrip('-') or 'hparams.json'}"
        )
    with printing_warnings():
        found = load_results(directory)
    tuned = found.configurations.get("tuned")
    if tuned is None:
        raise ValueError(
            f"{directory!r} has no tuned hyperparameters, expected a finished study; "
            "finish it with `hypergrad resume`"
        )
    early = ["the study was ended by Ctrl-C; these are the best until then"]
    for text in (early if found.interrupted else []) + found.warnings:
        say(f"hypergrad: warning: {' '.join(text.split())}", error=True)
    if out is None:
        print_json(document(tuned.leaves))
        return 0
    write(out, tuned.leaves)
    print_json({"file": out}) if shown.as_json else say(out)
    return 0


@command("report", "write the report of a finished study again", word("directory"))
def _report(shown: Shown, directory: str) -> int:
    from hypergrad.cli.terminal import printing_warnings
    from hypergrad.report.page import write_report

    with printing_warnings():
        path = str(write_report(directory))
    say(json.dumps({"report": path}) if shown.as_json else path)
    return 0


@command(
    "flatness",
    "measure how flat the networks of a finished study are",
    word("directory"),
    word("task", required=False),
    *options(OF_TASK),
    flag("--allow-changes", ALLOW_CHANGES),
)
def _flatness(shown: Shown, directory: str, **given: Any) -> int:
    task = load_recorded("flatness", directory, given)
    from hypergrad.cli.terminal import brief, print_json, printing_warnings
    from hypergrad.report.page import write_report
    from hypergrad.tuning.flatness import measure_flatness

    with printing_warnings():
        found = measure_flatness(task, directory, allow_changes=given["allow_changes"])
        page = str(write_report(directory))
    if shown.as_json:
        print_json({"measures": found.measures, "report": page})
        return 0
    names = list(found.measures)
    say(f"{'mean over seeds (range)':32s}" + "".join(f"{name:>30s}" for name in names))
    for label in next(iter(found.measures.values()), {}):
        cells = [found.measures[name][label] for name in names]
        said = [f"{brief(c.mean())} ({brief(c.min())} to {brief(c.max())})" for c in cells]
        say(f"{label:32s}" + "".join(f"{text:>30s}" for text in said))
    if not shown.quiet:
        say(f"report: {page}")
    return 0


STUDY_COMMANDS = (_replay, _export, _report, _flatness)
