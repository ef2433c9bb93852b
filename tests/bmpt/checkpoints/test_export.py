"""Test that an export computes the same as its checkpoint on its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bmpt.checkpoints.checkpoint import save_checkpoint
from bmpt.checkpoints.export import EXPORT_KEY, export_checkpoint, export_text, load_model
from bmpt.cli.app import app
from bmpt.clip.backbone import load_backbone
from bmpt.clip.weights import SPEC_METADATA_KEY
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import Method
from shards.cli import run_app
from shards.config import load_settings
from shards.errors import BmptError, ConfigError, FormatError
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.tiny import cosine_logits, load_tiny, random_frames, write_clip
from tests.complaints import refused

PROVENANCE = {
    "classes": ["walk", "sword"],
    "pool_id": "p" * 64,
    "manifest": "few_shot/train_k2",
    "fingerprint": "f" * 64,
}
TEXTS = ["a walk in the park", "a sword is drawn"]


def trained(config: RunConfig, checkpoint: Path) -> Method:
    """Return a method with changed tensors, and its checkpoint."""
    backbone = load_tiny(Path(config.model.pretrained))
    method = build_method(backbone, config.method, num_frames=config.data.frames, seed=config.seed)
    with torch.no_grad():
        for index, name in enumerate(sorted(method.trained_groups())):
            parameter = method.get_parameter(name)
            parameter.add_(0.05 * random_frames(*parameter.shape, seed=index))
    save_checkpoint(checkpoint, method, backbone, config, step=17, provenance=PROVENANCE)
    return method


@torch.no_grad()
def logits(method: Method) -> torch.Tensor:
    return cosine_logits(method, random_frames(2, 1, 4, 3, 32, 32), method.prepare_texts(TEXTS))


def refuses_to_read(path: Path, sentence: str, kind: type[BmptError] = FormatError) -> None:
    for read in (
        load_model,
        lambda file: export_checkpoint(file, file.with_name("out.safetensors")),
    ):
        with refused(path, kind, sentence):
            read(path)


@pytest.mark.parametrize(
    "method",
    [
        {"tune": "prompts"},
        {"tune": "all"},
        {"exchange": "none"},
        {"temporal_position": "learned", "tune": "all"},
    ],
)
def test_load_model_computes_the_same_as_the_exported_method(
    config: MakeConfig, tmp_path: Path, method: dict[str, Any]
) -> None:
    settings = config(method=method)
    expected = logits(trained(settings, tmp_path / "prompts.safetensors"))
    report = export_checkpoint(tmp_path / "prompts.safetensors", tmp_path / "model.safetensors")
    read = load_model(tmp_path / "model.safetensors")
    torch.testing.assert_close(logits(read.method), expected)
    assert read.config.method == settings.method
    assert (read.metadata["classes"], read.metadata["pool_id"]) == (["walk", "sword"], "p" * 64)
    assert {"vision_LPE", "text_LPE"} <= set(report.method_tensors)


@pytest.mark.parametrize("temporal_position", ["none", "learned"])
def test_export_of_tuned_weights_only_is_a_base_model(
    config: MakeConfig, tmp_path: Path, temporal_position: Any
) -> None:
    method = {
        "name": "vifi_clip",
        "tune": "all",
        "temporal_position": temporal_position,
        "causal": True,
    }
    settings = config(method=method)
    expected = logits(trained(settings, tmp_path / "prompts.safetensors"))
    report = export_checkpoint(tmp_path / "prompts.safetensors", tmp_path / "model.safetensors")
    assert report.method_tensors == []
    backbone = load_backbone("any name", str(tmp_path / "model.safetensors"))
    overrides = [
        "method.name=zero_shot",
        *(setting for setting in report.settings if setting.startswith("method.")),
    ]
    zero_shot = load_settings(RunConfig, None, ["data.pool=none", *overrides]).method
    torch.testing.assert_close(
        logits(build_method(backbone, zero_shot, num_frames=4, seed=9)), expected
    )
    torch.testing.assert_close(logits(load_model(tmp_path / "model.safetensors").method), expected)
    assert f"--set model.pretrained={report.file} --set {report.settings[0]}" in export_text(report)


def test_export_metadata_states_what_was_merged(config: MakeConfig, tmp_path: Path) -> None:
    trained(config(), tmp_path / "prompts.safetensors")
    report = export_checkpoint(tmp_path / "prompts.safetensors", tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        origin = json.loads(opened.metadata()[SPEC_METADATA_KEY])[EXPORT_KEY]
    assert (origin["format_version"], origin["wise_ft"], origin["checkpoint"]["step"]) == (
        1,
        None,
        17,
    )
    assert origin["checkpoint"]["model"]["name"] == "tiny"
    assert (report.bytes, report.method) == (
        (tmp_path / "model.safetensors").stat().st_size,
        "bmpt",
    )
    assert "vision_LPE" in export_text(report)


def test_export_twice_gives_the_same_bytes(config: MakeConfig, tmp_path: Path) -> None:
    trained(config(), tmp_path / "prompts.safetensors")
    first = export_checkpoint(tmp_path / "prompts.safetensors", tmp_path / "a.safetensors")
    second = export_checkpoint(tmp_path / "prompts.safetensors", tmp_path / "b.safetensors")
    assert first.sha256 == second.sha256


def test_export_interpolates_by_the_weight_of_wise_ft(
    config: MakeConfig, clip: Path, tmp_path: Path
) -> None:
    tuned = trained(
        config(method={"name": "vifi_clip", "tune": "all"}), tmp_path / "prompts.safetensors"
    )
    export_checkpoint(tmp_path / "prompts.safetensors", tmp_path / "half.safetensors", wise_ft=0.5)
    half, base = load_file(tmp_path / "half.safetensors"), load_file(clip)
    trained_names = [name.removeprefix("clip.") for name in tuned.trained_groups()]
    weights = tuned.clip.state_dict()
    assert all(
        torch.equal(half[name], 0.5 * base[name] + 0.5 * weights[name]) for name in trained_names
    )
    assert torch.equal(half["token_embedding.weight"], base["token_embedding.weight"])


def test_export_refuses_wise_ft_of_prompts_only(config: MakeConfig, tmp_path: Path) -> None:
    trained(config(), tmp_path / "prompts.safetensors")
    with pytest.raises(ConfigError, match=r"tunes none; set method\.tune=all"):
        export_checkpoint(
            tmp_path / "prompts.safetensors", tmp_path / "model.safetensors", wise_ft=0.5
        )
    assert not (tmp_path / "model.safetensors").exists()


def test_load_backbone_refuses_an_export_with_prompts(config: MakeConfig, tmp_path: Path) -> None:
    trained(config(), tmp_path / "prompts.safetensors")
    export_checkpoint(tmp_path / "prompts.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(
        ConfigError,
        match=(
            r"model\.safetensors: contains tensors of a method .*\(exchange\.\S+, .*\), "
            r"which model\.pre"
        ),
    ):
        load_backbone("tiny", str(tmp_path / "model.safetensors"))


def test_export_reads_a_moved_base_from_the_given_path(
    config: MakeConfig, clip: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(clip.read_bytes())
    settings = config(model={"pretrained": str(moved)})
    expected = logits(trained(settings, tmp_path / "prompts.safetensors"))
    moved.unlink()
    with pytest.raises(ConfigError, match=r"moved\.safetensors: no such weight file"):
        export_checkpoint(tmp_path / "prompts.safetensors", tmp_path / "model.safetensors")
    export_checkpoint(
        tmp_path / "prompts.safetensors", tmp_path / "model.safetensors", pretrained=str(clip)
    )
    torch.testing.assert_close(logits(load_model(tmp_path / "model.safetensors").method), expected)


def test_export_refuses_another_base(config: MakeConfig, tmp_path: Path) -> None:
    trained(config(), tmp_path / "prompts.safetensors")
    other = write_clip(tmp_path / "other.safetensors", seed=9)
    with pytest.raises(ConfigError, match=r"prompts\.safetensors: was trained on tiny"):
        export_checkpoint(
            tmp_path / "prompts.safetensors", tmp_path / "model.safetensors", pretrained=str(other)
        )


@pytest.mark.parametrize("content", [b"", b"notes", bytes(300)])
def test_export_refuses_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.safetensors").write_bytes(content)
    refuses_to_read(tmp_path / "notes.safetensors", r"is not safetensors|is not a checkpoint")


@pytest.mark.parametrize(
    "text", ["{broken", "[]", "{}", '{"format_version": 9}', '{"config": {"seed": -1}}']
)
def test_load_model_refuses_invalid_metadata(tmp_path: Path, text: str) -> None:
    save_file(
        {"x": torch.zeros(1)},
        tmp_path / "odd.safetensors",
        {"bmpt": text, SPEC_METADATA_KEY: f'{{"export": {text}}}'},
    )
    refuses_to_read(
        tmp_path / "odd.safetensors",
        r"is not an arch|is not an export|has export format 9|contains a config|is not a checkp",
    )


def test_load_model_refuses_an_export_that_lacks_a_tensor(
    config: MakeConfig, tmp_path: Path
) -> None:
    trained(config(), tmp_path / "prompts.safetensors")
    export_checkpoint(tmp_path / "prompts.safetensors", tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        metadata = opened.metadata()
    state = load_file(tmp_path / "model.safetensors")
    del state["method.text_LPE"]
    save_file(state, tmp_path / "cut.safetensors", metadata)
    with pytest.raises(
        FormatError, match=r"cut\.safetensors: does not hold the tensors of its method"
    ):
        load_model(tmp_path / "cut.safetensors")


def test_export_command_writes_beside_the_checkpoint(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(config(), tmp_path / "prompts.safetensors")
    assert (
        run_app(app, ["export", str(tmp_path / "prompts.safetensors"), "--json"], prog_name="bmpt")
        == 0
    )
    assert json.loads(capsys.readouterr().out)["file"] == str(tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").config.method.name == "bmpt"
    assert run_app(app, ["export", str(tmp_path / "model.safetensors")], prog_name="bmpt") == 2
    assert "is not a checkpoint; give a prompts.safetensors" in capsys.readouterr().err


def test_export_uses_the_runs_wise_ft_unless_another_is_given(
    config: MakeConfig, tmp_path: Path
) -> None:
    method = {"name": "vifi_clip", "tune": "all", "space_time_blocks": None}
    tuned = trained(config(method=method, eval={"wise_ft": 0.5}), tmp_path / "p.safetensors")
    by_default, half, whole = (
        tmp_path / "default.safetensors",
        tmp_path / "half.safetensors",
        tmp_path / "1.safetensors",
    )
    export_checkpoint(tmp_path / "p.safetensors", by_default)
    export_checkpoint(tmp_path / "p.safetensors", half, wise_ft=0.5)
    export_checkpoint(tmp_path / "p.safetensors", whole, wise_ft=1.0)
    assert torch.equal(logits(load_model(by_default).method), logits(load_model(half).method))
    torch.testing.assert_close(logits(load_model(whole).method), logits(tuned.eval()))
    assert (logits(tuned) - logits(load_model(half).method)).abs().max() > 1e-3


def test_export_refuses_to_overwrite_the_checkpoint(config: MakeConfig, tmp_path: Path) -> None:
    trained(config(), tmp_path / "p.safetensors")
    before = (tmp_path / "p.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"p\.safetensors: is the checkpoint itself"):
        export_checkpoint(tmp_path / "p.safetensors", tmp_path / "p.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == before
