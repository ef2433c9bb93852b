"""Checkpoints hold the trained tensors alone and are refused wherever they do not belong."""

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
    load_state,
    save_checkpoint,
    save_state,
    write_file,
)
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import Method
from shards.errors import BmptError, ConfigError, FormatError, StorageError
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
    """Write the checkpoint of a method whose tensors were drawn from `seed`."""
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
    """Loading raises this sentence, in one line that names the file, and leaves the method as it
    was."""
    method = build(config)
    before = method.trained_state()
    with refused(path, kind, sentence):
        load_checkpoint(path, method, load_tiny(Path(config.model.pretrained)), config)
    assert all(torch.equal(value, before[name]) for name, value in method.trained_state().items())


def test_what_is_saved_is_loaded_bit_by_bit(config: MakeConfig, tmp_path: Path) -> None:
    settings = config()
    saved = build(settings, seed=5).trained_state()
    assert not torch.equal(saved["vision_LPE"], build(settings).trained_state()["vision_LPE"])
    save(tmp_path / "prompts.safetensors", settings)
    loaded = load(tmp_path / "prompts.safetensors", settings).trained_state()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_a_checkpoint_holds_the_trained_tensors_alone(config: MakeConfig, tmp_path: Path) -> None:
    save(tmp_path / "prompts.safetensors", config())
    names = load_file(tmp_path / "prompts.safetensors").keys()
    assert names == build(config()).trained_groups().keys()
    assert not [name for name in names if name.startswith("clip.")]


def test_a_checkpoint_of_everything_holds_the_backbone_too(
    config: MakeConfig, tmp_path: Path
) -> None:
    settings = config(method={"tune": "all"})
    save(tmp_path / "all.safetensors", settings)
    names = load_file(tmp_path / "all.safetensors").keys()
    assert "clip.visual.conv1.weight" in names
    assert "clip.token_embedding.weight" not in names
    assert load(tmp_path / "all.safetensors", settings) is not None


def test_the_metadata_says_where_the_tensors_come_from(
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


def test_saving_twice_gives_the_same_bytes(config: MakeConfig, tmp_path: Path) -> None:
    first, second = (
        save(tmp_path / "a.safetensors", config()),
        save(tmp_path / "b.safetensors", config()),
    )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert first.sha256 == second.sha256


def test_the_hash_that_loading_states_is_the_one_that_saving_stated(
    config: MakeConfig, tmp_path: Path
) -> None:
    settings = config()
    saved = save(tmp_path / "prompts.safetensors", settings)
    backbone = load_tiny(Path(settings.model.pretrained))
    assert (
        load_checkpoint(tmp_path / "prompts.safetensors", build(settings), backbone, settings)
        == saved
    )


def test_a_checkpoint_of_another_method_is_refused(config: MakeConfig, tmp_path: Path) -> None:
    save(tmp_path / "vifi.safetensors", config(method={"name": "vifi_clip", "tune": "all"}))
    sentence = (
        "is a checkpoint of method vifi_clip, the config says bmpt; set method.name=vifi_clip"
    )
    refuses_to_load(tmp_path / "vifi.safetensors", config(), ConfigError, sentence)


def test_a_checkpoint_on_another_base_model_is_refused(config: MakeConfig, tmp_path: Path) -> None:
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
def test_a_checkpoint_of_other_settings_is_refused_even_if_its_tensors_fit(
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
def test_a_checkpoint_of_other_tensors_is_refused(
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
def test_a_file_that_is_not_safetensors_is_refused(
    config: MakeConfig, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "notes.safetensors").write_bytes(content)
    refuses_to_load(
        tmp_path / "notes.safetensors", config(), FormatError, "is not a safetensors checkpoint"
    )


def test_a_folder_given_as_a_checkpoint_is_refused(config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refuses_to_load(tmp_path / "folder", config(), FormatError, "is not a safetensors checkpoint")


def test_weights_that_are_no_checkpoint_are_refused(config: MakeConfig, clip: Path) -> None:
    refuses_to_load(
        clip,
        config(),
        FormatError,
        "has checkpoint format None, this code reads 2; give a prompts.safetensors",
    )


@pytest.mark.parametrize("text", ["{broken", "[]", '"text"', '{"format_version": 2}'])
def test_metadata_that_cannot_be_understood_is_refused(
    config: MakeConfig, tmp_path: Path, text: str
) -> None:
    save_file({"vision_LPE": torch.zeros(1)}, tmp_path / "odd.safetensors", {"bmpt": text})
    refuses_to_load(tmp_path / "odd.safetensors", config(), FormatError, "prompts.safetensors")


def test_a_missing_checkpoint_says_where_training_puts_it(
    config: MakeConfig, tmp_path: Path
) -> None:
    refuses_to_load(
        tmp_path / "gone.safetensors",
        config(),
        ConfigError,
        "no such checkpoint; `bmpt train` writes",
    )


def test_the_configs_hash_does_not_know_the_run_folder_but_every_number(config: MakeConfig) -> None:
    one = config_sha256(config(run="a"))
    assert config_sha256(config(run="b")) == one
    assert config_sha256(config(run="a", seed=1)) != one
    assert config_sha256(config(run="a", train={"lr": 2e-3})) != one


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_file(tmp_path / "deep" / "file", b"one")
    write_file(tmp_path / "deep" / "file", b"two")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
    assert (tmp_path / "deep" / "file").read_bytes() == b"two"


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match=r"file: cannot be written"):
        write_file(tmp_path / "taken" / "file", b"x")


def test_a_state_is_read_back(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"step": 3, "trained": {"a": torch.arange(3)}})
    state = load_state(tmp_path / "state.pt")
    assert state["step"] == 3
    assert state["trained"]["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"these are no weights\n" * 9, b"PK\x03\x04 cut"])
def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(
        FormatError, match=r"state\.pt: is not a state that can be read safely.*--fresh"
    ) as caught:
        load_state(tmp_path / "state.pt")
    assert "\n" not in str(caught.value)


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "state.pt")
    with pytest.raises(FormatError, match=r"state\.pt: is not a state that can be read safely"):
        load_state(tmp_path / "state.pt")


def test_a_state_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match=r"state\.pt: cannot be written"):
        save_state(tmp_path / "taken" / "state.pt", {"step": 1})


def test_a_checkpoint_on_a_base_of_another_activation_is_refused(
    config: MakeConfig, tmp_path: Path
) -> None:
    quick = write_clip(tmp_path / "quick.safetensors", spec={**SPEC, "quick_gelu": True})
    plain = write_clip(tmp_path / "plain.safetensors", spec={**SPEC, "quick_gelu": False})
    save(tmp_path / "p.safetensors", config(model={"pretrained": str(quick)}))
    other = config(model={"pretrained": str(plain)})
    said = "was trained on tiny with QuickGELU, the config loads tiny with GELU"
    refuses_to_load(tmp_path / "p.safetensors", other, ConfigError, said)


def test_an_imported_checkpoint_may_be_scored_by_what_its_file_does_not_say(
    config: MakeConfig, tmp_path: Path
) -> None:
    """Nor does it say whether padding counts."""
    bike = {"name": "bike", "tune": "image", "temporal_layers": 1}
    file, other = tmp_path / "p.safetensors", config(method={**bike, "interaction": "DP"})
    save(file, config(method=bike))
    refuses_to_load(file, other, ConfigError, r"method\.interaction=VCS, the config says DP")
    save(file, config(method=bike), imported_from={"system": "bike"})
    load(file, other)
    refuses_to_load(file, config(method={**bike, "causal": True}), ConfigError, r"method\.causal")
