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
from hypergrad.core.hoist import Compiled
from hypergrad.core.memory import at_once, side_by_side
from hypergrad.core.methods import Method, StepCost
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators import ESTIMATORS, Estimate, Estimator, advice, average, plan, reverse
from hypergrad.estimators.costs import BACKWARD
from hypergrad.problem import Task
from hypergrad.searchers import Trials
from hypergrad.tuners.base import Tuner, on_device
from hypergrad.tuners.safeguards import (
    Typical,
    clipped_mean,
    has_jumped,
    noted,
    nothing_typical,
    smoothly,
)

MAX_START = 6.9
"""Largest |z| of a start: a thousandth of the range from a bound, where gradients do not vanish yet."""

UNLIMITED = np.iinfo(np.int32).max
"""Patience of a descent that is not stopped: more steps than any study takes."""


LONGEST = 2.0
"""Longest hypergradient of a seed, as a multiple of what has been typical."""

SMOOTH = 0.1
"""Share of a schedule over which its moves are averaged. Chosen on four tables and four splits of the digits:
schedules that are as good as rougher ones or better, and can be believed."""

LEAF_SIZES = ("leaf_norms", "leaf_errors")
"""Entries of the trials' info where estimates have a standard error: for each leaf, the norm of the sum of the
hypergradients so far, and that of the standard error of this sum."""


class DescentState(NamedTuple):
    """State of R restarts; every array has the leading axis `[R]` but `key` and `since_best`.

    Attributes:
        unconstrained: Point of each restart.
        steady: Mean of the points that were kept, each with half the weight of the next.
        opt_state: State of the outer optimizer.
        estimator: State of the estimator.
        summed: Sum of the finite hypergradients, and of the squares of their standard errors.
        best: Hparams with the lowest objective so far.
        best_value: Objective of `best`; infinity before the first finite one.
        num_skipped: Non-finite steps so far, int32.
        typical: What the last steps were like.
        since_best: Steps since any restart improved, int32 `[]`.
        key: Key of every step where steps are not resampled.
    """

    unconstrained: PyTree
    steady: PyTree
    opt_state: PyTree
    estimator: PyTree
    summed: tuple[HParams, HParams]
    best: HParams
    best_value: Array
    num_skipped: Array
    typical: Typical
    since_best: Array
    key: Key


def descent(
    estimator: Estimator,
    space: PyTree,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_restarts: int = 1,
    clip: float = LONGEST,
    smooth: float = SMOOTH,
    patience: int | None = None,
    resample: bool = True,
    start: HParams | None = None,
) -> Tuner:
    """Descend the hypergradient with an optax optimizer: z ← z − optimizer(∂λ/∂zᵀ hypergrad), λ = constrain(z).

    The hypergradient of each seed is clipped by what has been typical, and schedules move smoothly
    (`safeguards`). A step whose value or hypergradient is not finite, or whose value has jumped, is counted and
    taken back: it changes neither the optimizer nor the best, that restart returns to the mean of its last
    points, and goes on at half its pace, which recovers by a tenth a step.

    **Cost:** `num_restarts` hypergradients a step.

    **Limits:** with `resample`, values of different steps differ by the noise of initial weights and
    minibatches, and the best is the best of noisy values.

    Args:
        estimator: Estimator of the hypergradient, such as `reverse(problem, 100)`.
        space: Pytree of real dimensions.
        optimizer: Outer optimizer; Adam with a learning rate of 0.1 where None.
        num_restarts: Number of descents that run side by side, as one program.
        clip: Largest Euclidean norm of a seed's hypergradient in unconstrained coordinates, as a multiple of
            the median of the last ten steps; a longer one is cut. Infinity cuts none.
        smooth: Share of a schedule's length over which its moves are averaged; 0 lets every step of it move
            by itself.
        patience: Number of steps without a better objective in any restart after which the study ends; the
            study runs to its budget where None.
        resample: Whether every step draws new initial weights and minibatches (a stochastic gradient of the
            expected objective) instead of keeping the first ones (a smooth problem that may be overfitted).
        start: Hparams at which restart 0 starts; the defaults of the space where None. The other restarts
            start at random.

    Returns:
        A tuner. The info of its trials has the norms of the hypergradient and of its direct and response
        parts (in unconstrained coordinates), growth, first non-finite step, what was skipped because it was
        not finite, what was taken back because it jumped, the pace, and what `advice` says of the estimates.

    Raises:
        ValueError: for a dimension that is not real, by its name, and for settings out of range.
    """
    spaces.check_space(space, real=True)
    check_kind("estimator", estimator, Estimator, "reverse(problem, 100)")
    optimizer = optax.adam(0.1) if optimizer is None else optimizer
    check_kind("optimizer", optimizer, optax.GradientTransformation, "optax.adam(0.1)")
    check_whole("num_restarts", num_restarts)
    check_share("clip", clip, "(0, inf]", what="a number", example=1.0)
    check_share("smooth", smooth, "[0, 1]", example=0.1)
    patience = UNLIMITED if patience is None else check_whole("patience", patience)
    if start is not None:
        spaces.check_value(space, start)
    first = spaces.starting_values(space) if start is None else start
    outer = smoothly(optimizer, space, smooth)
    return _tuner(_Parts(estimator, space, outer, num_restarts, patience, resample, clip, first))


