"""Whole runs of a tiny model over a toy pool, in this process: what trains, what is saved, what
resumes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from bmpt.clip.normalize import normalize
from bmpt.clip.weights import hash_weights
from bmpt.config import RunConfig, load_config
from bmpt.engine.optim import lr_fraction
from bmpt.engine.train import Trainer, steps_of
from bmpt.methods import METHODS, build_method
from bmpt.methods.base import ClipInputs, Features, Method
from bmpt.methods.vifi_clip import VifiClip, VifiClipSettings
from bmpt.methods.zero_shot import ZeroShot, ZeroShotSettings
from bmpt.run import run_evaluation
from bmpt.settings import MethodTraits
from bmpt.task import open_task
from bmpt.texts.class_texts import class_sentences
from shards.errors import ConfigError, StorageError
from shards.loader import build_train_loader
from shards.reader import open_pool
from shards.sampling.clip_settings import ClipSettings
from shards.stream.batches import MicroBatch
from shards.stream.settings import StreamSettings
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import (
    VAL,
    assert_same_run,
    checkpoint_of,
    damage_a_sample,
    folder_of,
    results_of,
    run,
)
from tests.bmpt.tiny import ALONE, cosine_logits, load_tiny, losses_of, metrics_of
from tests.pools import make_pool

RESULT_KEYS = [
    *("format_version", "method", "dataset", "pool_id", "seed", "config_sha256", "commit", "dirty"),
    *("model", "checkpoint", "evaluations", "hm", "hm_of"),
]

EVALUATION_KEYS = [
    *(
        "manifest",
        "fingerprint",
        "classes",
        "clips",
        "crops",
        "frames",
        "expected",
        "scored",
        "failed",
        "missing",
    ),
    *("verdicts", "top1", "top5", "correct_top1", "predictions"),
]


def test_a_run_folder_has_the_files_of_the_format(finished: RunConfig) -> None:
    found = {
        str(path.relative_to(folder_of(finished)))
        for path in folder_of(finished).rglob("*")
        if path.is_file()
    }
    (events,) = folder_of(finished).glob("tensorboard/events.out.tfevents.*")
    predictions = {
        f"predictions/{name.replace('/', '.')}.parquet" for name in finished.eval.manifests
    }
    assert found == {
        "config.yaml",
        "prompts.safetensors",
        "state.pt",
        "metrics.jsonl",
        "results.json",
        f"tensorboard/{events.name}",
        *predictions,
    }


def test_results_have_exactly_the_stated_keys(finished: RunConfig) -> None:
    results = results_of(finished)
    assert list(results) == RESULT_KEYS
    assert [list(entry) for entry in results["evaluations"]] == [EVALUATION_KEYS] * 3
    assert list(results["model"]) == ["name", "weights_sha256"]
    assert list(results["checkpoint"]) == ["file", "sha256", "step", "selection"]


def test_results_name_the_data_the_weights_and_the_checkpoint(
    finished: RunConfig, clip: Path
) -> None:
    results, pool = results_of(finished), open_pool(finished.data.pool)
    assert results["pool_id"] == pool.card.pool_id
    assert results["model"] == {"name": "tiny", "weights_sha256": load_tiny(clip).weights_sha256}
    assert results["checkpoint"]["sha256"] == (
        hashlib.sha256((folder_of(finished) / "prompts.safetensors").read_bytes()).hexdigest()
    )
    assert results["checkpoint"]["step"] == 4
    for entry in results["evaluations"]:
        assert entry["fingerprint"] == pool.manifest(entry["manifest"]).info.fingerprint


def test_every_clip_is_counted_once_in_manifest_order(finished: RunConfig) -> None:
    pool = open_pool(finished.data.pool)
    for entry in results_of(finished)["evaluations"]:
        manifest = pool.manifest(entry["manifest"])
        table = pq.read_table(folder_of(finished) / entry["predictions"])
        assert table["key"].to_pylist() == manifest.table["key"].to_pylist()
        assert table["label"].to_pylist() == manifest.table["label"].to_pylist()
        assert entry["scored"] + entry["failed"] == len(manifest) == entry["expected"]
        assert entry["verdicts"] == {"ok": len(manifest)}


def test_percentages_follow_from_the_predictions(finished: RunConfig) -> None:
    for entry in results_of(finished)["evaluations"]:
        rows = pq.read_table(folder_of(finished) / entry["predictions"]).to_pylist()
        correct = sum(row["top5"][0] == row["label"] for row in rows)
        assert entry["correct_top1"] == correct
        assert entry["top1"] == round(100 * correct / len(rows), 6)
        assert entry["top5"] == round(
            100 * sum(row["label"] in row["top5"] for row in rows) / len(rows), 6
        )
        for row in rows:
            assert len(row["scores"]) == entry["classes"]
            assert row["scores"][row["top5"][0]] == max(row["scores"])


def test_hm_is_that_of_base_and_novel(finished: RunConfig, config: MakeConfig) -> None:
    results = results_of(finished)
    base, novel = (entry["top1"] for entry in results["evaluations"][:2])
    expected = 0.0 if min(base, novel) == 0 else 2 * base * novel / (base + novel)
    assert results["hm"] == pytest.approx(expected, abs=1e-5)
    assert results["hm_of"] == list(VAL)
    alone = config(method={"name": "zero_shot"}, eval={"manifests": [VAL[0]]})
    only_base = run_evaluation(alone, ALONE, checkpoint=None).results
    assert only_base is not None
    assert (only_base["hm"], only_base["hm_of"]) == (None, None)


def test_every_step_is_logged_once_with_its_rate_and_clips(finished: RunConfig) -> None:
    rows = metrics_of(folder_of(finished))
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert {row["valid_clips"] for row in rows} == {4}
    shares = [lr_fraction(step, num_steps=4, warmup_steps=0) for step in range(4)]
    assert [row["lr"] for row in rows] == pytest.approx(
        [finished.train.lr * share for share in shares]
    )


def test_the_run_folder_has_the_config_of_the_run(finished: RunConfig) -> None:
    assert load_config(folder_of(finished) / "config.yaml") == finished


def test_two_runs_in_two_folders_give_the_same_bytes(
    finished: RunConfig, config: MakeConfig
) -> None:
    again = config(run="elsewhere", eval={"manifests": [*VAL, "few_shot/val"]})
    run(again)
    predictions = [entry["predictions"] for entry in results_of(finished)["evaluations"]]
    for name in ("prompts.safetensors", "results.json", *predictions):
        ours, theirs = (folder_of(settings) / name for settings in (again, finished))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_under_tune_prompts_no_other_weight_changes(config: MakeConfig, clip: Path) -> None:
    settings = config()
    run(settings)
    backbone = load_tiny(clip)
    fresh = build_method(backbone, settings.method, num_frames=4, seed=settings.seed)
    trained = checkpoint_of(settings)
    assert trained.keys() == fresh.trained_groups().keys()
    moved = {
        name for name, value in trained.items() if not torch.equal(value, fresh.get_parameter(name))
    }
    assert {"vision_LPE", "text_LPE"} <= moved
    assert all(
        name in trained or not parameter.requires_grad
        for name, parameter in fresh.named_parameters()
    )


def test_training_steps_leave_the_frozen_weights_bit_by_bit(config: MakeConfig) -> None:
    settings = config()
    task = open_task(settings, ALONE, trains=True)
    method = task.method
    before = hash_weights(method.clip.state_dict())
    folder_of(settings).mkdir()
    trainer = Trainer(task, folder_of(settings))
    assert trainer.run()
    assert trainer.state.step == 4
    assert hash_weights(method.clip.state_dict()) == before
    in_optimizer = sum(
        p.numel() for group in trainer.state.optimizer.param_groups for p in group["params"]
    )
    prompts = 3 * 4 * 48 + 3 * 4 * 32
    exchange = 2 * ((48 * 8 + 8 + 8 * 32 + 32) + (32 * 8 + 8 + 8 * 48 + 48) + 2)
    assert (
        in_optimizer
        == sum(p.numel() for p in method.parameters() if p.requires_grad)
        == prompts + exchange
    )


@pytest.mark.parametrize(
    "method",
    [
        {"name": "bmpt", "exchange": "bidirectional"},
        {"name": "bmpt", "exchange": "none"},
        {"name": "vifi_clip", "tune": "all"},
    ],
)
def test_the_loss_goes_down(config: MakeConfig, method: dict[str, str]) -> None:
    template = "a video of a person who is doing {}."
    settings = config(
        method=method,
        text={"template": template},
        train={"epochs": 12, "lr": 1e-3, "lr_prompts": 3e-2},
        data={"crop": "whole", "flip": False},
    )
    run(settings)
    losses = [loss for _, loss in losses_of(folder_of(settings))]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_gives_the_same_losses_and_tensors(
    config: MakeConfig, accumulation: int
) -> None:
    whole = config(run="whole", train={"epochs": 3})
    parts = config(run="parts", train={"epochs": 3, "accumulation": accumulation})
    run(whole)
    run(parts)
    assert_same_run(whole, parts, tolerance=2e-4)


def test_loader_workers_do_not_change_a_run(config: MakeConfig) -> None:
    here = config(run="here", train={"epochs": 1})
    elsewhere = config(run="workers", train={"epochs": 1}, data={"num_workers": 1})
    run(here)
    run(elsewhere)
    assert_same_run(here, elsewhere, tolerance=0)


def test_another_seed_gives_another_run(config: MakeConfig) -> None:
    one, other = (
        config(run="one", train={"epochs": 1}),
        config(run="other", seed=1, train={"epochs": 1}),
    )
    run(one)
    run(other)
    assert losses_of(folder_of(one)) != losses_of(folder_of(other))


def test_a_manifest_that_cannot_be_scored_is_found_before_training(
    config: MakeConfig, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, samples_per_class=2)  # 2 shots for training leave nothing to validate on
    settings = config(data={"pool": str(pool)})
    with pytest.raises(ConfigError, match=r"few_shot/val: has no sample to read"):
        run(settings)
    assert not (folder_of(settings) / "metrics.jsonl").exists()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_does_not_wait_for_a_batch_of_the_next_step(
    toy_pool: Path, accumulation: int
) -> None:
    pool = open_pool(toy_pool)
    cut = ClipSettings(frames=2, size_px=32)
    loader = build_train_loader(
        pool,
        pool.manifest("few_shot/train_k2"),
        cut,
        StreamSettings(batch_size=2, accumulation=accumulation, seed=0),
    )
    asked: list[int] = []

    def noting() -> Iterator[MicroBatch]:
        for batch in loader:
            asked.append(batch.step)
            yield batch

    seen = [
        ([batch.step for batch in batches], asked[-1])
        for batches, _ in steps_of(noting(), accumulation)
    ]
    assert seen == [([step] * accumulation, step) for step in range(4)]


def test_a_damaged_sample_leaves_an_empty_place_in_training(
    config: MakeConfig, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, samples_per_class=5)
    damage_a_sample(pool, "few_shot/train_k2", 3)
    settings = config(data={"pool": str(pool)})
    run(settings)
    valid = [row["valid_clips"] for row in metrics_of(folder_of(settings))]
    assert sorted(valid[:2]) == sorted(valid[2:]) == [3, 4]
    assert all(0 < loss < 50 for _, loss in losses_of(folder_of(settings)))


def test_the_loss_is_the_mean_over_the_clips_that_could_be_read(
    config: MakeConfig, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, samples_per_class=5)
    damage_a_sample(pool, "few_shot/train_k2", 3)
    settings = config(data={"pool": str(pool), "batch_size": 8}, train={"epochs": 1})
    run(settings)
    opened, backbone = open_pool(pool), load_tiny(Path(settings.model.pretrained))
    manifest = opened.manifest("few_shot/train_k2")
    cut = ClipSettings(frames=4, size_px=32)
    batch = next(
        iter(build_train_loader(opened, manifest, cut, StreamSettings(batch_size=8, seed=0)))
    )
    method = build_method(backbone, settings.method, num_frames=4, seed=0)
    good = batch.clips.weights_B > 0
    frames = normalize(batch.clips.frames_BVTCHW[good], backbone.image_mean, backbone.image_std)
    with torch.no_grad():
        texts = class_sentences(manifest.info.classes, settings.text).at(0)
        logits = cosine_logits(method, frames, method.prepare_texts(texts))
    assert int(good.sum()) == 7
    expected = F.cross_entropy(logits, batch.clips.labels_B[good]).item()
    assert losses_of(folder_of(settings))[0][1] == pytest.approx(expected, rel=1e-4)


def test_a_damaged_sample_in_training_gives_the_same_run_under_accumulation(
    config: MakeConfig, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, samples_per_class=5)
    damage_a_sample(pool, "few_shot/train_k2", 3)
    whole, parts = (
        config(run="whole", data={"pool": str(pool)}),
        config(run="parts", data={"pool": str(pool)}, train={"accumulation": 4}),
    )
    run(whole)
    run(parts)
    assert_same_run(whole, parts, tolerance=2e-4)


def test_a_damaged_sample_is_counted_as_failed_and_named_in_the_predictions(
    config: MakeConfig, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, samples_per_class=5)
    zero_shot = {"name": "zero_shot", "space_time_blocks": [1, 3]}
    whole = config(run="whole", data={"pool": str(pool)}, method=zero_shot)
    run_evaluation(whole, ALONE, checkpoint=None)
    key = damage_a_sample(pool, "few_shot/val", 4)
    damaged = config(run="damaged", data={"pool": str(pool)}, method=zero_shot)
    results = run_evaluation(damaged, ALONE, checkpoint=None).results
    assert results is not None
    (entry,) = results["evaluations"]
    assert (entry["expected"], entry["scored"], entry["failed"]) == (12, 11, 1)
    file = entry["predictions"]
    before, after = (
        pq.read_table(folder_of(settings) / file).to_pylist() for settings in (whole, damaged)
    )
    assert [row["key"] for row in after if row["failed"] is not None] == [key]
    assert "wrong CRC" in after[4]["failed"]
    correct = sum(row["top5"][0] == row["label"] for index, row in enumerate(before) if index != 4)
    assert entry["correct_top1"] == correct
    assert entry["top1"] == round(100 * correct / 11, 6)
    same = [index for index in range(12) if before[index]["scores"] == after[index]["scores"]]
    assert same == [index for index in range(12) if index != 4]


def test_a_manifest_without_a_readable_sample_stops_the_run(
    config: MakeConfig, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, classes=2, samples_per_class=3)
    for index in range(2):
        damage_a_sample(pool, "few_shot/val", index)
    settings = config(data={"pool": str(pool)}, method={"name": "zero_shot"})
    with pytest.raises(
        StorageError, match=r"2 samples in a row could not be read; the last: .*wrong CRC"
    ):
        run_evaluation(settings, ALONE, checkpoint=None)


def test_a_run_does_not_change_the_pool(config: MakeConfig, toy_pool: Path) -> None:
    before = {path: path.read_bytes() for path in toy_pool.rglob("*") if path.is_file()}
    run(config(train={"epochs": 1}))
    assert {path: path.read_bytes() for path in toy_pool.rglob("*") if path.is_file()} == before


def test_a_pool_whose_shards_are_gone_stops_with_a_sentence(
    config: MakeConfig, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, classes=8, samples_per_class=7)  # 40 samples to score: more than 32 in a row
    for shard in (pool / "shards").glob("*.tar"):
        shard.unlink()
    settings = config(data={"pool": str(pool)}, method={"name": "zero_shot"})
    with pytest.raises(
        StorageError, match=r"32 samples in a row could not be read; the last: .*no such file"
    ):
        run_evaluation(settings, ALONE, checkpoint=None)


def test_eval_with_the_checkpoint_gives_the_numbers_of_train(
    finished: RunConfig, config: MakeConfig
) -> None:
    settings = config(run="eval", eval={"manifests": [*VAL, "few_shot/val"]})
    outcome = run_evaluation(
        settings, ALONE, checkpoint=folder_of(finished) / "prompts.safetensors"
    )
    assert outcome.results == results_of(finished)
    for entry in results_of(finished)["evaluations"]:
        ours, theirs = (folder_of(s) / entry["predictions"] for s in (settings, finished))
        assert ours.read_bytes() == theirs.read_bytes()


def test_scoring_uses_the_trained_prompts(finished: RunConfig, config: MakeConfig) -> None:
    settings = config(
        run="plain", method={"name": "zero_shot"}, eval={"manifests": ["few_shot/val"]}
    )
    run_evaluation(settings, ALONE, checkpoint=None)
    file = "predictions/few_shot.val.parquet"
    ours, theirs = (pq.read_table(folder_of(s) / file)["scores"] for s in (settings, finished))
    assert ours.to_pylist() != theirs.to_pylist()


def test_zero_shot_is_scored_without_a_checkpoint(config: MakeConfig) -> None:
    settings = config(method={"name": "zero_shot", "space_time_blocks": None})
    results = run_evaluation(settings, ALONE, checkpoint=None).results
    assert results is not None
    assert (results["method"], results["checkpoint"]) == ("zero_shot", None)
    assert results["evaluations"][0]["scored"] == 12


def test_a_method_that_trains_is_not_scored_without_a_checkpoint(config: MakeConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"method\.name=bmpt: trains, so scoring it needs --checkpoint FILE"
    ):
        run_evaluation(config(), ALONE, checkpoint=None)


@pytest.mark.parametrize("block_size", [1, 12, 100])
def test_the_size_of_evaluation_blocks_changes_scores_only_by_rounding(
    finished: RunConfig, config: MakeConfig, block_size: int
) -> None:
    settings = config(run=f"b{block_size}", eval={"batch_size": block_size})
    run_evaluation(settings, ALONE, checkpoint=folder_of(finished) / "prompts.safetensors")
    file = "predictions/few_shot.val.parquet"
    ours, theirs = (pq.read_table(folder_of(s) / file).to_pylist() for s in (settings, finished))
    for row, other in zip(ours, theirs, strict=True):
        assert row["key"] == other["key"]
        assert row["scores"] == pytest.approx(other["scores"], abs=1e-3)


def test_bf16_runs_on_the_cpu(config: MakeConfig) -> None:
    settings = config(train={"precision": "bf16", "epochs": 1})
    results = run(settings).results
    assert results is not None
    assert results["evaluations"][0]["scored"] == 12
    assert {value.dtype for value in checkpoint_of(settings).values()} == {torch.float32}
    exact = config(run="exact", train={"epochs": 1})
    run(exact)
    for (_, rough), (_, precise) in zip(
        losses_of(folder_of(settings)), losses_of(folder_of(exact)), strict=True
    ):
        assert rough == pytest.approx(precise, rel=0.1)


def test_fp16_without_a_gpu_is_refused_by_eval_too(config: MakeConfig) -> None:
    settings = config(method={"name": "zero_shot"}, train={"precision": "fp16"})
    with pytest.raises(ConfigError, match=r"train\.precision=fp16: needs a GPU"):
        run_evaluation(settings, ALONE, checkpoint=None)


def test_an_odd_tail_of_the_manifest_is_dropped_each_epoch(config: MakeConfig) -> None:
    settings = config(data={"batch_size": 3})
    run(settings)
    assert [(row["step"], row["epoch"]) for row in metrics_of(folder_of(settings))] == [
        (1, 0),
        (2, 0),
        (3, 1),
        (4, 1),
    ]


def test_warm_up_counts_in_epochs(config: MakeConfig) -> None:
    settings = config(train={"epochs": 3, "warmup_epochs": 1.5})
    run(settings)
    rates = [row["lr"] for row in metrics_of(folder_of(settings))]
    assert rates.index(max(rates)) == 2
    assert rates[0] == pytest.approx(max(rates) / 3)


def test_a_run_that_diverges_ends_with_the_step_in_the_log_and_the_state_of_before(
    config: MakeConfig,
) -> None:
    settings = config(train={"epochs": 3, "lr": 1e30})
    settings = settings.model_copy(
        update={"run": settings.run.model_copy(update={"save_every_steps": 1})}
    )
    with pytest.raises(
        ConfigError,
        match=r"loss of step 2 is nan, at train\.precision=fp32; lower train\.lr=1e\+30",
    ):
        run(settings)
    first, second = metrics_of(folder_of(settings))
    assert (first["step"], second["step"], second["loss"]) == (1, 2, None)
    assert first["loss"] > 0
    assert "NaN" not in (folder_of(settings) / "metrics.jsonl").read_text()
    assert torch.load(folder_of(settings) / "state.pt", weights_only=True)["step"] == 1
    assert not (folder_of(settings) / "results.json").exists()


class Large(Method):
    """For whose clips no GPU has the memory."""

    def encode_clips(self, inputs: ClipInputs) -> Features:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class LargeVifiClip(Large, VifiClip):
    pass


class ComparingSettings(VifiClipSettings):
    @property
    def traits(self) -> MethodTraits:
        return MethodTraits(compares_clips=True)


class LargeZeroShot(Large, ZeroShot):
    pass


@pytest.mark.parametrize(
    ("model", "accumulation", "said"),
    [
        (VifiClipSettings, 1, "4 clips at once; raise train.accumulation, it is 1"),
        (VifiClipSettings, 2, "2 clips at once; raise train.accumulation, it is 2"),
        (VifiClipSettings, 4, "1 clips at once; lower data.frames"),
        (
            ComparingSettings,
            1,
            "4 clips at once; vifi_clip compares them: lower data.batch_size or start more ranks",
        ),
    ],
)
def test_clips_for_which_the_gpu_has_no_memory_are_counted_with_the_cure(
    config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    model: type[VifiClipSettings],
    accumulation: int,
    said: str,
) -> None:
    monkeypatch.setitem(METHODS, "vifi_clip", (LargeVifiClip, model))
    settings = config(method={"name": "vifi_clip"}, train={"accumulation": accumulation})
    with pytest.raises(ConfigError, match=f"^the GPU has no memory for {said}$"):
        run(settings)


def test_clips_to_score_for_which_the_gpu_has_no_memory_are_counted_with_the_cure(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "zero_shot", (LargeZeroShot, ZeroShotSettings))
    with pytest.raises(
        ConfigError, match=r"^the GPU has no memory for 5 clips at once; lower eval\.batch_size"
    ):
        run_evaluation(config(method={"name": "zero_shot"}), ALONE, checkpoint=None)
