"""Training losses as weighted sums over clips.

The caller divides a sum by the number of valid clips of the global batch. The placeholder of a
sample that could not be read has weight 0.

Shapes: B clips of a rank, N clips of the global batch, K classes, D joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bmpt.clip.precision import in_float32, widen

NEGATIVE_MARGIN = 0.1
MATCH_SHARPNESS = 10.0
DUAL_TEMPERATURE = 1000.0


def cross_entropy_sum(
    logits_BK: torch.Tensor,
    labels_B: torch.Tensor,
    weights_B: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the sum of weight * cross-entropy over the clips."""
    loss_B = F.cross_entropy(
        widen(logits_BK), labels_B, reduction="none", label_smoothing=label_smoothing
    )
    return (loss_B * weights_B).sum()


@in_float32
def knowledge_logits(
    knowledge_BD: torch.Tensor, classes_KD: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return scaled cosines [B, K] of knowledge vectors of clips and class features.

    Neither need be unit vectors. The cross-entropy of these logits pulls each class text towards
    the knowledge on its clips. Source: BMPT.
    """
    return scale * F.normalize(knowledge_BD, dim=-1) @ F.normalize(classes_KD, dim=-1).T


def negative_margin_sum(
    logits_BK: torch.Tensor,
    negative_logits_BK: torch.Tensor,
    labels_B: torch.Tensor,
    weights_B: torch.Tensor,
    *,
    margin: float = NEGATIVE_MARGIN,
) -> torch.Tensor:
    """Return the sum of weight * max(0, margin - (p - p')) over the clips.

    p and p' are the softmax probabilities of a clip's label, over the classes and over their
    negatives: a class must beat its own negative by a margin. Source: BMPT.
    """
    labels_B1 = labels_B.unsqueeze(-1)
    positive_B = torch.softmax(widen(logits_BK), dim=-1).gather(-1, labels_B1).squeeze(-1)
    negative_B = torch.softmax(widen(negative_logits_BK), dim=-1).gather(-1, labels_B1).squeeze(-1)
    return (F.relu(margin - (positive_B - negative_B)) * weights_B).sum()


def matching_sum(
    logits_NN: torch.Tensor,
    labels_N: torch.Tensor,
    weights_N: torch.Tensor,
    *,
    own: slice = slice(None),
    dual: bool = False,
) -> torch.Tensor:
    """Return the mean of `divergence_sum` over both directions: clips to texts, texts to clips.

    A placeholder sample is neither a row nor a column. Source: BIKE (`loss_type: NCE`, or `DS` if
    dual).

    Args:
        logits_NN: Clip i with the class text of clip j. These are columns of class logits,
            `logits_NK[:, labels_N]`.
        labels_N: int64 class ids.
        weights_N: Weights of the clips.
        own: The clips of this rank; the parts of all ranks sum to the whole, see
            `bmpt/methods/components/gather.py`.
        dual: Use the dual softmax, see `divergence_sum`.
    """
    # Rows of other ranks weigh 0 here: they count on their own rank.
    own_weights_N = torch.zeros_like(weights_N)
    own_weights_N[own] = weights_N[own]

    # Placeholders leave the matrix before the softmax, which they would change for all others.
    is_valid_N = weights_N > 0
    logits_NN = widen(logits_NN)[is_valid_N][:, is_valid_N]
    labels_N, own_weights_N = labels_N[is_valid_N], own_weights_N[is_valid_N]

    clips = divergence_sum(logits_NN, labels_N, own_weights_N, dual=dual)
    texts = divergence_sum(logits_NN.T, labels_N, own_weights_N, dual=dual)
    return (clips + texts) / 2


def divergence_sum(
    logits_NN: torch.Tensor, labels_N: torch.Tensor, weights_N: torch.Tensor, *, dual: bool = False
) -> torch.Tensor:
    """Return the sum over rows of weight * KL(q || softmax of the row).

    q is softmax(10 * [same label]).

    Args:
        logits_NN: Logits of pairs.
        labels_N: int64 class ids.
        weights_N: Weights of the rows.
        dual: First multiply each logit by N times its softmax over the column, at temperature 1000.
    """
    logits_NN = widen(logits_NN)
    if dual:
        logits_NN = logits_NN * torch.softmax(logits_NN / DUAL_TEMPERATURE, dim=0) * len(logits_NN)
    is_same_NN = (labels_N.unsqueeze(0) == labels_N.unsqueeze(1)).to(logits_NN.dtype)
    # Clips of the same label share the target equally; the sharpness leaves little to others.
    target_NN = torch.softmax(MATCH_SHARPNESS * is_same_NN, dim=-1)
    loss_NN = F.kl_div(torch.log_softmax(logits_NN, dim=-1), target_NN, reduction="none")
    return (loss_NN.sum(dim=-1) * weights_N).sum()
