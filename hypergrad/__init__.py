"""Tune the hyperparameters of JAX training loops. Names load when they are first used."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypergrad import (
        adapters,
        buckets,
        curvature,
        devices,
        estimators,
        groups,
        heads,
        integrations,
        layout,
        measures,
        pareto,
        policies,
        schedulers,
        searchers,
        sizing,
        solve,
        space,
        static,
        study,
        tuners,
    )
    from hypergrad.callbacks import Callback, Progress
    from hypergrad.estimators import Estimate, Estimator
    from hypergrad.expected import enumerated, expected, sampled
    from hypergrad.export import load_schedule
    from hypergrad.policies import Policy
    from hypergrad.population import Population, population
    from hypergrad.problem import Examples, Problem, Task, Variables, check
    from hypergrad.recommend import Recommendation, recommend
    from hypergrad.report import report
    from hypergrad.response import best_response, gauss_newton
    from hypergrad.resume import replay, resume
    from hypergrad.searchers import Outcome, Searcher
    from hypergrad.settings import Settings
    from hypergrad.space import Choice, Integer, LogReal, Real, Sequence, schedule, select
    from hypergrad.study import Study
    from hypergrad.train import TrainState, averaged, init_state, step, unroll
    from hypergrad.tune import tune
    from hypergrad.tuners import Tuner
    from hypergrad.verify import verify

__version__ = "0.1.0"

_HOMES = {
    "hypergrad": "adapters buckets curvature devices estimators groups heads integrations layout measures "
    "pareto policies schedulers searchers sizing solve space static study tuners",
    "hypergrad.callbacks": "Callback Progress",
    "hypergrad.estimators": "Estimate Estimator",
    "hypergrad.expected": "enumerated expected sampled",
    "hypergrad.export": "load_schedule",
    "hypergrad.policies": "Policy",
    "hypergrad.population": "Population population",
    "hypergrad.problem": "Examples Problem Task Variables check",
    "hypergrad.recommend": "Recommendation recommend",
    "hypergrad.report": "report",
    "hypergrad.resume": "replay resume",
    "hypergrad.response": "best_response gauss_newton",
    "hypergrad.searchers": "Outcome Searcher",
    "hypergrad.settings": "Settings",
    "hypergrad.space": "Choice Integer LogReal Real Sequence schedule select",
    "hypergrad.train": "TrainState averaged init_state step unroll",
    "hypergrad.study": "Study",
    "hypergrad.tune": "tune",
    "hypergrad.tuners": "Tuner",
    "hypergrad.verify": "verify",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Callback",
    "Choice",
    "Estimate",
    "Estimator",
    "Examples",
    "Integer",
    "LogReal",
    "Outcome",
    "Policy",
    "Population",
    "Problem",
    "Progress",
    "Real",
    "Recommendation",
    "Searcher",
    "Sequence",
    "Settings",
    "Study",
    "Task",
    "TrainState",
    "Tuner",
    "Variables",
    "adapters",
    "averaged",
    "best_response",
    "buckets",
    "check",
    "curvature",
    "devices",
    "enumerated",
    "estimators",
    "expected",
    "gauss_newton",
    "groups",
    "heads",
    "init_state",
    "integrations",
    "layout",
    "load_schedule",
    "measures",
    "pareto",
    "policies",
    "population",
    "recommend",
    "replay",
    "report",
    "resume",
    "sampled",
    "schedule",
    "schedulers",
    "searchers",
    "select",
    "sizing",
    "solve",
    "space",
    "static",
    "step",
    "study",
    "tune",
    "tuners",
    "unroll",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'hypergrad' has no attribute {name!r}")
    if home == "hypergrad":
        return importlib.import_module(f"hypergrad.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps names such as `tune` and `report` for the functions, not for the modules of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        shadow = isinstance(value, ModuleType) and _HOME_OF.get(name, "hypergrad") != "hypergrad"
        if not shadow:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
