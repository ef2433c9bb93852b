"""Every clip is scored once at any number of GPUs, where usual samplers drop or repeat some; and no
NaN is ranked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import BatchSampler, DistributedSampler, SubsetRandomSampler

from bmpt.config import RunConfig
from bmpt.run import run_evaluation
from shards.errors import ConfigError
from shards.reader import open_pool
from shards.sampling.plan import WorkerSlice, eval_plan
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import damage_a_sample, folder_of
from tests.bmpt.tiny import ALONE
from tests.pools import make_pool
from tests.shared_data import shared_data

GPUS = 8


def scored_by_dropping(num_clips: int, batch_size: int) -> Iterator[int]:
    """ViFi-CLIP and BDC-CLIP: rank r takes every W-th clip in random order, and drops what does not
    fill a batch."""
    for rank in range(GPUS):
        sampler = SubsetRandomSampler(range(rank, num_clips, GPUS))
        for batch in BatchSampler(sampler, batch_size, drop_last=True):
            yield from batch


def scored_by_padding(num_clips: int) -> Iterator[int]:
    """BIKE: torch's DistributedSampler, which repeats clips until all ranks have as many."""
    for rank in range(GPUS):
        yield from DistributedSampler(range(num_clips), GPUS, rank, shuffle=False)


def scored_by_us(num_clips: int, block_size: int, num_workers: int) -> Iterator[int]:
    for rank in range(GPUS):
        for worker in range(num_workers):
            part = WorkerSlice(rank, GPUS, worker, num_workers)
            for plan in eval_plan(num_clips, block_size=block_size, worker=part):
                yield from plan.rows.tolist()


@pytest.fixture(scope="module")
def hmdb_clips() -> int:
    """The length of the published test list of HMDB-51, split 1."""
    lists = shared_data() / "splits" / "vificlip" / "datasets_splits" / "hmdb_splits"
    return len((lists / "val1.txt").read_text(encoding="utf-8").splitlines())


def test_the_seed_systems_drop_or_repeat_clips_of_hmdb_at_8_gpus(hmdb_clips: int) -> None:
    assert hmdb_clips == 1530
    dropped = hmdb_clips - len(set(scored_by_dropping(hmdb_clips, batch_size=16)))  # BDC-CLIP's
    assert (dropped, round(100 * dropped / hmdb_clips, 1)) == (90, 5.9)
    assert hmdb_clips - len(set(scored_by_dropping(hmdb_clips, batch_size=2))) == 6  # ViFi-CLIP's
    padded = Counter(scored_by_padding(hmdb_clips))
    assert padded.total() - hmdb_clips == 6
    assert sum(count > 1 for count in padded.values()) == 6


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("block_size", [1, 2, 16, 64, 200, 2000])
def test_we_score_every_clip_of_hmdb_once_at_8_gpus(
    hmdb_clips: int, block_size: int, num_workers: int
) -> None:
    assert Counter(scored_by_us(hmdb_clips, block_size, num_workers)) == Counter(range(hmdb_clips))


def test_scores_that_are_not_finite_are_ranked_as_no_class(
    finished: RunConfig, config: MakeConfig, tmp_path: Path
) -> None:
    make_pool(tmp_path / "pool", samples_per_class=5)
    damage_a_sample(
        tmp_path / "pool", "few_shot/val", 0
    )  # an empty place is no sample whose scores are wrong
    whole, broken = folder_of(finished) / "prompts.safetensors", tmp_path / "prompts.safetensors"
    with safe_open(whole, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(whole)
    tensors["vision_LPE"][0, 0, 0] = float("nan")
    save_file(tensors, broken, metadata)
    settings = config(data={"pool": str(tmp_path / "pool")})
    key = open_pool(tmp_path / "pool").manifest("few_shot/val").row(1)["key"]
    with pytest.raises(
        ConfigError,
        match=rf"^few_shot/val: the scores of {key} are not finite \(11 of 12 samples\)",
    ):
        run_evaluation(settings, ALONE, checkpoint=broken)
    assert not list(folder_of(settings).rglob("*.parquet"))
    assert not (folder_of(settings) / "results.json").exists()
