"""Recommend an estimator, by measuring a training run and asking the compiler, with reasons in words."""

import math
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import estimators, space as spaces
from hypergrad.core import tree
from hypergrad.core.cautions import DrawnLeafWarning, warn_unread
from hypergrad.core.checks import check_bytes, check_whole
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.advice import (
    CHAOTIC_GROWTH,
    EXPLODED,
    StructuralZeroWarning,
    structural_zeros,
)
from hypergrad.estimators.base import Estimator, first_nonfinite, inner_loss, temporary_bytes
from hypergrad.estimators.evolution.es import ES
from hypergrad.estimators.evolution.pes import PES
from hypergrad.estimators.evolution.windows import quarter
from hypergrad.estimators.implicit.response import BatchOf, default_batch, next_batch
from hypergrad.estimators.policies import enumerated, factorized, own_leaves, sampled
from hypergrad.estimators.recommendation import (
    ELSEWHERE,
    Recommendation,
    estimate_bytes,
    spoken_names,
    spoken_size,
)
from hypergrad.estimators.rounding import narrow_arithmetic
from hypergrad.estimators.unrolled.adjoint import sqrt_checkpoint
from hypergrad.estimators.unrolled.momentum import Recursion
from hypergrad.estimators.unrolled.reverse import Plan, spoken_pass
from hypergrad.estimators.ways import check_implicit, past_the_loss
from hypergrad.problem import Problem, check_problem
from hypergrad.train import TrainState, init_state, split_key, trained, unroll_losses
from hypergrad.validation import check_step, validate

REST = 1e-2
"""Largest ‖∇_w L‖ after training, as a share of the norm before it, at which training has come to rest."""

SHORT = 50
"""Steps over which the growth is measured."""

FEW = 2
"""Largest number of hyperparameters at which forward mode is cheaper than reverse mode."""

MAX_ENUMERATED = 8
"""Largest number of combinations of integers and choices at which every step takes all of them."""


