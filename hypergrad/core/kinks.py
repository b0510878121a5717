"""Tell kinks from jumps in a traced program: comparisons and roundings that leave no jump behind."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from hypergrad.core.autodiff import programs, scan_counts
from hypergrad.core.flow import NOTHING, Marks

Route = tuple[int, ...]
"""Where an equation is: the calls around it, and itself."""

LOOPS = {"scan", "while", "cond"}

COMPARISONS = {"lt", "le", "gt", "ge"}

NUMBER_RULES: dict[str, Callable] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "square": np.square,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "pow": np.power,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "select_n": lambda which, *cases: cases[int(which) % len(cases)],
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
"""What primitives that work element by element do to numbers."""

MOVES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "copy", "name"}
"""Primitives that put elements elsewhere."""

ROUNDS = {"floor", "convert_element_type"}

LOGIC = {"and", "or", "not"}

POSITIVE = {"abs", "sqrt", "square", "exp", "logistic", "cosh"}
"""Primitives whose results have one sign."""

GUARD = 1e-5
"""The largest number that a guard against zero compares with."""

NEAR = 1e-4
"""How near to each other the two sides of a kink are."""


class Node:
    """One value of a program.

    Attributes:
        value: A number that stands for it; the same for what is the same.
        name: How it was made: a primitive, "literal" or "input".
        operands: What from.
        place: Where.
        marks: What it may depend on.
        signs: What each factor of its sign may depend on.
        rule: What its operands' numbers give, where that is known.
        whole: Whether it is rounded, or of integers or booleans.
    """

    def __init__(
        self,
        value: float,
        name: str,
        operands: Sequence["Node"] = (),
        place: Route = (),
        **more: Any,
    ) -> None:
        self.value, self.name, self.operands, self.place = value, name, operands, place
        self.marks: Marks = more.get("marks", NOTHING.union(*(x.marks for x in operands)))
        self.signs: tuple[Marks, ...] = more.get("signs", (self.marks,))
        self.rule: Callable | None = more.get("rule")
        self.whole: bool = more.get("whole", False)


class Smooth(NamedTuple):
    """Equations of a program that cost no derivative.

    Attributes:
        places: Comparisons and roundings of which no jump is left.
        signs: Comparisons with zero, and the marks of each factor of the sign that they ask for.
    """

    places: set[Route]
    signs: dict[Route, tuple[Marks, ...]]


def smooth_places(
    jaxpr: Jaxpr,
    ins: Sequence[Marks],
    live: Sequence[bool],
    made: Callable[[JaxprEqn], Marks] = lambda eqn: NOTHING,
) -> Smooth:
    """Find comparisons and roundings that leave no jump in the live results of a program.

    A comparison a < b leaves none where it does nothing but choose between values that are the same at a = b:
    the two are computed there from numbers that stand for what is not known. A rounding leaves none where the
    fraction x − ⌊x⌋ and the neighbours ⌊x⌋ and ⌊x⌋ + 1 are all that it makes (linear interpolation).

    **Cost:** a few numbers an equation; nothing is traced or run. **Limits:** conservative: what cannot be
    told counts as a jump, and so does whatever a loop decides.

    Args:
        jaxpr: Program.
        ins: Marks of its inputs.
        live: Whether each result counts.
        made: (equation) -> marks that it adds.
    """
    inputs = [_input(("in", i), marks) for i, marks in enumerate(ins)]
    with np.errstate(all="ignore"):
        outs = _walk(jaxpr, inputs, (), made)
        uses, nodes = _uses([out for out, used in zip(outs, live, strict=True) if used])
        bad: dict[Route, bool] = {}
        signs: dict[Route, list[Marks]] = {}
        for node in nodes:
            if node.name in COMPARISONS and not node.operands[0].whole:
                fine = bool(uses[node]) and _is_kink(node, node, uses)
                signs.setdefault(node.place, []).extend(_signs_asked(node))
            elif node.name in ROUNDS:
                fine = _interpolates(node, uses)
            else:
                continue
            bad[node.place] = bad.get(node.place, False) or not fine
    return Smooth(
        {place for place, jumps in bad.items() if not jumps},
        {place: tuple(marks) for place, marks in signs.items()},
    )


def _stand_in(*parts: Any) -> float:
    """Return a number in (0.2, 0.8) that stands for what is not known."""
    return 0.2 + 0.6 * zlib.crc32(repr(parts).encode()) / 2**32


def _input(what: Any, marks: Marks) -> Node:
    return Node(_stand_in(what), "input", marks=marks)


def is_call(eqn: JaxprEqn) -> bool:
    """Tell whether an equation runs one program on its operands, and returns what that returns."""
    inner = programs(eqn)
    if len(inner) != 1 or eqn.primitive.name in LOOPS:
        return False
    jaxpr = inner[0].jaxpr
    return len(jaxpr.invars) == len(eqn.invars) and len(jaxpr.outvars) == len(eqn.outvars)


def _walk(jaxpr: Jaxpr, ins: Sequence[Node], path: Route, made: Callable) -> list[Node]:
    """Return the nodes of the results of a program."""
    env: dict[Any, Node] = dict(zip(jaxpr.invars, ins, strict=True))
    env.update({v: _input((path, i, "const"), NOTHING) for i, v in enumerate(jaxpr.constvars)})

    def of(v: Any) -> Node:
        if not isinstance(v, Literal):
            return env[v]
        known = np.ndim(v.val) == 0 and jnp.issubdtype(_dtype(v), jnp.number)
        value = (
            float(v.val) if known and np.isreal(v.val) else _stand_in(np.asarray(v.val).tobytes())
        )
        return Node(value, "literal")

    for eqn in jaxpr.eqns:
        outs = _made(eqn, [of(v) for v in eqn.invars], path, made)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _made(eqn: JaxprEqn, operands: list[Node], path: Route, made: Callable) -> list[Node]:
    """Return the nodes of the results of one equation."""
    name, place = eqn.primitive.name, (*path, id(eqn))
    inner = [p.jaxpr for p in programs(eqn)]
    if name in LOOPS:
        return _around(eqn, inner, operands, place, made)
    if is_call(eqn):
        return _walk(inner[0], operands, place, made)
    if name in MOVES or (name == "convert_element_type" and not _to_whole(eqn, operands[0])):
        return [operands[0]]
    rule = NUMBER_RULES.get(name)
    if name == "integer_pow":
        rule = partial(_power, eqn.params["y"])
    values = [x.value for x in operands]
    nodes = []
    for i, v in enumerate(eqn.outvars):
        value = float(rule(*values)) if rule else np.nan
        if not np.isfinite(value):
            rule, value = None, _stand_in(name, i, _plain(eqn.params), values)
        whole = name in ("floor", "ceil", "round") or not jnp.issubdtype(_dtype(v), jnp.inexact)
        marks = made(eqn).union(*(x.marks for x in operands))
        more = {"marks": marks, "signs": _signs(name, operands, eqn, marks)}
        nodes.append(Node(value, name, operands, place, rule=rule, whole=whole, **more))
    return nodes


def _dtype(v: Any) -> Any:
    return getattr(v.aval, "dtype", np.dtype(bool))


def _power(y: int, x: float) -> float:
    return np.float64(x) ** y


def _to_whole(eqn: JaxprEqn, operand: Node) -> bool:
    """Tell whether a cast rounds, or takes booleans to numbers."""
    before, after = _dtype(eqn.invars[0]), _dtype(eqn.outvars[0])
    if jnp.issubdtype(before, jnp.bool_):
        return True
    return not (operand.whole or jnp.issubdtype(after, jnp.inexact))


def _plain(params: dict) -> str:
    return repr(sorted((k, repr(x)) for k, x in params.items() if not callable(x)))


def _around(
    eqn: JaxprEqn, inner: list[Jaxpr], operands: list[Node], place: Route, made: Callable
) -> list[Node]:
    """Return the nodes of what comes out of a loop or a choice, which hang on what comes out within it."""
    marks = NOTHING.union(*(x.marks for x in operands))
    each = [
        _walk(p, [_input((place, i, j), marks) for j in range(len(p.invars))], place[:-1], made)
        for i, p in enumerate(inner)
    ]
    name = eqn.primitive.name
    if name == "scan":
        carried = each[0][: scan_counts(eqn.params)[1]]
        hung = [[*carried, out] for out in each[0]]
    elif name == "while":
        hung = [[out for outs in each for out in outs]] * len(eqn.outvars)
    else:
        hung = [list(outs) for outs in zip(*each, strict=True)]
    return [
        Node(_stand_in(place, i), name, [*operands, *within], place, marks=marks)
        for i, within in enumerate(hung)
    ]


def _signs(name: str, operands: list[Node], eqn: JaxprEqn, marks: Marks) -> tuple[Marks, ...]:
    """Return the marks of each factor of a value's sign."""
    if name in POSITIVE or (name == "integer_pow" and eqn.params["y"] % 2 == 0):
        return ()
    if name in ("mul", "div"):
        a, b = operands
        return () if a.value == b.value else a.signs + b.signs
    if name == "reduce_sum" and not operands[0].signs:
        return ()
    if name == "neg":
        return operands[0].signs
    return (marks,)


