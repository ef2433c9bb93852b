"""Weight files: what is read of them, what is refused, and the hash of what they hold."""

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


def test_a_jit_archive_is_read_as_quick_gelu(tmp_path: Path) -> None:
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


def test_the_hash_is_that_of_the_weights_not_of_the_file(clip: Path, tmp_path: Path) -> None:
    rewritten = tmp_path / "again.safetensors"
    write_clip(rewritten)
    assert load_tiny(rewritten).weights_sha256 == load_tiny(clip).weights_sha256
    assert (
        load_tiny(write_clip(tmp_path / "other.safetensors", seed=1)).weights_sha256
        != load_tiny(clip).weights_sha256
    )


def test_the_hash_changes_when_one_weight_changes(clip: Path) -> None:
    model = load_tiny(clip).model
    before = hash_weights(model.state_dict())
    with torch.no_grad():
        model.visual.proj[3, 3] += 1e-3
    assert hash_weights(model.state_dict()) != before


def test_the_hash_knows_names_and_shapes() -> None:
    values = torch.arange(6.0)
    hashes = {
        hash_weights({"a": values}),
        hash_weights({"b": values}),
        hash_weights({"a": values.view(2, 3)}),
        hash_weights({"a": values.view(3, 2)}),
        hash_weights({"a": values}, torch.zeros(1)),
    }
    assert len(hashes) == 5


def test_the_numbers_of_openais_archives_say_quick_gelu_in_a_state_dict_too(tmp_path: Path) -> None:
    numbers = {
        name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")
    }
    torch.save({"weight": torch.ones(2), **numbers}, tmp_path / "clip.pt")
    state, spec = read_weights(tmp_path / "clip.pt")
    assert (list(state), spec) == (["weight"], {"quick_gelu": True})
    torch.save({"weight": torch.ones(2)}, tmp_path / "bare.pt")
    assert read_weights(tmp_path / "bare.pt")[1] == {}


def test_prefixes_are_taken_off_the_front_alone() -> None:
    state = {
        "_orig_mod.module.a.module.b": torch.zeros(1),
        "module.c": torch.zeros(1),
        "d": torch.zeros(1),
    }
    assert list(without_prefixes(state)) == ["a.module.b", "c", "d"]


def test_a_nested_config_object_becomes_plain_mappings(tmp_path: Path) -> None:
    with yacs_is_installed() as node:
        torch.save(
            {"config": node({"A": {"B": (1, [2.5, None])}, "C": True})}, tmp_path / "file.pth"
        )
    config = read_torch_file(tmp_path / "file.pth")["config"]
    assert json.loads(json.dumps(config)) == {"A": {"B": [1, [2.5, None]]}, "C": True}


def test_reading_allows_nothing_to_later_readers(tmp_path: Path) -> None:
    with yacs_is_installed() as node:
        torch.save({"config": node({})}, tmp_path / "file.pth")
    before = set(torch.serialization.get_safe_globals())
    read_torch_file(tmp_path / "file.pth")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("text", ["{broken", "[1]", '"text"', "3"])
def test_an_architecture_that_cannot_be_understood_is_refused(tmp_path: Path, text: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", {SPEC_METADATA_KEY: text})
    with pytest.raises(
        FormatError, match=r"odd\.safetensors: its metadata bmpt_clip is no architecture"
    ):
        read_weights(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("text", ["{broken", "[]", "{}", '{"model_cfg": 3}'])
def test_a_config_beside_the_file_that_cannot_be_understood_is_refused(
    clip: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "clip.safetensors").write_bytes(clip.read_bytes())
    (tmp_path / "open_clip_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        FormatError, match=r"open_clip_config\.json: is no open_clip config: .*move it away"
    ) as caught:
        read_weights(tmp_path / "clip.safetensors")
    assert "\n" not in str(caught.value)


def test_a_file_that_calls_what_it_may_in_a_wrong_way_is_refused(tmp_path: Path) -> None:
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
    """A module whose TorchScript is read by running its own code."""

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
        """Nothing of interest."""
        return self.weight


def test_an_archive_that_would_run_its_own_code_is_refused_unread(
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
def test_code_that_a_look_at_the_archive_may_miss_does_not_run_either(
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
