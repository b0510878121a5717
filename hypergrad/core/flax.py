"""Flax modules as init and apply: `from_linen`, `from_nnx`. The only file that imports flax."""

import inspect
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from flax import linen, nnx

from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_function, check_kind
from hypergrad.core.network import PureModel, training_switch
from hypergrad.core.types import Array, Key, Params, PyTree, Variables


def from_linen(module: linen.Module, *, train_argument: str | None = None) -> PureModel:
    """Adapt a `flax.linen` module.

    Args:
        module: Module that takes the inputs as its one positional argument.
        train_argument: Name of the module's own training switch (`"train"`, `"is_training"`), if it has
            one. A switch with the opposite meaning is named with a `not ` before it:
            `"not deterministic"`, `"not use_running_average"`.

    Returns:
        The model. Collections other than `params` travel as carried state.
    """
    check_kind("module", module, linen.Module, "flax.linen.Dense(10), or an nnx module to from_nnx")

    switch = training_switch(train_argument)

    def init(key: Key, inputs: PyTree) -> Params:
        param_key, dropout_key = jax.random.split(key)
        # train=False: BatchNorm statistics then start at their initial values
        with _fixed_numbers(vars(module), jax.errors.ConcretizationTypeError):
            variables = module.init(
                {"params": param_key, "dropout": dropout_key}, inputs, **switch(False)
            )
        state = {name: value for name, value in variables.items() if name != "params"}
        params = variables["params"]
        return Variables(params, state) if state else params

    def apply(
        params: Params, inputs: PyTree, *, train: bool = False, key: Key | None = None
    ) -> tuple[Any, PyTree]:
        rngs = {} if key is None else {"dropout": key}
        with _fixed_numbers(vars(module), jax.errors.ConcretizationTypeError):
            if not isinstance(params, Variables):
                return module.apply({"params": params}, inputs, rngs=rngs, **switch(train)), None
            variables = {"params": params.params, **params.state}
            if not train:
                return module.apply(variables, inputs, rngs=rngs, **switch(False)), params.state
            outputs, state = module.apply(
                variables, inputs, rngs=rngs, mutable=list(params.state), **switch(True)
            )
            return outputs, {**params.state, **state}

    return PureModel(init, apply)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> PureModel:
    """Adapt a `flax.nnx` module.

    Args:
        make: Function that builds the module from its random streams, e.g. `lambda rngs: MLP(64, 10,
            rngs=rngs)`.

    Returns:
        The model. `nnx.Param` variables are trained; BatchNorm statistics and all others travel as
        carried state. Dropout draws from the key of each call, not from streams kept in the module.
    """
    check_function("make", make, "lambda rngs: MLP(rngs=rngs), which builds the module")

    def split(module: nnx.Module) -> tuple[Any, PyTree, PyTree, PyTree]:
        graph, params, rng, state = nnx.split(module, nnx.Param, nnx.RngState, ...)  # pyright: ignore
        return graph, params, rng, state

    # the graph holds no arrays: it is the same for every key, and finding it computes none
    given = dict(inspect.getclosurevars(make).nonlocals) if inspect.isfunction(make) else {}
    with _fixed_numbers(given, Exception):
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph = split(abstract)[0]

    def init(key: Key, inputs: PyTree) -> Params:
        del inputs  # nnx modules know their shapes
        params, _, state = split(make(nnx.Rngs(key)))[1:]
        pure = nnx.to_pure_dict(params), nnx.to_pure_dict(state)
        return Variables(*pure) if jax.tree.leaves(pure[1]) else pure[0]

    def apply(
        params: Params, inputs: PyTree, *, train: bool = False, key: Key | None = None
    ) -> tuple[Any, PyTree]:
        module = make_shell(params, key)
        module.train() if train else module.eval()
        outputs = module(inputs)
        if not isinstance(params, Variables):
            return outputs, None
        return outputs, nnx.to_pure_dict(split(module)[3])

    def make_shell(params: Params, key: Key | None) -> nnx.Module:
        """Merge arrays into a fresh module: nothing is shared between traces."""
        weights, state = params if isinstance(params, Variables) else (params, {})
        _, abstract_params, abstract_rng, abstract_state = split(abstract)
        nnx.replace_by_pure_dict(abstract_params, weights)
        nnx.replace_by_pure_dict(abstract_state, state)
        module = nnx.merge(
            graph, abstract_params, _streams(abstract_rng, key), abstract_state, copy=True
        )
        for _, node in nnx.iter_graph(module):
            if isinstance(node, nnx.BatchNorm):
                node.mean, node.var = _Running(node.mean[...]), _Running(node.var[...])
        return module

    return PureModel(init, apply)


class _Running(nnx.BatchStat):
    """A running statistic through which a derivative passes.

    `nnx.BatchNorm` stops it where it can change a variable in place, since arrays that are changed in place
    have none. Here the new value is carried on to the next step.
    """

    _can_update = False  # pyright: ignore[reportAssignmentType,reportIncompatibleMethodOverride]


@contextmanager
def _fixed_numbers(given: dict[str, Any], error_kind: type[Exception]) -> Iterator[None]:
    """Say what to do where a module got a hyperparameter that flax takes as a number of Python.

    Args:
        given: What the module was made from.
        error_kind: Kind of error that flax raises then.
    """
    try:
        yield
    except error_kind as error:
        names = [name for name, value in given.items() if traced(value)]
        if not names:
            raise
        raise ValueError(
            f"module got a traced {names[0]}, expected a number of Python, because flax compares or keeps it "
            "(as the rate of its Dropout); for a rate that is a hyperparameter, draw the mask in a module of "
            "your own with jax.random.bernoulli, which a DrawnLeafWarning then names, or with "
            "estimators.policies.concrete"
        ) from error


def _streams(abstract: PyTree, key: Key | None) -> PyTree:
    """Start each of the module's random streams at a key of its own, derived from `key`."""
    base = jax.random.key(0) if key is None else key

    def start(path: tuple, variable: Any) -> Any:
        leaf: Array | jax.ShapeDtypeStruct = variable.get_value()
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            name = "/".join(str(part) for part in path)
            value = jax.random.fold_in(base, zlib.crc32(name.encode()))
        else:
            value = jax.numpy.zeros(leaf.shape, leaf.dtype)
        return variable.replace(value)

    return nnx.map_state(start, abstract)
