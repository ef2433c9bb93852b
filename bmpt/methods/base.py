"""The seam between a method and everything else: class texts and clips in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from bmpt.clip import Backbone
from bmpt.config import MethodSettings
from bmpt.towers import Prompts, encode_frames, encode_texts
from shards.errors import ConfigError

Group = Literal["backbone", "prompts", "exchange"]


class Method(nn.Module):
    """CLIP with mean-pooled frames; a method overrides what it changes.

    Shapes: B clips, V views, T frames, K classes, D joint width."""

    default_space_time_blocks: tuple[int, ...] = ()

    def __init__(self, backbone: Backbone, settings: MethodSettings, *, num_frames: int) -> None:
        """Raises: ConfigError for settings that the backbone cannot carry."""
        super().__init__()
        self.clip = backbone.model
        self.num_frames = num_frames
        self.tokenize = backbone.tokenize
        self.space_time_blocks = _checked_blocks(settings, self.default_space_time_blocks, backbone.vision_layers)
        self.temporal_TE, self.temporal_group = _temporal_position(backbone, settings, num_frames)

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids [K, S] of class texts, as `encode_classes` takes them."""
        return self.tokenize(list(texts))

    def encode_classes(self, ids_KS: torch.Tensor) -> torch.Tensor:
        """Unit class features [K, D]."""
        return F.normalize(encode_texts(self.clip, ids_KS, prompts=self.layer_prompts()[1]), dim=-1)

    def encode_clips(self, frames_BVTCHW: torch.Tensor) -> torch.Tensor:
        """Unit features [B, V, D] of normalised frames: the mean of the frames' CLS, then L2."""
        batch, views, frames = frames_BVTCHW.shape[:3]
        tokens_NSD = encode_frames(
            self.clip,
            frames_BVTCHW.flatten(0, 2),
            num_frames=frames,
            prompts=self.layer_prompts()[0],
            temporal_TE=self.temporal_TE,
            space_time_blocks=self.space_time_blocks,
        )
        return F.normalize(tokens_NSD[:, 0].unflatten(0, (batch, views, frames)).mean(dim=2), dim=-1)

    def forward(
        self, frames_BVTCHW: torch.Tensor, ids_KS: torch.Tensor, classes_KD: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [B, K], the mean over views; class features are computed unless they are given."""
        classes_KD = self.encode_classes(ids_KS) if classes_KD is None else classes_KD
        cosine_BVK = self.encode_clips(frames_BVTCHW) @ classes_KD.T
        return self.clip.logit_scale.exp() * cosine_BVK.mean(dim=1)

    def layer_prompts(self) -> tuple[Prompts, Prompts]:
        """Prompt tokens of every block: (vision, text)."""
        return (), ()

    def trained_groups(self) -> dict[str, Group]:
        """Which parameters train, by name, and in which group; everything else is frozen."""
        return {}

    def backbone_names(self) -> list[str]:
        """The CLIP weights that train when everything does.

        Not the token embedding: the originals compute it once, outside the graph."""
        names = [f"clip.{name}" for name, _ in self.clip.named_parameters() if name != "token_embedding.weight"]
        return names + (["temporal_TE"] if self.temporal_group == "backbone" else [])

    def freeze_untrained(self) -> None:
        """Let exactly the parameters of `trained_groups` require a gradient."""
        trained = self.trained_groups()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The trained tensors alone, on the CPU: what a prompt checkpoint holds."""
        trained = self.trained_groups()
        return {name: p.detach().cpu().clone() for name, p in self.named_parameters() if name in trained}


def _checked_blocks(settings: MethodSettings, default: tuple[int, ...], layers: int) -> tuple[int, ...]:
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
    """The per-frame embedding [T, Ev]: the backbone's own if it came with one, else zeros that train as a prompt."""
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
