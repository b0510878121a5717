"""Primitives that may be singular, each with a twin of the same values whose derivative is finite.

The twin of sqrt, cbrt, rsqrt, div, pow or mul bears its name, computes its bits and lowers as it does. Its
derivative is Σ_i s_i(x) ẋ_i, where the slope s_i is the partial derivative ∂f/∂x_i, or 0 where that is not
finite. A slope is a primitive of its own, so that a derivative has no more equations than that of the
original; what it computes is traced once for each shape and dtype when it is lowered.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Primitive
from jax.extend.core.primitives import cbrt_p, div_p, mul_p, pow_p, rsqrt_p, sqrt_p
from jax.interpreters import ad, batching, mlir

from hypergrad.core.types import Array

PARTIALS: dict[Any, tuple[Callable[..., Any], ...]] = {
    sqrt_p: (lambda x: 0.5 / jnp.sqrt(x),),
    cbrt_p: (lambda x: 1 / (3 * jnp.square(jnp.cbrt(x))),),
    rsqrt_p: (lambda x: -0.5 * jax.lax.rsqrt(x) / x,),
    div_p: (lambda x, y: 1 / y, lambda x, y: -(x / y) / y),
    pow_p: (lambda x, y: y * x ** (y - 1), lambda x, y: jnp.log(x) * x**y),
    mul_p: (),
}
"""Partial derivatives of the tamed primitives; those of a product are its factors, with `times_p`."""


def can_be_singular(eqn: JaxprEqn) -> bool:
    """Tell whether a real equation has a twin and a partial derivative that may not be finite."""
    aval: Any = eqn.outvars[0].aval if eqn.outvars else None
    if eqn.primitive not in PARTIALS or not jnp.issubdtype(aval.dtype, jnp.floating):
        return False
    literals = [float(v.val) for v in eqn.invars if isinstance(v, Literal) and not np.shape(v.val)]
    if eqn.primitive is mul_p:
        return not any(map(math.isfinite, literals))
    last = eqn.invars[-1]
    if not isinstance(last, Literal) or np.shape(last.val):
        return True
    number = float(last.val)
    if eqn.primitive is div_p:
        return number == 0
    return eqn.primitive is not pow_p or number < 1 or not number.is_integer()


def twin(eqn: JaxprEqn) -> JaxprEqn:
    """Return an equation with the twin of its primitive."""
    return eqn.replace(primitive=TWINS[eqn.primitive])


def _elementwise(name: str, original: Any, compute: Callable[..., Array]) -> Primitive:
    """Make a primitive of operands of one shape, or of none, whose results have the types of `original`'s."""
    made = Primitive(name)

    def batch(xs: Any, axes: Any, **params: Any) -> tuple[Array, int]:
        size = next(x.shape[a] for x, a in zip(xs, axes, strict=True) if a is not None)
        rank = max(np.ndim(x) - (a is not None) for x, a in zip(xs, axes, strict=True))
        moved = []
        for x, axis in zip(xs, axes, strict=True):
            if axis is None and np.ndim(x):
                x = jnp.broadcast_to(x, (size, *x.shape))
            elif axis is not None:
                x = jnp.moveaxis(x, axis, 0)
                x = x if x.ndim > 1 else x.reshape(size, *(1,) * rank)
            moved.append(x)
        shape = jnp.broadcast_shapes(*map(np.shape, moved))
        # a number of a program stays as it is
        moved = [x if np.ndim(x) == 0 else jnp.broadcast_to(x, shape) for x in moved]
        return made.bind(*moved, **params), 0

    made.def_impl(compute)
    made.def_abstract_eval(lambda *xs, **params: original.abstract_eval(*xs, **params)[0])
    batching.primitive_batchers[made] = batch
    mlir.register_lowering(made, mlir.lower_fun(compute, multiple_results=False))
    return made


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0)


times_p = _elementwise("times", mul_p, lambda slope, dot: _finite(slope) * dot)
"""(s, ẋ) -> s ẋ, or 0 where s is not finite: linear in ẋ."""


def _times_jvp(xs: Any, dots: Any) -> tuple[Array, Array]:
    (slope, x), (slope_dot, dot) = xs, dots
    parts = []
    if not isinstance(dot, ad.Zero):
        parts.append(times_p.bind(slope, dot))
    if not isinstance(slope_dot, ad.Zero):
        moving = jnp.where(jnp.isfinite(slope), slope_dot, 0)
        parts.append(jax.lax.mul(moving, x))
    return times_p.bind(slope, x), ad.add_jaxvals(*parts) if len(parts) == 2 else parts[0]


def _times_transpose(cotangent: Any, slope: Any, x: Any) -> list[Any]:
    return [None, cotangent if isinstance(cotangent, ad.Zero) else times_p.bind(slope, cotangent)]


ad.primitive_jvps[times_p] = _times_jvp
ad.primitive_transposes[times_p] = _times_transpose


def _slope(original: Any, index: int, partial: Callable[..., Array]) -> Primitive:
    """Make the primitive of a partial derivative, whose own derivative is 0 where it is not finite."""

    def like(value: Array, xs: tuple[Any, ...], params: dict) -> Array:
        aval = original.abstract_eval(*map(jax.typeof, xs), **params)[0]
        return jnp.broadcast_to(value, aval.shape).astype(aval.dtype)

    def compute(*xs: Array, **params: Any) -> Array:
        return like(_finite(partial(*xs)), xs, params)

    def safe(*xs: Any) -> Array:
        finite = jnp.isfinite(partial(*xs))
        # evaluated at 1 where singular, so that second derivatives are finite, too
        return jnp.where(finite, partial(*(jnp.where(finite, x, jnp.ones_like(x)) for x in xs)), 0)

    def jvp(xs: Any, dots: Any, **params: Any) -> tuple[Array, Any]:
        moving = [i for i, dot in enumerate(dots) if not isinstance(dot, ad.Zero)]

        def along(*moved: Array) -> Array:
            at = dict(zip(moving, moved, strict=True))
            full = tuple(at.get(i, x) for i, x in enumerate(xs))
            return like(safe(*full), full, params)

        return jax.jvp(along, tuple(xs[i] for i in moving), tuple(dots[i] for i in moving))

    made = _elementwise(f"slope_{index}_of_{original.name}", original, compute)
    ad.primitive_jvps[made] = jvp
    return made


def _twin(original: Any, partials: tuple[Callable[..., Array], ...]) -> Primitive:
    """Make the primitive of the values of `original` and of finite slopes."""
    made = _elementwise(original.name, original, original.bind)
    slopes = [_slope(original, i, partial) for i, partial in enumerate(partials)]

    def term(i: int, dot: Array, out: Array, xs: Any, params: dict) -> Array:
        if dot.shape != out.shape:
            dot = jnp.broadcast_to(dot, out.shape)
        if original is mul_p:
            return times_p.bind(xs[1 - i], dot)
        return jax.lax.mul(slopes[i].bind(*xs, **params), dot)

    def jvp(xs: Any, dots: Any, **params: Any) -> tuple[Array, Any]:
        out = made.bind(*xs, **params)
        parts = [
            term(i, dot, out, xs, params)
            for i, dot in enumerate(dots)
            if not isinstance(dot, ad.Zero) and dot.dtype != jax.dtypes.float0
        ]
        total = ad.add_jaxvals(*parts) if len(parts) == 2 else parts[0]
        return out, total

    ad.primitive_jvps[made] = jvp
    return made


TWINS: dict[Any, Primitive] = {p: _twin(p, partials) for p, partials in PARTIALS.items()}
"""The twin of each primitive that may be singular."""
