"""Our towers and methods against logits that the original systems computed with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bmpt.classes import class_texts
from bmpt.clip import Backbone, load_backbone, read_safetensors
from bmpt.config import MethodSettings, TextSettings
from bmpt.methods import build_method
from bmpt.methods.bmpt import Bmpt
from tests.shared_data import shared_data

TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(scope="module")
def reference() -> Path:
    folder = shared_data().parent / "fixtures" / "reference"
    if not (folder / "clip_tiny.safetensors").exists():
        pytest.skip("needs the reference outputs: ../shared/fixtures/reference beside the checkout")
    return folder


@pytest.fixture
def backbone(reference: Path) -> Backbone:
    return load_backbone("reference", str(reference / "clip_tiny.safetensors"))


def read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state, metadata = read_safetensors(file)
    return state, json.loads(metadata["meta"])


def assert_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max().item() <= TOLERANCE * expected.abs().max().item()


@pytest.mark.parametrize(("logits", "template"), [("full.logits", "a photo of a {}."), ("zeroshot.logits", "{}")])
@torch.no_grad()
def test_vifi_clip_gives_the_originals_logits(reference: Path, backbone: Backbone, logits: str, template: str) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    settings = MethodSettings(name="vifi_clip", tune="all")
    method = build_method(backbone, settings, num_frames=meta["T"], seed=0)
    texts = class_texts(meta["classes"], TextSettings(template=template, raw_names=True))
    ours = method(tensors["images"].unsqueeze(1), method.prepare_texts(texts))
    assert_close(ours, tensors[logits])


@torch.no_grad()
def test_zero_shot_gives_the_logits_of_an_untrained_vifi_clip(reference: Path, backbone: Backbone) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    method = build_method(backbone, MethodSettings(name="zero_shot"), num_frames=meta["T"], seed=0)
    texts = class_texts(meta["classes"], TextSettings(template="{}", raw_names=True))
    assert_close(method(tensors["images"].unsqueeze(1), method.prepare_texts(texts)), tensors["zeroshot.logits"])


@pytest.mark.parametrize("sentence", [0, 1])
@torch.no_grad()
def test_bmpt_without_an_exchange_gives_the_releases_logits(reference: Path, backbone: Backbone, sentence: int) -> None:
    tensors, meta = read(reference / "bmpt.safetensors")
    release = meta["prompt_config"]
    settings = MethodSettings(
        name="bmpt",
        exchange="none",
        vision_depth=release["vision_depth"],
        vision_tokens=release["vision_ctx"],
        text_depth=release["language_depth"],
        text_tokens=release["language_ctx"],
        space_time_blocks=(3, 7, 11),
    )
    method = build_method(backbone, settings, num_frames=release["num_frames"], seed=0)
    assert isinstance(method, Bmpt)
    deeper = "transformer.resblocks.{}.VPT"
    method.vision_LPE[0] = tensors["param.image_encoder.VPT_shallow"]
    for layer in range(1, release["vision_depth"]):
        method.vision_LPE[layer] = tensors[f"param.image_encoder.{deeper.format(layer)}"]
    for layer in range(1, release["language_depth"]):
        method.text_LPE[layer - 1] = tensors[f"param.text_encoder.{deeper.format(layer)}"]
    texts = [meta["llm"][name][sentence] for name in meta["classes"]]
    ours = method(tensors["images"].unsqueeze(1), method.prepare_texts(texts))
    assert_close(ours, tensors[f"train_s{sentence}.logits_cos"])
