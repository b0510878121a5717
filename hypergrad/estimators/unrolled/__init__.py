"""Estimators that differentiate through the steps of training."""
