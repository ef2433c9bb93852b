"""Test architectures: inferred from shapes, and checked against the towers that we compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bmpt.clip.architecture import (
    build_clip,
    check_is_plain_vit,
    import_open_clip,
    infer_architecture,
)
from shards.errors import ConfigError
from tests.bmpt.tiny import spec_with


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({"width": 128, "head_width": 64, "layers": 1}, {"width": 192, "heads": 3, "layers": 5}),
        (
            {"width": 64, "head_width": 64, "patch_size": 16, "image_size": 64},
            {"width": 64, "heads": 1},
        ),
        (
            {"width": 48, "head_width": 48, "layers": 11},
            {"width": 32, "heads": 1, "context_length": 20},
        ),
    ],
)
def test_architecture_is_inferred_from_shapes(vision: dict[str, Any], text: dict[str, Any]) -> None:
    spec = spec_with(vision=vision, text=text)
    assert infer_architecture(build_clip(spec).state_dict(), where="x") == spec


def test_architecture_of_a_wide_tower_cannot_be_inferred() -> None:
    with torch.device("meta"):
        state = build_clip(
            spec_with(vision={"width": 1280, "head_width": 80, "layers": 1})
        ).state_dict()
    with pytest.raises(
        ConfigError, match=r"huge: has a visual width of 1280, .*model\.name, for example ViT-H-14"
    ):
        infer_architecture(state, where="huge")


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14"]
)
def test_check_is_plain_vit_accepts_the_published_vits(name: str) -> None:
    with torch.device("meta"):
        model = build_clip(import_open_clip().get_model_config(name) | {"quick_gelu": True})
    check_is_plain_vit(model, name)
