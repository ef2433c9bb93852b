"""What `shards/README.md` shows runs, and its tables name every column."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shards.format.schema import MANIFEST_SCHEMA, SAMPLES_SCHEMA, ManifestInfo
from tests.pools import make_pool

README = (Path(__file__).parents[2] / "shards" / "README.md").read_text(encoding="utf-8")


def test_the_programs_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pool(tmp_path / "data" / "ucf101")
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(programs) == 3
    for program in programs:
        exec(compile(program.replace("ucf101-0", "toy-0"), "README.md", "exec"), {})


def test_the_page_names_every_column_and_field() -> None:
    named = set(re.findall(r"`(\w+)`", README))
    for name in (*SAMPLES_SCHEMA.names, *MANIFEST_SCHEMA.names, *ManifestInfo.model_fields):
        assert name in named, name
