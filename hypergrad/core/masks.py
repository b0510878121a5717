"""Which indices past an array are masked, so that what they read counts for nothing."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from hypergrad.core.flow import NOTHING, Marks, flow
from hypergrad.core.pairs import FROM_BATCH
from hypergrad.core.spans import Notes, Past


def for_value(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Return a program with the equations that its first result needs: a loss without its gradient."""
    live: set[Any] = {v for v in closed.jaxpr.outvars[:1] if not isinstance(v, Literal)}
    eqns: list[JaxprEqn] = []
    for eqn in reversed(closed.jaxpr.eqns):
        if live.intersection(eqn.outvars):
            eqns.append(eqn)
            live.update(v for v in eqn.invars if not isinstance(v, Literal))
    return closed.replace(jaxpr=closed.jaxpr.replace(eqns=eqns[::-1]))


def unmasked(batch: ClosedJaxpr, reader: ClosedJaxpr, notes: Notes) -> list[Past]:
    """Return the indices past an array that no mask seems to be for.

    An index is taken to be masked where a program compares numbers with the size of the array, or with one
    between that and the index. One of data is, too, where what it reads is multiplied with an array of the
    batch, or selected by it, where some rows of it are taken, or where a scatter may drop it.

    **Cost:** one visit an equation, and none where nothing is past. **Limits:** silent rather than wrong: a
    product with labels or features of the batch counts as a mask; masks that are added or divided by do not.

    Args:
        batch: Program of a batch.
        reader: Program whose last inputs are that batch, as `for_value` gives it.
        notes: What was seen in both.
    """
    reads = {one.read for one in notes.past if not one.kinds & {"step", "random"}}
    masked: set[int] = set()

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        name = eqn.primitive.name
        if id(eqn) in reads:
            return [NOTHING.union([id(eqn)], *marks)]
        if name in ("mul", "dot_general", "select_n"):
            first = 1 if name == "select_n" else 2
            avals: list[Any] = [v.aval for v in eqn.invars[:first]]
            pairs = zip(avals, marks, strict=False)
            by = [m for aval, m in pairs if name == "select_n" or aval.shape]
            if any(m >= FROM_BATCH and not m & reads for m in by):
                masked.update(NOTHING.union(*marks) & reads)
        elif name == "gather" and _takes_rows(eqn):
            masked.update(
                marks[0] & reads if marks[1] >= FROM_BATCH and not marks[1] & reads else ()
            )
        elif name.startswith("scatter") and id(eqn) not in notes.kept:
            masked.update(marks[2] & reads)
        return None

    if reads:
        outs = flow(batch.jaxpr, [FROM_BATCH] * len(batch.jaxpr.invars), visit)
        keys = [jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in batch.jaxpr.outvars]
        own = [NOTHING if key else m | FROM_BATCH for m, key in zip(outs, keys, strict=True)]
        others = len(reader.jaxpr.invars) - len(own)
        flow(reader.jaxpr, [NOTHING] * others + own, visit)
    return [
        one
        for one in notes.past
        if one.read not in masked
        and not any(one.size - 1 <= guard <= one.index + 1 for guard in notes.guards)
    ]


def _takes_rows(eqn: JaxprEqn) -> bool:
    """Tell whether a gather takes rows of an array, not entries of its last axis, such as labels do."""
    aval: Any = eqn.invars[0].aval
    last = len(aval.shape) - 1
    return last == 0 or last not in eqn.params["dimension_numbers"].start_index_map
