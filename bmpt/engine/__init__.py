"""Training: processes, optimiser, checkpoints, the loop."""
