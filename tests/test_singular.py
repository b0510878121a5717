"""Every linear solver on systems that have no solution, or many: finite, flagged, and the best there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.core import solve as solvers

BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
CASES = {
    "plain": (np.diag([1.0, 2, 4]), [1, 1, 1]),
    "consistent": (np.diag([1.0, 2, 0]), [1, 1, 0]),
    "inconsistent": (np.diag([1.0, 2, 0]), [1, 1, 1]),
    "turned": (BASIS @ np.diag([1, 2, 0]) @ BASIS.T, [1, 2, 3]),
    "near": (BASIS @ np.diag([1, 1e-3, 1e-9]) @ BASIS.T, [1, 2, 3]),
    "zero b": (np.diag([1.0, 2, 3]), [0, 0, 0]),
    "zero A": (np.zeros((3, 3)), [1, 1, 1]),
    "zero both": (np.zeros((3, 3)), [0, 0, 0]),
    "indefinite": (BASIS @ np.diag([3, 2, -1]) @ BASIS.T, [1, 2, 3]),
    "tiny b": (np.diag([1.0, 2, 4]), [1e-25, 1e-25, 1e-25]),
    "huge b": (np.diag([1.0, 2, 4]), [1e25, 1e25, 1e25]),
    "nan b": (np.diag([1.0, 2, 4]), [1, np.nan, 1]),
    "nan A": (np.diag([1.0, np.nan, 4]), [1, 1, 1]),
}
MATRICES = np.stack([a for a, _ in CASES.values()]).astype(np.float32)
SIDES = np.array([b for _, b in CASES.values()], np.float32)
SOLVERS = {
    "cg": solvers.cg(),
    "normal_cg": solvers.normal_cg(),
    "gmres": solvers.gmres(),
    "bicgstab": solvers.bicgstab(),
    "neumann": solvers.neumann(30),
    "fixed_point": solvers.fixed_point(60),
    "nystrom": solvers.nystrom(3, damping=0.01),
    "direct": solvers.direct(),
    "damped": solvers.damped(solvers.direct(), 0.5),
    "positive": solvers.positive(solvers.cg(20), 1e-3),
}
SOLVABLE = ("plain", "consistent", "zero b", "zero both", "tiny b", "huge b")
"""Cases with a solution that every undamped solver of definite systems must find."""
LEAST = ("normal_cg", "gmres", "direct")


def one(solve, a, b):
    return solve(lambda v: a @ v, b)


@pytest.fixture(scope="module")
def found():
    """What every solver says of every case, all cases side by side."""

    def all_of(name):
        return jax.jit(jax.vmap(lambda a, b: one(SOLVERS[name], a, b)))(MATRICES, SIDES)

    answers = jax.device_get({name: all_of(name) for name in SOLVERS})
    return {
        name: {case: jax.tree.map(lambda x, i=i: x[i], pair) for i, case in enumerate(CASES)}
        for name, pair in answers.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_no_system_gives_nan_but_one_with_nan(found, name):
    for case, (x, info) in found[name].items():
        a, b = (np.asarray(part, np.float64) for part in CASES[case])
        if case.startswith("nan"):
            assert np.all(np.isnan(x)) and not info.converged, case
            continue
        assert np.all(np.isfinite(x)) and np.isfinite(info.residual), case
        assert info.smallest_curvature == np.inf or np.isfinite(info.smallest_curvature), case
        x = np.asarray(x, np.float64)
        truth = a + float(info.damping) * np.eye(3)
        size = np.linalg.norm(b) or 1
        residual = np.linalg.norm(b - truth @ x) / size
        noise = 1e-6 * (1 + np.linalg.norm(truth) * np.linalg.norm(x) / size)
        assert abs(info.residual - residual) <= 10 * noise, case
        assert info.converged == (info.residual <= 10 * np.finfo(np.float32).eps ** 0.75), case


@pytest.mark.parametrize("name", ["cg", "normal_cg", "gmres", "bicgstab", "fixed_point", "direct"])
def test_what_has_a_solution_is_solved(found, name):
    for case in SOLVABLE:
        a, b = (np.asarray(part, np.float64) for part in CASES[case])
        x, info = found[name][case]
        assert info.converged, case
        best = np.linalg.lstsq(a, b, rcond=None)[0]
        np.testing.assert_allclose(x, best, rtol=1e-4, atol=2e-5 * np.abs(best).max(), err_msg=case)


@pytest.mark.parametrize("case", ["inconsistent", "turned", "zero A"])
def test_what_has_none_is_solved_as_well_as_it_can_be(found, case):
    a, b = (np.asarray(part, np.float64) for part in CASES[case])
    best = np.linalg.norm(b - a @ np.linalg.lstsq(a, b, rcond=None)[0]) / np.linalg.norm(b)
    for name in SOLVERS:
        _, info = found[name][case]
        if name in ("damped", "positive"):
            assert info.converged and info.damping > 0, name
            continue
        assert not info.converged, name
        assert info.residual <= 1 + 1e-6, f"{name} is worse than zero"
        if name in LEAST:
            assert abs(info.residual - best) < 1e-5, name


def test_positive_gives_the_answer_of_a_damped_system(found):
    for case in ("inconsistent", "turned", "near", "zero A", "indefinite"):
        a, b = (np.asarray(part, np.float64) for part in CASES[case])
        x, info = found["positive"][case]
        damping = float(info.damping)
        assert 1e-3 <= damping < 10 and info.converged, case
        want = np.linalg.solve(a + damping * np.eye(3), b)
        np.testing.assert_allclose(x, want, rtol=1e-3, atol=1e-3 * np.abs(want).max(), err_msg=case)


def test_one_number_alone_and_under_jit():
    for name in ("cg", "gmres", "bicgstab", "nystrom", "direct", "positive"):
        for a in (2.0, 0.0):
            x, info = one(SOLVERS[name], jnp.full((1, 1), a), jnp.ones(1))
            assert np.all(np.isfinite(x)) and np.isfinite(info.residual), (name, a)
            if a and name != "nystrom":
                np.testing.assert_allclose(x, [0.5], rtol=1e-6)
    a, b = map(jnp.asarray, (MATRICES[2], SIDES[2]))
    alone = one(SOLVERS["cg"], a, b)
    np.testing.assert_allclose(jax.jit(lambda: one(SOLVERS["cg"], a, b))()[0], alone[0], rtol=1e-5)


@pytest.mark.slow
def test_nystrom_keeps_its_digits_in_float32():
    """The form of Woodbury loses ‖A‖/ρ of them: here all."""
    random = np.random.default_rng(1)
    half = random.normal(size=(12, 12))
    a, b = 1e3 * half @ half.T, random.normal(size=12)
    for rank, damping in ((12, 1e-2), (4, 1e-3)):
        rows = np.sort(np.random.default_rng(0).choice(12, rank, replace=False))
        low_rank = a[:, rows] @ np.linalg.inv(a[np.ix_(rows, rows)]) @ a[rows]
        want = np.linalg.solve(low_rank + damping * np.eye(12), b)
        narrow = jnp.asarray(a, jnp.float32)
        x, _ = one(solvers.nystrom(rank, damping), narrow, jnp.asarray(b, jnp.float32))
        assert np.linalg.norm(x - want) < 0.02 * np.linalg.norm(want), rank


@pytest.mark.parametrize("name", ["cg", "gmres", "direct", "positive"])
def test_a_derivative_through_the_solver_is_that_of_the_system(name):
    """custom_linear_solve differentiates x = A⁻¹b; on the range of a singular A it is A⁺."""
    a = jnp.asarray(CASES["consistent"][0], jnp.float32)

    def total(b):
        solve = SOLVERS[name]
        x = jax.lax.custom_linear_solve(
            lambda v: a @ v, b, lambda m, r: solve(m, r)[0], symmetric=True
        )
        return jnp.sum(x[:2] ** 2)

    slope = jax.grad(total)(jnp.asarray([1.0, 1, 0]))
    np.testing.assert_allclose(slope, [2.0, 0.5, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", [None, np.ones(2, np.float32)])
def test_a_system_that_is_not_square_is_refused_in_one_line(start):
    a = jnp.ones((3, 2))
    for solve in SOLVERS.values():
        with pytest.raises(ValueError, match="for a rectangular A pass") as caught:
            solve(lambda v: a @ v, jnp.ones(3), start)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"matvec\(x\) is \(2,\), expected \(3,\) as b"):
        SOLVERS["cg"](lambda v: a.T @ v, jnp.ones(3))
