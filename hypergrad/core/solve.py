"""Linear solvers for A x = b, where A is known by its products alone. Each says how well it solved.

All work on one flat vector of at least float32, whatever the pytree and its dtypes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.checks import check_positive, check_whole
from hypergrad.core.krylov import (
    FlatMatVec,
    Solution,
    begin_from,
    biconjugate_gradients,
    conjugate_gradients,
    gmres_cycle,
    richardson,
)
from hypergrad.core.systems import MatVec, Solve, SolveInfo, as_solver
from hypergrad.core.types import Array, PyTree


def cg(max_iterations: int = 100, tolerance: float | None = None) -> Solve:
    """Solve by conjugate gradients; stop where the curvature p·Ap is not positive.

    **Cost:** one product an iteration; the relative error after K of them falls like
    2 ((√κ − 1) / (√κ + 1))^K for a condition number κ.

    **Limits:** A symmetric. On an indefinite or singular A the search ends at the first p with p·Ap <= 0, or
    where rounding has taken over, with the x of the smallest residual so far; `smallest_curvature` and
    `converged` show it. The condition number is that of the first 64 Lanczos vectors, which the iteration
    builds anyway.

    Args:
        max_iterations: Largest number of products.
        tolerance: Relative residual to reach; ε^¾ of the dtype where None (6e-6 in float32).

    Reference:
        Hestenes, Stiefel, 1952; Golub, Van Loan, "Matrix Computations", 4th ed., 10.2-10.3 (the Lanczos
        matrix from α and β).
    """
    check_whole("max_iterations", max_iterations)
    return as_solver(
        lambda a, b, x, tol: conjugate_gradients(a, b, x, tol, max_iterations), tolerance
    )


def normal_cg(max_iterations: int = 100, tolerance: float | None = None) -> Solve:
    """Solve AᵀA x = Aᵀb by conjugate gradients: for an A that is indefinite or not symmetric.

    **Cost:** two products an iteration, and the condition number is squared: √κ becomes κ in the rate.

    Args:
        max_iterations: Largest number of iterations.
        tolerance: Relative residual of the normal equations; as in `cg`.
    """
    check_whole("max_iterations", max_iterations)

    def method(apply: FlatMatVec, b: Array, x: Array | None, tol: Array) -> Solution:
        transpose = jax.linear_transpose(apply, b)
        solved = conjugate_gradients(
            lambda p: transpose(apply(p))[0], transpose(b)[0], x, tol, max_iterations
        )
        # the curvatures met are those of AᵀA, not of A
        return Solution(solved.x, solved.iterations)

    return as_solver(method, tolerance)


def gmres(restart: int = 20, max_restarts: int = 10, tolerance: float | None = None) -> Solve:
    """Solve by GMRES: smallest residual over each Krylov space; for any A.

    **Cost:** `restart` products and that many vectors of memory each time round; `iterations` counts the
    restarts. **Limits:** on a singular A without a solution it ends where the residual falls no further.

    Args:
        restart: Dimension of the Krylov space.
        max_restarts: Number of times to begin again from the best x.
        tolerance: Relative residual to reach, as in `cg`.

    Reference:
        Saad, Schultz, 1986, "GMRES".
    """
    check_whole("restart", restart)
    check_whole("max_restarts", max_restarts)

    def method(apply: FlatMatVec, b: Array, x: Array | None, tol: Array) -> Solution:
        first, gap = begin_from(apply, b, x)
        limit = tol * jnp.linalg.norm(b)

        def unfinished(carry: tuple) -> Array:
            _, residual, count, falling = carry
            return (residual > limit) & (count < max_restarts) & falling

        def again(carry: tuple) -> tuple:
            x, before, count, _ = carry
            x, gap = gmres_cycle(apply, b, x, restart)
            residual = jnp.linalg.norm(gap)
            return x, residual, count + 1, residual < before

        before = (first, jnp.linalg.norm(gap), jnp.zeros((), jnp.int32), True)
        x, _, count, _ = jax.lax.while_loop(unfinished, again, before)
        return Solution(x, count)

    return as_solver(method, tolerance)


def bicgstab(max_iterations: int = 100, tolerance: float | None = None) -> Solve:
    """Solve by the stabilized biconjugate gradients: any invertible A, in constant memory.

    **Cost:** two products an iteration. **Limits:** may break down, which the residual shows; x is then
    the best so far.

    Args:
        max_iterations: Largest number of iterations.
        tolerance: Relative residual to reach, as in `cg`.

    Reference:
        van der Vorst, 1992, "Bi-CGSTAB".
    """
    check_whole("max_iterations", max_iterations)
    return as_solver(
        lambda a, b, x, tol: biconjugate_gradients(a, b, x, tol, max_iterations), tolerance
    )


def neumann(num_terms: int = 20, step_size: float | None = None) -> Solve:
    """Sum the first terms of the Neumann series: x = α Σ_{k < K} (I − αA)^k b.

    At a minimum this is the hypergradient of K steps of gradient descent with rate α, truncated there.

    **Cost:** K products, and 10 more where the step size must be found.

    **Limits:** biased by what the residual says; the error falls like (1 − α λ_min)^K, and grows where
    α > 2/λ_max or A has a negative eigenvalue (the sum stops before it overflows).

    Args:
        num_terms: Number of terms K.
        step_size: Step size α; 1/λ_max where None, with λ_max estimated by 10 steps of Lanczos from b.

    Reference:
        Lorraine, Vicol, Duvenaud, 2020, arXiv:1911.02590, Algorithm 3.
    """
    check_whole("num_terms", num_terms)
    if step_size is not None:
        check_positive("step_size", step_size)

    def method(apply: FlatMatVec, b: Array, x: Array | None, tol: Array) -> Solution:
        return richardson(apply, b, x, -jnp.ones_like(tol), num_terms, step_size)

    return as_solver(method, None)


def fixed_point(
    max_iterations: int = 1000, step_size: float | None = None, tolerance: float | None = None
) -> Solve:
    """Iterate x ← x + α (b − A x) to convergence, as `neumann` with as many terms as needed.

    With A = I − Jᵀ for the Jacobian J of a fixed-point map and α = 1 this is x ← Jᵀx + b.

    **Cost:** one product an iteration, about κ log(1/tolerance) of them.

    Args:
        max_iterations: Largest number of iterations.
        step_size: Step size α, as in `neumann`.
        tolerance: Relative residual to reach, as in `cg`.

    Reference:
        Grazzi, Franceschi, Pontil, Salzo, 2020, arXiv:2006.16218, Algorithm 1 (AID with a fixed point).
    """
    check_whole("max_iterations", max_iterations)
    if step_size is not None:
        check_positive("step_size", step_size)
    return as_solver(
        lambda a, b, x, tol: richardson(a, b, x, tol, max_iterations, step_size), tolerance
    )


def nystrom(rank: int = 20, damping: float = 0.01, seed: int = 0) -> Solve:
    """Invert a low-rank approximation of A: (ρI + CᵀM⁺C)⁻¹ b = (b − QQᵀb)/ρ + Q (Λ + ρI)⁻¹ Qᵀb.

    C = A[K, :] are sampled rows, M = A[K, K], and CᵀM⁺C = QΛQᵀ with orthonormal Q: the form of Woodbury,
    b/ρ − Cᵀ(M + CCᵀ/ρ)⁻¹Cb/ρ², subtracts numbers of size 1/ρ, and float32 is left with nothing.

    **Cost:** `rank` products side by side, memory of `rank` vectors. **Limits:** A symmetric and not
    negative; biased by the damping and by the spectrum outside the sampled rows, see the residual.

    Args:
        rank: Number of rows.
        damping: Damping ρ.
        seed: Seed of the draw of the rows, which is the same for every solve.

    Reference:
        Hataya, Yamada, 2023, arXiv:2302.09726, equation 5.
    """
    check_whole("rank", rank)
    check_positive("damping", damping)

    def method(apply: FlatMatVec, b: Array, x: Array | None, tol: Array) -> Solution:
        size = min(rank, b.size)
        rows = np.sort(np.random.default_rng(seed).choice(b.size, size, replace=False))
        chosen = jax.nn.one_hot(rows, b.size, dtype=b.dtype)
        c = jax.vmap(apply)(chosen)
        q, r = jnp.linalg.qr(c.T)
        inner, span = c[:, rows], jnp.diag(c[:, rows])
        values, vectors = jnp.linalg.eigh(r @ jnp.linalg.pinv(inner, hermitian=True) @ r.T)
        # what rounding makes of zero must not cancel the damping
        rounding = jnp.abs(values) <= jnp.sqrt(jnp.finfo(b.dtype).eps) * jnp.max(jnp.abs(values))
        values = jnp.where(rounding, jnp.maximum(values, 0), values)
        q = q @ vectors
        seen = q.T @ b
        outside = b - q @ seen
        outside = outside - q @ (q.T @ outside)
        found = outside / damping + q @ (seen / (values + damping))
        return Solution(found, 0, span.min(), span.max())

    return as_solver(method, None)


def direct() -> Solve:
    """Form A and solve by elimination, with the exact condition number of its symmetric part.

    Where elimination leaves a residual, A is singular to the dtype's precision, and x is the smallest of
    those with the smallest residual.

    **Cost:** D products side by side, memory D², time D³ for D unknowns: up to a few thousand. A singular A
    costs a singular value decomposition; under `vmap` every A does.
    """

    def method(apply: FlatMatVec, b: Array, x: Array | None, tol: Array) -> Solution:
        matrix = jax.vmap(apply)(jnp.eye(b.size, dtype=b.dtype)).T
        spectrum = jnp.linalg.eigvalsh((matrix + matrix.T) / 2)
        found = jnp.linalg.solve(matrix, b)
        solved = jnp.linalg.norm(b - matrix @ found) <= 10 * tol * jnp.linalg.norm(b)
        found = jax.lax.cond(solved, lambda: found, lambda: jnp.linalg.lstsq(matrix, b)[0])
        return Solution(found, 0, spectrum[0], spectrum[-1])

    return as_solver(method, None)


def identity(scale: float = 1.0) -> Solve:
    """Take x = scale · b: one term of the Neumann series, no product with A.

    **Cost:** one product, for the residual. **Limits:** biased unless A is I / scale;
    often of the right sign.

    Reference:
        Luketina, Berglund, Greff, Raiko, 2016, arXiv:1511.06727 (T1-T2).
    """
    check_positive("scale", scale)
    return as_solver(lambda a, b, x, tol: Solution(scale * b, 0), None)


def damped(solve: Solve, damping: float) -> Solve:
    """Solve (A + γI) x = b instead: positive definite where γ exceeds the most negative curvature.

    **Limits:** biased; residual, curvature and condition are those of the damped system.

    Args:
        solve: Linear solver.
        damping: Damping γ.
    """
    check_positive("damping", damping)

    def solve_damped(
        matvec: MatVec, b: PyTree, start: PyTree = None, tolerance: Array | None = None
    ) -> tuple[PyTree, SolveInfo]:
        return _solve_damped(solve, matvec, b, start, tolerance, damping)

    return solve_damped


def _solve_damped(
    solve: Solve,
    matvec: MatVec,
    b: PyTree,
    start: PyTree,
    tolerance: Array | None,
    damping: float | Array,
) -> tuple[PyTree, SolveInfo]:
    def apply(x: PyTree) -> PyTree:
        return jax.tree.map(lambda y, x: (y + damping * x).astype(y.dtype), matvec(x), x)

    x, info = solve(apply, b, start, tolerance)
    return x, info._replace(damping=info.damping + damping)


def positive(solve: Solve, floor: float = 0.1, max_raises: int = 10) -> Solve:
    """Solve (A + γI) x = b, raising γ from 0 until the curvature along every direction met reaches the floor.

    γ ← γ + max(floor, 2 (floor − σ)),   σ the smallest p·(A + γI)p / p·p met
    ‖x‖ ≤ (1 + ρ) ‖b‖ / floor, ρ the relative residual

    Use it for the Hessian of a network, which bends down in some directions. The answer stays bounded, and is
    that of `solve` itself where A is definite enough.

    **Cost:** one solve for each γ, mostly two or three; solves that fail end early.

    **Limits:** biased where γ > 0, which the info has; residual, curvature and condition are those of the
    damped system.

    Args:
        solve: Solver that knows its smallest curvature, e.g. `cg(10)`.
        floor: Smallest curvature to accept, in units of A.
        max_raises: Number of raises of γ after which the last answer stands.

    Reference:
        Nocedal, Wright, "Numerical Optimization", 2nd ed., Algorithm 3.3 (by Cholesky).
    """
    check_positive("floor", floor)
    check_whole("max_raises", max_raises)

    def solve_positive(
        matvec: MatVec, b: PyTree, start: PyTree = None, tolerance: Array | None = None
    ) -> tuple[PyTree, SolveInfo]:
        def attempt(damping: Array) -> tuple[PyTree, SolveInfo]:
            return _solve_damped(solve, matvec, b, start, tolerance, damping)

        def unfit(carry: tuple) -> Array:
            count, _, (_, info) = carry
            # a NaN does not reach the floor, either
            return ~(info.smallest_curvature >= floor) & (count <= max_raises)

        def again(carry: tuple) -> tuple:
            count, damping, _ = carry
            x, info = attempt(damping)
            lacking = floor - info.smallest_curvature
            more = jnp.where(jnp.isfinite(lacking), jnp.maximum(floor, 2 * lacking), floor)
            return count + 1, damping + more, (x, info)

        zero = jnp.zeros((), jnp.promote_types(jnp.result_type(*jax.tree.leaves(b)), jnp.float32))
        like = jax.eval_shape(attempt, zero)
        # a curvature of zero lies below the floor, so that the loop is entered
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        before = (jnp.zeros((), jnp.int32), zero, nothing)
        return jax.lax.while_loop(unfit, again, before)[2]

    return solve_positive