class _Parts(NamedTuple):
    """The arguments of `descent`; `outer` moves smoothly, `first` is where restart 0 starts."""

    estimator: Estimator
    space: PyTree
    outer: optax.GradientTransformation
    num_restarts: int
    patience: int
    resample: bool
    clip: float
    first: HParams


def _tuner(parts: _Parts) -> Tuner:
    tuner = on_device(
        partial(_init, parts), partial(_step, parts), _advised, lambda found: found[0]
    )
    return tuner._replace(init_at=Compiled(partial(_init, parts)))


def _advised(both: tuple[Trials, Estimate]) -> Trials:
    """Add what `advice` says of the estimate of each restart, one line a trouble; empty where all is good."""
    trials, found = both[0], jax.device_get(both[1])
    each = [jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(trials.values))]
    said = np.array(["\n".join(advice(one)) for one in each])
    return trials._replace(info=trials.info | {"advice": said})


def _init(parts: _Parts, key: Key, starts: HParams | None = None) -> DescentState:
    """Place the restarts: at `starts` `[R, ...]`, or the first at `parts.first` and the others at random."""
    start_key, estimator_key, run_key = jax.random.split(key, 3)
    num, limits = parts.num_restarts, jax.tree.map(_largest_start, parts.space)

    def drawn(key: Key, index: Array) -> HParams:
        return tree.choose(index == 0, parts.first, spaces.sample(parts.space, key))

    def place(hparams: HParams) -> PyTree:
        z = spaces.unconstrain(parts.space, hparams)
        return jax.tree.map(lambda x, limit: jnp.clip(x, -limit, limit), z, limits)

    if starts is None:
        starts = jax.vmap(drawn)(jax.random.split(start_key, num), jnp.arange(num))
    z = jax.vmap(place)(starts)
    hparams = jax.vmap(lambda z: spaces.constrain(parts.space, z))(z)
    keys = jax.random.split(estimator_key, num)
    state = DescentState(
        unconstrained=z,
        steady=z,
        opt_state=jax.vmap(parts.outer.init)(z),
        estimator=jax.vmap(parts.estimator.init)(keys, hparams),
        summed=(jax.tree.map(jnp.zeros_like, hparams),) * 2,
        best=hparams,
        best_value=jnp.full(num, jnp.inf),
        num_skipped=jnp.zeros(num, jnp.int32),
        typical=jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), nothing_typical()),
        since_best=jnp.zeros((), jnp.int32),
        key=run_key,
    )
    return tree.strong(state)


class _Moving(NamedTuple):
    """What a step changes of one restart; fields as in `DescentState`."""

    unconstrained: PyTree
    steady: PyTree
    opt_state: PyTree
    estimator: PyTree
    summed: tuple[HParams, HParams]
    typical: Typical


