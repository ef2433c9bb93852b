"""BDC-CLIP: space-time attention, and how the channels of tokens covary beside CLIP's cosine.
Source: Long et al."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from bmpt.clip.backbone import Backbone
from bmpt.clip.precision import unit
from bmpt.clip.towers import encode_text_tokens, take_eot
from bmpt.methods.base import COSINE, ClassTexts, Features, Group, Method
from bmpt.methods.components.bdc import BdcHeads
from bmpt.methods.components.fusion import fuse_probabilities
from bmpt.settings import MethodSettings, MethodTraits

COVARIANCE, CLASSIFIER = "covariance", "classifier"


class BdcClipSettings(MethodSettings):
    """Settings of `bdc_clip`."""

    name: str = "bdc_clip"
    reduced_width: int = Field(192, ge=1, description="channels whose covariance is taken")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the classifier")
    coefficients: tuple[float, float, float] = Field(
        (0.2, 0.3, 0.5),
        description="weights of the probabilities of cosine, classifier and covariance",
    )
    scale_divisor: float = Field(
        5.0, gt=0, description="divisor of the scale of the covariance logits in scoring"
    )
    floors_scale: bool = Field(
        False, description="round the divided scale down, as the released code does"
    )

    @property
    def traits(self) -> MethodTraits:
        """Return the traits: dropout draws other numbers for every way to spread a step."""
        return MethodTraits(tunes=("all",), depends_on_batch=self.dropout > 0)


class BdcClip(Method):
    """Every weight trains, and the heads with rates of their own.

    The classifier knows the classes it was trained on: where others are scored, its share is left
    out."""

    default_space_time_blocks = (3, 7, 11)
    settings: BdcClipSettings

    def __init__(
        self,
        backbone: Backbone,
        settings: BdcClipSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        self.trained_classes = tuple(classes)
        self.heads = BdcHeads(
            backbone.joint_width,
            max(1, len(classes)),
            reduced_width=settings.reduced_width,
            dropout=settings.dropout,
            evaluation_divisor=settings.scale_divisor,
            floors_scale=settings.floors_scale,
        )

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """EOT features, and covariances of all 77 tokens."""
        ids_KS = texts.ids_KPS[:, index]
        tokens_KSD = encode_text_tokens(self.clip, ids_KS)
        return {
            COSINE: unit(take_eot(tokens_KSD, ids_KS)),
            COVARIANCE: self.heads.text_features(tokens_KSD, ids_KS),
        }

    def note_on(self, texts: ClassTexts) -> str | None:
        """Whether the classifier takes no part, which is known by the names of its classes."""
        if texts.names == self.trained_classes:
            return None
        return (
            f"the classifier was trained on {len(self.trained_classes)} classes that are not these {len(texts.names)} "
            "by spelling and order; its share of the scores is left out"
        )

    def class_features(self, texts: ClassTexts) -> Features:
        """Likewise, joined over sentences; and whether these are the classifier's classes."""
        is_trained = torch.tensor(texts.names == self.trained_classes)
        return {**super().class_features(texts), CLASSIFIER: is_trained}

    def encode_clips(self, frames_BVTCHW: torch.Tensor) -> Features:
        """CLIP's clip features, and covariances of all tokens of all frames."""
        tokens_BVTSD = self._encode_tokens(frames_BVTCHW)
        covariance_XF = self.heads.video_features(tokens_BVTSD.flatten(0, 1))
        return {
            COSINE: self._pool(tokens_BVTSD[..., 0, :]),
            COVARIANCE: covariance_XF.unflatten(0, frames_BVTCHW.shape[:2]),
        }

    def logits(self, clips: Features, classes: Features) -> dict[str, torch.Tensor]:
        """Cosine, covariance, and in training or for the trained classes the classifier's."""
        found = super().logits(clips, classes)
        found[COVARIANCE] = self.heads.covariance_logits(clips[COVARIANCE], classes[COVARIANCE])
        if self.training or bool(classes[CLASSIFIER]):
            found[CLASSIFIER] = self.heads.classifier_logits(clips[COVARIANCE])
        return found

    def scores(self, clips: Features, classes: Features) -> torch.Tensor:
        """Probabilities of each kind, weighted by `method.coefficients`; those of absent kinds are
        left out."""
        logits = self.logits(clips, classes)
        shares = dict(
            zip((COSINE, CLASSIFIER, COVARIANCE), self.settings.coefficients, strict=True)
        )
        return fuse_probabilities(*logits.values(), coefficients=[shares[kind] for kind in logits])

    def trained_groups(self) -> dict[str, Group]:
        """CLIP, the classifier, and the other heads."""
        groups: dict[str, Group] = dict.fromkeys(self.backbone_names(), "backbone")
        for name, _ in self.heads.named_parameters():
            is_scale, is_head = name == "logits_scale_vision", name.startswith("vision_bdc_head")
            groups[f"heads.{name}"] = "backbone" if is_scale else "head" if is_head else "adapters"
        return groups | self.new_temporal()
