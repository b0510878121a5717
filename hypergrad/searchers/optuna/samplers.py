"""Samplers for users of Optuna, built on the searchers `cross_entropy` and `bayes`.

study = optuna.create_study(sampler=CrossEntropySampler(seed=0))
"""

import functools
import math
import threading
from collections.abc import Callable, Sequence as Many
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hypergrad.core.checks import check_whole
from hypergrad.searchers.base import Searcher, Trials
from hypergrad.searchers.bayes import TrustRegion, bayes
from hypergrad.searchers.cross_entropy import cross_entropy
from hypergrad.searchers.models import targets
from hypergrad.searchers.models.acquisitions import Acquisition, log_expected_improvement
from hypergrad.searchers.models.distribution import distribution
from hypergrad.searchers.models.families import Smoothing
from hypergrad.searchers.sobol import sobol
from hypergrad.space import Choice, Dimension, Integer, Real

CELLS = 16
"""Most values of a parameter that is searched as a whole number; more values become cells of a range."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Axis(NamedTuple):
    """A parameter as a dimension that searchers know: the range [0, 1], a whole number or a choice.

    Parameters that differ only in their bounds are the same dimension, and share compiled programs.

    Attributes:
        name: Name of the parameter.
        dim: Dimension that is searched.
        value: (value of the dimension) -> value of the parameter.
        place: (value of the parameter) -> value of the dimension.
    """

    name: str
    dim: Dimension
    value: Callable[[Any], Any]
    place: Callable[[Any], Any]


def axis(name: str, kind: Any) -> Axis:
    """Return the dimension of a parameter."""
    if isinstance(kind, CategoricalDistribution):
        num = len(kind.choices)
        dim = Choice(tuple(range(num)))
        return Axis(
            name, dim, lambda i: kind.choices[int(i)], lambda x: int(kind.to_internal_repr(x))
        )
    low, high, whole = kind.low, kind.high, isinstance(kind, IntDistribution)
    if not kind.log and kind.step is not None:
        step, num = kind.step, round((high - low) / kind.step) + 1

        def value(i: Any) -> int | float:
            x = min(low + int(i) * step, high)
            return int(x) if whole else float(x)

        def index(x: Any) -> int:
            return round((x - low) / step)

        if num <= CELLS:
            return Axis(name, Integer(0, num - 1), value, index)
        return Axis(
            name,
            Real(0.0, 1.0),
            lambda u: value(min(int(u * num), num - 1)),
            lambda x: (index(x) + 0.5) / num,
        )
    # whole numbers on a logarithmic scale have a share of half a number beyond each end, as in Optuna
    first, last = (low - 0.5, high + 0.5) if whole else (low, high)
    to, back = (math.log, math.exp) if kind.log else (float, float)
    start, span = to(first), to(last) - to(first)

    def real(u: Any) -> int | float:
        x = back(start + float(u) * span)
        return int(min(max(round(x), low), high)) if whole else float(min(max(x, low), high))

    return Axis(name, Real(0.0, 1.0), real, lambda x: (to(x) - start) / span)


def axes_of(space: dict[str, BaseDistribution]) -> list[Axis]:
    """Return the dimensions of a search space without those of one value; equal ones stand together."""
    found = [axis(name, kind) for name, kind in space.items() if not kind.single()]
    return sorted(found, key=lambda one: (repr(one.dim), one.name))


@functools.lru_cache(maxsize=64)
def _programs(make: Callable[[Any], Searcher], dims: tuple[Dimension, ...]) -> Searcher:
    """Return a searcher over those dimensions, each of its functions compiled."""
    searcher = make(list(dims))
    ask = jax.jit(searcher.ask, static_argnums=2)
    return searcher._replace(init=jax.jit(searcher.init), ask=ask, tell=jax.jit(searcher.tell))


class _Model:
    """A searcher and its knowledge of a study: it is told of trials as they end, `size` at a time.

    The first `num_initial` trials are scrambled Sobol points, and the searcher is told of them with the trial
    after them. So a searcher that takes seconds to compile is not compiled for a study of a few trials.
    """

    def __init__(self, sampler: "SearcherSampler", axes: Many[Axis]):
        self.axes, self.size, self.num_initial = axes, sampler._size, sampler._num_initial
        self.dims = tuple(one.dim for one in axes)
        self.searcher = _programs(sampler._make, self.dims)
        self.state = self.searcher.init(jax.random.fold_in(jax.random.key(sampler._seed), 0))
        self.seen: set[int] = set()
        self.waiting: list[FrozenTrial] = []
        self.queue: list[dict[str, Any]] = []
        self.num_asked = 0

    def learn(self, space: dict[str, BaseDistribution], trials: Many[FrozenTrial], sign: float):
        """Tell the searcher of the trials that have ended since, in full generations."""
        for trial in trials:
            fits = all(trial.distributions.get(name) == kind for name, kind in space.items())
            if trial.number not in self.seen and fits:
                self.waiting.append(trial)
                self.seen.add(trial.number)
        while len(self.waiting) >= self.size and len(self.seen) >= self.num_initial:
            now, self.waiting = self.waiting[: self.size], self.waiting[self.size :]
            self.state = self.searcher.tell(self.state, self.trials_of(now, sign))
            self.queue = []

    def trials_of(self, trials: Many[FrozenTrial], sign: float) -> Trials:
        """Return trials of Optuna in the form that a searcher takes."""
        values, steps = [], []
        for trial in trials:
            value, step = trial.value, 2**30
            if trial.state == TrialState.PRUNED:
                last = trial.last_step
                value = None if last is None else trial.intermediate_values[last]
                step = 0 if last is None else min(max(last, 0), step - 1)
            if value is None or trial.state == TrialState.FAIL:
                value = np.nan
            values.append(sign * value)
            steps.append(step)
        hparams = [
            np.array([one.place(t.params[one.name]) for t in trials], _dtype(one.dim))
            for one in self.axes
        ]
        told = jnp.asarray(values, _dtype(Real(0, 1))), jnp.asarray(steps, jnp.int32)
        return Trials(hparams, *told, jnp.arange(len(trials), dtype=jnp.int32), {})

    def next(self, seed: int) -> dict[str, Any]:
        """Return the parameters of the next trial, from a generation that is drawn at once."""
        if not self.queue:
            self.num_asked += 1
            key = jax.random.fold_in(jax.random.key(seed), self.num_asked)
            if len(self.seen) < self.num_initial:
                first, num = _programs(sobol, self.dims), self.num_initial
                hparams = first.ask(key, first.init(key), num)
            else:
                hparams, num = self.searcher.ask(key, self.state, self.size), self.size
            columns = [np.asarray(x) for x in hparams]
            self.queue = [
                {one.name: one.value(x[m]) for one, x in zip(self.axes, columns, strict=True)}
                for m in range(num)
            ]
        return self.queue.pop(0)


def _dtype(dim: Dimension) -> Any:
    return jnp.result_type(float) if isinstance(dim, Real) else np.int32


class SearcherSampler(optuna.samplers.BaseSampler):
    """An Optuna sampler around a searcher of this package.

    The parameters that all trials had so far, with the same distributions, are sampled together; others
    (conditional parameters, ranges that change) are drawn at random. Finished trials are read from the study,
    so that other processes may add to it. Several threads may share a sampler.

    **Limits:** one objective. The searcher does not know of running trials. The same seed gives
    the same trials where they run one after another.

    Args:
        make: (space) -> searcher; one function for all samplers that may share compiled programs.
        size: Number of trials in each ask and tell of the searcher.
        num_initial: Number of scrambled Sobol trials before those of the searcher.
        seed: Seed of every draw; drawn from the system where None.
    """

    def __init__(
        self, make: Callable[[Any], Searcher], *, size: int, num_initial: int, seed: int | None
    ):
        self._make, self._size, self._num_initial = make, size, num_initial
        self._seed = _fresh_seed() if seed is None else seed
        self._random = optuna.samplers.RandomSampler(seed=self._seed)
        self._common = optuna.search_space.IntersectionSearchSpace(include_pruned=True)
        self._lock = threading.Lock()
        self._model: tuple[Any, _Model] | None = None

    def __getstate__(self):
        # a lock and compiled programs stay in their process; the model is learned again from the study
        return vars(self) | {"_lock": None, "_model": None}

    def __setstate__(self, state):
        vars(self).update(state, _lock=threading.Lock())

    def reseed_rng(self) -> None:
        """Draw another seed from the system."""
        self._seed = _fresh_seed()
        self._random.reseed_rng()

    def infer_relative_search_space(self, study, trial) -> dict[str, BaseDistribution]:
        """Return the parameters with more than one value that all finished trials had."""
        common = self._common.calculate(study)
        return {name: kind for name, kind in common.items() if not kind.single()}

    def sample_relative(self, study, trial, search_space) -> dict[str, Any]:
        """Return the searcher's suggestion for the parameters of `search_space`."""
        self._raise_error_if_multi_objective(study)
        axes = axes_of(search_space)
        if not axes:
            return {}
        ended = study.get_trials(deepcopy=False, states=ENDED)
        sign = -1.0 if study.direction.name == "MAXIMIZE" else 1.0
        with self._lock:
            which = (study.study_name, tuple(sorted(search_space.items(), key=lambda x: x[0])))
            if self._model is None or self._model[0] != which:
                self._model = (which, _Model(self, axes))
            model = self._model[1]
            model.learn(search_space, ended, sign)
            return model.next(self._seed)

    def sample_independent(self, study, trial, param_name, param_distribution) -> Any:
        """Draw a parameter at random."""
        self._raise_error_if_multi_objective(study)
        return self._random.sample_independent(study, trial, param_name, param_distribution)


