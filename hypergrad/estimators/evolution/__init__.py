"""Estimators that perturb the hyperparameters.

- `es`: Evolution strategies: hypergradients from whole runs at moved hyperparameters, without derivatives.
- `info`: The estimate that antithetic pairs make together, and what its diagnostics mean.
- `moves`: Random moves of hyperparameters: in which coordinates, how far, and slopes there as gradients in
  hparams.
- `nres`: Noise-reuse evolution strategies: as persistent ones, with one noise for the whole of a run.
- `pairs`: Antithetic pairs of training runs: their keys, what they carry, and one window of one pair.
- `pes`: Persistent evolution strategies: unbiased hypergradients for every window of a run.
- `windows`: Estimators that move antithetic pairs of runs by one window an estimate.
"""
