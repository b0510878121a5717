"""Any sampler of Optuna as a searcher: its study lives in memory, and is made again from what it was told."""

import contextlib
from collections.abc import Callable, Iterator, Sequence as Many
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_whole, library
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, PyTree
from hypergrad.searchers.base import Searcher, check_trials
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.optuna.parameters import (
    Parameter,
    frozen_trial,
    optuna_module,
    parameters,
    quiet,
    trial_states,
)
from hypergrad.searchers.wrappers import held_constant
from hypergrad.space import from_units, to_units


class OptunaState(NamedTuple):
    """State of `optuna_searcher`: what the sampler was asked and told, from which it is made again.

    Attributes:
        seed: of the sampler, uint32.
        hparams: of the trials told, `[C, ...]`; rows from `count` on are empty.
        values, steps: what came of them, `[C]`.
        batch: which `tell` each came with, counted from 0, int32 `[C]`.
        asked: how many trials the sampler was asked for before that `tell`, int32 `[C]`.
        count: trials told, int32.
    """

    seed: Array
    hparams: HParams
    values: Array
    steps: Array
    batch: Array
    asked: Array
    count: Array


def optuna_searcher(
    space: PyTree, sampler: Callable[..., Any], *, capacity: int = 1024
) -> Searcher:
    """Search with any sampler of Optuna: `study.ask` for every member, and `study.tell` for every value.

    A trial that failed is told as FAIL, one that a scheduler stopped early as PRUNED, with its value as the
    intermediate one at its last step. Trials that were not asked for (warm starts, members that a scheduler
    changed) are added to the study as they are.

    **Cost:** Optuna's, some milliseconds a trial; the members train side by side between `ask` and `tell`.

    **Limits:** works on the host (`host`). The study lives in memory. Its sampler cannot be written to disk;
    a resumed study makes it again from its seed, by asking and telling as before. That is exact where the
    sampler draws from its seed alone, as Optuna's random, TPE, CMA-ES, QMC and evolutionary samplers do; where
    it does not come out as recorded (unseeded parts, another version of Optuna or torch), the trials are added
    as they were, and later ones may differ: `resume` compares them with their records and says so.

    Args:
        space: a pytree of traceable dimensions.
        sampler: (seed=...) -> an `optuna.samplers.BaseSampler`, e.g. `optuna.samplers.TPESampler` or
            `functools.partial(optuna.samplers.CmaEsSampler, popsize=16)`.
        capacity: most trials of a study.

    Raises:
        ValueError: without Optuna or what the sampler needs, for a space or a sampler that cannot be, and when
            told more trials than there is room for.
    """
    spaces.check_space(space, traceable=True)
    found = parameters(space)
    check_whole("capacity", capacity)
    if not callable(sampler):
        raise ValueError(
            f"sampler is {type(sampler).__name__}, expected a function of the seed, so that it can be made "
            "again; pass e.g. optuna.samplers.TPESampler, without parentheses"
        )
    draw = jax.jit(lambda units: from_units(space, units))
    place = jax.jit(lambda hparams: to_units(space, hparams))
    live: _Live | None = None

    def init(key):
        # numpy's generators take 32 bits, others 31
        seed = jax.random.bits(key, (), jnp.uint32) >> 1
        like = jax.eval_shape(draw, jax.ShapeDtypeStruct((1, len(found)), jnp.result_type(float)))
        hparams = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), like)
        whole = jnp.zeros(capacity, jnp.int32)
        values = jnp.full(capacity, jnp.nan)
        return OptunaState(seed, hparams, values, whole, whole, whole, jnp.zeros((), jnp.int32))

    def again(state):
        made = _Live(found, sampler, int(state.seed), draw, place)
        batches = np.asarray(state.batch)[: int(state.count)]
        for batch in range(batches[-1] + 1 if len(batches) else 0):
            rows = np.flatnonzero(batches == batch)
            if asked := int(state.asked[rows[0]]):
                made.ask(asked)
            hparams = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], state.hparams)
            made.tell(hparams, np.asarray(state.values)[rows], np.asarray(state.steps)[rows])
        made.mark = _mark(state)
        return made

    def at(state, num=None):
        """Return the sampler as it stands in this state, not asked yet or asked for `num` trials."""
        nonlocal live
        if live is None or live.mark != _mark(state) or (live.trials and num != len(live.trials)):
            live = again(state)
        return live

    def ask(key, state, num):
        check_whole("num", num)
        _check_host(state)
        now = at(state, num)
        if not now.trials:
            now.ask(num)
        return now.hparams

    def tell(state, outcome):
        _check_host((state, outcome))
        check_trials(space, outcome)
        count, num = int(state.count), len(outcome.values)
        if count + num > capacity:
            raise ValueError(
                f"capacity is {capacity}, expected room for {count + num} trials; raise it"
            )
        now = at(state, len(live.trials) if live is not None else None)
        told = jax.tree.map(np.asarray, (outcome.hparams, outcome.values, outcome.steps))
        asked = len(now.trials)
        now.tell(*told)
        batch = int(state.batch[count - 1]) + 1 if count else 0
        new = (*told, np.full(num, batch), np.full(num, asked))

        def write(old, rows):
            old = np.array(old)
            old[count : count + num] = rows
            return old

        table = (state.hparams, state.values, state.steps, state.batch, state.asked)
        table = jax.tree.map(write, table, new)
        state = OptunaState(state.seed, *table, count=jnp.asarray(count + num, jnp.int32))
        now.mark = _mark(state)
        return state

    return Searcher(init, ask, tell, host=True)


