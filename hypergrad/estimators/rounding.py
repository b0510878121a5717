"""A rounding certificate for any estimator: how far wider numbers, or a last bit, move its hypergradient."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from hypergrad.core import tree
from hypergrad.core.checks import check_function, check_whole
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree
from hypergrad.core.widen import cast_wide, in_widest, narrowest, widest
from hypergrad.estimators.advice import advice
from hypergrad.estimators.base import Estimate, Estimator, Through
from hypergrad.estimators.unrolled.base import by_unrolling
from hypergrad.problem import Problem, check_problem
from hypergrad.train import carried, trained, with_parts

MAX_ROUNDED = 0.05
"""Error of a leaf of the hypergradient, relative to its size, above which `advice` names it."""


class RoundingInfo(NamedTuple):
    """Diagnostics of a hypergradient with its rounding certificate.

    Attributes:
        direct: As in the info of `through`, a pytree like `hparams`.
        response: Likewise; hypergrad = direct + response.
        horizon: Likewise.
        growth: Likewise.
        first_nonfinite: Likewise.
        rounding: Difference ‖g' − g‖ / ‖g'‖ of each leaf of the hypergradient g from that of the second pass,
            a pytree like `hparams` of float32 `[]`; 0 where both are zero.
        eps: Spacing of the numbers near 1 in the coarsest arithmetic of loss and objective, float32 `[]`.
        through: Info of `through`.
    """

    direct: HParams
    response: HParams
    horizon: Array
    growth: Array
    first_nonfinite: Array
    rounding: PyTree
    eps: Array
    through: Any

    def advice(self, estimate: Estimate) -> list[str]:
        """Say what is wrong with the estimate, and which leaves are lost in rounding."""
        said = advice(estimate._replace(info=self.through))
        if self.first_nonfinite >= 0:
            return said
        kinds = (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)
        names = [jnp.dtype(kind).name for kind in kinds if jnp.finfo(kind).eps == self.eps]
        arithmetic = names[0] if names else f"numbers {self.eps:.0e} apart"
        return said + [
            f"rounding moves the hypergradient of hparams[{name!r}] by {error:.0%} of its size (arithmetic in "
            f"{arithmetic}): train in wider numbers, shorten the horizon, or trust no digits beyond that"
            for name, error in tree.named(self.rounding).items()
            if not error <= MAX_ROUNDED
        ]


def rounding(problem: Problem, horizon: int, *, through: Through | None = None) -> Estimator:
    """Estimate once more in wider numbers, and report how far that moves the hypergradient.

    g' is the hypergradient of the same run in the widest floating point there is: float32, or float64 with
    `JAX_ENABLE_X64`. Initial weights, batches and hparams are the same numbers; loss and objective are traced
    as they are, and each operation of their programs is done on wide numbers, the casts of mixed precision
    included. So ‖g' − g‖ / ‖g'‖ is the error of g. Where the run is in the widest numbers already, g'
    reads all weights as w (1 + ε ξ/2) with one uniform ξ in [-1, 1] a weight, a change of the last
    bit, and the difference is of the size of the error.

    **Cost:** one more estimate, in time and in compilation, in wider numbers.

    **Limits:** the error of g' itself is not seen, nor that of initial weights, data and hparams, which count
    as exact. In the widest numbers the certificate is one draw of what the loss and the objective lose: within
    a factor of about 2 on a leaf of many numbers, on a single number by chance ten times too small. What the
    optimizer loses there is not seen: Adam's 1 − b2 has four digits in float32, which moves the hypergradient
    by 1e-5 to 1e-3; turn float64 on to see it. An optimizer that rounds by itself (`mu_dtype`) does so in both
    passes. `drift` and
    `reversible` have errors of their own, which this shows as far as they differ between widths. For `es`,
    `pes` and `nres` both passes make the same moves; for `implicit` the linear system is solved in both; an
    estimate that continues training (`rtho`, `one_step`, ...) continues both runs.

    Args:
        problem: Training loop.
        horizon: Number of inner steps.
        through: (problem, horizon) -> the estimator to certify; as `reverse` where None.

    Returns:
        An estimator whose hypergradient is that of `through`, and whose state is one for each pass; `info` is a
        `RoundingInfo`.

    Raises:
        ValueError: for a horizon below 1.

    Reference:
        Vignes, 1993, "A stochastic arithmetic for reliable scientific computation", for the last bit.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    make = by_unrolling if through is None else through
    check_function("through", make, "hypergrad.estimators.reverse", "problem, horizon")
    estimator = make(problem, horizon)

    def init(key: Key, hparams: HParams) -> tuple[PyTree, PyTree]:
        second = make(moved_in_wide(problem, hparams), horizon)
        return estimator.init(key, hparams), second.init(key, cast_wide(hparams))

    def estimate(
        key: Key, state: tuple[PyTree, PyTree], hparams: HParams
    ) -> tuple[tuple[PyTree, PyTree], Estimate]:
        first, found = estimator.estimate(key, state[0], hparams)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first pass has given them
            second = make(moved_in_wide(problem, hparams), horizon)
            wide, other = second.estimate(key, state[1], cast_wide(hparams))
        info = found.info
        certified = RoundingInfo(
            direct=info.direct,
            response=info.response,
            horizon=info.horizon,
            growth=info.growth,
            first_nonfinite=info.first_nonfinite,
            rounding=jax.tree.map(relative_gap, found.hypergrad, other.hypergrad),
            eps=coarsest_eps(problem, hparams),
            through=info,
        )
        return (first, wide), found._replace(info=certified)

    return Estimator(init, estimate)


