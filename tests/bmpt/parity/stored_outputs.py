"""Stored outputs of the original systems, and our methods with the prompts of the originals."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bmpt.clip.backbone import Backbone
from bmpt.clip.weights import read_safetensors
from bmpt.methods import build_method, validate_method_settings
from bmpt.methods.bmpt import Bmpt
from bmpt.methods.vifi_clip import VifiClip
from tests.bmpt.parity import naive_originals as naive

TOLERANCE = 1e-4  # of the largest logit
REFERENCES = ("clip_tiny", "vifi", "bdc", "bmpt", "bike")
# prefix of the system's parameters; input prompts of the visual and the text tower; those of blocks
PROMPTS = {
    "vifi_clip": ("ivlp.param.", "image_encoder.VPT", "prompt_learner.ctx", "VPT_shallow"),
    "bmpt": ("param.", "image_encoder.VPT_shallow", None, "VPT"),
}


def reference_folder() -> Path:
    """$BMPT_REFERENCE_DIR, which must then be complete, else fixtures/reference of $BMPT_SHARED or
    of ../shared.

    Skips the test if no such folder is named and none is there."""
    named = os.environ.get("BMPT_REFERENCE_DIR")
    if named:
        missing = [
            name for name in REFERENCES if not (Path(named) / f"{name}.safetensors").is_file()
        ]
        if missing:
            pytest.fail(f"BMPT_REFERENCE_DIR={named}: has no {', '.join(missing)} (.safetensors)")
        return Path(named)
    shared = os.environ.get("BMPT_SHARED") or Path(__file__).resolve().parents[4] / "shared"
    folder = Path(shared) / "fixtures" / "reference"
    if not folder.is_dir():
        pytest.skip("needs the reference outputs: ../shared/fixtures/reference beside the checkout")
    return folder


def read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors of a file and its `meta`."""
    state, metadata = read_safetensors(file)
    return state, json.loads(metadata["meta"])


def assert_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert equal shapes and values, up to TOLERANCE of the largest value."""
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max().item() <= TOLERANCE * expected.abs().max().item()


def stored_passes(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> dict[str, list[int]]:
    """{prefix of stored logits: the sentences they are of}: one in each step of training, all in
    evaluation."""
    steps = [
        match[1] for name in tensors if (match := re.fullmatch(r"(train_s\d+)\.logits_cos", name))
    ]
    assert steps
    every = range(len(meta["llm"][meta["classes"][0]]))
    return {step: [int(step.removeprefix("train_s"))] for step in sorted(steps)} | {
        "eval": list(every)
    }


def stored_prompts(
    tensors: dict[str, torch.Tensor], system: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Prompts (vision, text) in the order of blocks; what a tower has not is left out."""
    prefix, vision, text, deeper = PROMPTS[system]
    own = naive.below(tensors, prefix)
    towers = []
    for tower, first in (("image_encoder", vision), ("text_encoder", text)):
        names = [
            first,
            *(
                f"{tower}.transformer.resblocks.{block}.{deeper}"
                for block in range(1, len(own) + 1)
            ),
        ]
        towers.append([own[name] for name in names if name in own])
    assert sum(map(len, towers)) == len(own)
    return towers[0], towers[1]


def prompted(
    backbone: Backbone,
    vision: list[torch.Tensor],
    text: list[torch.Tensor],
    num_frames: int,
    **settings: Any,
) -> VifiClip | Bmpt:
    """A method with these prompts; settings: its other ones."""
    for tower, prompts in (("vision", vision), ("text", text)):
        settings |= {f"{tower}_tokens": len(prompts[0])} if prompts else {}
    method = build_method(
        backbone, validate_method_settings(settings), num_frames=num_frames, seed=0
    )
    assert isinstance(method, VifiClip | Bmpt)
    with torch.no_grad():
        for own, prompts in ((method.vision_LPE, vision), (method.text_LPE, text)):
            for layer, prompt in zip(own, prompts, strict=True):
                layer.copy_(prompt)
    return method


def vifi_clip_of_the_release(
    backbone: Backbone, tensors: dict[str, torch.Tensor], meta: dict[str, Any]
) -> VifiClip:
    """`tune: prompts` with the stored prompts."""
    vision, text = stored_prompts(tensors, "vifi_clip")
    depths = {"vision_depth": len(vision), "text_depth": len(text)}
    method = prompted(backbone, vision, text, meta["T"], name="vifi_clip", tune="prompts", **depths)
    assert isinstance(method, VifiClip)
    return method


def space_time_blocks(backbone: Backbone) -> tuple[int, ...]:
    """Those of the releases, as far as the visual tower goes."""
    return tuple(block for block in (3, 7, 11) if block < backbone.vision_layers)


def bdc_state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters by our names."""
    state = naive.below(tensors, "param.")
    return {name.replace("_head_downstream", "_head"): value for name, value in state.items()}
