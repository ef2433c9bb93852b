"""The stages of a stream, its saved state, and the random numbers of a sample."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from shards.errors import FormatError
from shards.fetching.frames import ReadSettings, make_reader
from shards.reader import Pool
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.orders import Order
from shards.sampling.plan import ONE_RANK, MicroPlan, WorkerSlice, eval_plan
from shards.sampling.sample_rng import sample_rng
from shards.stream.batch_buffers import BatchBuffers
from shards.stream.pipeline import PlanStage, StreamState, make_pipeline

SHARDS = Path(__file__).parents[3] / "shards"


def test_no_module_of_shards_imports_torch_or_webdataset() -> None:
    modules = ", ".join(
        f"shards.{path.stem}" for path in sorted(SHARDS.glob("*.py")) if path.stem != "__init__"
    )
    code = f"import sys, {modules}; print(sorted({{'torch', 'webdataset'}} & set(sys.modules)))"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SHARDS.parent
    ).stdout
    assert printed.strip() == "[]"


def test_a_state_is_small_and_survives_json(pool: Pool) -> None:
    state = StreamState(
        fingerprint=pool.manifest("few_shot/val").info.fingerprint, seed=2**63, epoch=10**6
    )
    text = state.model_dump_json()
    assert len(text) < 1000
    assert StreamState.model_validate_json(text) == state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, this code reads 1"),
        ({"fingerprint": "0" * 64}, "fingerprint 000000000000, but few_shot/val has "),
        ({"order": "grouped/4"}, "was made with the order grouped/4, this run has global"),
        ({"seed": 4}, "was made with seed 4, this run has seed 3; set seed=4"),
    ],
)
def test_a_state_of_another_stream_is_refused_by_name(
    pool: Pool, change: dict[str, object], message: str
) -> None:
    manifest = pool.manifest("few_shot/val")
    state = StreamState(fingerprint=manifest.info.fingerprint, seed=3)
    state.check(manifest, Order(len(manifest), seed=3))
    with pytest.raises(FormatError, match=message):
        state.model_copy(update=change).check(manifest, Order(len(manifest), seed=3))


def test_a_state_with_a_negative_position_is_refused() -> None:
    with pytest.raises(ValidationError, match="position"):
        StreamState(fingerprint="", seed=0, position=-1)


def test_random_numbers_of_a_sample_depend_on_seed_epoch_and_key_only() -> None:
    draws = {
        float(sample_rng(seed, epoch, key).random())
        for seed in (0, 1)
        for epoch in (0, 1)
        for key in ("a", "b", "1/a")
    }
    assert len(draws) == 12
    assert sample_rng(5, 6, "a").random() == sample_rng(5, 6, "a").random()


def test_the_plan_stage_outside_a_loader_process_makes_all_items(pool: Pool) -> None:
    seen: list[WorkerSlice] = []

    def plan(*, worker: WorkerSlice) -> list[MicroPlan]:
        seen.append(worker)
        return list(eval_plan(4, block_size=3, worker=worker))

    stage = PlanStage(
        pool.manifest("few_shot/val"), ClipSettings(frames=2, size_px=16), plan, ONE_RANK, None
    )
    assert [item.index for item in stage()] == [0, 1, 2, 3]
    assert seen == [WorkerSlice(rank=0, world_size=1, worker=0, num_workers=1)]


def test_the_stages_form_a_webdataset_pipeline(pool: Pool) -> None:
    from webdataset import DataPipeline

    def plan(*, worker: WorkerSlice) -> list[MicroPlan]:
        return list(eval_plan(4, block_size=3, worker=worker))

    stage = PlanStage(
        pool.manifest("few_shot/val"), ClipSettings(frames=2, size_px=16), plan, ONE_RANK, None
    )
    buffers = BatchBuffers(producers=1, slots=2, batch_bytes=3 * stage.clip.clip_bytes)
    pipeline = make_pipeline(
        stage, make_reader(pool.store, stage.manifest, ReadSettings()), buffers, in_flight=0
    )
    assert isinstance(pipeline, DataPipeline)
    batches = [packed.unpack(stage.clip, buffers) for packed in pipeline]
    assert [batch.clips.positions_B.tolist() for batch in batches] == [[0, 1, 2], [3]]
