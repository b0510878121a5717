"""Shared checks of a caller's arguments, made before anything compiles."""

import difflib
import math
from collections.abc import Collection
from importlib import import_module
from inspect import signature
from numbers import Integral, Real
from typing import Any

OTHER_WORDS = {
    "lr": "learning_rate",
    "n_trials": "budget",
    "num_trials": "budget",
    "trials": "budget",
    "epochs": "horizon",
    "num_steps": "horizon",
    "steps": "horizon",
    "pop_size": "population",
    "num_workers": "devices",
    "file": "data",
    "path": "data",
    "dataset": "data",
}
"""What other tools call things, and what they are called here."""


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number, of Python or numpy; True and False do not count as numbers."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number of Python or numpy, also an infinite one or NaN, and not a bool."""
    kind = Real if hasattr(value, "dtype") else (int, float)
    return isinstance(value, kind) and not isinstance(value, bool)


def describe(value: Any) -> str:
    """Describe a value in one line of at most 80 characters."""
    if hasattr(value, "dtype") and hasattr(value, "shape") and not is_number(value):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    return " ".join(repr(value).split())[:80]


def check_whole(name: str, value: Any, least: int = 1, *, example: int = 10) -> int:
    """Return `value` as an int if it is a whole number of at least `least`, or raise a `ValueError`."""
    whole = is_whole(value)
    if not whole or value < least:
        raise ValueError(
            f"{name} is {value if whole else describe(value)}, expected a whole number of at least {least}; "
            f"pass e.g. {name}={example}"
        )
    return int(value)


def check_positive(name: str, value: Any, *, example: float = 0.01) -> float:
    """Return `value` as a number of Python, or raise a `ValueError` unless it is a positive, finite number."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(
            f"{name} is {describe(value)}, expected a positive number; pass e.g. {name}={example}"
        )
    return _of_python(value)


def check_least(name: str, value: Any, least: float = 0, *, example: float = 1.0) -> float:
    """Return `value` as a number of Python; raise a `ValueError` unless it is finite and at least `least`."""
    if not is_number(value) or not least <= value < math.inf:
        raise ValueError(
            f"{name} is {describe(value)}, expected a number of at least {least}; pass e.g. {example}"
        )
    return _of_python(value)


def check_share(
    name: str, value: Any, span: str = "[0, 1]", *, what: str = "a share", example: float = 0.5
) -> float:
    """Return `value` as a number of Python, or raise a `ValueError` unless it lies in an interval.

    Args:
        name: Name of the argument.
        value: Value that the caller passed.
        span: Interval as it is written, such as "(0, 1]"; a bracket includes its end.
        what: Kind of number in words, such as "a number" or "a share of the range".
        example: Valid value.
    """
    low, high = map(float, span[1:-1].split(","))
    excluded = [end for end, bracket in ((low, span[0]), (high, span[-1])) if bracket in "()"]
    if not is_number(value) or not low <= value <= high or value in excluded:
        raise ValueError(
            f"{name} is {describe(value)}, expected {what} in {span}; pass e.g. {example}"
        )
    return _of_python(value)


def _of_python(value: Any) -> float:
    return value.item() if hasattr(value, "item") else value


def check_kind(name: str, value: Any, kind: type, example: str) -> None:
    """Raise a `ValueError` unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOaeio" else "a"
        raise ValueError(
            f"{name} is {type(value).__name__} {describe(value)}, expected {article} {kind.__name__}; "
            f"pass e.g. {example}"
        )


def check_function(name: str, value: Any, example: str, arguments: str = "") -> None:
    """Raise a `ValueError` unless `value` can be called.

    Args:
        name: Name of the argument.
        value: Value that the caller passed.
        example: Value that would do.
        arguments: Arguments that the function is called with, such as "problem, state"; not checked where
            empty, or where Python cannot tell what the function takes.
    """
    if not callable(value):
        raise ValueError(f"{name} is {describe(value)}, expected a function; pass e.g. {example}")
    if arguments and not takes(value, len(arguments.split(","))):
        raise ValueError(
            f"{name} is {describe(value)}, expected a function of ({arguments}); pass e.g. {example}"
        )


def takes(function: Any, num: int) -> bool:
    """Tell whether a function takes as many positional arguments, where that can be told."""
    try:
        signature(function).bind(*[None] * num)
    except TypeError:
        return False
    except ValueError:  # a function of C without a signature
        pass
    return True


def check_bytes(memory: Any) -> None:
    """Raise a `ValueError` unless `memory` is a number of bytes."""
    if not is_whole(memory) or memory < 1:
        raise ValueError(
            f"memory is {memory!r:.80}, expected a positive number of bytes; pass e.g. 64 * 2**20"
        )


def library(module: str, extra: str, what: str = "log") -> Any:
    """Import a library that an extra installs, or raise a `ValueError` that says how to install it."""
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(
            f"{what} {extra!r} needs {module}, which is not installed; "
            f"install the extra: pip install 'hypergrad-jax[{extra}]'"
        ) from None


def check_name(argument: str, name: str, known: Collection[str]) -> str:
    """Return `name` if it is one of `known`, or raise a `ValueError` with the nearest one."""
    if name in known:
        return name
    begun = [one for one in known if one.startswith(f"{name}_")]
    near = begun or [nearest(name, known)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near[0] else "see hypergrad list"
    raise ValueError(f"{argument} is {name!r:.120}, expected one of {', '.join(known)}; {hint}")


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return the name in `known` that is most similar to `name`, or means it; None where none is close."""
    if OTHER_WORDS.get(name) in known:
        return OTHER_WORDS[name]
    near = difflib.get_close_matches(str(name)[:100], list(known), n=1, cutoff=0.4)
    return near[0] if near else None
