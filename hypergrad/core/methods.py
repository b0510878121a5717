"""Description of a method that a family offers by name."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Method(NamedTuple):
    """A method by name, described once, in its own file.

    Attributes:
        name: Name on the command line and in study files.
        sentence: Description for `hypergrad list`.
        reads: Settings that it reads besides those of its whole family.
        make: Function that builds it with the settings of the command line; its arguments are those of the
            family.
        generation: Largest default generation of a search.
    """

    name: str
    sentence: str
    reads: tuple[str, ...]
    make: Callable[..., Any]
    generation: int = 16


def by_name(*methods: Method) -> dict[str, Method]:
    """Return the methods of a family by their names, in the order in which they are listed."""
    return {method.name: method for method in methods}
