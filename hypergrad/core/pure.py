"""Check that a user's function is a function of its arguments: nothing read on, frozen, or drawn aside."""

import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun

from hypergrad.core.abstract import abstract, program_of
from hypergrad.core.autodiff import equations
from hypergrad.core.flow import constants, same_bits, same_program
from hypergrad.core.host import Store
from hypergrad.core.outside import contents, may_change, reached, reads_iterators, sums_of
from hypergrad.core.types import HParams, PyTree

FETCH = "fetch data by index with hg.host_batches(fetch, like)"

_PRECISION = "jax_default_matmul_precision"

_FROZEN = (
    "returned something else for the same arguments, expected a function of them alone, because a trace "
    "freezes what an iterator, a random generator of Python or numpy, a counter or a clock returns"
)

DRAW_INSIDE = "draw with jax.random, from a key in the batch (problem.init has its own), or pass a fixed number"

_READS_ON = (
    "returned other numbers for the same arguments, expected a function of them alone, because a backward pass "
    f"calls its pure_callback again; {FETCH}"
)


def traced_program(
    name: str,
    function: Callable,
    *args,
    twice: bool = False,
    of: Callable | None = None,
    hparams: HParams = None,
) -> tuple[ClosedJaxpr, PyTree]:
    """Trace a user's function, or raise a `ValueError` where it is no function of its arguments.

    Refused are host callbacks with effects, and what differs from one trace to the next: the batch that
    `next(iterator)` returned, a number of Python's or numpy's generators, the time.

    **Cost:** one trace, and a second with `twice`, or where the user's function can reach an iterator, a
    generator or a clock, or changed what it closes over; a third where it reads an iterator, or changes things
    again. Nothing is compiled or run, unless a batch calls a `jax.pure_callback` of the user's; then four are
    drawn.

    **Limits:** a clock that is read in coarser units than two traces are apart is not seen to move; nor is an
    iterator that returns everything three times, a callback of a loss, one that is a function at first and none
    later, one number written into arrays of more than 16 MiB together, or what is written into a read-only one.

    Args:
        name: Name of the function, as the user knows it.
        function: Function to trace.
        *args: Its arguments, arrays or their shapes.
        twice: Whether to try it twice in any case, as is cheap for a batch.
        of: The user's own function, where `function` calls it.
        hparams: Hyperparameters among the arguments, which an error may name.

    Returns:
        The program, and the shapes of what the function returns.
    """
    user = function if of is None else of
    before, outside = _generators(), reached(user, few=True)
    held = () if twice else contents(outside)
    try:  # anew, because jax remembers the traces of a function object
        closed, shapes = abstract(
            name, _new(function), *args, trace=program_of, hparams=hparams, of=user
        )
    except ValueError as error:
        if isinstance(error.__cause__, StopIteration):
            raise ValueError(f"{name} {_FROZEN}; {_instead(name)}") from error
        raise
    trouble = _effect(closed)
    again = twice or _generators() != before or may_change(outside) or contents(outside) != held
    if not trouble and again:
        try:
            same = _repeats(function, args, closed, outside)
        except Exception as error:  # the first time it went well
            raise ValueError(f"{name} {_again(error, name, reads_iterators(outside))}") from error
        trouble = "" if same else f"{_FROZEN}; {_instead(name)}"
    if not trouble and twice:
        trouble = "" if _callbacks_repeat(closed, args) else _READS_ON
    if trouble:
        raise ValueError(f"{name} {trouble}")
    return closed, shapes


def _instead(name: str) -> str:
    return f"{FETCH}, draw with jax.random" if name.endswith("_batch") else DRAW_INSIDE


