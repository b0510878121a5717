"""Training as a pure function: `jax.grad`, `jax.jacfwd`, `jax.hessian` and `jax.vmap` go straight through."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import optax
from jax import core

from hypergrad.core import tree
from hypergrad.core.autodiff import live_inputs, smooth
from hypergrad.core.cautions import warn_drawn
from hypergrad.core.checks import check_share, describe, is_whole
from hypergrad.core.draws import DATA, draws_that_lose, marks_of_batch
from hypergrad.core.resting import rested
from hypergrad.core.scans import check_checkpoint, nested_scan
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree, Variables
from hypergrad.problem import Problem, check_problem, split_loss


class TrainState(NamedTuple):
    """Everything that the next step of training needs.

    Attributes:
        step: Index of the next step, int32 `[]`.
        params: Trained params, or `Variables`.
        opt_state: State of the optax optimizer.
        key: PRNG key of the run; step t draws its batch with `fold_in(key, t)`.
    """

    step: Array
    params: Params
    opt_state: PyTree
    key: Key


def split_key(key: Key) -> tuple[Key, Key]:
    """Split a key into the one that begins a run and the one that draws its validation batch.

    The second is also the `TrainState.key` of the run that `init_state` begins with `key`: the objective of
    that run reads `problem.valid_batch(split_key(key)[1])`, the same batch after every step.
    """
    try:
        # a clone, because the same key makes the same run again; jax_debug_key_reuse is told so
        first, second = jax.random.split(jax.random.clone(key))
    except (TypeError, ValueError):
        got = describe(key)
        raise ValueError(f"key is {got}, expected one PRNG key; pass jax.random.key(0)") from None
    return first, second


def init_state(problem: Problem, key: Key, hparams: HParams) -> TrainState:
    """Make the state before the first step; differentiable in `hparams`."""
    init_key, run_key = split_key(key)
    return start_state(problem, _first_params(problem, init_key, hparams), hparams, run_key)


def _first_params(problem: Problem, key: Key, hparams: HParams) -> Params:
    """Return the first params; say in a line where a problem divides them over devices unevenly."""
    try:
        return problem.init(key, hparams)
    except ValueError as error:
        if type(error).__name__ != "IndivisibleError":  # jax does not export it
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"problem.init divides an array unevenly over devices ({reason[:160]}), expected sizes that the "
            "devices divide; call it within jax.jit, where the compiler pads, or choose such a size"
        ) from error


def start_state(problem: Problem, params: Params, hparams: HParams, key: Key) -> TrainState:
    """Make the state before the first step from params; the key draws the batches."""

    def begin(hparams: HParams, weights: PyTree) -> PyTree:
        return problem.optimizer(hparams).init(weights)

    # DoG takes the norm of the first weights, whose derivative is singular at zero
    opt_state = smooth(begin)(hparams, trained(params))
    # optax keeps some counters as Python numbers; a scan's carry wants arrays of a fixed type
    params, opt_state = tree.strong((params, opt_state))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, key)


def trained(params: Params) -> PyTree:
    """Return the part of the params that the optimizer sees."""
    return params.params if isinstance(params, Variables) else params


def carried(params: Params) -> PyTree:
    """Return the part of the params that the loss carries along (None without one)."""
    return params.state if isinstance(params, Variables) else None


def with_parts(params: Params, weights: PyTree, state: PyTree) -> Params:
    """Return params of the same kind as `params` with these weights and carried state."""
    return Variables(weights, state) if isinstance(params, Variables) else weights


def draw_batch(problem: Problem, state: TrainState) -> Batch:
    """Draw the batch of the state's step."""
    return problem.train_batch(jax.random.fold_in(state.key, state.step), state.step)


def evaluate_loss(
    problem: Problem, params: Params, hparams: HParams, batch: Batch
) -> tuple[Array, PyTree]:
    """Return the training loss `[]` and the new carried state, in the dtypes it had."""
    value, state = split_loss(params, problem.loss(params, hparams, batch))
    return value, tree.cast_like(state, carried(params))


def _extra_args(optimizer: optax.GradientTransformation, offered: tuple[str, ...]) -> list[str]:
    """List optax's extra arguments that the optimizer takes; `contrib.sam` takes only one."""
    if not isinstance(optimizer, optax.GradientTransformationExtraArgs):
        return []
    parameters = inspect.signature(optimizer.update).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        # a chain hands everything on, and line searches refuse arguments that their value_fn does not take
        return [name for name in offered if name != "grad_fn"]
    return [name for name in offered if name in parameters]


