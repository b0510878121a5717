"""The commands that tune nothing: verify, recommend, list and completion."""

import json
import os
from typing import TYPE_CHECKING, Any

import click

from hypergrad.cli.lines import say
from hypergrad.cli.loading import arguments_of, known_tasks, load_task
from hypergrad.cli.options import OF_TASK, SHELLS, Shown, command, options, word
from hypergrad.core.checks import check_name

if TYPE_CHECKING:
    from hypergrad.estimators.verify import Row

VERIFY = """Every estimator has a row; one that cannot take the task gives the reason. The method bilevel has no
row:
it moves weights, linear system and hyperparameters together, without a hypergradient of its own. Where it
comes to rest, its direction is that of implicit."""


@command(
    "verify",
    "compare every estimator with finite differences on a task",
    word("task"),
    *options((*OF_TASK, "seed")),
    epilog=VERIFY,
)
def _verify(shown: Shown, task: str, **given: Any) -> int:
    os.environ["JAX_ENABLE_X64"] = "1"
    horizon = given.pop("horizon", None)
    built = load_task(task, arguments_of(given))
    from hypergrad.cli.terminal import print_json
    from hypergrad.estimators.verify import verify

    rows = verify(built, horizon=horizon, seed=given.get("seed", 0))
    bad = [
        (row.exact and not row.refused and not row.error < 1e-4)
        or (row.deviation is not None and not row.deviation <= 5)
        for row in rows
    ]
    if shown.as_json:
        listed = [row._asdict() for row in rows]
        print_json({"task": built.name, "passed": not any(bad), "rows": listed})
    else:
        _print_rows(shown, built.name, rows, bad)
    return int(any(bad))


def _print_rows(shown: Shown, task: str, rows: "list[Row]", bad: list[bool]) -> None:
    if not shown.quiet:
        say(f"{task}: derivatives along one random direction per leaf, float64, against")
        say("central differences (h = 1e-6)")
    say(
        f"{'estimator':22s} {'rel. error':>10s}  {'cosine':>7s} {'time':>7s} {'memory':>9s}  worst leaf"
    )
    for row, wrong in zip(rows, bad, strict=True):
        if row.refused:
            say(f"{row.estimator:22s} not for this task: {row.refused}")
            continue
        size = f"{row.num_bytes / 2**20:.1f} MiB"
        say(
            f"{row.estimator:22s} {row.error:10.1e}  {row.cosine:7.4f} {row.ratio:6.1f}x {size:>9s}  "
            f"{row.worst}{_note(row, wrong)}"
        )
    if not shown.quiet:
        say("time: multiples of one training run; memory: temporaries of the compiled program")
    if any(bad):
        say("kinks (ReLU), chaos, or an objective that is not smooth explain errors too:")
        say("try a shorter --horizon or a smooth activation")


def _note(row: "Row", wrong: bool) -> str:
    """Explain an error: it should be zero, is by design, or is noise."""
    look = " <- look at it" if wrong else ""
    if row.deviation is not None:
        return f" (noise: {row.deviation:.1f} standard errors){look}"
    if row.exact:
        return " <- exact in theory: look at it" if wrong else ""
    return " (biased by design)"


@command(
    "recommend",
    "recommend an estimator for a task, with the reasons",
    word("task"),
    *options((*OF_TASK, "memory", "seed")),
)
def _recommend(shown: Shown, task: str, **given: Any) -> int:
    built = load_task(task, arguments_of(given))
    from hypergrad.cli.terminal import print_json
    from hypergrad.estimators.recommend import recommend

    limits = {name: given[name] for name in ("memory", "seed") if name in given}
    found = recommend(built.problem, built.space, built.horizon, **limits)
    if shown.as_json:
        said = {"estimator": found.name, "call": found.call, "reasons": found.reasons}
        print_json({"task": built.name, **said})
    else:
        say(found.name if shown.quiet else found)
    return 0


@command("list", "list the tasks, methods, schedulers, estimators and logs")
def _list(shown: Shown) -> int:
    tasks, groups = known_tasks(), _groups()
    if shown.as_json:
        listed = {name: known._asdict() for name, known in tasks.items()}
        say(json.dumps({"tasks": listed, **groups}))
        return 0
    say("tasks (of ./tasks; your own: file.py:name)")
    for name, known in tasks.items():
        needs = f" (needs --{', --'.join(known.needs)})" if known.needs else ""
        say(f"  {name:12s} {known.summary}{needs}")
    if not tasks:
        say("  none: there is no folder ./tasks here")
    for title, texts in groups.items():
        say(title)
        for name, text in texts.items():
            say(f"  {name:12s} {text}")
    return 0


def _groups() -> dict[str, dict[str, str]]:
    """Return the sentence of each named method: {group: {name: sentence}}."""
    from hypergrad.study import LOGS
    from hypergrad.tuning.build import NAMES

    titles = {
        "methods": "method",
        "schedulers": "scheduler",
        "estimators": "estimator",
        "bilevel": "bilevel",
        "responses": "response",
    }
    groups = {
        title: {name: method.sentence for name, method in NAMES[option].items()}
        for title, option in titles.items()
    }
    logs = {name: (one.__doc__ or "").partition("\n")[0] for name, one in LOGS.items()}
    return {**groups, "logs": logs}


@command("completion", "write the completion script of a shell", word("shell"))
def _completion(shown: Shown, shell: str) -> int:
    from click.shell_completion import get_completion_class

    check_name("SHELL", shell, SHELLS)
    found = get_completion_class(shell)
    group = click.get_current_context().find_root().command
    text = found(group, {}, "hypergrad", "_HYPERGRAD_COMPLETE").source() if found else ""
    say(json.dumps({"shell": shell, "script": text}) if shown.as_json else text.rstrip())
    return 0


TASK_COMMANDS = (_verify, _recommend, _list, _completion)
