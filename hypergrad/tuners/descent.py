"""Hypergradient descent: walk down the objective in the unconstrained coordinates of the space."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_share, check_whole
from hypergrad.core.memory import at_once, side_by_side
from hypergrad.core.methods import Method, StepCost
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators import ESTIMATORS, Estimate, Estimator, advice, average, plan, reverse
from hypergrad.estimators.costs import BACKWARD
from hypergrad.problem import Task
from hypergrad.searchers import Trials
from hypergrad.tuners.base import Tuner, on_device

MAX_START = 6.9
"""Largest |z| of a start: a thousandth of the range from a bound, where gradients do not vanish yet."""

UNLIMITED = np.iinfo(np.int32).max
"""Patience of a descent that is not stopped: more steps than any study takes."""


LEAF_SIZES = ("leaf_norms", "leaf_errors")
"""Entries of the trials' info where estimates have a standard error: for each leaf, the norm of the sum of the
hypergradients so far, and that of the standard error of this sum."""


class DescentState(NamedTuple):
    """State of R restarts; every array has the leading axis `[R]` but `key` and `since_best`.

    Attributes:
        unconstrained: Point of each restart.
        last_finite: Last point with a finite value and hypergradient.
        opt_state: State of the outer optimizer.
        estimator: State of the estimator.
        summed: Sum of the finite hypergradients, and of the squares of their standard errors.
        best: Hparams with the lowest objective so far.
        best_value: Objective of `best`; infinity before the first finite one.
        num_skipped: Non-finite steps so far, int32.
        since_best: Steps since any restart improved, int32 `[]`.
        key: Key of every step where steps are not resampled.
    """

    unconstrained: PyTree
    last_finite: PyTree
    opt_state: PyTree
    estimator: PyTree
    summed: tuple[HParams, HParams]
    best: HParams
    best_value: Array
    num_skipped: Array
    since_best: Array
    key: Key


def descent(
    estimator: Estimator,
    space: PyTree,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_restarts: int = 1,
    clip: float = 1.0,
    patience: int | None = None,
    resample: bool = True,
    start: HParams | None = None,
) -> Tuner:
    """Descend the hypergradient with an optax optimizer: z ← z − optimizer(∂λ/∂zᵀ hypergrad), λ = constrain(z).

    A step whose value or hypergradient is not finite is counted, changes neither the optimizer nor the
    best, and moves that restart half way back to where it was last finite.

    **Cost:** `num_restarts` hypergradients a step.

    **Limits:** with `resample`, values of different steps differ by the noise of initial weights and
    minibatches, and the best is the best of noisy values.

    Args:
        estimator: Estimator of the hypergradient, such as `reverse(problem, 100)`.
        space: Pytree of real dimensions.
        optimizer: Outer optimizer; Adam with a learning rate of 0.1 where None.
        num_restarts: Number of descents that run side by side, as one program.
        clip: Largest Euclidean norm of a hypergradient in unconstrained coordinates; a longer one is cut.
        patience: Number of steps without a better objective in any restart after which the study ends; the
            study runs to its budget where None.
        resample: Whether every step draws new initial weights and minibatches (a stochastic gradient of the
            expected objective) instead of keeping the first ones (a smooth problem that may be overfitted).
        start: Hparams at which restart 0 starts; the defaults of the space where None. The other restarts
            start at random.

    Returns:
        A tuner. The info of its trials has the norms of the hypergradient and of its direct and response
        parts (in unconstrained coordinates), growth, first non-finite step, what was skipped, and what `advice`
        says of the estimates.

    Raises:
        ValueError: for a dimension that is not real, by its name, and for settings out of range.
    """
    spaces.check_space(space, real=True)
    check_kind("estimator", estimator, Estimator, "reverse(problem, 100)")
    optimizer = optax.adam(0.1) if optimizer is None else optimizer
    check_kind("optimizer", optimizer, optax.GradientTransformation, "optax.adam(0.1)")
    check_whole("num_restarts", num_restarts)
    check_share("clip", clip, "(0, inf]", what="a number", example=1.0)
    patience = UNLIMITED if patience is None else check_whole("patience", patience)
    if start is not None:
        spaces.check_value(space, start)
    outer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
    first = spaces.starting_values(space) if start is None else start
    return _tuner(_Parts(estimator, space, outer, num_restarts, patience, resample, first))


class _Parts(NamedTuple):
    """The arguments of `descent`; `outer` clips and then moves, `first` is where restart 0 starts."""

    estimator: Estimator
    space: PyTree
    outer: optax.GradientTransformation
    num_restarts: int
    patience: int
    resample: bool
    first: HParams


def _tuner(parts: _Parts) -> Tuner:
    return on_device(partial(_init, parts), partial(_step, parts), _advised, lambda found: found[0])


def _advised(both: tuple[Trials, Estimate]) -> Trials:
    """Add what `advice` says of the estimate of each restart, one line a trouble; empty where all is good."""
    trials, found = both[0], jax.device_get(both[1])
    each = [jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(trials.values))]
    said = np.array(["\n".join(advice(one)) for one in each])
    return trials._replace(info=trials.info | {"advice": said})


def _init(parts: _Parts, key: Key) -> DescentState:
    """Place the restarts."""
    start_key, estimator_key, run_key = jax.random.split(key, 3)
    num, limits = parts.num_restarts, jax.tree.map(_largest_start, parts.space)

    def place(key: Key, index: Array) -> PyTree:
        drawn = spaces.sample(parts.space, key)
        chosen = tree.choose(index == 0, parts.first, drawn)
        z = spaces.unconstrain(parts.space, chosen)
        return jax.tree.map(lambda x, limit: jnp.clip(x, -limit, limit), z, limits)

    z = jax.vmap(place)(jax.random.split(start_key, num), jnp.arange(num))
    hparams = jax.vmap(lambda z: spaces.constrain(parts.space, z))(z)
    keys = jax.random.split(estimator_key, num)
    state = DescentState(
        unconstrained=z,
        last_finite=z,
        opt_state=jax.vmap(parts.outer.init)(z),
        estimator=jax.vmap(parts.estimator.init)(keys, hparams),
        summed=(jax.tree.map(jnp.zeros_like, hparams),) * 2,
        best=hparams,
        best_value=jnp.full(num, jnp.inf),
        num_skipped=jnp.zeros(num, jnp.int32),
        since_best=jnp.zeros((), jnp.int32),
        key=run_key,
    )
    return tree.strong(state)


def _move(
    parts: _Parts,
    key: Key,
    z: PyTree,
    last_finite: PyTree,
    opt_state: PyTree,
    memory: PyTree,
    summed: tuple[HParams, HParams],
) -> tuple[tuple[PyTree, ...], HParams, Estimate, dict[str, Array]]:
    """Move one restart: z ← z − optimizer(∂λ/∂zᵀ hypergrad), or half way back where that is not finite.

    Returns:
        The new values of the arguments after the key, the hparams, their estimate, and the info.
    """
    hparams, pull = jax.vjp(lambda z: spaces.constrain(parts.space, z), z)
    memory, estimate = parts.estimator.estimate(key, memory, hparams)
    grads = pull(estimate.hypergrad)[0]
    finite = jnp.isfinite(estimate.value) & jnp.isfinite(tree.norm(grads))
    updates, new_opt_state = parts.outer.update(grads, opt_state, z)
    back = jax.tree.map(lambda a, b: (a + b) / 2, z, last_finite)
    moved = tree.choose(finite, optax.apply_updates(z, updates), back)
    info = {
        "hypergrad_norm": tree.norm(grads),
        "direct_norm": tree.norm(pull(estimate.info.direct)[0]),
        "response_norm": tree.norm(pull(estimate.info.response)[0]),
        "adjoint_growth": estimate.info.growth,
        "horizon": estimate.info.horizon,
        "first_nonfinite": estimate.info.first_nonfinite,
        "skipped": ~finite,
    }
    if hasattr(estimate.info, "std_error"):
        squares = jax.tree.map(jnp.square, estimate.info.std_error)
        summed = tree.choose(finite, tree.add(summed, (estimate.hypergrad, squares)), summed)
        sizes = (summed[0], jax.tree.map(jnp.sqrt, summed[1]))
        info |= zip(LEAF_SIZES, map(_leaf_norms, sizes), strict=True)
    last_finite = tree.choose(finite, z, last_finite)
    opt_state = tree.choose(finite, new_opt_state, opt_state)
    return (moved, last_finite, opt_state, memory, summed), hparams, estimate, info


def _leaf_norms(hypergrad: HParams) -> Array:
    """Return the norm of each leaf, `[num_leaves]`."""
    return jnp.stack([tree.norm(leaf) for leaf in jax.tree.leaves(hypergrad)])


def _step(
    parts: _Parts, key: Key, state: DescentState
) -> tuple[DescentState, tuple[Trials, Estimate]]:
    """Move every restart, and keep the best of each; return the estimates `[R]`, too."""
    num = parts.num_restarts
    keys = jax.random.split(key if parts.resample else state.key, num)
    inputs = (
        state.unconstrained,
        state.last_finite,
        state.opt_state,
        state.estimator,
        state.summed,
    )
    move = partial(_move, parts)
    if num == 1:  # a batch of one would lose the faster unbatched kernels
        outs = move(keys[0], *jax.tree.map(lambda x: x[0], inputs))
        after, hparams, found, info = jax.tree.map(lambda x: x[None], outs)
    else:
        with side_by_side(num):
            after, hparams, found, info = jax.vmap(move)(keys, *inputs)
    values = found.value
    better = ~info["skipped"] & (values < state.best_value)
    since_best = jnp.where(jnp.any(better), 0, state.since_best + 1)
    new = DescentState(
        *after,
        best=_where(better, hparams, state.best),
        best_value=jnp.where(better, values, state.best_value),
        num_skipped=state.num_skipped + info["skipped"],
        since_best=since_best,
        key=state.key,
    )
    info["key"] = jax.random.key_data(keys)  # with it, an estimate can be made again alone
    info["done"] = since_best >= parts.patience
    index = jnp.arange(num, dtype=jnp.int32)
    return tree.strong(new), (Trials(hparams, values, info["horizon"], index, info), found)


def _largest_start(dim: spaces.Dimension) -> float:
    """Return the largest |z| of a start; a decreasing sequence multiplies one share a free step."""
    if isinstance(dim, spaces.Sequence) and dim.decreasing:
        return MAX_START + math.log(dim.coordinates_shape[0])
    return MAX_START


def _where(mask: Array, new: PyTree, old: PyTree) -> Any:
    def pick(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)


def _estimator_of(task: Task, settings: Any) -> tuple[Estimator, float]:
    """Build the estimator of a descent, for one seed; return it, and how many trainings an estimate counts.

    Raises:
        ValueError: for a `memory` with another estimator than "reverse", the only one that uses it.
    """
    num = at_once(settings.num_seeds) * settings.num_restarts
    if settings.memory is None:
        method, args = ESTIMATORS[settings.estimator], (task.problem, task.horizon, task.space)
        with side_by_side(num):
            return method.make(*args), method.cost(*args)
    if settings.estimator != "reverse":
        raise ValueError(
            f"memory is given with estimator {settings.estimator!r}, expected 'reverse'; leave one out"
        )
    start = spaces.default(task.space)
    chosen = plan(task.problem, start, task.horizon, settings.memory, num_seeds=num)
    estimator = reverse(task.problem, task.horizon, backward=chosen.backward)
    return estimator, 1 + BACKWARD + len(chosen.checkpoint)


def _make(task: Task, settings: Any, start: HParams | None) -> tuple[Tuner, StepCost]:
    """Build the tuner, whose step costs as many hypergradients as there are seeds and restarts."""
    estimator, each = _estimator_of(task, settings)
    if settings.num_seeds > 1:
        estimator = average(estimator, settings.num_seeds)
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.budget)
    # hypergradients of noisy trainings ask for a shorter memory of their squares than .999
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))
    num, first = settings.num_restarts, start
    if first is None:
        first = spaces.starting_values(task.space)
    parts = _Parts(estimator, task.space, outer, num, UNLIMITED, True, first)
    estimates = settings.num_seeds * num
    many = "hypergradients" if estimates > 1 else "hypergradient"
    counted = f"{estimates} {many} by {settings.estimator!r}, {each:.4g} trainings each"
    return _tuner(parts), StepCost(float(estimates * each), counted)


DESCENT = Method(
    "descent",
    "hypergradient descent on the unconstrained space, with any estimator",
    ("estimator", "learning_rate", "num_restarts", "memory", "prior", "warm_start"),
    _make,
)
