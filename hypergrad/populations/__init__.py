"""Populations: many members of one problem, trained side by side.

- `base`: Train many members of one problem at once.
- `devices`: Devices that a population is spread over: the cores of this machine, or the devices of many
  hosts.
- `groups`: Populations whose members do not share one program: each shape has its own, compiled once.
- `layouts`: Layouts: run a function of one member for N members side by side, in chunks, in a loop or on
  devices.
- `sizing`: Layouts within a bound on memory: the widest one that fits, or the fastest by the clock.
"""

from hypergrad.core.memory import total_memory
from hypergrad.populations.base import Member, Population, count, make_population, population, take
from hypergrad.populations.devices import mesh, num_cores, use_cores
from hypergrad.populations.groups import (
    Buckets,
    alike,
    bucketed,
    grouped,
    partitioned,
    per_shape,
    plan_buckets,
)
from hypergrad.populations.layouts import (
    Layout,
    LayoutWarning,
    chunked,
    layout_for,
    looped,
    out_of_memory,
    sharded,
    vectorized,
)
from hypergrad.populations.sizing import (
    Sized,
    Tried,
    fastest_layout,
    state_bytes,
    widest_chunk,
)

__all__ = [
    "Buckets",
    "Layout",
    "LayoutWarning",
    "Member",
    "Population",
    "Sized",
    "Tried",
    "alike",
    "bucketed",
    "chunked",
    "count",
    "fastest_layout",
    "grouped",
    "layout_for",
    "looped",
    "make_population",
    "mesh",
    "num_cores",
    "out_of_memory",
    "partitioned",
    "per_shape",
    "plan_buckets",
    "population",
    "sharded",
    "state_bytes",
    "take",
    "total_memory",
    "use_cores",
    "vectorized",
    "widest_chunk",
]
