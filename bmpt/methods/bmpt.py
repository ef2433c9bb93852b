"""BMPT: deep prompts in both towers that move each other, space-time attention, class texts.

`exchange: bidirectional` (default): text prompts stand in slots of their own between SOT and
    caption, and layers
exchange halves of their prompts. `exchange: batch_gated`: likewise, but features exchange, see
`bmpt/methods/components/batch_gated.py`. `exchange: none` is the released behaviour: no exchange,
and from block 1 on text prompts overwrite the first caption tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from bmpt.clip.backbone import Backbone
from bmpt.clip.precision import unit, widen
from bmpt.clip.towers import Prompts, TextWalk, cut_to_longest
from bmpt.methods.base import COSINE, ClassTexts, Features, Group, Method, Targets
from bmpt.methods.components.batch_gated import BatchGatedExchange
from bmpt.methods.components.fusion import mean_over_sentences
from bmpt.methods.components.losses import cross_entropy_sum, knowledge_logits, negative_margin_sum
from bmpt.methods.components.prompted import PromptSettings, check_depth, slot_texts
from bmpt.methods.components.prompts import Exchange, check_exchange, new_prompts
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
        """Return the traits; an exchange of features couples the towers."""
        is_coupled = self.exchange == "batch_gated"
        return MethodTraits(
            tunes=("prompts", "all"),
            reads=frozenset({"negatives", "knowledge"}),
            couples_towers=is_coupled,
            depends_on_batch=is_coupled,
        )


class Bmpt(Method):
    """Bidirectional mutual prompt tuning; `tune: prompts` trains prompts and exchange, `tune: all`
    everything."""

    default_space_time_blocks = (3, 7, 11)
    settings: BmptSettings

    def __init__(
        self,
        backbone: Backbone,
        settings: BmptSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        """Raises: ConfigError for a depth beyond a tower, or an exchange of nothing."""
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        check_depth("vision", settings.vision_depth, backbone.vision_layers)
        check_depth("text", settings.text_depth, backbone.text_layers)
        self.has_slots = settings.exchange != "none"
        # the released text side has no prompt of layer 0: its layers 1 .. depth - 1 are stored
        text_layers = settings.text_depth if self.has_slots else max(0, settings.text_depth - 1)
        self.vision_LPE = new_prompts(
            settings.vision_depth, settings.vision_tokens, backbone.vision_width
        )
        self.text_LPE = new_prompts(text_layers, settings.text_tokens, backbone.text_width)
        self.exchange = self._new_exchange(backbone)

    def _new_exchange(self, backbone: Backbone) -> Exchange | BatchGatedExchange | None:
        if not self.has_slots:
            return None
        check_exchange(self.settings.exchange, self.vision_LPE, self.text_LPE)
        if not self.settings.traits.couples_towers:
            return Exchange(self.vision_LPE, self.text_LPE, self.settings.exchange_width)
        num_blocks = min(backbone.vision_layers, backbone.text_layers)
        widths = (backbone.vision_width, backbone.text_width, self.settings.exchange_width)
        return BatchGatedExchange(num_blocks, *widths)

    @property
    def num_slots(self) -> int:
        """As many as prompt tokens, but under `none`."""
        return self.settings.text_tokens if self.has_slots else 0

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids [K, S], with slots for the prompts but under `none`.

        Raises: ConfigError where classes would share one feature: under `none` for texts whose EOT
            would be
        overwritten, else for texts that are equal once the slots have pushed out their ends."""
        ids_KS = super().prepare_texts(texts)
        if self.has_slots:
            return slot_texts(texts, ids_KS, self.settings)
        too_short = [
            text
            for text, eot in zip(texts, ids_KS.argmax(dim=1), strict=True)
            if eot <= self.settings.text_tokens
        ]
        if too_short and len(self.text_LPE) > 0:
            raise ConfigError(
                f"method.exchange=none overwrites the first {self.settings.text_tokens} caption tokens, which leaves "
                f"nothing of {len(too_short)} class texts such as {too_short[0]!r}; lower method.text_tokens, lengthen "
                "text.template, or set method.exchange=bidirectional"
            )
        return ids_KS

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """Features of the classes, in training also of their negatives."""
        found = super().encode_sentence(texts, index)
        if self.training and texts.negatives_KPS is not None:
            negatives = ClassTexts(texts.names, texts.negatives_KPS)
            found[NEGATIVE] = super().encode_sentence(negatives, index)[COSINE]
        return found

    def encode_together(
        self,
        frames_BVTCHW: torch.Tensor,
        texts: ClassTexts,
        weights_B: torch.Tensor,
        index: int = 0,
    ) -> tuple[Features, Features]:
        """Features of clips and classes; under `batch_gated` the towers move each other."""
        if not isinstance(self.exchange, BatchGatedExchange):
            return super().encode_together(frames_BVTCHW, texts, weights_B, index)
        ids_KS, num_classes = texts.ids_KPS[:, index], len(texts.ids_KPS)
        if self.training and texts.negatives_KPS is not None:
            ids_KS = torch.cat([ids_KS, texts.negatives_KPS[:, index]])
        vision, text = self.layer_prompts()
        frames, classes = (
            self.start_frames(frames_BVTCHW, vision),
            TextWalk(self.clip, cut_to_longest(ids_KS), prompts=text),
        )
        self.exchange(
            frames,
            classes,
            vision_tokens=self.settings.vision_tokens,
            text_tokens=self.settings.text_tokens,
            weights_N=weights_B.repeat_interleave(frames_BVTCHW.shape[1] * frames_BVTCHW.shape[2]),
        )
        cls_BVTD = frames.project()[:, 0].unflatten(0, frames_BVTCHW.shape[:3])
        features_XD = unit(classes.project_eot(ids_KS))
        found = {COSINE: features_XD[:num_classes]}
        if len(features_XD) > num_classes:
            found[NEGATIVE] = features_XD[num_classes:]
        return {COSINE: self._pool(cls_BVTD)}, found

    def score(
        self,
        frames_BVTCHW: torch.Tensor,
        texts: ClassTexts,
        weights_B: torch.Tensor,
        *,
        classes: Features | None = None,
        attributes_BD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Under `batch_gated` class features belong to the clips they are computed with: all
        sentences in one walk."""
        if not self.settings.traits.couples_towers:
            return super().score(frames_BVTCHW, texts, weights_B, classes=classes)
        every_sentence = ClassTexts((), texts.ids_KPS.flatten(0, 1).unsqueeze(1))
        clips, found = self.encode_together(frames_BVTCHW, every_sentence, weights_B)
        features_PKD = found[COSINE].unflatten(0, (-1, texts.num_sentences)).transpose(0, 1)
        return self.scores(clips, {COSINE: mean_over_sentences(features_PKD)})

    def loss_sum(self, clips: Features, classes: Features, targets: Targets) -> torch.Tensor:
        """Cross-entropy, and where there are negatives or knowledge texts, the losses on those, of
        hard labels."""
        loss = super().loss_sum(clips, classes, targets)
        if NEGATIVE in classes:
            loss = loss + self.settings.negative_weight * negative_margin_sum(
                self.scaled_cosines(clips[COSINE], classes[COSINE])[:, 0],
                self.scaled_cosines(clips[COSINE], classes[NEGATIVE])[:, 0],
                targets.labels_B,
                targets.weights_B,
            )
        if targets.knowledge_BD is not None:
            logits_BK = knowledge_logits(
                targets.knowledge_BD, classes[COSINE], widen(self.clip.logit_scale).exp()
            )
            loss = loss + self.settings.knowledge_weight * cross_entropy_sum(
                logits_BK, targets.labels_B, targets.weights_B
            )
        return loss

    def layer_prompts(self) -> tuple[Prompts, Prompts]:
        """Prompt tokens of every block, after the exchange where they are what it moves."""
        if isinstance(self.exchange, Exchange):
            return self.exchange(self.vision_LPE, self.text_LPE)
        return list(self.vision_LPE), [*([] if self.has_slots else [None]), *self.text_LPE]

    def trained_groups(self) -> dict[str, Group]:
        """Prompts and exchange; with `tune: all` every CLIP weight too."""
        groups: dict[str, Group] = {"vision_LPE": "prompts", "text_LPE": "prompts"}
        groups |= {
            name: "exchange" for name, _ in self.named_parameters() if name.startswith("exchange.")
        }
        groups |= self.new_temporal()
        if self.settings.tune != "prompts":
            groups |= dict.fromkeys(self.backbone_names(), "backbone")
        return {
            name: group for name, group in groups.items() if self.get_parameter(name).numel() > 0
        }
