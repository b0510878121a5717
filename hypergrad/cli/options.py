"""Options and commands as click takes them. Nothing heavy is imported here, so `--help` answers at once."""

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click

from hypergrad.cli.lines import drop
from hypergrad.cli.loading import known_tasks
from hypergrad.cli.programs import VARIABLE, keep_programs
from hypergrad.tuning.settings import OPTION, Option, Settings, check_options

OF_TASK = ("data", "label", "horizon", "arg")
"""Options that choose the task, besides its name."""


class Shown(NamedTuple):
    """Form of a command's output.

    Attributes:
        as_json: Whether to print one JSON object, for machines.
        quiet: Whether to print the result only.
        color: Whether to use colours.
        programs: Folder in which compiled programs are kept.
    """

    as_json: bool
    quiet: bool
    color: bool
    programs: Path | None = None


def command(
    name: str, text: str, *params: click.Parameter, epilog: str = ""
) -> Callable[[Callable[..., int]], click.Command]:
    """Make a command from a function.

    Args:
        name: Word on the command line.
        text: Description for `--help`.
        params: Words and flags, passed to the function by their names where they were given.
        epilog: Text after the options, as it stands.

    Returns:
        A decorator for `(Shown, **given) -> exit status`.
    """
    compiles = any(one.name == "arg" for one in params)  # it takes a task

    def made(function: Callable[..., int]) -> click.Command:
        def callback(as_json: bool, quiet: bool, no_color: bool, **given: Any) -> int:
            kept = None
            if compiles:
                kept = keep_programs(given.pop("cache"), given.pop("no_cache"))
            if no_color:
                os.environ["NO_COLOR"] = "1"  # rich and whatever else a task imports read it
            shown = Shown(as_json, quiet, not os.environ.get("NO_COLOR"), kept)
            try:
                status = function(shown, **{n: v for n, v in given.items() if v is not None})
                sys.stdout.flush()
                return status
            except BrokenPipeError:  # the reader of the output has closed it
                drop(sys.stdout)
                return 0

        return click.Command(
            name,
            params=[*params, *(_programs() if compiles else ()), *_common()],
            callback=callback,
            help=text[0].upper() + text[1:] + ".",
            short_help=text,
            epilog=as_written(epilog),
        )

    return made


def _programs() -> list[click.Parameter]:
    text = f"folder of compiled programs (default: ${VARIABLE}, or ~/.cache/hypergrad)"
    folder = click.Option(
        ["--cache"],
        metavar="DIR",
        help=text,
        shell_complete=_completer("DIR"),
        callback=_read_cache,
    )
    return [folder, flag("--no-cache", f"keep no compiled programs, as with {VARIABLE}=off")]


def _read_cache(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is not None and not value.strip():
        raise ValueError(
            "--cache is empty, expected a folder; pass e.g. --cache ~/programs, or --no-cache"
        )
    return value


def _common() -> list[click.Parameter]:
    texts = {
        "--json": "print one JSON object, for machines",
        "--quiet": "print the result only",
        "--no-color": "no colours, as with NO_COLOR in the environment",
    }
    return [flag(name, text, "as_json" if name == "--json" else "") for name, text in texts.items()]


def flag(name: str, text: str, dest: str = "") -> click.Option:
    """Make an option without a value."""
    return click.Option([name, *([dest] if dest else [])], is_flag=True, help=text)


def word(name: str, *, required: bool = True) -> click.Argument:
    """Make a word without a flag: `task`, `file`, `directory`, ..."""
    shown = {"directory": "DIR"}.get(name, name.upper())
    return click.Argument(
        [name],
        required=required,
        metavar=shown,
        callback=_reader(OPTION["task"], "TASK") if name == "task" else None,
        shell_complete=_completer(shown),
    )


def options(names: Iterable[str]) -> list[click.Parameter]:
    """Make options of tuning by their names; an option that is not given has no entry."""
    return [_option(OPTION[name]) for name in names]


def _option(option: Option) -> click.Option:
    default = Settings._field_defaults.get(option.name)
    return click.Option(
        [option.flag, *([option.alias] if option.alias else []), option.name],
        is_flag=True if option.kind is bool else None,
        multiple=option.kind in (dict, list),
        metavar=option.metavar or None,
        help=option.text if default is None else f"{option.text} (default {default})",
        callback=_reader(option, option.flag),
        shell_complete=_completer(option.metavar, option.name),
    )


def _reader(option: Option, called: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return the function that click calls with the words of an option; None stands for an option not given."""

    def read(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value is None or value is False or value == ():
            return None
        return check_options({option.name: _read(option, value)}, lambda _: called)[option.name]

    return read


def _read(option: Option, value: Any) -> Any:
    """Turn the words of an option into its kind; leave words that do not fit to `check_options`."""
    if option.kind is dict:
        pairs = [_pair(option, text) for text in value]
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"{option.flag} names {twice[0]!r:.80} twice, expected each once; leave one out"
            )
        return {name: (_spread if option.name == "prior" else _json)(text) for name, text in pairs}
    if option.kind is list:
        return list(value)
    if option.kind in (int, float):
        try:
            return option.kind(value)
        except ValueError:
            return value
    return value


def _pair(option: Option, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        example = "lr=1e-3" if option.name == "prior" else "width=32"
        raise ValueError(
            f"{option.flag} is {text!r:.80}, expected {option.metavar}; pass e.g. {option.flag} {example}"
        )
    return name, value


def _spread(text: str) -> Any:
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


def _completer(kind: str, name: str = "") -> Callable[[click.Context, click.Parameter, str], list]:
    """Return the function that click calls to complete a word."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list:
        from click.shell_completion import CompletionItem

        if kind in ("FILE", "PATH", "DIR"):
            return [CompletionItem(begun, type="dir" if kind == "DIR" else "file")]
        known = list(known_names().get(name, ())) if kind == "NAME" else []
        if kind == "SHELL":
            known = list(SHELLS)
        found = [CompletionItem(one) for one in known if one.startswith(begun)]
        if kind == "TASK":  # a shell may expand its completions: offer plain names only
            tasks = [one for one in known_tasks() if one.isidentifier() and one.startswith(begun)]
            found = [CompletionItem(begun, type="file"), *map(CompletionItem, tasks)]
        return found

    return complete


SHELLS = ("bash", "zsh", "fish")


def known_names() -> dict[str, Collection[str]]:
    """Return the names that options may have, by option; this imports the methods."""
    from hypergrad.study import LOGS
    from hypergrad.tuning.build import NAMES

    return {**NAMES, "log": LOGS}


def as_written(text: str) -> str:
    """Mark every paragraph of a help text to be left as it is written."""
    return "\n\n".join(f"\b\n{part}" for part in text.split("\n\n")) if text else ""
