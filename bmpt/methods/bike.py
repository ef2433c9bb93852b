"""BIKE: a temporal transformer over frames, classes that pick the frames that show them, and
attributes beside them.

The attributes branch trains beside the video branch, which is the same with and without it: its
head alone, on frozen text features. (The release trains it after the video branch, with the same
config.) Scores are then of both.
Source: Wu et al. 2023. Training compares the clips of all ranks' micro-batches with each other's
    class texts, so its
loss, unlike that of the other methods, depends on how many clips are computed at once."""

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
from bmpt.methods.base import ATTRIBUTES, COSINE, ClassTexts, Features, Group, Method, Targets
from bmpt.methods.components.bike_attributes import ATTRIBUTES_SHARE, VIDEO_SHARE, AttributeHead
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
        """Return the traits; the attributes branch reads attribute sentences."""
        return MethodTraits(
            tunes=("image", "all"),
            reads=frozenset({"attributes"} if self.attributes else ()),
            reads_with={"attributes": "method.attributes=true"},
            compares_clips=True,
        )


class Bike(Method):
    """`tune: image` trains the visual tower and the temporal transformer (`fix_text`), `all` the
    text tower too."""

    settings: BikeSettings

    def __init__(
        self,
        backbone: Backbone,
        settings: BikeSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        if settings.attributes and settings.tune != "image":
            raise ConfigError(
                f"method.attributes=true: compares sentences of the untuned text tower, which method.tune="
                f"{settings.tune} moves away from them; set method.tune=image"
            )
        self.attributes = None
        if settings.attributes:
            self.attributes = AttributeHead(backbone.joint_width)
        self.temporal = None
        if settings.temporal_layers > 0:
            num_heads = max(1, backbone.text_width // 64)
            if backbone.joint_width % num_heads != 0:
                raise ConfigError(
                    f"model.name={backbone.name}: its joint width {backbone.joint_width} is not a multiple of the "
                    f"temporal transformer's {num_heads} heads (text width / 64); set method.temporal_layers=0"
                )
            self.temporal = TemporalTransformer(
                backbone.joint_width,
                num_heads=num_heads,
                num_layers=settings.temporal_layers,
                max_frames=max(num_frames, self.clip.context_length),
            )

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """EOT features and all words of each class text."""
        ids_KS = texts.ids_KPS[:, index]
        tokens_KSD = encode_text_tokens(self.clip, ids_KS)
        mask_KS = word_mask(ids_KS, counts_padding=self.settings.counts_padding)
        return {COSINE: take_eot(tokens_KSD, ids_KS), WORDS: tokens_KSD, IS_WORD: mask_KS}

    def prepare_classes(
        self, sentences: ClassSentences, negatives: ClassSentences | None = None
    ) -> ClassTexts:
        """Token ids of one sentence a class: words of several cannot be averaged. Raises:
        ConfigError for more."""
        if sentences.num_sentences > 1:
            raise ConfigError(
                f"method.name=bike: takes one text a class, got {sentences.num_sentences}; set text.template alone"
            )
        texts = super().prepare_classes(sentences, negatives)
        if self.settings.interaction == "VCS" and self.settings.counts_padding:
            return texts
        # here and not where they are encoded: all ranks must have as many words
        return replace(texts, ids_KPS=cut_to_longest(texts.ids_KPS))

    def encode_clips(self, frames_BVTCHW: torch.Tensor) -> Features:
        """Features of frames [B, V, T, D], after the temporal transformer where there is one."""
        frames_BVTD = self._encode_tokens(frames_BVTCHW)[..., 0, :]
        if self.temporal is not None:
            frames_BVTD = self.temporal(frames_BVTD.flatten(0, 1)).unflatten(
                0, frames_BVTD.shape[:2]
            )
        return {FRAMES: frames_BVTD}

    def logits(self, clips: Features, classes: Features) -> dict[str, torch.Tensor]:
        """Cosines, not scaled: BIKE scores their softmax."""
        frames_BVTD = clips[FRAMES]
        cosines_XK = self._cosines(frames_BVTD.flatten(0, 1), classes)
        found = {COSINE: cosines_XK.unflatten(0, frames_BVTD.shape[:2])}
        if self.attributes is not None:
            cosines_BK = self.attributes(clips[ATTRIBUTES], classes[COSINE])
            found[ATTRIBUTES] = cosines_BK.unsqueeze(1).expand_as(found[COSINE])
        return found

    def scores(self, clips: Features, classes: Features) -> torch.Tensor:
        """Probabilities, the mean over views; with attributes 0.7 of the video's and 0.3 of
        theirs."""
        found = self.logits(clips, classes)
        shares = (1.0,) if self.attributes is None else (VIDEO_SHARE, ATTRIBUTES_SHARE)
        return fuse_probabilities(*found.values(), coefficients=shares)

    def loss_sum(self, clips: Features, classes: Features, targets: Targets) -> torch.Tensor:
        """Each clip among the class texts of all clips of this micro-batch on all ranks, and each
        text among them."""
        gather = row_gather(len(targets.labels_B), targets.labels_B.device)
        labels_N, weights_N = gather(targets.labels_B), gather(targets.weights_B)
        of_labels = {kind: value[labels_N] for kind, value in classes.items()}
        cosines_NN = self._cosines(gather(clips[FRAMES][:, 0].contiguous()), of_labels)
        matching = partial(
            matching_sum,
            labels_N=labels_N,
            weights_N=weights_N,
            own=gather.own,
            dual=self.settings.dual_softmax,
        )
        scale = widen(self.clip.logit_scale).exp()
        loss = matching(scale * cosines_NN)
        if self.attributes is not None and targets.attributes_BD is not None:
            cosines_NN = self.attributes(gather(targets.attributes_BD), of_labels[COSINE])
            loss = loss + matching(
                scale.detach() * cosines_NN
            )  # the video branch alone moves the scale
        return loss

    def _cosines(self, frames_BTD: torch.Tensor, classes: Features) -> torch.Tensor:
        if self.settings.interaction == "DP":
            return mean_frame_cosines(frames_BTD, classes[COSINE])
        return spotted_cosines(frames_BTD, classes[COSINE], classes[WORDS], classes[IS_WORD])

    def trained_groups(self) -> dict[str, Group]:
        """Temporal transformer, head of the attributes, visual tower and scale, with `tune: all`
        the text tower."""
        names = self.backbone_names()
        if self.settings.tune == "image":
            names = [
                name
                for name in names
                if name.startswith(("clip.visual.", "clip.logit_scale", "temporal_TE"))
            ]
        is_head = ("temporal.", "attributes.")
        heads: dict[str, Group] = {
            name: "head" for name, _ in self.named_parameters() if name.startswith(is_head)
        }
        return {**dict.fromkeys(names, "backbone"), **heads, **self.new_temporal()}