def recommend(
    problem: Problem, space: PyTree, horizon: int, memory: int = 2**30, *, seed: int = 0
) -> Recommendation:
    """Say which estimator to use on a problem, and why.

    The questions, in this order: what the leaves are (drawn leaves need `score` or `mixed`); whether gradients
    through the run explode (`pes`); whether a draw loses the derivative of a leaf (`evolved`); whether training
    comes to rest and every leaf acts through the loss alone (`implicit`); how many hyperparameters there are
    (`forward` for one or two); what fits the memory (`reverse`, else `drift` and `reversible` where the
    optimizer is SGD with momentum, else segments, else `forward` or `truncated`).

    **Cost:** one training, a hypergradient over at most 50 steps, and one compilation for each estimator
    considered, up to seven.

    **Limits:** every measurement is at the defaults of the space and for one seed; elsewhere training may
    explode, or not come to rest. Growth is measured over the first steps.

    Args:
        problem: Training loop.
        space: Pytree of dimensions, none static.
        horizon: Number of inner steps.
        memory: Budget in bytes for the temporaries of one estimate.
        seed: Seed of the run that is measured.

    Returns:
        The recommendation; print it.

    Raises:
        ValueError: for a problem and space that do not fit, a run that is not finite at the defaults, a space
            none of whose leaves has a hypergradient, and a memory that no estimator fits.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    spaces.check_space(space, traceable=True)
    check_bytes(memory)
    hparams = spaces.default(space)
    if any(map(spaces.is_discrete, jax.tree.leaves(space))):
        validate(problem, hparams, horizon)
        return _drawn(problem, space, horizon, memory)
    seen = check_step(problem, hparams, real=True, pathwise=False)
    warn_unread([seen.reads])
    with warnings.catch_warnings():
        # they are among the reasons
        warnings.simplefilter("ignore", StructuralZeroWarning)
        warnings.simplefilter("ignore", DrawnLeafWarning)
        found = _real(_Case(problem, space, hparams, horizon, memory, seed), list(seen.drawn))
    return found._replace(reasons=[*found.reasons, *narrow_arithmetic(seen.programs, found.name)])


class _Case(NamedTuple):
    problem: Problem
    space: PyTree
    hparams: HParams
    horizon: int
    memory: int
    seed: int


def _drawn(problem: Problem, space: PyTree, horizon: int, memory: int) -> Recommendation:
    """Choose between separate weights for each draw and shared ones."""
    policy = factorized(space)
    phi = policy.init(jax.random.key(0))
    dims = tree.named(space)
    drawn = [name for name, dim in dims.items() if spaces.is_discrete(dim)]
    reasons = [f"{spoken_names(drawn)} can only be drawn: a policy over it has the hypergradient"]
    own = own_leaves(problem, policy.mode(phi))
    if own or len(drawn) == len(dims):
        reasons.append(
            f"{spoken_names(own)} acts through the optimizer or the initial weights, so that draws cannot "
            "share them"
            if own
            else "no leaf is real: every draw trains by itself, and values alone decide"
        )
        counts = (8, 4, 2)
        ladder = [
            ("score", f"num_samples={n}", estimators.score(problem, horizon, policy, num_samples=n))
            for n in counts
        ]
        remarks = ["unbiased"] * len(counts)
    else:
        reasons.append(
            "what is drawn acts through the loss and the objective alone, so that all draws can share weights, "
            "and real leaves have a pathwise gradient through them"
        )
        num = math.prod(dim.num_levels for dim in dims.values() if spaces.is_discrete(dim))
        taken = {f"sampled({n})": sampled(n) for n in (8, 4, 2)}
        remarks = [
            f"of {num} combinations {n} are drawn a step; the response is biased by O(1/{n}), that of "
            "score_shared is not"
            for n in (8, 4, 2)
        ]
        if num <= MAX_ENUMERATED:
            taken = {"enumerated()": enumerated(), **taken}
            remarks.insert(0, f"{num} combinations are few enough to take all of them, exactly")
        ladder = [
            ("mixed", f"draws={text}", estimators.mixed(problem, horizon, policy, draws=draws))
            for text, draws in taken.items()
        ]
    num_bytes = 0
    for (name, argument, estimator), remark in zip(ladder, remarks, strict=True):
        num_bytes = estimate_bytes(estimator, phi)
        if num_bytes <= memory:
            reasons += [
                remark,
                f"its temporaries take {spoken_size(num_bytes)} of {spoken_size(memory)}",
            ]
            call = f"{name}(problem, {horizon}, policies.factorized(space), {argument})"
            return Recommendation(name, estimator, call, reasons)
    raise ValueError(
        f"memory is {memory} bytes, expected at least {num_bytes} for two draws; raise it, or shorten "
        "the horizon"
    )


def _real(case: _Case, lost: list[str]) -> Recommendation:
    """Choose among the estimators of real hyperparameters, some of them `lost` by a draw."""
    problem, hparams, horizon = case.problem, case.hparams, case.horizon
    count = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(hparams))
    zeros = structural_zeros(problem, hparams, horizon)
    zeros = [name for name in zeros if f"hparams[{name!r}]" not in lost]
    reasons = []
    if zeros:
        reasons.append(
            f"{spoken_names(zeros)} has a hypergradient of zero by structure (a sign, a rounding, an integer); "
            "search it"
        )
    if len(zeros) == len(jax.tree.leaves(hparams)):
        return _pes(case, [*reasons, "values alone say what it does"])
    rest, growth = _measure(case)

    if growth > CHAOTIC_GROWTH and horizon * math.log(growth) > math.log(EXPLODED):
        reasons.append(
            f"the adjoint grows by {growth:.2f} a step over {min(horizon, SHORT)} steps: gradients through all "
            f"{horizon} explode"
        )
        return _pes(case, reasons)
    reasons.append(f"the adjoint grows by {growth:.3f} a step: gradients through the run are sound")
    if lost:
        return _evolved(case, lost, reasons)

    estimator = _at_rest(case, rest, reasons)
    if estimator is not None:
        return Recommendation("implicit", estimator, f"implicit(problem, {horizon})", reasons)
    if count <= FEW:
        reasons.append(
            f"{count} hyperparameter{'s' * (count > 1)}: forward mode is cheapest, in constant memory"
        )
        estimator = estimators.forward(problem, horizon)
        return Recommendation("forward", estimator, f"forward(problem, {horizon})", reasons)
    reasons.append(f"{count} hyperparameters: reverse mode costs the same for any number")
    return _within(case, count, reasons)


def _evolved(case: _Case, lost: list[str], reasons: list[str]) -> Recommendation:
    """Move the leaves whose derivative a draw loses, and differentiate the rest."""
    problem, space, hparams, horizon, memory, _ = case
    reasons.append(
        f"a random draw depends on {', '.join(lost)}, and only part of its derivative is seen: runs at moved "
        "values see all of it"
    )
    names = [name for name in tree.leaf_names(hparams) if f"hparams[{name!r}]" in lost]
    dims = {name: tree.named(space)[name] for name in names}
    estimator = estimators.evolved(problem, horizon, names, lambda p, n: ES.make(p, n, dims))
    if len(names) < len(jax.tree.leaves(hparams)) and estimate_bytes(estimator, hparams) <= memory:
        call = f"evolved(problem, {horizon}, {names}, evolve)"
        reasons.append(
            "the rest is differentiated through the run; evolve is es over the space of these leaves"
        )
        return Recommendation("evolved", estimator, call, reasons)
    return Recommendation(
        "es", ES.make(problem, horizon, space), f"es(problem, {horizon}, space=space)", reasons
    )


def _measure(case: _Case) -> tuple[float, float]:
    """Train once; return ‖∇_w L‖ at the end over that at the start, and the adjoint's growth a step."""
    problem, _, hparams, horizon, _, seed = case
    key = jax.random.key(seed)

    def train(choose: BatchOf, key: Key, hparams: HParams) -> tuple[Array, Array, Array]:
        start = init_state(problem, key, hparams)
        final, losses = unroll_losses(problem, hparams, start, horizon)

        def slope(state: TrainState) -> Array:
            loss = inner_loss(problem, state.params, choose(problem, state))
            return tree.norm(jax.grad(loss)(trained(state.params), hparams))

        value = problem.objective(final.params, hparams, problem.valid_batch(split_key(key)[1]))
        return slope(start), slope(final), first_nonfinite(losses, value)

    def compiled(choose: BatchOf) -> Any:
        return jax.jit(partial(train, choose)).lower(key, hparams).compile()

    program = compiled(default_batch(problem))
    if temporary_bytes(program) > case.memory:  # the whole train_set at once
        program = compiled(next_batch)
    first, last, bad = (float(x) for x in program(key, hparams))
    if bad >= 0:
        raise ValueError(
            f"training at the defaults of the space is not finite from step {int(bad)} on, expected a finite "
            "run; move the defaults, e.g. to a lower learning rate"
        )
    short = min(horizon, SHORT)
    estimate = jax.jit(estimators.reverse(problem, short).estimate)
    growth = float(estimate(key, (), hparams)[1].info.growth)
    return last / first if first > 0 else 1.0, growth if math.isfinite(growth) else math.inf


