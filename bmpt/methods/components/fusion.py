"""Several sentences a class become one feature; several kinds of logits become one score.

Shapes: P sentences, K classes, B clips, V views; F any width of feature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from bmpt.clip.precision import widen


def mean_over_sentences(features_PKF: torch.Tensor) -> torch.Tensor:
    """Unit class features [K, F]: the mean over sentences of unit features, made unit again.
    Source: BDC-CLIP."""
    return F.normalize(F.normalize(widen(features_PKF), dim=-1).mean(dim=0), dim=-1)


def fuse_probabilities(*logits_BVK: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    """Scores [B, K]: the sum over kinds of logits of coefficient * softmax, averaged over views.

    BDC-CLIP: cosine, classifier and covariance logits, with the coefficients of a protocol (a
    classifier of other classes is left out). BIKE: 0.7 and 0.3 of the unscaled cosines of video and
    attributes.
    Raises: ValueError for another number of coefficients than of logits."""
    probabilities_BVK = [
        coefficient * torch.softmax(widen(logits), dim=-1)
        for logits, coefficient in zip(logits_BVK, coefficients, strict=True)
    ]
    return torch.stack(probabilities_BVK).sum(dim=0).mean(dim=1)
