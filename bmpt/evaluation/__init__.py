"""Exact evaluation: every sample is scored once, whatever the number of ranks."""
