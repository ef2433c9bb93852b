"""ViFi-CLIP: frame-wise CLIP, mean over frames, every weight tuned. Source: Rasheed et al. 2023 (`USE: both`)."""

from __future__ import annotations

from bmpt.clip import Backbone
from bmpt.config import MethodSettings
from bmpt.methods.base import Group, Method
from shards.errors import ConfigError


class VifiClip(Method):
    """Full fine-tuning of both towers."""

    def __init__(self, backbone: Backbone, settings: MethodSettings, *, num_frames: int) -> None:
        """Raises: ConfigError for `tune: prompts`, which this method has none of yet."""
        super().__init__(backbone, settings, num_frames=num_frames)
        if settings.tune != "all":
            raise ConfigError(f"method.tune={settings.tune}: vifi_clip tunes every weight; set method.tune=all")

    def trained_groups(self) -> dict[str, Group]:
        """Every CLIP weight, and a temporal embedding that is new."""
        new: dict[str, Group] = {"temporal_TE": "prompts"} if self.temporal_group == "prompts" else {}
        return {**dict.fromkeys(self.backbone_names(), "backbone"), **new}
