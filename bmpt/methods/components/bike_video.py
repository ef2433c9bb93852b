"""BIKE's video branch: a temporal transformer over frames, and how frames meet the class texts.

Source: Wu et al. 2023. Shapes: B clips, T frames, K classes, S text tokens, D joint width.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from bmpt.clip.precision import in_float32
from bmpt.methods.components.prompts import QuickGELU

INIT_STD = 0.02
SPOTTING_TEMPERATURE = 0.01


class TemporalTransformer(nn.Module):
    """Pre-norm blocks over the frames of a clip, with a residual around all of them.

    The release calls this `sim_header: Transf`; under `sim_header: None` frame features are used as
    they are. The parameters have the names of the release.
    """

    def __init__(
        self, width: int, *, num_heads: int, num_layers: int = 6, max_frames: int = 77
    ) -> None:
        """Draw the blocks.

        Args:
            width: Width of the frame features (D).
            num_heads: Heads per block; text width / 64 in the release.
            num_layers: Number of blocks.
            max_frames: Positions of the embedding; as many as text positions in the release.
        """
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(max_frames, width)
        blocks = nn.Sequential(*(_TemporalBlock(width, num_heads) for _ in range(num_layers)))
        self.transformer = nn.Sequential(OrderedDict(resblocks=blocks))
        self.apply(init_linear)

    def forward(self, frames_BTD: torch.Tensor) -> torch.Tensor:
        """Return frame features [B, T, D] that depend on their position and on each other."""
        positions_TD = self.frame_position_embeddings.weight[: frames_BTD.shape[1]]
        # Autocast gives half precision; the residual keeps the dtype of the input.
        return self.transformer(frames_BTD + positions_TD).to(frames_BTD.dtype) + frames_BTD


class _TemporalBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-12)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-12)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        # pre-norm: attention, then the two-layer map, each with a residual
        normed = self.ln_1(tokens_BTD)
        tokens_BTD = tokens_BTD + self.attn(normed, normed, normed, need_weights=False)[0]
        return tokens_BTD + self.mlp(self.ln_2(tokens_BTD))


def init_linear(module: nn.Module) -> None:
    """Initialise a linear or embedding layer as BIKE does: N(0, 0.02^2), biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


@in_float32
def mean_frame_cosines(frames_BTD: torch.Tensor, classes_KD: torch.Tensor) -> torch.Tensor:
    """Return cosines [B, K] of the mean of un-normalised frames and classes (`interaction: DP`)."""
    return F.normalize(frames_BTD.mean(dim=1), dim=-1) @ F.normalize(classes_KD, dim=-1).T


@in_float32
def spotted_cosines(
    frames_BTD: torch.Tensor,
    classes_KD: torch.Tensor,
    words_KSD: torch.Tensor,
    is_word_KS: torch.Tensor,
) -> torch.Tensor:
    """Return cosines [B, K] of frames weighted by the words of the class (`interaction: VCS`).

    Each word spreads a weight of 1 over the frames by its similarity to them. The weight of a frame
    is the mean over the words. The weighted frame is not made unit again, so a cosine is a mean of
    the cosines of frames. The intermediate weights take B * K * S * T numbers.

    Args:
        frames_BTD: Frame features, which need not be unit vectors.
        classes_KD: Class features, which need not be unit vectors.
        words_KSD: Token features of the class texts.
        is_word_KS: Tokens that are averaged over, see `word_mask`.
    """
    frames_BTD, classes_KD = F.normalize(frames_BTD, dim=-1), F.normalize(classes_KD, dim=-1)
    similarity_BKST = torch.einsum("ksd,btd->bkst", F.normalize(words_KSD, dim=-1), frames_BTD)
    weights_BKST = torch.softmax(similarity_BKST / SPOTTING_TEMPERATURE, dim=-1)

    # mean over the words of each class
    fraction_KS = is_word_KS.to(frames_BTD.dtype) / is_word_KS.sum(dim=-1, keepdim=True)
    saliency_BKT = torch.einsum("bkst,ks->bkt", weights_BKST, fraction_KS)
    return (saliency_BKT * torch.einsum("btd,kd->bkt", frames_BTD, classes_KD)).sum(dim=-1)


def word_mask(ids_KS: torch.Tensor, *, counts_padding: bool = False) -> torch.Tensor:
    """Return which tokens of class texts are words, bool [K, S]: those from SOT to EOT.

    Args:
        ids_KS: Token ids.
        counts_padding: Count all tokens, as the release does, in which padding outweighs the words
            of a short text.
    """
    if counts_padding:
        return torch.ones_like(ids_KS, dtype=torch.bool)
    # EOT has the largest id of the vocabulary.
    ends_K1 = ids_KS.argmax(dim=-1, keepdim=True)
    return torch.arange(ids_KS.shape[1], device=ids_KS.device) <= ends_K1
