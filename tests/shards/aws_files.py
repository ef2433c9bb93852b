"""The files of `~/.aws` for tests."""

from __future__ import annotations

from pathlib import Path

from tests.object_store import WRITER


def write_profile(
    home: Path, name: str, *, region: str, endpoint: str, key: tuple[str, str] = WRITER
) -> None:
    """Write the two files of `~/.aws` below `home`, by default with keys that may write."""
    (home / ".aws").mkdir()
    section = name if name == "default" else f"profile {name}"
    (home / ".aws" / "config").write_text(
        f"[{section}]\nregion = {region}\nendpoint_url = {endpoint}\n"
    )
    keys = f"aws_access_key_id = {key[0]}\naws_secret_access_key = {key[1]}\n"
    (home / ".aws" / "credentials").write_text(f"[{name}]\n{keys}")
