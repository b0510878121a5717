"""Markov tables over descending atoms: a family of sequences that never rise."""

from math import comb
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.types import Array
from hypergrad.searchers.models.families import SMALL, Family, Smoothing, draw, entropy


class Chain(NamedTuple):
    """Tables of S sequences of L steps over K atoms.

    Attributes:
        first: Probabilities of the first step, `[S, K]`.
        moves: Tables T_l(j → j'), `[L − 1, S, K, K]`, upper triangular: atoms are in descending order.
    """

    first: Array
    moves: Array


def chains(
    name: str,
    shape: tuple[int, int],
    num_atoms: int,
    smoothing: Smoothing,
    floor: float,
    near: tuple[np.ndarray, float] | None = None,
) -> Family:
    """Draw S sequences of L atoms each that never rise: b_1 ~ P, b_{l+1} ~ T_l(b_l → ·).

    The atoms divide the range (in the logarithm, for `LogReal`) evenly, from its upper bound to its lower
    one. The first distribution gives every sequence that never rises the same probability: the probability of a
    first atom j is then proportional to the number C(K − 1 − j + r, r) of ways to continue for r steps. P and
    T_l are fitted by the elites' counts, which minimise the Kullback-Leibler divergence; the row of an atom
    that no elite visited does not change.

    Args:
        name: Name of the leaf.
        shape: Shape (L, S) of the sequences.
        num_atoms: Number K of atoms.
        smoothing: Smoothing of the tables.
        floor: Share of the first tables in the draws.
        near: Value of a prior in unit coordinates, `[L · S]`, and its spread; None where there is no prior.
    """
    length, num = shape
    share = 1 - np.arange(num_atoms) / (num_atoms - 1)
    start = _start(shape, num_atoms, share, near)

    def drawn(params: Chain) -> Chain:
        return jax.tree.map(lambda p, p0: (1 - floor) * p + floor * p0, params, start)

    def transform(params: Chain, uniforms: Array) -> Array:
        atoms = _walk(drawn(params), uniforms.reshape(-1, length, num))
        return _units(jnp.moveaxis(jnp.asarray(share, jnp.result_type(float))[atoms], 0, 1))

    def index(units: Array) -> Array:
        """Return the atoms of units, `[N, L, S]`; for schedules between atoms, the nearest."""
        found = jnp.round((1 - _shares(units.reshape(-1, length, num))) * (num_atoms - 1))
        return jnp.clip(found.astype(jnp.int32), 0, num_atoms - 1)

    def log_density(params: Chain, units: Array) -> Array:
        tables, atoms = drawn(params), index(units)
        sequences, steps = np.arange(num), np.arange(length - 1)[:, None]
        begin = tables.first[sequences, atoms[:, 0]]
        went = tables.moves[steps, sequences, atoms[:, :-1], atoms[:, 1:]]
        logs = jnp.log(jnp.maximum(begin, SMALL)), jnp.log(jnp.maximum(went, SMALL))
        return jnp.sum(logs[0], -1) + jnp.sum(logs[1], (1, 2))

    def fit(params: Chain, units: Array, weights: Array) -> Chain:
        hot = jax.nn.one_hot(index(units), num_atoms, dtype=jnp.result_type(float))
        total = jnp.maximum(jnp.sum(weights), 1)
        counts = jnp.einsum("n,nlsj,nlsk->lsjk", weights, hot[:, :-1], hot[:, 1:])
        visits = jnp.sum(counts, -1, keepdims=True)
        moves = jnp.where(visits > 0, counts / jnp.maximum(visits, SMALL), params.moves)
        return Chain(jnp.einsum("n,nsk->sk", weights, hot[:, 0]) / total, moves)

    def blend(old: Chain, new: Chain, step: Array) -> Chain:
        c = smoothing.tables
        return jax.tree.map(lambda a, b: c * b + (1 - c) * a, old, new)

    def settled(params: Chain, sigma: float, epsilon: float) -> Array:
        return jnp.all(jnp.max(_marginals(params), -1) >= 1 - epsilon)

    def info(params: Chain) -> dict[str, Array]:
        # entropy of step l given the one before it; the sum is the entropy of the whole sequence
        given = jnp.sum(_marginals(params)[:-1] * entropy(params.moves), -1)
        every = jnp.concatenate([entropy(params.first)[None], given]).sum(-1)
        return {f"entropy.{name}.{step}": every[step] for step in range(length)}

    return Family(start, transform, log_density, fit, blend, settled, info)


def _walk(tables: Chain, uniforms: Array) -> Array:
    """Return the atoms that uniforms `[N, L, S]` fall on, one step after another, `[L, N, S]`."""
    sequences = np.arange(uniforms.shape[2])

    def go(atom: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        moves, uniform = step
        after = draw(moves[sequences, atom], uniform)
        return after, after

    begin = draw(tables.first, uniforms[:, 0])
    rest = jax.lax.scan(go, begin, (tables.moves, jnp.moveaxis(uniforms[:, 1:], 1, 0)))[1]
    return jnp.concatenate([begin[None], rest])


def _marginals(tables: Chain) -> Array:
    """Return the distribution of every step, `[L, S, K]`."""

    def go(now: Array, moves: Array) -> tuple[Array, Array]:
        after = jnp.einsum("sj,sjk->sk", now, moves)
        return after, after

    rest = jax.lax.scan(go, tables.first, tables.moves)[1]
    return jnp.concatenate([tables.first[None], rest])


def _start(
    shape: tuple[int, int], num_atoms: int, share: np.ndarray, near: tuple[np.ndarray, float] | None
) -> Chain:
    """Return the tables under which all sequences that never rise are equally likely, or those of a prior."""
    length, num = shape
    # ways to continue from atom j for the remaining steps; divided by the largest, they are floats
    last = num_atoms - 1
    ways = np.array(
        [
            [comb(last - j + r, r) / comb(last + r, r) for j in range(num_atoms)]
            for r in reversed(range(length))
        ]
    )
    weights = np.broadcast_to(ways[:, None], (length, num, num_atoms)).copy()
    if near is not None:
        centre = np.asarray(_shares(jnp.asarray(near[0]).reshape(1, length, num)))[0]
        weights *= np.exp(-(((share - centre[..., None]) / near[1]) ** 2) / 2) + 1e-6
    allowed = np.triu(np.ones((num_atoms, num_atoms)))
    moves = weights[1:, :, None, :] * allowed
    dtype = jnp.result_type(float)
    first = weights[0] / weights[0].sum(-1, keepdims=True)
    return Chain(
        jnp.asarray(first, dtype), jnp.asarray(moves / moves.sum(-1, keepdims=True), dtype)
    )


def _left(length: int) -> np.ndarray:
    """Return the number of remaining steps at each, `[L, 1]`: the powers in `space` for such sequences."""
    return (length - np.arange(length))[:, None]


def _units(shares: Array) -> Array:
    """Map shares of the range `[N, L, S]` that never rise to unit coordinates `[N, L · S]`."""
    before = jnp.concatenate([jnp.ones_like(shares[:, :1]), shares[:, :-1]], 1)
    ratios = jnp.where(before > 0, shares / jnp.where(before > 0, before, 1), 1)
    units = ratios ** _left(shares.shape[1])
    return units.reshape(shares.shape[0], -1)


def _shares(units: Array) -> Array:
    """Map unit coordinates `[N, L, S]` to shares of the range; inverts `_units`."""
    return jnp.cumprod(units ** (1 / _left(units.shape[1])), 1)
