"""Deep prompt tokens of both towers and BMPT's exchange between them, at the parameter level.

Shapes: L depth, P tokens, E tower width (v: vision, t: text)."""

from __future__ import annotations

import torch
from torch import nn

from shards.errors import ConfigError

PROMPT_STD = 0.02


def new_prompts(depth: int, num_tokens: int, width: int) -> nn.Parameter:
    """Prompt tokens [L, P, E], N(0, 0.02^2). Source: BMPT, ViFi-CLIP."""
    return nn.Parameter(PROMPT_STD * torch.randn(depth, num_tokens, width))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), CLIP's activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element."""
        return x * torch.sigmoid(1.702 * x)


class ExchangeLayer(nn.Module):
    """One layer's exchange: the first half of each tower's tokens moves the second half of the
    other's.

    Both directions read the un-updated halves; the gates start at 0, so that step 0 equals the
    uncoupled model and the gates have a gradient. BMPT as released builds its
    exchange at 768 in both towers and never calls it; this one is ours."""

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
        to_text = self.gate_to_text * self.vision_to_text(
            source_for(vision_giving, len(text_taking))
        )
        to_vision = self.gate_to_vision * self.text_to_vision(
            source_for(text_giving, len(vision_taking))
        )
        return (
            torch.cat([vision_giving, vision_taking + to_vision]),
            torch.cat([text_giving, text_taking + to_text]),
        )


class Exchange(nn.Module):
    """The exchange of layers 1 .. min(depths) - 1; layer 0 and deeper layers of one tower stay as
    they are."""

    def __init__(self, vision_LPE: nn.Parameter, text_LPE: nn.Parameter, hidden_width: int) -> None:
        super().__init__()
        depth = min(len(vision_LPE), len(text_LPE))
        widths = (vision_LPE.shape[2], text_LPE.shape[2], hidden_width)
        self.layers = nn.ModuleList(ExchangeLayer(*widths) for _ in range(1, depth))

    def forward(
        self, vision_LPE: torch.Tensor, text_LPE: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the prompts of every layer of both towers after the exchange."""
        vision, text = list(vision_LPE), list(text_LPE)
        for index, layer in enumerate(self.layers, start=1):
            vision[index], text[index] = layer(vision[index], text[index])
        return vision, text


def _two_layers(width_in: int, hidden_width: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, hidden_width), QuickGELU(), nn.Linear(hidden_width, width_out)
    )


def check_exchange(name: str, vision_LPE: torch.Tensor, text_LPE: torch.Tensor) -> None:
    """Raises: ConfigError if there is nothing to exchange."""
    depth = min(len(vision_LPE), len(text_LPE))
    tokens = min(vision_LPE.shape[1], text_LPE.shape[1])
    if depth < 2 or tokens < 2:
        raise ConfigError(
            f"method.exchange={name} needs a prompt depth and a number of tokens of at least 2 in both towers, got "
            f"depths {len(vision_LPE)} and {len(text_LPE)}, tokens {vision_LPE.shape[1]} and {text_LPE.shape[1]}; "
            "raise them or set method.exchange=none"
        )


def halves(tokens_XPE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(giving, taking), any leading axes; of an odd number the second half is the larger."""
    half = tokens_XPE.shape[-2] // 2
    return tokens_XPE[..., :half, :], tokens_XPE[..., half:, :]


def source_for(giving_HE: torch.Tensor, num_taking: int) -> torch.Tensor:
    """Token by token where the halves have the same size, else the mean over tokens [1, E]."""
    return giving_HE if len(giving_HE) == num_taking else giving_HE.mean(dim=0, keepdim=True)
