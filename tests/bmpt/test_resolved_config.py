"""`bmpt config`: the origin of each value, all keys, and the JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bmpt.cli.app import app
from bmpt.config import RunConfig
from bmpt.resolved_config import resolve_config, resolved_text
from shards.cli import run_app


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a config with a parent, and make its folder the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parent.yaml").write_text(
        "data: {pool: data/ucf101, batch_size: 8, frames: 4}\nmethod: {name: zero_shot}\n"
    )
    (tmp_path / "child.yaml").write_text("base: parent.yaml\ndata: {batch_size: 16}\n")
    return tmp_path / "child.yaml"


def test_resolve_config_names_the_file_the_override_or_the_default(chain: Path) -> None:
    resolved = resolve_config(chain, ["data.frames=16", "train.betas=[0.9, 0.999]"])
    origins = {item.key: (item.value, item.origin) for item in resolved.values}

    assert origins["data.pool"] == ("data/ucf101", "parent.yaml")
    assert origins["data.batch_size"] == (16, "child.yaml")
    assert origins["data.frames"] == (16, "--set")
    assert origins["train.betas"] == ([0.9, 0.999], "--set")
    assert origins["train.epochs"][1] == "default"
    assert origins["run.dir"] == ("runs/child", "name of the config")


def test_resolve_config_keeps_the_origin_of_a_run_folder_that_is_set(chain: Path) -> None:
    resolved = resolve_config(chain, ["run.dir=runs/mine"])
    assert [(i.value, i.origin) for i in resolved.values if i.key == "run.dir"] == [
        ("runs/mine", "--set")
    ]


def test_resolved_text_has_a_line_per_key_in_the_form_that_set_reads(chain: Path) -> None:
    text = resolved_text(resolve_config(chain))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["train.betas"].split(maxsplit=1)[1].startswith("[0.9, 0.98]")
    assert lines["train.lr"].split()[1] == "8e-06"
    assert lines["run.tensorboard"].split()[1] == "true"
    assert lines["data.train"].split()[1] == "null"


def test_config_keys_lists_the_keys_of_all_sections_and_of_each_method(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_app(app, ["config", "--keys", "--json"], prog_name="bmpt") == 0
    listed = json.loads(capsys.readouterr().out)
    names = {key["key"] for key in listed["keys"]}
    for section in RunConfig.model_fields:
        assert any(name == section or name.startswith(f"{section}.") for name in names), section

    assert all(key["meaning"] for key in listed["keys"])
    assert {"bmpt", "bike", "bdc_clip"} <= listed["methods"].keys()
    assert "method.temporal_layers" in {key["key"] for key in listed["methods"]["bike"]}


def test_config_schema_describes_every_shipped_experiment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    from shards.config_names import configs_folder

    assert run_app(app, ["config", "--schema"], prog_name="bmpt") == 0
    schema = json.loads(capsys.readouterr().out)
    validator = jsonschema.Draft202012Validator(schema)

    files = sorted(configs_folder().rglob("*.yaml"))
    assert len(files) > 30
    for file in files:
        errors = list(validator.iter_errors(yaml.safe_load(file.read_text())))
        assert errors == [], file
    assert list(validator.iter_errors({"data": {"pol": "x"}}))


def test_config_without_a_config_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["config"], prog_name="bmpt") == 2
    assert capsys.readouterr().err == "error: give a CONFIG, --keys or --schema\n"
