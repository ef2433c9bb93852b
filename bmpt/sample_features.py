"""Features that belong to single samples: of knowledge texts and of attribute sentences.

They are computed once, by `bmpt knowledge` and `bmpt attributes`, and read by the methods whose
traits name their kind. A new kind is a line in `SAMPLE_FEATURES` and a key of the section `text`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bmpt.clip.backbone import Backbone
from bmpt.methods.base import ATTRIBUTES, KNOWLEDGE
from bmpt.offline.attributes import read_attributes
from bmpt.settings import TextSettings
from bmpt.texts.knowledge_file import read_knowledge
from bmpt.texts.text_features import FloatArray

ReadFeatures = Callable[[Sequence[Path], Sequence[str], Backbone], FloatArray]
"""Reads features of samples [N, D] by their keys, from files that together have all of them."""


@dataclass(frozen=True)
class SampleFeatures:
    """One kind of features of samples."""

    read: ReadFeatures

    trains_only: bool
    """Whether only training reads them; others are read for scoring too."""


SAMPLE_FEATURES: dict[str, SampleFeatures] = {
    KNOWLEDGE: SampleFeatures(
        lambda files, keys, backbone: read_knowledge(files[0], keys, backbone), trains_only=True
    ),
    ATTRIBUTES: SampleFeatures(read_attributes, trains_only=False),
}


def read_sample_features(
    text: TextSettings, keys: Sequence[str], backbone: Backbone, *, is_train: bool
) -> dict[str, torch.Tensor]:
    """Read the features that the section `text` names, by kind.

    Args:
        text: The section; a key of the name of a kind holds one path or several.
        keys: Keys of the samples.
        backbone: The CLIP whose text tower must have made the features.
        is_train: Whether the samples are trained on.

    Returns:
        float32 [N, D] on the CPU, unit rows in the order of `keys`.

    Raises:
        ConfigError: A file is missing, incomplete, or of another CLIP.
    """
    features = {}
    for kind, source in SAMPLE_FEATURES.items():
        named = getattr(text, kind)
        # `knowledge` is one path, `attributes` a list of them.
        files = [named] if isinstance(named, Path) else list(named or ())
        if files and (is_train or not source.trains_only):
            features[kind] = torch.from_numpy(source.read(files, keys, backbone))
    return features


def take_rows(
    features: Mapping[str, torch.Tensor], positions_B: torch.Tensor, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the features [B, D] of some samples on a device, by kind."""
    return {kind: features_ND[positions_B].to(device) for kind, features_ND in features.items()}
