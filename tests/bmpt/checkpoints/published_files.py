"""Checkpoint files as the four published systems write them, of a CLIP of a few kilobytes of
blocks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bmpt.clip.backbone import Backbone
from tests.bmpt.tiny import (
    JOINT_WIDTH,
    TEXT_WIDTH,
    VISION_WIDTH,
    load_tiny,
    random_frames,
    write_clip,
)

REDUCED, CLASSES = 6, 5
BDC_LENGTH = REDUCED * (REDUCED + 1) // 2


def tuned_backbone(folder: Path) -> Backbone:
    """The CLIP that a system is supposed to have tuned: other values than the base's, the same
    architecture."""
    return load_tiny(write_clip(folder / "tuned.safetensors", seed=11))


def video_clip_state(tuned: Backbone, *, scale: str) -> dict[str, torch.Tensor]:
    """CLIP as ViFi-CLIP, BDC-CLIP and BMPT name it: without the token embedding, with their text
    buffer."""
    state: dict[str, torch.Tensor] = {}
    for name, value in tuned.model.state_dict().items():
        if name.startswith("visual."):
            state[f"image_encoder.{name.removeprefix('visual.')}"] = value
        elif name == "logit_scale":
            state[scale] = value
        elif name != "token_embedding.weight":
            state[f"text_encoder.{name}"] = value
    state["prompt_learner.complete_text_embeddings"] = random_frames(CLASSES, 2, 77, TEXT_WIDTH)
    return state


def prompts(
    *, first: dict[str, int], deep: str, vision_depth: int, text_depth: int, tokens: int
) -> dict[str, Any]:
    """Prompts of both towers; first: {name of an input prompt: its width}."""
    made = {name: random_frames(tokens, width, seed=1) for name, width in first.items()}
    for tower, depth, width in (
        ("image", vision_depth, VISION_WIDTH),
        ("text", text_depth, TEXT_WIDTH),
    ):
        for block in range(1, depth):
            key = f"{tower}_encoder.transformer.resblocks.{block}.{deep}"
            made[key] = random_frames(tokens, width, seed=10 * block + width)
    return made


def vifi_state(tuned: Backbone) -> dict[str, torch.Tensor]:
    return video_clip_state(tuned, scale="logit_scale")


def vifi_prompt_state(tuned: Backbone) -> dict[str, torch.Tensor]:
    first = {"image_encoder.VPT": VISION_WIDTH, "prompt_learner.ctx": TEXT_WIDTH}
    made = prompts(first=first, deep="VPT_shallow", vision_depth=3, text_depth=2, tokens=4)
    state = {**vifi_state(tuned), **made}
    state["prompt_learner.token_prefix"] = random_frames(CLASSES, 1, TEXT_WIDTH)
    state["prompt_learner.token_suffix"] = random_frames(CLASSES, 72, TEXT_WIDTH)
    del state["prompt_learner.complete_text_embeddings"]
    return state


def adapters(*, classifier: str = "vision_bdc_head_downstream") -> dict[str, torch.Tensor]:
    state = {"logits_scale_vision": torch.tensor(4.6052)}
    for tower in ("vision", "text"):
        state |= {
            f"{tower}_norm.weight": torch.ones(JOINT_WIDTH),
            f"{tower}_norm.bias": torch.zeros(JOINT_WIDTH),
        }
        state[f"{tower}_reduce.weight"] = random_frames(REDUCED, JOINT_WIDTH)
    state |= {f"vision_{letter}_proj.weight": random_frames(REDUCED, REDUCED) for letter in "qk"}
    state[f"{classifier}.weight"] = random_frames(CLASSES, BDC_LENGTH)
    state[f"{classifier}.bias"] = torch.zeros(CLASSES)
    return state


def bdc_state(tuned: Backbone) -> dict[str, torch.Tensor]:
    return {
        **video_clip_state(tuned, scale="logit_scale_clip"),
        **adapters(classifier="vision_bdc_head"),
    }


def bmpt_state(tuned: Backbone) -> dict[str, torch.Tensor]:
    """With the modules that the release builds and never calls, listed once for the tower and once
    for each block."""
    first = {"image_encoder.VPT_shallow": VISION_WIDTH}
    state = {**video_clip_state(tuned, scale="logit_scale_clip"), **adapters()}
    state |= prompts(first=first, deep="VPT", vision_depth=4, text_depth=3, tokens=3)
    state["prompt_learner.neg_complete_text_embeddings"] = random_frames(CLASSES, 2, 77, TEXT_WIDTH)
    for tower in ("image", "text"):
        for place in ("cross_modal_interactions.1", "resblocks.1.cross_modal_interaction"):
            for way in ("v2t", "t2v"):
                key = f"{tower}_encoder.transformer.{place}.{way}_mlp"
                state |= {f"{key}.0.weight": torch.zeros(2, 2), f"{key}.2.bias": torch.zeros(2)}
    return state


def temporal_head(*, num_layers: int = 6) -> dict[str, torch.Tensor]:
    width = JOINT_WIDTH
    shapes = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        **{f"{norm}.{name}": (width,) for norm in ("ln_1", "ln_2") for name in ("weight", "bias")},
    }
    blocks = {
        f"transformer.resblocks.{block}.{name}": random_frames(*shape, seed=block)
        for block in range(num_layers)
        for name, shape in shapes.items()
    }
    return {"frame_position_embeddings.weight": random_frames(77, width), **blocks}


def attribute_head() -> dict[str, torch.Tensor]:
    square = {"weight": (JOINT_WIDTH, JOINT_WIDTH), "bias": (JOINT_WIDTH,)}
    return {
        f"{text}_fc.{layer}.{name}": random_frames(*shape)
        for text in ("query", "sentence")
        for layer in (0, 2)
        for name, shape in square.items()
    }


def bike_file(tuned: Backbone, head: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "epoch": 29,
        "model_state_dict": dict(tuned.model.state_dict()),
        "fusion_model_state_dict": head,
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 5e-5}]},
    }


STATES: dict[str, Callable[[Backbone], dict[str, torch.Tensor]]] = {
    "vifi_clip": vifi_state,
    "bdc_clip": bdc_state,
    "bmpt": bmpt_state,
}


def with_prefix(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def training_file(state: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    """A state dict and what the training scripts of the three systems save beside it."""
    return {
        "model": state,
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 8e-6, "betas": (0.9, 0.98)}],
        },
        "lr_scheduler": {"base_values": [8e-6], "metric": None},
        "scaler": {"scale": 65536.0},
        "max_accuracy": 76.25,
        "epoch": 9,
        **more,
    }


@contextmanager
def yacs_is_installed() -> Iterator[type[dict[str, Any]]]:
    """While files are written: a `yacs.config.CfgNode` that pickles as the real one does, a dict
    with attributes."""
    package, module = ModuleType("yacs"), ModuleType("yacs.config")

    class CfgNode(dict[str, Any]):
        def __init__(self, items: dict[str, Any]) -> None:
            super().__init__(
                {
                    key: CfgNode(value) if isinstance(value, dict) else value
                    for key, value in items.items()
                }
            )
            self.__dict__["__immutable__"] = True

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules |= {"yacs": package, "yacs.config": module}
    try:
        yield CfgNode
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]


class RunsWhenLoaded:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call
