"""Search spaces: a pytree whose leaves are dimensions, and the maps between its three coordinate systems.

A value of a space (`hparams`) is a pytree of arrays of the same structure. The same value has *unit*
coordinates, a flat vector in [0, 1]^D for samplers, and *unconstrained* ones, a pytree over the whole
real line for gradients.
"""

import math
from collections.abc import Sequence as Options
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import jax.numpy as jnp
import numpy as np

from hypergrad.core.checks import is_whole
from hypergrad.core.types import Array
from hypergrad.space.bounds import (
    check_argument,
    check_bounds,
    check_on_grid,
    check_stepped,
    stepped_values,
)

MAX_LEVELS = 2**22
"""Most values of an `Integer`: the middle of each cell in [0, 1], in float32, leads back to its number."""

MAX_LOG_HIGH = 2**18
"""Largest number of an `Integer` on a logarithmic scale, where cells are narrowest at the top."""


@dataclass(frozen=True)
class _Interval:
    low: float
    high: float
    default: float | None = None
    shape: tuple[int, ...] = ()
    static: ClassVar[bool] = False

    def __post_init__(self):
        check_bounds(self)

    @property
    def coordinates_shape(self) -> tuple[int, ...]:
        """Shape of the free coordinates."""
        return self.shape


@dataclass(frozen=True)
class Real(_Interval):
    """A real number in [low, high], uniform: u = (x − low) / (high − low).

    Attributes:
        low, high: Bounds within [-1e37, 1e37], low < high in float32.
        default: Starting value; the middle of the range where None.
        shape: Shape of the value, for one number per layer, class or example.
        step: None, or the distance of the values low, low + step, ..., high. It then has no hypergradient, like
            an `Integer`, and no shape.
    """

    step: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.step is not None:
            check_stepped(self, self.step)

    @property
    def values(self) -> np.ndarray:
        """The values with a step, float64, rounded from decimals."""
        return stepped_values(self.low, self.high, self.step or 1)

    @property
    def num_levels(self) -> int:
        """Number of values with a step."""
        return len(self.values)

    def at(self, index: Any) -> Any:
        """Return the values with these indices."""
        return jnp.asarray(self.values, jnp.result_type(float))[index]

    def index(self, value: Any) -> Any:
        """Return the index of the nearest value."""
        nearest = jnp.round((jnp.asarray(value) - self.low) / (self.step or 1))
        return jnp.clip(nearest, 0, self.num_levels - 1).astype(jnp.int32)

    @property
    def start(self) -> float:
        """The default, or the middle of the range."""
        if self.default is None and self.step is not None:
            return self.values[(self.num_levels - 1) // 2].item()
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
        low, high: Bounds within [1e-37, 1e37], low < high in float32.
        default: Starting value; the geometric middle where None.
        shape: Shape of the value.
    """

    def __post_init__(self):
        super().__post_init__()
        check_argument(
            self, "low", self.low > 0, "a positive number; use Real for ranges that reach zero"
        )
        check_argument(
            self,
            "low",
            self.low >= 1e-37,
            "at least 1e-37, as float32 can divide by; change its unit",
        )

    @property
    def start(self) -> float:
        """The default, or the geometric middle."""
        return math.sqrt(self.low) * math.sqrt(self.high) if self.default is None else self.default

    def lower(self, value: Array) -> Array:
        """Share of the logarithmic range above the lower bound."""
        span = math.log(self.high / self.low)
        if span > 85:  # value / low would overflow
            return (jnp.log(value) - math.log(self.low)) / span
        return jnp.log(value / self.low) / span

    def upper(self, value: Array) -> Array:
        """Share of the logarithmic range below the upper bound."""
        span = math.log(self.high / self.low)
        if span > 85:
            return (math.log(self.high) - jnp.log(value)) / span
        return jnp.log(self.high / value) / span

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
        low, high: bounds, whole and within int32, low < high; at most 2^22 values.
        default: Starting value; the middle (the geometric one with `log`) where None.
        static: True where the number changes shapes; its value is then a Python int, not an array.
        log: Whether it is uniform in its logarithm, as for a width or a batch size: n has the share of
            [log(low − ½), log(high + ½)] that lies between log(n − ½) and log(n + ½). Then 1 <= low and
            high <= 2^18.
        step: Distance of the values low, low + step, ..., high.
    """

    low: int
    high: int
    default: int | None = None
    static: bool = False
    log: bool = False
    step: int = 1
    shape: ClassVar[tuple[int, ...]] = ()
    coordinates_shape: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        check_bounds(self, "a whole number; use Real for others", int)
        for name in ("low", "high"):
            wide = -(2**31) <= getattr(self, name) < 2**31
            check_argument(
                self, name, wide, f"a number in [{-(2**31)}, {2**31 - 1}], as int32 holds; shift it"
            )
        check_argument(self, "log", isinstance(self.log, bool), "True or False; pass log=True")
        whole = "a whole number of at least 1; pass e.g. step=8"
        check_argument(self, "step", is_whole(self.step) and self.step >= 1, whole)
        object.__setattr__(self, "step", int(self.step))
        alone = "1 with log=True, where steps would differ; leave one of them out"
        check_argument(self, "step", not self.log or self.step == 1, alone)
        check_on_grid(self)
        few = self.num_levels <= MAX_LEVELS
        most = (
            f"at most low + {(MAX_LEVELS - 1) * self.step}: float32 tells no more numbers apart; "
        )
        other = "search its logarithm with log=True, or multiples with step=..."
        other = "use LogReal, and round within the problem" if self.log else other
        check_argument(self, "high", few, most + other)
        if self.log:
            check_argument(self, "low", self.low >= 1, "at least 1 with log=True; leave log out")
            top = f"at most {MAX_LOG_HIGH} with log=True; use LogReal, and round within the problem"
            check_argument(self, "high", self.high <= MAX_LOG_HIGH, top)

    @property
    def num_levels(self) -> int:
        """Number of values."""
        return (self.high - self.low) // self.step + 1

    def at(self, index: Any) -> Any:
        """Return the numbers with these indices."""
        return self.low + index * self.step

    def index(self, value: Any) -> Any:
        """Return the index of a number."""
        return (value - self.low) // self.step

    def named(self, number: int) -> int:
        """Return a number as the problem sees it where the dimension is static."""
        return int(number)

    @property
    def start(self) -> int:
        """The default, or the middle."""
        if self.default is not None:
            return self.default
        if self.log:
            return round(math.sqrt(self.low * self.high))
        return self.low + (self.num_levels - 1) // 2 * self.step


@dataclass(frozen=True)
class Choice:
    """One of a few options, unordered. It has no hypergradient.

    Attributes:
        options: Values to choose from, at least two.
        default: The option to start from; the first where None.
        static: false: the value is the option's index, int32 `[]`; true: the option itself.
    """

    options: Options
    default: Any = None
    static: bool = False
    shape: ClassVar[tuple[int, ...]] = ()
    coordinates_shape: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        listed = isinstance(self.options, Options) and not isinstance(self.options, str)
        check_argument(self, "options", listed, "a list or tuple; pass e.g. ('relu', 'tanh')")
        object.__setattr__(self, "options", tuple(self.options))
        enough = "at least two; close over a value that is fixed"
        check_argument(self, "options", len(self.options) > 1, enough)
        plain = [x for x in self.options if isinstance(x, (str, int, float))]
        once = len(set(plain)) == len(plain)
        check_argument(
            self, "options", once, "different ones; leave out the one that is there twice"
        )
        known = self.default is None or self.default in self.options
        check_argument(self, "default", known, f"one of {self.options}; pass one of them")

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

    @property
    def is_numeric(self) -> bool:
        """Whether the options are numbers other than their own indices, and the value is an index."""
        numbers = all(isinstance(x, (int, float)) for x in self.options)
        return numbers and not self.static and self.options != tuple(range(len(self.options)))

    def at(self, index: Any) -> Any:
        """Return an index, which is the value of a choice."""
        return index

    def index(self, value: Any) -> Any:
        """Return the index that a value is."""
        return value

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
        element: `Real` (without a step) or `LogReal` for one step's value; its shape comes after the steps'.
        length: Number of steps; the value has shape `[length, *element.shape]`.
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
        check_argument(self, "element", isinstance(self.element, (Real, LogReal)), real)
        free = "one without a step; round within the problem"
        check_argument(self, "element", not is_discrete(self.element), free)
        least = "a whole number of at least {}; pass e.g. 10"
        for name in ("length", "knots"):
            if is_whole(getattr(self, name)):
                object.__setattr__(self, name, int(getattr(self, name)))
        check_argument(
            self, "length", type(self.length) is int and self.length >= 1, least.format(1)
        )
        if self.knots is not None:
            check_argument(
                self, "knots", type(self.knots) is int and self.knots >= 2, least.format(2)
            )
            most = f"at most length = {self.length}; leave knots out to free every step"
            check_argument(self, "knots", self.knots <= self.length, most)

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


def is_discrete(dim: Any) -> TypeGuard[Integer | Choice | Real]:
    """Tell whether a dimension has a few values, and so no derivative: `num_levels` of them, by `at(index)`."""
    return isinstance(dim, (Integer, Choice)) or (isinstance(dim, Real) and dim.step is not None)


def is_dimension(leaf: Any) -> bool:
    """Tell whether a leaf of a space is a dimension."""
    return isinstance(leaf, Dimension)
