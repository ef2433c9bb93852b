"""BMPT: deep prompts in both towers that move each other, space-time attention, class texts.

`method.exchange` chooses how the towers meet:

* `bidirectional` (default): text prompts have slots of their own between SOT and caption, and
  blocks exchange halves of their prompts.
* `batch_gated`: the same slots, but the exchange acts on features, see
  `bmpt/methods/components/batch_gated.py`.
* `none`: the released behaviour. There is no exchange, and from block 1 on text prompts overwrite
  the first caption tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from bmpt.clip.backbone import Backbone
from bmpt.clip.precision import unit, widen
from bmpt.clip.towers import Prompts, TextWalk, cut_to_longest
from bmpt.methods.base import (
    COSINE,
    KNOWLEDGE,
    ClassTexts,
    ClipInputs,
    Features,
    Group,
    Method,
    Targets,
)
from bmpt.methods.components.batch_gated import BatchGatedExchange
from bmpt.methods.components.fusion import mean_over_sentences
from bmpt.methods.components.losses import cross_entropy_sum, knowledge_logits, negative_margin_sum
from bmpt.methods.components.prompts import (
    Exchange,
    PromptSettings,
    check_depth,
    check_exchange,
    new_prompts,
    slot_texts,
)
from bmpt.settings import MethodTraits
from shards.errors import ConfigError

NEGATIVE = "negative"


class BmptSettings(PromptSettings):
    """Settings of `bmpt`."""

    name: str = "bmpt"
    exchange: Literal["none", "bidirectional", "batch_gated"] = Field(
        "bidirectional",
        description="none: as released; bidirectional: between prompts; batch_gated: between "
        "features, so that class features depend on the clips computed with them",
    )
    exchange_width: int = Field(
        256, ge=1, description="hidden width of the exchange's two-layer maps"
    )
    negative_weight: float = Field(1.0, ge=0, description="weight of the margin loss on negatives")
    knowledge_weight: float = Field(1.0, ge=0, description="weight of the loss on knowledge texts")

    @property
    def traits(self) -> MethodTraits:
        """Return the traits: an exchange of features couples the towers."""
        is_coupled = self.exchange == "batch_gated"
        return MethodTraits(
            tunes=("prompts", "all"),
            reads=frozenset({"negatives", KNOWLEDGE}),
            couples_towers=is_coupled,
            depends_on_batch=is_coupled,
        )


class Bmpt(Method):
    """Bidirectional mutual prompt tuning.

    `tune: prompts` trains prompts and exchange, `tune: all` every weight too.
    """

    settings: BmptSettings
    default_space_time_blocks = (3, 7, 11)

    def __init__(
        self,
        backbone: Backbone,
        settings: BmptSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        """Put the method on a backbone, see `Method`.

        Raises:
            ConfigError: Also for a depth beyond a tower, or an exchange without prompts.
        """
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        check_depth("vision", settings.vision_depth, backbone.vision_layers)
        check_depth("text", settings.text_depth, backbone.text_layers)
        self.has_slots = settings.exchange != "none"

        text_layers = settings.text_depth
        if not self.has_slots:
            # the released text tower has no prompt of block 0: blocks 1 .. depth - 1 are stored
            text_layers = max(0, text_layers - 1)
        self.vision_LPE = new_prompts(
            settings.vision_depth, settings.vision_tokens, backbone.vision_width
        )
        self.text_LPE = new_prompts(text_layers, settings.text_tokens, backbone.text_width)
        self.exchange = self._new_exchange(backbone)

    def _new_exchange(self, backbone: Backbone) -> Exchange | BatchGatedExchange | None:
        if not self.has_slots:
            return None
        # After the prompts are drawn: their shapes say what there is to exchange.
        check_exchange(self.settings.exchange, self.vision_LPE, self.text_LPE)
        hidden_width = self.settings.exchange_width
        if not self.traits.couples_towers:
            return Exchange(self.vision_LPE, self.text_LPE, hidden_width)
        num_blocks = min(backbone.vision_layers, backbone.text_layers)
        return BatchGatedExchange(
            num_blocks, backbone.vision_width, backbone.text_width, hidden_width
        )

    @property
    def num_slots(self) -> int:
        """Number of text prompts, which have slots unless `exchange` is `none`."""
        return self.settings.text_tokens if self.has_slots else 0

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return token ids [K, S], with slots for the prompts unless `exchange` is `none`.

        Raises:
            ConfigError: Classes would share one feature. With slots: texts that become equal once
                the slots have pushed out their ends. Under `none`: texts whose EOT would be
                overwritten.
        """
        ids_KS = super().prepare_texts(texts)
        if self.has_slots:
            # Slots are positions of their own: only a long text loses caption tokens.
            return slot_texts(texts, ids_KS, self.settings)

        num_tokens = self.settings.text_tokens
        ends = ids_KS.argmax(dim=1).tolist()
        too_short = [text for text, end in zip(texts, ends, strict=True) if end <= num_tokens]
        if too_short and len(self.text_LPE) > 0:
            raise ConfigError(
                f"method.exchange=none overwrites the first {num_tokens} caption tokens, which "
                f"leaves nothing of {len(too_short)} class texts such as {too_short[0]!r}; lower "
                "method.text_tokens, lengthen text.template, or set method.exchange=bidirectional"
            )
        return ids_KS

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """Return features of the classes, and in training those of their negatives."""
        features = super().encode_sentence(texts, index)
        if self.training and texts.negatives_KPS is not None:
            # Scoring does not use negatives; encoding them would double its work.
            negatives = ClassTexts(texts.names, texts.negatives_KPS)
            features[NEGATIVE] = super().encode_sentence(negatives, index)[COSINE]
        return features

    def encode_together(
        self, inputs: ClipInputs, texts: ClassTexts, index: int = 0
    ) -> tuple[Features, Features]:
        """Return features of clips and classes; under `batch_gated` the towers move each other."""
        if not isinstance(self.exchange, BatchGatedExchange):
            return super().encode_together(inputs, texts, index)
        frames_BVTCHW = inputs.frames_BVTCHW
        num_views, num_frames = frames_BVTCHW.shape[1:3]

        # negatives go through the text tower as more classes
        ids_KS, num_classes = texts.ids_KPS[:, index], len(texts.ids_KPS)
        if self.training and texts.negatives_KPS is not None:
            ids_KS = torch.cat([ids_KS, texts.negatives_KPS[:, index]])

        # An exchange of features leaves the prompts as they are; they only enter both towers.
        vision, text = self.layer_prompts()
        frame_walk = self.start_frames(frames_BVTCHW, vision)
        text_walk = TextWalk(self.clip, cut_to_longest(ids_KS), prompts=text)
        self.exchange(
            frame_walk,
            text_walk,
            vision_tokens=self.settings.vision_tokens,
            text_tokens=self.settings.text_tokens,
            weights_N=inputs.weights_B.repeat_interleave(num_views * num_frames),
        )

        # Token 0 of a frame is its CLS.
        cls_BVTD = frame_walk.project()[:, 0].unflatten(0, frames_BVTCHW.shape[:3])
        features_XD = unit(text_walk.project_eot(ids_KS))
        classes = {COSINE: features_XD[:num_classes]}
        if len(features_XD) > num_classes:
            classes[NEGATIVE] = features_XD[num_classes:]
        return {COSINE: self._pool(cls_BVTD)}, classes

    def predict(
        self, inputs: ClipInputs, texts: ClassTexts, *, classes: Features | None = None
    ) -> torch.Tensor:
        """Return class scores [B, K] of clips, see `Method.predict`.

        Under `batch_gated` class features depend on the clips they are computed with, so that all
        sentences go through the towers with them.
        """
        if not self.traits.couples_towers:
            return super().predict(inputs, texts, classes=classes)
        # All P sentences are K * P classes of one sentence, so that one pass encodes them.
        every_sentence = ClassTexts((), texts.ids_KPS.flatten(0, 1).unsqueeze(1))
        clips, features = self.encode_together(inputs, every_sentence)
        features_PKD = features[COSINE].unflatten(0, (-1, texts.num_sentences)).transpose(0, 1)
        return self.class_scores(clips, {COSINE: mean_over_sentences(features_PKD)})

    def loss_sum(self, clips: Features, classes: Features, targets: Targets) -> torch.Tensor:
        """Return the cross-entropy, plus the losses on negatives and on knowledge texts if any.

        Label smoothing acts on the cross-entropy of the clips only.
        """
        loss = super().loss_sum(clips, classes, targets)
        labels_B, weights_B = targets.labels_B, targets.weights_B

        # The losses below have hard labels, as in BMPT.
        if NEGATIVE in classes:
            loss = loss + self.settings.negative_weight * negative_margin_sum(
                self.scaled_cosines(clips[COSINE], classes[COSINE])[:, 0],
                self.scaled_cosines(clips[COSINE], classes[NEGATIVE])[:, 0],
                labels_B,
                weights_B,
            )
        if KNOWLEDGE in targets.sample_features:
            scale = widen(self.clip.logit_scale).exp()
            logits_BK = knowledge_logits(targets.sample_features[KNOWLEDGE], classes[COSINE], scale)
            loss = loss + self.settings.knowledge_weight * cross_entropy_sum(
                logits_BK, labels_B, weights_B
            )
        return loss

    def layer_prompts(self) -> tuple[Prompts, Prompts]:
        """Return the prompt tokens of every block, after an exchange of prompts."""
        if isinstance(self.exchange, Exchange):
            return self.exchange(self.vision_LPE, self.text_LPE)
        if self.has_slots:
            return list(self.vision_LPE), list(self.text_LPE)
        # None: block 0 keeps its input, as in the release.
        return list(self.vision_LPE), [None, *self.text_LPE]

    def trained_groups(self) -> dict[str, Group]:
        """Return prompts and exchange; with `tune: all` every CLIP weight too."""
        groups: dict[str, Group] = {"vision_LPE": "prompts", "text_LPE": "prompts"}
        for name, _ in self.named_parameters():
            if name.startswith("exchange."):
                groups[name] = "exchange"
        groups |= self.new_temporal()
        if self.settings.tune != "prompts":
            groups |= dict.fromkeys(self.backbone_names(), "backbone")
        # a depth of 0 gives an empty tensor, which does not train
        return {
            name: group for name, group in groups.items() if self.get_parameter(name).numel() > 0
        }
