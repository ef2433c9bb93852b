"""Test backbones from every kind of weight file, and the errors for other files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bmpt.clip.architecture import build_clip
from bmpt.clip.backbone import OPENAI_MEAN, OPENAI_STD, Backbone, load_backbone
from bmpt.clip.weights import hash_weights
from bmpt.methods import build_method
from shards.errors import ConfigError, FormatError
from tests.bmpt.tiny import (
    METHOD,
    SPEC,
    VISION_WIDTH,
    load_tiny,
    random_frames,
    settings_of,
    spec_with,
    write_clip,
)


def features_of(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        images = backbone.model.encode_image(random_frames(2, 3, 32, 32))
        return images, backbone.model.encode_text(backbone.tokenize(["walk", "a video of a cat"]))


def openai_like() -> Any:
    """Build an untrained CLIP with width / 64 heads, as in OpenAI's files: one in each tower."""
    spec = spec_with(
        vision={"width": 64, "layers": 3, "head_width": 64},
        text={"width": 64, "heads": 1, "layers": 2},
    )
    torch.manual_seed(1)
    return build_clip(spec).eval()


def activation_of(backbone: Backbone) -> str:
    return type(backbone.model.visual.transformer.resblocks[0].mlp.gelu).__name__


def assert_is_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)


def test_backbone_has_the_architecture_that_its_file_states(clip: Path) -> None:
    backbone = load_tiny(clip)
    widths = (
        backbone.vision_width,
        backbone.text_width,
        backbone.vision_layers,
        backbone.text_layers,
    )
    assert widths == (48, 32, 4, 4)
    assert backbone.image_size_px == 32
    assert backbone.image_mean == OPENAI_MEAN
    assert backbone.model.visual.transformer.resblocks[0].attn.num_heads == 3
    assert not backbone.model.training


def test_backbone_weights_equal_those_of_the_file(clip: Path) -> None:
    in_file = load_file(clip)
    loaded = load_tiny(clip).model.state_dict()
    assert loaded.keys() == in_file.keys()
    assert all(torch.equal(loaded[name], in_file[name]) for name in in_file)


def test_backbone_of_an_openai_state_dict_has_the_sizes_of_its_shapes(tmp_path: Path) -> None:
    model = openai_like()
    extra = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save({**model.state_dict(), **extra}, tmp_path / "clip.pt")
    backbone = load_backbone("own", str(tmp_path / "clip.pt"))
    images, texts = features_of(backbone)
    with torch.no_grad():
        torch.testing.assert_close(images, model.encode_image(random_frames(2, 3, 32, 32)))
    assert texts.shape == (2, 16)
    assert (backbone.vision_layers, backbone.text_layers) == (3, 2)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_load_backbone_removes_prefixes_and_wrappers_of_training_scripts(
    tmp_path: Path, wrapper: str | None
) -> None:
    model = openai_like()
    state: dict[str, Any] = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "trained.pth")
    assert load_backbone("own", str(tmp_path / "trained.pth")).weights_sha256 == hash_weights(
        model.state_dict()
    )


