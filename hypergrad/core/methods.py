"""Description of a method that a family offers by name."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Method(NamedTuple):
    """A method by name, described once, in its own file.

    Attributes:
        name: on the command line and in study files.
        sentence: What it does, for `hypergrad list`.
        reads: Settings that it reads beside those that its whole family reads.
        make: Builds it with the settings that the command line uses; its arguments are those of the family.
        generation: of a search, most trials of a generation where the user does not say.
    """

    name: str
    sentence: str
    reads: tuple[str, ...]
    make: Callable[..., Any]
    generation: int = 16


def by_name(*methods: Method) -> dict[str, Method]:
    """Return the methods of a family by their names, in the order in which they are listed."""
    return {method.name: method for method in methods}
