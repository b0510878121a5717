"""Flax modules that the tasks train."""
