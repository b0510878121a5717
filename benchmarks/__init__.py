"""Measurements side by side with peers: `python -m benchmarks NAME`; kept results are in `results/`."""
