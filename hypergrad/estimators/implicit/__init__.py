"""Estimators that differentiate the condition of rest."""
