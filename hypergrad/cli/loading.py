"""Import the user's task by the name given on the command line, and build it with its arguments."""

import ast
import contextlib
import importlib.util
import inspect
import os
import shlex
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from hypergrad.core.checks import check_function, check_kind, check_name
from hypergrad.tuning.settings import MAX_DEVICES

if TYPE_CHECKING:
    from hypergrad.cli.studyfile import StudyFile
    from hypergrad.problem import Task

TABLES = (".csv", ".csv.gz", ".tsv", ".txt", ".xlsx", ".parquet")

FLAGS = ("data", "label", "horizon")
"""Arguments of tasks that have a flag of their own."""


def arguments_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are arguments of the task."""
    return {**given.get("arg", {}), **{name: given[name] for name in FLAGS if name in given}}


def take_cores(num: int | None) -> None:
    """Make every core a device, before anything computes: jax fixes its devices then."""
    from hypergrad.populations import use_cores

    try:
        use_cores(num)
    except ValueError as error:
        raise ValueError(f"devices is {num}, which this process cannot have: {error}") from None


def load_task(name: str, given: dict[str, Any], file: "StudyFile | None" = None) -> "Task":
    """Import the task `name` and build it.

    Args:
        name: Name of a file in ./tasks, `file.py:attribute` or `module:attribute`.
        given: Arguments of its function.
        file: Study file that holds some of them, for messages.

    Raises:
        ValueError: for an unknown task or argument, with the nearest known name.
    """
    from hypergrad.problem import Task

    factory = _resolve(name)
    if isinstance(factory, Task):
        if given:
            raise ValueError(
                f"TASK {name!r} is a finished Task, expected a function for {next(iter(given))!r:.80}; "
                "write a function that returns it"
            )
        return factory
    check_function(
        f"TASK {name!r}", factory, "one that returns a hypergrad.Task, as tasks/digits.py does"
    )
    _check_arguments(name, factory, given, file)
    try:
        task = factory(**given)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"TASK {name!r} could not be made ({_reason(error)}); "
            "set HYPERGRAD_TRACEBACK=1 to see where"
        ) from error
    check_kind(f"what TASK {name!r} made", task, Task, "what tasks/digits.py makes")
    return task


def load_recorded(command: str, directory: str, given: dict[str, Any]) -> "Task":
    """Build the task that the command line names, with its arguments in the study.

    Args:
        command: Words of the command before its directory, for messages.
        directory: Folder of the study.
        given: Options of the command, with `allow_changes`, and with `task` where it is named.
    """
    from hypergrad.core.files import to_plain
    from hypergrad.study import StudyWarning, read_description

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StudyWarning)  # the next reader warns, in one line
        described = read_description(directory)
    if "task" not in given:
        trial = [str(given["trial"])] if "trial" in given else []
        words = shlex.join(["hypergrad", command, directory, *trial])
        raise ValueError(
            f"TASK is missing, expected that of the study, {str(described.get('task'))[:80]!r} (no code is "
            f"loaded because a file names it); name it: {words} TASK"
        )
    num = described["machine"].get("num_devices")
    if type(num) is int and 1 <= num <= MAX_DEVICES:
        # where this comes too late, the study names its need
        with contextlib.suppress(ValueError):
            take_cores(num)
    recorded = described.get("task_arguments")
    recorded = recorded if isinstance(recorded, dict) else {}
    arguments = {**recorded, **arguments_of(given)}
    task = load_task(given["task"], arguments)
    other = [name for name, value in to_plain(arguments).items() if recorded.get(name) != value]
    if other and not given["allow_changes"]:
        raise ValueError(
            f"{other[0]} is {arguments[other[0]]!r}, expected {recorded.get(other[0])!r} as the study has it; "
            "leave it out, or pass --allow-changes"
        )
    return task


def _check_arguments(
    name: str, factory: Any, given: dict[str, Any], file: "StudyFile | None"
) -> None:
    parameters = inspect.signature(factory).parameters
    kinds = {p.kind for p in parameters.values()}
    for argument in given if inspect.Parameter.VAR_KEYWORD not in kinds else ():
        in_file = file is not None and argument in file.options.get("arg", {})
        place = f"{file.place('arg', argument)}: " if file is not None and in_file else ""
        known = list(parameters) or ["(no arguments)"]
        check_name(f"{place}argument of task {name!r}", argument, known)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {n: p for n, p in parameters.items() if p.default is p.empty and p.kind not in several}
    missing = [name for name in needed if name not in given]
    if missing:
        first = missing[0]
        way = f"--{first} VALUE" if first in FLAGS else f"--arg {first}=VALUE"
        raise ValueError(f"task {name!r} was given no {first}, expected a value; pass {way}")


def _resolve(name: str) -> Any:
    """Import `name` from ./tasks, or `file.py:attribute`, or `module:attribute`."""
    module_name, _, attribute = name.partition(":")
    attribute = attribute or "task"
    _search_first(os.getcwd())
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            hint = (
                f"did you mean {path.stem!r}?" if path.stem in known_tasks() else "check the path"
            )
            raise ValueError(f"TASK is {name!r}, a file that is not there; {hint}")
        _search_first(str(path.resolve().parent))
    elif name.lower().endswith(TABLES):
        text = f", or text --data {name}" if name.lower().endswith(".txt") else ""
        raise ValueError(
            f"TASK is {name!r:.80}, a {'text' if text else 'table'}, expected the name of a task; "
            f"pass tabular --data {name} --label COLUMN{text}"
        )
    elif ":" not in name:
        known = known_tasks()
        if not known:
            raise ValueError(
                f"TASK is {name!r}, but there is no folder ./tasks here; "
                "run from the repository's root, or pass my_file.py:task"
            )
        module_name = f"tasks.{check_name('TASK', name, known)}"
    try:
        module = _import(module_name)
    except Exception as error:
        raise ValueError(
            f"TASK is {name!r}, whose module cannot be imported ({_reason(error)}); "
            "run it by itself to see where"
        ) from error
    public = [n for n, x in vars(module).items() if not n.startswith("_") and _makes(x, module)]
    check_name(f"attribute of {module_name} in TASK", attribute, public)
    return getattr(module, attribute)


def _makes(value: Any, module: ModuleType) -> bool:
    """Tell whether a value may be a task: a function of the module itself, or a tuple such as a `Task`."""
    own = getattr(value, "__module__", None) == module.__name__
    return isinstance(value, tuple) or (callable(value) and own)


def _import(name: str) -> ModuleType:
    """Import a module by its name, or a file by its path even if another module has its name."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    spec = importlib.util.spec_from_file_location(f"_task_file.{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{name!r} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _search_first(folder: str) -> None:
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)


class Known(NamedTuple):
    """Description of a task in ./tasks, read from its file without an import.

    Attributes:
        summary: First line of the docstring.
        needs: Arguments without a default.
    """

    summary: str
    needs: list[str]


def known_tasks() -> dict[str, Known]:
    """List the files in ./tasks that define a function `task`, by reading them; leave others out."""
    found = {}
    for path in sorted(Path("tasks").glob("*.py")):
        try:
            module = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
        for node in module.body:
            if isinstance(node, ast.FunctionDef) and node.name == "task":
                words = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                needs = [word.arg for word, default in words if default is None]
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                found[path.stem] = Known(summary, needs)
    return found


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
