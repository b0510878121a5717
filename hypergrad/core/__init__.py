"""What everything stands on: types, trees, checks, derivatives, scans and linear solvers.

- `abstract`: Abstract evaluation of a user's function: shapes and dtypes only, nothing is computed.
- `autodiff`: Derivatives: finite ones where autodiff makes none, curvature products, who depends on whom.
- `cautions`: Warn of what a problem's traced programs show: leaves unread, indices past an array, batches
  amiss.
- `checks`: Shared checks of a caller's arguments, made before anything compiles.
- `draws`: Find random draws whose distribution depends on a value, and that lose its derivative.
- `equinox`: Equinox modules as init and apply: `from_equinox`.
- `files`: Files that a crash cannot tear: writes that are whole or absent, and JSON from untrusted sources.
- `flax`: Flax modules as init and apply: `from_linen`, `from_nnx`.
- `flow`: Follow values through a traced program: what reaches what, and whether two programs are the same.
- `haiku`: Haiku functions as init and apply: `from_haiku`.
- `hoist`: Programs without data: large arrays that a function closes over become arguments of its program.
- `host`: Data that stay on the host: batches by index, for traced programs.
- `intervals`: Spans of whole numbers, of which it is known what is met for certain, and their arithmetic.
- `jaxopt`: The minimizer of jaxopt, loaded when it is first used.
- `kinks`: Tell kinks from jumps in a traced program: comparisons and roundings that leave no jump behind.
- `krylov`: The loops of the iterative linear solvers, on one flat vector.
- `masks`: Which indices past an array are masked, so that what they read counts for nothing.
- `memory`: The memory of a device or machine, and how much of it the states of one training run may take.
- `methods`: Description of a method that a family offers by name.
- `mistakes`: The errors that jax, numpy and Python raise within a user's function, in words that a new user
  can act on.
- `network`: A network as two pure functions, from whichever library it comes.
- `outside`: What a user's function reads from outside of its arguments, and whether that may change between
  two calls.
- `pairs`: Find labels `[N]` and predictions `[N, 1]`, or the other way round, that broadcast to every pair
  `[N, N]`.
- `pure`: Check that a user's function is a function of its arguments: nothing read on, frozen, or drawn
  aside.
- `reach`: Follow derivatives through a traced program: which results move with which inputs, whatever the
  numbers.
- `resting`: The derivative of an optimizer at weights that rest: whose gradient is exactly zero, though it
  may bend.
- `scans`: Scans in segments of equal length, with a shorter last one where the length does not divide the
  steps.
- `solve`: Linear solvers for A x = b, where A is known by its products alone.
- `spans`: How far the indices of a traced program reach, and which of them lie past the array that they
  index.
- `stored`: Any pytree of arrays and PRNG keys in a file, to the bit, without pickle.
- `systems`: The contract of the linear solvers, and what they share: flat vectors, and how well a system
  was solved.
- `tame`: Primitives that may be singular, each with a twin of the same values whose derivative is finite.
- `tree`: The pytree algebra that `optax.tree` lacks: names of leaves, floats apart from the rest.
- `types`: Aliases that the whole package shares.
- `widen`: A program in the widest floating point there is, whatever its own: what a narrow one loses by
  rounding.
"""
