"""Measurements: every row beside its reference, in the same run."""
