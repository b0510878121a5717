"""Search spaces: a pytree whose leaves are dimensions, and the maps between its three coordinate systems.

A value of a space (`hparams`) is a pytree of arrays of the same structure. The same value has *unit*
coordinates, a flat vector in [0, 1]^D for samplers, and *unconstrained* ones, a pytree over the whole
real line for gradients.
"""

import math
from collections.abc import Callable, Sequence as Options
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import is_number
from hypergrad.core.types import Array, HParams, PyTree


@dataclass(frozen=True)
class Real:
    """A real number in [low, high], uniform: u = (x − low) / (high − low).

    Attributes:
        low, high: bounds, finite, low < high.
        default: starting value; the middle of the range where None.
        shape: shape of the value, for one number per layer, class or example.
    """

    low: float
    high: float
    default: float | None = None
    shape: tuple[int, ...] = ()

    def __post_init__(self):
        _check_bounds(self)

    @property
    def start(self) -> float:
        """The default, or the middle of the range."""
        return (self.low + self.high) / 2 if self.default is None else self.default

    def lower(self, value: Array) -> Array:
        """Distance from the lower bound as a share of the range; exact near that bound."""
        return (value - self.low) / (self.high - self.low)

    def upper(self, value: Array) -> Array:
        """Distance from the upper bound as a share of the range; exact near that bound."""
        return (self.high - value) / (self.high - self.low)

    def value(self, lower: Array, upper: Array) -> Array:
        """Invert (`lower`, `upper`), from the nearer bound, so that both bounds are met exactly."""
        span = self.high - self.low
        value = jnp.where(lower < upper, self.low + lower * span, self.high - upper * span)
        return jnp.clip(value, self.low, self.high)


@dataclass(frozen=True)
class LogReal:
    """A positive number in [low, high], uniform in its logarithm: u = log(x / low) / log(high / low).

    Attributes:
        low, high: bounds, finite, 0 < low < high.
        default: starting value; the geometric middle where None.
        shape: shape of the value.
    """

    low: float
    high: float
    default: float | None = None
    shape: tuple[int, ...] = ()

    def __post_init__(self):
        if isinstance(self.low, (int, float)) and self.low <= 0:
            raise ValueError(
                f"low is {self.low!r} in LogReal, expected a positive number; "
                "use Real for ranges that reach zero"
            )
        _check_bounds(self)

    @property
    def start(self) -> float:
        """The default, or the geometric middle."""
        return math.sqrt(self.low) * math.sqrt(self.high) if self.default is None else self.default

    def lower(self, value: Array) -> Array:
        """Share of the logarithmic range above the lower bound."""
        return jnp.log(value / self.low) / math.log(self.high / self.low)

    def upper(self, value: Array) -> Array:
        """Share of the logarithmic range below the upper bound."""
        return jnp.log(self.high / value) / math.log(self.high / self.low)

    def value(self, lower: Array, upper: Array) -> Array:
        """Invert (`lower`, `upper`), from the nearer bound."""
        span = math.log(self.high / self.low)
        value = jnp.where(
            lower < upper, self.low * jnp.exp(lower * span), self.high * jnp.exp(-upper * span)
        )
        return jnp.clip(value, self.low, self.high)


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high], both included. It has no hypergradient.

    Attributes:
        low, high: bounds, whole, low < high.
        default: starting value; the middle where None.
        static: true where the number changes shapes; its value is then a Python int, not an array.
    """

    low: int
    high: int
    default: int | None = None
    static: bool = False

    def __post_init__(self):
        for name in ("low", "high", "default"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole and not (name == "default" and value is None):
                raise ValueError(
                    f"{name} is {value!r} in Integer, expected a whole number; use Real for others"
                )
        _check_bounds(self)

    @property
    def start(self) -> int:
        """The default, or the middle."""
        return (self.low + self.high) // 2 if self.default is None else self.default


@dataclass(frozen=True)
class Choice:
    """One of a few options, unordered. It has no hypergradient.

    Attributes:
        options: what to choose from, at least two.
        default: the option to start from; the first where None.
        static: false: the value is the option's index, int32 `[]`; true: the option itself.
    """

    options: Options
    default: Any = None
    static: bool = False

    def __post_init__(self):
        if isinstance(self.options, str) or not isinstance(self.options, Options):
            raise ValueError(
                f"options is {self.options!r} in Choice, expected a list or tuple; pass e.g. ('relu', 'tanh')"
            )
        object.__setattr__(self, "options", tuple(self.options))
        if len(self.options) < 2:
            raise ValueError(
                f"options has {len(self.options)} entries in Choice, expected at least two; "
                "close over a value that is fixed"
            )
        plain = [x for x in self.options if isinstance(x, (str, int, float))]
        if len(set(plain)) < len(plain):
            twice = next(x for x in plain if plain.count(x) > 1)
            raise ValueError(
                f"options has {twice!r} twice in Choice, expected different ones; leave one out"
            )
        if self.default is not None and self.default not in self.options:
            raise ValueError(
                f"default is {self.default!r} in Choice, expected one of {self.options}; pass one of them"
            )

    @property
    def start(self) -> int:
        """Index of the default, or 0."""
        return 0 if self.default is None else self.options.index(self.default)


@dataclass(frozen=True)
class Sequence:
    """A schedule: one value of `element` for each of `length` steps.

    Attributes:
        element: `Real` or `LogReal` for one step's value; its shape comes after the steps'.
        length: number of steps; the value has shape `[length, *element.shape]`.
        knots: None: every step is free. A number: that many evenly spread steps are free and the rest
            interpolated (linearly in unit coordinates, so geometrically for `LogReal`).
        decreasing: true: never rises. Uniform unit coordinates then give sorted uniform values.
    """

    element: Real | LogReal
    length: int
    knots: int | None = None
    decreasing: bool = False

    def __post_init__(self):
        if not isinstance(self.element, (Real, LogReal)):
            raise ValueError(
                f"element is {self.element!r} in Sequence, expected Real or LogReal; "
                "pass e.g. Sequence(LogReal(1e-3, 1.0), length=100)"
            )
        for name, lowest in (("length", 1), ("knots", 2)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= lowest
            if not whole and not (name == "knots" and value is None):
                raise ValueError(
                    f"{name} is {value!r} in Sequence, expected a whole number of at least {lowest}; "
                    f"pass e.g. {name}=10"
                )
        if self.knots is not None and self.knots > self.length:
            raise ValueError(
                f"knots is {self.knots} in Sequence, expected at most length = {self.length}; "
                "leave knots out to free every step"
            )

    @property
    def start(self) -> float:
        """The element's default, at every step."""
        return self.element.start

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return (self.length, *self.element.shape)

    @property
    def free_steps(self) -> np.ndarray:
        """The steps whose values are free, `[num_free]`."""
        num_free = self.length if self.knots is None else self.knots
        return np.round(np.linspace(0, self.length - 1, num_free)).astype(int)

    @property
    def coordinates_shape(self) -> tuple[int, ...]:
        """Shape of the free coordinates."""
        return (len(self.free_steps), *self.element.shape)


