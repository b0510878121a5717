"""The words of the command line. Nothing heavy is imported here: `--help` answers at once."""

import argparse
import json
from typing import Any, NoReturn

import hypergrad
from hypergrad.core.checks import check_name, nearest
from hypergrad.tuning.settings import OPTION, OPTIONS, Option, Settings, check_option

SHELLS = ("bash", "zsh", "fish")

EPILOG = """examples:
  hypergrad tune digits --out runs/digits
  hypergrad tune tabular --data my.csv --label price --out runs/prices
  hypergrad tune images --data ~/mnist --method random --budget 64
  hypergrad tune digits --method cross_entropy --population 64 --generations 4 --scheduler halving
  hypergrad tune digits --method cross_entropy --prior lr=0.1 --warm-start runs/digits
  hypergrad tune my_task.py:task --arg width=32
  hypergrad run study.toml --seed 1
  hypergrad resume runs/digits digits
  hypergrad check digits --horizon 20
  hypergrad recommend digits --memory 64M

exit status:
    0  done
    1  a check failed
    2  wrong input, said in one line
  130  ended by Ctrl-C; a study on disk can be resumed"""

RUN_EPILOG = """A study file has the options of `hypergrad tune` as keys, with _ for -, and the arguments of the
task in a table; flags override it:

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

CHECK_EPILOG = """Every estimator has a row; one that cannot take the task says why. The method bilevel has
none: it moves weights, linear system and hyperparameters together, without a hypergradient of its own; where
it comes to rest, its direction is that of implicit."""

COMMANDS = {
    "tune": "tune a task and write its report",
    "run": "tune as a study file says",
    "resume": "go on with a study that was ended",
    "replay": "train one trial of a study again and show where it went wrong",
    "export": "write the tuned hyperparameters of a study as JSON",
    "report": "write the report of a finished study again",
    "flatness": "measure how flat the networks of a finished study are",
    "check": "compare every estimator with finite differences on a task",
    "recommend": "say which estimator to use on a task, and why",
    "list": "list the tasks, methods, schedulers, estimators and logs",
    "completion": "write the completion script of a shell",
}


class _Parser(argparse.ArgumentParser):
    """A parser that refuses in one line, with the nearest name, and exits with status 2 only through `main`."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0]
            near = nearest(word.partition("=")[0], self.flags()) if word.startswith("-") else None
            hint = f"did you mean {near!r}?" if near else f"see `{self.prog} --help`"
            raise ValueError(f"{word!r} is not understood, expected a known option; {hint}")
        raise ValueError(f"{message}; see `{self.prog} --help`")

    def flags(self) -> list[str]:
        """List the options of this command and of those below it."""
        found = []
        for action in self._actions:
            found += action.option_strings
            for below in subparsers(self).values() if not action.option_strings else []:
                found += below.flags()
        return list(dict.fromkeys(found))


