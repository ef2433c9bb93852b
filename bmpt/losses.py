"""Training losses, as sums over clips with weights: the caller divides by the valid clips of the global batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy_sum(
    logits_BK: torch.Tensor, labels_B: torch.Tensor, weights_B: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Sum of weight * cross-entropy over the clips; an empty place has weight 0."""
    loss_B = F.cross_entropy(logits_BK.float(), labels_B, reduction="none", label_smoothing=label_smoothing)
    return (loss_B * weights_B).sum()
