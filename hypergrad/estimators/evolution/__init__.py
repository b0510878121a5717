"""Estimators that perturb the hyperparameters."""
