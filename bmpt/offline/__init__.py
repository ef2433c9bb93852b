"""Stages that ask a model once, before training: class texts, negatives, knowledge texts,
attributes."""
