"""Estimators that perturb the hyperparameters.

- `es`: Evolution strategies: hypergradients from whole runs at moved hyperparameters, without derivatives.
- `evolved`: Evolution for the leaves that set the odds of draws, derivatives of the run for the rest.
- `info`: The estimate of antithetic pairs, and the meaning of its diagnostics.
- `moves`: Random moves of hyperparameters: their coordinates and size, and slopes as gradients in hparams.
- `nres`: Noise-reuse evolution strategies: like persistent ones, but with one noise for a whole run.
- `pairs`: Antithetic pairs of training runs: their keys, their state, and one window of one pair.
- `pes`: Persistent evolution strategies: unbiased hypergradients for every window of a run.
- `windows`: Estimators that move antithetic pairs of runs by one window an estimate.
"""
