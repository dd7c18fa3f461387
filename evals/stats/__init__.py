"""Intervals and estimates: pure functions on numpy arrays."""
