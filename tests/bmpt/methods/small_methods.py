"""Methods on the tiny CLIP, with sentences and targets of three classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bmpt.methods import METHODS, build_method
from bmpt.methods.base import Method, Targets
from bmpt.texts.class_texts import ClassSentences
from tests.bmpt.tiny import METHOD, load_tiny, settings_of

CLASSES = ("walk", "run", "jump")
# `method.tune` of each method in these tests: the first that it accepts, except for vifi_clip
TUNES = {
    name: settings.model_validate({}).traits.tunes[0] for name, (_, settings) in METHODS.items()
}
TUNES["vifi_clip"] = "all"


def sentences(num_sentences: int = 1) -> ClassSentences:
    """Return sentences of the three classes, all different."""
    texts = tuple(
        tuple(f"a person {'slowly ' * p}going to {name}" for p in range(num_sentences))
        for name in CLASSES
    )
    return ClassSentences(CLASSES, texts)


def method_of(clip: Path, name: str, *, num_frames: int = 4, **changes: Any) -> Method:
    """Return a method on the tiny CLIP for the three classes."""
    settings = settings_of(
        {**METHOD, "reduced_width": 6, "temporal_layers": 2}, name=name, **changes
    )
    return build_method(load_tiny(clip), settings, num_frames=num_frames, seed=0, classes=CLASSES)


def targets(
    labels: list[int], weights: list[float] | None = None, **features: torch.Tensor
) -> Targets:
    """Return training targets, by default with a weight of 1 per clip."""
    weights_B = torch.tensor(weights or [1.0] * len(labels))
    return Targets(torch.tensor(labels), weights_B, sample_features=features)
