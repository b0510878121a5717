"""Every linear solver against numpy, and what each says of systems it cannot solve."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.core.solve import (
    bicgstab,
    cg,
    damped,
    direct,
    fixed_point,
    gmres,
    identity,
    neumann,
    normal_cg,
    nystrom,
    positive,
)
from hypergrad.testing import assert_close

SIZE = 10
SYMMETRIC = {
    "cg": cg(),
    "normal_cg": normal_cg(),
    "gmres": gmres(),
    "bicgstab": bicgstab(),
    "direct": direct(),
    "fixed_point": fixed_point(),
    "neumann": neumann(1000),
}
CG, IDENTITY = SYMMETRIC["cg"], identity()
ANY = ("normal_cg", "gmres", "bicgstab", "direct")


def system(kind="positive", condition=20.0):
    """Return A, b as pytrees of two leaves and b as a vector."""
    random = np.random.default_rng(4)
    basis = np.linalg.qr(random.normal(size=(SIZE, SIZE)))[0]
    spectrum = np.geomspace(0.5, 0.5 * condition, SIZE)
    if kind == "indefinite":
        spectrum[:3] *= -1
    a = basis @ np.diag(spectrum) @ basis.T
    if kind == "general":
        a = a + 0.3 * random.normal(size=(SIZE, SIZE))
    flat = random.normal(size=SIZE)
    return a, flat, {"x": jnp.asarray(flat[:4].reshape(2, 2)), "y": jnp.asarray(flat[4:])}


def product(a):
    """The product with A, of pytrees."""

    def matvec(x):
        flat = jnp.asarray(a) @ jnp.concatenate([x["x"].reshape(-1), x["y"]])
        made = {"x": flat[:4].reshape(2, 2), "y": flat[4:]}
        return jax.tree.map(lambda y, x: y.astype(x.dtype), made, x)

    return matvec


@partial(jax.jit, static_argnums=0)
def run(solve, a, b, start=None, tolerance=None):
    return solve(product(a), b, start, tolerance)


def join(x):
    return np.concatenate([np.asarray(x["x"], np.float64).reshape(-1), np.asarray(x["y"])])


@pytest.mark.parametrize(
    ("kind", "names", "wide"),
    [("positive", tuple(SYMMETRIC), True), ("general", ANY, True), ("positive", ("cg",), False)],
)
def test_solves_like_numpy(kind, names, wide):
    with jax.enable_x64(wide):
        a, flat, b = system(kind)
        expected = np.linalg.solve(a, flat)
        for name in names:
            x, info = run(SYMMETRIC[name], a, b)
            assert x["x"].shape == (2, 2) and x["x"].dtype == b["x"].dtype, name
            assert_close(jnp.asarray(join(x), b["x"].dtype), expected, 10.0)
            residual = np.linalg.norm(flat - a @ join(x)) / np.linalg.norm(flat)
            assert abs(info.residual - residual) <= 1e-3 * residual + 1e-6, name
            assert info.converged, name


def test_a_wrong_solver_is_found_out():
    a, flat, b = system()
    for wrong, matrix in ((IDENTITY, a), (neumann(2), a), (CG, a @ a)):
        x, _ = run(wrong, matrix, b)
        with pytest.raises(AssertionError):
            assert_close(jnp.asarray(join(x)), np.linalg.solve(a, flat), 10.0)
    assert not run(IDENTITY, a, b)[1].converged


def test_conjugate_gradients_know_the_spectrum():
    with jax.enable_x64(True):
        a, _, b = system(condition=50.0)
        for solve in (CG, SYMMETRIC["direct"]):
            info = run(solve, a, b)[1]
            assert_close(info.condition, 50.0, 1.0)
            assert_close(info.smallest_curvature, 0.5, 1.0)
        few = run(cg(3), a, b)[1]
        assert few.iterations == 3 and not few.converged
        assert 1 < few.condition < 50 and few.smallest_curvature > 0.5


def test_an_indefinite_matrix_is_reported():
    with jax.enable_x64(True):
        a, flat, b = system("indefinite")
        x, info = run(CG, a, b)
        assert info.smallest_curvature < 0 and jnp.isinf(info.condition) and not info.converged
        assert np.all(np.isfinite(join(x)))
        x, info = run(damped(CG, 6.0), a, b)
        assert info.converged and info.smallest_curvature > 0 and info.damping == 6.0
        assert_close(jnp.asarray(join(x)), np.linalg.solve(a + 6.0 * np.eye(SIZE), flat), 1.0)
        for name in ANY:
            assert_close(jnp.asarray(join(run(SYMMETRIC[name], a, b)[0])), np.linalg.solve(a, flat))


def test_positive_damps_as_far_as_it_must_and_says_so():
    """Where A bends down, the answer of an A + γI that bends up, and bounded."""
    floor = 0.25
    with jax.enable_x64(True):
        for kind in ("positive", "indefinite"):
            a, flat, b = system(kind)
            x, info = run(positive(CG, floor), a, b)
            damping, lowest = float(info.damping), np.linalg.eigvalsh(a)[0]
            want = np.linalg.solve(a + damping * np.eye(SIZE), flat)
            assert_close(jnp.asarray(join(x)), want, 1.0)
            assert info.converged and info.smallest_curvature >= floor
            if kind == "positive":
                assert damping == 0
            else:
                assert floor <= lowest + damping <= 2 * (floor - lowest)
        # four products see little of A, whose curvature may be as small as it likes
        few = positive(cg(4), floor)
        a, flat, b = system("indefinite")
        for shift in np.linspace(0.0, 3.0, 7):
            x, _ = run(few, a + shift * np.eye(SIZE), b)
            assert np.linalg.norm(join(x)) <= 2 * np.linalg.norm(flat) / floor


def test_a_start_that_is_worse_than_none_is_dropped():
    a, _, b = system()
    far = jax.tree.map(lambda x: 1e6 + x, b)
    few = neumann(3, step_size=0.05)
    for solve in (cg(2), few):
        assert_close(run(solve, a, b, far)[0], run(solve, a, b)[0])


def test_nothing_to_solve_with_or_for():
    _, _, b = system()
    zero = jax.tree.map(jnp.zeros_like, b)
    x, info = run(CG, np.zeros((SIZE, SIZE)), b)
    assert np.all(join(x) == 0) and info.smallest_curvature == 0 and not info.converged
    a, _, _ = system()
    for name, solve in SYMMETRIC.items():
        x, info = run(solve, a, zero)
        assert np.all(join(x) == 0) and info.residual == 0 and info.converged, name
    x, info = run(CG, a, jax.tree.map(lambda x: x * jnp.nan, b))
    assert np.all(np.isnan(join(x))) and not info.converged


def test_the_neumann_series_is_the_sum_of_its_terms():
    with jax.enable_x64(True):
        a, flat, b = system()
        x, info = run(neumann(7, step_size=0.05), a, b)
        terms = [
            np.linalg.matrix_power(np.eye(SIZE) - 0.05 * a, k) @ (0.05 * flat) for k in range(7)
        ]
        assert_close(jnp.asarray(join(x)), sum(terms), 1e-4)
        assert info.iterations == 7 and not info.converged
        one = run(neumann(1, step_size=0.05), a, b)[0]
        assert_close(jnp.asarray(join(one)), join(run(identity(0.05), a, b)[0]), 1e-4)
        # α > 2/λ_max: the sum grows, stops before it overflows, and says so
        x, info = run(neumann(5000, step_size=1.0), a, b)
        assert np.all(np.isfinite(join(x))) and info.residual > 1e6 and not info.converged


def test_nystrom_with_every_row_is_the_damped_inverse():
    with jax.enable_x64(True):
        a, flat, b = system()
        x, _ = run(nystrom(rank=SIZE, damping=0.1), a, b)
        assert_close(jnp.asarray(join(x)), np.linalg.solve(a + 0.1 * np.eye(SIZE), flat), 1.0)
        few, info = run(nystrom(rank=3, damping=0.1, seed=1), a, b)
        rows = np.sort(np.random.default_rng(1).choice(SIZE, 3, replace=False))
        low_rank = a[:, rows] @ np.linalg.inv(a[np.ix_(rows, rows)]) @ a[rows]
        expected = np.linalg.solve(low_rank + 0.1 * np.eye(SIZE), flat)
        assert_close(jnp.asarray(join(few)), expected, 1.0)
        assert not info.converged


def test_warm_start_and_tolerance():
    with jax.enable_x64(True):
        a, _, b = system()
        solution = product(np.linalg.inv(a))(b)
        for name in ("cg", "gmres"):
            cold = run(SYMMETRIC[name], a, b)[1]
            warm = run(SYMMETRIC[name], a, b, solution)[1]
            assert warm.converged and warm.iterations < cold.iterations, name
        loose = run(CG, a, b, None, 0.1)[1]
        assert loose.residual <= 0.1 and loose.iterations < run(CG, a, b)[1].iterations
        seven = neumann(7, step_size=0.05)
        start = jax.tree.map(lambda x: 0.5 * x, solution)
        # from x on, the terms are of b − A x
        rest = jax.tree.map(jnp.subtract, b, product(a)(start))
        later = jax.tree.map(jnp.add, start, run(seven, a, rest)[0])
        assert_close(run(seven, a, b, start)[0], later, 1e-4)
        far = jax.tree.map(lambda x: 100 * x, b)  # is farther off than zero, and not taken
        assert_close(run(seven, a, b, far)[0], run(seven, a, b)[0], 1e-4)


def test_under_vmap_and_in_bfloat16():
    a, _, b = system()
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), b)
    x, info = jax.jit(jax.vmap(lambda b: CG(product(a), b)))(many)
    assert info.converged.all()
    twice = jax.tree.map(lambda x: 2 * x, b)
    assert_close(jax.tree.map(lambda x: x[1], x), run(CG, a, twice)[0])
    narrow = {"x": b["x"].astype(jnp.bfloat16), "y": b["y"]}
    for name in ("cg", "gmres"):
        x, _ = run(SYMMETRIC[name], a, narrow)
        assert x["x"].dtype == jnp.bfloat16 and np.all(np.isfinite(join(x))), name


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda: cg(0), "max_iterations is 0, expected a whole number"),
        (lambda: cg(tolerance=-1.0), "tolerance is -1.0, expected a positive number"),
        (lambda: neumann(2.5), "num_terms is 2.5"),
        (lambda: neumann(step_size=0), "step_size is 0"),
        (lambda: nystrom(rank=True), "rank is True"),
        (lambda: nystrom(damping=float("inf")), "damping is inf"),
        (lambda: gmres(restart=0), "restart is 0"),
        (lambda: damped(cg(), 0), "damping is 0"),
        (lambda: positive(cg(), 0), "floor is 0"),
        (lambda: positive(cg(), max_raises=0), "max_raises is 0"),
        (lambda: identity(scale="1"), "scale is '1'"),
    ],
)
def test_bad_settings(make, fragment):
    with pytest.raises(ValueError) as caught:
        make()
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
