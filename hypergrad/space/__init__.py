"""Search spaces: dimensions, and the maps to and from their values.

- `bounds`: What the arguments of a dimension must be, and the values with a step.
- `cells`: The cells of counted unit coordinates: equal ones, or those of whole numbers on a logarithmic
  scale.
- `description`: A space as JSON, and its dimensions read back: `{name: {"kind": "LogReal", "low": 0.001,
  ...}}`.
- `dimensions`: Search spaces: a pytree whose leaves are dimensions, and the maps between its three
  coordinate systems.
- `maps`: Maps between a space, the unit cube and unconstrained numbers; schedules and selections.
- `schedules`: Schedules whose peaks, lengths and ends may be hyperparameters.
- `static`: Static dimensions, whose values change the shapes of a compiled program.
- `units`: The unit coordinates of a space as searchers use them: many trials at once, some coordinates
  counted.
- `values`: What a space may hold, its starting values, and whether a value is one of its own.
"""

from hypergrad.space import schedules
from hypergrad.space.description import describe_space, space_from_description
from hypergrad.space.dimensions import (
    Choice,
    Dimension,
    Integer,
    LogReal,
    Real,
    Sequence,
    is_dimension,
    is_discrete,
)
from hypergrad.space.maps import (
    constrain,
    from_unit,
    num_coordinates,
    sample,
    sample_constant,
    schedule,
    select,
    to_unit,
    unconstrain,
)
from hypergrad.space.units import (
    Coordinates,
    cell,
    coordinates,
    from_units,
    names_of,
    snap,
    to_units,
    widths,
)
from hypergrad.space.values import check_space, check_value, default, dynamic, starting_values

__all__ = [
    "Choice",
    "Coordinates",
    "Dimension",
    "Integer",
    "LogReal",
    "Real",
    "Sequence",
    "cell",
    "check_space",
    "check_value",
    "constrain",
    "coordinates",
    "default",
    "describe_space",
    "dynamic",
    "from_unit",
    "from_units",
    "is_dimension",
    "is_discrete",
    "names_of",
    "num_coordinates",
    "sample",
    "sample_constant",
    "schedule",
    "schedules",
    "select",
    "snap",
    "space_from_description",
    "starting_values",
    "to_unit",
    "to_units",
    "unconstrain",
    "widths",
]