def update(
    problem: Problem,
    hparams: HParams,
    state: TrainState,
    batch: Batch,
    value: Array,
    grads: PyTree,
) -> tuple[PyTree, PyTree]:
    """Apply the optimizer to the gradient of one step.

    Roots and quotients within the optimizer get finite derivatives where they are singular
    (`autodiff.smooth`), which cures the NaN hypergradients of the Adam family and changes no value. Weights
    whose gradient is exactly zero do not spoil the derivatives of others (`core.resting`).
    Dtypes stay those of the state, so that bfloat16 params with float32 hparams train as optax would
    train them.

    Returns:
        New weights and new optimizer state.
    """
    weights = trained(state.params)
    state_of_loss = carried(state.params)

    # line searches insist that it names what they get
    def value_fn(weights: PyTree, obj_fn: Any = None, **_: Any) -> Array:
        params = with_parts(state.params, weights, state_of_loss)
        return evaluate_loss(problem, params, hparams, batch)[0]

    def grad_fn(weights: PyTree, *_: Any) -> PyTree:
        return jax.grad(value_fn)(weights)

    def change(
        grads: PyTree, weights: PyTree, opt_state: PyTree, hparams: HParams, value: Array
    ) -> tuple[PyTree, PyTree]:
        optimizer = problem.optimizer(hparams)
        offered = {"value": value, "grad": grads, "value_fn": value_fn, "grad_fn": grad_fn}
        offered["obj_fn"] = value_fn  # what Sophia calls it
        extra = {name: offered[name] for name in _extra_args(optimizer, tuple(offered))}
        # lookahead takes the gradient of the fast weights alone
        if isinstance(weights, optax.LookaheadParams):
            grads = grads.fast
        try:
            return optimizer.update(grads, opt_state, weights, **extra)
        except AttributeError as error:
            if error.name not in optax.LookaheadParams._fields:
                raise
            raise ValueError(
                f"problem.init returned a {type(weights).__name__} of params, expected optax.LookaheadParams "
                "for optax.lookahead; return optax.LookaheadParams.init_synced(params), read params.fast in "
                "problem.loss and params.slow in problem.objective"
            ) from error

    def begin(weights: PyTree) -> PyTree:
        return problem.optimizer(hparams).init(weights)

    updates, opt_state = rested(change, begin)(grads, weights, state.opt_state, hparams, value)
    new = (optax.apply_updates(weights, updates), opt_state)
    return tree.cast_like(new, (weights, state.opt_state))


def step(problem: Problem, hparams: HParams, state: TrainState) -> tuple[TrainState, Array]:
    """Make one step of training: draw a batch, differentiate the loss, apply the optimizer.

    Returns:
        The next state and the loss `[]` before the step.
    """
    return step_and_grads(problem, hparams, state)[:2]


def step_and_grads(
    problem: Problem, hparams: HParams, state: TrainState
) -> tuple[TrainState, Array, PyTree]:
    """Make one step of training like `step`, and return the gradient of the weights as well."""
    batch = draw_batch(problem, state)
    weights = trained(state.params)

    def loss(weights: PyTree) -> tuple[Array, PyTree]:
        params = with_parts(state.params, weights, carried(state.params))
        return evaluate_loss(problem, params, hparams, batch)

    (value, new_carried), grads = jax.value_and_grad(loss, has_aux=True)(weights)
    weights, opt_state = update(problem, hparams, state, batch, value, grads)
    params = with_parts(state.params, weights, new_carried)
    return TrainState(state.step + 1, params, opt_state, state.key), value, grads


def unroll(
    problem: Problem,
    hparams: HParams,
    state: TrainState,
    num_steps: int,
    *,
    checkpoint: tuple[int, ...] = (),
) -> TrainState:
    """Train: w_{t+1} = Φ_t(w_t, λ) for `num_steps` steps.

    A pure function: reverse and forward mode, second derivatives and `vmap` go through it.
    `estimators.reverse` computes the same gradient faster.

    **Cost:** time of `num_steps` steps. Under `jax.grad`, memory of all activations of all steps unless
    `checkpoint` says otherwise.

    Where it is differentiated, a `DrawnLeafWarning` names the leaves whose derivative a random draw in the loss
    loses, once for a problem and its shapes; for that, the batch and the loss are traced once more.

    **Limits:** nothing else is checked here; estimators and `validate` refuse batches that an iterator decides.
    Within a `jax.jit` that is itself differentiated, nothing is seen of the derivative: differentiate first
    (`jax.jit(jax.grad(f))`). Draws in the optimizer and in `init` are named by estimators alone.

    Args:
        problem: Training loop.
        hparams: Hyperparameters; traced, so that other values never recompile.
        state: State to start from (`init_state`).
        num_steps: Number of steps, static.
        checkpoint: Lengths of nested segments, outermost first, whose insides are recomputed in the
            backward pass. `()` stores everything, `(1,)` the state of every step, `(32, 1)` one state in 32
            and, within a segment that is being recomputed, the state of each step.

    Returns:
        The state after the last step.

    Raises:
        ValueError: for a negative number of steps, or an invalid `checkpoint`.
    """
    if not is_whole(num_steps) or num_steps < 0:
        raise ValueError(
            f"num_steps is {describe(num_steps)}, expected a whole number of at least 0; pass e.g. num_steps=10"
        )
    if checkpoint:
        check_checkpoint(checkpoint)
    _warn_lost(problem, hparams, state)
    return unroll_losses(problem, hparams, state, num_steps, checkpoint=checkpoint)[0]


