"""From the real sample clips and the published lists to an accuracy, with the real parts and no
shortcut."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from bmpt.config import RunConfig
from bmpt.run import run_training
from bmpt.runtime.distributed import start_world
from preprocess.coordinator.pipeline import run_build
from preprocess.settings import make_build_settings
from shards.format.jpeg import decode
from shards.reader import Pool, open_pool
from tests.shared_data import shared_data

# clips in each sample folder
CLIPS = {"ucf101": 49, "hmdb51": 7, "kinetics400": 10, "ssv2": 5}
ANNOTATIONS = {"kinetics400": "kinetics"}


def build(dataset: str, out: Path) -> Pool:
    """Build the pool of one sample folder with ViFi-CLIP's lists."""
    shared = shared_data()
    options: dict[str, Any] = {
        "dataset": dataset,
        "videos": shared / "clips" / dataset,
        "annotations": shared / "splits" / "official" / ANNOTATIONS.get(dataset, dataset),
        "splits": [shared / "splits" / "vificlip"],
        "out": str(out),
        "workers": 2,
    }
    run_build(make_build_settings(options, ["labels=official"] if dataset == "hmdb51" else []))
    return open_pool(out)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pool]:
    """The four pools, built once."""
    folder = tmp_path_factory.mktemp("pools")
    return {dataset: build(dataset, folder / dataset) for dataset in CLIPS}


def test_every_clip_is_a_row_and_every_clean_clip_is_stored(pools: dict[str, Pool]) -> None:
    for dataset, count in CLIPS.items():
        samples = pools[dataset].samples()
        verdicts = [v for v in samples["verdict"].to_pylist() if v != "missing"]
        assert verdicts == ["ok"] * count, dataset


def test_the_lists_of_vifi_clip_find_their_clips(pools: dict[str, Pool]) -> None:
    found = {
        "ucf101": {
            "few_shot/train_k2": (202, 12),
            "few_shot/train_k16": (1616, 7),
            "few_shot/val": (3783, 26),
        },
        "hmdb51": {
            "few_shot/val": (1530, 1),
            "zero_shot/split2": (1530, 3),
            "zero_shot/split3": (1530, 2),
        },
        "kinetics400": {"fully_supervised/val": (19877, 7), "base_to_novel/val_base": (9944, 5)},
        "ssv2": {"few_shot/val": (24777, 1), "base_to_novel/val_novel": (7215, 1)},
    }
    for dataset, manifests in found.items():
        for name, counts in manifests.items():
            info = pools[dataset].manifest(name).info
            assert (info.expected, info.found) == counts, f"{dataset} {name}"
            assert info.missing == info.expected - info.found


def test_stock_webdataset_and_tarfile_read_every_sample(pools: dict[str, Pool]) -> None:
    import webdataset as wds

    for dataset, count in CLIPS.items():
        pool = pools[dataset]
        tars = [str(pool.store.root / shard.name) for shard in pool.card.shards]
        samples = list(wds.WebDataset(tars, shardshuffle=False))
        assert len(samples) == count
        rows = {row["key"]: row for row in pool.samples().to_pylist()}
        for sample in samples:
            row = rows[sample["__key__"]]
            frames = sorted(name for name in sample if name.endswith("jpg"))
            assert len(frames) == len(row["source_index"])
            assert json.loads(sample["json"])["class_name"] == row["class_name"]
            image = decode(sample[frames[0]], where=row["key"])
            assert image.shape == (row["stored_height"], row["stored_width"], 3)
        num_members = 0
        for tar in tars:
            with tarfile.open(tar) as opened:
                num_members += len(opened.getnames())
        assert num_members == sum(
            len(row["source_index"]) + 1 for row in rows.values() if row["source_index"]
        )


def test_bmpt_trains_on_the_two_shot_clips_and_counts_every_clip_once(
    pools: dict[str, Pool], tmp_path: Path
) -> None:
    pool = pools["ucf101"]
    config = RunConfig.model_validate(
        {
            "run": {"dir": str(tmp_path / "run"), "threads": 2},
            "data": {
                "pool": str(pool.store.root),
                "train": "few_shot/train_k2",
                "val": "few_shot/val",
                "frames": 4,
                "batch_size": 6,
            },
            "model": {
                "name": "motion-clip-random",
                "pretrained": str(small_random_clip(tmp_path / "clip.safetensors")),
            },
            "method": {
                "vision_depth": 4,
                "text_depth": 3,
                "vision_tokens": 4,
                "text_tokens": 4,
                "exchange_width": 32,
                "space_time_blocks": [1, 3],
            },
            "train": {"epochs": 2, "lr": 0.01},
            "eval": {"batch_size": 8},
        }
    )
    outcome = run_training(config, start_world(threads=2))
    assert outcome.results is not None
    (entry,) = outcome.results["evaluations"]
    assert (entry["expected"], entry["scored"], entry["failed"], entry["missing"]) == (
        3783,
        26,
        0,
        3757,
    )
    manifest = pool.manifest("few_shot/val")
    predictions = pq.read_table(outcome.folder / entry["predictions"])
    assert predictions["key"].to_pylist() == manifest.table["key"].to_pylist()
    assert len(set(predictions["key"].to_pylist())) == 26
    correct = [
        top[0] == label
        for top, label in zip(*(predictions[c].to_pylist() for c in ("top5", "label")), strict=True)
    ]
    assert entry["correct_top1"] == sum(correct)
    losses = [
        json.loads(line)["loss"]
        for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 4  # 12 clips, 6 a step, 2 epochs
    assert all(0 < loss < 20 for loss in losses)


def small_random_clip(path: Path) -> Path:
    """Write a CLIP with random weights in the shape of the demo's."""
    from safetensors.torch import save_file

    from bmpt.clip.architecture import build_clip
    from bmpt.clip.weights import SPEC_METADATA_KEY

    spec = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 16,
            "width": 64,
            "layers": 4,
            "head_width": 32,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 48,
            "heads": 2,
            "layers": 3,
        },
    }
    torch.manual_seed(0)
    state = {key: value.contiguous() for key, value in build_clip(spec).state_dict().items()}
    save_file(state, path, metadata={SPEC_METADATA_KEY: json.dumps(spec)})
    return path
