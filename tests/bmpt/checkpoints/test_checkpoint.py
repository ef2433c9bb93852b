"""Test that checkpoints hold only trained tensors, and are refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bmpt.checkpoints.checkpoint import (
    CheckpointInfo,
    config_sha256,
    load_checkpoint,
    save_checkpoint,
)
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import Method
from shards.errors import BmptError, ConfigError, FormatError
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.tiny import SPEC, load_tiny, write_clip
from tests.complaints import refused

PROVENANCE = {
    "classes": ["a", "b"],
    "pool_id": "p" * 64,
    "manifest": "few_shot/train_k2",
    "fingerprint": "f" * 64,
}


def build(config: RunConfig, *, seed: int = 0) -> Method:
    return build_method(
        load_tiny(Path(config.model.pretrained)), config.method, num_frames=4, seed=seed
    )


def save(path: Path, config: RunConfig, *, seed: int = 5, **provenance: Any) -> CheckpointInfo:
    """Write the checkpoint of a method whose tensors are drawn from a seed."""
    backbone = load_tiny(Path(config.model.pretrained))
    method = build(config, seed=seed)
    return save_checkpoint(
        path, method, backbone, config, step=17, provenance={**PROVENANCE, **provenance}
    )


def load(path: Path, config: RunConfig) -> Method:
    method = build(config)
    load_checkpoint(path, method, load_tiny(Path(config.model.pretrained)), config)
    return method


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as opened:
        return json.loads(opened.metadata()["bmpt"])


def refuses_to_load(path: Path, config: RunConfig, kind: type[BmptError], sentence: str) -> None:
    """Check that loading raises this sentence, names the file, and leaves the method unchanged."""
    method = build(config)
    before = method.trained_state()
    with refused(path, kind, sentence):
        load_checkpoint(path, method, load_tiny(Path(config.model.pretrained)), config)
    assert all(torch.equal(value, before[name]) for name, value in method.trained_state().items())


def test_load_checkpoint_restores_every_bit(config: MakeConfig, tmp_path: Path) -> None:
    settings = config()
    saved = build(settings, seed=5).trained_state()
    assert not torch.equal(saved["vision_LPE"], build(settings).trained_state()["vision_LPE"])
    save(tmp_path / "prompts.safetensors", settings)
    loaded = load(tmp_path / "prompts.safetensors", settings).trained_state()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_checkpoint_holds_only_trained_tensors(config: MakeConfig, tmp_path: Path) -> None:
    save(tmp_path / "prompts.safetensors", config())
    names = load_file(tmp_path / "prompts.safetensors").keys()
    assert names == build(config()).trained_groups().keys()
    assert not [name for name in names if name.startswith("clip.")]


def test_checkpoint_of_all_weights_holds_the_backbone(config: MakeConfig, tmp_path: Path) -> None:
    settings = config(method={"tune": "all"})
    save(tmp_path / "all.safetensors", settings)
    names = load_file(tmp_path / "all.safetensors").keys()
    assert "clip.visual.conv1.weight" in names
    assert "clip.token_embedding.weight" not in names
    assert load(tmp_path / "all.safetensors", settings) is not None


def test_checkpoint_metadata_states_the_origin_of_the_tensors(
    config: MakeConfig, clip: Path, tmp_path: Path
) -> None:
    settings = config()
    info = save(tmp_path / "prompts.safetensors", settings)
    metadata = metadata_of(tmp_path / "prompts.safetensors")
    saved = RunConfig.model_validate(metadata["config"])
    assert saved.model_dump(exclude={"run"}) == settings.model_dump(exclude={"run"})
    assert metadata["model"] == {
        "name": "tiny",
        "weights_sha256": load_tiny(clip).weights_sha256,
        "quick_gelu": True,
    }
    assert (metadata["method"], metadata["step"]) == ("bmpt", 17)
    assert {key: metadata[key] for key in PROVENANCE} == PROVENANCE
    assert (info.file, info.step, info.selection) == ("prompts.safetensors", 17, "last")


def test_save_checkpoint_twice_gives_the_same_bytes(config: MakeConfig, tmp_path: Path) -> None:
    first, second = (
        save(tmp_path / "a.safetensors", config()),
        save(tmp_path / "b.safetensors", config()),
    )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert first.sha256 == second.sha256


def test_checkpoint_hash_is_equal_after_saving_and_loading(
    config: MakeConfig, tmp_path: Path
) -> None:
    settings = config()
    saved = save(tmp_path / "prompts.safetensors", settings)
    backbone = load_tiny(Path(settings.model.pretrained))
    assert (
        load_checkpoint(tmp_path / "prompts.safetensors", build(settings), backbone, settings)
        == saved
    )


def test_load_checkpoint_refuses_another_method(config: MakeConfig, tmp_path: Path) -> None:
    save(tmp_path / "vifi.safetensors", config(method={"name": "vifi_clip", "tune": "all"}))
    sentence = (
        "is a checkpoint of method vifi_clip, the config says bmpt; set method.name=vifi_clip"
    )
    refuses_to_load(tmp_path / "vifi.safetensors", config(), ConfigError, sentence)


def test_load_checkpoint_refuses_another_base_model(config: MakeConfig, tmp_path: Path) -> None:
    other = write_clip(tmp_path / "other.safetensors", seed=9)
    save(
        tmp_path / "prompts.safetensors", config(model={"name": "other", "pretrained": str(other)})
    )
    refuses_to_load(
        tmp_path / "prompts.safetensors",
        config(),
        ConfigError,
        r"was trained on tiny \(\w{12}\), the config loads tiny \(\w{12}\); set model",
    )


@pytest.mark.parametrize(
    "changes",
    [{"exchange": "none"}, {"space_time_blocks": [2]}, {"temporal_position": "learned"}],
)
def test_load_checkpoint_refuses_other_settings_even_if_the_tensors_fit(
    config: MakeConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    save(tmp_path / "prompts.safetensors", config(method=changes))
    (key,) = changes
    refuses_to_load(
        tmp_path / "prompts.safetensors",
        config(),
        ConfigError,
        rf"was trained with method\.{key}=.* set method\.{key}=",
    )


@pytest.mark.parametrize(
    "changes",
    [{"vision_tokens": 5}, {"vision_depth": 2}, {"exchange_width": 9}, {"tune": "all"}],
)
def test_load_checkpoint_refuses_other_tensors(
    config: MakeConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    save(tmp_path / "prompts.safetensors", config(method=changes))
    refuses_to_load(
        tmp_path / "prompts.safetensors",
        config(),
        ConfigError,
        r"its tensors do not fit the method: .*config\.yaml",
    )


@pytest.mark.parametrize("content", [b"", b"no checkpoint", bytes(300)])
def test_load_checkpoint_refuses_a_file_that_is_not_safetensors(
    config: MakeConfig, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "notes.safetensors").write_bytes(content)
    refuses_to_load(
        tmp_path / "notes.safetensors", config(), FormatError, "is not a safetensors checkpoint"
    )


def test_load_checkpoint_refuses_a_folder(config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refuses_to_load(tmp_path / "folder", config(), FormatError, "is not a safetensors checkpoint")


def test_load_checkpoint_refuses_weights_without_metadata(config: MakeConfig, clip: Path) -> None:
    refuses_to_load(
        clip,
        config(),
        FormatError,
        "has checkpoint format None, this code reads 2; give a prompts.safetensors",
    )


@pytest.mark.parametrize("text", ["{broken", "[]", '"text"', '{"format_version": 2}'])
def test_load_checkpoint_refuses_invalid_metadata(
    config: MakeConfig, tmp_path: Path, text: str
) -> None:
    save_file({"vision_LPE": torch.zeros(1)}, tmp_path / "odd.safetensors", {"bmpt": text})
    refuses_to_load(tmp_path / "odd.safetensors", config(), FormatError, "prompts.safetensors")


def test_load_checkpoint_of_a_missing_file_names_the_run_folder(
    config: MakeConfig, tmp_path: Path
) -> None:
    refuses_to_load(
        tmp_path / "gone.safetensors",
        config(),
        ConfigError,
        "no such checkpoint; give <run folder>/prompts.safetensors, which `bmpt",
    )


def test_config_sha256_depends_on_settings_but_not_on_the_run_folder(config: MakeConfig) -> None:
    one = config_sha256(config(run="a"))
    assert config_sha256(config(run="b")) == one
    assert config_sha256(config(run="a", seed=1)) != one
    assert config_sha256(config(run="a", train={"lr": 2e-3})) != one


def test_load_checkpoint_refuses_a_base_of_another_activation(
    config: MakeConfig, tmp_path: Path
) -> None:
    quick = write_clip(tmp_path / "quick.safetensors", spec={**SPEC, "quick_gelu": True})
    plain = write_clip(tmp_path / "plain.safetensors", spec={**SPEC, "quick_gelu": False})
    save(tmp_path / "p.safetensors", config(model={"pretrained": str(quick)}))
    other = config(model={"pretrained": str(plain)})
    said = "was trained on tiny with QuickGELU, the config loads tiny with GELU"
    refuses_to_load(tmp_path / "p.safetensors", other, ConfigError, said)


def test_load_checkpoint_of_an_import_accepts_settings_that_its_file_does_not_state(
    config: MakeConfig, tmp_path: Path
) -> None:
    """The file does not state whether padding counts either."""
    bike = {"name": "bike", "tune": "image", "temporal_layers": 1}
    file, other = tmp_path / "p.safetensors", config(method={**bike, "interaction": "DP"})
    save(file, config(method=bike))
    refuses_to_load(file, other, ConfigError, r"method\.interaction=VCS, the config says DP")
    save(file, config(method=bike), imported_from={"system": "bike"})
    load(file, other)
    refuses_to_load(file, config(method={**bike, "causal": True}), ConfigError, r"method\.causal")
