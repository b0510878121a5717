"""A space as JSON, and its dimensions read back: `{name: {"kind": "LogReal", "low": 0.001, ...}}`."""

import math
from dataclasses import fields
from typing import Any

from hypergrad.core import tree
from hypergrad.core.types import PyTree
from hypergrad.space.dimensions import Choice, Dimension, Integer, LogReal, Real, Sequence

_KINDS = {kind.__name__: kind for kind in (Real, LogReal, Integer, Choice, Sequence)}


def describe_space(space: PyTree) -> dict[str, dict[str, Any]]:
    """Return the fields of every dimension by its name, as JSON can say them.

    **Limits:** an option that is neither text, true or false, nor a number is given by its name, and reads
    back as a text. The structure of the space is that of the names.
    """
    return {name: _fields_of(dim) for name, dim in tree.named(space).items()}


def space_from_description(
    description: dict[str, Any], where: str = "space"
) -> dict[str, Dimension]:
    """Return the dimensions that `describe_space` described, by name.

    Raises:
        ValueError: in one line that begins with `where`, for what describes no dimension.
    """
    dimensions = {}
    for name, found in description.items():
        try:
            dimensions[name] = _dimension(found)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{where}[{name!r:.80}] describes no dimension ({reason}), expected one as a study writes it; "
                "restore the file from a copy"
            ) from None
    return dimensions


def _fields_of(dim: Dimension) -> dict[str, Any]:
    values: dict[str, Any] = {field.name: getattr(dim, field.name) for field in fields(dim)}
    if isinstance(dim, Choice):
        names = [_option_name(option) for option in dim.options]
        twice = [name for name in names if names.count(name) > 1]
        names = [f"{n} [{i}]" if n in twice else n for i, n in enumerate(names)]
        values["options"] = names
        values["default"] = None if dim.default is None else names[dim.start]
    elif isinstance(dim, Sequence):
        values["element"] = _fields_of(dim.element)
    else:
        values = {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}
    return {"kind": type(dim).__name__, **values}


def _option_name(option: Any) -> Any:
    """Return an option that JSON can say, and the name of another: the same in every process."""
    if isinstance(option, (str, int)) or (isinstance(option, float) and math.isfinite(option)):
        return option
    name = getattr(option, "__qualname__", None)
    return f"{option.__module__}.{name}" if name else repr(option)


def _dimension(found: Any) -> Dimension:
    values = dict(found)
    kind = _KINDS[values.pop("kind")]
    if kind is Sequence:
        values["element"] = _dimension(values["element"])
    if "shape" in values:
        values["shape"] = tuple(values["shape"])
    return kind(**values)
