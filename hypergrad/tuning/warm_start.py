"""Starts of a study: the trials of another study, and the user's prior."""

import contextlib
import hashlib
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.types import Array, HParams, PyTree
from hypergrad.problem import Task
from hypergrad.searchers import Prior, Trials, final_values
from hypergrad.searchers.wrappers import is_held
from hypergrad.space import static
from hypergrad.study import StudyWarning
from hypergrad.study.disk import records
from hypergrad.study.disk.folder import check_folder
from hypergrad.study.disk.journal import read_records
from hypergrad.tuning.settings import Settings


def read_trials(directory: str | Path, space: PyTree) -> Trials:
    """Read the trials of a study as trials of `space.dynamic`, without its code and its settings.

    Trials with a value outside the space are left out, with a `StudyWarning`: the bounds may have been
    moved since.

    Args:
        directory: Folder of the study, which may be running.
        space: Space of the new study, with the same leaves and shapes.

    Raises:
        ValueError: in one line, where there is no study, its hyperparameters are others, or none of its trials
            is within the space.
    """
    path = check_folder(directory)
    name = f"warm_start is {str(path)!r:.200}"
    try:
        found = [_read(record, space, name) for record in read_records(path / "journal.jsonl")]
    except FileNotFoundError:
        found = []
    if not found:
        raise ValueError(f"{name}, which has no trials yet, expected a study; name its folder")
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *found)
    inside = np.array([_is_inside(space, joined.hparams, m) for m in range(len(joined.values))])
    if not inside.any():
        raise ValueError(
            f"{name}, none of whose {len(inside)} trials is within the space; widen the space"
        )
    if not inside.all():
        text = f"{np.sum(~inside)} of {len(inside)} trials lie outside the space and are left out"
        warnings.warn(f"{name}: {text}", StudyWarning, stacklevel=2)
    kept = jax.tree.map(lambda x: x[inside], joined)
    numbers = static.to_numbers(space, kept.hparams)
    return kept._replace(hparams=numbers, parent=jnp.arange(inside.sum(), dtype=jnp.int32))


def _read(record: dict[str, Any], space: PyTree, name: str) -> Trials:
    """Return the trials of one record, without the parts that only people read."""
    names, hparams, values = tree.leaf_names(space), record.get("hparams"), record.get("values")
    leaves = list(hparams) if isinstance(hparams, dict) else None
    wrong = f"the leaves {leaves!s:.200}, expected those of the space, {names}"
    found = like = None
    if leaves == names and isinstance(values, list):
        wrong = f"other shapes or kinds of numbers in step {record.get('step')}, expected those of the space"
        like = _like(space, len(values))
        with contextlib.suppress(ValueError):
            found = records.decode(record | {"info": {}}, like)
    if found is None or jax.tree.map(np.shape, found) != jax.tree.map(np.shape, like):
        raise ValueError(
            f"{name}, whose trials have {wrong}; name a study of the same hyperparameters and horizon"
        )
    return found


def _like(space: PyTree, num: int) -> Trials:
    """Return trials of the shapes and types of those of a study over a space."""
    default = spaces.default(spaces.dynamic(space))
    like = jax.tree.map(lambda x: jnp.zeros((num, *np.shape(x)), x.dtype), default)
    whole = jnp.zeros(num, jnp.int32)
    return Trials(static.to_options(space, like), jnp.zeros(num), whole, whole, {})


def _is_inside(space: PyTree, hparams: HParams, member: int) -> bool:
    try:
        spaces.check_value(space, jax.tree.map(lambda x: x[member], hparams))
    except ValueError:
        return False
    return True


def held_trials(trials: Trials, space: PyTree, directory: str | Path) -> Trials:
    """Keep the trials whose long schedules are constant, as a search holds them.

    Raises:
        ValueError: where no schedule is constant.
    """
    kept = is_held(space, trials.hparams)
    if not kept.any():
        raise ValueError(
            f"warm_start is {str(directory)!r:.200}, whose schedules all change over time, expected some "
            "that are constant, as a search holds them; name another study, or tune by descent"
        )
    return jax.tree.map(lambda x: x[kept], trials)


def best_trial(trials: Trials) -> HParams:
    """Return the hparams with the lowest objective among those trained longest.

    Raises:
        ValueError: where no objective is finite.
    """
    values = final_values(trials)
    member = int(np.argmin(values))
    if not np.isfinite(values[member]):
        raise ValueError("warm_start has no trial with a finite objective; name another study")
    return jax.tree.map(lambda x: x[member], trials.hparams)


def priors_of(settings: Settings) -> dict[str, Prior]:
    """Return the priors of the settings by the names of leaves."""
    return {name: Prior(*pair) for name, pair in (settings.prior or {}).items()}


def start_of(task: Task, settings: Settings) -> HParams | None:
    """Return the start of a descent: the best trial of another study, with the values of the prior.

    The start is None where the settings have neither.
    """
    if settings.warm_start is None and not settings.prior:
        return None
    start = spaces.default(task.space)
    if settings.warm_start is not None:
        start = best_trial(read_trials(settings.warm_start, task.space))
    prior = priors_of(settings)

    def leaf(name: str, x: Any) -> Array:
        value = prior[name].value if name in prior else x
        return jnp.asarray(np.broadcast_to(value, np.shape(x)), jnp.result_type(float))

    leaves = map(leaf, tree.leaf_names(start), jax.tree.leaves(start))
    return jax.tree.unflatten(jax.tree.structure(start), list(leaves))


def digest_of(task: Task, settings: Settings) -> dict[str, str]:
    """Return the entries of `study.json` on the study whose trials come first; empty where there is none."""
    if settings.warm_start is None:
        return {}
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(read_trials(settings.warm_start, task.space)):
        found.update(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    return {"warm_start_digest": found.hexdigest()}
