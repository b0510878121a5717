"""Layouts: run a function of one member for N members side by side, in chunks, in a loop or on devices."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_whole
from hypergrad.core.hoist import Compiled
from hypergrad.core.types import Array, PyTree
from hypergrad.populations.devices import mesh as make_mesh

CPU_WIDTH = 4
"""Number of members side by side on one core of a CPU: fastest for small networks (`fastest_layout`)."""

Mapped = Callable[..., PyTree]
"""(shared, *parts) -> results; every leaf of the parts and of the results has the leading axis `[N]`."""


class Layout(NamedTuple):
    """A way to run a function of one member for N members, as a value.

    The bits of a member's result depend on the width of the compiled program. Where the width is fixed, they
    depend on nothing else: not on N, not on the member's neighbours, not on the number of devices.

    Attributes:
        each: (function, gather, brief) -> `Mapped`, where `function(shared, *parts)` works on one member. With
            `gather`, results are whole on every device. A `brief` one compiles longer than it runs.
        width: Number of members computed side by side on one device; None: all of them.
        multiple: Number that must divide N; 1 where any N will do.
        host: Whether it loops on the host, and so cannot be traced.
        label: Name for people.
        whole: (tree) -> the same arrays, each of them whole on every device, also of other hosts.
    """

    each: Callable[..., Mapped]
    width: int | None
    multiple: int
    host: bool
    label: str
    whole: Callable[[PyTree], PyTree] = lambda tree: tree


class LayoutWarning(UserWarning):
    """The device ran out of memory, and fewer members are computed side by side from now on."""


def vectorized() -> Layout:
    """Compute all members side by side by `vmap`, which is fastest on an accelerator.

    **Cost:** memory of N runs. When the device runs out of memory, the width is halved until it fits; from
    then on results are the same to 1e-5, not to the bit.
    """

    def each(function: Callable, gather: bool = False, brief: bool = False) -> Mapped:
        return _backing_off(lambda width: _one_device(function, width), None)

    return Layout(each, None, 1, False, "all side by side")


def chunked(width: int = CPU_WIDTH) -> Layout:
    """Compute `width` members side by side and the chunks one after another, in one compiled program.

    The last chunk is filled up with copies of the last member, so that the bits of a member do not depend on
    N.

    **Cost:** memory of `width` runs beside the N states; when the device runs out of memory, the
    width is halved as in `vectorized`.
    """
    return _chunks(check_whole("width", width, example=4))


def _chunks(width: int) -> Layout:
    """Build what `chunked` returns."""

    def each(function: Callable, gather: bool = False, brief: bool = False) -> Mapped:
        return _backing_off(lambda w: _one_device(function, w), width)

    return Layout(each, width, 1, False, f"chunks of {width}")


def looped(width: int = 1, mesh: Mesh | None = None) -> Layout:
    """Call one compiled program of `width` members from the host as often as needed.

    That program fits every N, so that a population that shrinks compiles once. States pass through the
    host's memory.

    **Limits:** the layout cannot be traced; a scheduler then works on the host between the calls.

    Args:
        width: Number of members of a call; on a mesh, of each device.
        mesh: Mesh of one axis, whose devices share the members of a call; one device where None.
    """
    return _loop(check_whole("width", width, example=4), mesh)


def _loop(width: int, mesh: Mesh | None) -> Layout:
    """Build what `looped` returns."""
    members = width if mesh is None else width * mesh.devices.size

    def each(function: Callable, gather: bool = False, brief: bool = False) -> Mapped:
        return _looped(function, members, mesh, brief)

    label = "one after another" if members == 1 else f"one program of {members} after another"
    return Layout(each, width, 1, True, label)


def sharded(mesh: Mesh | None = None, inner: Layout | None = None, *, pad: bool = False) -> Layout:
    """Give each device of a mesh its share of the members, and compute those by `inner`.

    Devices exchange nothing while members train; one number per member is gathered. Populations
    that shrink are filled up with copies of the last member. On several hosts (after
    `jax.distributed.initialize()`) every process runs the same study, and finds the same trials.

    Args:
        mesh: Mesh of one axis; all devices of jax, on all its hosts, where None.
        inner: Layout of the share of one device; `chunked()` on CPUs and `vectorized()` on others where None.
        pad: Whether to fill up a population that the mesh does not divide instead of refusing it.

    Raises:
        ValueError: for a mesh of several axes, or an `inner` that works on the host.
    """
    mesh = make_mesh() if mesh is None else mesh
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) != 1:
        raise ValueError(
            f"mesh is {str(mesh)[:80]}, expected a jax.sharding.Mesh of one axis; pass devices.mesh()"
        )
    cpu = mesh.devices.flat[0].platform == "cpu"
    inner = (_chunks(CPU_WIDTH) if cpu else vectorized()) if inner is None else inner
    if inner.host or inner.multiple > 1:
        raise ValueError(
            f"inner is {inner.label!r}, expected a layout of one device that can be traced; "
            "pass chunked(width) or vectorized()"
        )
    num = mesh.devices.size

    def each(function: Callable, gather: bool = False, brief: bool = False) -> Mapped:
        def at(width: int | None) -> Mapped:
            return _many_devices(_one_device(function, width), mesh, gather)

        return _backing_off(at, inner.width, num)

    def whole(tree: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))

    multiple, label = 1 if pad else num, f"{num} devices, {inner.label} on each"
    return Layout(each, inner.width, multiple, False, label, whole)


def default_layout() -> Layout:
    """Return the layout that needs no measurement: all devices, chunks on CPUs, side by side elsewhere."""
    devices = jax.devices()
    if len(devices) > 1:
        return sharded(make_mesh(devices), pad=True)
    return chunked() if devices[0].platform == "cpu" else vectorized()


def layout_for(
    num: int,
    num_devices: int | None = None,
    width: int | None = None,
    *,
    groups: bool = False,
    one_program: bool = False,
) -> Layout:
    """Return the layout of `num` members on several devices that leaves no useful device idle.

    Args:
        num: Largest number of members.
        num_devices: Number of devices to use, at most one for each chunk; all that jax has where None.
        width: Members side by side on each device; up to `CPU_WIDTH` on CPUs and all elsewhere where None.
        groups: Whether members are trained in groups of any size, for which one program must do (`looped`).
            The width on CPUs is then 1 where None, because a group may leave most of a call unused.
        one_program: Whether one program must do for all that trains (`looped`), however many members there are.

    Raises:
        ValueError: for more devices than there are.
    """
    devices = make_mesh(num_devices).devices.flatten().tolist()
    share = -(-num // len(devices))
    if width is None:
        cpu = 1 if groups else min(CPU_WIDTH, share)
        width = cpu if devices[0].platform == "cpu" else share
    used = min(len(devices), -(-num // width))
    if groups or one_program:
        return _loop(width, make_mesh(devices[:used]) if used > 1 else None)
    inner = _chunks(width) if width < share else vectorized()
    if used == 1 and devices[0] == jax.devices()[0]:
        return inner
    return sharded(make_mesh(devices[:used]), inner, pad=True)


def rows_on_host(states: PyTree, index: Array) -> PyTree:
    """Gather members by index like `take`, without a program for each of their numbers."""
    on_host, chosen = jax.device_get((_without_keys(states), index))
    return _with_keys(jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[chosen]), on_host))


def num_members(parts: PyTree) -> int:
    """Return N, the leading axis of the parts."""
    return jax.tree.leaves(parts)[0].shape[0]


def _one_device(function: Callable, width: int | None) -> Mapped:
    """Compile `function` for N members, `width` of them side by side (None: all)."""

    def mapped(shared: PyTree, *parts: PyTree) -> PyTree:
        many = jax.vmap(lambda *one: function(shared, *one))
        if width is None:
            return many(*parts)
        num = num_members(parts)
        chunks = jax.tree.map(lambda x: x.reshape(-1, width, *x.shape[1:]), _fill(parts, width))
        results = jax.lax.map(lambda chunk: many(*chunk), chunks)
        return jax.tree.map(lambda x: x.reshape(x.shape[0] * width, *x.shape[2:])[:num], results)

    return Compiled(mapped)


def _many_devices(inner: Mapped, mesh: Mesh, gather: bool) -> Mapped:
    """Compile `inner` for a share of the members on each device."""
    (axis,) = mesh.axis_names
    whole, split = PartitionSpec(), PartitionSpec(axis)

    def share(shared: PyTree, *parts: PyTree) -> PyTree:
        results = inner(shared, *parts)
        if not gather:
            return results
        return jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), results)

    def mapped(shared: PyTree, *parts: PyTree) -> PyTree:
        num = num_members(parts)
        spread = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(whole, *(split for _ in parts)),
            out_specs=whole if gather else split,
            check_vma=False,  # the check refuses loops whose carry starts from a constant
        )
        results = spread(shared, *_fill(parts, mesh.devices.size))
        return jax.tree.map(lambda x: x[:num], results)

    return Compiled(mapped)


def _fill(parts: PyTree, multiple: int) -> PyTree:
    """Repeat the last member until `multiple` divides their number."""
    num = num_members(parts)
    if num % multiple == 0:
        return parts
    index = np.minimum(np.arange(-(-num // multiple) * multiple), num - 1)
    return tree.rows(parts, index)


def _backing_off(
    at: Callable[[int | None], Mapped], width: int | None, num_devices: int = 1
) -> Mapped:
    """Call `at(width)`, and again with half the width whenever a device runs out of memory.

    Within a trace nothing runs, and so no memory can run out: that error comes to the caller of the compiled
        program.
    """
    call = at(width)

    def mapped(shared: PyTree, *parts: PyTree) -> PyTree:
        nonlocal call, width
        while True:
            try:
                results = call(shared, *parts)
                return results if traced(results) else jax.block_until_ready(results)
            except jax.errors.JaxRuntimeError as error:
                now = -(-num_members(parts) // num_devices) if width is None else width
                width = _halved(now, error)
                call = at(width)

    return mapped


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that a device has no memory left."""
    return "RESOURCE_EXHAUSTED" in str(error)


