"""Trials written into studies of Optuna, for its dashboard and plots, and read from them, for warm starts."""

from collections.abc import Sequence as Many
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core.checks import is_number
from hypergrad.core.types import PyTree
from hypergrad.searchers.base import Trials, check_trials
from hypergrad.searchers.optuna.parameters import (
    Parameter,
    frozen_trial,
    optuna_module,
    parameters,
    quiet,
    trial_states,
)
from hypergrad.space import from_units, static, to_units


def export_trials(
    trials: Many[Trials], space: PyTree, *, storage: Any = None, name: str = "hypergrad"
) -> Any:
    """Write trials into a new study of Optuna, which its dashboard and its plots can show.

    The trial of member m in step s has the user attributes `step`, `member`, `steps` and `parent`, and those
    numbers of `info` that every trial has for itself.

    Args:
        trials: Generations such as `Study.trials`; static dimensions have the values that the user named.
        space: Space of those trials.
        storage: Storage as `optuna.create_study` takes it, e.g. "sqlite:///runs/optuna.db"; memory where None.
        name: Name of the study.

    Returns:
        The `optuna.Study`, to be minimised.

    Raises:
        ValueError: without Optuna, for trials of another space, and for a name that is taken.
    """
    optuna = optuna_module()
    named, space = space, spaces.dynamic(space)
    found = parameters(space)
    place = jax.jit(lambda hparams: to_units(space, hparams))
    written = []
    for index, told in enumerate(trials):
        check_trials(space, told)
        told = told._replace(hparams=static.to_numbers(named, told.hparams))
        units = np.asarray(place(told.hparams), float)
        values, steps, parent = map(np.asarray, (told.values, told.steps, told.parent))
        for member, state in enumerate(trial_states(values, steps)):
            about = {"step": index, "member": member, "steps": int(steps[member])}
            about |= {"parent": int(parent[member])} | _numbers(told, member)
            one = float(values[member]), int(steps[member])
            written.append(frozen_trial(found, units[member], state, *one, user_attrs=about))
    with quiet(optuna):
        try:
            study = optuna.create_study(storage=storage, study_name=name)
        except optuna.exceptions.DuplicatedStudyError:
            raise ValueError(
                f"name is {name!r:.80}, which the storage has already, expected a new name; pass another"
            ) from None
        study.add_trials(written)
    return study


def _numbers(told: Trials, member: int) -> dict[str, Any]:
    """Return what `info` has of one trial: single numbers that are finite."""
    num, found = len(told.values), {}
    for name, x in told.info.items():
        x = np.asarray(x)
        if x.shape == (num,) and np.isfinite(x[member]):
            found[name] = x[member].item()
    return found


def import_trials(study: Any, space: PyTree) -> Trials:
    """Read the finished trials of an Optuna study, for `warm_start` or for people.

    The parameters are those of `parameters(space)`: `study.best_params["lr"]` is the leaf `lr`. Values of a
    study that maximises are negated. Trials without one of the parameters, or with a value outside the
    space, are left out; failed ones have NaN.

    Args:
        study: Study, an `optuna.Study` of one objective.
        space: Space that the parameters are read in.

    Raises:
        ValueError: without Optuna, for several objectives, and where no trial is of the space.
    """
    state = optuna_module("optuna.trial").TrialState
    if len(study.directions) != 1:
        raise ValueError(
            f"study has {len(study.directions)} objectives, expected one; choose one of them first"
        )
    sign = -1.0 if study.direction.name == "MAXIMIZE" else 1.0
    space = spaces.dynamic(space)
    found = parameters(space)
    ended = (state.COMPLETE, state.PRUNED, state.FAIL)
    trials = [t for t in study.get_trials(deepcopy=False, states=ended) if _is_of(found, t)]
    if not trials:
        names = ", ".join(one.name for one in found)
        raise ValueError(
            f"study has no finished trial of the space, expected the parameters {names:.200} within their "
            "bounds; pass the space it searched"
        )
    units = np.array([[one.unit(t.params[one.name]) for one in found] for t in trials])
    values, steps = _results(trials, sign, state)
    draw = jax.jit(lambda units: from_units(space, units))
    return Trials(
        draw(jnp.asarray(units, jnp.result_type(float))),
        jnp.asarray(values, jnp.result_type(float)),
        jnp.asarray(steps, jnp.int32),
        jnp.arange(len(trials), dtype=jnp.int32),
        {},
    )


def _results(trials: Many[Any], sign: float, state: Any) -> tuple[list[float], list[int]]:
    """Return the objective of each finished trial, and its steps: a pruned one has those of its last report."""
    last = [0 if t.last_step is None else max(t.last_step, 0) for t in trials]
    pruned = [t.state == state.PRUNED for t in trials]
    longest = max([1, *last, *(s + 1 for s, cut in zip(last, pruned, strict=True) if cut)])
    steps = [s if cut else longest for s, cut in zip(last, pruned, strict=True)]

    def value(trial: Any) -> float:
        if trial.state == state.FAIL:
            return np.nan
        if trial.state == state.COMPLETE:
            return sign * trial.value
        return sign * trial.intermediate_values.get(trial.last_step, np.nan)

    return [value(t) for t in trials], steps


def _on_grid(kind: Any, value: float) -> bool:
    """Tell whether a value is low + k step, where a distribution has a step."""
    step = getattr(kind, "step", None)
    steps = (value - kind.low) / step if step else 0
    return abs(steps - round(steps)) < 1e-6


def _is_of(found: Many[Parameter], trial: Any) -> bool:
    """Tell whether a trial has every parameter, with a value within its bounds."""
    for one in found:
        if one.name not in trial.params:
            return False
        value, kind = trial.params[one.name], one.distribution
        if hasattr(kind, "choices"):
            inside = value in kind.choices
        else:
            inside = is_number(value) and kind.low <= value <= kind.high and _on_grid(kind, value)
        if not inside:
            return False
    return True