def _move(
    parts: _Parts, key: Key, now: _Moving
) -> tuple[_Moving, HParams, Estimate, dict[str, Array]]:
    """Move one restart: z ← z − pace · optimizer(∂λ/∂zᵀ hypergrad), or back where the step is not to be kept.

    Returns:
        What has changed, the hparams, their estimate, and the info.
    """
    z = now.unconstrained
    hparams, pull = jax.vjp(lambda z: spaces.constrain(parts.space, z), z)
    memory, estimate = parts.estimator.estimate(key, now.estimator, hparams)
    each = jax.vmap(lambda g: pull(g)[0])(_of_each_seed(estimate))
    whole = pull(estimate.hypergrad)[0]
    grads, norm = clipped_mean(each, now.typical, parts.clip)
    finite = jnp.isfinite(estimate.value) & jnp.isfinite(tree.norm(whole))
    jumped = finite & has_jumped(estimate.value, now.typical)
    kept = finite & ~jumped
    typical = noted(now.typical, estimate.value, norm, ~kept)
    updates, opt_state = parts.outer.update(grads, now.opt_state, z)
    slowed = jax.tree.map(lambda x: typical.pace.astype(x.dtype) * x, updates)
    moved = optax.apply_updates(z, slowed)
    steady = tree.choose(kept, jax.tree.map(lambda a, b: (a + b) / 2, now.steady, z), now.steady)
    info = {
        "hypergrad_norm": tree.norm(whole),
        "direct_norm": tree.norm(pull(estimate.info.direct)[0]),
        "response_norm": tree.norm(pull(estimate.info.response)[0]),
        "adjoint_growth": estimate.info.growth,
        "horizon": estimate.info.horizon,
        "first_nonfinite": estimate.info.first_nonfinite,
        "skipped": ~finite,
        "taken_back": jumped,
        "pace": typical.pace,
    }
    summed = now.summed
    if hasattr(estimate.info, "std_error"):
        squares = jax.tree.map(jnp.square, estimate.info.std_error)
        summed = tree.choose(finite, tree.add(summed, (estimate.hypergrad, squares)), summed)
        sizes = (summed[0], jax.tree.map(jnp.sqrt, summed[1]))
        info |= zip(LEAF_SIZES, map(_leaf_norms, sizes), strict=True)
    after = _Moving(
        unconstrained=tree.choose(kept, moved, steady),
        steady=steady,
        opt_state=tree.choose(kept, opt_state, now.opt_state),
        estimator=memory,
        summed=summed,
        typical=typical,
    )
    return after, hparams, estimate, info


def _of_each_seed(estimate: Estimate) -> HParams:
    """Return the hypergradients of the seeds of an average, or the one there is; leading axis `[S]`."""
    info = estimate.info
    if hasattr(info, "each"):
        return tree.add(info.each.direct, info.each.response)
    return jax.tree.map(lambda x: x[None], estimate.hypergrad)


def _leaf_norms(hypergrad: HParams) -> Array:
    """Return the norm of each leaf, `[num_leaves]`."""
    return jnp.stack([tree.norm(leaf) for leaf in jax.tree.leaves(hypergrad)])


def _step(
    parts: _Parts, key: Key, state: DescentState
) -> tuple[DescentState, tuple[Trials, Estimate]]:
    """Move every restart, and keep the best of each; return the estimates `[R]`, too."""
    num = parts.num_restarts
    keys = jax.random.split(key if parts.resample else state.key, num)
    now = _Moving(**{name: getattr(state, name) for name in _Moving._fields})
    move = partial(_move, parts)
    if num == 1:  # a batch of one would lose the faster unbatched kernels
        outs = move(keys[0], jax.tree.map(lambda x: x[0], now))
        after, hparams, found, info = jax.tree.map(lambda x: x[None], outs)
    else:
        with side_by_side(num):
            after, hparams, found, info = jax.vmap(move)(keys, now)
    values = found.value
    better = ~info["skipped"] & ~info["taken_back"] & (values < state.best_value)
    since_best = jnp.where(jnp.any(better), 0, state.since_best + 1)
    new = DescentState(
        **after._asdict(),
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
    outer = smoothly(optax.adam(rate, b2=0.99), task.space, SMOOTH)
    num, first = settings.num_restarts, start
    if first is None:
        first = spaces.starting_values(task.space)
    parts = _Parts(estimator, task.space, outer, num, UNLIMITED, True, LONGEST, first)
    estimates = settings.num_seeds * num
    many = "hypergradients" if estimates > 1 else "hypergradient"
    counted = f"{estimates} {many} by {settings.estimator!r}, {each:.4g} trainings each"
    return _tuner(parts), StepCost(float(estimates * each), counted)


DESCENT = Method(
    "descent",
    "hypergradient descent on the unconstrained space, with any estimator",
    ("estimator", "scout", "learning_rate", "num_restarts", "memory", "prior", "warm_start"),
    _make,
)
