"""Equinox modules as init and apply: `from_equinox`. equinox loads when it is first used."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_function, describe, library
from hypergrad.core.network import PureModel
from hypergrad.core.types import Array, Key, Params, PyTree, Variables

MODULE = "lambda key: equinox.nn.MLP(8, 1, 16, 2, key=key), which builds the module"


class _Parts(NamedTuple):
    """What a module and its state hold, by the order of their leaves.

    Attributes:
        treedef: Structure of the pair (module, state); the state is None where there is none.
        names: Name of each leaf.
        leaves: The leaves: shapes of arrays, and all else as it stands.
        trained: Whether each leaf is trained: an array of floats of the module.
    """

    treedef: Any
    names: list[str]
    leaves: list[Any]
    trained: list[bool]

    def take(self, leaves: list[Any], trained: bool) -> dict[str, Array]:
        """Return the arrays that are trained, or those that are not, by their names."""
        rows = zip(self.names, leaves, self.leaves, self.trained, strict=True)
        return {name: x for name, x, shape, one in rows if one == trained and _is_array(shape)}

    def fill(self, arrays: dict[str, Array]) -> tuple[Any, Any]:
        """Return the module and its state with these arrays."""
        rows = zip(self.names, self.leaves, strict=True)
        return jax.tree.unflatten(self.treedef, [arrays.get(name, x) for name, x in rows])


def from_equinox(make: Callable[[Key], Any], *, axis_name: str | None = "batch") -> PureModel:
    """Adapt an `equinox` module.

    A dropout rate may be a hyperparameter: build the model within the loss, where `make` hands the rate to
    `equinox.nn.Dropout`, by itself or within another module. What derivative it then has is for
    `estimators.evolved` to say, or `policies.concrete`; others name it by a `DrawnLeafWarning`.

    **Limits:** every array of floats that a module keeps is trained, but for rates of `Dropout`. Hand other
    hyperparameters over with the inputs.

    Args:
        make: (key) -> module, or (module, state) as `equinox.nn.make_with_state` makes them. The module is
            called with one example, its state if there is one, and the keyword `key` if it takes one.
        axis_name: Name of the batch's axis, which BatchNorm asks for; None for a module that takes a whole
            batch.

    Returns:
        The model. Its params are a dict of the arrays that are trained, by their paths. State and all other
        arrays travel as carried state.

    Raises:
        ValueError: for a `make` that is no function or returns something else, a module that keeps a traced
            hyperparameter as a weight, or without equinox, which the extra `equinox` installs.
    """
    equinox = library("equinox", "equinox", "adapter")
    check_function("make", make, MODULE)
    parts, num_rates = _take_apart(equinox, make)
    rates: list[Array] = []
    if num_rates:
        # one program more, because what an abstract evaluation returns is no value
        rates = jax.jit(lambda key: _rates(equinox, _pair(make(key))[0]))(jax.random.key(0))

    def init(key: Key, inputs: PyTree) -> Params:
        del inputs  # equinox modules know their shapes
        module, state = _pair(make(key))
        leaves = jax.tree.leaves((_bare(equinox, module), state))
        params, kept = parts.take(leaves, True), parts.take(leaves, False)
        return Variables(params, kept) if kept else params

    def apply(
        params: Params, inputs: PyTree, *, train: bool = False, key: Key | None = None
    ) -> tuple[Any, PyTree]:
        weights, kept = params if isinstance(params, Variables) else (params, {})
        bare, state = parts.fill({**weights, **kept})
        module = equinox.nn.inference_mode(_with_rates(equinox, bare, rates), not train)
        outputs, state = _call(module, state, inputs, key, axis_name)
        if not isinstance(params, Variables):
            return outputs, None
        return outputs, parts.take(jax.tree.leaves((bare, state)), False) if train else kept

    return PureModel(init, apply)


def _call(
    module: Any, state: Any, inputs: PyTree, key: Key | None, axis_name: str | None
) -> tuple[Any, Any]:
    """Call a module with a batch; return its outputs and its state."""
    takes_key = "key" in inspect.signature(type(module).__call__).parameters

    def one(inputs: PyTree, state: Any, key: Key | None) -> tuple[Any, Any]:
        keyword = {"key": key} if takes_key else {}
        if state is None:
            return module(inputs, **keyword), None
        return module(inputs, state, **keyword)

    if axis_name is None:
        return one(inputs, state, key)
    num = len(jax.tree.leaves(inputs)[0])
    keys = None if key is None else jax.random.split(key, num)
    return jax.vmap(one, (0, None, 0), (0, None), axis_name=axis_name)(inputs, state, keys)


def _take_apart(equinox: Any, make: Callable[[Key], Any]) -> tuple[_Parts, int]:
    """Build a module abstractly; return what of it is trained, and how many rates are arrays."""
    given = inspect.getclosurevars(make).nonlocals if inspect.isfunction(make) else {}
    outer = [x for x in jax.tree.leaves(dict(given)) if traced(x)]
    num_rates, kept = 0, []

    def build(key: Key) -> tuple[Any, Any]:
        nonlocal num_rates, kept
        module, state = _pair(make(key))
        _check_module(equinox, module)
        num_rates = len(_rates(equinox, module))
        bare = _bare(equinox, module)
        leaves = jax.tree.leaves((bare, state))
        kept = [i for i, leaf in enumerate(leaves) if any(leaf is x for x in outer)]
        return bare, state

    shapes = equinox.filter_eval_shape(build, jax.random.key(0))
    rows, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = [leaf for _, leaf in rows]
    of_module = [path[0].idx == 0 for path, _ in rows]
    names = [
        ("" if own else "state.") + jax.tree_util.keystr(path[1:], simple=True, separator=".")
        for (path, _), own in zip(rows, of_module, strict=True)
    ]
    if kept:
        raise ValueError(
            f"make keeps a traced value as the weight {names[kept[0]]!r}, expected one as the rate of a "
            "Dropout alone, because each array of floats that a module keeps is trained; hand it over with the "
            "inputs, or, if a weight is to start there, multiply it by one"
        )
    floats = [_is_array(leaf) and tree.is_float(leaf) for leaf in leaves]
    trained = [own and one for own, one in zip(of_module, floats, strict=True)]
    return _Parts(treedef, names, leaves, trained), num_rates


def _pair(made: Any) -> tuple[Any, Any]:
    return made if isinstance(made, tuple) and len(made) == 2 else (made, None)


def _check_module(equinox: Any, module: Any) -> None:
    if not isinstance(module, equinox.Module):
        raise ValueError(
            f"make returned {describe(module)}, expected a module of equinox; pass e.g. {MODULE}"
        )
    indices = (equinox.nn.StateIndex,)
    nodes = jax.tree.leaves(module, is_leaf=lambda x: isinstance(x, indices))
    if any(isinstance(node, indices) and jax.tree.leaves(node.init) for node in nodes):
        raise ValueError(
            "make returned a module with state (as of BatchNorm), expected (module, state); write "
            "equinox.nn.make_with_state(Net)(key=key)"
        )


def _rates(equinox: Any, module: Any) -> list[Array]:
    """List the rates of the module's dropouts that are arrays, and not numbers of Python."""
    kind = equinox.nn.Dropout
    nodes = jax.tree.leaves(module, is_leaf=lambda x: isinstance(x, kind))
    return [node.p for node in nodes if isinstance(node, kind) and isinstance(node.p, jax.Array)]


