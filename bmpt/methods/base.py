"""The interface of a method: class texts and clips in, a loss or class scores out.

    class sentences -> prepare_classes -> encode_sentence (one per class, in training)
                                       -> class_features  (all sentences, in scoring)
    clips           -> encode_clips
    both features   -> logits, by kind -> loss_sum or class_scores

Features and logits are named tensors, so a method can have as many kinds as it needs. A subclass
overrides the parts that it changes; this class is CLIP with the mean over frames.

Shapes: B clips, V views, T frames, K classes, P sentences per class, S tokens, D joint width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from bmpt.clip.backbone import Backbone
from bmpt.clip.precision import cosines, unit, widen
from bmpt.clip.towers import FrameWalk, Prompts, encode_texts
from bmpt.methods.components.fusion import mean_over_sentences
from bmpt.methods.components.losses import cross_entropy_sum
from bmpt.settings import MethodSettings, MethodTraits
from bmpt.texts.class_texts import ClassSentences
from shards.errors import ConfigError

Group = Literal["backbone", "prompts", "exchange", "adapters", "head"]
"""Parameter groups, each with a learning rate of its own."""

Features = Mapping[str, torch.Tensor]

COSINE = "cosine"
KNOWLEDGE = "knowledge"
ATTRIBUTES = "attributes"


@dataclass(frozen=True)
class ClassTexts:
    """Token ids of the class texts that a method reads."""

    names: tuple[str, ...]
    """Names of the K classes."""

    ids_KPS: torch.Tensor
    """int64."""

    negatives_KPS: torch.Tensor | None = None
    """Token ids of the negative of each class; None without negatives."""

    @property
    def num_sentences(self) -> int:
        """Number of sentences per class (P)."""
        return self.ids_KPS.shape[1]

    def to(self, device: torch.device) -> ClassTexts:
        """Return a copy on a device."""
        negatives_KPS = self.negatives_KPS
        if negatives_KPS is not None:
            negatives_KPS = negatives_KPS.to(device)
        return ClassTexts(self.names, self.ids_KPS.to(device), negatives_KPS)

    def rows(self, classes: slice) -> ClassTexts:
        """Return the texts of some of the classes."""
        negatives_KPS = self.negatives_KPS
        if negatives_KPS is not None:
            negatives_KPS = negatives_KPS[classes]
        return ClassTexts(self.names[classes], self.ids_KPS[classes], negatives_KPS)

    def drawn(self, sentence_K: torch.Tensor) -> ClassTexts:
        """Return one sentence per class, and the sentence of the same index of its negative.

        Args:
            sentence_K: int64, the index of the sentence of each class.
        """
        classes = torch.arange(len(sentence_K), device=sentence_K.device)
        negatives_KPS = self.negatives_KPS
        if negatives_KPS is not None:
            negatives_KPS = negatives_KPS[classes, sentence_K].unsqueeze(1)
        return ClassTexts(self.names, self.ids_KPS[classes, sentence_K].unsqueeze(1), negatives_KPS)


@dataclass(frozen=True)
class ClipInputs:
    """A batch of clips as a method reads it."""

    frames_BVTCHW: torch.Tensor
    """Normalised frames."""

    weights_B: torch.Tensor
    """float32: 1, or 0 for a placeholder of a sample that could not be read."""

    sample_features: Features = field(default_factory=dict)
    """Unit features [B, D] that belong to the samples of the clips, by kind: those kinds in
    `MethodTraits.reads` that are stored per sample."""


@dataclass(frozen=True)
class Targets:
    """Labels and features that a micro-batch is trained towards."""

    labels_B: torch.Tensor
    """int64 class ids."""

    weights_B: torch.Tensor
    """As in `ClipInputs`."""

    label_smoothing: float = 0.0

    sample_features: Features = field(default_factory=dict)
    """As in `ClipInputs`."""


class Method(nn.Module):
    """CLIP with mean-pooled frames; base of all methods."""

    default_space_time_blocks: tuple[int, ...] = ()
    """Blocks of `method.space_time_blocks: null`."""

    def __init__(
        self,
        backbone: Backbone,
        settings: MethodSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        """Put the method on a backbone, whose parameters it shares.

        Args:
            backbone: The CLIP.
            settings: The settings of the method.
            num_frames: Frames per clip (T).
            classes: Names of the classes that the method is trained on.

        Raises:
            ConfigError: The method or the backbone cannot carry these settings.
        """
        super().__init__()
        tunes = settings.traits.tunes
        if settings.tune not in tunes:
            raise ConfigError(
                f"method.tune={settings.tune}: {settings.name} can tune {' or '.join(tunes)}; set "
                "one of them"
            )
        self.clip = backbone.model
        self.settings = settings
        self.num_frames = num_frames
        self.tokenize = backbone.tokenize

        # None stands for the blocks of the method, which the backbone must have too.
        self.space_time_blocks = _checked_blocks(
            settings, self.default_space_time_blocks, backbone.vision_layers
        )
        # A mask without blocks to act in would be ignored without a word.
        if settings.causal and not self.space_time_blocks:
            raise ConfigError(
                "method.causal=true: acts in blocks that see all frames, and there are none; set "
                "method.space_time_blocks=[3,7,11]"
            )
        self.temporal_TE, self.temporal_group = _temporal_position(backbone, settings, num_frames)

    @property
    def traits(self) -> MethodTraits:
        """Return the traits of the method with its settings."""
        return self.settings.traits

    # --- class texts -----------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        """Number of token positions that prompts take before each text, which shorten it."""
        return 0

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return token ids [K, S] of one text per class."""
        return self.tokenize(list(texts))

    def prepare_classes(
        self, sentences: ClassSentences, negatives: ClassSentences | None = None
    ) -> ClassTexts:
        """Return token ids of all sentences.

        Raises:
            ConfigError: The method cannot tell some of the texts apart.
        """
        negatives_KPS = None if negatives is None else self._stack(negatives)
        return ClassTexts(sentences.classes, self._stack(sentences), negatives_KPS)

    def _stack(self, sentences: ClassSentences) -> torch.Tensor:
        """Return token ids [K, P, S]."""
        return torch.stack(
            [self.prepare_texts(sentences.at(index)) for index in range(sentences.num_sentences)],
            dim=1,
        )

    def scoring_warning(self, texts: ClassTexts) -> str | None:
        """Return a warning to print before scoring these classes, or None."""
        return None

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """Return features [K, ...] of one sentence per class, by kind."""
        # Prompts are computed for every sentence: a step changes them, and an exchange makes those
        # of the text tower depend on the visual ones.
        ids_KS = texts.ids_KPS[:, index]
        return {COSINE: unit(encode_texts(self.clip, ids_KS, prompts=self.layer_prompts()[1]))}

    def class_features(self, texts: ClassTexts) -> Features:
        """Return features [K, ...] for scoring: the normalised mean over all sentences."""
        by_sentence = [self.encode_sentence(texts, index) for index in range(texts.num_sentences)]
        first = by_sentence[0]
        # One sentence keeps its features bit by bit: a second normalisation would round them again.
        if len(by_sentence) == 1:
            return first
        return {
            kind: mean_over_sentences(torch.stack([features[kind] for features in by_sentence]))
            for kind in first
        }

    # --- clips -----------------------------------------------------------------------------------

    def encode_clips(self, inputs: ClipInputs) -> Features:
        """Return features [B, V, ...] of clips, by kind."""
        return {COSINE: self._pool(self._encode_tokens(inputs.frames_BVTCHW)[..., 0, :])}

    def encode_together(
        self, inputs: ClipInputs, texts: ClassTexts, index: int = 0
    ) -> tuple[Features, Features]:
        """Return features of clips, and of classes by one sentence each."""
        return self.encode_clips(inputs), self.encode_sentence(texts, index)

    def start_frames(self, frames_BVTCHW: torch.Tensor, prompts: Prompts) -> FrameWalk:
        """Embed frames and return the visual tower at its first block."""
        return FrameWalk(
            self.clip,
            frames_BVTCHW.flatten(0, 2),
            num_frames=frames_BVTCHW.shape[2],
            prompts=prompts,
            temporal_TE=self.temporal_TE,
            space_time_blocks=self.space_time_blocks,
            causal=self.settings.causal,
        )

    def _encode_tokens(self, frames_BVTCHW: torch.Tensor) -> torch.Tensor:
        """Return all projected tokens [B, V, T, S, D], CLS first."""
        walk = self.start_frames(frames_BVTCHW, self.layer_prompts()[0])
        # N = B * V * T: the tower sees frames; only space-time blocks know which belong together.
        tokens_NSD = walk.run_all().project()
        return tokens_NSD.unflatten(0, frames_BVTCHW.shape[:3])

    def _pool(self, cls_BVTD: torch.Tensor) -> torch.Tensor:
        """Return unit features [B, V, D]: the mean over the frames' CLS tokens, then L2."""
        # The mean is taken in float32 and before the normalisation, as in ViFi-CLIP.
        return unit(widen(cls_BVTD).mean(dim=2))

    # --- both ------------------------------------------------------------------------------------

    def logits(self, clips: Features, classes: Features) -> dict[str, torch.Tensor]:
        """Return logits [B, V, K], by kind."""
        return {COSINE: self.scaled_cosines(clips[COSINE], classes[COSINE])}

    def scaled_cosines(self, clips_BVD: torch.Tensor, classes_KD: torch.Tensor) -> torch.Tensor:
        """Return CLIP's logits [B, V, K] of unit features.

        They are never in half precision, in which many of them would be equal.
        """
        return widen(self.clip.logit_scale).exp() * cosines(clips_BVD, classes_KD)

    def loss_sum(self, clips: Features, classes: Features, targets: Targets) -> torch.Tensor:
        """Return the loss summed over the clips of a micro-batch, which have one view.

        It is the sum of the cross-entropies of all kinds of logits.
        """
        # Training has one view per clip.
        losses = [
            cross_entropy_sum(
                logits_BVK[:, 0],
                targets.labels_B,
                targets.weights_B,
                label_smoothing=targets.label_smoothing,
            )
            for logits_BVK in self.logits(clips, classes).values()
        ]
        return torch.stack(losses).sum()

    def class_scores(self, clips: Features, classes: Features) -> torch.Tensor:
        """Return the scores [B, K] that rank the classes: the mean over views."""
        return self.logits(clips, classes)[COSINE].mean(dim=1)

    def predict(
        self, inputs: ClipInputs, texts: ClassTexts, *, classes: Features | None = None
    ) -> torch.Tensor:
        """Return class scores [B, K] of clips.

        Args:
            inputs: The clips.
            texts: The class texts.
            classes: `class_features(texts)`, which a caller computes once for all clips.
        """
        if classes is None:
            classes = self.class_features(texts)
        return self.class_scores(self.encode_clips(inputs), classes)

    # --- parameters ------------------------------------------------------------------------------

    def layer_prompts(self) -> tuple[Prompts, Prompts]:
        """Return the prompt tokens of every block of the visual and of the text tower."""
        return (), ()

    def trained_groups(self) -> dict[str, Group]:
        """Return the group of every trained parameter, by name; all others are frozen."""
        return {}

    def backbone_names(self) -> list[str]:
        """Return the names of the CLIP weights that train when everything does.

        The token embedding is not among them: the original methods compute it once, outside the
        graph.
        """
        names = [
            f"clip.{name}"
            for name, _ in self.clip.named_parameters()
            if name != "token_embedding.weight"
        ]
        if self.temporal_group == "backbone":
            names.append("temporal_TE")
        return names

    def new_temporal(self) -> dict[str, Group]:
        """Return the temporal embedding where it is new: it then trains whatever else does."""
        return {"temporal_TE": "prompts"} if self.temporal_group == "prompts" else {}

    def freeze_untrained(self) -> None:
        """Let exactly the parameters of `trained_groups` require a gradient."""
        trained = self.trained_groups()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Return copies of the trained tensors on the CPU, the content of a checkpoint."""
        trained = self.trained_groups()
        return {
            name: parameter.detach().cpu().clone()
            for name, parameter in self.named_parameters()
            if name in trained
        }


class TrainingLoss(nn.Module):
    """The loss of a method as a module, which DDP can wrap."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(
        self,
        inputs: ClipInputs,
        texts: ClassTexts,
        targets: Targets,
        classes: Features | None = None,
    ) -> torch.Tensor:
        """Return the loss summed over the clips.

        Args:
            inputs: The clips of a micro-batch.
            texts: The sentence of each class that was drawn for the step.
            targets: Labels and weights of the clips.
            classes: Features of these sentences, if they have been computed.
        """
        if classes is None:
            # Without given features the texts are encoded with the clips, in every micro-batch.
            clips, classes = self.method.encode_together(inputs, texts)
        else:
            clips = self.method.encode_clips(inputs)
        return self.method.loss_sum(clips, classes, targets)


