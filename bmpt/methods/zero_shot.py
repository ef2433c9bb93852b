"""CLIP without training. Class texts: bare names, one template, or an ensemble of sentences."""

from __future__ import annotations

from collections.abc import Sequence

from bmpt.clip.backbone import Backbone
from bmpt.methods.base import Method
from bmpt.settings import MethodSettings
from shards.errors import ConfigError


class ZeroShotSettings(MethodSettings):
    """Settings of `zero_shot`: those that all methods share."""

    name: str = "zero_shot"


class ZeroShot(Method):
    """Frame-wise CLIP, with the backbone's own space-time blocks and temporal embedding if any."""

    def __init__(
        self,
        backbone: Backbone,
        settings: MethodSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        """Put the method on a backbone, see `Method`.

        Raises:
            ConfigError: Also for a temporal embedding that the backbone does not have: nothing
                would train a new one.
        """
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        if self.temporal_group == "prompts":
            raise ConfigError(
                f"method.temporal_position=learned: {backbone.name} has no temporal embedding, and "
                "zero_shot trains none; leave it out"
            )
