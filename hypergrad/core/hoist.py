"""Programs without data: large arrays that a function closes over become arguments of its program."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, get_opaque_trace_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.autodiff import bind_again, equations, programs, scan_counts
from hypergrad.core.types import Array, PyTree

LARGE = 2**16
"""Bytes above which an array that a function closes over becomes an argument of its program."""

BRIEF: dict[str, str | bool] = {"xla_backend_optimization_level": "2"}
"""Options of the compiler for a program that runs for less time than it takes to compile; its default is 3."""

_config: Any = jax.config
_EAGER = get_opaque_trace_state()

_copies: WeakValueDictionary[Any, jax.Array] = WeakValueDictionary()
"""Arrays of the host, and arrays on other devices than their program: copied once for all programs."""


class _Program(NamedTuple):
    """A compiled function and the arrays that it is given before the arguments of a call."""

    call: Any
    held: tuple[list[Array], ...]


class Compiled:
    """Compile a function as `jax.jit` does, but pass in the data it closes over instead of writing them down.

    `jax.jit` writes the arrays that a function closes over into its program. A data set then stands in every
    program of a study. Here an array of more than `LARGE` bytes is an argument, wherever in the function it is
    used, and all programs share it. An array of the host is read when the function is traced. Within a
    trace, this is `jax.jit`.

    **Cost:** a walk through the function's program when it is traced; some microseconds a call.

    **Limits:** data that an inner `jax.jit` closes over, within an operation that is not known here (a
    kernel, a user's own primitive), stay constants.

    Args:
        function: Function of positional arguments.
        donate: Places of the arguments whose memory the results may take.
        brief: Whether it runs for a much shorter time than it takes to compile. The CPU's compiler then does
            without its last and longest level of optimization, for half the time; convolutions run an eighth
            slower, and results are the same to rounding.
    """

    def __init__(self, function: Callable, donate: tuple[int, ...] = (), *, brief: bool = False):
        self.__wrapped__ = function
        self._name = getattr(getattr(function, "func", function), "__name__", "program")
        self._donate = donate
        self._plain = jax.jit(function, donate_argnums=donate)
        self._brief = brief
        self._programs: dict[Any, _Program] = {}

    def __call__(self, *args: PyTree) -> Any:
        """Call the program; within a trace, trace the function."""
        outside = not traced(args) and get_opaque_trace_state() == _EAGER
        if not outside or _config.jax_disable_jit:
            return self._plain(*args)
        program = self._program(args)
        return program.call(*program.held, *args)

    def lower(self, *args: PyTree) -> jax.stages.Lowered:
        """Lower the program for arguments, or for their shapes."""
        program = self._program(args)
        return program.call.lower(*program.held, *args)

    def data(self, *args: PyTree) -> tuple[list[Array], ...]:
        """Return what the program is given before `args`: one list of arrays, or nothing."""
        return self._program(args).held

    def _cache_size(self) -> int:
        calls = {id(p.call): p.call for p in self._programs.values()}
        return sum(call._cache_size() for call in calls.values())

    def _program(self, args: tuple[PyTree, ...]) -> _Program:
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple((_aval(x), _committed(x)) for x in leaves)
        if key not in self._programs:
            self._programs[key] = self._made(args, leaves)
        return self._programs[key]

    def _made(self, args: tuple[PyTree, ...], leaves: list[Any]) -> _Program:
        closed = self._plain.trace(*args).jaxpr
        large = list(_Constants(closed).large.values())
        options = BRIEF if self._brief and jax.default_backend() == "cpu" else None
        if not large:
            plain = self._plain
            if options:  # which jax refuses within a trace
                plain = jax.jit(
                    self.__wrapped__, donate_argnums=self._donate, compiler_options=options
                )
            return _Program(plain, ())
        where = _where([*leaves, *large], closed.jaxpr)
        places = tuple(i + 1 for i in self._donate)
        lifted: Any = partial(_lifted, self._plain, large)
        lifted.__name__ = self._name  # what profiles and the compilation cache show
        call = jax.jit(lifted, donate_argnums=places, compiler_options=options)
        return _Program(call, ([_placed(x, where) for x in large],))


def _lifted(plain: Any, large: list[Any], held: list[Array], *args: PyTree) -> Any:
    """Evaluate a function's program with `held` in the places of the arrays `large` that it closes over."""
    trace = plain.trace(*args)
    given = _Given(_Constants(trace.jaxpr), [id(x) for x in large], held)
    outs = given.evaluate(trace.jaxpr, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(trace.out_info), outs)


def _aval(x: Any) -> Any:
    return x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)