def _at_rest(case: _Case, rest: float, reasons: list[str]) -> Estimator | None:
    """Return the implicit estimator where it applies; say why, or why not."""
    problem, _, hparams, horizon, memory, seed = case
    percent = (
        f"the gradient of training falls to {100 * rest:.2g} % of its first norm in {horizon} steps"
    )
    if rest > REST:
        reasons.append(
            f"{percent}: training does not come to rest, the response is that of its steps"
        )
        return None
    try:
        check_implicit(problem, hparams, horizon, default_batch(problem))
    except ValueError as error:
        reasons.append(f"training comes to rest, but {str(error).split(', expected')[0]}")
        return None
    others = zip(tree.leaf_names(hparams), past_the_loss(problem, hparams, horizon), strict=True)
    both = [name for name, reads in others if reads]
    if both:
        reasons.append(
            f"training comes to rest, but {spoken_names(both)} acts through problem.optimizer or problem.init "
            "too, which implicit leaves out; split it where its entries do one or the other"
        )
        return None
    key, estimator = jax.random.key(seed), estimators.implicit(problem, horizon)
    state = estimator.init(key, hparams)
    compiled = jax.jit(estimator.estimate).lower(key, state, hparams).compile()
    num_bytes = temporary_bytes(compiled)
    if num_bytes > memory:
        reasons.append(f"training comes to rest, but implicit takes {spoken_size(num_bytes)}")
        return None
    said = estimators.advice(compiled(key, state, hparams)[1])
    if said:
        reasons.append(f"training comes to rest, but {said[0].split('; ')[0]}")
        return None
    reasons.append(
        f"{percent}, and every leaf acts on it through the loss alone: one linear solve is enough"
    )
    return estimator


