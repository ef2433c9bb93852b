"""The seam between a method and everything else: class texts and clips in, a loss or scores out.

    class sentences -> prepare_classes -> encode_sentence (a draw, in training) or class_features
    (all, in scoring) frames          -> encode_clips
    both            -> logits of each kind -> loss_sum or scores

Features and logits are named tensors: a method has as many kinds as it needs. Shapes: B clips, V
    views, T frames, K
classes, P sentences a class, D joint width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from bmpt.clip.backbone import Backbone
from bmpt.clip.precision import cosines, unit, widen
from bmpt.clip.towers import FrameWalk, Prompts, encode_texts, walked
from bmpt.methods.components.fusion import mean_over_sentences
from bmpt.methods.components.losses import cross_entropy_sum
from bmpt.settings import MethodSettings
from bmpt.texts.class_texts import ClassSentences
from shards.errors import ConfigError

Group = Literal["backbone", "prompts", "exchange", "adapters", "head"]
Features = Mapping[str, torch.Tensor]

COSINE = "cosine"
ATTRIBUTES = "attributes"


@dataclass(frozen=True)
class ClassTexts:
    """What a method reads of its K classes, as token ids.

    names: of the classes; ids_KPS: int64; negatives_KPS: of each class's negative, None where there
        are none"""

    names: tuple[str, ...]
    ids_KPS: torch.Tensor
    negatives_KPS: torch.Tensor | None = None

    @property
    def num_sentences(self) -> int:
        """P."""
        return self.ids_KPS.shape[1]

    def to(self, device: torch.device) -> ClassTexts:
        """The same on a device."""
        negatives_KPS = None if self.negatives_KPS is None else self.negatives_KPS.to(device)
        return ClassTexts(self.names, self.ids_KPS.to(device), negatives_KPS)

    def rows(self, some: slice) -> ClassTexts:
        """Some of the classes."""
        negatives_KPS = None if self.negatives_KPS is None else self.negatives_KPS[some]
        return ClassTexts(self.names[some], self.ids_KPS[some], negatives_KPS)

    def drawn(self, sentence_K: torch.Tensor) -> ClassTexts:
        """One sentence a class, and the same one of its negative."""
        classes = torch.arange(len(sentence_K), device=sentence_K.device)
        negatives = (
            None
            if self.negatives_KPS is None
            else self.negatives_KPS[classes, sentence_K].unsqueeze(1)
        )
        return ClassTexts(self.names, self.ids_KPS[classes, sentence_K].unsqueeze(1), negatives)


@dataclass(frozen=True)
class Targets:
    """What a micro-batch is trained towards.

    labels_B: int64; weights_B: float32, 0 for an empty place
    knowledge_BD: unit features of the clips' knowledge texts, None without
    attributes_BD: unit features of the clips' attribute sentences, None without"""

    labels_B: torch.Tensor
    weights_B: torch.Tensor
    label_smoothing: float = 0.0
    knowledge_BD: torch.Tensor | None = None
    attributes_BD: torch.Tensor | None = None


