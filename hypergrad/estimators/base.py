"""The contract of every hypergradient estimator, and what those that unroll training share."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import tree
from hypergrad.adjoint import Backward, mixed_mode, state_floats
from hypergrad.autodiff import depends
from hypergrad.checks import check_whole
from hypergrad.problem import (
    Problem,
    StructuralZeroWarning,
    check,
    check_floating,
)
from hypergrad.train import TrainState, check_step, init_state, trained, unroll
from hypergrad.types import Array, HParams, Key, PyTree


class Estimate(NamedTuple):
    """A hypergradient and how far it can be trusted.

    Attributes:
        value: the objective `[]`.
        hypergrad: d objective / d hparams, a pytree like `hparams`.
        info: the method's own diagnostics, e.g. `UnrollInfo`.
    """

    value: Array
    hypergrad: HParams
    info: Any


class Estimator(NamedTuple):
    """A way to differentiate a training run, as a value.

    Attributes:
        init: (key, hparams) -> state. Warm starts, accumulators and windows live there.
        estimate: (key, state, hparams) -> (state, Estimate). Pure and traceable; the key decides the
            initial weights and every minibatch, so the same key gives the same bits.
    """

    init: Callable[[Key, HParams], PyTree]
    estimate: Callable[[Key, PyTree, HParams], tuple[PyTree, Estimate]]


Through: TypeAlias = Callable[[Problem, int], Estimator]
"""(problem, horizon) -> how a run is differentiated in real hyperparameters, such as `reverse`."""
Precondition: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""(hparams, gradient) -> gradient, linear in the gradient."""


class UnrollInfo(NamedTuple):
    """Diagnostics of a hypergradient through an unrolled run.

    Attributes:
        direct: ∂f/∂λ at the final weights, a pytree like `hparams`.
        response: (∂f/∂w)(dw/dλ), a pytree like `hparams`; hypergrad = direct + response.
        horizon: number of steps differentiated through, int32 `[]`.
        sensitivity: `[horizon]`; in reverse mode the norm of the adjoint of the weights before each
            step, in forward mode that of their derivative after each step.
        growth: geometric mean growth of `sensitivity` a step (towards the start in reverse mode, towards
            the end in forward mode), `[]`. Well above 1 means chaos: gradients through the run explode.
        first_nonfinite: first step whose training loss was not finite, the number of steps if only the
            objective was not, -1 if none; int32 `[]`.
    """

    direct: HParams
    response: HParams
    horizon: Array
    sensitivity: Array
    growth: Array
    first_nonfinite: Array


class OnlineInfo(NamedTuple):
    """Diagnostics of a hypergradient taken while training goes on.

    Attributes:
        direct: ∂f/∂λ, a pytree like `hparams`.
        response: what is known of (∂f/∂w)(dw/dλ), a pytree like `hparams`; hypergrad = direct + response.
        horizon: number of training steps whose derivative is in the response, int32 `[]`. Where it is less than
            `step`, the hypergradient has short-horizon bias: the terms of earlier steps are missing.
        growth: geometric mean growth a step of the adjoint or, in forward mode, of Z, `[]`. In reverse mode
            with growth ρ < 1, what is missing is about ρ^horizon of the whole.
        first_nonfinite: first training step of the run whose loss was not finite, `step` if only the
            objective was not, -1 if none; int32 `[]`. The next estimate then starts a new run.
        step: where training stands: steps since its run started, int32 `[]`.
        moved: how far the hparams have moved since then, ‖λ − λ_start‖, `[]`. Above zero the weights, and Z
            in forward mode, are those of a path of hparams, not of the last ones.
    """

    direct: HParams
    response: HParams
    horizon: Array
    growth: Array
    first_nonfinite: Array
    step: Array
    moved: Array


class OnlineState(NamedTuple):
    """Training that goes on from estimate to estimate.

    Attributes:
        train: where it stands.
        first: the hparams with which its run started.
        tangents: in forward mode, Z of the state's float leaves, leading axis `[num_hparams]`; else `()`.
    """

    train: TrainState
    first: HParams
    tangents: Any = ()