def _within(case: _Case, count: int, reasons: list[str]) -> Recommendation:
    """Choose among the passes over the whole run by memory."""
    problem, _, hparams, horizon, memory, _ = case
    chosen, refusal = None, ""
    try:
        chosen = estimators.plan(problem, hparams, horizon, memory)
    except ValueError as error:
        refusal = str(error)
    if chosen is not None and chosen.checkpoint == ():
        reasons.append(
            f"every state fits, in {spoken_size(chosen.num_bytes)} of {spoken_size(memory)}: "
            f"{spoken_pass(horizon, ())}; to save memory, {spoken_pass(horizon, sqrt_checkpoint(horizon))}"
        )
        return _reverse(case, chosen, reasons)
    reasons.append(f"to keep every state takes more than {spoken_size(memory)}")
    undone = _undone(case, reasons)
    if undone is not None:
        return undone
    if chosen is not None:
        reasons.append(
            f"segments that are trained again fit, in {spoken_size(chosen.num_bytes)}: "
            + spoken_pass(horizon, chosen.checkpoint)
        )
        return _reverse(case, chosen, reasons)
    reasons.append(f"segments take more than that, too; you may {ELSEWHERE}")
    if count <= 8 * FEW:
        estimator = estimators.forward(problem, horizon, chunk=1)
        if estimate_bytes(estimator, hparams) <= memory:
            reasons.append("forward mode, one hyperparameter at a time, fits, and is slow")
            call = f"forward(problem, {horizon}, chunk=1)"
            return Recommendation("forward", estimator, call, reasons)
    window = horizon // 2
    while window >= 1:
        estimator = estimators.truncated(problem, horizon, window)
        if estimate_bytes(estimator, hparams) <= memory:
            reasons.append(f"the last {window} steps fit; what came before is left out")
            call = f"truncated(problem, {horizon}, {window})"
            return Recommendation("truncated", estimator, call, reasons)
        window //= 4
    raise ValueError(refusal)


def _reverse(case: _Case, chosen: Plan, reasons: list[str]) -> Recommendation:
    estimator = estimators.reverse(case.problem, case.horizon, backward=chosen.backward)
    call = f"reverse(problem, {case.horizon}, backward=mixed_mode({chosen.checkpoint}))"
    return Recommendation("reverse", estimator, call, reasons)


def _undone(case: _Case, reasons: list[str]) -> Recommendation | None:
    """Return `drift` or `reversible` where the optimizer is SGD with momentum and they fit."""
    problem, _, hparams, horizon, memory, seed = case
    start = init_state(problem, jax.random.key(seed), hparams)
    try:
        recursion = Recursion(problem, hparams, start, horizon)
        course, first, _ = recursion.course(hparams, horizon)
    except ValueError as error:
        reasons.append(f"steps cannot be undone: {str(error).split(', expected')[0]}")
        return None
    momenta = (course.coefficients or first).momenta
    lowest = float(np.min(momenta))
    builders = []
    if 0.8 <= lowest < 1:
        builders.append(("drift", estimators.drift, 0.8, "in floating point"))
    if 0.25 < lowest < 1:
        floor = round(max(0.25, min(0.8, 0.9 * lowest)), 2)
        builders.append(("reversible", estimators.reversible, floor, "exactly, in integers"))
    for name, factory, floor, how in builders:
        try:
            estimator = factory(problem, horizon, min_momentum=floor)
            num_bytes = estimate_bytes(estimator, hparams)
        except ValueError as error:
            reasons.append(f"{name} does not apply: {str(error).split(', expected')[0]}")
            continue
        if num_bytes <= memory:
            reasons.append(
                f"SGD with momentum of at least {lowest:.2f} can be undone {how}: {spoken_size(num_bytes)}"
            )
            call = f"{name}(problem, {horizon}, min_momentum={floor})"
            return Recommendation(name, estimator, call, reasons)
        reasons.append(f"{name} takes {spoken_size(num_bytes)}")
    if not builders:
        reasons.append(f"a momentum of {lowest:.2f} is too small to undo steps")
    return None


def _pes(case: _Case, reasons: list[str]) -> Recommendation:
    """Build `pes` as the command line does."""
    estimator = PES.make(case.problem, case.horizon, case.space)
    call = f"pes(problem, {case.horizon}, {quarter(case.horizon)}, space=space)"
    return Recommendation("pes", estimator, call, reasons)
