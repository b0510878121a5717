"""The command line: tune, list, check, report. Heavy libraries are imported by the commands that need them."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypergrad.problem import Task
    from hypergrad.tune import Progress

EXAMPLES = """examples:
  hypergrad tune digits --out runs/digits
  hypergrad tune tabular --data my.csv --label price --out runs/prices
  hypergrad tune images --data ~/mnist --method random --budget 64
  hypergrad tune my_task.py:task --arg width=32
  hypergrad check digits --horizon 20
  hypergrad report runs/digits

exit status: 0 done; 1 a check failed; 2 wrong input, said in one line; 130 ended by Ctrl-C."""


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="hypergrad",
        description="Tune the hyperparameters of JAX training loops.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    tune = commands.add_parser("tune", help="tune a task and write its report")
    _add_task(tune)
    tune.add_argument("--method", default="descent", help="descent (default) or random")
    tune.add_argument(
        "--estimator", default="reverse", help="reverse (default), forward or truncated"
    )
    tune.add_argument(
        "--budget", type=int, default=60, help="outer steps, or trials for random (default 60)"
    )
    tune.add_argument("--seed", type=int, default=0, help="of everything (default 0)")
    tune.add_argument("--seeds", type=int, default=4, help="seeds a hypergradient (default 4)")
    tune.add_argument("--restarts", type=int, default=1, help="descents side by side (default 1)")
    tune.add_argument(
        "--learning-rate", type=float, default=0.05, help="of the outer Adam (default 0.05)"
    )
    tune.add_argument(
        "--memory",
        help="budget of one hypergradient, e.g. 64M (default: 32M, or about sqrt(horizon) states)",
    )
    tune.add_argument("--out", help="folder of the study (default runs/TASK)")
    tune.add_argument("--overwrite", action="store_true", help="replace the study in --out")
    tune.add_argument("--quiet", action="store_true", help="print the result only")

    commands.add_parser("list", help="list the tasks, methods and estimators")

    check = commands.add_parser(
        "check", help="compare every estimator with finite differences on a task"
    )
    _add_task(check)
    check.add_argument("--seed", type=int, default=0, help="of the run (default 0)")

    report = commands.add_parser("report", help="write the report of a finished study again")
    report.add_argument("directory", metavar="DIR", help="folder of the study")
    return top


def _add_task(command: argparse.ArgumentParser) -> None:
    command.add_argument("task", metavar="TASK", help="a name from `list`, or file.py:name")
    command.add_argument(
        "--data", help="file or folder of the user's data, for tasks that read one"
    )
    command.add_argument("--label", help="name of the label column, for tabular tasks")
    command.add_argument("--horizon", type=int, help="training steps (default: the task's)")
    command.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another argument of the task",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `hypergrad`; those of the process where None.

    Returns:
        The exit status.
    """
    arguments = parser().parse_args(argv)
    command = {"tune": _tune, "list": _list, "check": _check, "report": _report}[arguments.command]
    try:
        return command(arguments, sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        if os.environ.get("HYPERGRAD_TRACEBACK"):
            raise
        print(f"hypergrad: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hypergrad: ended by Ctrl-C before there was a result", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _tune(arguments: argparse.Namespace, words: list[str]) -> int:
    memory = _parse_bytes(arguments.memory)
    out = arguments.out or str(Path("runs") / _plain_name(arguments.task))
    task, task_arguments = load_task(arguments)
    from hypergrad.tune import Settings, tune

    settings = Settings(
        method=arguments.method,
        estimator=arguments.estimator,
        budget=arguments.budget,
        seed=arguments.seed,
        learning_rate=arguments.learning_rate,
        num_seeds=arguments.seeds,
        num_restarts=arguments.restarts,
        memory=memory,
    )
    details = {"command": shlex.join(["hypergrad", *words]), "task_arguments": task_arguments}
    bar = _Bar(quiet=arguments.quiet)
    with bar:
        tuned = tune(
            task,
            settings,
            out=out,
            overwrite=arguments.overwrite,
            details=details,
            on_progress=bar.show,
        )
    _print_result(tuned.result)
    print(f"report: {tuned.report}")
    return 130 if tuned.result["interrupted"] else 0


def _print_result(result: dict[str, Any]) -> None:
    metric = result["metric"]["name"]
    print(f"{'':10s} {'validation loss':>24s}   test {metric} (95 % interval)")
    for name, one in result["configurations"].items():
        valid, test = one["valid"], one["test"]
        spread = f"{valid['mean']:.4f} [{valid['low']:.4f}, {valid['high']:.4f}]"
        score = f"{test['mean']:.4f} [{test['low']:.4f}, {test['high']:.4f}]"
        print(f"{name:10s} {spread:>24s}   {score}")
    print(
        f"each trained again on {result['num_seeds']} fresh seeds; {result['seconds']:.0f} s in all"
    )
    for warning in result["warnings"]:
        print(f"warning: {warning}")


def _list(arguments: argparse.Namespace, words: list[str]) -> int:
    import ast

    folder = Path("tasks")
    print("tasks (of ./tasks; your own: file.py:name)")
    for path in sorted(folder.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        factories = [n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == "task"]
        if factories:
            doc = ast.get_docstring(factories[0]) or ""
            required = [
                arg.arg
                for arg, value in zip(
                    factories[0].args.kwonlyargs, factories[0].args.kw_defaults, strict=True
                )
                if value is None
            ]
            needs = f" (needs --{', --'.join(required)})" if required else ""
            print(f"  {path.stem:12s} {doc.splitlines()[0] if doc else ''}{needs}")
    if not folder.is_dir():
        print("  none: there is no folder ./tasks here")
    from hypergrad import registry

    print("methods")
    for name, text in registry.METHODS.items():
        print(f"  {name:12s} {text}")
    print("estimators")
    for name, factory in registry.ESTIMATORS.items():
        print(f"  {name:12s} {(factory.__doc__ or '').splitlines()[0]}")
    return 0


def _check(arguments: argparse.Namespace, words: list[str]) -> int:
    os.environ["JAX_ENABLE_X64"] = "1"
    task, _ = load_task(arguments)
    from hypergrad.verify import verify

    rows = verify(task, horizon=arguments.horizon, seed=arguments.seed)
    print(f"{task.name}: derivatives along one random direction a leaf, float64, against")
    print("central differences (h = 1e-6)")
    print(
        f"{'estimator':22s} {'rel. error':>10s}  {'cosine':>7s} {'time':>7s} {'memory':>9s}  worst leaf"
    )
    failed = False
    for row in rows:
        if row.refused:
            print(f"{row.estimator:22s} does not apply: {row.refused}")
            continue
        bad = row.exact and not row.error < 1e-4
        failed |= bad
        note = (
            " <- exact in theory: look at it" if bad else "" if row.exact else " (biased by design)"
        )
        size = f"{row.num_bytes / 2**20:.1f} MiB"
        print(
            f"{row.estimator:22s} {row.error:10.1e}  {row.cosine:7.4f} {row.ratio:6.1f}x {size:>9s}  "
            f"{row.worst}{note}"
        )
    print("time: multiples of one training run; memory: temporaries of the compiled program")
    if failed:
        print("kinks (ReLU), chaos, or an objective that is not smooth explain errors too:")
        print("try a shorter --horizon or a smooth activation")
    return 1 if failed else 0


def _report(arguments: argparse.Namespace, words: list[str]) -> int:
    from hypergrad.report import report

    print(report(arguments.directory))
    return 0


def load_task(arguments: argparse.Namespace) -> "tuple[Task, dict[str, Any]]":
    """Import the task that the command line names and build it with its arguments.

    Raises:
        ValueError: for an unknown task or argument, with the nearest name there is.
    """
    import inspect

    factory = _resolve(arguments.task)
    from hypergrad.problem import Task

    given = _task_arguments(arguments)
    if isinstance(factory, Task):
        if given:
            raise ValueError(
                f"TASK {arguments.task!r} is a finished Task, expected a function for --{next(iter(given))}; "
                "write a function that returns it"
            )
        return factory, {}
    parameters = inspect.signature(factory).parameters
    for name in given:
        if name not in parameters:
            from hypergrad.registry import check_name

            known = dict(parameters) or {"(no arguments)": None}
            check_name(f"argument of task {arguments.task!r}", name, known)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    if missing:
        raise ValueError(
            f"task {arguments.task!r} was given no {missing[0]}, expected a value; "
            f"pass --{missing[0]} VALUE"
            if missing[0] in ("data", "label", "horizon")
            else f"task {arguments.task!r} was given no {missing[0]}, expected a value; "
            f"pass --arg {missing[0]}=VALUE"
        )
    task = factory(**given)
    if not isinstance(task, Task):
        raise ValueError(
            f"TASK {arguments.task!r} made {type(task).__name__}, expected a hypergrad.Task; "
            "see tasks/digits.py"
        )
    return task, given


def _task_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    import json

    given = {}
    for name in ("data", "label"):
        if getattr(arguments, name) is not None:
            given[name] = getattr(arguments, name)
    if arguments.horizon is not None and arguments.command == "tune":
        given["horizon"] = arguments.horizon
    for text in arguments.arg:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--arg is {text!r}, expected NAME=VALUE; pass e.g. --arg width=32")
        try:
            given[name] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            given[name] = value
    return given


def _resolve(name: str) -> Any:
    """Import `name` from ./tasks, or `file.py:attribute`, or `module:attribute`."""
    import importlib

    module_name, _, attribute = name.partition(":")
    attribute = attribute or "task"
    sys.path.insert(0, os.getcwd())
    path = Path(module_name)
    if module_name.endswith(".py"):
        if not path.is_file():
            raise ValueError(f"TASK is {name!r}, a file that is not there; check the path")
        sys.path.insert(0, str(path.resolve().parent))
        module_name = path.stem
    elif ":" not in name:
        known = {
            p.stem: p for p in sorted(Path("tasks").glob("*.py")) if "def task(" in p.read_text()
        }
        if not known:
            raise ValueError(
                f"TASK is {name!r}, but there is no folder ./tasks here; "
                "run from the repository's root, or pass my_file.py:task"
            )
        from hypergrad.registry import check_name

        check_name("TASK", name, known)
        module_name = f"tasks.{name}"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise ValueError(
            f"TASK is {name!r}, whose module cannot be imported ({type(error).__name__}: "
            f"{text[0] if text else ''}); run it by itself to see where"
        ) from error
    if not hasattr(module, attribute):
        names = ", ".join(n for n in vars(module) if not n.startswith("_"))
        raise ValueError(
            f"TASK is {name!r}, but {module_name} has no {attribute!r}, expected one of {names[:200]}"
        )
    return getattr(module, attribute)


def _plain_name(task: str) -> str:
    stem = Path(task.partition(":")[0]).stem
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in stem) or "study"


def _parse_bytes(text: str | None) -> int | None:
    if text is None:
        return None
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
    number, unit = text.upper().removesuffix("B").removesuffix("I"), ""
    if number and number[-1] in units:
        number, unit = number[:-1], number[-1]
    try:
        size = int(float(number) * units[unit])
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise ValueError(f"--memory is {text!r}, expected a size; pass e.g. 64M or 2G")
    return size


class _Bar:
    """A progress bar with the loss, the time left and the hyperparameters; lines where rich is missing."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.progress = None
        self.tasks: dict[str, Any] = {}
        if quiet or not sys.stderr.isatty():
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            return
        self.progress = Progress(
            TextColumn("{task.description:8s}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
        )

    def __enter__(self) -> "_Bar":
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def show(self, now: "Progress") -> None:
        """Show one step."""
        parts = [f"loss {now.value:.4f}  best {now.best:.4f}"] if now.hparams else []
        for name, value in now.hparams.items():
            parts.append(f"{name} {_brief(value)}")
        text = "  ".join(parts)
        if self.progress is not None:
            if now.phase not in self.tasks:
                self.tasks[now.phase] = self.progress.add_task(now.phase, total=now.total, text="")
            self.progress.update(self.tasks[now.phase], completed=now.done, text=text)
        elif not self.quiet and (now.done in (1, now.total) or now.done % 10 == 0):
            print(f"{now.phase} {now.done}/{now.total}  {text}", file=sys.stderr, flush=True)


def _brief(value: Any) -> str:
    import numpy as np

    array = np.asarray(value)
    if array.ndim == 0:
        return f"{float(array):.3g}"
    return f"{float(array.min()):.2g}..{float(array.max()):.2g}"