def narrow_arithmetic(programs: Mapping[str, ClosedJaxpr], name: str) -> list[str]:
    """Say that the estimator of a name should be certified, where loss or objective compute in sixteen bits."""
    dtypes = [narrowest(programs[part]) for part in ("loss", "objective")]
    narrow = {jnp.dtype(d).name for d in dtypes if d is not None and jnp.finfo(d).bits <= 16}
    return [
        f"training computes in {kind}: estimators.rounding(problem, horizon, through=...) around {name} says "
        "how much of each leaf rounding took"
        for kind in sorted(narrow)
    ]


def relative_gap(found: Array, wide: Array) -> Array:
    """Return ‖g' − g‖ / ‖g'‖, float32 `[]`."""
    gap, size = tree.norm(wide - found.astype(wide.dtype)), tree.norm(wide)
    return jnp.where(gap == 0, 0, gap / size).astype(jnp.float32)


class _Shapes(NamedTuple):
    """Shapes and dtypes of what a problem's functions take."""

    params: Params
    train: Batch
    valid: Batch


def _shapes(problem: Problem, hparams: HParams) -> _Shapes:
    key, step = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), jnp.int32)
    return _Shapes(
        jax.eval_shape(problem.init, key, hparams),
        jax.eval_shape(problem.train_batch, key, step),
        jax.eval_shape(problem.valid_batch, key),
    )


def coarsest_eps(problem: Problem, hparams: HParams) -> Array:
    """Return the spacing near 1 of the coarsest dtype in which loss and objective compute, float32 `[]`."""
    shapes = _shapes(problem, hparams)

    def both(params: Params, hparams: HParams, train: Batch, valid: Batch) -> tuple:
        return problem.loss(params, hparams, train), problem.objective(params, hparams, valid)

    program = jax.make_jaxpr(both)(shapes.params, hparams, shapes.train, shapes.valid)
    return jnp.asarray(jnp.finfo(narrowest(program) or widest()).eps, jnp.float32)


def moved_in_wide(problem: Problem, hparams: HParams) -> Problem:
    """Return the problem of the second pass of `rounding`: in the widest numbers, with another last bit."""
    return _moved(_in_wide(problem, hparams))


def _in_wide(problem: Problem, hparams: HParams) -> Problem:
    """Let a problem compute in the widest numbers, on the numbers that it starts from."""
    shapes = _shapes(problem, hparams)

    def like(own: PyTree, wide: PyTree) -> PyTree:
        pairs = (jax.tree.leaves(own), jax.tree.leaves(wide))
        kinds = [
            jax.ShapeDtypeStruct(jnp.shape(w), jnp.result_type(x))
            for x, w in zip(*pairs, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(wide), kinds)

    def loss(params: Params, h: HParams, batch: Batch) -> Any:
        own = like(shapes.params, params), like(hparams, h), like(shapes.train, batch)
        return in_widest(problem.loss, own, (params, h, batch))

    def objective(params: Params, h: HParams, batch: Batch) -> Array:
        own = like(shapes.params, params), like(hparams, h), like(shapes.valid, batch)
        return in_widest(problem.objective, own, (params, h, batch))

    def init(key: Key, h: HParams) -> Params:
        return cast_wide(problem.init(key, tree.cast_like(h, hparams)))

    examples = problem.train_set
    return problem._replace(
        init=init,
        loss=loss,
        objective=objective,
        train_batch=lambda key, step: cast_wide(problem.train_batch(key, step)),
        valid_batch=lambda key: cast_wide(problem.valid_batch(key)),
        train_set=examples and examples._replace(at=lambda index: cast_wide(examples.at(index))),
    )


def _moved(problem: Problem) -> Problem:
    """Let loss and objective read the weights with another last bit, and the derivative of the weights."""

    def read(params: Params) -> Params:
        leaves, treedef = jax.tree.flatten(trained(params))
        keys = jax.random.split(jax.random.key(0), len(leaves))
        moved = []
        for key, w in zip(keys, leaves, strict=True):
            xi = jax.random.uniform(key, w.shape, w.dtype, -1, 1)
            moved.append(w + jax.lax.stop_gradient(w * xi) * (jnp.finfo(w.dtype).eps / 2))
        return with_parts(params, jax.tree.unflatten(treedef, moved), carried(params))

    def loss(params: Params, hparams: HParams, batch: Batch) -> Any:
        return problem.loss(read(params), hparams, batch)

    def objective(params: Params, hparams: HParams, batch: Batch) -> Array:
        return problem.objective(read(params), hparams, batch)

    return problem._replace(loss=loss, objective=objective)