class Method(nn.Module):
    """CLIP with mean-pooled frames; a method overrides what it changes."""

    default_space_time_blocks: tuple[int, ...] = ()

    def __init__(
        self,
        backbone: Backbone,
        settings: MethodSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        """classes: those it is trained on. Raises: ConfigError for settings that the backbone
        cannot carry."""
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
        self.space_time_blocks = _checked_blocks(
            settings, self.default_space_time_blocks, backbone.vision_layers
        )
        if settings.causal and not self.space_time_blocks:
            raise ConfigError(
                "method.causal=true: acts in blocks that see all frames, and there are none; set "
                "method.space_time_blocks=[3,7,11]"
            )
        self.temporal_TE, self.temporal_group = _temporal_position(backbone, settings, num_frames)

    @property
    def num_slots(self) -> int:
        """Places for prompt tokens that stand before each text and leave it less room."""
        return 0

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids [K, S] of one text a class."""
        return self.tokenize(list(texts))

    def prepare_classes(
        self, sentences: ClassSentences, negatives: ClassSentences | None = None
    ) -> ClassTexts:
        """Token ids of all sentences. Raises: ConfigError for texts that leave classes
        indistinguishable."""
        return ClassTexts(
            sentences.classes,
            self._stack(sentences),
            None if negatives is None else self._stack(negatives),
        )

    def _stack(self, sentences: ClassSentences) -> torch.Tensor:
        return torch.stack(
            [self.prepare_texts(sentences.at(index)) for index in range(sentences.num_sentences)],
            dim=1,
        )

    def note_on(self, texts: ClassTexts) -> str | None:
        """What a person should know of scoring these classes, None of nothing."""
        return None

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """Features of the classes [K, ...] by one sentence each."""
        ids_KS = texts.ids_KPS[:, index]
        return {COSINE: unit(encode_texts(self.clip, ids_KS, prompts=self.layer_prompts()[1]))}

    def class_features(self, texts: ClassTexts) -> Features:
        """Features of the classes [K, ...] for scoring: the normalised mean over all sentences."""
        found = [self.encode_sentence(texts, index) for index in range(texts.num_sentences)]
        if len(found) == 1:
            return found[0]
        return {
            kind: mean_over_sentences(torch.stack([one[kind] for one in found]))
            for kind in found[0]
        }

    def encode_clips(self, frames_BVTCHW: torch.Tensor) -> Features:
        """Features [B, V, ...] of normalised frames."""
        return {COSINE: self._pool(self._encode_tokens(frames_BVTCHW)[..., 0, :])}

    def encode_together(
        self,
        frames_BVTCHW: torch.Tensor,
        texts: ClassTexts,
        weights_B: torch.Tensor,
        index: int = 0,
    ) -> tuple[Features, Features]:
        """Features of clips and of classes by one sentence each; weights_B: 0 for an empty
        place."""
        return self.encode_clips(frames_BVTCHW), self.encode_sentence(texts, index)

    def start_frames(self, frames_BVTCHW: torch.Tensor, prompts: Prompts) -> FrameWalk:
        """The visual tower with frames [B * V * T, 3, H, W] embedded."""
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
        """All projected tokens [B, V, T, S, D], CLS first."""
        tokens_NSD = walked(self.start_frames(frames_BVTCHW, self.layer_prompts()[0])).project()
        return tokens_NSD.unflatten(0, frames_BVTCHW.shape[:3])

    def _pool(self, cls_BVTD: torch.Tensor) -> torch.Tensor:
        """Unit features [B, V, D]: the mean of the frames' CLS, then L2."""
        return unit(widen(cls_BVTD).mean(dim=2))

    def logits(self, clips: Features, classes: Features) -> dict[str, torch.Tensor]:
        """Logits [B, V, K] of each kind."""
        return {COSINE: self.scaled_cosines(clips[COSINE], classes[COSINE])}

    def scaled_cosines(self, clips_BVD: torch.Tensor, classes_KD: torch.Tensor) -> torch.Tensor:
        """CLIP's logits [B, V, K] of unit features, never in half precision, which would make many
        of them equal."""
        return widen(self.clip.logit_scale).exp() * cosines(clips_BVD, classes_KD)

    def loss_sum(self, clips: Features, classes: Features, targets: Targets) -> torch.Tensor:
        """The loss summed over the clips of a micro-batch of one view: the cross-entropies of all
        kinds of logits."""
        return torch.stack(
            [
                cross_entropy_sum(
                    logits_BVK[:, 0],
                    targets.labels_B,
                    targets.weights_B,
                    label_smoothing=targets.label_smoothing,
                )
                for logits_BVK in self.logits(clips, classes).values()
            ]
        ).sum()

    def scores(self, clips: Features, classes: Features) -> torch.Tensor:
        """What classes are ranked by, [B, K]: the mean over views."""
        return self.logits(clips, classes)[COSINE].mean(dim=1)

    def score(
        self,
        frames_BVTCHW: torch.Tensor,
        texts: ClassTexts,
        weights_B: torch.Tensor,
        *,
        classes: Features | None = None,
        attributes_BD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores [B, K] of normalised frames.

        classes: `class_features(texts)`, which a caller computes once for all clips
        weights_B, attributes_BD: as in `Targets`"""
        classes = self.class_features(texts) if classes is None else classes
        return self.scores(
            with_attributes(self.encode_clips(frames_BVTCHW), attributes_BD), classes
        )

    def layer_prompts(self) -> tuple[Prompts, Prompts]:
        """Prompt tokens of every block: (vision, text)."""
        return (), ()

    def trained_groups(self) -> dict[str, Group]:
        """Which parameters train, by name, and in which group; everything else is frozen."""
        return {}

    def backbone_names(self) -> list[str]:
        """The CLIP weights that train when everything does.

        Not the token embedding: the originals compute it once, outside the graph."""
        names = [
            f"clip.{name}"
            for name, _ in self.clip.named_parameters()
            if name != "token_embedding.weight"
        ]
        return names + (["temporal_TE"] if self.temporal_group == "backbone" else [])

    def new_temporal(self) -> dict[str, Group]:
        """A temporal embedding that is new trains whatever else does."""
        return {"temporal_TE": "prompts"} if self.temporal_group == "prompts" else {}

    def freeze_untrained(self) -> None:
        """Let exactly the parameters of `trained_groups` require a gradient."""
        trained = self.trained_groups()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The trained tensors alone, on the CPU: what a prompt checkpoint holds."""
        trained = self.trained_groups()
        return {
            name: p.detach().cpu().clone() for name, p in self.named_parameters() if name in trained
        }


class TrainingLoss(nn.Module):
    """A method as DDP sees it: clips in, the loss summed over them out."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(
        self,
        frames_BVTCHW: torch.Tensor,
        texts: ClassTexts,
        targets: Targets,
        classes: Features | None = None,
    ) -> torch.Tensor:
        """texts: the one sentence a class that was drawn for the step; classes: their features, if
        they are there."""
        method = self.method
        if classes is None:
            clips, classes = method.encode_together(frames_BVTCHW, texts, targets.weights_B)
        else:
            clips = method.encode_clips(frames_BVTCHW)
        return method.loss_sum(with_attributes(clips, targets.attributes_BD), classes, targets)


def with_attributes(clips: Features, attributes_BD: torch.Tensor | None) -> Features:
    """Features of clips, beside them those of their attribute sentences where there are some."""
    return clips if attributes_BD is None else {**clips, ATTRIBUTES: attributes_BD}


def _checked_blocks(
    settings: MethodSettings, default: tuple[int, ...], layers: int
) -> tuple[int, ...]:
    """Raises: ConfigError for a block beyond the tower's depth, stating both."""
    blocks = default if settings.space_time_blocks is None else settings.space_time_blocks
    for block in blocks:
        if not 0 <= block < layers:
            raise ConfigError(
                f"method.space_time_blocks={list(blocks)}: block {block} is beyond the {layers} blocks of the visual "
                f"tower (0 to {layers - 1}); give indices that it has"
            )
    return blocks


def _temporal_position(
    backbone: Backbone, settings: MethodSettings, num_frames: int
) -> tuple[nn.Parameter | None, Group | None]:
    """The per-frame embedding [T, Ev]: the backbone's own if it came with one, else zeros that
    train as a prompt."""
    if settings.temporal_position == "none":
        return None, None
    if backbone.temporal_TE is None:
        return nn.Parameter(torch.zeros(num_frames, backbone.vision_width)), "prompts"
    if len(backbone.temporal_TE) != num_frames:
        raise ConfigError(
            f"data.frames={num_frames}: the weights of {backbone.name} have a temporal embedding for "
            f"{len(backbone.temporal_TE)} frames; set data.frames to that or method.temporal_position=none"
        )
    return nn.Parameter(backbone.temporal_TE.clone()), "backbone"
