"""Stochastic bilevel optimization: weights, linear system and hparams move together, in one loop."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.cautions import warn_unread
from hypergrad.core.checks import check_kind, check_whole
from hypergrad.core.methods import Method, StepCost
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import first_nonfinite
from hypergrad.estimators.costs import first_shapes, in_minibatches, valid_minibatches
from hypergrad.estimators.implicit.response import default_batch
from hypergrad.estimators.ways import check_implicit, warn_unused
from hypergrad.problem import Problem, Task, check_problem, with_hparams
from hypergrad.searchers import Trials
from hypergrad.train import init_state, trained
from hypergrad.tuners.base import Tuner, on_device
from hypergrad.tuners.bilevel_methods import (
    BILEVEL_METHODS,
    INNER_GRADIENTS,
    BilevelMethod,
    Loop,
    Point,
    inner_terms,
    outer_terms,
    soba,
)
from hypergrad.validation import check_step


class BilevelState(NamedTuple):
    """State of R restarts; every array has the leading axis `[R]`.

    Attributes:
        point: Where the three variables of each restart are.
        memory: Memory of the method.
        anchor: Unconstrained hparams before the last step that was finite.
        num_skipped: Steps that were not finite so far, int32.
    """

    point: Point
    memory: PyTree
    anchor: PyTree
    num_skipped: Array


def bilevel(
    problem: Problem,
    space: PyTree,
    num_iterations: int,
    *,
    method: BilevelMethod | None = None,
    optimizer: optax.GradientTransformation | None = None,
    linear: Callable[[HParams], optax.GradientTransformation] | None = None,
    num_restarts: int = 1,
    start: HParams | None = None,
) -> Tuner:
    """Move weights, linear system and hparams at once, `num_iterations` times per step of the tuner.

    w ← w − optimizer(∇_w L),   v ← v − linear(H v − ∇_w f),   z ← z − optimizer(∂f/∂z − (∂²L/∂w∂z)ᵀ v)

    with λ = constrain(z). No training is run to its end and no system is solved: both follow the hparams as
    these move. So the hparams must move slowly enough for the weights and v to follow.

    **Cost:** an iteration: about four gradients on one minibatch (see the methods). Memory of the weights
    and v, whatever the number of iterations.

    **Limits:** those of the implicit hypergradient: a leaf that acts through the optimizer or the initial
    weights alone is refused by name. Where the loss reads the leaf too, that part is left out, with a
    `StructuralZeroWarning`. The weights must be able to come to rest. The value of a step is the
    objective of the weights as they are, which lag behind w*(λ); train the best again to judge them.
    A step that does not end in finite numbers is counted and noted with its first bad iteration. Weights
    and v then start anew, and the hparams go half way back to where they were before the last finite step, and
    continue from there at half their speed.

    Args:
        problem: Training loop, whose optimizer moves the weights.
        space: Pytree of real dimensions.
        num_iterations: Number of updates of the hparams in a step of the tuner, one compiled loop.
        method: Bilevel method, `soba()`, `saba(finite_sum(problem, 64))` or `amigo()`; `soba()` where None.
        optimizer: Optimizer of z; Adam with a rate of 0.01 where None. It may carry a schedule over iterations.
        linear: (hparams) -> optimizer of v; the problem's own where None, because w and v share their
            curvature and so their rates. Its updates should be proportional to the gradient. Adam divides
            each by its size, so that on minibatches v keeps moving by its rate and the residual stays large;
            as the default it brings a warning. Pass `lambda h: optax.sgd(rate)` then, with a rate below
            2/λ_max(H).
        num_restarts: Number of restarts that move side by side, as one program.
        start: Hparams at which restart 0 starts; the defaults of the space where None. The other restarts
            start at random.

    Returns:
        A tuner. The info of its trials has, at the end of a step, the norm of ∇_w L, the residual
        ‖Hv − ∇_w f‖ / ‖∇_w f‖, the norms of the hypergradient and of its parts (in unconstrained
        coordinates), all on the whole `train_set` where there is one and else on a minibatch, and the
        first iteration that was not finite.

    Raises:
        ValueError: for a dimension that is not real or without an implicit hypergradient, by its name,
            and for settings out of range.

    Reference:
        Dagréou, Ablin, Vaiter, Moreau, 2022, arXiv:2201.13409 (SOBA, SABA); Arbel, Mairal, 2022,
        arXiv:2111.14580 (AmIGO).
    """
    check_problem(problem)
    spaces.check_space(space, real=True)
    check_whole("num_iterations", num_iterations)
    check_whole("num_restarts", num_restarts)
    method = soba() if method is None else method
    check_kind("method", method, BilevelMethod, "soba(), saba(...) or amigo()")
    outer = optax.adam(0.01) if optimizer is None else optimizer
    check_kind("optimizer", outer, optax.GradientTransformation, "optax.adam(0.01)")
    if start is not None:
        spaces.check_value(space, start)
    made = linear or problem.optimizer
    first = jax.tree.map(jnp.asarray, spaces.default(space) if start is None else start)
    _check_implicit(problem, first, made)
    warn_unused(problem, first, "it will stay where it starts")
    if linear is None and _rescales(problem, first):
        warnings.warn(
            "linear is None and problem.optimizer rescales its gradients (as Adam does): on minibatches the "
            "linear system keeps a large residual (`residual` in the trials); pass e.g. "
            "linear=lambda hparams: optax.sgd(0.1)",
            stacklevel=2,
        )
    parts = _Parts(_loop(problem, space, made, outer), space, method, num_iterations, num_restarts)
    return on_device(partial(_init, parts, first), partial(_step, parts))


class _Parts(NamedTuple):
    """The arguments of `bilevel`, its problem and optimizers as one loop over unconstrained coordinates."""

    loop: Loop
    space: PyTree
    method: BilevelMethod
    num_iterations: int
    num_restarts: int


def _init(parts: _Parts, first: HParams, key: Key) -> BilevelState:
    """Place the restarts, the first of them at `first`."""
    num = parts.num_restarts
    sample_key, begin_key = jax.random.split(key)

    def place(sample_key: Key, begin_key: Key, index: Array) -> tuple[tuple[Point, PyTree], PyTree]:
        drawn = spaces.sample(parts.space, sample_key)
        z = spaces.unconstrain(parts.space, tree.choose(index == 0, first, drawn))
        return _begin(parts, begin_key, z, jnp.ones(())), z

    sample_keys, begin_keys = (jax.random.split(k, num) for k in (sample_key, begin_key))
    (point, memory), z = jax.vmap(place)(sample_keys, begin_keys, jnp.arange(num))
    return BilevelState(point, memory, z, jnp.zeros(num, jnp.int32))


def _begin(parts: _Parts, key: Key, z: PyTree, speed: Array) -> tuple[Point, PyTree]:
    """Start weights and linear system anew at these hparams."""
    loop = parts.loop
    train = init_state(loop.problem, key, z)
    v = jax.tree.map(jnp.zeros_like, trained(train.params))
    point = Point(train, v, loop.linear(z).init(v), z, loop.outer.init(z), speed)
    return tree.strong((point, parts.method.init(loop, point)))


def _iterate(
    parts: _Parts, key: Key, state: BilevelState
) -> tuple[BilevelState, HParams, Array, dict[str, Array]]:
    """Make the iterations of one restart; go half way back where they end in numbers that are not finite."""
    loop, method, num = parts.loop, parts.method, parts.num_iterations
    run_key, draw_key, valid_key, begin_key = jax.random.split(key, 4)
    point = state.point._replace(train=state.point.train._replace(key=draw_key))

    def body(carry: tuple[Point, PyTree], key: Key) -> tuple[tuple[Point, PyTree], Array]:
        point, memory, loss = method.iterate(loop, key, *carry)
        return (point, memory), loss

    carry = (point, method.refresh(state.memory))
    (end, memory), losses = jax.lax.scan(body, carry, jax.random.split(run_key, num))
    value, info = _diagnose(loop.problem, end, valid_key)
    moved = (trained(end.train.params), end.v, end.z)
    value = jnp.where(jnp.isfinite(tree.norm(moved)), value, jnp.nan)
    bad = first_nonfinite(losses, value)
    finite = bad < 0
    half = jax.tree.map(lambda a, b: (a + b) / 2, point.z, state.anchor)
    again = _begin(parts, begin_key, half, point.speed / 2)
    after, memory = tree.choose(finite, (end, memory), again)
    anchor = tree.choose(finite, point.z, state.anchor)
    hparams = spaces.constrain(parts.space, tree.choose(finite, end.z, point.z))
    info |= {"first_nonfinite": bad, "skipped": ~finite}
    state = BilevelState(after, memory, anchor, state.num_skipped + ~finite)
    return tree.strong(state), hparams, jnp.where(finite, value, jnp.nan), info


def _step(parts: _Parts, key: Key, state: BilevelState) -> tuple[BilevelState, Trials]:
    """Make the iterations of every restart."""
    num, iterate = parts.num_restarts, partial(_iterate, parts)
    keys = jax.random.split(key, num)
    if num == 1:  # a batch of one would lose the faster unbatched kernels
        outs = iterate(keys[0], jax.tree.map(lambda x: x[0], state))
        new, hparams, values, info = jax.tree.map(lambda x: x[None], outs)
    else:
        new, hparams, values, info = jax.vmap(iterate)(keys, state)
    info["key"] = jax.random.key_data(keys)
    steps = jnp.full(num, parts.num_iterations * parts.method.num_updates, jnp.int32)
    return new, Trials(hparams, values, steps, jnp.arange(num, dtype=jnp.int32), info)


def _loop(
    problem: Problem,
    space: PyTree,
    linear: Callable[[HParams], optax.GradientTransformation],
    outer: optax.GradientTransformation,
) -> Loop:
    """Write the problem as a function of the unconstrained coordinates."""

    def at(z: PyTree) -> HParams:
        return spaces.constrain(space, z)

    return Loop(with_hparams(problem, at), lambda z: linear(at(z)), outer)


def _check_implicit(
    problem: Problem,
    hparams: HParams,
    linear: Callable[[HParams], optax.GradientTransformation],
) -> None:
    """Raise a `ValueError` where the problem has no implicit hypergradient, or v no optimizer."""
    warn_unread([check_step(problem, hparams, real=True).reads])
    check_implicit(problem, hparams, 3, default_batch(problem))

    def move(hparams: HParams) -> PyTree:
        weights = trained(init_state(problem, jax.random.key(0), hparams).params)
        optimizer = linear(hparams)
        return optimizer.update(weights, optimizer.init(weights), weights)

    try:
        jax.eval_shape(move, hparams)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"linear fails on the linear system: {reason} ({type(error).__name__}), expected an optimizer of "
            "gradients alone; pass e.g. linear=lambda hparams: optax.sgd(0.1)"
        ) from error


def _rescales(problem: Problem, hparams: HParams) -> bool:
    """Tell whether the first update of the problem's optimizer is not proportional to the gradient."""
    shapes = jax.eval_shape(lambda: init_state(problem, jax.random.key(0), hparams).params)
    weights = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trained(shapes))
    optimizer = problem.optimizer(hparams)

    def update(size: float) -> PyTree:
        # small, so that a bound on the norm that will not hold at rest does not show
        grads = jax.tree.map(
            lambda w: (size * jnp.cos(jnp.arange(w.size))).reshape(w.shape).astype(w.dtype), weights
        )
        return optimizer.update(grads, optimizer.init(weights), weights)[0]

    once, twice = update(1e-3), update(2e-3)
    gap = tree.norm(jax.tree.map(lambda a, b: b - 2 * a, once, twice))
    return bool(gap > 0.01 * tree.norm(twice))