CHAOTIC = 1e3
"""Growth in all that is no longer that of a sum over the steps."""
EXPLODED = 1e6
"""How often its first size a derivative may become on its way before it counts as exploded."""


def advice(estimate: Estimate) -> list[str]:
    """Say in words why an estimate should not be trusted, and what to do; empty if nothing shows.

    A host function: call it on what `jax.jit(estimator.estimate)` returned.

    Args:
        estimate: one estimate of any estimator, not a batch of them.

    Returns:
        One line for each trouble.
    """
    info = estimate.info
    said = info.advice(estimate) if hasattr(info, "advice") else unrolled_advice(info)
    finite = all(np.all(np.isfinite(x)) for x in jax.tree.leaves(estimate.hypergrad))
    if not said and not finite:
        said = [
            "the hypergradient is not finite though training is; see `info`, or use another estimator"
        ]
    return said


def unrolled_advice(info: Any) -> list[str]:
    """Say what is wrong with an estimate that followed a run step by step; see `advice`."""
    if info.first_nonfinite >= 0:
        return [
            f"training was not finite from step {info.first_nonfinite} on; lower the learning rate"
        ]
    step = exploded_step(getattr(info, "sensitivity", np.zeros(0)))
    # what is merely summed over the steps, as tangents are, grows too: by the number of steps in all
    in_all = float(info.growth) ** min(float(info.horizon), 1e3)
    if step is None and not (info.growth > 1.05 and in_all > CHAOTIC):
        return []
    passed = "" if step is None else f" and exploded (grew past {EXPLODED:.0e} fold) at step {step}"
    return [
        f"the derivative along the run grows {info.growth:.3g}x a step{passed}: training is chaotic here and "
        "its exact gradient says nothing; lower the learning rates or the horizon, or use pes, nres or es, "
        "which smooth it, or truncated"
    ]


def exploded_step(sensitivity: Array | np.ndarray) -> int | None:
    """Return the step at which a derivative on its way grew past `EXPLODED` fold or overflowed, or None.

    Its way is towards the start where it grows that way (reverse mode), else towards the end.
    """
    norms = np.asarray(sensitivity)
    if norms.size < 2:
        return None
    backwards = np.isfinite(norms[-1]) and not norms[0] <= norms[-1]
    way = norms[::-1] if backwards else norms
    exploded = ~(way <= EXPLODED * way[0])
    if way[0] == 0 or not exploded.any():
        return None
    index = int(np.argmax(exploded))
    return norms.size - 1 - index if backwards else index


def check_real(problem: Problem, hparams: HParams) -> None:
    """Raise a one-line `ValueError` where problem and hparams do not fit, or a leaf has no hypergradient.

    **Cost:** abstract evaluation of one step, once a trace.
    """
    check_floating(hparams)
    check(problem, hparams)
    check_step(problem, hparams)


def structural_zeros(
    problem: Problem, hparams: HParams, horizon: int, through_init: bool = True
) -> list[str]:
    """Name the leaves whose hypergradient is zero whatever the numbers.

    Signs (Lion, sign-SGD), rounding, integer casts and comparisons stop a derivative; a leaf that
    reaches the objective through nothing else gets a silent zero. So does, without `through_init`, one
    that acts on the initial weights alone.

    **Cost:** one trace of three steps; nothing is compiled or run.
    """

    def value(hparams):
        key = jax.random.key(0)
        first = hparams if through_init else jax.lax.stop_gradient(hparams)
        state = unroll(problem, hparams, init_state(problem, key, first), min(horizon, 3))
        return problem.objective(state.params, hparams, problem.valid_batch(key))

    used = depends(value, hparams)
    return [name for name, alive in zip(tree.leaf_names(hparams), used, strict=True) if not alive]


