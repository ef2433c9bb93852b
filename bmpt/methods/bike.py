"""BIKE: a temporal transformer over frames, words that pick frames, and attributes of clips.

Source: Wu et al. 2023. The loss compares the clips of all ranks' micro-batches with the class texts
of each other. Unlike the losses of the other methods, it therefore depends on how many clips are
computed at once.

The attributes branch trains beside the video branch: only its head trains, on frozen text features,
and the video branch is the same with and without it. (The release trains it after the video branch,
with the same config.) Scores then join both branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field

from bmpt.clip.backbone import Backbone
from bmpt.clip.precision import widen
from bmpt.clip.towers import cut_to_longest, encode_text_tokens, take_eot
from bmpt.methods.base import (
    ATTRIBUTES,
    COSINE,
    ClassTexts,
    ClipInputs,
    Features,
    Group,
    Method,
    Targets,
)
from bmpt.methods.components.bike_attributes import (
    ATTRIBUTES_WEIGHT,
    VIDEO_WEIGHT,
    AttributeHead,
)
from bmpt.methods.components.bike_video import (
    TemporalTransformer,
    mean_frame_cosines,
    spotted_cosines,
    word_mask,
)
from bmpt.methods.components.fusion import fuse_probabilities
from bmpt.methods.components.gather import row_gather
from bmpt.methods.components.losses import matching_sum
from bmpt.settings import MethodSettings, MethodTraits
from bmpt.texts.class_texts import ClassSentences
from shards.errors import ConfigError

FRAMES, WORDS, IS_WORD = "frames", "words", "is_word"


class BikeSettings(MethodSettings):
    """Settings of `bike`."""

    name: str = "bike"
    interaction: Literal["DP", "VCS"] = Field(
        "VCS",
        description="DP: mean of all frames; VCS: frames weighted by their match with the words",
    )
    temporal_layers: int = Field(
        6, ge=0, description="layers of the temporal transformer; 0 for none"
    )
    counts_padding: bool = Field(
        False, description="let VCS average over padding too, as the released code does"
    )
    attributes: bool = Field(
        False, description="add the attributes branch, which reads text.attributes"
    )
    dual_softmax: bool = Field(False, description="use the loss DS instead of NCE")

    @property
    def traits(self) -> MethodTraits:
        """Return the traits: the attributes branch reads attribute sentences."""
        return MethodTraits(
            tunes=("image", "all"),
            reads=frozenset({ATTRIBUTES} if self.attributes else ()),
            reads_with={ATTRIBUTES: "method.attributes=true"},
            compares_clips=True,
        )


class Bike(Method):
    """CLIP whose frames meet the words of the class texts.

    `tune: image` trains the visual tower and the temporal transformer (`fix_text` of the release),
    `tune: all` the text tower too.
    """

    settings: BikeSettings

    def __init__(
        self,
        backbone: Backbone,
        settings: BikeSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        """Put the method on a backbone, see `Method`.

        Raises:
            ConfigError: Also for attributes beside a text tower that trains, or a width that the
                heads of the temporal transformer do not divide.
        """
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        if settings.attributes and settings.tune != "image":
            raise ConfigError(
                "method.attributes=true: compares sentences of the untuned text tower, which "
                f"method.tune={settings.tune} moves away from them; set method.tune=image"
            )
        # drawn before the temporal transformer: the order decides the numbers that a seed gives
        self.attributes = None
        if settings.attributes:
            self.attributes = AttributeHead(backbone.joint_width)
        self.temporal = None
        if settings.temporal_layers > 0:
            self.temporal = self._new_temporal_transformer(backbone)

    def _new_temporal_transformer(self, backbone: Backbone) -> TemporalTransformer:
        num_heads = max(1, backbone.text_width // 64)
        if backbone.joint_width % num_heads != 0:
            raise ConfigError(
                f"model.name={backbone.name}: its joint width {backbone.joint_width} is not a "
                f"multiple of the temporal transformer's {num_heads} heads (text width / 64); set "
                "method.temporal_layers=0"
            )
        return TemporalTransformer(
            backbone.joint_width,
            num_heads=num_heads,
            num_layers=self.settings.temporal_layers,
            max_frames=max(self.num_frames, self.clip.context_length),
        )

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """Return EOT features and all words of each class text."""
        ids_KS = texts.ids_KPS[:, index]
        tokens_KSD = encode_text_tokens(self.clip, ids_KS)
        # Frames meet all words, so all tokens are features here, not only EOT.
        mask_KS = word_mask(ids_KS, counts_padding=self.settings.counts_padding)
        return {COSINE: take_eot(tokens_KSD, ids_KS), WORDS: tokens_KSD, IS_WORD: mask_KS}

    def prepare_classes(
        self, sentences: ClassSentences, negatives: ClassSentences | None = None
    ) -> ClassTexts:
        """Return token ids of one sentence per class.

        Raises:
            ConfigError: There are several sentences per class, whose words cannot be averaged.
        """
        if sentences.num_sentences > 1:
            raise ConfigError(
                f"method.name=bike: takes one text per class, got {sentences.num_sentences}; set "
                "text.template alone"
            )
        texts = super().prepare_classes(sentences, negatives)
        if self.settings.interaction == "VCS" and self.settings.counts_padding:
            return texts
        # cut here and not in encode_sentence: all ranks must have the same number of words
        return replace(texts, ids_KPS=cut_to_longest(texts.ids_KPS))

    def encode_clips(self, inputs: ClipInputs) -> Features:
        """Return features of frames [B, V, T, D], and those of attribute sentences if any.

        The temporal transformer, if there is one, has acted on the frames.
        """
        frames_BVTD = self._encode_tokens(inputs.frames_BVTCHW)[..., 0, :]
        if self.temporal is not None:
            views = frames_BVTD.shape[:2]
            frames_BVTD = self.temporal(frames_BVTD.flatten(0, 1)).unflatten(0, views)
        features = {FRAMES: frames_BVTD}
        if ATTRIBUTES in inputs.sample_features:
            features[ATTRIBUTES] = inputs.sample_features[ATTRIBUTES]
        return features

    def logits(self, clips: Features, classes: Features) -> dict[str, torch.Tensor]:
        """Return cosines, not scaled: BIKE's scores are their softmax."""
        frames_BVTD = clips[FRAMES]
        # X = B * V: views are clips of their own until their probabilities are averaged.
        cosines_XK = self._cosines(frames_BVTD.flatten(0, 1), classes)
        logits = {COSINE: cosines_XK.unflatten(0, frames_BVTD.shape[:2])}
        if self.attributes is not None:
            # Attributes belong to a sample, so all its views share their cosines.
            cosines_BK = self.attributes(clips[ATTRIBUTES], classes[COSINE])
            logits[ATTRIBUTES] = cosines_BK.unsqueeze(1).expand_as(logits[COSINE])
        return logits

    def class_scores(self, clips: Features, classes: Features) -> torch.Tensor:
        """Return probabilities, the mean over views.

        With attributes they are 0.7 of the video branch's and 0.3 of the attributes branch's.
        """
        logits = self.logits(clips, classes)
        weights = (1.0,) if self.attributes is None else (VIDEO_WEIGHT, ATTRIBUTES_WEIGHT)
        return fuse_probabilities(*logits.values(), coefficients=weights)

    def loss_sum(self, clips: Features, classes: Features, targets: Targets) -> torch.Tensor:
        """Return the matching loss of the clips and their class texts.

        Each clip is compared with the class texts of all clips of this micro-batch on all ranks,
        and each text with these clips.
        """
        gather = row_gather(len(targets.labels_B), targets.labels_B.device)
        labels_N, weights_N = gather(targets.labels_B), gather(targets.weights_B)
        # Column j of the matching logits is the class text of clip j.
        texts_of_clips = {kind: value[labels_N] for kind, value in classes.items()}
        matching = partial(
            matching_sum,
            labels_N=labels_N,
            weights_N=weights_N,
            own=gather.own,
            dual=self.settings.dual_softmax,
        )

        # The one view of training.
        frames_NTD = gather(clips[FRAMES][:, 0].contiguous())
        scale = widen(self.clip.logit_scale).exp()
        loss = matching(scale * self._cosines(frames_NTD, texts_of_clips))
        if self.attributes is None or ATTRIBUTES not in clips:
            return loss

        cosines_NN = self.attributes(gather(clips[ATTRIBUTES]), texts_of_clips[COSINE])
        # detached: only the video branch trains the scale
        return loss + matching(scale.detach() * cosines_NN)

    def _cosines(self, frames_BTD: torch.Tensor, classes: Features) -> torch.Tensor:
        """Return cosines [B, K] of clips and classes by `method.interaction`."""
        if self.settings.interaction == "DP":
            return mean_frame_cosines(frames_BTD, classes[COSINE])
        return spotted_cosines(frames_BTD, classes[COSINE], classes[WORDS], classes[IS_WORD])

    def trained_groups(self) -> dict[str, Group]:
        """Return both heads, visual tower and scale; with `tune: all` the text tower too."""
        names = self.backbone_names()
        if self.settings.tune == "image":
            trained = ("clip.visual.", "clip.logit_scale", "temporal_TE")
            names = [name for name in names if name.startswith(trained)]
        groups: dict[str, Group] = dict.fromkeys(names, "backbone")
        for name, _ in self.named_parameters():
            if name.startswith(("temporal.", "attributes.")):
                groups[name] = "head"
        return groups | self.new_temporal()
