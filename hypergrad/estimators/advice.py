"""Say in words why an estimate should not be trusted, and which hyperparameters have none."""

import re
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.abstract import program_of
from hypergrad.core.flow import NOTHING
from hypergrad.core.reach import derivative_flow
from hypergrad.core.types import Array, HParams, Key, Params
from hypergrad.estimators.base import Estimate
from hypergrad.problem import Problem
from hypergrad.train import init_state, step
from hypergrad.validation import drawn_leaves

CHAOTIC_GROWTH = 1.05
"""Growth of the derivative a step above which gradients through long runs explode."""

CHAOTIC = 1e3
"""Growth over a whole run that a mere sum over the steps does not reach."""

EXPLODED = 1e6
"""Multiple of its first size beyond which a derivative on its way counts as exploded."""

LONGEST_WAY = 100
"""Most steps that a leaf is followed through before the objective; two or three settle it for most."""


def advice(estimate: Estimate) -> list[str]:
    """Say in words why an estimate should not be trusted, and what to do; empty if nothing shows.

    A host function: call it on what `jax.jit(estimator.estimate)` returned.

    Args:
        estimate: One estimate of any estimator, not a batch of them.

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


def kind_of(line: str) -> str:
    """Return a line of advice without its numbers: lines that differ only in these are one trouble.

    Numbers in the names of leaves stay.
    """
    return re.sub(r"(?<![\w.'\"])[-+]?\d[\d.]*(e[-+]?\d+)?", "", line)


def unrolled_advice(info: Any) -> list[str]:
    """Say what is wrong with an estimate that followed a run step by step; see `advice`."""
    if info.first_nonfinite >= 0:
        return [_not_finite(int(info.first_nonfinite), int(info.horizon)) + _alone(info)]
    step = exploded_step(getattr(info, "sensitivity", np.zeros(0)), info.growth)
    # what is merely summed over the steps, as tangents are, grows too: by the number of steps in all
    in_all = float(info.growth) ** min(float(info.horizon), 1e3)
    said = [*broken_weights(info), *_resting(info)]
    if step is None and not (info.growth > CHAOTIC_GROWTH and in_all > CHAOTIC):
        return said
    passed = "" if step is None else f" and exploded (grew past {EXPLODED:.0e} fold) at step {step}"
    return [
        *said,
        f"the derivative along the run grows {info.growth:.3g}x a step{passed}: training is chaotic here and "
        "its exact gradient says nothing; lower the learning rates or the horizon, or use pes, nres or es, "
        "which smooth it, or truncated",
    ]


def _not_finite(step: int, horizon: int) -> str:
    """Say what was not finite first; `step` is the horizon where that was the objective."""
    if step == 0:
        return (
            "training was not finite from step 0 on, before any update; look for NaN or infinity in the data, "
            "the hparams and the first weights"
        )
    if step >= horizon:
        return (
            "the objective was not finite though every training loss was; look at the validation data, or "
            "lower the learning rate"
        )
    return f"training was not finite from step {step} on; lower the learning rate"


IN_DTYPE = "check the optimizer in their dtype (Adam's eps of 1e-8 is 0 in float16)"


def _nonfinite_leaves(info: Any) -> list[str]:
    """Name the leaves of params that are not finite at the end."""
    finite = getattr(info, "finite", ())
    named = zip(tree.leaf_names(finite, bare=""), jax.tree.leaves(finite), strict=True)
    return [f"params{name and f'[{name!r}]'}" for name, whole in named if not whole]


def broken_weights(info: Any) -> list[str]:
    """Name the leaves of params that are not finite at the end, though losses and objective are."""
    return [
        f"the weights {name} are not finite at the end, though losses and objective are, which do not read "
        f"them: {IN_DTYPE}"
        for name in _nonfinite_leaves(info)
    ]


def _alone(info: Any) -> str:
    """Name the leaves of params that are not finite at the end, where others are."""
    names, total = _nonfinite_leaves(info), len(jax.tree.leaves(getattr(info, "finite", ())))
    return (
        f", or, as {', '.join(names)} alone are not finite, {IN_DTYPE}"
        if 0 < len(names) < total
        else ""
    )


def _resting(info: Any) -> list[str]:
    """Name the leaves of params with entries at rest, whose adjoint grows though nothing moves there."""
    resting = getattr(info, "resting", ())
    names = tree.leaf_names(resting, bare="")
    grown = zip(names, jax.tree.leaves(resting), strict=True)
    return [
        f"the derivative along the run grew {peak:.0e} fold at entries of params{name and f'[{name!r}]'} that "
        "rest: their gradient is exactly zero from the start (a dead unit, a zero bias, a weight at its "
        "optimum), where the slope of the optimizer is 1/eps; the hypergradient is right as long as "
        "that gradient stays below eps; where it is this large, too, start elsewhere, or raise eps"
        for name, peak in grown
        if peak > 0
    ]


def exploded_step(sensitivity: Array | np.ndarray, growth: Array | float = np.inf) -> int | None:
    """Return the step at which a derivative grew past `EXPLODED` fold or overflowed, or None.

    The derivative travels towards the start where it grows that way (reverse mode), else towards the end; one
    that dies out on its way, with a `growth` below 1, travels to where it is smaller. Towards the end it builds
    up from nothing, so that the first tenth of its steps does not count.
    """
    norms = np.asarray(sensitivity)
    if norms.size < 2:
        return None
    rises = norms[0] <= norms[-1]
    backwards = rises if growth < 1 and np.all(np.isfinite(norms)) else not rises
    backwards &= np.isfinite(norms[-1])
    way = norms[::-1] if backwards else norms
    begin = 0 if backwards else max(1, norms.size // 10)
    exploded = ~(way <= EXPLODED * way[begin])
    if way[begin] == 0 or not exploded[begin:].any():
        return None
    index = begin + int(np.argmax(exploded[begin:]))
    return norms.size - 1 - index if backwards else index


def structural_zeros(
    problem: Problem, hparams: HParams, horizon: int, through_init: bool = True
) -> list[str]:
    """Name the leaves whose hypergradient is zero whatever the numbers.

    Signs (Lion, sign-SGD), rounding, integer casts and comparisons stop a derivative; a leaf that reaches the
    objective through nothing else gets a silent zero. Without `through_init`, so does a leaf that acts on the
    initial weights alone.

    **Cost:** one trace of a step, of `init` and of the objective, through which the leaves are followed
    (`core.reach`); nothing is compiled or run.
    """
    key = jax.eval_shape(jax.random.key, 0)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), hparams)
    begin, state = program_of(partial(init_state, problem), key, shapes)
    advance, _ = program_of(lambda s, h: step(problem, h, s)[0], state, shapes)

    def judged(params: Params, hparams: HParams, key: Key) -> Array:
        return problem.objective(params, hparams, problem.valid_batch(key))

    judge, _ = program_of(judged, state.params, shapes, key)
    leaves = jax.tree.leaves(shapes)
    own = [frozenset([i]) if tree.is_float(x) else NOTHING for i, x in enumerate(leaves)]
    moved = derivative_flow(begin, [NOTHING, *(own if through_init else [NOTHING] * len(own))])
    for _ in range(min(horizon, LONGEST_WAY)):
        before, moved = moved, derivative_flow(advance, moved + own)
        if moved == before:
            break
    params = jax.tree.leaves(jax.tree.unflatten(jax.tree.structure(state), moved).params)
    alive = derivative_flow(judge, [*params, *own, NOTHING])[0]
    return [name for i, name in enumerate(tree.leaf_names(hparams)) if i not in alive]


def warn_structural_zeros(
    problem: Problem, hparams: HParams, horizon: int, through_init: bool = True
) -> None:
    """Warn, once a trace, of every leaf of `structural_zeros` that no `DrawnLeafWarning` names."""
    start = "" if through_init else "the initial weights, "
    zeros = structural_zeros(problem, hparams, horizon, through_init)
    drawn = drawn_leaves(problem, hparams) if zeros else set()
    for name in [name for name in zeros if f"hparams[{name!r}]" not in drawn]:
        warnings.warn(
            f"the hypergradient of hparams[{name!r}] is zero by structure: it reaches the objective only "
            f"through {start}a sign, a rounding, a comparison or an integer, or not at all; search it "
            "instead, use an optimizer without sign (Lion and sign-SGD have one), or make the optimizer within "
            "problem.optimizer, from its hparams",
            StructuralZeroWarning,
            stacklevel=3,
        )


class StructuralZeroWarning(UserWarning):
    """A hypergradient, or a part of one, is zero whatever the numbers; the message names the leaf."""
