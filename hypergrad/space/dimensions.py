"""Search spaces: a pytree whose leaves are dimensions, and the maps between its three coordinate systems.

A value of a space (`hparams`) is a pytree of arrays of the same structure. The same value has *unit*
coordinates, a flat vector in [0, 1]^D for samplers, and *unconstrained* ones, a pytree over the whole
real line for gradients.
"""

import math
from collections.abc import Sequence as Options
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import describe, is_number
from hypergrad.core.types import Array, HParams, PyTree


@dataclass(frozen=True)
class _Interval:
    low: float
    high: float
    default: float | None = None
    shape: tuple[int, ...] = ()
    static: ClassVar[bool] = False

    def __post_init__(self):
        _check_bounds(self)

    @property
    def coordinates_shape(self) -> tuple[int, ...]:
        """Shape of the free coordinates."""
        return self.shape


@dataclass(frozen=True)
class Real(_Interval):
    """A real number in [low, high], uniform: u = (x − low) / (high − low).

    Attributes:
        low, high: bounds, finite, low < high.
        default: starting value; the middle of the range where None.
        shape: shape of the value, for one number per layer, class or example.
    """

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
class LogReal(_Interval):
    """A positive number in [low, high], uniform in its logarithm: u = log(x / low) / log(high / low).

    Attributes:
        low, high: bounds, finite, 0 < low < high.
        default: starting value; the geometric middle where None.
        shape: shape of the value.
    """

    def __post_init__(self):
        super().__post_init__()
        _check(self, "low", self.low > 0, "a positive number; use Real for ranges that reach zero")

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
    shape: ClassVar[tuple[int, ...]] = ()
    coordinates_shape: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        _check_bounds(self, "a whole number; use Real for others", int)

    @property
    def num_levels(self) -> int:
        """Number of values."""
        return self.high - self.low + 1

    def named(self, number: int) -> int:
        """Return a number as the problem sees it where the dimension is static."""
        return int(number)

    @property
    def start(self) -> int:
        """The default, or the middle."""
        return (self.low + self.high) // 2 if self.default is None else self.default


@dataclass(frozen=True)
class Choice:
    """One of a few options, unordered. It has no hypergradient.

    Attributes:
        options: values to choose from, at least two.
        default: the option to start from; the first where None.
        static: false: the value is the option's index, int32 `[]`; true: the option itself.
    """

    options: Options
    default: Any = None
    static: bool = False
    shape: ClassVar[tuple[int, ...]] = ()
    coordinates_shape: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        listed = isinstance(self.options, Options) and not isinstance(self.options, str)
        _check(self, "options", listed, "a list or tuple; pass e.g. ('relu', 'tanh')")
        object.__setattr__(self, "options", tuple(self.options))
        enough = "at least two; close over a value that is fixed"
        _check(self, "options", len(self.options) > 1, enough)
        plain = [x for x in self.options if isinstance(x, (str, int, float))]
        once = len(set(plain)) == len(plain)
        _check(self, "options", once, "different ones; leave out the one that is there twice")
        known = self.default is None or self.default in self.options
        _check(self, "default", known, f"one of {self.options}; pass one of them")

    @property
    def low(self) -> int:
        """Index of the first option."""
        return 0

    @property
    def high(self) -> int:
        """Index of the last option."""
        return len(self.options) - 1

    @property
    def num_levels(self) -> int:
        """Number of options."""
        return len(self.options)

    def named(self, number: int) -> Any:
        """Return the option with this index, as the problem sees it where the dimension is static."""
        return self.options[int(number)]

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
    static: ClassVar[bool] = False

    def __post_init__(self):
        real = "Real or LogReal; pass e.g. Sequence(LogReal(1e-3, 1.0), length=100)"
        _check(self, "element", isinstance(self.element, (Real, LogReal)), real)
        least = "a whole number of at least {}; pass e.g. 10"
        _check(self, "length", type(self.length) is int and self.length >= 1, least.format(1))
        if self.knots is not None:
            _check(self, "knots", type(self.knots) is int and self.knots >= 2, least.format(2))
            most = f"at most length = {self.length}; leave knots out to free every step"
            _check(self, "knots", self.knots <= self.length, most)

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


Discrete = Integer | Choice

Dimension = Real | LogReal | Discrete | Sequence


def is_dimension(leaf: Any) -> bool:
    """Tell whether a leaf of a space is a dimension."""
    return isinstance(leaf, Dimension)


