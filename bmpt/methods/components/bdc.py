"""Brownian distance covariance of tokens, and BDC-CLIP's heads. Source: BDC-CLIP (Long et al.).

The feature of a set of tokens is the covariance of its channels. Its entries are near 1e-5, so all
of it runs in float32 under any autocast.

Shapes: M tokens, d reduced width, F = d (d + 1) / 2 entries of a feature, D joint width, B clips,
T frames, S tokens, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from bmpt.clip.precision import in_float32, widen
from bmpt.clip.towers import take_eot

DISTANCE_EPSILON = 1e-5
"""Added under the root of each channel distance, as in the reference."""

EVALUATION_DIVISOR = 5.0
"""Divisor of the scale of the covariance logits, TEST.SCALE of the reference."""


def weigh_tokens(tokens_NMd: torch.Tensor, global_Nd: torch.Tensor) -> torch.Tensor:
    """Multiply each token by its softmax weight against a global token.

    The weights sum to 1 over the M tokens.
    """
    # Scaled as in attention, by the root of the width.
    scores_NM = (tokens_NMd @ global_Nd.unsqueeze(-1)).squeeze(-1) / math.sqrt(tokens_NMd.shape[-1])
    return torch.softmax(scores_NM, dim=-1).unsqueeze(-1) * tokens_NMd


@in_float32
def distance_covariance(tokens_NMd: torch.Tensor) -> torch.Tensor:
    """Return the features [N, F] of token sets.

    A feature is the upper triangle, row by row, of the doubly centred channel distances.

    Args:
        tokens_NMd: Token sets; N stands for any number of leading axes. Float64 gives float64.
    """
    num_tokens, width = tokens_NMd.shape[-2:]

    # distances of channels from their Gram matrix
    gram_Ndd = tokens_NMd.mT @ tokens_NMd / (2 * num_tokens)
    square_Nd = gram_Ndd.diagonal(dim1=-2, dim2=-1)
    squared_Ndd = square_Nd.unsqueeze(-1) + square_Nd.unsqueeze(-2) - 2 * gram_Ndd
    # Rounding can make a squared distance negative, and the root has an infinite gradient at 0.
    distance_Ndd = (squared_Ndd.clamp(min=0) + DISTANCE_EPSILON).sqrt()

    row_means = distance_Ndd.mean(dim=-1, keepdim=True)
    column_means = distance_Ndd.mean(dim=-2, keepdim=True)
    overall_mean = distance_Ndd.mean(dim=(-2, -1), keepdim=True)
    centred_Ndd = distance_Ndd - row_means - column_means + overall_mean

    # The matrix is symmetric: the upper triangle holds all of it.
    rows, columns = torch.triu_indices(width, width, device=tokens_NMd.device)
    return centred_Ndd[..., rows, columns]


class BdcHeads(nn.Module):
    """The modules that BDC-CLIP adds to CLIP; their parameters have the names of the release.

    The release calls the classifier `vision_bdc_head_downstream` in few-shot training.
    """

    def __init__(
        self,
        joint_width: int,
        num_classes: int,
        *,
        reduced_width: int = 192,
        dropout: float = 0.0,
        evaluation_divisor: float = EVALUATION_DIVISOR,
        floors_scale: bool = False,
    ) -> None:
        """Draw the heads.

        Args:
            joint_width: Width of CLIP's joint space (D).
            num_classes: Classes of the classifier.
            reduced_width: Channels whose covariance is taken (d).
            dropout: Dropout before the classifier.
            evaluation_divisor: Divisor of the scale of the covariance logits outside training.
            floors_scale: Round the divided scale down, as the release does: 100 / 5 is 20 or, an
                ulp below 100, 19.
        """
        super().__init__()
        self.evaluation_divisor, self.floors_scale = evaluation_divisor, floors_scale
        self.vision_norm, self.text_norm = nn.LayerNorm(joint_width), nn.LayerNorm(joint_width)
        self.vision_reduce = nn.Linear(joint_width, reduced_width, bias=False)
        self.text_reduce = nn.Linear(joint_width, reduced_width, bias=False)
        self.vision_q_proj = nn.Linear(reduced_width, reduced_width, bias=False)
        self.vision_k_proj = nn.Linear(reduced_width, reduced_width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.vision_bdc_head = nn.Linear(reduced_width * (reduced_width + 1) // 2, num_classes)
        self.logits_scale_vision = nn.Parameter(torch.tensor(math.log(100.0)))

    @in_float32
    def video_features(self, tokens_BTSD: torch.Tensor) -> torch.Tensor:
        """Return features [B, F] of all projected visual tokens, CLS first.

        Frames attend to each other by their CLS tokens.
        """
        reduced_BTSd = _linear(self.vision_reduce, _norm(self.vision_norm, tokens_BTSD))
        cls_BTd = reduced_BTSd[:, :, 0]
        # One feature per frame; attention between frames then mixes them.
        features_BTF = distance_covariance(weigh_tokens(reduced_BTSd, cls_BTd))

        query_BTd = _linear(self.vision_q_proj, cls_BTd)
        key_BTd = _linear(self.vision_k_proj, cls_BTd)
        scores_BTT = query_BTd @ key_BTd.mT / math.sqrt(cls_BTd.shape[-1])
        return (torch.softmax(scores_BTT, dim=-1) @ features_BTF + features_BTF).mean(dim=1)

    @in_float32
    def text_features(self, tokens_KSD: torch.Tensor, ids_KS: torch.Tensor) -> torch.Tensor:
        """Return features [K, F] of one sentence per class.

        All tokens of the context count, also those after EOT. Evaluation joins sentences by
        `mean_over_sentences`.
        """
        reduced_KSd = _linear(self.text_reduce, _norm(self.text_norm, tokens_KSD))
        return distance_covariance(weigh_tokens(reduced_KSd, take_eot(reduced_KSd, ids_KS)))

    @in_float32
    def classifier_logits(self, video_BF: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of the trained classes."""
        return _linear(self.vision_bdc_head, self.dropout(video_BF))

    @in_float32
    def covariance_logits(self, video_BF: torch.Tensor, text_KF: torch.Tensor) -> torch.Tensor:
        """Return scaled cosines [B, K] of video and text features."""
        return self.scale() * F.normalize(video_BF, dim=-1) @ F.normalize(text_KF, dim=-1).T

    def scale(self) -> torch.Tensor:
        """Return the trained scale; outside training it is divided by `evaluation_divisor`."""
        scale = widen(self.logits_scale_vision).exp()
        if self.training:
            return scale
        if self.floors_scale:
            return scale // self.evaluation_divisor
        return scale / self.evaluation_divisor


def _norm(layer: nn.LayerNorm, tokens_XD: torch.Tensor) -> torch.Tensor:
    """Apply the layer norm in the dtype of its input.

    A model that was put into half precision has half-precision weights; the input is float32.
    """
    return F.layer_norm(
        tokens_XD, layer.normalized_shape, widen(layer.weight), widen(layer.bias), layer.eps
    )


def _linear(layer: nn.Linear, vectors_XD: torch.Tensor) -> torch.Tensor:
    """Apply the linear layer in the dtype of its input."""
    bias = None if layer.bias is None else widen(layer.bias)
    return F.linear(vectors_XD, widen(layer.weight), bias)
