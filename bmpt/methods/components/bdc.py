"""Brownian distance covariance of tokens, and BDC-CLIP's heads on it. Source: BDC-CLIP (Long et
al.).

The feature of a token set is how its channels covary; its entries are near 1e-5, so all of it runs
in float32
under any autocast. Shapes: M tokens, d reduced width, F = d (d + 1) / 2 entries of a feature, D
    joint width, B clips,
T frames, S tokens, K classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from bmpt.clip.precision import in_float32, widen
from bmpt.clip.towers import take_eot

DISTANCE_EPSILON = 1e-5  # under the root of each channel distance, the reference's
EVALUATION_DIVISOR = 5.0  # of the scale of the covariance logits, TEST.SCALE of the reference


def weigh_tokens(tokens_NMd: torch.Tensor, global_Nd: torch.Tensor) -> torch.Tensor:
    """Multiply each token by its softmax weight against a global token; the weights sum to 1 over
    M."""
    scores_NM = (tokens_NMd @ global_Nd.unsqueeze(-1)).squeeze(-1) / math.sqrt(tokens_NMd.shape[-1])
    return torch.softmax(scores_NM, dim=-1).unsqueeze(-1) * tokens_NMd


@in_float32
def distance_covariance(tokens_NMd: torch.Tensor) -> torch.Tensor:
    """The features [N, F] of token sets: upper triangle, row by row, of the doubly centred channel
    distances.

    N is any number of leading axes, 1 included. Float64 in, float64 out."""
    num_tokens, width = tokens_NMd.shape[-2:]
    gram_Ndd = tokens_NMd.mT @ tokens_NMd / (2 * num_tokens)
    square_Nd = gram_Ndd.diagonal(dim1=-2, dim2=-1)
    squared_Ndd = square_Nd.unsqueeze(-1) + square_Nd.unsqueeze(-2) - 2 * gram_Ndd
    distance_Ndd = (squared_Ndd.clamp(min=0) + DISTANCE_EPSILON).sqrt()
    row_means, column_means = (
        distance_Ndd.mean(dim=-1, keepdim=True),
        distance_Ndd.mean(dim=-2, keepdim=True),
    )
    centred_Ndd = (
        distance_Ndd - row_means - column_means + distance_Ndd.mean(dim=(-2, -1), keepdim=True)
    )
    rows, columns = torch.triu_indices(width, width, device=tokens_NMd.device)
    return centred_Ndd[..., rows, columns]


class BdcHeads(nn.Module):
    """What BDC-CLIP adds to CLIP; the names of its parameters are the release's.

    The release calls the classifier `vision_bdc_head_downstream` in few-shot training."""

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

        evaluation_divisor: what the scale of the covariance logits is divided by outside training
        floors_scale: floor that quotient, as the release does: 100 / 5 is 20 or, an ulp below 100,
            19"""
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
        """Features [B, F] of all projected visual tokens, CLS first: frames attend to each other by
        their CLS."""
        reduced_BTSd = _linear(self.vision_reduce, _norm(self.vision_norm, tokens_BTSD))
        cls_BTd = reduced_BTSd[:, :, 0]
        features_BTF = distance_covariance(weigh_tokens(reduced_BTSd, cls_BTd))
        query_BTd, key_BTd = (
            _linear(self.vision_q_proj, cls_BTd),
            _linear(self.vision_k_proj, cls_BTd),
        )
        scores_BTT = query_BTd @ key_BTd.mT / math.sqrt(cls_BTd.shape[-1])
        return (torch.softmax(scores_BTT, dim=-1) @ features_BTF + features_BTF).mean(dim=1)

    @in_float32
    def text_features(self, tokens_KSD: torch.Tensor, ids_KS: torch.Tensor) -> torch.Tensor:
        """Features [K, F] of one sentence a class, of all tokens of the context: what stands after
        EOT counts too.

        Evaluation joins sentences by `mean_over_sentences`."""
        reduced_KSd = _linear(self.text_reduce, _norm(self.text_norm, tokens_KSD))
        return distance_covariance(weigh_tokens(reduced_KSd, take_eot(reduced_KSd, ids_KS)))

    @in_float32
    def classifier_logits(self, video_BF: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of the trained classes."""
        return _linear(self.vision_bdc_head, self.dropout(video_BF))

    @in_float32
    def covariance_logits(self, video_BF: torch.Tensor, text_KF: torch.Tensor) -> torch.Tensor:
        """Scaled cosines [B, K] of video and text features."""
        return self.scale() * F.normalize(video_BF, dim=-1) @ F.normalize(text_KF, dim=-1).T

    def scale(self) -> torch.Tensor:
        """The trained scale; outside training divided by `evaluation_divisor`."""
        scale = widen(self.logits_scale_vision).exp()
        if self.training:
            return scale
        return (
            scale // self.evaluation_divisor
            if self.floors_scale
            else scale / self.evaluation_divisor
        )


def _norm(layer: nn.LayerNorm, tokens_XD: torch.Tensor) -> torch.Tensor:
    """The layer in the type of its input, also where a whole model was put into half precision."""
    return F.layer_norm(
        tokens_XD, layer.normalized_shape, widen(layer.weight), widen(layer.bias), layer.eps
    )


def _linear(layer: nn.Linear, vectors_XD: torch.Tensor) -> torch.Tensor:
    """Likewise."""
    return F.linear(
        vectors_XD, widen(layer.weight), None if layer.bias is None else widen(layer.bias)
    )
