"""Training: optimiser, gradient, loop, log and state."""
