"""The origin of a study: its task, files, settings and digests."""

import contextlib
import hashlib
import inspect
import json
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from hypergrad.core.checks import is_whole
from hypergrad.core.files import read_json, to_plain
from hypergrad.core.memory import states_memory
from hypergrad.problem import Task
from hypergrad.report.study import Study
from hypergrad.space import describe_space, space_from_description
from hypergrad.study.disk.description import FORMAT
from hypergrad.study.disk.machine import describe_machine
from hypergrad.tuners import TUNERS
from hypergrad.tuning.build import NAMES, check_task, layout_of, width
from hypergrad.tuning.data import check_same_data, data_of
from hypergrad.tuning.settings import Settings, check_settings
from hypergrad.tuning.warm_start import digest_of


def settings_of(task: Task, described: dict[str, Any], allow_changes: bool) -> Settings:
    """Return the settings of a study, whose task must be `task`.

    Raises:
        ValueError: in one line, for the first difference.
    """
    try:
        settings = check_settings(_of(described, "settings"), NAMES)
    except ValueError as error:
        raise ValueError(
            f"settings of the study cannot be used ({error}); resume it with the hypergrad that wrote it"
        ) from None
    here = {"task": task.name, "horizon": task.horizon, "width": width(settings)}
    for name, value in here.items():
        if described.get(name) != value:
            raise ValueError(
                f"{name} is {value!r:.200}, expected {described.get(name)!r:.200} as the study has it; "
                "name its task, with the same arguments"
            )
    _check_same_space(to_plain(describe_space(task.space)), _of(described, "space"))
    known = _of(described, "sources")
    changed = [f for f, digest in sources(task).items() if known.get(f) != digest]
    if changed and not allow_changes:
        raise ValueError(
            f"{', '.join(changed)} changed since the study was started, expected the same source; restore it, "
            "or pass allow_changes=True"
        )
    data = data_of(check_task(task, settings))
    if not allow_changes:
        check_same_data(data, described)
    digest = digest_of(task, settings)
    if digest != {name: described.get(name) for name in digest}:
        raise ValueError(
            f"the trials in {settings.warm_start!r:.200} are not those that the study began with, "
            "expected the same; restore that folder"
        )
    return settings


def _check_same_space(here: dict[str, Any], was: dict[str, Any]) -> None:
    """Raise a `ValueError` that names the first leaf of a space that changed: what it is, and what it was."""
    changed = [name for name in {**was, **here} if here.get(name) != was.get(name)]
    if not changed:
        return
    first = changed[0]
    now, then = (_written(space.get(first)) for space in (here, was))
    others = f", and so did {', '.join(map(repr, changed[1:]))!s:.100}" if changed[1:] else ""
    raise ValueError(
        f"the space changed since the study was started: {first!r:.80} is {now:.200}, was {then:.200}{others}; "
        "expected the same space; restore it, or start a new study in another folder (warm_start takes the "
        "trials of this one where they fit)"
    )


def _written(dimension: Any) -> str:
    """Write a dimension as a user does; nothing where a space lacks it."""
    if dimension is None:
        return "not there"
    try:
        return repr(space_from_description({"it": dimension})["it"])
    except ValueError:
        return repr(dimension)


def _of(described: dict[str, Any], name: str) -> dict[str, Any]:
    value = described.get(name)
    return value if isinstance(value, dict) else {}


def final_digest(found: Study, baseline: Study | None, judged: dict[str, Any]) -> str:
    """Return the SHA-256 of all trainings: the method, its baseline, and the comparison of them."""
    parts = {
        "version": 1,
        "trials": found.digest,
        "random": None if baseline is None else baseline.digest,
        "judged": to_plain(judged),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_same_result(path: Path, result: dict[str, Any]) -> None:
    """Raise a `ValueError` where the study is finished already, and its result differs from this one.

    Journals are compared step by step, but the comparison at the end has no records.
    """
    try:
        old = read_json(path)
    except (FileNotFoundError, ValueError):
        return  # there is no result yet, or it is damaged and made again
    same_trials = old.get("digest") == result["digest"] and old.get("interrupted") is False
    digest = old.get("final_digest")
    if same_trials and digest is not None and digest != result["final_digest"]:
        raise ValueError(
            f"the finished study was judged again, and its values differ from those in {str(path)!r}, expected "
            "the same bits; resume with the task, data, settings, versions and machine it was started with, or "
            "remove that file to have it judged anew"
        )


def describe_study(task: Task, settings: Settings, details: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `study.json` for a study that is about to begin."""
    return {
        "format": FORMAT,
        "task": task.name,
        "task_arguments": {},
        "method": settings.method,
        "settings": settings._asdict(),
        "seed": settings.seed,
        "width": width(settings),
        "horizon": task.horizon,
        "space": describe_space(task.space),
        "sources": sources(task),
        "versions": describe_machine()["versions"],
        "device": str(jax.devices()[0]),
        "command": "hypergrad.tune(...)",
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "description": task.description,
        **_decided(task, settings),
        **digest_of(task, settings),
        **details,
    }


def _decided(task: Task, settings: Settings) -> dict[str, Any]:
    """Return what the shapes and the memory of this machine decide: bits depend on it."""
    if settings.method in TUNERS:
        return {"states_memory": states_memory()}
    return {"layout": layout_of(task, settings).label}


def states_memory_of(described: dict[str, Any]) -> int | None:
    """Return the bytes that states took where a study began; None where it does not say."""
    found = described.get("states_memory")
    if found is not None and not (is_whole(found) and found >= 0):
        raise ValueError(
            f"states_memory of the study is {found!r:.80}, expected a number of bytes; restore study.json"
        )
    return found


def sources(task: Task) -> dict[str, str]:
    """Name the files outside this package that define a task, each with its SHA-256.

    These are the files of its functions, and of the modules that they import, except installed ones. For the
    data see `data_of`.
    """
    modules = [inspect.getmodule(f) for f in (*task.problem, task.test) if callable(f)]
    seen: set[str] = set()
    found: dict[str, str] = {}
    while modules:
        module = modules.pop()
        path = Path(getattr(module, "__file__", None) or "")
        if module is None or module.__name__ in seen or not _is_users(path):
            continue
        seen.add(module.__name__)
        with contextlib.suppress(OSError):
            found[_file_name(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        for value in list(vars(module).values()):
            modules.append(value if inspect.ismodule(value) else inspect.getmodule(type(value)))
            name = getattr(value, "__module__", None)
            modules.append(sys.modules.get(name) if isinstance(name, str) else None)
    return dict(sorted(found.items()))


def _file_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.name == "__init__.py" else path.name


def _is_users(path: Path) -> bool:
    """Tell whether a source file is the user's own: not part of this package or Python, and not installed."""
    if path.suffix != ".py" or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    places = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))
    return not any(path.is_relative_to(place) for place in places)