def check_space(space: PyTree, *, real: bool = False, traceable: bool = False) -> None:
    """Raise a `ValueError` that names the first leaf of `space` that is not a dimension.

    Args:
        space: Space that the user passed.
        real: Whether every dimension must have a hypergradient.
        traceable: Whether the values of every dimension must share one compiled program.
    """
    names, leaves = tree.leaf_names(space), jax.tree.leaves(space)
    if not leaves:
        raise ValueError(
            "space has no dimensions, expected at least one; pass e.g. {'lr': LogReal(1e-4, 1.0)}"
        )
    for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if not is_dimension(leaf):
            wrong = f"is {describe(leaf)}, expected a dimension (Real, LogReal, Integer, Choice, Sequence); "
            wrong += "close over a value that is fixed"
        elif name in names[:i]:
            wrong = "is there twice, expected different names; rename one of them"
        elif real and isinstance(leaf, Discrete):
            wrong = (
                f"is {type(leaf).__name__}, expected a real dimension, because only those have a "
            )
            wrong += (
                "hypergradient; fix its value in the problem, or search it with method 'random'"
            )
        elif traceable and leaf.static:
            wrong = "is static, expected a dimension whose values share one compiled program; fix its value in "
            wrong += "the problem, or search it with tune(method='random')"
        else:
            continue
        raise ValueError(f"space[{name!r}] {wrong}")


def dynamic(space: PyTree) -> PyTree:
    """Return the space with every static dimension traced, as searchers see it."""
    return jax.tree.map(lambda dim: replace(dim, static=False) if dim.static else dim, space)


def paired(
    space: PyTree, values: PyTree, called: str = "hparams"
) -> list[tuple[str, Dimension, Any]]:
    """Pair each dimension with its value: (name, dimension, value) in the order of the leaves.

    Raises:
        ValueError: unless `values` has the structure of `space`.
    """
    names = tree.leaf_names(space)
    if jax.tree.structure(space) != jax.tree.structure(values):
        raise ValueError(
            f"{called} has the leaves {tree.leaf_names(values)}, expected those of the space, {names}; "
            "start from default(space)"
        )
    return list(zip(names, jax.tree.leaves(space), jax.tree.leaves(values), strict=True))


def check_value(space: PyTree, hparams: HParams) -> None:
    """Raise a `ValueError` unless concrete `hparams` have the structure, shapes and bounds of `space`."""
    for name, dim, value in paired(space, hparams):
        wrong = _misfit(dim, value)
        if wrong:
            raise ValueError(f"hparams[{name!r}] {wrong}; start from default(space)")


def _misfit(dim: Dimension, value: Any) -> str:
    """Say why a value is not one of a dimension; nothing where it is."""
    if isinstance(dim, Choice) and dim.static:
        return "" if value in dim.options else f"is {value!r}, expected one of {dim.options}"
    if np.shape(value) != dim.shape:
        return f"has shape {np.shape(value)}, expected {dim.shape}"
    array = np.asarray(value, np.float64)
    if isinstance(dim, Discrete) and not np.all(array == np.round(array)):
        return f"holds {array.ravel()[0]:g}, expected whole numbers"
    bounds = dim.element if isinstance(dim, Sequence) else dim
    low, high = bounds.low, bounds.high
    # a bound rounded to float32 may lie just outside the float64 one
    slack = 1e-6 * max(abs(low), abs(high))
    if np.all((array >= low - slack) & (array <= high + slack)):
        return ""
    distance = np.abs(np.nan_to_num(array, nan=np.inf) - (low + high) / 2)
    worst = array.ravel()[np.argmax(distance)]
    return f"holds {worst:g}, expected values in [{low:g}, {high:g}]"


def default(space: PyTree) -> HParams:
    """Return the starting value of every dimension.

    Raises:
        ValueError: for a leaf that is not a dimension, by its name.
    """
    check_space(space)
    return starting_values(space)


def starting_values(space: PyTree) -> HParams:
    """Return what `default` returns, of a space that has been checked."""

    def start(dim: Dimension) -> Any:
        if not isinstance(dim, Discrete):
            return jnp.full(dim.shape, dim.start, jnp.result_type(float))
        return dim.named(dim.start) if dim.static else jnp.asarray(dim.start, jnp.int32)

    return jax.tree.map(start, space)


def _check_bounds(
    dim: "_Interval | Integer", what: str = "a finite number; pass one", kind: type = float
) -> None:
    for name in ("low", "high", "default"):
        value = getattr(dim, name)
        number = is_number(value) and math.isfinite(value) and (kind is float or type(value) is int)
        _check(dim, name, number or (name == "default" and value is None), what)
    ordered = f"low < high = {dim.high!r}; swap them, or close over a value that is fixed"
    _check(dim, "low", dim.low < dim.high, ordered)
    inside = dim.default is None or dim.low <= dim.default <= dim.high
    _check(dim, "default", inside, f"a value in [{dim.low!r}, {dim.high!r}]; move it inside")
    sizes = isinstance(dim.shape, tuple) and all(type(n) is int and n > 0 for n in dim.shape)
    _check(dim, "shape", sizes, "a tuple of positive sizes; pass e.g. (3,)")


def _check(dim: Any, name: str, good: bool, expected: str) -> None:
    """Raise a `ValueError` unless an argument of a dimension is `good`."""
    if not good:
        raise ValueError(
            f"{name} is {describe(getattr(dim, name))} in {type(dim).__name__}, expected {expected}"
        )