def warn_structural_zeros(
    problem: Problem, hparams: HParams, horizon: int, through_init: bool = True
) -> None:
    """Warn, once a trace, of every leaf that `structural_zeros` names."""
    start = "" if through_init else "the initial weights, "
    for name in structural_zeros(problem, hparams, horizon, through_init):
        warnings.warn(
            f"the hypergradient of hparams[{name!r}] is zero by structure: it reaches the objective only "
            f"through {start}a sign, a rounding, a comparison or an integer, or not at all; search it "
            "instead, or use an optimizer without sign (Lion and sign-SGD have one)",
            StructuralZeroWarning,
            stacklevel=3,
        )


def first_state(problem: Problem, key: Key, hparams: HParams) -> OnlineState:
    """Start a run of training that will go on from estimate to estimate; `key` is that of an estimate."""
    first = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), hparams)
    return OnlineState(init_state(problem, split_key(key)[0], hparams), first)


def go_on(state: OnlineState, fresh: OnlineState, restart_every: int | None) -> OnlineState:
    """Return `state` with the minibatches of `fresh`, or `fresh` where the run is over or not finite.

    With one and the same key, estimates after one another are one run: that of `init_state`.
    """
    everything = [x.astype(jnp.float32) for x in tree.floats((state.train.params, state.tangents))]
    over = ~jnp.isfinite(tree.norm(everything))
    if restart_every is not None:
        over |= state.train.step >= restart_every
    key = fresh.train.key
    pair = (s._replace(train=s.train._replace(key=())) for s in (fresh, state))
    chosen = tree.choose(over, *pair)
    return chosen._replace(train=chosen.train._replace(key=key))


def online_info(
    before: OnlineState,
    after: OnlineState,
    hparams: HParams,
    parts: tuple[HParams, HParams],
    horizon: int | Array,
    growth: Array,
    bad: Array,
) -> OnlineInfo:
    """Make the diagnostics of an estimate.

    Args:
        before: where its training began.
        after: and ended.
        hparams: of this estimate.
        parts: direct and response.
        horizon: steps differentiated through.
        growth: of the adjoint or of Z.
        bad: what `first_nonfinite` says of the losses of this estimate.
    """
    return OnlineInfo(
        *parts,
        horizon=jnp.asarray(horizon, jnp.int32),
        growth=growth,
        first_nonfinite=jnp.where(bad < 0, bad, bad + before.train.step).astype(jnp.int32),
        step=after.train.step,
        moved=tree.norm(jax.tree.map(jnp.subtract, hparams, after.first)),
    )


def check_restart(restart_every: int | None) -> None:
    """Raise a `ValueError` unless `restart_every` is None or a whole number of at least one step."""
    if restart_every is not None:
        check_whole("restart_every", restart_every)


def objective_parts(
    problem: Problem, key: Key, hparams: HParams, state: TrainState
) -> tuple[Array, HParams, list[Array]]:
    """Differentiate the objective at the end of a run.

    Returns:
        The value `[]`, the direct gradient, and the adjoint of the state's float leaves.
    """
    leaves, join = state_floats(state)
    batch = problem.valid_batch(key)

    def objective(leaves, hparams):
        return problem.objective(join(leaves).params, hparams, batch)

    value, (adjoint, direct) = jax.value_and_grad(objective, (0, 1))(leaves, hparams)
    return value, direct, adjoint


