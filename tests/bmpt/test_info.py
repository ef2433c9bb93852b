"""`bmpt info`: what a bug report needs, without a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bmpt.cli.app import app
from bmpt.info import PACKAGES
from shards.cli import run_app
from shards.storage.credential_source import credential_sources


def test_info_states_versions_decoders_disk_and_credentials(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    assert run_app(app, ["info", "--json"], prog_name="bmpt") == 0
    printed = capsys.readouterr().out
    assert 'SECRET"' not in printed.replace("AWS_", "")
    assert "verysecret" not in printed

    info = json.loads(printed)
    assert "not installed" not in {info["packages"][name] for name in PACKAGES}
    assert {"h264", "vp9", "mpeg4"} <= set(info["decoders"]["codecs"].split(";")[0].split())
    assert info["decoders"]["decord"].startswith("decord")
    assert info["credentials"]["s3"].startswith("AWS_ACCESS_KEY_ID")
    assert info["free_disk"]["working folder"].endswith("GB")


def test_info_text_has_one_line_per_fact(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["info"], prog_name="bmpt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "bmpt"
    for name in ("Python", "torch", "CUDA", "PyAV", "decord", "cache"):
        assert [line for line in lines if line.startswith(f"{name} ")], name


def test_info_describes_the_cache_of_a_config(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "entry").write_bytes(bytes(300_000_000))
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{pool: s3://bucket/pool, cache: {tmp_path / 'cache'}}}\n")
    assert run_app(app, ["info", str(config), "--json"], prog_name="bmpt") == 0
    info = json.loads(capsys.readouterr().out)
    assert info["cache"] == f"{tmp_path / 'cache'}: 0.3 of at most 50.0 GB"
    assert info["free_disk"].keys() == {"working folder", "cache"}


def test_credential_sources_name_the_variable_the_profile_or_the_reason(tmp_path: Path) -> None:
    assert "role of the machine" in credential_sources({"HOME": str(tmp_path)})["s3"]
    assert credential_sources({"AWS_SKIP_SIGNATURE": "true"})["s3"].startswith("anonymous")
    assert credential_sources({"AZURE_STORAGE_SAS_TOKEN": "x"})["az"] == (
        "AZURE_STORAGE_SAS_TOKEN of the environment"
    )

    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = AKIA\naws_secret_access_key = secret\n"
    )
    source = credential_sources({"HOME": str(tmp_path)})["s3"]
    assert source.startswith("profile default of ")
    assert "secret" not in source

    missing = credential_sources({"HOME": str(tmp_path), "AWS_PROFILE": "lab"})["s3"]
    assert missing.startswith("not usable: AWS_PROFILE=lab: no such profile")
