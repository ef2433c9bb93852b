"""Deep prompt tokens of both towers: settings, slots in class texts, and BMPT's exchange.

Shapes: L depth, P prompt tokens, E tower width, K classes, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from bmpt.clip.towers import insert_slots
from bmpt.settings import MethodSettings
from shards.errors import ConfigError

PROMPT_STD = 0.02


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


def new_prompts(depth: int, num_tokens: int, width: int) -> nn.Parameter:
    """Draw prompt tokens [L, P, E] from N(0, 0.02^2). Source: BMPT, ViFi-CLIP."""
    return nn.Parameter(PROMPT_STD * torch.randn(depth, num_tokens, width))


def check_depth(tower: str, depth: int, layers: int) -> None:
    """Check a prompt depth against the number of blocks of the tower.

    Raises:
        ConfigError: The tower has fewer blocks.
    """
    if depth > layers:
        raise ConfigError(
            f"method.{tower}_depth={depth}: the {tower} tower has {layers} blocks; give at most "
            f"{layers}"
        )


def slot_texts(
    texts: Sequence[str], ids_KS: torch.Tensor, settings: PromptSettings
) -> torch.Tensor:
    """Return token ids with `text_tokens` slots between SOT and caption.

    Args:
        texts: The class texts.
        ids_KS: Their token ids.
        settings: The settings of the method.

    Raises:
        ConfigError: No caption fits beside the slots, or texts become equal once the slots have
            pushed out their ends.
    """
    num_slots, context = settings.text_tokens, ids_KS.shape[1]
    if num_slots > context - 3:  # SOT, one caption token, EOT
        raise ConfigError(
            f"method.text_tokens={num_slots}: leaves no room for a caption in a context of "
            f"{context} tokens; give at most {context - 3}"
        )
    # Slots push the ends of long texts out of the context; texts that were equal before are not
    # counted.
    slotted_KS = insert_slots(ids_KS, num_slots)
    if len(slotted_KS.unique(dim=0)) < len(ids_KS.unique(dim=0)):
        raise ConfigError(
            f"method.text_tokens={num_slots}: pushes the ends of long class texts out of the "
            f"{context} tokens, and some of the {len(texts)} become equal; lower it or shorten "
            "text.template"
        )
    return slotted_KS


class QuickGELU(nn.Module):
    """CLIP's activation, x * sigmoid(1.702 x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply QuickGELU element-wise."""
        return x * torch.sigmoid(1.702 * x)


class ExchangeLayer(nn.Module):
    """The exchange of one block: half of each tower's prompts moves the other half of the other's.

    Both directions read the halves before any update. The gates start at 0, so that step 0 equals
    the uncoupled model and the gates have a gradient. BMPT as released builds its exchange at width
    768 in both towers and never calls it; this one is ours.
    """

    def __init__(self, vision_width: int, text_width: int, hidden_width: int) -> None:
        super().__init__()
        self.vision_to_text = _two_layers(vision_width, hidden_width, text_width)
        self.text_to_vision = _two_layers(text_width, hidden_width, vision_width)
        self.gate_to_text = nn.Parameter(torch.zeros(()))
        self.gate_to_vision = nn.Parameter(torch.zeros(()))

    def forward(
        self, vision_PE: torch.Tensor, text_PE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the updated (vision_PE, text_PE)."""
        vision_giving, vision_taking = halves(vision_PE)
        text_giving, text_taking = halves(text_PE)

        # Both updates are computed before either is applied.
        to_text = self.vision_to_text(source_for(vision_giving, len(text_taking)))
        to_vision = self.text_to_vision(source_for(text_giving, len(vision_taking)))
        text_taking = text_taking + self.gate_to_text * to_text
        vision_taking = vision_taking + self.gate_to_vision * to_vision

        return torch.cat([vision_giving, vision_taking]), torch.cat([text_giving, text_taking])


class Exchange(nn.Module):
    """The exchange of blocks 1 .. min(depths) - 1.

    Block 0, and the deeper blocks of a tower with more prompts, keep theirs.
    """

    def __init__(self, vision_LPE: nn.Parameter, text_LPE: nn.Parameter, hidden_width: int) -> None:
        super().__init__()
        # Block 0 holds the prompts of the input, which the exchange does not touch.
        depth = min(len(vision_LPE), len(text_LPE))
        widths = (vision_LPE.shape[2], text_LPE.shape[2], hidden_width)
        self.layers = nn.ModuleList(ExchangeLayer(*widths) for _ in range(1, depth))

    def forward(
        self, vision_LPE: torch.Tensor, text_LPE: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the prompts of every block of both towers after the exchange."""
        vision, text = list(vision_LPE), list(text_LPE)
        for index, layer in enumerate(self.layers, start=1):
            vision[index], text[index] = layer(vision[index], text[index])
        return vision, text


def check_exchange(name: str, vision_LPE: torch.Tensor, text_LPE: torch.Tensor) -> None:
    """Check that there are prompts to exchange.

    Raises:
        ConfigError: A tower has fewer than two prompted blocks or tokens.
    """
    depth = min(len(vision_LPE), len(text_LPE))
    tokens = min(vision_LPE.shape[1], text_LPE.shape[1])
    if depth < 2 or tokens < 2:
        raise ConfigError(
            f"method.exchange={name} needs a prompt depth and a number of tokens of at least 2 in "
            f"both towers, got depths {len(vision_LPE)} and {len(text_LPE)}, tokens "
            f"{vision_LPE.shape[1]} and {text_LPE.shape[1]}; raise them or set method.exchange=none"
        )


def halves(tokens_XPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the giving and the taking half; of an odd number the taking half is the larger."""
    half = tokens_XPE.shape[-2] // 2
    return tokens_XPE[..., :half, :], tokens_XPE[..., half:, :]


def source_for(giving_HE: torch.Tensor, num_taking: int) -> torch.Tensor:
    """Return what moves the taking half.

    It is token by token where both halves have the same size, else the mean over tokens [1, E].
    """
    if len(giving_HE) == num_taking:
        return giving_HE
    return giving_HE.mean(dim=0, keepdim=True)


def _two_layers(width_in: int, hidden_width: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, hidden_width), QuickGELU(), nn.Linear(hidden_width, width_out)
    )
