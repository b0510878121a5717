"""Estimators that differentiate the condition of rest.

- `implicit`: Implicit hypergradients: train to rest, solve one linear system, forget the path.
- `response`: The response of trained weights to hyperparameters, where training has come to rest.
"""
