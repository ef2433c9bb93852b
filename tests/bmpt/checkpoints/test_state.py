"""Test that a state is read as it was written, and that other files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bmpt.checkpoints.state import load_state, save_state
from shards.errors import FormatError, StorageError


def test_load_state_returns_what_save_state_wrote(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"step": 3, "trained": {"a": torch.arange(3)}})
    state = load_state(tmp_path / "state.pt")
    assert state["step"] == 3
    assert state["trained"]["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"these are no weights\n" * 9, b"PK\x03\x04 cut"])
def test_load_state_refuses_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(
        FormatError, match=r"state\.pt: is not a state that can be read safely.*--fresh"
    ) as caught:
        load_state(tmp_path / "state.pt")
    assert "\n" not in str(caught.value)


def test_load_state_refuses_a_file_that_would_run_code(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "state.pt")
    with pytest.raises(FormatError, match=r"state\.pt: is not a state that can be read safely"):
        load_state(tmp_path / "state.pt")


def test_save_state_reports_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match=r"state\.pt: cannot be written"):
        save_state(tmp_path / "taken" / "state.pt", {"step": 1})