def _by_name(name: str, sentence: str, sampler: Callable[[], Any], generation: int) -> Method:
    """Describe a sampler of Optuna; it is imported when the method is made."""

    def make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
        search = partial(optuna_searcher, sampler=sampler(), capacity=num_trials)
        return held_constant(space, search)

    return Method(name, sentence, ("warm_start",), make, generation)


def _tpe() -> Callable[..., Any]:
    return partial(optuna_module("optuna.samplers").TPESampler, constant_liar=True)


def _cma() -> Callable[..., Any]:
    library("cmaes", "optuna", "integration")
    # options are drawn at random by design: CMA-ES is for numbers
    samplers = optuna_module("optuna.samplers")
    return partial(samplers.CmaEsSampler, warn_independent_sampling=False)


def _gp() -> Callable[..., Any]:
    samplers = optuna_module("optuna.samplers")
    with _said("GPSampler"):
        import_module("torch")
    return samplers.GPSampler


OPTUNA_TPE = _by_name(
    "optuna_tpe", "Optuna's TPE, told of running trials; the extra `optuna`", _tpe, 4
)
OPTUNA_CMA = _by_name(
    "optuna_cma", "Optuna's CMA-ES; options at random; the extra `optuna`", _cma, 16
)
OPTUNA_GP = _by_name(
    "optuna_gp", "Optuna's Gaussian process; the extra `optuna`, and torch", _gp, 4
)


def _check_host(state: PyTree) -> None:
    if traced(state):
        raise ValueError(
            "state is traced, expected arrays, because a sampler of Optuna works on the host; "
            "call ask and tell outside jit, vmap and scan"
        )


def _mark(state: OptunaState) -> bytes:
    """Return the bits of a state, by which it is known again."""
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))


class _Live:
    """A sampler with its study in memory, after what it has been asked and told.

    Attributes:
        mark: of the state it stands for.
        trials: asked for and not told yet.
        hparams: of those, `[num]`.
    """

    def __init__(self, found: Many[Parameter], sampler, seed: int, draw, place):
        self.optuna = optuna_module()
        self.found, self.draw, self.place = found, draw, place
        self.distributions = {one.name: one.distribution for one in found}
        with quiet(self.optuna), _said(sampler):
            self.study = self.optuna.create_study(sampler=_made(sampler, seed))
        self.sampler = sampler
        self.mark = b""
        self.trials, self.hparams = [], None

    def ask(self, num: int) -> None:
        with _said(self.sampler):
            self.trials = [self.study.ask(self.distributions) for _ in range(num)]
        units = [[one.unit(t.params[one.name]) for one in self.found] for t in self.trials]
        self.hparams = self.draw(np.array(units, jnp.result_type(float)))

    def tell(self, hparams: HParams, values: np.ndarray, steps: np.ndarray) -> None:
        """Tell what came of the trials asked for, and add those that were not."""
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
            units = np.asarray(self.place(hparams), float) if units is None else units
            self.study.add_trial(frozen_trial(self.found, units[member], state, value, step))
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
def _said(sampler: Any) -> Iterator[None]:
    """Say in one line what a sampler needs and is not installed."""
    try:
        yield
    except ImportError as error:
        reason = " ".join(str(error).split())[:160]
        name = getattr(getattr(sampler, "func", sampler), "__name__", sampler)
        raise ValueError(
            f"{name} needs what is not installed ({reason}); install it, or choose another sampler"
        ) from None


def _same_rows(ours: HParams, theirs: HParams, num: int) -> np.ndarray:
    """Tell which of the first `num` members have the very hparams that were asked for."""
    same = np.ones(min(num, len(jax.tree.leaves(theirs)[0])), bool)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a)[: len(same)], np.asarray(b)[: len(same)]
        same &= np.all((a == b).reshape(len(same), -1), axis=1)
    return same
