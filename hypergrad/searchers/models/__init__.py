"""What searchers model with: densities, Gaussian processes, points that fill a cube.

- `acquisitions`: Acquisitions: what a point is worth to a search, from the mean and spread of a model
  there.
- `chains`: Markov tables over descending atoms: a family of sequences that never rise.
- `distribution`: The distribution of the trials of a space, dimension by dimension, and its shape under a
  prior.
- `families`: Families of distributions over unit coordinates, to draw trials from and to fit to the best of
  them.
- `gaussian_process`: A Gaussian process over unit coordinates, for tables that are padded to a fixed number
  of rows.
- `memory`: The trials that a searcher remembers: a table of fixed size, for checkpoints and compiled
  programs.
- `parzen`: Parzen densities over unit coordinates: the mean of kernels around trials and of one uniform.
- `priors`: A user's beliefs about a dimension before any trial: "the learning rate is near 1e-3".
- `sobol_points`: Scrambled Sobol points on the device, from scipy's direction numbers, which are read on
  the host.
- `targets`: What a Gaussian process is fitted to: (scores `[n]`, filled `[n]`) -> targets of mean 0 and
  variance 1.
- `truncnorm`: The normal distribution cut to [0, 1]: moments, the fit to moments, quantiles, density.
"""
