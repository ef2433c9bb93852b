"""BMPT: deep prompts in both towers that move each other, space-time attention, class texts.

`exchange: bidirectional` (default): text prompts stand in slots of their own between SOT and caption, and layers
exchange halves of their prompts. `exchange: none` is the released behaviour: no exchange, and from block 1 on text
prompts overwrite the first caption tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bmpt.clip import Backbone
from bmpt.config import MethodSettings
from bmpt.methods.base import Group, Method
from bmpt.methods.prompts import Exchange, new_prompts
from bmpt.towers import Prompts, insert_slots
from shards.errors import ConfigError


class Bmpt(Method):
    """Bidirectional mutual prompt tuning; `tune: prompts` trains prompts and exchange, `tune: all` everything."""

    default_space_time_blocks = (3, 7, 11)

    def __init__(self, backbone: Backbone, settings: MethodSettings, *, num_frames: int) -> None:
        """Raises: ConfigError for a depth beyond a tower, or an exchange of nothing."""
        super().__init__(backbone, settings, num_frames=num_frames)
        _check_depth("vision", settings.vision_depth, backbone.vision_layers)
        _check_depth("text", settings.text_depth, backbone.text_layers)
        self.settings = settings
        self.has_slots = settings.exchange == "bidirectional"
        # the released text side has no prompt of layer 0: its layers 1 .. depth - 1 are stored
        text_layers = settings.text_depth if self.has_slots else max(0, settings.text_depth - 1)
        self.vision_LPE = new_prompts(settings.vision_depth, settings.vision_tokens, backbone.vision_width)
        self.text_LPE = new_prompts(text_layers, settings.text_tokens, backbone.text_width)
        self.exchange = Exchange(self.vision_LPE, self.text_LPE, settings.exchange_width) if self.has_slots else None

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids [K, S], with slots for the prompts under `bidirectional`.

        Raises: ConfigError where classes would share one feature: under `none` for texts whose EOT would be
        overwritten, under `bidirectional` for texts that are equal once the slots have pushed out their ends."""
        ids_KS = super().prepare_texts(texts)
        if self.has_slots:
            return self._with_slots(texts, ids_KS)
        too_short = [
            text for text, eot in zip(texts, ids_KS.argmax(dim=1), strict=True) if eot <= self.settings.text_tokens
        ]
        if too_short and len(self.text_LPE) > 0:
            raise ConfigError(
                f"method.exchange=none overwrites the first {self.settings.text_tokens} caption tokens, which leaves "
                f"nothing of {len(too_short)} class texts such as {too_short[0]!r}; lower method.text_tokens, lengthen "
                "text.template, or set method.exchange=bidirectional"
            )
        return ids_KS

    def _with_slots(self, texts: Sequence[str], ids_KS: torch.Tensor) -> torch.Tensor:
        num_slots, context = self.settings.text_tokens, ids_KS.shape[1]
        if num_slots > context - 3:  # SOT, one caption token, EOT
            raise ConfigError(
                f"method.text_tokens={num_slots}: leaves no room for a caption in a context of {context} tokens; "
                f"give at most {context - 3}"
            )
        slotted_KS = insert_slots(ids_KS, num_slots)
        if len(slotted_KS.unique(dim=0)) < len(ids_KS.unique(dim=0)):
            raise ConfigError(
                f"method.text_tokens={num_slots}: pushes the ends of long class texts out of the {context} tokens, and "
                f"some of the {len(texts)} become equal; lower it or shorten text.template"
            )
        return slotted_KS

    def layer_prompts(self) -> tuple[Prompts, Prompts]:
        """Prompt tokens of every block, after the exchange where there is one."""
        if self.exchange is not None:
            return self.exchange(self.vision_LPE, self.text_LPE)
        return list(self.vision_LPE), [None, *self.text_LPE]

    def trained_groups(self) -> dict[str, Group]:
        """Prompts and exchange; with `tune: all` every CLIP weight too."""
        groups: dict[str, Group] = {"vision_LPE": "prompts", "text_LPE": "prompts"}
        groups |= {name: "exchange" for name, _ in self.named_parameters() if name.startswith("exchange.")}
        if self.temporal_group == "prompts":
            groups["temporal_TE"] = "prompts"
        if self.settings.tune == "all":
            groups |= dict.fromkeys(self.backbone_names(), "backbone")
        return {name: group for name, group in groups.items() if self.get_parameter(name).numel() > 0}


def _check_depth(tower: str, depth: int, layers: int) -> None:
    if depth > layers:
        raise ConfigError(f"method.{tower}_depth={depth}: the {tower} tower has {layers} blocks; give at most {layers}")
