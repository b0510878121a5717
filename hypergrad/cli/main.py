"""The command line. Heavy libraries are imported by the commands that need them."""

import json
import os
import shlex
import sys

import click

import hypergrad
from hypergrad.cli import about, finished, studies
from hypergrad.cli.lines import open_streams, say
from hypergrad.cli.options import as_written
from hypergrad.core.checks import OTHER_WORDS
from hypergrad.tuning.settings import OPTION

EXAMPLES = """Examples:
  hypergrad tune digits --out runs/digits
  hypergrad tune tabular --data my.csv --label price --out runs/prices
  hypergrad tune images --data ~/mnist --method random --budget 64
  hypergrad tune text --data book.txt --out runs/book
  hypergrad tune digits --method cross_entropy --population 64 --generations 4 --scheduler halving
  hypergrad tune digits --method cross_entropy --prior lr=0.1 --warm-start runs/digits
  hypergrad tune my_task.py:task --arg width=32
  hypergrad run study.toml --seed 1
  hypergrad resume runs/digits digits
  hypergrad verify digits --horizon 20
  hypergrad recommend digits --memory 64M

Exit status:
    0  done
    1  an estimator is not what finite differences say
    2  wrong input, said in one line
  130  ended by Ctrl-C; a study on disk can be resumed"""

COMMANDS = {
    str(one.name): one
    for one in (*studies.TUNING_COMMANDS, *finished.STUDY_COMMANDS, *about.TASK_COMMANDS)
}

GROUP = click.Group(
    "hypergrad",
    COMMANDS,
    params=[],
    help="Tune the hyperparameters of JAX training loops.",
    epilog=as_written(EXAMPLES),
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
click.version_option(hypergrad.__version__, message="hypergrad-jax %(version)s")(GROUP)


AS_FLAGS = {
    "storage is ": "--out is ",
    "allow_changes=True": "--allow-changes",
    "overwrite=True": "--overwrite",
}
"""What Python calls an argument, and what the command line calls it."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Words after `hypergrad`; those of the process where None.

    Returns:
        The exit status: 0 done, 1 a comparison failed, 2 wrong input, 130 Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    open_streams()
    try:
        line = shlex.join(["hypergrad", *argv])
        return GROUP.main(argv, prog_name="hypergrad", standalone_mode=False, obj=line)
    except click.UsageError as error:
        text = _said(error)
    except ValueError as error:
        if os.environ.get("HYPERGRAD_TRACEBACK"):
            raise
        text = _in_flags(" ".join(str(error).split()))
    except OSError as error:
        name = f" {str(error.filename)[:80]!r}" if error.filename else ""
        text = f"the system refuses{name}: {error.strerror or error}"
    except click.Abort:
        return fail("ended by Ctrl-C before there was a result", studies.INTERRUPTED, argv)
    return fail(text, 2, argv)


def _in_flags(text: str) -> str:
    """Say in the words of the command line what an error says in those of Python."""
    for ours, flag in AS_FLAGS.items():
        text = text.replace(ours, flag)
    return text


def _said(error: click.UsageError) -> str:
    """Report in one line the words that click did not understand, with the nearest name."""
    near = getattr(error, "possibilities", None)
    other = OTHER_WORDS.get(getattr(error, "option_name", "").strip("-").replace("-", "_"))
    if other in OPTION:
        near = [f"--{other.replace('_', '-')}"]
    text = error.message if near else error.format_message()
    path = error.ctx.command_path if error.ctx else "hypergrad"
    hint = f"did you mean {near[0]!r}?" if near else f"see `{path} --help`"
    return f"{text[0].lower()}{text[1:].rstrip('.')}; {hint}"


def fail(text: str, status: int, argv: list[str]) -> int:
    """Report an error in one line, and for machines as JSON too."""
    say(f"hypergrad: {text}", error=True)
    if "--json" in argv:
        say(json.dumps({"error": text, "status": status}))
    return status
