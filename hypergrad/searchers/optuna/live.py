"""A sampler of Optuna with its study, which is held in memory."""

import contextlib
from collections.abc import Callable, Iterator, Sequence as Many
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.types import Array, HParams
from hypergrad.searchers.optuna.parameters import (
    Parameter,
    frozen_trial,
    optuna_module,
    quiet,
    trial_states,
)


class Parts(NamedTuple):
    """The makings of a sampler, and its translation of trials.

    Attributes:
        found: Parameters of the space.
        sampler: (seed=...) -> the sampler.
        draw: (unit coordinates `[N, D]`) -> hparams `[N]`.
        place: (hparams `[N]`) -> unit coordinates `[N, D]`.
    """

    found: Many[Parameter]
    sampler: Callable[..., Any]
    draw: Callable[[Array | np.ndarray], HParams]
    place: Callable[[HParams], Array]


class Live:
    """A sampler with its study, after its trials so far.

    Attributes:
        mark: Bits of the state that it represents.
        trials: Trials that it has suggested and not been told of yet.
        hparams: Hyperparameters of those, `[num]`.
    """

    def __init__(self, parts: Parts, seed: int):
        self.optuna = optuna_module()
        self.parts = parts
        self.distributions = {one.name: one.distribution for one in parts.found}
        with quiet(self.optuna), installed(parts.sampler):
            self.study = self.optuna.create_study(sampler=_made(parts.sampler, seed))
        self.mark = b""
        self.trials: list[Any] = []
        self.hparams: HParams = None

    def ask(self, num: int) -> None:
        """Ask for `num` trials."""
        with installed(self.parts.sampler):
            self.trials = [self.study.ask(self.distributions) for _ in range(num)]
        units = [[one.unit(t.params[one.name]) for one in self.parts.found] for t in self.trials]
        self.hparams = self.parts.draw(np.array(units, jnp.result_type(float)))

    def tell(self, hparams: HParams, values: np.ndarray, steps: np.ndarray) -> None:
        """Tell the results of the suggested trials, and add trials that it did not suggest."""
        states = trial_states(values, steps)
        own = _same_rows(self.hparams, hparams, len(self.trials)) if self.trials else ()
        units = None
        for member, state in enumerate(states):
            value, step = float(values[member]), int(steps[member])
            if member < len(own) and own[member]:
                trial = self.trials[member]
                if state.name == "PRUNED":
                    trial.report(value, step)
                self.study.tell(trial, value if state.name == "COMPLETE" else None, state)
                continue
            units = np.asarray(self.parts.place(hparams), float) if units is None else units
            self.study.add_trial(frozen_trial(self.parts.found, units[member], state, value, step))
        for member, trial in enumerate(self.trials):
            if member >= len(own) or not own[member]:
                self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
        self.trials, self.hparams = [], None


def _made(sampler: Callable[..., Any], seed: int) -> Any:
    made = sampler(seed=seed)
    base = optuna_module("optuna.samplers").BaseSampler
    if not isinstance(made, base):
        raise ValueError(
            f"sampler made {type(made).__name__}, expected an optuna.samplers.BaseSampler; "
            "pass e.g. optuna.samplers.TPESampler"
        )
    return made


@contextlib.contextmanager
def installed(sampler: Any) -> Iterator[None]:
    """Raise a `ValueError` in one line where a sampler needs a library that is not installed."""
    try:
        yield
    except ImportError as error:
        reason = " ".join(str(error).split())[:160]
        name = getattr(getattr(sampler, "func", sampler), "__name__", sampler)
        raise ValueError(
            f"{name} needs a library that is not installed ({reason}); install it, or choose another sampler"
        ) from None


def _same_rows(ours: HParams, theirs: HParams, num: int) -> np.ndarray:
    """Tell which of the first `num` members have exactly the suggested hparams."""
    same = np.ones(min(num, len(jax.tree.leaves(theirs)[0])), bool)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a)[: len(same)], np.asarray(b)[: len(same)]
        same &= np.all((a == b).reshape(len(same), -1), axis=1)
    return same
