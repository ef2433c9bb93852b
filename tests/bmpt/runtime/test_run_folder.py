"""What a run folder keeps: stopped runs go on, finished ones are read, another config is
refused."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bmpt.checkpoints.state import load_state, save_state
from bmpt.config import RunConfig
from bmpt.run import run_evaluation
from bmpt.runtime.run_folder import lock_run_folder
from shards.errors import BmptError, ConfigError, FormatError
from shards.reader import open_pool
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import (
    VAL,
    assert_same_run,
    folder_of,
    results_of,
    run,
    stop_early,
)
from tests.bmpt.tiny import ALONE, losses_of, metrics_of, write_clip


def test_a_stopped_run_goes_on_to_the_unbroken_end(config: MakeConfig) -> None:
    unbroken, broken = (
        config(run="unbroken", train={"epochs": 20}),
        config(run="broken", train={"epochs": 20}),
    )
    run(unbroken)
    stop_early(broken)
    assert not (folder_of(broken) / "results.json").exists()
    outcome = run(broken)
    assert not outcome.was_stopped
    assert_same_run(unbroken, broken, tolerance=0)
    assert outcome.results is not None
    assert outcome.results["evaluations"] == results_of(unbroken)["evaluations"]


def test_a_stopped_run_goes_on_with_another_accumulation(config: MakeConfig) -> None:
    unbroken, broken = (
        config(run="unbroken", train={"epochs": 20}),
        config(run="broken", train={"epochs": 20}),
    )
    run(unbroken)
    stop_early(broken)
    other = config(run="broken", train={"epochs": 20, "accumulation": 2}, data={"num_workers": 0})
    run(other)
    first, second = losses_of(folder_of(unbroken)), losses_of(folder_of(other))
    assert [step for step, _ in first] == [step for step, _ in second]
    assert [loss for _, loss in first] == pytest.approx([loss for _, loss in second], rel=5e-3)


def test_a_killed_run_forgets_the_lines_after_its_last_saved_state(config: MakeConfig) -> None:
    settings = config(train={"epochs": 20})
    steps = stop_early(settings)
    metrics = folder_of(settings) / "metrics.jsonl"
    late = [
        json.dumps({**metrics_of(folder_of(settings))[-1], "step": step, "loss": -1.0})
        for step in (90, 91)
    ]
    metrics.write_text(metrics.read_text() + "\n".join(late) + "\n")
    run(settings)
    rows = losses_of(folder_of(settings))
    assert [step for step, _ in rows] == list(range(1, 41))
    assert steps < 40
    assert min(loss for _, loss in rows) > 0


def test_a_line_that_a_kill_cut_short_is_forgotten(config: MakeConfig) -> None:
    settings = config(train={"epochs": 20})
    stop_early(settings)
    with (folder_of(settings) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "epo')
    run(settings)
    assert [step for step, _ in losses_of(folder_of(settings))] == list(range(1, 41))


def test_lines_of_a_run_that_was_killed_before_its_first_state_are_forgotten(
    config: MakeConfig,
) -> None:
    settings = config()
    run(settings)
    for name in ("state.pt", "results.json", "prompts.safetensors"):
        (folder_of(settings) / name).unlink()
    run(settings)
    assert [step for step, _ in losses_of(folder_of(settings))] == [1, 2, 3, 4]


def test_a_state_is_saved_within_an_epoch_when_asked(config: MakeConfig) -> None:
    settings = config(run="often", train={"epochs": 1}, data={"batch_size": 2})
    often = settings.model_copy(
        update={"run": settings.run.model_copy(update={"save_every_steps": 3})}
    )
    saved: list[tuple[int, int, int]] = []
    path = folder_of(often) / "state.pt"
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if path.exists():
                state = load_state(path)
                at = (state["step"], state["stream"]["epoch"], state["stream"]["position"])
                if at not in saved:
                    saved.append(at)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    run(often)
    done.set()
    thread.join()
    final = load_state(path)
    assert (final["step"], final["stream"]["epoch"], final["stream"]["position"]) == (4, 1, 0)
    assert set(saved) <= {(3, 0, 6), (4, 1, 0)}


def test_a_state_of_another_version_is_refused(config: MakeConfig) -> None:
    settings = config(train={"epochs": 20})
    stop_early(settings)
    path = folder_of(settings) / "state.pt"
    save_state(path, {**load_state(path), "version": 99})
    with pytest.raises(FormatError, match=r"version 99.*--fresh"):
        run(settings)


def test_a_state_of_another_manifest_is_refused(config: MakeConfig, tmp_path: Path) -> None:
    settings = config(train={"epochs": 20})
    stop_early(settings)
    path = folder_of(settings) / "state.pt"
    state = load_state(path)
    save_state(path, {**state, "stream": {**state["stream"], "fingerprint": "0" * 64}})
    with pytest.raises(FormatError, match=r"fingerprint 000000000000, but few_shot/train_k2 has"):
        run(settings)


def test_a_finished_run_is_read_and_not_redone(config: MakeConfig) -> None:
    settings = config()
    first = run(settings)
    path = folder_of(settings) / "results.json"
    before = {
        file: file.stat().st_mtime_ns
        for file in folder_of(settings).rglob("*")
        if file.name != "config.yaml"
    }
    again = run(settings)
    assert again.results == first.results == json.loads(path.read_text())
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_finished_run_whose_checkpoint_was_replaced_is_not_taken_for_finished(
    config: MakeConfig,
) -> None:
    """`bmpt eval` writes results.json into the same folder: with another checkpoint these are not
    this run's."""
    settings, other = config(run="one"), config(run="other", train={"lr_prompts": 0.5, "epochs": 6})
    mine = run(settings).results
    run(other)
    run_evaluation(settings, ALONE, checkpoint=folder_of(other) / "prompts.safetensors")
    assert mine is not None
    again = run(settings).results
    assert again is not None
    assert again["checkpoint"] == mine["checkpoint"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": {"lr": 5e-3}}, r"train\.lr is 0\.001 there, 0\.005 here"),
        ({"seed": 3}, r"seed is 0 there, 3 here"),
        ({"data": {"batch_size": 2}}, r"data\.batch_size is 4 there, 2 here"),
        ({"method": {"vision_tokens": 5}}, r"method\.vision_tokens is 4 there, 5 here"),
    ],
)
def test_a_folder_of_another_config_is_refused(
    config: MakeConfig,
    finished: RunConfig,
    tmp_path: Path,
    changes: dict[str, Any],
    sentence: str,
) -> None:
    shutil.copytree(folder_of(finished), tmp_path / "run")
    other = config(**{"eval": {"manifests": [*VAL, "few_shot/val"]}, **changes})
    with pytest.raises(
        ConfigError, match=rf"config\.yaml: belongs to another config \({sentence}\); .*--fresh"
    ):
        run(other)
    assert results_of(other) == results_of(finished)


