"""BMPT's exchange of features (`exchange: batch_gated`).

Both towers advance block by block, side by side. In each block the first half of each tower's
prompt tokens moves the second half of the other tower's.

Source: BMPT's pre-release module, which the release does not call. The exchange acts after a
block's own prompts have replaced the tokens of the last block. Within the prompt depth, every block
therefore starts from its own learned prompts, so the exchanged mean is the same for all clips.
Beyond it the mean runs over the frames of the micro-batch, and class features depend on the batch.

The max over classes equals the value of any single class: text prompts stand before the caption in
a causal tower and do not see it. Clip features therefore never depend on the classes or negatives.

Shapes: N = B * T frames, K classes, S tokens, P prompt tokens, H of them in the giving half, E
tower width.
"""

from __future__ import annotations

import torch
from torch import nn

from bmpt.clip.towers import FrameWalk, TextWalk
from bmpt.methods.components.prompts import halves, source_for

GATE = 0.2
DROPOUT = 0.1


class BatchGatedLayer(nn.Module):
    """The exchange of one block; both directions read the halves before any update.

    The gate does not train.
    """

    gate: torch.Tensor

    def __init__(self, vision_width: int, text_width: int, hidden_width: int) -> None:
        super().__init__()
        self.vision_to_text = _two_layers(vision_width, hidden_width, text_width)
        self.text_to_vision = _two_layers(text_width, hidden_width, vision_width)
        # Not persistent: a checkpoint holds trained tensors only, and the gate is a constant.
        self.register_buffer("gate", torch.tensor(GATE), persistent=False)

    def forward(
        self, vision_NPE: torch.Tensor, text_KPE: torch.Tensor, weights_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the updated (vision_NPE, text_KPE).

        Args:
            vision_NPE: Prompt tokens of the frames.
            text_KPE: Prompt tokens of the classes.
            weights_N: 0 for the frames of a placeholder sample, else 1.
        """
        dtype = vision_NPE.dtype
        vision_giving, vision_taking = halves(vision_NPE)
        text_giving, text_taking = halves(text_KPE)

        # weighted mean over frames, maximum over classes
        fraction_N = weights_N.to(dtype) / weights_N.sum().clamp(min=1).to(dtype)
        of_frames_HE = torch.einsum("n,nhe->he", fraction_N, vision_giving)
        of_classes_HE = text_giving.amax(dim=0)

        gate = torch.sigmoid(self.gate).to(dtype)
        to_text = gate * self.vision_to_text(source_for(of_frames_HE, text_taking.shape[1]))
        to_vision = gate * self.text_to_vision(source_for(of_classes_HE, vision_taking.shape[1]))
        return (
            torch.cat([vision_giving, vision_taking + to_vision], dim=1),
            torch.cat([text_giving, text_taking + to_text], dim=1),
        )


class BatchGatedExchange(nn.Module):
    """The exchange of all blocks that both towers have."""

    def __init__(
        self, num_blocks: int, vision_width: int, text_width: int, hidden_width: int
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            BatchGatedLayer(vision_width, text_width, hidden_width) for _ in range(num_blocks)
        )

    def forward(
        self,
        frames: FrameWalk,
        texts: TextWalk,
        *,
        vision_tokens: int,
        text_tokens: int,
        weights_N: torch.Tensor,
    ) -> None:
        """Run both towers to their ends, with an exchange in every block that both have.

        Args:
            frames: The visual tower at its first block; its prompts are its last tokens.
            texts: The text tower; its prompts are at positions 1 .. text_tokens.
            vision_tokens: Prompt tokens per frame.
            text_tokens: Prompt tokens per text.
            weights_N: 0 for the frames of a placeholder sample, else 1.
        """
        for index in range(max(len(frames.blocks), len(texts.blocks))):
            # The towers may have different depths; the deeper one goes on without the other.
            walks = [walk for walk in (frames, texts) if index < len(walk.blocks)]
            for walk in walks:
                walk.enter(index)
            if index < len(self.layers):
                self._exchange(index, frames, texts, vision_tokens, text_tokens, weights_N)
            for walk in walks:
                walk.run(index)

    def _exchange(
        self,
        index: int,
        frames: FrameWalk,
        texts: TextWalk,
        vision_tokens: int,
        text_tokens: int,
        weights_N: torch.Tensor,
    ) -> None:
        """Replace the prompt tokens of both towers before one block."""
        vision_NSE, text_KSE, end = frames.tokens_NSE, texts.tokens_KSE, 1 + text_tokens
        vision_NPE, text_KPE = self.layers[index](
            vision_NSE[:, -vision_tokens:], text_KSE[:, 1:end], weights_N
        )
        # New tensors instead of writes into the old ones, which the graph still needs.
        frames.tokens_NSE = torch.cat(
            [vision_NSE[:, :-vision_tokens], vision_NPE.to(vision_NSE.dtype)], dim=1
        )
        texts.tokens_KSE = torch.cat(
            [text_KSE[:, :1], text_KPE.to(text_KSE.dtype), text_KSE[:, end:]], dim=1
        )


def _two_layers(width_in: int, hidden_width: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, hidden_width),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(hidden_width, width_out),
    )
