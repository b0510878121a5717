"""The errors that jax, numpy and Python raise within a user's function, in words that a new user can act on."""

import inspect
import linecache
import re
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from hypergrad.core.outside import LIBRARIES

ARGUMENTS = {
    "init": "key, hparams",
    "loss": "params, hparams, batch",
    "objective": "params, hparams, batch",
    "optimizer": "hparams",
    "train_batch": "key, step",
    "valid_batch": "key",
    "test": "params, hparams",
}
"""What each function of a problem or task is called with."""

SCHEDULED = "read one value per step from a schedule, with hg.schedule(hparams[...])"

MODULES = {
    "flax": "use model = hg.from_linen(module), with init=lambda key, hparams: model.init(key, inputs)",
    "equinox": "use model = hg.from_equinox(make), where make(key) builds the module, with "
    "init=lambda key, hparams: model.init(key, inputs)",
}
"""What to do with a module, by its library."""

LAYERS = ("flax.linen.", "flax.nnx.nn.", "flax.nnx.helpers", "equinox.nn.")
"""Where the layers of those libraries are, whose methods take other arguments than ours."""

SCHEDULES = {
    "warmup_cosine_decay_schedule": "warmup_cosine",
    "cosine_decay_schedule": "cosine",
    "onecycle_schedule": "one_cycle",
    "piecewise_": "piecewise",
    "exponential_decay": "exponential",
    "linear_schedule": "linear",
    "constant_schedule": "constant",
}
"""optax's schedules -> those of `hg.schedules`, the longer names first."""

OURS = list(dict.fromkeys(SCHEDULES.values()))

STATIC = "make it an Integer or Choice with static=True, which is a value of Python"


class Place(NamedTuple):
    """The line of the user's that failed.

    Attributes:
        text: File, number and source of the line.
        source: Source of the line.
        frame: Its frame.
        called: File of what that line called; empty where it failed by itself.
    """

    text: str
    source: str
    frame: FrameType
    called: str


def place_of(error: BaseException) -> Place | None:
    """Return the last line of the user's in the traceback of an error; None where there is none."""
    found, step = None, error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if not name.startswith((*LIBRARIES, "<frozen")) and not name.endswith(".pyx"):
            found = step
        step = step.tb_next
    if found is None:
        return None
    file, line = found.tb_frame.f_code.co_filename, found.tb_lineno
    source = linecache.getline(file, line).strip()
    shown = source if len(source) <= 80 else source[:77] + "..."
    text = f"{Path(file).name}, line {line}" + (f", `{shown}`" if shown else "")
    called = found.tb_next.tb_frame.f_code.co_filename if found.tb_next else ""
    return Place(text, source, found.tb_frame, called)


def in_words(
    name: str,
    error: Exception,
    given: str = "hparams",
    hparams: Any = None,
    function: Callable | None = None,
) -> str:
    """Say in one line what failed in a user's function, where, and what to do.

    Args:
        name: Name of the function, as the user knows it.
        error: What it raised.
        given: Arguments that the message names, "hparams" or "params".
        hparams: Hyperparameters among the arguments, where they are known.
        function: The user's function.
    """
    lines = str(error).strip().splitlines()
    reason = lines[0][:160] if lines else type(error).__name__
    place = place_of(error)
    part = name.rpartition(".")[2]
    cure = _cure(part, error, reason, place, hparams, function)
    if isinstance(error, KeyError):
        reason = f"{given} or batch has no entry {reason}"
    at = f" in {place.text}" if place else ""
    kind = type(error).__name__
    returned = re.search(
        r"returned a value of type <class '([^']*)'>(?: at output component (?:(\[.*\])|.*))?, which",
        (lines or [""])[0],
    )
    if returned:
        whole, at = returned[1], ""
        reason = f"it returned a {whole}" + (f" at {returned[2]}" if returned[2] else "")
        cure = _returned(whole)
    arguments = ARGUMENTS.get(name.rpartition(".")[2], "")
    wanted = (
        f"a function of ({arguments})" if arguments else "a function of its documented arguments"
    )
    return (
        f"{name} failed on the given {given}: {reason.rstrip('. ')} ({kind}){at}, expected {wanted} that jax "
        f"can trace; {cure}"
    )


def _cure(
    part: str,
    error: Exception,
    reason: str,
    place: Place | None,
    hparams: Any,
    function: Callable | None,
) -> str:
    """Say what to do."""
    source = place.source if place else ""
    for pattern, cure in CURES:
        if re.search(pattern, f"{type(error).__name__}: {reason}"):
            found = cure(source, place) if callable(cure) else cure
            if found:
                return found
    steps = _scheduled(hparams)
    if part == "optimizer" and steps and "incompatible shapes" in reason:
        return f"hparams[{steps!r}] is a schedule: {SCHEDULED}"
    if part == "optimizer" and "'dict'" in reason:
        return "read a number of the hparams: lambda hparams: optax.sgd(hparams['lr'])"
    swapped = _in_order(part, function)
    if swapped and isinstance(error, (KeyError, AttributeError, TypeError, ValueError)):
        return swapped
    if isinstance(error, KeyError) and isinstance(hparams, dict):
        second = "" if part == "optimizer" else ", and come second, after params or the key"
        return f"the hparams are {', '.join(map(str, hparams))}{second}"
    return "mend that line" if place else "run it once by itself to see where"


def _in_order(part: str, function: Callable | None) -> str:
    """Say in which order the arguments come, where those of a function have the same names in another."""
    expected = ARGUMENTS.get(part, "")
    try:
        taken = list(inspect.signature(function).parameters) if function else []
    except (TypeError, ValueError):
        return ""
    order = expected.split(", ")
    if taken == order or sorted(taken) != sorted(order):
        return ""
    return f"its arguments come as ({expected}), and not as ({', '.join(taken)})"


