"""What everything stands on: types, trees, checks, derivatives, scans and linear solvers.

- `abstract`: Abstract evaluation of a user's function: shapes and dtypes only, nothing is computed.
- `autodiff`: Derivatives: finite ones where autodiff makes none, curvature products, who depends on whom.
- `checks`: Shared checks of a caller's arguments, made before anything compiles.
- `flax`: Flax modules as init and apply: `from_linen`, `from_nnx`. The only file that imports flax.
- `jaxopt`: Solvers of jaxopt, loaded when they are first used. The only file that imports jaxopt.
- `krylov`: The loops of the linear solvers: conjugate gradients and Richardson's iteration, on one flat
  vector.
- `methods`: Description of a method that a family offers by name.
- `scans`: Scans in segments of equal length, with a shorter last one where the length does not divide the
  steps.
- `solve`: Linear solvers for A x = b, where A is known by its products alone. Each says how well it solved.
- `tree`: The pytree algebra that `optax.tree` lacks: names of leaves, floats apart from the rest.
- `types`: Aliases that the whole package shares.
"""
