"""ViFi-CLIP: frame-wise CLIP, mean over frames. Source: Rasheed et al. 2023.

tune: both towers (all of CLIP), one of them, or prompts alone (IVLP: tokens of their own in both
    towers, no exchange,
the text's between SOT and class name)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from bmpt.clip.backbone import Backbone
from bmpt.clip.towers import Prompts
from bmpt.methods.base import Group, Method
from bmpt.methods.components.prompted import PromptSettings, check_depth, slot_texts
from bmpt.methods.components.prompts import new_prompts
from shards.errors import ConfigError

_TOWERS = {
    "image": ("clip.visual.",),
    "text": ("clip.transformer.", "clip.ln_final.", "clip.text_projection"),
}
_TEXT_POSITIONS = "clip.positional_embedding"


class VifiClipSettings(PromptSettings):
    """Settings of `vifi_clip`."""

    name: str = "vifi_clip"
    start_words: str | None = Field(None, description="words that the text tokens start from")


class VifiClip(Method):
    """`tune`: both (or all), image, text, prompts."""

    settings: VifiClipSettings

    def __init__(
        self,
        backbone: Backbone,
        settings: VifiClipSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        """Raises: ConfigError for a depth beyond a tower, or start words that do not fit."""
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        self.has_prompts = settings.tune == "prompts"
        if settings.start_words is not None and not (self.has_prompts and settings.text_depth > 0):
            raise ConfigError(
                f"method.start_words={settings.start_words!r}: text prompts start from them, and there are none; set "
                "method.tune=prompts and method.text_depth, or leave it out"
            )
        if self.has_prompts:
            check_depth("vision", settings.vision_depth, backbone.vision_layers)
            check_depth("text", settings.text_depth, backbone.text_layers)
            self.vision_LPE = new_prompts(
                settings.vision_depth, settings.vision_tokens, backbone.vision_width
            )
            self.text_LPE = new_prompts(
                settings.text_depth, settings.text_tokens, backbone.text_width
            )
            if settings.start_words is not None:
                self._start_from_words(backbone, settings.start_words)

    def _start_from_words(self, backbone: Backbone, words: str) -> None:
        """Begin the text tokens of layer 0 at the embeddings of words, as `CTX_INIT` does."""
        ids_1S = backbone.tokenize([words])
        num_words = int(ids_1S.argmax(dim=1)) - 1
        if num_words != self.settings.text_tokens:
            raise ConfigError(
                f"method.start_words={words!r}: has {num_words} tokens, method.text_tokens is "
                f"{self.settings.text_tokens}; make them equal"
            )
        with torch.no_grad():
            self.text_LPE[0] = self.clip.token_embedding(ids_1S)[0, 1 : 1 + num_words]

    @property
    def num_slots(self) -> int:
        """As many as prompt tokens at the input of the text tower."""
        return self.settings.text_tokens if self.has_prompts and len(self.text_LPE) > 0 else 0

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids [K, S], with slots for the prompts where there are some.

        Before prompts `_` is a space even in raw names: the release replaces it there, and in no
        other variant."""
        if self.has_prompts:
            texts = [text.replace("_", " ") for text in texts]
        ids_KS = super().prepare_texts(texts)
        return slot_texts(texts, ids_KS, self.settings) if self.num_slots > 0 else ids_KS

    def layer_prompts(self) -> tuple[Prompts, Prompts]:
        """Prompt tokens of every block of both towers."""
        return (list(self.vision_LPE), list(self.text_LPE)) if self.has_prompts else ((), ())

    def trained_groups(self) -> dict[str, Group]:
        """What `tune` says, and a temporal embedding that is new."""
        tune = self.settings.tune
        if tune == "prompts":
            groups: dict[str, Group] = {"vision_LPE": "prompts", "text_LPE": "prompts"}
            return {
                name: g for name, g in groups.items() if self.get_parameter(name).numel()
            } | self.new_temporal()
        names = self.backbone_names()
        if tune == "image":
            names = [name for name in names if name.startswith((*_TOWERS["image"], "temporal_TE"))]
        elif tune == "text":
            names = [name for name in names if name.startswith((*_TOWERS["text"], _TEXT_POSITIONS))]
        return {**dict.fromkeys(names, "backbone"), **self.new_temporal()}