def _checked_blocks(
    settings: MethodSettings, default: tuple[int, ...], layers: int
) -> tuple[int, ...]:
    """Return the space-time blocks; raise ConfigError for one beyond the tower's depth."""
    blocks = default if settings.space_time_blocks is None else settings.space_time_blocks
    for block in blocks:
        if not 0 <= block < layers:
            raise ConfigError(
                f"method.space_time_blocks={list(blocks)}: block {block} is beyond the {layers} "
                f"blocks of the visual tower (0 to {layers - 1}); give indices that it has"
            )
    return blocks


def _temporal_position(
    backbone: Backbone, settings: MethodSettings, num_frames: int
) -> tuple[nn.Parameter | None, Group | None]:
    """Return the embedding per frame [T, Ev] and its parameter group.

    It is the backbone's own where it has one, else zeros that train as a prompt.
    """
    if settings.temporal_position == "none":
        return None, None
    if backbone.temporal_TE is None:
        # Zeros leave the features as they are until the embedding is trained.
        return nn.Parameter(torch.zeros(num_frames, backbone.vision_width)), "prompts"
    if len(backbone.temporal_TE) != num_frames:
        raise ConfigError(
            f"data.frames={num_frames}: the weights of {backbone.name} have a temporal embedding "
            f"for {len(backbone.temporal_TE)} frames; set data.frames to that or "
            "method.temporal_position=none"
        )
    return nn.Parameter(backbone.temporal_TE.clone()), "backbone"
