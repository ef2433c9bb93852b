"""BDC-CLIP: space-time attention, and covariances of token channels beside CLIP's cosine.

Source: Long et al.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from bmpt.clip.backbone import Backbone
from bmpt.clip.precision import unit
from bmpt.clip.towers import encode_text_tokens, take_eot
from bmpt.methods.base import COSINE, ClassTexts, ClipInputs, Features, Group, Method
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
        """Return the traits: dropout draws other numbers for other micro-batches and ranks."""
        return MethodTraits(tunes=("all",), depends_on_batch=self.dropout > 0)


class BdcClip(Method):
    """CLIP with covariance heads; every weight trains, the heads at rates of their own.

    The classifier knows only the classes that it was trained on. Scores of other classes leave it
    out.
    """

    settings: BdcClipSettings
    default_space_time_blocks = (3, 7, 11)

    def __init__(
        self,
        backbone: Backbone,
        settings: BdcClipSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        # By name and order: the rows of the classifier have no other meaning.
        self.trained_classes = tuple(classes)
        self.heads = BdcHeads(
            backbone.joint_width,
            # a classifier needs a class, also where none is known yet
            max(1, len(classes)),
            reduced_width=settings.reduced_width,
            dropout=settings.dropout,
            evaluation_divisor=settings.scale_divisor,
            floors_scale=settings.floors_scale,
        )

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """Return EOT features, and covariances of all 77 tokens."""
        ids_KS = texts.ids_KPS[:, index]
        tokens_KSD = encode_text_tokens(self.clip, ids_KS)
        return {
            COSINE: unit(take_eot(tokens_KSD, ids_KS)),
            COVARIANCE: self.heads.text_features(tokens_KSD, ids_KS),
        }

    def scoring_warning(self, texts: ClassTexts) -> str | None:
        """Return a warning if the scores leave the classifier out, for classes of other names."""
        if texts.names == self.trained_classes:
            return None
        return (
            f"the classifier was trained on {len(self.trained_classes)} classes that are not these "
            f"{len(texts.names)} by spelling and order; the scores leave it out"
        )

    def class_features(self, texts: ClassTexts) -> Features:
        """Return features joined over sentences, and whether the classifier knows the classes."""
        # A tensor, so that it travels with the features of the classes.
        is_trained = torch.tensor(texts.names == self.trained_classes)
        return {**super().class_features(texts), CLASSIFIER: is_trained}

    def encode_clips(self, inputs: ClipInputs) -> Features:
        """Return CLIP's clip features, and covariances of all tokens of all frames."""
        tokens_BVTSD = self._encode_tokens(inputs.frames_BVTCHW)
        covariance_XF = self.heads.video_features(tokens_BVTSD.flatten(0, 1))
        return {
            COSINE: self._pool(tokens_BVTSD[..., 0, :]),
            COVARIANCE: covariance_XF.unflatten(0, tokens_BVTSD.shape[:2]),
        }

    def logits(self, clips: Features, classes: Features) -> dict[str, torch.Tensor]:
        """Return logits of cosine, covariance, and of the classifier where it knows the classes."""
        logits = super().logits(clips, classes)
        logits[COVARIANCE] = self.heads.covariance_logits(clips[COVARIANCE], classes[COVARIANCE])
        # In training the classes are the trained ones, and their features do not say so.
        if self.training or bool(classes[CLASSIFIER]):
            logits[CLASSIFIER] = self.heads.classifier_logits(clips[COVARIANCE])
        return logits

    def class_scores(self, clips: Features, classes: Features) -> torch.Tensor:
        """Return the sum of the probabilities of all kinds, weighted by `method.coefficients`."""
        logits = self.logits(clips, classes)
        cosine, classifier, covariance = self.settings.coefficients
        weights = {COSINE: cosine, CLASSIFIER: classifier, COVARIANCE: covariance}
        return fuse_probabilities(*logits.values(), coefficients=[weights[kind] for kind in logits])

    def trained_groups(self) -> dict[str, Group]:
        """Return CLIP, the classifier, and the other heads."""
        groups: dict[str, Group] = dict.fromkeys(self.backbone_names(), "backbone")
        for name, _ in self.heads.named_parameters():
            if name == "logits_scale_vision":
                groups[f"heads.{name}"] = "backbone"
            elif name.startswith("vision_bdc_head"):
                groups[f"heads.{name}"] = "head"
            else:
                groups[f"heads.{name}"] = "adapters"
        return groups | self.new_temporal()
