"""Optuna as a searcher, and our searchers as samplers of Optuna.

- `live`: A sampler of Optuna with its study, which is held in memory.
- `parameters`: Spaces and trials as Optuna has them.
- `samplers`: Samplers for users of Optuna, built on the searchers `cross_entropy` and `bayes`.
- `searcher`: Any sampler of Optuna as a searcher.
- `trials`: Trials written into studies of Optuna, for its dashboard and plots, and read from them, for warm
  starts.
"""

from typing import TYPE_CHECKING, Any

from hypergrad.core.checks import library
from hypergrad.searchers.optuna.searcher import optuna_searcher
from hypergrad.searchers.optuna.trials import export_trials, import_trials

if TYPE_CHECKING:
    from hypergrad.searchers.optuna.samplers import BayesSampler, CrossEntropySampler

__all__ = [
    "BayesSampler",
    "CrossEntropySampler",
    "export_trials",
    "import_trials",
    "optuna_searcher",
]


def __getattr__(name: str) -> Any:
    """Import the samplers on first use, because they are classes of Optuna's."""
    if name not in ("BayesSampler", "CrossEntropySampler"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    library("optuna", "optuna", "integration")
    from hypergrad.searchers.optuna import samplers

    return getattr(samplers, name)
