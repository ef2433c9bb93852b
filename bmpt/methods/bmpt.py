"""BMPT: deep prompts in both towers that move each other, space-time attention, class texts.

`exchange: bidirectional` (default): text prompts stand in slots of their own between SOT and caption, and layers
exchange halves of their prompts. `exchange: none` is the released behaviour: no exchange, and from block 1 on text
prompts overwrite the first caption tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bmpt.clip import Backbone
from bmpt.config import MethodSettings
from bmpt.losses import cross_entropy_sum, knowledge_logits, negative_margin_sum
from bmpt.methods.base import COSINE, ClassTexts, Features, Group, Method, Targets
from bmpt.methods.prompted import check_depth, slot_texts
from bmpt.methods.prompts import Exchange, new_prompts
from bmpt.towers import Prompts
from shards.errors import ConfigError

NEGATIVE = "negative"


class Bmpt(Method):
    """Bidirectional mutual prompt tuning; `tune: prompts` trains prompts and exchange, `tune: all` everything."""

    default_space_time_blocks = (3, 7, 11)
    tunes = ("prompts", "all", "both")
    reads_negatives = True

    def __init__(
        self, backbone: Backbone, settings: MethodSettings, *, num_frames: int, classes: Sequence[str] = ()
    ) -> None:
        """Raises: ConfigError for a depth beyond a tower, or an exchange of nothing."""
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        check_depth("vision", settings.vision_depth, backbone.vision_layers)
        check_depth("text", settings.text_depth, backbone.text_layers)
        self.has_slots = settings.exchange == "bidirectional"
        # the released text side has no prompt of layer 0: its layers 1 .. depth - 1 are stored
        text_layers = settings.text_depth if self.has_slots else max(0, settings.text_depth - 1)
        self.vision_LPE = new_prompts(settings.vision_depth, settings.vision_tokens, backbone.vision_width)
        self.text_LPE = new_prompts(text_layers, settings.text_tokens, backbone.text_width)
        self.exchange = Exchange(self.vision_LPE, self.text_LPE, settings.exchange_width) if self.has_slots else None

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids [K, S], with slots for the prompts under `bidirectional`.

        Raises: ConfigError where classes would share one feature: under `none` for texts whose EOT would be
        overwritten, under `bidirectional` for texts that are equal once the slots have pushed out their ends."""
        ids_KS = super().prepare_texts(texts)
        if self.has_slots:
            return slot_texts(texts, ids_KS, self.settings)
        too_short = [
            text for text, eot in zip(texts, ids_KS.argmax(dim=1), strict=True) if eot <= self.settings.text_tokens
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

    def loss_sum(self, clips: Features, classes: Features, targets: Targets) -> torch.Tensor:
        """Cross-entropy, and where there are negatives or knowledge texts, the losses on those."""
        loss = super().loss_sum(clips, classes, targets)
        if NEGATIVE in classes:
            loss = loss + self.settings.negative_weight * negative_margin_sum(
                self.scaled_cosines(clips[COSINE], classes[COSINE])[:, 0],
                self.scaled_cosines(clips[COSINE], classes[NEGATIVE])[:, 0],
                targets.labels_B,
                targets.weights_B,
            )
        if targets.knowledge_BD is not None:
            logits_BK = knowledge_logits(targets.knowledge_BD, classes[COSINE], self.clip.logit_scale.exp())
            loss = loss + self.settings.knowledge_weight * cross_entropy_sum(
                logits_BK, targets.labels_B, targets.weights_B, label_smoothing=targets.label_smoothing
            )
        return loss

    def layer_prompts(self) -> tuple[Prompts, Prompts]:
        """Prompt tokens of every block, after the exchange where there is one."""
        if self.exchange is not None:
            return self.exchange(self.vision_LPE, self.text_LPE)
        return list(self.vision_LPE), [None, *self.text_LPE]

    def trained_groups(self) -> dict[str, Group]:
        """Prompts and exchange; with `tune: all` every CLIP weight too."""
        groups: dict[str, Group] = {"vision_LPE": "prompts", "text_LPE": "prompts"}
        groups |= {name: "exchange" for name, _ in self.named_parameters() if name.startswith("exchange.")}
        groups |= self.new_temporal()
        if self.settings.tune != "prompts":
            groups |= dict.fromkeys(self.backbone_names(), "backbone")
        return {name: group for name, group in groups.items() if self.get_parameter(name).numel() > 0}