def unrolled_estimate(
    problem: Problem,
    key: Key,
    hparams: HParams,
    start: TrainState,
    num_steps: int,
    backward: Backward,
    through_init: bool = True,
) -> tuple[Estimate, Array, Any, TrainState]:
    """Estimate by reverse mode through `num_steps` steps from `start`.

    Args:
        problem: the training loop.
        key: draws the validation batch, and (with `through_init`) drew `start`: see `split_key`.
        hparams: real hyperparameters.
        start: the state before the first step differentiated.
        num_steps: how many.
        backward: the pass to use (`adjoint.mixed_mode`, `adjoint.plain`).
        through_init: whether `start` is the run's first state and depends on the hparams.

    Returns:
        The estimate, the training losses `[num_steps]`, the pass's certificate, and the state after the
        last step.
    """
    init_key, valid_key = split_key(key)
    try:
        run = backward(problem, hparams, start, num_steps)
        value, direct, adjoint = objective_parts(problem, valid_key, hparams, run.state)
        total, first, norms, certificate = run.pullback(adjoint)
    except ValueError as error:
        if "Reverse-mode differentiation does not work" not in str(error):
            raise
        raise ValueError(
            "problem has a loop of unknown length (lax.while_loop; the line searches of optax.lbfgs are such), "
            "expected loops that reverse mode can take back; use the estimator 'forward', or lax.scan"
        ) from error
    if through_init:
        _, pull_init = jax.vjp(lambda h: state_floats(init_state(problem, init_key, h))[0], hparams)
        total = tree.add(total, tree.floats(pull_init(first)[0]))
    response = jax.tree.unflatten(jax.tree.structure(hparams), total)
    num_weights = len(jax.tree.leaves(trained(run.state.params)))
    last = tree.norm(adjoint[:num_weights])
    growth = growth_rate(last, norms[::-1])
    nonfinite = first_nonfinite(run.losses, value)
    horizon = jnp.asarray(num_steps, jnp.int32)
    info = UnrollInfo(direct, response, horizon, norms, growth, nonfinite)
    estimate = Estimate(value, tree.add(direct, response), info)
    return estimate, run.losses, certificate, run.state


def by_unrolling(problem: Problem, horizon: int, backward: Backward | None = None) -> Estimator:
    """Make the estimator that differentiates through the whole run; see `estimators.reverse`."""
    backward = mixed_mode() if backward is None else backward

    def estimate(key, state, hparams):
        check_real(problem, hparams)
        warn_structural_zeros(problem, hparams, horizon)
        start = init_state(problem, split_key(key)[0], hparams)
        result, *_ = unrolled_estimate(problem, key, hparams, start, horizon, backward)
        return state, result

    return Estimator(lambda key, hparams: (), estimate)


def split_key(key: Key) -> tuple[Key, Key]:
    """Split an estimate's key into that of the run and that of the validation batch."""
    run_key, valid_key = jax.random.split(key)
    return run_key, valid_key


def growth_rate(first: Array, norms: Array) -> Array:
    """Return the geometric mean growth a step along `first` and `norms`.

    From the first that is not zero up to where they overflow; 1 where there was nothing to grow.
    """
    norms = jnp.append(first, norms)
    begin, end = jnp.argmax(norms > 0), jnp.sum(jnp.cumprod(jnp.isfinite(norms[1:])))
    alive = (norms[begin] > 0) & (norms[end] > 0) & (end > begin)
    ratio = jnp.log(jnp.where(alive, norms[end], 1)) - jnp.log(jnp.where(alive, norms[begin], 1))
    return jnp.exp(ratio / jnp.maximum(end - begin, 1))


def first_nonfinite(losses: Array, value: Array) -> Array:
    """Return the first step with a non-finite loss, `len(losses)` if only `value` is, or -1; int32 `[]`."""
    bad = ~jnp.isfinite(jnp.append(losses, value.astype(losses.dtype)))
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)


def mean_and_error(each: PyTree) -> tuple[PyTree, PyTree]:
    """Return the mean over the leading axis `[S]` and its standard error, NaN where S = 1."""

    def error(x):
        return jnp.std(x, 0, ddof=1) / jnp.sqrt(x.shape[0])

    return jax.tree.map(lambda x: jnp.mean(x, 0), each), jax.tree.map(error, each)


def check_kind(name: str, value: Any, kind: type, example: str) -> None:
    """Raise a `ValueError` unless an argument is of its kind."""
    if not isinstance(value, kind):
        raise ValueError(
            f"{name} is {type(value).__name__} {str(value)[:60]!r}, expected a {kind.__name__}; "
            f"pass e.g. {example}"
        )


def temporary_bytes(compiled: Any) -> int:
    """Return the temporary memory of a compiled program in bytes, as the compiler states it."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise ValueError(
            "this backend states no memory of its programs, expected memory_analysis(); choose the backward "
            "pass by hand: reverse(..., backward=mixed_mode(checkpoint))"
        )
    return int(analysis.temp_size_in_bytes)
