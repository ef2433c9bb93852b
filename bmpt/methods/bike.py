"""BIKE's video branch: a temporal transformer over frames, and classes that pick the frames that show them.

Source: Wu et al. 2023. Training compares the clips of all ranks' micro-batches with each other's class texts, so its
loss, unlike that of the other methods, depends on how many clips are computed at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bmpt.classes import ClassSentences
from bmpt.clip import Backbone
from bmpt.config import MethodSettings
from bmpt.losses import matching_sum
from bmpt.methods.base import COSINE, ClassTexts, Features, Group, Method, Targets
from bmpt.methods.bike_video import TemporalTransformer, mean_frame_cosines, spotted_cosines, word_mask
from bmpt.methods.gather import row_gather
from bmpt.towers import encode_text_tokens, take_eot
from shards.errors import ConfigError

FRAMES, WORDS, IS_WORD = "frames", "words", "is_word"


class Bike(Method):
    """`tune: image` trains the visual tower and the temporal transformer (`fix_text`), `all` the text tower too."""

    tunes = ("image", "all", "both")

    def __init__(
        self, backbone: Backbone, settings: MethodSettings, *, num_frames: int, classes: Sequence[str] = ()
    ) -> None:
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        self.temporal = None
        if settings.temporal_layers > 0:
            self.temporal = TemporalTransformer(
                backbone.joint_width,
                num_heads=max(1, backbone.text_width // 64),
                num_layers=settings.temporal_layers,
                max_frames=max(num_frames, self.clip.context_length),
            )

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """EOT features and all words of each class text."""
        ids_KS = texts.ids_KPS[:, index]
        tokens_KSD = encode_text_tokens(self.clip, ids_KS)
        mask_KS = word_mask(ids_KS, counts_padding=self.settings.counts_padding)
        return {COSINE: take_eot(tokens_KSD, ids_KS), WORDS: tokens_KSD, IS_WORD: mask_KS}

    def prepare_classes(self, sentences: ClassSentences, negatives: ClassSentences | None = None) -> ClassTexts:
        """Token ids of one sentence a class: words of several cannot be averaged. Raises: ConfigError for more."""
        if sentences.num_sentences > 1:
            raise ConfigError(
                f"method.name=bike: takes one text a class, got {sentences.num_sentences}; set text.template alone"
            )
        return super().prepare_classes(sentences, negatives)

    def encode_clips(self, frames_BVTCHW: torch.Tensor) -> Features:
        """Features of frames [B, V, T, D], after the temporal transformer where there is one."""
        frames_BVTD = self._encode_tokens(frames_BVTCHW)[..., 0, :]
        if self.temporal is not None:
            frames_BVTD = self.temporal(frames_BVTD.flatten(0, 1)).unflatten(0, frames_BVTD.shape[:2])
        return {FRAMES: frames_BVTD}

    def logits(self, clips: Features, classes: Features) -> dict[str, torch.Tensor]:
        """Cosines, not scaled: BIKE scores their softmax."""
        frames_BVTD = clips[FRAMES]
        cosines_XK = self._cosines(frames_BVTD.flatten(0, 1), classes)
        return {COSINE: cosines_XK.unflatten(0, frames_BVTD.shape[:2])}

    def scores(self, clips: Features, classes: Features) -> torch.Tensor:
        """Probabilities, the mean over views."""
        return torch.softmax(self.logits(clips, classes)[COSINE], dim=-1).mean(dim=1)

    def loss_sum(self, clips: Features, classes: Features, targets: Targets) -> torch.Tensor:
        """Each clip among the class texts of all clips of this micro-batch on all ranks, and each text among them."""
        gather = row_gather(len(targets.labels_B), targets.labels_B.device)
        labels_N, weights_N = gather(targets.labels_B), gather(targets.weights_B)
        of_labels = {kind: value[labels_N] for kind, value in classes.items()}
        cosines_NN = self._cosines(gather(clips[FRAMES][:, 0].contiguous()), of_labels)
        logits_NN = self.clip.logit_scale.exp() * cosines_NN
        return matching_sum(logits_NN, labels_N, weights_N, own=gather.own, dual=self.settings.dual_softmax)

    def _cosines(self, frames_BTD: torch.Tensor, classes: Features) -> torch.Tensor:
        if self.settings.interaction == "DP":
            return mean_frame_cosines(frames_BTD, classes[COSINE])
        return spotted_cosines(frames_BTD, classes[COSINE], classes[WORDS], classes[IS_WORD])

    def trained_groups(self) -> dict[str, Group]:
        """The temporal transformer, CLIP's visual tower and scale, with `tune: all` its text tower."""
        names = self.backbone_names()
        if self.settings.tune == "image":
            names = [name for name in names if name.startswith(("clip.visual.", "clip.logit_scale", "temporal_TE"))]
        heads: dict[str, Group] = {name: "head" for name, _ in self.named_parameters() if name.startswith("temporal.")}
        return {**dict.fromkeys(names, "backbone"), **heads, **self.new_temporal()}