def _again(error: Exception, name: str, of_iterator: bool) -> str:
    """Say what is wrong with a function, of an iterator or not, that fails when it is traced again."""
    kept = isinstance(error, jax.errors.UnexpectedTracerError)
    if isinstance(error, StopIteration) or (kept and of_iterator):
        return f"{_FROZEN}; {_instead(name)}"
    if kept:
        return (
            "keeps an array that was made during a trace, expected a function of its arguments alone; make it "
            "outside of the function, or with numpy"
        )
    lines = str(error).strip().splitlines() or [""]
    said = f"{type(error).__name__}: {lines[0]:.160}".rstrip(". :")
    wanted = f"expected a function of its arguments alone; {_instead(name)}"
    return f"fails when it is traced again ({said}), {wanted}"


def _new(function: Callable) -> Callable:
    return lambda *args: function(*args)


def _effect(closed: ClosedJaxpr) -> str:
    """Say which call of the host with an effect a program makes; printing may stay."""
    for eqn in equations(closed.jaxpr):
        if eqn.primitive.name in ("io_callback", "rng_uniform") or eqn.params.get(
            "has_side_effect"
        ):
            return (
                f"calls {eqn.primitive.name}, expected a function of its arguments alone, because a backward "
                f"pass calls it again; {FETCH}"
            )
    return ""


def _generators() -> tuple:
    """Return the states of the global generators of Python and numpy."""
    kind, words, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), kind, np.asarray(words).tobytes(), *rest


def _repeats(function: Callable, args: tuple, closed: ClosedJaxpr, outside: list[Any]) -> bool:
    """Tell whether further traces of a function give the same program; a trace that fails raises."""
    here = getattr(jax.config, _PRECISION)
    held, numbers = contents(outside), _numbers(closed)
    # another precision, so that what is jitted within is traced again, too
    for precision in [x for x in ("default", "highest", "high") if x != here][:2]:
        with jax.default_matmul_precision(precision):
            other = program_of(_new(function), *args)[0]
        # a constant may be the very array that the function wrote into
        if not same_program(closed, other) or _numbers(other) != numbers:
            known = set(map(id, closed.consts))
            if any(isinstance(x, core.Tracer) and id(x) not in known for x in other.consts):
                raise jax.errors.UnexpectedTracerError("what an earlier trace returned")
            return False
        if not reads_iterators(outside) and contents(outside) == held:
            break  # else it may return each thing twice
    return True


def _numbers(closed: ClosedJaxpr) -> list[int]:
    """Return checksums of the arrays of numpy that a program holds."""
    return sums_of([np.asarray(x) for x in constants(closed) if not isinstance(x, jax.Array)])


def _callbacks_repeat(closed: ClosedJaxpr, args: tuple) -> bool:
    """Tell whether a batch with callbacks that are said to be pure is the same twice; True where it fails."""
    calls = any(map(_is_own, equations(closed.jaxpr)))
    if not calls or any(isinstance(x, core.Tracer) for x in closed.consts):
        return True
    with jax.ensure_compile_time_eval():
        leaves, call = jax.tree.leaves(args), jaxpr_as_fun(closed)
        given = [[_example(x, seed) for x in leaves] for seed in (0, 1)]
        try:
            first = call(*given[0])
        except Exception:  # its own error comes when it is drawn
            return True
        try:  # of both, so that a stream that returns each batch twice is noticed, too
            later = [call(*given[1]) for _ in range(2)]
        except Exception:  # it has nothing at step 1
            later = [first, first]
        last = call(*given[0])
        return all(map(same_bits, first, last)) and all(map(same_bits, *later))


def _is_own(eqn: JaxprEqn) -> bool:
    """Tell whether an equation is a callback of the user's; `host_batches` has checked its own."""
    call = eqn.params.get("callback")
    ours = getattr(getattr(call, "callback_func", None), "__self__", None)
    return eqn.primitive.name == "pure_callback" and not isinstance(ours, Store)


def _example(leaf: Any, seed: int) -> Any:
    """Return an array of the shape and dtype of a leaf: the key of a seed, the seed as a step, else zeros."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(seed)
    is_step = not leaf.shape and jnp.issubdtype(leaf.dtype, jnp.integer)
    return jnp.full(leaf.shape, seed if is_step else 0, leaf.dtype)