class CrossEntropySampler(SearcherSampler):
    """Cross-entropy search (`searchers.cross_entropy`) for Optuna.

    **Cost:** about a millisecond a generation, once compiled.

    **Limits:** the search learns nothing from less than a generation, and needs some ten of them. Whole numbers
    with more than 16 values, and steps, are cells of a range.

    Args:
        generation: Number of trials after which the distribution is fitted to the best of them.
        rho: Share of a generation that is elite.
        keep: Number of the best trials so far that compete again in every generation.
        correlated: Whether continuous parameters are joined by their correlation.
        smoothing: Smoothing of every update.
        seed: Seed of every draw; drawn from the system where None.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(
        self,
        *,
        generation: int = 32,
        rho: float = 0.2,
        keep: int = 0,
        correlated: bool = False,
        smoothing: Smoothing | None = None,
        seed: int | None = None,
    ):
        generation = check_whole("generation", generation)
        smoothing = Smoothing() if smoothing is None else smoothing
        make = _cross_entropy(rho, keep, correlated, smoothing)
        # invalid settings are refused here, not at the first trial
        searcher = make([Real(0.0, 1.0)])
        jax.eval_shape(
            lambda key: searcher.ask(key, searcher.init(key), generation), jax.random.key(0)
        )
        super().__init__(make, size=generation, num_initial=0, seed=seed)


class BayesSampler(SearcherSampler):
    """A Gaussian process and its acquisition (`searchers.bayes`) for Optuna.

    **Cost:** tens of milliseconds per trial, once compiled: one program for each number of parameters of each
    kind and each power of two of trials.

    **Limits:** those of `searchers.bayes`; trials that run at the same time do not know of one another.

    Args:
        num_initial: Number of scrambled Sobol trials before the process is used.
        capacity: Number of trials that are remembered.
        acquisition: (mean, std, best) -> score, such as those of `models.acquisitions`.
        transform: (values, filled) -> targets that the process is fitted to, such as those of `models.targets`.
        warp: Whether a warping of each parameter is fitted too.
        trust_region: Box around the best trial to search in; everywhere where None.
        seed: Seed of every draw; drawn from the system where None.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(
        self,
        *,
        num_initial: int = 10,
        capacity: int = 256,
        acquisition: Acquisition = log_expected_improvement,
        transform: Callable = targets.power,
        warp: bool = False,
        trust_region: TrustRegion | None = None,
        seed: int | None = None,
    ):
        num_initial = check_whole("num_initial", num_initial)
        make = _bayes(num_initial, capacity, acquisition, transform, warp, trust_region)
        make([Real(0.0, 1.0)])  # invalid settings are refused here, not at the first trial
        super().__init__(make, size=1, num_initial=num_initial, seed=seed)


# The same settings give the same function, so that samplers share compiled programs.


@functools.lru_cache(maxsize=64)
def _cross_entropy(rho, keep, correlated, smoothing):
    family = functools.partial(distribution, correlated=correlated, smoothing=smoothing)
    return functools.partial(cross_entropy, rho=rho, keep=keep, family=family)


@functools.lru_cache(maxsize=64)
def _bayes(num_initial, capacity, acquisition, transform, warp, trust_region):
    settings = {"acquisition": acquisition, "transform": transform, "warp": warp}
    return functools.partial(
        bayes, capacity=capacity, num_initial=num_initial, trust_region=trust_region, **settings
    )


def _fresh_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