Dimension = Real | LogReal | Integer | Choice | Sequence


def is_dimension(leaf: Any) -> bool:
    """Tell whether a leaf of a space is a dimension."""
    return isinstance(leaf, Dimension)


def check_space(space: PyTree) -> None:
    """Raise a `ValueError` naming the first leaf of `space` that is no dimension."""
    leaves = jax.tree.leaves(space)
    if not leaves:
        raise ValueError(
            "space has no dimensions, expected at least one; pass e.g. {'lr': LogReal(1e-4, 1.0)}"
        )
    names = tree.leaf_names(space)
    for name, leaf in zip(names, leaves, strict=True):
        if not is_dimension(leaf):
            raise ValueError(
                f"space[{name!r}] is {leaf!r}, expected a dimension (Real, LogReal, Integer, Choice, "
                "Sequence); close over a value that is fixed"
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"space has two dimensions of the name {twice!r}, expected different names; rename one of them"
        )


def check_differentiable(space: PyTree) -> None:
    """Raise a `ValueError` naming the first dimension that has no hypergradient."""
    check_space(space)
    for name, leaf in zip(tree.leaf_names(space), jax.tree.leaves(space), strict=True):
        if isinstance(leaf, (Integer, Choice)):
            raise ValueError(
                f"space[{name!r}] is {type(leaf).__name__}, expected a real dimension, because only those "
                "have a hypergradient; fix its value in the problem, or search it with method 'random'"
            )


def check_traceable(space: PyTree) -> None:
    """Raise a `ValueError` naming the first static dimension: its values cannot share one program."""
    check_space(space)
    for name, leaf in zip(tree.leaf_names(space), jax.tree.leaves(space), strict=True):
        if getattr(leaf, "static", False):
            raise ValueError(
                f"space[{name!r}] is static, expected a dimension whose values share one compiled "
                "program; fix its value in the problem, or search it with tune(method='random')"
            )


def dynamic(space: PyTree) -> PyTree:
    """Return the space with every static dimension traced: what a searcher of static ones is given."""
    check_space(space)

    def leaf(dim):
        return replace(dim, static=False) if getattr(dim, "static", False) else dim

    return jax.tree.map(leaf, space)