def _scheduled(hparams: Any) -> Any:
    """Return the name of the first hyperparameter with one value a step."""
    if not isinstance(hparams, dict):
        return None
    return next((k for k, x in hparams.items() if len(np.shape(x)) == 1), None)


def _array(source: str, place: Place | None) -> str:
    """Advise on numpy that was given a traced value."""
    indexed = _indexed(place)
    if indexed:
        name, value = indexed
        kind = f"{type(value).__name__} of {type(value).__module__.partition('.')[0]}"
        to = f"{name}.to_numpy()" if hasattr(value, "to_numpy") else name
        sliced = re.search(rf"{re.escape(name)}\[[^\]]*:", source)
        how = " and jax.lax.dynamic_slice_in_dim for a slice" if sliced else ""
        return f"{name} is a {kind}, which no traced index can read: use jnp.asarray({to}) in its place{how}"
    return "call jnp where that line calls numpy or another library"


def _indexed(place: Place | None) -> tuple[str, Any] | None:
    """Return the first name on a line that is indexed and holds no array of jax, with what it holds."""
    if place is None:
        return None
    known = {**place.frame.f_globals, **place.frame.f_locals}
    for name in re.findall(r"([A-Za-z_]\w*)(?:\.i?loc)?\[", place.source):
        value = known.get(name)
        outside = isinstance(value, np.ndarray) or hasattr(value, "iloc")
        if outside or type(value).__module__.partition(".")[0] == "torch":
            return name, value
    return None


def _index(source: str, place: Place | None) -> str:
    """Advise on an index of Python that was asked of a traced value."""
    if _indexed(place):
        return _array(source, place)
    if "range(" in source:
        return f"the count of a loop is traced: use jax.lax.fori_loop, or {STATIC}"
    return f"a list has no traced index: pick with hg.select(index, values), or {STATIC}"


def _number(source: str, place: Place | None) -> str:
    """Advise on a number of Python that was asked of a traced value."""
    asked = re.search(r"\b(float|int|bool|math\.\w+)\(|\.(item)\(", source)
    if asked:
        call = asked[1] or asked[2]
        other = f"jnp for {call}" if call.startswith("math") else f"the value without {call}(...)"
        return f"a traced value has no number yet: use {other}"
    return "a traced value has no number yet: keep it an array of jax (in jnp.where, pass all three arguments)"


def _branch(source: str, place: Place | None) -> str:
    """Advise on a decision that was asked of a traced value."""
    if place is not None and "optax" in Path(place.called).parts:
        named = [ours for theirs, ours in SCHEDULES.items() if theirs in source]
        use = f"hg.schedules.{named[0]}" if named else f"one of hg.schedules: {', '.join(OURS)}"
        return f"optax's schedules refuse traced values: use {use}"
    return f"decide with jnp.where or jax.lax.cond, or {STATIC}"


def _returned(kind: str) -> str:
    """Advise on what is no array."""
    if kind.startswith("pandas"):
        return "return jnp.asarray(frame.to_numpy())"
    if kind.startswith("torch"):
        return "return jnp.asarray(tensor.numpy())"
    if kind.startswith("flax"):
        return MODULES["flax"]
    if kind == "function" or kind.endswith("custom_jvp"):
        return f"return arrays alone; for a module of equinox, {MODULES['equinox']}"
    if kind == "str":
        return "return arrays alone, and keep texts outside"
    if kind == "numpy.ndarray":
        return "return arrays of numbers: code texts as whole numbers"
    return "return arrays in dicts and lists, or make its class a pytree (jax.tree_util.register_dataclass)"


def _broadcast(source: str, place: Place | None) -> str:
    if "softmax_cross_entropy(" in source:
        return "pass one-hot labels there: jax.nn.one_hot(labels, num_classes)"
    return ""


_STATIC_CHOICE = (
    "a Choice is the traced index of its option: read hg.select(hparams[...], values), or "
    "make it static=True, which gives the option itself"
)

CURES: tuple[tuple[str, str | Callable[[str, Place | None], str]], ...] = (
    ("Incompatible shapes for broadcasting", _broadcast),
    ("TracerArrayConversionError", _array),
    ("TracerIntegerConversionError", _index),
    ("TracerBoolConversionError", _branch),
    (
        "NonConcreteBooleanIndexError",
        "weigh with jnp.where(mask, values, 0) in place of values[mask]",
    ),
    ("Non-hashable static arg", "leave it out of static_argnums and static_argnames of that jit"),
    ("Shapes must be 1D", f"a shape depends on a hyperparameter: {STATIC}"),
    ("ConcretizationTypeError", _number),
    ("Slice entries must be static", "use jax.lax.dynamic_slice_in_dim(array, start, length)"),
    ("immutable", "write x = x.at[index].set(value)"),
    (
        "subdtype of .*integer",
        "pass class numbers: jnp.argmax(labels, -1) of one-hot labels, labels.astype(int) of others",
    ),
    ("SeedSequence|RandomState", "draw with jax.random and the key that the function is given"),
    ("scalar seed, but was given a PRNG key", "use the key itself, or jax.random.split(key)"),
    ("__format__", "print with jax.debug.print('{}', value)"),
    ("attribute name must be string, not|unhashable type: '.*Tracer", _STATIC_CHOICE),
    (r"string indexing", "give the space a name for each dimension, as {'lr': LogReal(1e-3, 1.0)}"),
    (
        r"'dict' object has no attribute",
        "read an entry of a dict, as hparams['lr'] or params['w']",
    ),
)
"""Advice by a pattern of the type and text of an error, or a function of its line that makes it."""