def _warn_lost(problem: Problem, hparams: HParams, state: TrainState) -> None:
    """Warn of differentiated leaves whose derivative a draw in the loss loses, once for what is traced."""
    names = [
        f"hparams[{name!r}]" if _is_differentiated(leaf) else None
        for name, leaf in tree.named(hparams).items()
    ]
    if not any(names):
        return
    args = jax.eval_shape(lambda x: x, (state.params, hparams, state.key, state.step))
    leaves, structure = jax.tree.flatten(args)
    seen = (structure, tuple((x.shape, x.dtype) for x in leaves), tuple(names))
    try:
        known = _ASKED.setdefault(problem.loss, set())
    except TypeError:  # a function of the user's that cannot be remembered is asked each time
        known = set()
    if seen not in known:
        known.add(seen)
        warn_drawn(dict.fromkeys(_lost_in_loss(problem, args, names), "problem.loss"), 4)


_ASKED: WeakKeyDictionary[Callable, set] = WeakKeyDictionary()
"""What was traced of a loss to look for draws: structures, shapes and names."""


def _is_differentiated(x: Any) -> bool:
    """Tell whether a number carries a derivative, perhaps within `vmap`."""
    while isinstance(x, core.Tracer):
        if hasattr(x, "tangent"):
            return tree.is_float(x)
        x = getattr(x, "val", None)
    return False


def _lost_in_loss(problem: Problem, args: tuple, names: list[str | None]) -> set[str]:
    """Name the leaves whose derivative a draw in the loss loses."""
    params, hparams, key, step = args
    drawn, batch = jax.make_jaxpr(problem.train_batch, return_shape=True)(key, step)

    def value(params: Params, hparams: HParams, batch: Batch) -> tuple[Array, PyTree]:
        return split_loss(params, problem.loss(params, hparams, batch))

    program = jax.make_jaxpr(value)(params, hparams, batch)
    num, num_all = len(jax.tree.leaves(trained(params))), len(jax.tree.leaves(params))
    live = [True] + [False] * (len(program.jaxpr.outvars) - 1)
    while (read := [True, *live_inputs(program.jaxpr, live)[num:num_all]]) != live:
        live = read
    marks = [DATA] * num_all + [frozenset([name]) if name else DATA for name in names]
    return draws_that_lose(program, marks + marks_of_batch(drawn), live)


def unroll_losses(
    problem: Problem,
    hparams: HParams,
    state: TrainState,
    num_steps: int,
    *,
    checkpoint: tuple[int, ...] = (),
) -> tuple[TrainState, Array]:
    """Train like `unroll`, and return the loss before each step `[num_steps]` as well."""
    return nested_scan(lambda s, _: step(problem, hparams, s), state, None, num_steps, checkpoint)


def averaged(problem: Problem, decay: float | Callable[[HParams], Array]) -> Problem:
    """Judge a problem by the exponential moving average of its weights.

    w̄_0 = w_0,  w̄_t = β w̄_{t−1} + (1 − β) w_t;  the objective reads w̄_T. The average travels as carried
    state, is updated in the loss without another forward pass, and β may be a hyperparameter.

    Args:
        problem: Problem with or without carried state of its own.
        decay: Decay β in [0, 1), or (hparams) -> β.

    Returns:
        A problem whose params are `Variables`; its `objective` receives averaged weights.
    """
    check_problem(problem)
    if not callable(decay):
        what = "a function of hparams, or a number"
        check_share("decay", decay, "[0, 1)", what=what, example=0.99)

    def average(hparams: HParams, mean: PyTree, weights: PyTree) -> PyTree:
        beta = decay(hparams) if callable(decay) else decay
        mixed = jax.tree.map(lambda m, w: beta * m + (1 - beta) * w, mean, weights)
        return tree.cast_like(mixed, mean)

    def init(key: Key, hparams: HParams) -> Variables:
        params = problem.init(key, hparams)
        return Variables(trained(params), {"inner": carried(params), "mean": trained(params)})

    def original(params: Variables, weights: PyTree) -> Params:
        inner = params.state["inner"]
        return weights if inner is None else Variables(weights, inner)

    def loss(params: Variables, hparams: HParams, batch: Batch) -> tuple[Array, PyTree]:
        inner = original(params, params.params)
        value, new_inner = split_loss(inner, problem.loss(inner, hparams, batch))
        mean = average(hparams, params.state["mean"], params.params)
        return value, {"inner": new_inner, "mean": mean}

    def objective(params: Variables, hparams: HParams, batch: Batch) -> Array:
        mean = average(hparams, params.state["mean"], params.params)
        return problem.objective(original(params, mean), hparams, batch)

    return problem._replace(init=init, loss=loss, objective=objective)


def earliest(steps: Array) -> Array:
    """Return the smallest of `steps` that is not negative, or -1; int32 `[]`."""
    never = jnp.iinfo(jnp.int32).max
    first = jnp.min(jnp.where(steps < 0, never, steps))
    return jnp.where(first == never, -1, first).astype(jnp.int32)
