"""CLIP as it is: nothing trains. Class texts: bare names, one template, or an ensemble of
sentences."""

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
    """Frame-wise CLIP, or with the backbone's own space-time blocks and temporal embedding where it
    has them."""

    def __init__(
        self,
        backbone: Backbone,
        settings: MethodSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        """Raises: ConfigError for a temporal embedding that the backbone has not and that nothing
        would train."""
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        if self.temporal_group == "prompts":
            raise ConfigError(
                f"method.temporal_position=learned: {backbone.name} comes without one, and zero_shot trains none; "
                "leave it out"
            )
