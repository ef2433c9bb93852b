"""The command line: what it prints, what it costs to ask for help, and one line for every
mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from bmpt.cli.app import app
from bmpt.cli.help import SECTIONS
from shards.cli import RANK_WAIT_VARIABLE
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.tiny import VISION_WIDTH, random_frames, write_clip, write_config
from tests.complaints import complains, run
from tests.pools import make_pool

ROOT = Path(__file__).resolve().parents[2]
ZERO_SHOT = {"name": "zero_shot", "space_time_blocks": [1, 3]}


def run_process(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bmpt", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        check=False,
    )


@pytest.fixture
def yaml_of(tmp_path: Path, clip: Path, toy_pool: Path) -> Any:
    """Write a config file and return its path as text."""
    return lambda **sections: str(write_config(tmp_path, clip, toy_pool, **sections))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["eval", "--help"], ["knowledge", "--help"], ["--version"]],
)
def test_asking_for_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from bmpt.cli.app import app; from shards.cli import run_app; "
        "code = run_app(app, sys.argv[1:], prog_name='bmpt'); "
        "heavy = {'torch', 'pyarrow', 'pydantic', 'numpy', "
        "'webdataset', 'av', 'open_clip', 'yaml', 'obstore'}; "
        "print(code, *sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    # typer itself imports pydantic once a command has options
    assert done.stderr in (("0\n",) if arguments == ["--help"] else ("0\n", "0 pydantic\n"))
    assert done.stdout


def commands_of(group: Any, prefix: str = "bmpt") -> dict[str, Any]:
    """Return every command by its whole name, those of groups included."""
    commands: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            commands[f"{prefix} {name}"] = command
        else:
            commands |= commands_of(command, f"{prefix} {name}")
    return commands


COMMANDS = commands_of(typer.main.get_command(app))


def test_help_lists_every_command_in_a_section_with_its_whole_summary() -> None:
    done = run_process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "..." not in done.stdout.partition("Options:")[2]
    for section in SECTIONS:
        assert f"\n{section}:\n" in done.stdout
    assert "\nCommands:\n" not in done.stdout, "a command without a section"

    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        summaries = re.findall(rf"^  {name} +(\S.*)$", done.stdout, flags=re.MULTILINE)
        assert len(summaries) == 1, name
        assert summaries[0].endswith("."), f"the summary of {name} is cut"


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"bmpt build"}))
def test_help_of_every_command_has_two_examples_that_parse(name: str) -> None:
    help_text = COMMANDS[name].get_help(
        COMMANDS[name].make_context(name, [], resilient_parsing=True)
    )
    examples = [line.strip() for line in help_text.partition("Examples:\n")[2].splitlines()]
    assert len(examples) >= 2, name
    for example in examples:
        words = shlex.split(example)
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        arguments = words[len(name.split()) :]
        assert " ".join(words[: len(name.split())]) == name
        COMMANDS[name].make_context(name, arguments)


def test_shell_completion_offers_commands_and_experiments() -> None:
    def complete(line: str) -> list[str]:
        environment = {
            **os.environ,
            "_BMPT_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-m", "bmpt"],
            env=environment,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        return done.stdout.split()

    assert set(complete("bmpt exp")) == {"export", "experiments"}
    assert complete("bmpt train few_shot/ucf101_k1") == [
        "few_shot/ucf101_k16",
        "few_shot/ucf101_k16_bdc_clip",
        "few_shot/ucf101_k16_bike",
        "few_shot/ucf101_k16_vifi_clip",
    ]


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert re.fullmatch(r"bmpt \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_without_a_command_the_help_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    captured = capsys.readouterr()
    assert max(captured.out.count("\n"), captured.err.count("\n")) > 5, (
        "the help is squeezed into one line"
    )


def test_an_unknown_command_is_one_line_of_a_real_process() -> None:
    done = run_process("trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "trian" in done.stderr
    assert "--help" in done.stderr


def test_a_missing_config_is_one_line_of_a_real_process() -> None:
    done = run_process("train", "nowhere.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "nowhere.yaml: no such config file" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "a.yaml", "b.yaml"],
        ["train", "--frsh", "a.yaml"],
        ["eval", "a", "--checkpoint"],
    ],
)
def test_a_wrong_use_of_a_command_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert "--help" in complains(capsys, *arguments)


def test_an_unknown_key_is_named_with_the_nearest(
    capsys: pytest.CaptureFixture[str], yaml_of: Any
) -> None:
    line = complains(capsys, "train", yaml_of(data={"batchsize": 3}))
    assert "run.yaml: unknown key data.batchsize; did you mean batch_size?" in line


def test_an_override_that_is_no_assignment_is_named(
    capsys: pytest.CaptureFixture[str], yaml_of: Any
) -> None:
    assert "--set seed: expected key=value" in complains(
        capsys, "train", yaml_of(), "--set", "seed"
    )


def test_a_missing_pool_is_named(
    capsys: pytest.CaptureFixture[str], yaml_of: Any, tmp_path: Path
) -> None:
    line = complains(capsys, "train", yaml_of(), "--set", f"data.pool={tmp_path}/gone")
    assert "gone/pool.json: no such file, so this is not a finished pool; run `bmpt build`" in line
    assert not (tmp_path / "gone").exists(), "asking for a pool must not make its folder"


def test_a_pool_address_of_an_unknown_kind_is_named(
    capsys: pytest.CaptureFixture[str], yaml_of: Any
) -> None:
    line = complains(capsys, "train", yaml_of(data={"pool": "gopher://bucket/pool"}))
    assert "gopher://bucket/pool" in line


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 2}, "pool.json: has format_version 2, this code reads 1"),
        ({"format_version": None}, "pool.json: has format_version None, this code reads 1"),
        ({"classes": 3}, "pool.json: field classes: "),
    ],
)
def test_a_pool_of_another_format_is_named(
    capsys: pytest.CaptureFixture[str],
    yaml_of: Any,
    toy_pool: Path,
    tmp_path: Path,
    change: dict[str, Any],
    sentence: str,
) -> None:
    shutil.copytree(toy_pool, tmp_path / "pool")
    card = json.loads((tmp_path / "pool" / "pool.json").read_text())
    (tmp_path / "pool" / "pool.json").write_text(json.dumps({**card, **change}))
    assert sentence in complains(capsys, "train", yaml_of(data={"pool": str(tmp_path / "pool")}))


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_a_pool_card_that_is_no_json_object_is_one_line(
    capsys: pytest.CaptureFixture[str], yaml_of: Any, tmp_path: Path, text: str
) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pool.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "pool.json: " in complains(
        capsys, "train", yaml_of(data={"pool": str(tmp_path / "pool")})
    )


def test_a_manifest_that_is_no_parquet_is_one_line(
    capsys: pytest.CaptureFixture[str], yaml_of: Any, toy_pool: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_pool, tmp_path / "pool")
    (tmp_path / "pool" / "manifests" / "few_shot" / "val.parquet").write_text("no table")
    assert "val.parquet: is not Parquet" in complains(
        capsys, "train", yaml_of(data={"pool": str(tmp_path / "pool")})
    )


def test_an_empty_manifest_is_one_line_with_its_counts(
    capsys: pytest.CaptureFixture[str], yaml_of: Any, tmp_path: Path
) -> None:
    make_pool(tmp_path / "pool", samples_per_class=2)
    config = yaml_of(data={"pool": str(tmp_path / "pool")}, method=ZERO_SHOT)
    line = complains(capsys, "eval", config)
    assert "few_shot/val: has no sample to read (expected 0, found 0, missing 0;" in line


def test_a_batch_larger_than_the_manifest_is_one_line_with_both_numbers(
    capsys: pytest.CaptureFixture[str], yaml_of: Any
) -> None:
    line = complains(capsys, "train", yaml_of(), "--set", "data.batch_size=64")
    assert "data.batch_size is 64, but the training manifest has 8 samples" in line


def test_a_checkpoint_of_another_method_is_one_line(
    capsys: pytest.CaptureFixture[str], yaml_of: Any, config: MakeConfig
) -> None:
    path = yaml_of(train={"epochs": 1})
    assert run("train", path) == 0
    checkpoint = str(Path(path).with_suffix("") / "prompts.safetensors")
    other = yaml_of(run="other", method={"name": "zero_shot"})
    line = complains(capsys, "eval", other, "--checkpoint", checkpoint)
    assert "is a checkpoint of method bmpt, the config says zero_shot; set method.name=bmpt" in line


def test_a_missing_checkpoint_is_one_line(capsys: pytest.CaptureFixture[str], yaml_of: Any) -> None:
    assert "gone.safetensors: no such checkpoint" in complains(
        capsys, "eval", yaml_of(), "--checkpoint", "gone.safetensors"
    )


def test_a_missing_weight_file_is_one_line(
    capsys: pytest.CaptureFixture[str], yaml_of: Any
) -> None:
    line = complains(capsys, "train", yaml_of(), "--set", "model.pretrained=gone.pt")
    assert "gone.pt: no such weight file" in line


def test_json_prints_one_object_on_stdout_and_it_is_results_json(
    capsys: pytest.CaptureFixture[str], yaml_of: Any, tmp_path: Path
) -> None:
    assert run("eval", yaml_of(method=ZERO_SHOT), "--json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == json.loads((tmp_path / "run" / "results.json").read_text())


def test_without_json_a_table_and_the_place_of_the_results_are_printed(
    capsys: pytest.CaptureFixture[str], yaml_of: Any, tmp_path: Path
) -> None:
    assert run("eval", yaml_of(method=ZERO_SHOT)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "manifest",
        "top-1",
        "top-5",
        "correct/scored",
        "failed",
        "missing",
        "classes",
    ]
    assert lines[1].startswith("few_shot/val ")
    assert lines[-1] == f"results: {tmp_path / 'run' / 'results.json'}"


def test_a_temporal_embedding_that_is_left_out_is_a_warning(
    capsys: pytest.CaptureFixture[str], yaml_of: Any, tmp_path: Path
) -> None:
    file = write_clip(tmp_path / "temporal.safetensors", temporal_TE=random_frames(4, VISION_WIDTH))
    config = yaml_of(method=ZERO_SHOT, model={"pretrained": str(file)})
    assert run("eval", config) == 0
    line = f"warning: model.pretrained={file}: its temporal embedding of 4 frames is left out, "
    assert capsys.readouterr().err.startswith(line)
    learned = (
        "--set",
        "method.temporal_position=learned",
        "--set",
        f"run.dir={tmp_path / 'learned'}",
    )
    assert run("eval", config, *learned) == 0
    assert "warning" not in capsys.readouterr().err


def test_results_of_mixed_weights_say_so_and_a_warning_that_they_replace_others(
    capsys: pytest.CaptureFixture[str], yaml_of: Any, tmp_path: Path
) -> None:
    config = yaml_of(method={"name": "vifi_clip", "tune": "all"}, train={"epochs": 1})
    assert run("train", config) == 0
    assert "wise_ft" not in json.loads((tmp_path / "run" / "results.json").read_text())
    scoring = ("eval", config, "--checkpoint", str(tmp_path / "run" / "prompts.safetensors"))
    assert run(*scoring) == 0
    assert "warning" not in capsys.readouterr().err
    assert run(*scoring, "--set", "eval.wise_ft=0.5") == 0
    assert (
        f"warning: {tmp_path / 'run' / 'results.json'}: belongs to another checkpoint or config"
        in capsys.readouterr().err
    )
    assert json.loads((tmp_path / "run" / "results.json").read_text())["wise_ft"] == 0.5


def test_a_rank_that_is_not_ended_with_the_first_says_its_mistake_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(RANK_WAIT_VARIABLE, "0")
    assert run("train", "nowhere.yaml") == 2
    assert capsys.readouterr().err.startswith("error: rank 1: nowhere.yaml: no such config file; ")


def test_plan_counts_what_training_and_scoring_will_read(
    yaml_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml_of()
    assert run("plan", config) == 0
    text = capsys.readouterr().out
    assert "order: global" in text
    assert "order: as listed" in text
    assert "a folder: frames are read directly" in text
    assert (
        run("plan", config, "--json", "--set", "data.order=grouped", "--set", "data.group_shards=2")
        == 0
    )
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert plans[0]["order"].startswith("grouped/2/")
    assert all(0 < plan["first_bytes"] < plan["needed_bytes"] for plan in plans)
    assert plans[0]["passes"] == 2
    assert plans[0]["all_bytes"] == pytest.approx(
        2 * plans[0]["first_bytes"], rel=0.05
    )  # other frames are drawn