def test_fresh_starts_over_in_the_folder_of_another_config(config: MakeConfig) -> None:
    run(config())
    other, alone = config(seed=3), config(run="alone", seed=3)
    run(other, fresh=True)
    run(alone)
    assert_same_run(other, alone, tolerance=0)
    assert results_of(other)["evaluations"] == results_of(alone)["evaluations"]


def test_fresh_removes_the_files_of_the_earlier_run(config: MakeConfig, tmp_path: Path) -> None:
    run(config(eval={"manifests": [*VAL, "few_shot/val"]}))
    settings = config(seed=3)
    run(settings, fresh=True)
    assert [path.name for path in (folder_of(settings) / "predictions").iterdir()] == [
        "few_shot.val.parquet"
    ]


def test_a_run_killed_during_scoring_is_only_scored_again(
    config: MakeConfig, finished: RunConfig, tmp_path: Path
) -> None:
    shutil.copytree(folder_of(finished), tmp_path / "run")
    settings = config(eval={"manifests": [*VAL, "few_shot/val"]})
    for name in ("results.json", "prompts.safetensors"):
        (folder_of(settings) / name).unlink()
    results = run(settings).results
    assert results is not None
    assert results["evaluations"] == results_of(finished)["evaluations"]
    assert metrics_of(folder_of(settings)) == metrics_of(folder_of(finished))
    assert_same_run(settings, finished, tolerance=0)