def _signs_asked(node: Node) -> list[Marks]:
    """Return what a comparison depends on: the factors of a sign where it is with zero."""
    for x, other in (node.operands, reversed(node.operands)):
        if other.name == "literal" and abs(other.value) <= GUARD:
            return list(x.signs)
    return [node.marks]


def _uses(outs: Sequence[Node]) -> tuple[dict[Node, list[Node | None]], list[Node]]:
    """Return what uses each node that the results need, None for a result itself, and the nodes."""
    uses: dict[Node, list[Node | None]] = {}
    todo, nodes = [], []
    for out in outs:
        if out not in uses:
            todo.append(out)
        uses.setdefault(out, []).append(None)
    while todo:
        node = todo.pop()
        nodes.append(node)
        for x in node.operands:
            if x not in uses:
                todo.append(x)
            uses.setdefault(x, []).append(node)
    return uses, nodes


def _is_kink(node: Node, test: Node, uses: dict[Node, list[Node | None]]) -> bool:
    """Tell whether a boolean made of a comparison only chooses between values that agree where it flips."""
    for use in uses[node]:
        if use is None:
            return False
        if use.name in LOGIC:
            if not _is_kink(use, test, uses):
                return False
            continue
        _, *cases = use.operands
        if use.name != "select_n" or node in cases:
            return False
        if not any(_agree(cases, swap) for swap in _flips(*test.operands)):
            return False
    return True