def _committed(x: Any) -> Sharding | None:
    return x.sharding if isinstance(x, jax.Array) and x.committed else None


def _is_large(x: Any) -> bool:
    return getattr(x, "nbytes", 0) > LARGE and not tree.is_key(x)


class _Constants:
    """The large constants of a program and of all the programs within it, each once, and which hold some."""

    def __init__(self, closed: ClosedJaxpr):
        self.large: dict[int, Any] = {}
        self.holders: set[int] = set()
        self._add(closed)

    def _add(self, closed: ClosedJaxpr) -> bool:
        found = {id(x): x for x in closed.consts if _is_large(x)}
        self.large |= found
        inner = [self._add(one) for eqn in closed.jaxpr.eqns for one in programs(eqn)]
        if found or any(inner):
            self.holders.add(id(closed.jaxpr))
        return bool(found) or any(inner)


def _where(leaves: list[Any], jaxpr: Jaxpr) -> Sharding | None:
    """Return where a program runs: where its arguments are, or on the mesh that it names; None if neither is.

    On several devices, what is not divided already stands whole on each.
    """
    given = [one for one in map(_committed, leaves) if one is not None]
    for eqn in equations(jaxpr):
        sharding, mesh = eqn.params.get("sharding"), eqn.params.get("mesh")
        if isinstance(mesh, Mesh):
            sharding = NamedSharding(mesh, PartitionSpec())
        # a sharding over an abstract mesh, as jax 0.10.0 writes it, says nothing of devices
        abstract = isinstance(sharding, NamedSharding) and not isinstance(sharding.mesh, Mesh)
        if isinstance(sharding, Sharding) and not abstract:
            given.append(sharding)
    meshes = [s.mesh for s in given if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh)]
    many = [mesh for mesh in meshes if mesh.size > 1]
    if many:
        return NamedSharding(many[0], PartitionSpec())
    return given[0] if given else None


def on_several_devices(closed: ClosedJaxpr) -> bool:
    """Tell whether a program names several devices: in a constraint, a mesh, or by its constants."""
    where = _where(closed.consts, closed.jaxpr)
    return where is not None and len(where.device_set) > 1


def _placed(x: Any, where: Sharding | None) -> Array:
    """Return a constant as an array on the devices of its program, which others may hold, too."""
    if isinstance(x, jax.Array):
        if where is None or len(x.sharding.device_set) > 1 or x.sharding == where:
            return x
        key: Any = id(x)  # whoever holds the copy holds `x`
    else:
        x = np.array(x)  # a copy, because jax would share the memory with the user
        key = x.shape, x.dtype, hashlib.sha256(x).digest()
    key = key, where, jnp.result_type(float)
    copy = _copies.get(key)
    if copy is None:
        if where is None:
            copy = jnp.asarray(x)
        else:
            whole = np.asarray(x)
            copy = jax.make_array_from_callback(x.shape, where, lambda index: whole[index])
        _copies[key] = copy
    return copy


