"""ViFi-CLIP: frame-wise CLIP and the mean over frames. Source: Rasheed et al. 2023.

`method.tune` chooses what trains: all of CLIP (`all`), one tower (`image`, `text`), or prompts
alone (`prompts`). Prompts are the release's IVLP: tokens of their own in both towers without an
exchange, those of the text tower between SOT and class name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from bmpt.clip.backbone import Backbone
from bmpt.clip.towers import Prompts
from bmpt.methods.base import Group, Method
from bmpt.methods.components.prompts import PromptSettings, check_depth, new_prompts, slot_texts
from shards.errors import ConfigError

_TEXT_TOWER = ("clip.transformer.", "clip.ln_final.", "clip.text_projection")
_TOWERS = {
    "image": ("clip.visual.", "temporal_TE"),
    "text": (*_TEXT_TOWER, "clip.positional_embedding"),
}


class VifiClipSettings(PromptSettings):
    """Settings of `vifi_clip`."""

    name: str = "vifi_clip"
    start_words: str | None = Field(
        None, description="words whose embeddings the text tokens start from"
    )


class VifiClip(Method):
    """Frame-wise CLIP, tuned as a whole, in one tower or by prompts."""

    settings: VifiClipSettings

    def __init__(
        self,
        backbone: Backbone,
        settings: VifiClipSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        """Put the method on a backbone, see `Method`.

        Raises:
            ConfigError: Also for a depth beyond a tower, or start words that do not fit.
        """
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        self.has_prompts = settings.tune == "prompts"
        if settings.start_words is not None and not (self.has_prompts and settings.text_depth > 0):
            raise ConfigError(
                f"method.start_words={settings.start_words!r}: text prompts start from them, and "
                "there are none; set method.tune=prompts and method.text_depth, or leave it out"
            )
        if not self.has_prompts:
            return

        check_depth("vision", settings.vision_depth, backbone.vision_layers)
        check_depth("text", settings.text_depth, backbone.text_layers)
        self.vision_LPE = new_prompts(
            settings.vision_depth, settings.vision_tokens, backbone.vision_width
        )
        self.text_LPE = new_prompts(settings.text_depth, settings.text_tokens, backbone.text_width)
        if settings.start_words is not None:
            self._start_from_words(backbone, settings.start_words)

    def _start_from_words(self, backbone: Backbone, words: str) -> None:
        """Set the text tokens of block 0 to the embeddings of words (`CTX_INIT` of the release)."""
        ids_1S = backbone.tokenize([words])
        # EOT has the largest id; SOT is before the words.
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
        """Number of prompt tokens at the input of the text tower."""
        return self.settings.text_tokens if self.has_prompts and len(self.text_LPE) > 0 else 0

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return token ids [K, S], with slots for the prompts if there are any.

        Before prompts, `_` becomes a space even in raw names: the release replaces it there, and in
        no other variant.
        """
        if self.has_prompts:
            texts = [text.replace("_", " ") for text in texts]
        ids_KS = super().prepare_texts(texts)
        if self.num_slots == 0:
            return ids_KS
        return slot_texts(texts, ids_KS, self.settings)

    def layer_prompts(self) -> tuple[Prompts, Prompts]:
        """Return the prompt tokens of every block of both towers."""
        if not self.has_prompts:
            return (), ()
        return list(self.vision_LPE), list(self.text_LPE)

    def trained_groups(self) -> dict[str, Group]:
        """Return the parameters that `tune` names, and a temporal embedding that is new."""
        tune = self.settings.tune
        groups: dict[str, Group] = {}
        if tune == "prompts":
            for name in ("vision_LPE", "text_LPE"):
                if self.get_parameter(name).numel() > 0:
                    groups[name] = "prompts"
        else:
            # `all` has no entry, and every name starts with the empty prefix.
            prefixes = _TOWERS.get(tune, ("",))
            for name in self.backbone_names():
                if name.startswith(prefixes):
                    groups[name] = "backbone"
        return groups | self.new_temporal()
