"""What everything stands on: types, trees, checks, derivatives, scans and linear solvers."""
