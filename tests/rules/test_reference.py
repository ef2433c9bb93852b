"""Test the generated pages of `docs/`: they are up to date, and the generator sees every key and
command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from bmpt.settings import MethodSettings
from scripts import make_reference
from tests.rules.sources import ROOT


class Inner(BaseModel):
    """An inner section."""

    width: int = Field(8, ge=1, lt=100, description="a width")


class Outer(BaseModel):
    """A section. It has a second sentence.

    And a second paragraph."""

    kind: Literal["a", "b"] = Field("a", description="one | two")
    rates: tuple[float, float] = (0.9, 5e-6)
    names: Annotated[tuple[str, ...], Field(description="some <names>")] = ()
    file: Path | None = None
    inner: Inner = Inner()
    needed: str


def test_the_generated_pages_are_up_to_date() -> None:
    stale = make_reference.stale_pages(make_reference.all_pages())
    assert stale == [], "run `python scripts/make_reference.py`"


def test_rows_state_type_default_bounds_and_meaning() -> None:
    assert list(make_reference.key_rows("outer", Outer)) == [
        "| `outer.kind` | a or b | `a` | one \\| two |",
        "| `outer.rates` | 2 values: number, number | `[0.9, 5e-06]` |  |",
        "| `outer.names` | list of text | `[]` | some \\<names> |",
        "| `outer.file` | path | `null` |  |",
        "| `outer.inner.width` | integer, >= 1, < 100 | `8` | a width |",
        "| `outer.needed` | text | required |  |",
    ]
    assert make_reference.summary_of(Outer) == "A section. It has a second sentence."


def test_a_method_lists_the_keys_that_it_adds_or_changes() -> None:
    class Own(MethodSettings):
        name: str = "own"
        rate: float = 0.5

    assert list(make_reference.own_fields(Own)) == ["rate"]


def test_a_changed_page_and_a_page_without_a_command_are_stale(tmp_path: Path) -> None:
    pages = {"docs/reference/cli.md": f"{make_reference.NOTICE}\n"}
    (tmp_path / "docs" / "reference" / "cli").mkdir(parents=True)
    (tmp_path / "docs" / "reference" / "cli.md").write_text(f"{make_reference.NOTICE}\n")
    (tmp_path / "docs" / "reference" / "run-folder.md").write_text("by hand")
    assert make_reference.stale_pages(pages, tmp_path) == []
    (tmp_path / "docs" / "reference" / "cli" / "old.md").write_text(make_reference.NOTICE)
    assert make_reference.stale_pages(pages, tmp_path) == ["docs/reference/cli/old.md"]
    (tmp_path / "docs" / "reference" / "cli.md").write_text("changed")
    assert "docs/reference/cli.md" in make_reference.stale_pages(pages, tmp_path)


def test_the_pages_have_every_method_and_every_option_of_build() -> None:
    pages = make_reference.all_pages()
    assert "`data.batch_size`" in pages["docs/reference/config.md"]
    assert "`method.temporal_layers`" in pages["docs/reference/method-settings.md"]
    assert "`--expect-sources FILE`" in pages["docs/reference/cli/build.md"]
    assert "bmpt bench loader" in pages["docs/reference/cli/bench.md"]
    for method in ("zero_shot", "vifi_clip", "bdc_clip", "bmpt", "bike"):
        assert f"## {method}\n" in pages["docs/reference/method-settings.md"]


def test_every_key_has_a_meaning() -> None:
    rows = "".join(make_reference.config_pages().values())
    assert re.findall(r"^\| `(\S+)` \|.*\|  \|$", rows, re.M) == []


def test_the_index_of_commands_links_every_page() -> None:
    pages = make_reference.all_pages()
    for name in pages:
        if name.startswith("docs/reference/cli/"):
            assert f"({name.removeprefix('docs/reference/')})" in pages["docs/reference/cli.md"]
            assert (ROOT / name).is_file()