def subparsers(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the parsers of the commands by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = _Parser(
        prog="hypergrad",
        description="Tune the hyperparameters of JAX training loops.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument(
        "--version", action="version", version=f"hypergrad-jax {hypergrad.__version__}"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {}
    for name, text in COMMANDS.items():
        made[name] = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    tuned = [option for option in OPTIONS if option.name != "task"]
    _add_task(made["tune"], "TASK")
    _add_options(made["tune"], tuned)

    made["run"].epilog = RUN_EPILOG
    made["run"].add_argument("file", metavar="FILE", help="study file, TOML")
    _add_options(made["run"], list(OPTIONS))

    for name in ("resume", "replay", "export", "report", "flatness"):
        made[name].add_argument("directory", metavar="DIR", help="folder of the study")
    made["replay"].add_argument("trial", metavar="TRIAL", help="number of the trial, from 0")
    task_options = [OPTION[name] for name in ("data", "label", "horizon", "arg")]
    for name in ("resume", "replay", "flatness"):
        _add_task(made[name], "TASK", nargs="?")
        _add_options(made[name], task_options)
        made[name].add_argument(
            "--allow-changes",
            action="store_true",
            help="go on although the task's source files have changed",
        )
    _add_options(made["resume"], [OPTION["log"]])
    made["replay"].add_argument(
        "--debug-nans", action="store_true", help="name the operation that made the first NaN"
    )
    made["export"].add_argument(
        "--out", metavar="FILE", help="file to write (default: the terminal)"
    )

    made["check"].epilog = CHECK_EPILOG
    _add_task(made["check"], "TASK")
    _add_options(made["check"], [*task_options, OPTION["seed"]])
    _add_task(made["recommend"], "TASK")
    _add_options(made["recommend"], [*task_options, OPTION["memory"], OPTION["seed"]])
    made["completion"].add_argument("shell", metavar="SHELL", help=", ".join(SHELLS))
    for command in made.values():
        _add_common(command)
    return top


def _add_task(command: argparse.ArgumentParser, metavar: str, **more: Any) -> None:
    text = OPTION["task"].text
    if more:
        text += "; the study's task, named again, for code is never loaded because a file names it"
    command.add_argument("task", metavar=metavar, help=text, **more)


def _add_options(command: argparse.ArgumentParser, options: list[Option]) -> None:
    """Add options that leave nothing behind when they are not given."""
    for option in options:
        more: dict[str, Any] = {"metavar": option.metavar}
        if option.kind is bool:
            more = {"action": "store_true"}
        elif option.kind in (dict, list):
            more["action"] = "append"
        default = Settings._field_defaults.get(option.name)
        text = option.text if default is None else f"{option.text} (default {default})"
        flags = [option.flag] + ([option.alias] if option.alias else [])
        command.add_argument(*flags, dest=option.name, default=argparse.SUPPRESS, help=text, **more)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object, for machines")
    command.add_argument("--quiet", action="store_true", help="print the result only")
    command.add_argument(
        "--no-color", action="store_true", help="no colours, as with NO_COLOR in the environment"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the words after `hypergrad`.

    Raises:
        ValueError: in one line, for a command, an option or a number of words that is none.
    """
    if argv and not argv[0].startswith("-"):
        check_name("COMMAND", argv[0], COMMANDS)
    return parser().parse_args(argv)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `tune` that were given as flags, each checked.

    Raises:
        ValueError: in one line that names the flag.
    """
    found = {}
    for option in OPTIONS:
        value = getattr(arguments, option.name, None)
        if value is not None:
            called = option.flag if option.name != "task" else "TASK"
            found[option.name] = check_option(option.name, _parse(option, value), called)
    return found


def _parse(option: Option, value: Any) -> Any:
    """Turn the words of an option into its kind; what cannot be is left to `check_value`."""
    if option.name == "prior":
        return {name: _prior(text) for name, text in _pairs(option, value)}
    if option.kind is dict:
        return {name: _json(text) for name, text in _pairs(option, value)}
    if option.kind in (int, float):
        try:
            return option.kind(value)
        except ValueError:
            return value
    return value


def _pairs(option: Option, texts: list[str]) -> list[tuple[str, str]]:
    """Split words NAME=VALUE, each name at most once."""
    pairs = [_pair(option, text) for text in texts]
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{option.flag} names {name!r:.80} twice, expected each once; leave one out"
            )
    return pairs


def _pair(option: Option, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        example = "lr=1e-3" if option.name == "prior" else "width=32"
        raise ValueError(
            f"{option.flag} is {text!r:.80}, expected {option.metavar}; pass e.g. {option.flag} {example}"
        )
    return name, value


def _prior(text: str) -> Any:
    """Return a value, or [value, spread] where a number stands behind a colon."""
    value, colon, spread = text.rpartition(":")
    try:
        return [_json(value), float(spread)] if colon else _json(text)
    except ValueError:  # an option with a colon in its name
        return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
