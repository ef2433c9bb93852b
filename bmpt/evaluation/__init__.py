"""Exact evaluation: every sample once, whatever the number of ranks."""