def _diagnose(problem: Problem, point: Point, key: Key) -> tuple[Array, dict[str, Array]]:
    """Return the objective `[]` and how far the three variables are from rest."""
    params = point.train.params
    data = default_batch(problem)(problem, point.train)
    inner, *_ = inner_terms(problem, params, point.v, point.z, data)
    outer, value = outer_terms(problem, params, point.z, data, problem.valid_batch(key))
    gap = jax.tree.map(jnp.subtract, inner.product, outer.pull)
    size = tree.norm(outer.pull)
    info = {
        "gradient_norm": tree.norm(inner.slope),
        "residual": tree.norm(gap) / jnp.where(size > 0, size, 1),
        "hypergrad_norm": tree.norm(jax.tree.map(jnp.subtract, outer.direct, inner.cross)),
        "direct_norm": tree.norm(outer.direct),
        "response_norm": tree.norm(inner.cross),
        "adjoint_growth": jnp.ones((), jnp.float32),  # nothing is unrolled that could grow
    }
    return value, info


def _make(task: Task, settings: Any, start: HParams | None) -> tuple[Tuner, StepCost]:
    """Build the tuner whose step trains as long as a run, and moves as far as a step of a descent."""
    named = BILEVEL_METHODS[settings.bilevel]
    method = named.make(task.problem)
    num_iterations = max(1, task.horizon // method.num_updates)
    rate = settings.learning_rate / num_iterations
    decay = optax.cosine_decay_schedule(rate, settings.budget * num_iterations)
    tuner = bilevel(
        task.problem,
        task.space,
        num_iterations,
        method=method,
        optimizer=optax.adam(decay),
        num_restarts=settings.num_restarts,
        start=start,
    )
    num, each = settings.num_restarts, named.cost(task.problem)
    counted = (
        f"{num * num_iterations} iterations of {settings.bilevel!r}, {each:.4g} steps of training each, and "
        "one gradient on all training examples"
    )
    state = first_shapes(task.problem, task.space)
    last = INNER_GRADIENTS * in_minibatches(task.problem, default_batch(task.problem), state)
    last += valid_minibatches(task.problem)
    return tuner, StepCost(num * (num_iterations * each + last) / task.horizon, counted)


BILEVEL = Method(
    "bilevel",
    "stochastic bilevel optimization: weights and hyperparameters of the loss in one loop (see --bilevel)",
    ("bilevel", "learning_rate", "num_restarts", "prior", "warm_start"),
    _make,
)
