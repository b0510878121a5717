"""The pytree algebra that `optax.tree` lacks: names of leaves, floats apart from the rest."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.types import Array, PyTree


def leaf_names(tree: PyTree, is_leaf: Callable | None = None, bare: str = "hparams") -> list[str]:
    """Name every leaf by its path, e.g. `"encoder.decay"`; a bare leaf is called `bare`."""
    paths = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") or bare for path, _ in paths]


def named(tree: PyTree) -> dict[str, Any]:
    """Flatten a tree to {leaf name: leaf}."""
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def rows(tree: PyTree, index: Array | np.ndarray) -> PyTree:
    """Gather rows of every leaf, `[N]` -> `[M]`."""
    return jax.tree.map(lambda x: x[index], tree)


def choose(condition: Array, new: PyTree, old: PyTree) -> Any:
    """Choose between two trees by one boolean `[]`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), cloned(new), cloned(old))


def cloned(tree: PyTree) -> Any:
    """Clone the PRNG keys of a tree, which will be used again on purpose; `jax_debug_key_reuse` is told so."""

    def one(leaf: Any) -> Any:
        return jax.random.clone(leaf) if is_key(leaf) else leaf

    return jax.tree.map(one, tree)


def copied(tree: PyTree) -> PyTree:
    """Copy the arrays of the device, so that a program may take their memory."""
    return jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tree)


def is_taken(tree: PyTree) -> bool:
    """Tell whether a program has taken the memory of an array (`donate_argnums` of `jax.jit`)."""
    return any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(tree))


def is_key(leaf: Any) -> bool:
    """Tell whether a leaf is a typed PRNG key."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def is_float(leaf) -> bool:
    """Tell whether a leaf has a derivative: real floating point of any width."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def split_float(tree: PyTree) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """Take the floating-point leaves out of a tree.

    Returns:
        The list of float leaves, and `join(floats) -> tree`, which puts others of the same shapes in
        their place. Integers, booleans and PRNG keys stay in `join`: they carry no derivative.
    """
    leaves, treedef = jax.tree.flatten(tree)
    where = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def join(floats: list[Array]) -> PyTree:
        filled = list(leaves)
        for i, leaf in zip(where, floats, strict=True):
            filled[i] = leaf
        return jax.tree.unflatten(treedef, filled)

    return [leaves[i] for i in where], join


def floats(tree: PyTree) -> list[Array]:
    """List the floating-point leaves of a tree."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Cast the numeric leaves of `tree` to the dtypes of `like`, so that a scan's carry keeps its type."""

    def cast(leaf: Any, reference: Any) -> Array:
        dtype = jnp.result_type(reference)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return leaf
        return jnp.asarray(leaf).astype(dtype)

    return jax.tree.map(cast, tree, like)


def dot(left: list[Array], right: list[Array]) -> Array:
    """Return Σ ⟨left_i, right_i⟩ over two lists of arrays, a scalar `[]`."""
    return sum((jnp.vdot(a, b) for a, b in zip(left, right, strict=True)), jnp.zeros(()))


def norm(tree: PyTree) -> Array:
    """Return the Euclidean norm over all float leaves, accumulated in at least float32, a scalar `[]`."""
    total = jnp.zeros((), jnp.float32)
    for leaf in floats(tree):
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        total = total + jnp.sum(jnp.square(wide))
    return jnp.sqrt(total)


def cosine_between(left: PyTree, right: PyTree) -> Array:
    """Return the cosine of the angle between two trees, `[]`; 0 where one of them is zero."""
    scale = norm(left) * norm(right)
    product = dot(jax.tree.leaves(left), jax.tree.leaves(right))
    return jnp.where(scale > 0, product / jnp.where(scale > 0, scale, 1), 0)


def strong(tree: PyTree) -> Any:
    """Strip weak types, so that the second call of a compiled step finds the program of the first."""

    def strip(leaf: Any) -> Array:
        dtype = jnp.result_type(leaf)
        prng = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        return leaf if prng else jnp.asarray(leaf, dtype)

    return jax.tree.map(strip, tree)


def add(left: PyTree, right: PyTree) -> PyTree:
    """Add two trees of the same structure leaf by leaf."""
    return jax.tree.map(jnp.add, left, right)