def _bare(equinox: Any, module: Any) -> Any:
    """Return the module without those rates."""
    kind = equinox.nn.Dropout

    def put(node: Any) -> Any:
        if isinstance(node, kind) and isinstance(node.p, jax.Array):
            return _drawn(equinox)(None, node.inference)
        return node

    return jax.tree.map(put, module, is_leaf=lambda x: isinstance(x, kind))


def _with_rates(equinox: Any, bare: Any, rates: list[Array]) -> Any:
    """Return the module with them again."""
    kind, left = _drawn(equinox), iter(rates)

    def put(node: Any) -> Any:
        return kind(next(left), node.inference) if isinstance(node, kind) else node

    return jax.tree.map(put, bare, is_leaf=lambda x: isinstance(x, kind))


@cache
def _drawn(equinox: Any) -> Any:
    """Return the class of a dropout like equinox's, whose rate keeps the derivative that it has.

    equinox stops the gradient of the rate, even where it scales what is kept, and so takes the trace of it from
    the program, without which nobody can tell that a hyperparameter was lost.
    """

    class Drawn(equinox.Module):
        p: Any
        inference: bool = False

        def __call__(self, x: Array, *, key: Any = None, inference: bool | None = None) -> Array:
            if self.inference if inference is None else inference:
                return x
            if key is None:
                raise ValueError(
                    "key is None, expected a key for dropout; pass apply(..., key=key)"
                )
            keep = 1 - self.p
            return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0)

    return Drawn


def _is_array(leaf: Any) -> bool:
    """Tell whether a leaf of an abstract module stands for an array."""
    return isinstance(leaf, jax.ShapeDtypeStruct)
