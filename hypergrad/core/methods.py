"""Description of a method that a family offers by name."""

from collections.abc import Callable
from typing import Any, NamedTuple


class StepCost(NamedTuple):
    """What one step of a method costs, counted and not timed, so that it is the same on every run.

    Attributes:
        trainings: Number of training runs.
        counted: How they were counted, for people.
    """

    trainings: float
    counted: str


def no_cost(*family: Any) -> float:
    """Return zero, the cost of methods of a family that does not count it here."""
    return 0.0


class Method(NamedTuple):
    """A method by name, described once, in its own file.

    Attributes:
        name: Name on the command line and in study files.
        sentence: Description for `hypergrad list`.
        reads: Settings that it reads besides those of its whole family.
        make: Function that builds it with the settings of the command line; its arguments are those of the
            family.
        generation: Largest default generation of a search.
        cost: Function of the arguments of `make` that counts what the method costs, in the unit of its family:
            trainings an estimate, steps of training an iteration of "bilevel" or a window of "controller".
        trusting: Whether `make` makes it without a check of its own, so that the study's check has to name
            drawn leaves.
    """

    name: str
    sentence: str
    reads: tuple[str, ...]
    make: Callable[..., Any]
    generation: int = 16
    cost: Callable[..., float] = no_cost
    trusting: bool = False


def by_name(*methods: Method) -> dict[str, Method]:
    """Return the methods of a family by their names, in the order in which they are listed."""
    return {method.name: method for method in methods}
