"""What searchers model with: densities, Gaussian processes, points that fill a cube."""
