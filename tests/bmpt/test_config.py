"""Configs: strict, with one parent, and one sentence for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bmpt.config import RunConfig, identity, load_config
from bmpt.methods.bmpt import BmptSettings
from shards.config import merge, parse_override, read_yaml_with_base, to_yaml
from shards.errors import ConfigError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path, "minimal.yaml", "data: {pool: somewhere}\n")


def test_a_minimal_config_has_the_stated_defaults(minimal: Path) -> None:
    config = load_config(minimal)
    assert config.run.dir == "runs/minimal"
    assert config.run.threads == 1
    assert (config.data.frames, config.data.batch_size, config.data.order) == (8, 64, "global")
    assert config.data.verdicts == ("ok", "short", "damaged")
    assert isinstance(config.method, BmptSettings)
    assert (config.method.name, config.method.exchange, config.method.exchange_width) == (
        "bmpt",
        "bidirectional",
        256,
    )
    assert (config.method.vision_depth, config.method.vision_tokens) == (12, 8)
    assert config.method.temporal_position == "none"
    assert (config.train.precision, config.train.accumulation) == ("fp32", 1)


def test_a_run_dir_of_the_config_is_kept(minimal: Path) -> None:
    assert load_config(minimal, ["run.dir=elsewhere"]).run.dir == "elsewhere"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.batchsize=4", r"unknown key data\.batchsize; did you mean batch_size\?"),
        ("methd.name=bmpt", r"unknown key methd; did you mean method\?"),
        ("train.learning=1", r"unknown key train\.learning; "),
        ("eval.manifest=[a]", r"unknown key eval\.manifest; did you mean manifests\?"),
    ],
)
def test_an_unknown_key_is_refused_and_its_neighbours_named(
    minimal: Path, override: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(minimal, [override])
    assert "minimal.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_with_no_neighbour_lists_what_is_known(minimal: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown key eval\.qqq; known: manifests, batch_size, wise_ft, clips, crops",
    ):
        load_config(minimal, ["eval.qqq=1"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.batch_size=0", r"data\.batch_size: .*got 0"),
        ("data.batch_size=", r"data\.batch_size: .*got None"),
        ("data.frames=many", r"data\.frames: .*got 'many'"),
        ("train.lr=0", r"train\.lr: .*got 0"),
        ("train.precision=fp8", r"train\.precision: .*'fp32', 'bf16' or 'fp16'.*got 'fp8'"),
        ("train.label_smoothing=1", r"train\.label_smoothing: .*got 1"),
        ("method.exchange=both_ways", r"method\.exchange: .*got 'both_ways'"),
        ("method.space_time_blocks=3", r"method\.space_time_blocks: .*got 3"),
        ("data.verdicts=[fine]", r"data\.verdicts\.0: .*got 'fine'"),
        ("method=bmpt", r"method: .*got 'bmpt'"),
        ("seed=-1", r"seed: .*got -1"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_key_and_value(
    minimal: Path, override: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(minimal, [override])
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_refused_with_the_list_of_methods(minimal: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"minimal\.yaml: method\.name: unknown method; choose one of zero_shot, vifi_clip, "
        r"bdc_clip, bmpt, bike, got 'clip'",
    ):
        load_config(minimal, ["method.name=clip"])


def test_a_key_of_another_method_is_refused_with_the_method_that_has_it(minimal: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, ["method.name=bike", "method.exchange=none"])
    assert str(caught.value) == (
        f"{minimal}: method.exchange: method bike has no such key, it belongs to bmpt; leave it "
        "out or set method.name=bmpt, got 'none'"
    )


def test_a_key_of_two_other_methods_names_both(minimal: Path) -> None:
    with pytest.raises(ConfigError, match=r"belongs to vifi_clip and bmpt; .*name=vifi_clip"):
        load_config(minimal, ["method.name=zero_shot", "method.text_depth=3"])


def test_a_misspelt_key_of_a_method_is_refused_with_its_neighbour(minimal: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"method\.exchnge: unknown key of method bmpt; did you mean exchange\?",
    ):
        load_config(minimal, ["method.exchnge=none"])


def test_a_config_holds_the_settings_of_its_own_method_alone(minimal: Path) -> None:
    stored = to_yaml(load_config(minimal, ["method.name=zero_shot"]))
    assert set(yaml.safe_load(stored)["method"]) == {
        *("name", "tune", "space_time_blocks", "temporal_position", "causal")
    }


def test_importing_the_config_does_not_import_torch() -> None:
    code = "import bmpt.config, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("value", [".nan", ".inf"])
@pytest.mark.parametrize("key", ["train.lr", "train.weight_decay", "train.warmup_epochs"])
def test_a_rate_that_is_no_number_is_refused(minimal: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load_config(minimal, [f"{key}={value}"])


def test_several_mistakes_are_named_at_once(minimal: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.frames.*; .*train\.epochs"):
        load_config(minimal, ["data.frames=0", "train.epochs=0"])


def test_a_config_without_a_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"empty\.yaml: data: Field required"):
        load_config(write(tmp_path, "empty.yaml", ""))


def test_a_rate_that_yaml_reads_as_text_becomes_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, "rate.yaml", "data: {pool: p}\ntrain: {lr: 2e-06}\n")
    assert isinstance(yaml.safe_load(path.read_text())["train"]["lr"], str)
    assert load_config(path).train.lr == 2e-6
    assert load_config(path, ["train.lr_prompts=4e-05"]).train.lr_prompts == 4e-5


def test_a_chain_of_bases_is_merged_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(
        tmp_path,
        "root.yaml",
        "data: {pool: root, frames: 4}\nmethod: {space_time_blocks: [1, 2, 3]}\nseed: 1\n",
    )
    write(tmp_path, "middle.yaml", "base: root.yaml\ndata: {pool: middle}\nseed: 2\n")
    leaf = write(
        tmp_path / "deep", "leaf.yaml", "base: ../middle.yaml\nmethod: {space_time_blocks: [0]}\n"
    )
    config = load_config(leaf, ["data.batch_size=3"])
    assert (config.data.pool, config.data.frames, config.data.batch_size, config.seed) == (
        "middle",
        4,
        3,
        2,
    )
    assert config.method.space_time_blocks == (0,)
    assert config.run.dir == "runs/leaf"


def test_a_base_that_leads_back_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    write(tmp_path, "b.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: its `base:` leads back to itself"):
        load_config(tmp_path / "a.yaml")


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such config file"):
        load_config(write(tmp_path, "a.yaml", "base: gone.yaml\n"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "is not YAML"),
        ("- 1\n- 2\n", "holds a list, expected a mapping"),
        ("just text", "holds a str"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=rf"odd\.yaml: {sentence}") as caught:
        load_config(write(tmp_path, "odd.yaml", text))
    assert "\n" not in str(caught.value)


def test_a_folder_given_as_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read"):
        load_config(path)


@pytest.mark.parametrize("override", ["data.frames", "=3", ".a=3", "a..b=3", ""])
def test_an_override_that_is_no_assignment_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_override(override)


def test_an_override_whose_value_is_not_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--set a\.b=\[1: the value is not YAML"):
        parse_override("a.b=[1")


def test_override_values_are_read_as_yaml(minimal: Path) -> None:
    overrides = [
        "method.space_time_blocks=[3, 7]",
        "data.flip=false",
        "data.train=few_shot/train_k2",
        "seed=7",
    ]
    config = load_config(minimal, overrides)
    assert config.method.space_time_blocks == (3, 7)
    assert config.data.flip is False
    assert config.data.train == "few_shot/train_k2"
    assert config.seed == 7


def test_a_later_override_wins(minimal: Path) -> None:
    assert load_config(minimal, ["seed=1", "seed=2"]).seed == 2


def test_merging_leaves_both_sides_as_they_were() -> None:
    below, above = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(below, above) == {"a": {"b": 3, "c": 2}}
    assert (below, above) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


def test_a_config_written_as_yaml_reads_back_equal(minimal: Path, tmp_path: Path) -> None:
    overrides = [
        "train.lr=2e-06",
        "method.space_time_blocks=[1]",
        "text.template='größe: {}'",
        "run.dir=x y",
    ]
    config = load_config(minimal, overrides)
    path = write(tmp_path, "again.yaml", to_yaml(config))
    assert load_config(path) == config
    assert RunConfig.model_validate(read_yaml_with_base(path)) == config


def test_a_config_cannot_be_changed(minimal: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(minimal).seed = 3


def test_tune_both_is_an_alias_of_all() -> None:
    both, all_ = (
        RunConfig.model_validate({"data": {"pool": "p"}, "method": {"tune": tune}})
        for tune in ("both", "all")
    )
    assert identity(both, with_places=True) == identity(all_, with_places=True)


@pytest.mark.parametrize(
    ("method", "depends"),
    [
        ({}, False),
        ({"exchange": "batch_gated"}, True),
        ({"name": "bdc_clip", "dropout": 0.5}, True),
    ],
)
def test_accumulation_is_part_of_the_identity_only_where_it_decides_numbers(
    method: dict[str, Any], depends: bool
) -> None:
    def of(accumulation: int) -> dict[str, Any]:
        values = {"data": {"pool": "p"}, "method": method, "train": {"accumulation": accumulation}}
        return identity(RunConfig.model_validate(values), with_places=False)

    assert (of(1) != of(2)) == depends


def test_causal_is_a_temporal_position_too() -> None:
    settings = BmptSettings.model_validate({"temporal_position": "causal"})
    assert (settings.temporal_position, settings.causal) == ("none", True)
    with pytest.raises(
        ValidationError, match="temporal_position=causal and causal=false exclude each other"
    ):
        BmptSettings.model_validate({"temporal_position": "causal", "causal": False})
    both = BmptSettings.model_validate({"temporal_position": "learned", "causal": True})
    assert (both.temporal_position, both.causal) == ("learned", True)


def test_a_key_of_the_method_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    """YAML reads a key `on` as true."""
    (tmp_path / "a.yaml").write_text("data: {pool: p}\nmethod: {on: 1}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: method") as raised:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(raised.value)