def _flips(a: Node, b: Node) -> list[dict[float, float]]:
    """List ways to make a = b by setting one value."""
    ways = [{x.value: y.value} for x, y in ((a, b), (b, a)) if x.name != "literal"]
    solved = [*_solved(a, b.value), *_solved(b, a.value)]
    return ways + [{v.value: wanted} for v, wanted in solved]


def _solved(x: Node, target: float) -> list[tuple[Node, float]]:
    """List the operands of a node that can be set, and the number that gives it a value."""
    if x.name == "abs":
        return [(x.operands[0], target)]
    if x.name == "neg":
        return [(x.operands[0], -target)]
    if x.name in ("add", "sub", "mul"):
        a, b = x.operands
        found = {
            "add": [(a, target - b.value), (b, target - a.value)],
            "sub": [(a, target + b.value), (b, a.value - target)],
            "mul": [(a, target / b.value), (b, target / a.value)] if a.value and b.value else [],
        }[x.name]
        return [(v, wanted) for v, wanted in found if v.name != "literal"]
    return []


def _agree(cases: Sequence[Node], swap: dict[float, float]) -> bool:
    """Tell whether values are the same once another is set."""
    known: dict[Node, float] = {}
    numbers = [_number(case, swap, known) for case in cases]
    return all(abs(x - numbers[0]) <= NEAR * max(1, abs(numbers[0])) for x in numbers[1:])


def _number(top: Node, swap: dict[float, float], known: dict[Node, float]) -> float:
    """Return the number of a node where others are set."""
    todo = [top]
    while todo:
        node = todo[-1]
        if node in known:
            todo.pop()
        elif node.name != "literal" and node.value in swap:
            known[node] = swap[node.value]
        elif missing := [x for x in node.operands if x not in known]:
            todo.extend(missing)
        else:
            values = [known[x] for x in node.operands]
            moved = values != [x.value for x in node.operands]
            new = node.rule(*values) if node.rule and moved else node.value
            known[node] = float(new) if node.rule or not moved else _stand_in(node.name, values)
    return known[top]


def _interpolates(node: Node, uses: dict[Node, list[Node | None]]) -> bool:
    """Tell whether a rounding gives no more than a fraction, and two neighbours to look up."""
    x, todo = node.operands[0], [node]
    seen: set[Node] = set()
    fraction = neighbour = False
    while todo:
        v = todo.pop()
        seen.add(v)
        for use in uses[v]:
            if use is None:
                return False
            if (
                use.name == "sub"
                and use.operands[0].value == x.value
                and use.operands[1].value == node.value
            ):
                fraction = True
            elif use.name == "add" and any(y.value == 1 for y in use.operands):
                neighbour = True
                todo.append(use)
            elif use.whole and use not in seen:
                todo.append(use)
            elif not use.whole and use.name not in ("gather", "dynamic_slice", "select_n"):
                return False
    return fraction and neighbour
