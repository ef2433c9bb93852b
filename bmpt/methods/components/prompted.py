"""Class texts with room for prompt tokens, and checks of prompt settings that several methods
share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from bmpt.clip.towers import insert_slots
from bmpt.settings import MethodSettings
from shards.errors import ConfigError


class PromptSettings(MethodSettings):
    """Settings of methods with deep prompts in both towers."""

    vision_depth: int = Field(
        12, ge=0, description="visual blocks with prompt tokens of their own, from the first on"
    )
    vision_tokens: int = Field(8, ge=1, description="prompt tokens per visual block")
    text_depth: int = Field(
        12, ge=0, description="text blocks with prompt tokens of their own, from the first on"
    )
    text_tokens: int = Field(8, ge=1, description="prompt tokens per text block")


def check_depth(tower: str, depth: int, layers: int) -> None:
    """Raises: ConfigError for a prompt depth that the tower does not have."""
    if depth > layers:
        raise ConfigError(
            f"method.{tower}_depth={depth}: the {tower} tower has {layers} blocks; give at most {layers}"
        )


def slot_texts(
    texts: Sequence[str], ids_KS: torch.Tensor, settings: PromptSettings
) -> torch.Tensor:
    """Token ids with `text_tokens` slots between SOT and caption.

    Raises: ConfigError if no caption fits beside them, or if texts become equal once their ends are
        pushed out."""
    num_slots, context = settings.text_tokens, ids_KS.shape[1]
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