def static_value(dim: Integer | Choice, value: int) -> Any:
    """Return the value that a static dimension has where the dynamic one has `value`."""
    return int(value) if isinstance(dim, Integer) else dim.options[int(value)]


def check_value(space: PyTree, hparams: HParams) -> None:
    """Raise a `ValueError` unless concrete `hparams` have the structure, shapes and bounds of `space`."""
    check_space(space)
    _check_shapes("hparams", space, hparams, _value_shape)
    leaves = zip(jax.tree.leaves(space), jax.tree.leaves(hparams), strict=True)
    for name, (dim, value) in zip(tree.leaf_names(space), leaves, strict=True):
        _check_leaf(name, dim, value)


def _check_leaf(name: str, dim: Dimension, value: Any) -> None:
    if isinstance(dim, Choice) and dim.static:
        if value not in dim.options:
            raise ValueError(
                f"hparams[{name!r}] is {value!r}, expected one of {dim.options}; pass one of them"
            )
        return
    array = np.asarray(value, np.float64)
    if isinstance(dim, (Choice, Integer)) and not np.all(array == np.round(array)):
        raise ValueError(
            f"hparams[{name!r}] holds {array.ravel()[0]:g}, expected whole numbers; round it"
        )
    if isinstance(dim, Choice):
        low, high = 0, len(dim.options) - 1
    else:
        source = dim.element if isinstance(dim, Sequence) else dim
        low, high = source.low, source.high
    # a bound rounded to float32 may lie just outside the float64 one
    slack = 1e-6 * max(abs(low), abs(high))
    if not np.all((array >= low - slack) & (array <= high + slack)):
        worst = array.ravel()[
            np.argmax(np.abs(np.nan_to_num(array, nan=np.inf) - (low + high) / 2))
        ]
        raise ValueError(
            f"hparams[{name!r}] holds {worst:g}, expected values in [{low:g}, {high:g}]; "
            "widen the dimension or move the value inside"
        )


def default(space: PyTree) -> HParams:
    """Return the starting value of every dimension."""
    check_space(space)

    def start(dim):
        if isinstance(dim, Choice):
            return dim.options[dim.start] if dim.static else jnp.asarray(dim.start, jnp.int32)
        if isinstance(dim, Integer):
            return dim.start if dim.static else jnp.asarray(dim.start, jnp.int32)
        return jnp.full(dim.shape, dim.start, jnp.result_type(float))

    return jax.tree.map(start, space)


def _value_shape(dim: Dimension) -> tuple[int, ...]:
    return getattr(dim, "shape", ())


def _check_shapes(name: str, space: PyTree, values: PyTree, shape: Callable) -> None:
    """Raise a `ValueError` unless `values` has the structure of `space` and each leaf its shape."""
    names = tree.leaf_names(space)
    if jax.tree.structure(space) != jax.tree.structure(values):
        raise ValueError(
            f"{name} has the leaves {tree.leaf_names(values)}, expected those of the space, {names}; "
            "start from default(space)"
        )
    leaves = zip(names, jax.tree.leaves(space), jax.tree.leaves(values), strict=True)
    for leaf, dim, value in leaves:
        static = isinstance(dim, Choice) and dim.static
        if not static and np.shape(value) != shape(dim):
            raise ValueError(
                f"{name}[{leaf!r}] has shape {np.shape(value)}, expected {shape(dim)}; "
                "start from default(space)"
            )


def _coordinates_shape(dim: Dimension) -> tuple[int, ...]:
    return getattr(dim, "coordinates_shape", getattr(dim, "shape", ()))


def _check_bounds(dim: Real | LogReal | Integer) -> None:
    name = type(dim).__name__
    for argument in ("low", "high"):
        value = getattr(dim, argument)
        if not is_number(value) or not math.isfinite(value):
            raise ValueError(
                f"{argument} is {value!r} in {name}, expected a finite number; pass one"
            )
    if not dim.low < dim.high:
        raise ValueError(
            f"low = {dim.low!r} and high = {dim.high!r} in {name}, expected low < high; "
            "swap them, or close over a value that is fixed"
        )
    start = dim.default
    if start is not None:
        if not is_number(start):
            raise ValueError(f"default is {start!r} in {name}, expected a number or None; pass one")
        if not dim.low <= start <= dim.high:
            raise ValueError(
                f"default is {start!r} in {name}, expected a value in [{dim.low!r}, {dim.high!r}]; "
                "move it inside"
            )
    shape = getattr(dim, "shape", ())
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"shape is {shape!r} in {name}, expected a tuple of positive sizes; pass e.g. (3,)"
        )