class _Given(NamedTuple):
    """Arrays to be taken in the places of constants.

    Attributes:
        constants: Constants of the whole program.
        places: The `id` of each constant that is replaced.
        arrays: The array that is taken instead.
    """

    constants: _Constants
    places: list[int]
    arrays: list[Array]

    def evaluate(self, closed: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        """Evaluate a program with the arrays in the places of its constants."""
        jaxpr, values = closed.jaxpr, dict(zip(closed.jaxpr.invars, args, strict=True))
        given = dict(zip(self.places, self.arrays, strict=True))
        for v, x in zip(jaxpr.constvars, closed.consts, strict=True):
            new: Any = given.get(id(x), x)
            aval: Any = jax.typeof(x)
            values[v] = new if (new.shape, new.dtype) == (aval.shape, aval.dtype) else x

        def read(v: Any) -> Any:
            return v.val if isinstance(v, Literal) else values[v]

        for eqn in jaxpr.eqns:
            outs = self.apply(eqn, [read(v) for v in eqn.invars])
            values.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def apply(self, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
        """Return the results of one equation; what holds none of the constants is repeated as it is."""
        rule = _RULES.get(eqn.primitive.name)
        inner = programs(eqn) if rule else []
        if rule and any(id(one.jaxpr) in self.constants.holders for one in inner):
            return list(rule(self, eqn, inner, values))
        return bind_again(eqn, values, eqn.params)


def _call(given: _Given, eqn: JaxprEqn, inner: list[ClosedJaxpr], values: list[Any]) -> list[Any]:
    """Write a call out; nothing is differentiated any more, so that custom rules have no use."""
    return given.evaluate(inner[0], values)


def _checkpoint(
    given: _Given, eqn: JaxprEqn, inner: list[ClosedJaxpr], values: list[Any]
) -> list[Any]:
    held = given.arrays

    def body(held: list[Array], *args: Any) -> list[Any]:
        return given._replace(arrays=held).evaluate(inner[0], args)

    closed = jax.make_jaxpr(body)(held, *values)
    if closed.consts:
        return bind_again(eqn, values, eqn.params)
    return bind_again(eqn, [*held, *values], eqn.params | {"jaxpr": closed.jaxpr})


def _scan(given: _Given, eqn: JaxprEqn, inner: list[ClosedJaxpr], values: list[Any]) -> list[Any]:
    params, (num_consts, num_carry) = eqn.params, scan_counts(eqn.params)
    middle, consts = num_consts + num_carry, values[:num_consts]

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = given.evaluate(inner[0], [*consts, *carry, *xs])
        return outs[:num_carry], outs[num_carry:]

    settings = {
        k: params[k] for k in ("length", "reverse", "unroll", "_split_transpose") if k in params
    }
    carry, ys = jax.lax.scan(step, values[num_consts:middle], values[middle:], **settings)
    return [*carry, *ys]


def _while(given: _Given, eqn: JaxprEqn, inner: list[ClosedJaxpr], values: list[Any]) -> list[Any]:
    """Repeat a loop; where each member of a batch has a condition of its own, all wait for the last."""
    params = eqn.params
    num_test, num_body = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body = values[:num_test], values[num_test : num_test + num_body]

    def test(carry: list[Any]) -> Array:
        return given.evaluate(params["cond_jaxpr"], [*of_test, *carry])[0]

    def step(carry: list[Any]) -> list[Any]:
        outs, goes_on = given.evaluate(params["body_jaxpr"], [*of_body, *carry]), test(carry)
        if jnp.ndim(goes_on) == 0:
            return outs
        return [_choose(goes_on, *pair) for pair in zip(outs, carry, strict=True)]

    return list(jax.lax.while_loop(lambda c: jnp.any(test(c)), step, values[num_test + num_body :]))


def _choose(mask: Array, new: Array, old: Array) -> Array:
    return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(new) - mask.ndim)), new, old)


def _cond(given: _Given, eqn: JaxprEqn, inner: list[ClosedJaxpr], values: list[Any]) -> list[Any]:
    branches = [partial(_branch, given, one) for one in inner]
    return jax.lax.switch(values[0], branches, *values[1:])


def _branch(given: _Given, closed: ClosedJaxpr, *args: Any) -> list[Any]:
    return given.evaluate(closed, args)


def _shares(given: _Given, eqn: JaxprEqn, inner: list[ClosedJaxpr], values: list[Any]) -> list[Any]:
    """Repeat a `shard_map`; every device has the constants whole."""
    params, held = eqn.params, given.arrays

    def body(held: list[Array], *args: Any) -> tuple[Any, ...]:
        return tuple(given._replace(arrays=held).evaluate(inner[0], args))

    named = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
    spread = jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=(PartitionSpec(), *params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=named,
        check_vma=params["check_vma"],
    )
    return list(spread(held, *values))


def _solve(given: _Given, eqn: JaxprEqn, inner: list[ClosedJaxpr], values: list[Any]) -> list[Any]:
    """Solve a linear system as it says: its other functions are for derivatives."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    first = lengths.matvec + lengths.vecmat
    consts, right = values[first : first + lengths.solve], values[sum(lengths) :]
    return given.evaluate(jaxprs.solve, [*consts, *right])


_RULES: dict[str, Callable[..., list[Any]]] = {
    "jit": _call,
    "closed_call": _call,
    "core_call": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shares,
    "custom_linear_solve": _solve,
}
"""How the operations are repeated that hold programs."""