def test_a_stored_config_with_an_unknown_key_is_one_error(
    config: MakeConfig,
) -> None:
    settings = config()
    folder_of(settings).mkdir(parents=True)
    (folder_of(settings) / "config.yaml").write_text(
        "data: {pool: x}\nfuture: {key: 1}\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"config\.yaml.*future"):
        run(settings)


def test_a_run_folder_that_is_a_file_is_one_error(config: MakeConfig) -> None:
    settings = config()
    folder_of(settings).write_text("a file", encoding="utf-8")
    with pytest.raises(BmptError, match="run"):
        run(settings)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"data": {"batch_size": 9}},
            r"data\.batch_size is 9, but the training manifest has 8 samples",
        ),
        ({"train": {"accumulation": 5}}, r"train\.accumulation is 5, but data\.batch_size 4"),
        ({"train": {"precision": "fp16"}}, r"train\.precision=fp16: needs a GPU"),
        ({"data": {"train": None}}, r"data\.train is not set"),
        ({"data": {"val": None}}, r"nothing to score"),
        (
            {"data": {"train": "few_shot/train_k99"}},
            r"train_k99\.parquet: no such manifest; the pool has: .*train_k2",
        ),
        ({"eval": {"manifests": ["few_shot/vall"]}}, r"vall\.parquet: no such manifest"),
        (
            {"data": {"pool": "nowhere/pool"}},
            r"pool\.json: no such file, so this is not a finished pool",
        ),
        ({"data": {"verdicts": ["damaged"]}}, r"few_shot/train_k2: has no sample to read"),
        ({"text": {"template": "walk"}}, r"text\.template='walk': expected exactly one"),
        (
            {"method": {"name": "zero_shot"}},
            r"method\.name=zero_shot: trains nothing; score it with `bmpt eval",
        ),
        (
            {"method": {"exchange": "none"}, "text": {"template": "{}"}},
            r"overwrites the first 4 caption tokens",
        ),
    ],
)
def test_a_mistake_is_found_before_a_run_folder_is_made(
    config: MakeConfig, changes: dict[str, Any], sentence: str
) -> None:
    """Otherwise the corrected config is refused as another one's."""
    settings = config(**changes)
    with pytest.raises(BmptError, match=sentence) as caught:
        run(settings)
    assert "\n" not in str(caught.value)
    assert not folder_of(settings).exists()


def test_an_evaluation_in_the_folder_of_another_method_is_refused(config: MakeConfig) -> None:
    run(config(train={"epochs": 1}))
    with pytest.raises(
        ConfigError, match=r"config\.yaml: belongs to another config \(method\.name is 'bmpt' there"
    ):
        run_evaluation(
            config(method={"name": "zero_shot"}, train={"epochs": 1}), ALONE, checkpoint=None
        )


def test_classes_with_equal_texts_are_refused(config: MakeConfig) -> None:
    settings = config(text={"template": "very " * 80 + "{}"})  # the class name is cut off
    with pytest.raises(
        ConfigError, match=r"the classes 'Class00' and 'Class01' have the same text feature: tiny"
    ):
        run(settings)
    assert not folder_of(settings).exists()


def test_two_runs_at_once_in_one_folder_are_refused(config: MakeConfig) -> None:
    settings = config()
    with (
        lock_run_folder(settings),
        pytest.raises(ConfigError, match=r"another run is writing there"),
    ):
        run(settings)


@pytest.mark.parametrize(("name", "content"), [("results.json", "x"), ("metrics.jsonl", "{bad}\n")])
def test_a_damaged_file_of_an_earlier_start_does_not_stop_a_run(
    config: MakeConfig, name: str, content: str
) -> None:
    settings = config(train={"epochs": 1})
    run(settings)
    (folder_of(settings) / name).write_text(content)
    outcome = run(settings)
    assert outcome.results is not None


def test_a_state_of_something_else_is_refused(config: MakeConfig) -> None:
    settings = config(train={"epochs": 1})
    folder_of(settings).mkdir()
    save_state(folder_of(settings) / "state.pt", {"step": 1})
    with pytest.raises(FormatError, match=r"state\.pt: is not a state of this run .* --fresh"):
        run(settings)


def test_a_run_does_not_go_on_with_other_texts(
    config: MakeConfig, tmp_path: Path, toy_pool: Path
) -> None:
    classes = open_pool(toy_pool).card.classes
    file = tmp_path / "sentences.json"

    def write(what: str) -> None:
        file.write_text(
            json.dumps({name: [f"{what} {name}"] for name in classes}), encoding="utf-8"
        )

    write("a person doing")
    settings = config(text={"sentences": str(file)}, train={"epochs": 20})
    stop_early(settings)
    write("somebody at")
    with pytest.raises(
        FormatError, match=r"state\.pt: was written with another text\.sentences; put back"
    ):
        run(settings)
    write("a person doing")
    assert run(settings).results is not None


def test_a_run_does_not_go_on_with_other_base_weights(config: MakeConfig, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "base.safetensors")
    settings = config(model={"pretrained": str(clip)}, train={"epochs": 20})
    stop_early(settings)
    write_clip(clip, seed=1)
    with pytest.raises(
        FormatError, match=r"state\.pt: was written with another model\.pretrained; put back"
    ):
        run(settings)


def test_a_run_folder_of_an_earlier_version_is_refused_with_the_ways_out(
    config: MakeConfig, finished: RunConfig, tmp_path: Path
) -> None:
    shutil.copytree(folder_of(finished), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("method:\n", "method:\n  start_words: null\n"))
    with pytest.raises(
        ConfigError,
        match=r"config\.yaml: was written by an earlier version, or edited; give another run\.dir, "
        r"or --fresh to start over \(method\.start_words",
    ):
        run(config())
