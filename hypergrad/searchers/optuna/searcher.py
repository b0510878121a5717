"""Any sampler of Optuna as a searcher."""

from collections.abc import Callable
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
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.optuna.live import Live, Parts, installed
from hypergrad.searchers.optuna.parameters import optuna_module, parameters
from hypergrad.searchers.wrappers import held_constant
from hypergrad.space import from_units, to_units


class OptunaState(NamedTuple):
    """State of `optuna_searcher`: the asks and tells of the sampler, from which it can be made again.

    Attributes:
        seed: Seed of the sampler, uint32.
        hparams: Hyperparameters of the trials told, `[C, ...]`; rows from `count` on are empty.
        values, steps: Results of those trials, `[C]`.
        batch: Index of the `tell` of each trial, int32 `[C]`.
        asked: Number of trials that the sampler suggested before that `tell`, int32 `[C]`.
        count: Trials told so far, int32.
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

    A trial that failed is told as FAIL. A trial that a scheduler stopped early is told as PRUNED, with its
    value as the intermediate value at its last step. Trials that the sampler did not suggest (warm starts,
    members that a scheduler changed) are added to the study unchanged.

    **Cost:** some milliseconds per trial, by Optuna; the members train side by side between `ask` and `tell`.

    **Limits:** the searcher works on the host (`host`). The study is in memory, and its sampler cannot be
    written to disk: a resumed study makes it again from its seed, by asking and telling as before. That is
    exact where the sampler draws from its seed alone, as Optuna's random, TPE, CMA-ES, QMC and evolutionary
    samplers do. Where suggestions differ from their records (unseeded parts, another version of Optuna or
    torch), the recorded trials are added, and later trials may differ: `resume` compares them with their
    records and reports it.

    Args:
        space: Pytree of traceable dimensions.
        sampler: (seed=...) -> an `optuna.samplers.BaseSampler`, e.g. `optuna.samplers.TPESampler` or
            `functools.partial(optuna.samplers.CmaEsSampler, popsize=16)`.
        capacity: Largest number of trials of a study.

    Raises:
        ValueError: without Optuna or what the sampler needs, for an invalid space or sampler, and when told of
            more trials than there is room for.
    """
    spaces.check_space(space, traceable=True)
    capacity = check_whole("capacity", capacity)
    if not callable(sampler):
        raise ValueError(
            f"sampler is {type(sampler).__name__}, expected a function of the seed, so that it can be made "
            "again; pass e.g. optuna.samplers.TPESampler, without parentheses"
        )
    draw = jax.jit(lambda units: from_units(space, units))
    place = jax.jit(lambda hparams: to_units(space, hparams))
    parts = Parts(parameters(space), sampler, draw, place)
    live: Live | None = None

    def init(key: Key) -> OptunaState:
        # numpy's generators take 32 bits, others 31
        seed = jax.random.bits(key, (), jnp.uint32) >> 1
        units = jax.ShapeDtypeStruct((1, len(parts.found)), jnp.result_type(float))
        like = jax.eval_shape(draw, units)
        hparams = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), like)
        whole = jnp.zeros(capacity, jnp.int32)
        values = jnp.full(capacity, jnp.nan)
        return OptunaState(seed, hparams, values, whole, whole, whole, jnp.zeros((), jnp.int32))

    def at(state: OptunaState, num: int | None) -> Live:
        """Return the sampler as it stands in this state, not asked yet or asked for `num` trials."""
        nonlocal live
        if live is None or live.mark != _mark(state) or (live.trials and num != len(live.trials)):
            live = _replayed(parts, state)
        return live

    def ask(key: Key, state: OptunaState, num: int) -> HParams:
        _check_host(state)
        now = at(state, num)
        if not now.trials:
            now.ask(num)
        return now.hparams

    def tell(state: OptunaState, trials: Trials) -> OptunaState:
        _check_host((state, trials))
        total = int(state.count) + len(trials.values)
        if total > capacity:
            raise ValueError(f"capacity is {capacity}, expected room for {total} trials; raise it")
        now = at(state, len(live.trials) if live is not None else None)
        asked = len(now.trials)
        told = jax.tree.map(np.asarray, (trials.hparams, trials.values, trials.steps))
        now.tell(*told)
        state = _noted(state, told, asked)
        now.mark = _mark(state)
        return state

    return guarded(space, Searcher(init, ask, tell, host=True))


def _check_host(state: PyTree) -> None:
    if traced(state):
        raise ValueError(
            "state is traced, expected arrays, because a sampler of Optuna works on the host; "
            "call ask and tell outside jit, vmap and scan"
        )


def _mark(state: OptunaState) -> bytes:
    """Return the bits of a state, by which it is known again."""
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))


def _replayed(parts: Parts, state: OptunaState) -> Live:
    """Make the sampler again, by asking and telling it as the state says that it was."""
    live = Live(parts, int(state.seed))
    batches = np.asarray(state.batch)[: int(state.count)]
    for batch in range(batches[-1] + 1 if len(batches) else 0):
        rows = np.flatnonzero(batches == batch)
        if asked := int(state.asked[rows[0]]):
            live.ask(asked)
        hparams = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], state.hparams)
        live.tell(hparams, np.asarray(state.values)[rows], np.asarray(state.steps)[rows])
    live.mark = _mark(state)
    return live


def _noted(
    state: OptunaState, told: tuple[HParams, np.ndarray, np.ndarray], asked: int
) -> OptunaState:
    """Write what was told, hparams, values and steps, into the next rows of a state."""
    count, num = int(state.count), len(told[1])
    batch = int(state.batch[count - 1]) + 1 if count else 0

    def write(old: Array, rows: np.ndarray) -> np.ndarray:
        new = np.array(old)
        new[count : count + num] = rows
        return new

    table = (state.hparams, state.values, state.steps, state.batch, state.asked)
    table = jax.tree.map(write, table, (*told, np.full(num, batch), np.full(num, asked)))
    return OptunaState(state.seed, *table, count=jnp.asarray(count + num, jnp.int32))


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
    with installed("GPSampler"):
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
