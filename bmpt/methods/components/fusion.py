"""Joining several sentences to one class feature, and several kinds of logits to one score.

Shapes: P sentences, K classes, B clips, V views; F any width of feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from bmpt.clip.precision import widen


def mean_over_sentences(features_PKF: torch.Tensor) -> torch.Tensor:
    """Return unit class features [K, F]: the mean over sentences of unit features, made unit.

    Source: BDC-CLIP.
    """
    return F.normalize(F.normalize(widen(features_PKF), dim=-1).mean(dim=0), dim=-1)


def fuse_probabilities(*logits_BVK: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    """Return scores [B, K]: coefficient * softmax summed over kinds, averaged over views.

    BDC-CLIP joins cosine, classifier and covariance logits with coefficients of a protocol, without
    a classifier of other classes. BIKE joins the unscaled cosines of video and attributes by 0.7
    and 0.3.

    Args:
        *logits_BVK: The kinds of logits.
        coefficients: One number per kind.

    Raises:
        ValueError: There are more or fewer coefficients than kinds.
    """
    probabilities_BVK = [
        coefficient * torch.softmax(widen(logits), dim=-1)
        for logits, coefficient in zip(logits_BVK, coefficients, strict=True)
    ]
    return torch.stack(probabilities_BVK).sum(dim=0).mean(dim=1)
