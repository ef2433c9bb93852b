"""Settings: strict, one `base:` parent, `--set` on top, and errors that name the file and the
cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from shards.config import (
    Settings,
    build_settings,
    load_settings,
    merge,
    parse_override,
    read_yaml_with_base,
    to_yaml,
)
from shards.errors import ConfigError


class Train(Settings):
    lr: float = 1e-3
    epochs: int = Field(default=10, ge=1)


class Run(Settings):
    seed: int = 0
    name: str = "run"
    blocks: tuple[int, ...] = (3, 7)
    train: Train = Train()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_hold_without_a_file() -> None:
    assert load_settings(Run, None) == Run()


def test_a_child_overrides_its_base_key_by_key_and_set_overrides_both(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "seed: 1\nblocks: [1, 2, 3]\ntrain: {lr: 2e-06, epochs: 5}\n")
    child = write(
        tmp_path / "deeper" / "child.yaml", "base: ../base.yaml\nblocks: [9]\ntrain: {epochs: 7}\n"
    )
    run = load_settings(Run, child, ["train.lr=0.5", "name=a=b"])
    assert run == Run(seed=1, name="a=b", blocks=(9,), train=Train(lr=0.5, epochs=7))
    assert load_settings(Run, child).train.lr == pytest.approx(2e-6)  # PyYAML reads `2e-06` as text


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_settings(Run, write(tmp_path / "a.yaml", "")) == Run()


def test_the_resolved_yaml_reads_back_to_the_same_settings(tmp_path: Path) -> None:
    run = Run(seed=3, name="größer: 1", train=Train(lr=2e-6))
    assert load_settings(Run, write(tmp_path / "a.yaml", to_yaml(run))) == run


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run().seed = 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", r"unknown key train.lrr; did you mean lr\?"),
        ("zzz=1", "unknown key zzz; known: seed, name, blocks, train"),
        ("seed=many", "--set: seed: .*valid integer.*, got 'many'"),
        ("train.epochs=0", "train.epochs: .*greater than or equal to 1, got 0"),
        ("seed", "--set seed: expected key=value"),
        ("train..lr=1", "expected key=value"),
        ("seed=[1", r"--set seed=\[1: the value is not YAML"),
    ],
)
def test_a_wrong_override_is_named_with_its_value(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(Run, None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: {", "a.yaml: is not YAML"),
        ("[1, 2]", "a.yaml: holds a list, expected a mapping"),
        ("base: a.yaml", "a.yaml: its `base:` leads back to itself"),
        ("base: nowhere.yaml", "nowhere.yaml: no such config file"),
        ("sed: 1", r"a.yaml: unknown key sed; did you mean seed\?"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(Run, write(tmp_path / "a.yaml", text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"a.yaml: cannot be read"):
        read_yaml_with_base(tmp_path / "a.yaml")


def test_all_wrong_keys_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"unknown key sed.*; unknown key nam"):
        build_settings(Run, {"sed": 1, "nam": 2}, where="x.yaml")


@given(
    name=st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), min_size=1, max_size=4),
    value=st.one_of(st.integers(), st.booleans(), st.none(), st.lists(st.integers(), max_size=3)),
)
def test_an_override_nests_its_value_under_its_name(name: list[str], value: object) -> None:
    text = (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
    nested = parse_override(f"{'.'.join(name)}={text}")
    for part in name:
        assert list(nested) == [part]
        nested = nested[part]
    assert nested == value


def test_merge_leaves_its_arguments_alone() -> None:
    below, above = {"a": {"b": 1, "c": 2}, "d": {"e": 1}}, {"a": {"b": 3}, "d": 4}
    assert merge(below, above) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert below == {"a": {"b": 1, "c": 2}, "d": {"e": 1}}


def test_braces_alone_are_text() -> None:
    assert parse_override("text.template={}") == {"text": {"template": "{}"}}
