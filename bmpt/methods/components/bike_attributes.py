"""BIKE's attributes branch: a sentence of a clip's attributes against the class texts.

Source: Wu et al. 2023. Shapes: B clips, K classes, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from bmpt.clip.precision import cosines, unit
from bmpt.methods.components.bike_video import init_linear

# weights of the softmaxes of unscaled cosines, see `fuse_probabilities`
VIDEO_WEIGHT, ATTRIBUTES_WEIGHT = 0.7, 0.3
NUM_ATTRIBUTES = 5


def attribute_text(attributes: Sequence[str]) -> str:
    """Return the sentence of a clip from its first 5 attributes.

    Args:
        attributes: Attributes of the clip, best first. They are joined by a comma without a space,
            as in the release.

    Raises:
        ValueError: The clip has no attributes.
    """
    if not attributes:
        raise ValueError(
            "a clip without attributes has no sentence; leave it out of the attributes branch"
        )
    return "This is a video about " + ",".join(attributes[:NUM_ATTRIBUTES])


class AttributeHead(nn.Module):
    """Two small maps after the frozen text tower; their parameters have the release's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_fc = _two_layers(width)
        self.sentence_fc = _two_layers(width)
        self.apply(init_linear)

    def forward(self, sentences_BD: torch.Tensor, classes_KD: torch.Tensor) -> torch.Tensor:
        """Return cosines [B, K] of attribute sentences and classes.

        Both are features of the text tower, which need not be unit vectors.
        """
        dtype = next(self.parameters()).dtype
        sentences_BD = self.sentence_fc(F.normalize(sentences_BD, dim=-1).to(dtype))
        classes_KD = self.query_fc(F.normalize(classes_KD, dim=-1).to(dtype))
        return cosines(unit(sentences_BD), unit(classes_KD))


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