def test_backbone_of_openais_jit_archive_has_quick_gelu(tmp_path: Path) -> None:
    class Archive(torch.nn.Module):
        """CLIP's weights by CLIP's names, with a number as in OpenAI's archives."""

        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            for name, child in model.named_children():
                self.add_module(name, Holder(child))
            for name, parameter in model.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
            self.register_buffer("input_resolution", torch.tensor(32))

        def forward(self) -> torch.Tensor:
            return self.logit_scale

    class Holder(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            for name, child in model.named_children():
                self.add_module(name, Holder(child))
            for name, parameter in model.named_parameters(recurse=False):
                self.register_parameter(name, parameter)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = openai_like()
    torch.jit.script(Archive(model)).save(str(tmp_path / "ViT.pt"))
    backbone = load_backbone("own", str(tmp_path / "ViT.pt"))
    assert activation_of(backbone) == "QuickGELU"
    assert backbone.weights_sha256 == hash_weights(model.state_dict())


def test_backbone_of_half_precision_weights_is_float32(tmp_path: Path) -> None:
    torch.save(
        {name: value.half() for name, value in openai_like().state_dict().items()},
        tmp_path / "half.pt",
    )
    backbone = load_backbone("own", str(tmp_path / "half.pt"))
    assert {value.dtype for value in backbone.model.parameters()} == {torch.float32}


def test_random_backbone_depends_on_the_seed() -> None:
    first = load_backbone("ViT-S-32-alt", "random", seed=3)
    assert (first.vision_width, first.text_width, first.vision_layers, first.text_layers) == (
        384,
        256,
        12,
        10,
    )
    again = load_backbone("ViT-S-32-alt", "random", seed=3)
    assert again.weights_sha256 == first.weights_sha256


def test_building_a_method_leaves_the_global_generator_unchanged(clip: Path) -> None:
    backbone = load_tiny(clip)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_method(backbone, settings_of(METHOD), num_frames=4, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_load_backbone_refuses_a_file_that_does_not_fit_the_architecture(tmp_path: Path) -> None:
    torch.save(openai_like().state_dict(), tmp_path / "clip.pt")
    with pytest.raises(
        ConfigError, match=r"clip\.pt: does not fit model\.name=ViT-S-32-alt"
    ) as caught:
        load_backbone("ViT-S-32-alt", str(tmp_path / "clip.pt"))
    assert_is_one_line(caught.value)


def test_temporal_embedding_is_loaded_and_hashed_with_the_weights(
    clip: Path, tmp_path: Path
) -> None:
    temporal_TE = random_frames(4, VISION_WIDTH)
    file = write_clip(tmp_path / "temporal.safetensors", temporal_TE=temporal_TE)
    backbone = load_tiny(file)
    assert backbone.temporal_TE is not None
    assert torch.equal(backbone.temporal_TE, temporal_TE)
    assert backbone.weights_sha256 != load_tiny(clip).weights_sha256


def test_backbone_architecture_builds_the_same_model(clip: Path) -> None:
    backbone = load_tiny(clip)
    assert {key: backbone.architecture[key] for key in SPEC} == SPEC
    assert (backbone.architecture["image_mean"], backbone.architecture["image_std"]) == (
        OPENAI_MEAN,
        OPENAI_STD,
    )
    assert (
        build_clip(backbone.architecture).state_dict().keys() == backbone.model.state_dict().keys()
    )


@pytest.mark.parametrize(
    ("name", "activation", "hint"),
    [
        (
            "ViT-S-32-alt",
            "GELU",
            "trained with QuickGELU, give a name that open_clip does not have as model.name",
        ),
        (
            "any name",
            "QuickGELU",
            "trained with GELU, give their open_clip architecture as model.name",
        ),
    ],
)
def test_backbone_of_a_bare_state_dict_notes_the_assumed_activation(
    tmp_path: Path, name: str, activation: str, hint: str
) -> None:
    state = load_backbone("ViT-S-32-alt", "random").model.state_dict()
    torch.save(state, tmp_path / "clip.pt")
    backbone = load_backbone(name, str(tmp_path / "clip.pt"))
    assert activation_of(backbone) == activation
    assert backbone.note is not None
    assert f"does not state its activation; {activation}, as " in backbone.note
    assert backbone.note.endswith(hint)


def test_backbone_uses_the_open_clip_config_beside_its_file(tmp_path: Path) -> None:
    spec = spec_with(vision={"head_width": 24})
    save_file(build_clip(spec).state_dict(), tmp_path / "open_clip_model.safetensors")
    stated = {
        "model_cfg": spec,
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(stated), encoding="utf-8")
    backbone = load_backbone("own", str(tmp_path / "open_clip_model.safetensors"))
    assert backbone.model.visual.transformer.resblocks[0].attn.num_heads == 2
    assert (activation_of(backbone), backbone.note) == ("QuickGELU", None)
    assert (backbone.image_mean, backbone.image_std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_load_backbone_refuses_blocks_with_extra_layers(tmp_path: Path, tower: str) -> None:
    changes = {tower: {"qk_norm": True} if tower == "vision" else {"scale_heads": True}}
    spec = spec_with(**changes)
    save_file(build_clip(spec).state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": spec}), encoding="utf-8"
    )
    with pytest.raises(
        ConfigError, match=r"model\.name=own: only CLIP's own ViT form is supported"
    ):
        load_backbone("own", str(tmp_path / "open_clip_model.safetensors"))


def test_logit_scale_with_an_axis_is_loaded_as_a_scalar(tmp_path: Path) -> None:
    state = dict(openai_like().state_dict())
    scale = state["logit_scale"]
    torch.save({**state, "logit_scale": scale.reshape(1)}, tmp_path / "clip.pt")
    assert torch.equal(load_backbone("own", str(tmp_path / "clip.pt")).model.logit_scale, scale)


def test_load_backbone_refuses_an_unknown_name() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.name=ViT-Q-3: open_clip has no such architecture"
    ) as caught:
        load_backbone("ViT-Q-3", "random")
    assert_is_one_line(caught.value)


def test_load_backbone_lists_the_tags_for_an_unknown_tag() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.pretrained=opnai: is neither a tag of ViT-B-32 nor .*\bopenai\b"
    ):
        load_backbone("ViT-B-32", "opnai")


def test_load_backbone_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.safetensors: no such weight file"):
        load_backbone("tiny", str(tmp_path / "gone.safetensors"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".txt"])
@pytest.mark.parametrize("content", [b"", b"these are no weights\n" * 20, bytes(range(256)) * 8])
def test_load_backbone_refuses_a_file_of_another_kind_in_one_line(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    file = tmp_path / f"notes{suffix}"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"notes\.\w+: is not ") as caught:
        load_backbone("tiny", str(file))
    assert_is_one_line(caught.value)


def test_load_backbone_refuses_a_truncated_file(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(clip.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"cut\.safetensors: is not safetensors"):
        load_backbone("tiny", str(cut))


def test_load_backbone_refuses_a_pickle_that_would_run_code(tmp_path: Path) -> None:
    torch.save({"weights": Path("x")}, tmp_path / "unsafe.pt")
    with pytest.raises(
        FormatError, match=r"unsafe\.pt: is not a weight file that can be read safely"
    ) as caught:
        load_backbone("tiny", str(tmp_path / "unsafe.pt"))
    assert_is_one_line(caught.value)


def test_load_backbone_refuses_a_pickle_without_a_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(FormatError, match="holds no state dict of tensors"):
        load_backbone("tiny", str(tmp_path / "list.pt"))


def test_load_backbone_refuses_a_state_dict_of_another_model(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "mlp.safetensors")
    with pytest.raises(ConfigError, match=r"mlp\.safetensors: is not an OpenAI-format ViT CLIP"):
        load_backbone("own", str(tmp_path / "mlp.safetensors"))


def test_load_backbone_refuses_a_file_that_lacks_a_weight(clip: Path, tmp_path: Path) -> None:
    state = openai_like().state_dict()
    del state["ln_final.bias"]
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match=r"clip\.pt: does not fit .*ln_final\.bias") as caught:
        load_backbone("own", str(tmp_path / "clip.pt"))
    assert_is_one_line(caught.value)


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({"pool_type": "avg"}, {}),
        ({}, {"pool_type": "eos", "eos_id": 2}),
        ({}, {"pool_type": "last"}),
        ({}, {"no_causal_mask": True}),
    ],
)
def test_load_backbone_refuses_unsupported_towers(
    tmp_path: Path, vision: dict[str, Any], text: dict[str, Any]
) -> None:
    file = write_clip(tmp_path / "odd.safetensors", spec=spec_with(vision=vision, text=text))
    with pytest.raises(ConfigError, match="only CLIP's own ViT form is supported"):
        load_backbone("odd", str(file))