def _halved(width: int, error: Exception) -> int:
    """Return half the width with a warning, or raise the error where that does not help."""
    if width == 1 or not out_of_memory(error):
        raise error
    warnings.warn(
        f"the device ran out of memory with {width} members side by side; continuing with {width // 2}, whose "
        "results are the same to 1e-5, not to the bit",
        LayoutWarning,
        stacklevel=4,
    )
    return width // 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _KeyData:
    """The numbers of a PRNG key, because arrays on the host cannot hold keys."""

    data: Any
    impl: Any = field(metadata={"static": True})


def _without_keys(tree: PyTree) -> PyTree:
    def leaf(x: Any) -> Any:
        typed = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        return _KeyData(jax.random.key_data(x), jax.random.key_impl(x)) if typed else x

    return jax.tree.map(leaf, tree)


def _with_keys(tree: PyTree) -> PyTree:
    def leaf(x: Any) -> Any:
        return jax.random.wrap_key_data(x.data, impl=x.impl) if isinstance(x, _KeyData) else x

    return jax.tree.map(leaf, tree, is_leaf=lambda x: isinstance(x, _KeyData))


def _looped(function: Callable, width: int, mesh: Mesh | None, brief: bool) -> Mapped:
    """Call one compiled program for every `width` members."""
    spread = None if mesh is None else _many_devices(_one_device(function, None), mesh, True)

    def program(shared: PyTree, *parts: PyTree) -> PyTree:
        parts = _with_keys(parts)
        if spread is not None:
            return _without_keys(spread(shared, *parts))
        if num_members(parts) > 1:
            return _without_keys(jax.vmap(lambda *one: function(shared, *one))(*parts))
        result = function(shared, *jax.tree.map(lambda x: x[0], parts))
        return _without_keys(jax.tree.map(lambda x: jnp.asarray(x)[None], result))

    compiled = Compiled(program, brief=brief)

    def mapped(shared: PyTree, *parts: PyTree) -> PyTree:
        nonlocal width
        num = num_members(parts)
        # a slice of an array on the host costs a microsecond, on a device a dispatch
        on_host = jax.tree.map(np.asarray, jax.device_get(_without_keys(parts)))
        found, start = [], 0
        while start < num:
            index = np.minimum(np.arange(start, start + width), num - 1)
            chunk = jax.tree.map(lambda x, i=index: x[i], on_host)
            try:
                results = compiled(shared, *chunk)
                found.append(results if width == 1 else jax.block_until_ready(results))
                start += width
            except jax.errors.JaxRuntimeError as error:
                width = _halved(width, error)

        def join(*pieces: np.ndarray) -> Array:
            return jnp.asarray(np.concatenate(pieces)[:num])

        return _with_keys(jax.tree.map(join, *jax.device_get(found)))

    return mapped
