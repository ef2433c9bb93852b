"""Test which weight files are read and which are refused, and the hash of weights."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bmpt.clip.weights import (
    SPEC_METADATA_KEY,
    hash_weights,
    read_torch_file,
    read_weights,
    without_prefixes,
)
from shards.errors import FormatError
from tests.bmpt.checkpoints.published_files import yacs_is_installed
from tests.bmpt.tiny import load_tiny, write_clip


def test_read_weights_of_a_jit_archive_states_quick_gelu(tmp_path: Path) -> None:
    class Weights(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(3.0))

        def forward(self) -> torch.Tensor:
            return self.weight

    torch.jit.script(Weights()).save(str(tmp_path / "archive.pt"))
    state, spec = read_weights(tmp_path / "archive.pt")
    assert spec == {"quick_gelu": True}
    assert state["weight"].tolist() == [0, 1, 2]


def test_hash_weights_is_equal_for_two_files_of_equal_weights(clip: Path, tmp_path: Path) -> None:
    rewritten = tmp_path / "again.safetensors"
    write_clip(rewritten)
    assert load_tiny(rewritten).weights_sha256 == load_tiny(clip).weights_sha256
    assert (
        load_tiny(write_clip(tmp_path / "other.safetensors", seed=1)).weights_sha256
        != load_tiny(clip).weights_sha256
    )


def test_hash_weights_changes_when_one_weight_changes(clip: Path) -> None:
    model = load_tiny(clip).model
    before = hash_weights(model.state_dict())
    with torch.no_grad():
        model.visual.proj[3, 3] += 1e-3
    assert hash_weights(model.state_dict()) != before


def test_hash_weights_depends_on_names_and_shapes() -> None:
    values = torch.arange(6.0)
    hashes = {
        hash_weights({"a": values}),
        hash_weights({"b": values}),
        hash_weights({"a": values.view(2, 3)}),
        hash_weights({"a": values.view(3, 2)}),
        hash_weights({"a": values}, torch.zeros(1)),
    }
    assert len(hashes) == 5


def test_read_weights_of_a_state_dict_with_openais_numbers_states_quick_gelu(
    tmp_path: Path,
) -> None:
    numbers = {
        name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")
    }
    torch.save({"weight": torch.ones(2), **numbers}, tmp_path / "clip.pt")
    state, spec = read_weights(tmp_path / "clip.pt")
    assert (list(state), spec) == (["weight"], {"quick_gelu": True})
    torch.save({"weight": torch.ones(2)}, tmp_path / "bare.pt")
    assert read_weights(tmp_path / "bare.pt")[1] == {}


def test_without_prefixes_removes_leading_prefixes_only() -> None:
    state = {
        "_orig_mod.module.a.module.b": torch.zeros(1),
        "module.c": torch.zeros(1),
        "d": torch.zeros(1),
    }
    assert list(without_prefixes(state)) == ["a.module.b", "c", "d"]


def test_read_torch_file_turns_a_nested_config_into_mappings(tmp_path: Path) -> None:
    with yacs_is_installed() as node:
        torch.save(
            {"config": node({"A": {"B": (1, [2.5, None])}, "C": True})}, tmp_path / "file.pth"
        )
    config = read_torch_file(tmp_path / "file.pth")["config"]
    assert json.loads(json.dumps(config)) == {"A": {"B": [1, [2.5, None]]}, "C": True}


def test_read_torch_file_leaves_the_safe_globals_unchanged(tmp_path: Path) -> None:
    with yacs_is_installed() as node:
        torch.save({"config": node({})}, tmp_path / "file.pth")
    before = set(torch.serialization.get_safe_globals())
    read_torch_file(tmp_path / "file.pth")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("text", ["{broken", "[1]", '"text"', "3"])
def test_read_weights_refuses_metadata_that_is_not_an_architecture(
    tmp_path: Path, text: str
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", {SPEC_METADATA_KEY: text})
    with pytest.raises(
        FormatError, match=r"odd\.safetensors: its metadata bmpt_clip is not an architecture"
    ):
        read_weights(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("text", ["{broken", "[]", "{}", '{"model_cfg": 3}'])
def test_read_weights_refuses_an_invalid_open_clip_config(
    clip: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "clip.safetensors").write_bytes(clip.read_bytes())
    (tmp_path / "open_clip_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        FormatError, match=r"open_clip_config\.json: is not an open_clip config: .*move it away"
    ) as caught:
        read_weights(tmp_path / "clip.safetensors")
    assert "\n" not in str(caught.value)


def test_read_torch_file_refuses_a_wrong_call_of_an_allowed_class(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.pth")
    stream = b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02K\x03tR."  # OrderedDict(1, 2, 3)
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as source,
        zipfile.ZipFile(tmp_path / "odd.pth", "w") as target,
    ):
        for entry in source.namelist():
            target.writestr(entry, stream if entry.endswith("data.pkl") else source.read(entry))
    with pytest.raises(
        FormatError, match=r"odd\.pth: is not a weight file that can be read safely"
    ):
        read_torch_file(tmp_path / "odd.pth")


class Sneaky(nn.Module):
    """A module whose TorchScript runs code while it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @torch.jit.export
    def __getstate__(self) -> torch.Tensor:
        return self.weight

    @torch.jit.export
    def __setstate__(self, state: torch.Tensor) -> None:
        print("code of the file runs")
        self.weight = state
        self.training = False

    def forward(self) -> torch.Tensor:
        """Return the weight."""
        return self.weight


def test_read_weights_refuses_an_archive_that_would_run_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sneaky.pt"
    torch.jit.save(torch.jit.script(Sneaky()), str(file))
    capfd.readouterr()
    with pytest.raises(
        FormatError,
        match=r"sneaky\.pt: is not a weight file.*__setstate__, which is code that runs",
    ):
        read_weights(file)
    assert "code of the file" not in capfd.readouterr().out
    torch.jit.load(str(file))
    assert "code of the file runs" in capfd.readouterr().out, "or this test shows nothing"


@pytest.mark.parametrize("hidden", ["under another name", "behind a wrong checksum"])
def test_read_weights_does_not_run_code_that_is_hidden_in_an_archive(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], hidden: str
) -> None:
    plain, file = tmp_path / "plain.pt", tmp_path / "hidden.pt"
    torch.jit.save(torch.jit.script(Sneaky()), str(plain))
    with zipfile.ZipFile(plain) as given, zipfile.ZipFile(file, "w") as made:
        for member in given.infolist():
            name = (
                member.filename.replace(".py", ".PY")
                if hidden == "under another name"
                else member.filename
            )
            made.writestr(name, given.read(member))
    if hidden == "behind a wrong checksum":
        data = bytearray(file.read_bytes())
        at = data.index(b"code of the file runs")
        data[at : at + 4] = b"CODE"
        file.write_bytes(data)
    capfd.readouterr()
    with pytest.raises(
        FormatError, match=r"hidden\.pt: is not a weight file that can be read safely"
    ):
        read_weights(file)
    assert "of the file runs" not in capfd.readouterr().out
