"""Every method through the whole of a run: trained, stopped and taken up, scored, exported, on one
rank and on two."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bmpt.checkpoints.export import load_model
from bmpt.cli.app import app
from bmpt.clip.normalize import normalize
from bmpt.config import RunConfig, load_config
from bmpt.methods.base import Method
from bmpt.offline.attributes import read_attributes
from bmpt.run import run_evaluation
from bmpt.texts.class_texts import class_sentences
from shards.cli import run_app
from shards.loader import build_eval_loader
from shards.reader import open_pool
from shards.sampling.clip_settings import ClipSettings
from shards.stream.settings import BlockSettings
from tests.bmpt.checkpoints import published_files
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.methods.method_ranks import stop_after_a_step
from tests.bmpt.runs import assert_same_run, folder_of, results_of, run, torchrun
from tests.bmpt.tiny import (
    ALONE,
    JOINT_WIDTH,
    clip_inputs,
    load_tiny,
    losses_of,
    make_config,
    write_config,
)

Runs = dict[str, RunConfig]
Sections = dict[str, Any]

TRAIN, VAL = "few_shot/train_k2", "few_shot/val"
PREDICTIONS = "predictions/few_shot.val.parquet"


@dataclass(frozen=True)
class Kind:
    """A method as a config names it; texts: keys of `text` that it is given; depends_on_ranks: its
    losses do"""

    method: dict[str, Any]
    texts: tuple[str, ...] = ()
    wise_ft: float | None = None
    depends_on_ranks: bool = False


BDC: dict[str, Any] = {"name": "bdc_clip", "tune": "all", "reduced_width": 4}
BIKE: dict[str, Any] = {"name": "bike", "tune": "image", "temporal_layers": 1}
VIFI: dict[str, Any] = {"name": "vifi_clip", "space_time_blocks": None}
ALL_OF_BMPT = ("sentences", "negatives", "knowledge")
KINDS = {
    "bdc": Kind(BDC, ("sentences",), wise_ft=0.5),
    "bdc_dropout": Kind({**BDC, "dropout": 0.5}, ("sentences",), depends_on_ranks=True),
    "bike": Kind(BIKE),
    "bike_all": Kind({**BIKE, "tune": "all", "dual_softmax": True}),
    "bike_mean": Kind({**BIKE, "temporal_layers": 0, "interaction": "DP"}),
    "bike_attributes": Kind({**BIKE, "attributes": True}, ("attributes",)),
    "vifi_prompts": Kind({**VIFI, "tune": "prompts"}, ("sentences",)),
    "vifi_both": Kind({**VIFI, "tune": "both"}, wise_ft=0.5),
    "vifi_image": Kind({**VIFI, "tune": "image"}),
    "vifi_text": Kind({**VIFI, "tune": "text"}),
    "bmpt": Kind({}, ALL_OF_BMPT),
    "bmpt_none": Kind({"exchange": "none", "tune": "all"}, ALL_OF_BMPT),
    "bmpt_batch_gated": Kind({"exchange": "batch_gated"}, ALL_OF_BMPT, depends_on_ranks=True),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def command(*words: str) -> None:
    assert run_app(app, words, prog_name="bmpt") == 0


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, clip: Path, toy_pool: Path) -> dict[str, Any]:
    """Every file that `text` can name, for the toy pool, made by the commands that make them."""
    folder = tmp_path_factory.mktemp("texts")
    classes = open_pool(toy_pool).card.classes
    sentences = {
        name: [f"a person shows colour {number}", f"colour {number} moves like a wave"]
        for number, name in enumerate(classes)
    }
    (folder / "sentences.json").write_text(json.dumps(sentences), encoding="utf-8")
    lines = [
        f"{name} -> {other}\n"
        for name, other in zip(classes, ("sit", "stand", "lie", "fall"), strict=True)
    ]
    (folder / "negatives.txt").write_text("".join(lines), encoding="utf-8")
    rng = np.random.default_rng(0)
    for key in open_pool(toy_pool).manifest(TRAIN).table["key"].to_pylist():
        feature = rng.standard_normal((1, JOINT_WIDTH)).astype(np.float32)
        np.save(folder / f"{key.rpartition('/')[2]}_feature.npy", feature / np.linalg.norm(feature))
    knowledge = folder / "knowledge.parquet"
    command("knowledge", str(toy_pool), TRAIN, "--import", str(folder), "--out", str(knowledge))
    (folder / "lexicon.txt").write_text(
        "archery\nbowling\nfencing\njuggling\ntyping\nyoga\n", encoding="utf-8"
    )
    attributes = [folder / f"attributes.{number}.parquet" for number in range(2)]
    of_clip = (
        "--lexicon",
        str(folder / "lexicon.txt"),
        "--clip-model",
        "tiny",
        "--pretrained",
        str(clip),
    )
    for manifest, out in zip((TRAIN, VAL), attributes, strict=True):
        command("attributes", str(toy_pool), manifest, *of_clip, "--out", str(out))
    return {
        "sentences": str(folder / "sentences.json"),
        "negatives": str(folder / "negatives.txt"),
        "knowledge": str(knowledge),
        "attributes": [str(file) for file in attributes],
    }


def sections_of(name: str, texts: dict[str, Any], **train: Any) -> dict[str, Any]:
    kind = KINDS[name]
    return {
        "method": kind.method,
        "text": {key: texts[key] for key in kind.texts},
        "eval": {"wise_ft": kind.wise_ft},
        "train": train,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def alone(folder: Path, clip: Path, toy_pool: Path, texts: dict[str, Any]) -> Runs:
    """A run of each kind in this process."""
    torch.set_num_threads(1)
    configs = {
        name: make_config(folder, clip, toy_pool, run=name, **sections_of(name, texts))
        for name in KINDS
    }
    for config in configs.values():
        run(config)
    return configs


@pytest.fixture(scope="module")
def two_ranks(
    folder: Path, clip: Path, toy_pool: Path, texts: dict[str, Any], alone: Runs
) -> dict[str, Runs]:
    """By what was done on two ranks: `whole` runs, others that `went_on` after a stop, `bf16`,
    `scored` of `alone`."""
    made: dict[str, Runs] = {what: {} for what in ("whole", "went_on", "bf16", "scored")}
    jobs: list[tuple[str, str]] = []
    for what, runs in made.items():
        for name in KINDS:
            precision = {"precision": "bf16"} if what == "bf16" else {}
            path = write_config(
                folder,
                clip,
                toy_pool,
                run=f"{name}.{what}",
                **sections_of(name, texts, **precision),
            )
            runs[name] = load_config(path)
            checkpoint = folder_of(alone[name]) / "prompts.safetensors"
            jobs += [(str(path), "stop")] if what == "went_on" else []
            jobs += [(str(path), str(checkpoint) if what == "scored" else "train")]
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    # some fifty runs
    done = torchrun(
        2, str(folder / "jobs.json"), module="tests.bmpt.methods.method_ranks", timeout_seconds=1200
    )
    assert done.returncode == 0, done.stderr
    return made


def numbers_of(settings: RunConfig) -> dict[str, Any]:
    """results.json without the state of the checkout, in which someone may be working."""
    return {
        key: value for key, value in results_of(settings).items() if key not in ("commit", "dirty")
    }


def predictions_of(settings: RunConfig) -> bytes:
    return (folder_of(settings) / PREDICTIONS).read_bytes()


def assert_finished(settings: RunConfig) -> None:
    """Four steps of finite losses, and all 12 clips scored."""
    losses = losses_of(folder_of(settings))
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert all(math.isfinite(loss) and loss > 0 for _, loss in losses)
    (entry,) = results_of(settings)["evaluations"]
    assert (entry["manifest"], entry["scored"], entry["failed"]) == (VAL, 12, 0)
    scores = np.array(pq.read_table(folder_of(settings) / PREDICTIONS)["scores"].to_pylist())
    assert scores.shape == (12, 4)
    assert np.isfinite(scores).all()


@every_kind
def test_two_ranks_train_as_one_does(alone: Runs, two_ranks: dict[str, Runs], name: str) -> None:
    here, there = alone[name], two_ranks["whole"][name]
    assert_finished(here)
    assert_finished(there)
    of_an_epoch = [[loss for _, loss in losses_of(folder_of(each))[:2]] for each in (here, there)]
    is_same = of_an_epoch[1] == pytest.approx(of_an_epoch[0], rel=1e-4)
    assert is_same is not KINDS[name].depends_on_ranks


@every_kind
def test_two_ranks_that_were_stopped_go_on_to_the_unbroken_end(
    two_ranks: dict[str, Runs], name: str
) -> None:
    assert_same_run(two_ranks["went_on"][name], two_ranks["whole"][name], tolerance=0)
    assert predictions_of(two_ranks["went_on"][name]) == predictions_of(two_ranks["whole"][name])


@every_kind
def test_a_stopped_run_goes_on_to_the_unbroken_end(
    config: MakeConfig, texts: dict[str, Any], alone: Runs, name: str
) -> None:
    settings = config(**sections_of(name, texts))
    stop_after_a_step(settings, ALONE)
    run(settings)
    assert_same_run(settings, alone[name], tolerance=0)
    assert numbers_of(settings) == numbers_of(alone[name])


def test_dropout_is_what_a_resumed_run_had_to_repeat(alone: Runs) -> None:
    first, second = (losses_of(folder_of(alone[name]))[0][1] for name in ("bdc", "bdc_dropout"))
    assert first != pytest.approx(second, rel=1e-4)


@every_kind
def test_bf16_trains_and_scores_every_method(two_ranks: dict[str, Runs], name: str) -> None:
    assert_finished(two_ranks["bf16"][name])
    rough, exact = (losses_of(folder_of(two_ranks[what][name]))[0][1] for what in ("bf16", "whole"))
    assert rough == pytest.approx(exact, rel=0.1)


@every_kind
def test_eval_gives_the_results_of_train_on_one_rank_and_on_two(
    alone: Runs,
    two_ranks: dict[str, Runs],
    tmp_path: Path,
    clip: Path,
    toy_pool: Path,
    texts: dict[str, Any],
    name: str,
) -> None:
    path = write_config(tmp_path, clip, toy_pool, run="again", **sections_of(name, texts))
    command("eval", str(path), "--checkpoint", str(folder_of(alone[name]) / "prompts.safetensors"))
    for settings in (load_config(path), two_ranks["scored"][name]):
        assert numbers_of(settings) == numbers_of(alone[name])
        assert predictions_of(settings) == predictions_of(alone[name])


@torch.no_grad()
def scores_of(method: Method, settings: RunConfig, clip: Path) -> np.ndarray:
    """Scores of the validation list in blocks as `bmpt eval` takes them; clip: what attributes were
    made with."""
    pool, base = open_pool(settings.data.pool), load_tiny(clip)
    manifest, files = pool.manifest(VAL), settings.text.attributes
    texts = method.eval().prepare_classes(class_sentences(manifest.info.classes, settings.text))
    attributes_ND = (
        torch.from_numpy(read_attributes(files, manifest.table["key"].to_pylist(), base))
        if files
        else None
    )
    cut = ClipSettings(frames=settings.data.frames, size_px=base.image_size_px)
    scores = []
    for clips in build_eval_loader(
        pool, manifest, cut, BlockSettings(block_size=settings.eval.batch_size)
    ):
        frames = normalize(clips.frames_BVTCHW, base.image_mean, base.image_std)
        attributes_BD = None if attributes_ND is None else attributes_ND[clips.positions_B]
        inputs = clip_inputs(frames, clips.weights_B, attributes=attributes_BD)
        scores.append(method.predict(inputs, texts))
    return torch.cat(scores).numpy()


def assert_scored(settings: RunConfig, scores_NK: np.ndarray) -> None:
    found = np.array(pq.read_table(folder_of(settings) / PREDICTIONS)["scores"].to_pylist())
    np.testing.assert_allclose(scores_NK, found, rtol=1e-4, atol=1e-5)


@every_kind
def test_an_export_scores_what_train_scored(
    alone: Runs, tmp_path: Path, clip: Path, name: str
) -> None:
    settings, out = alone[name], tmp_path / "model.safetensors"
    share = [] if KINDS[name].wise_ft is None else ["--wise-ft", str(KINDS[name].wise_ft)]
    command("export", str(folder_of(settings) / "prompts.safetensors"), "--out", str(out), *share)
    assert_scored(settings, scores_of(load_model(out).method, settings, clip))


@pytest.mark.parametrize("name", ["bdc", "vifi_both"])
def test_wise_ft_scores_tuned_weights_at_1_and_those_of_the_base_at_0(
    alone: Runs, config: MakeConfig, texts: dict[str, Any], name: str
) -> None:
    def scored(share: float | None) -> RunConfig:
        settings = config(
            run=f"share-{share}", **{**sections_of(name, texts), "eval": {"wise_ft": share}}
        )
        run_evaluation(settings, ALONE, checkpoint=folder_of(alone[name]) / "prompts.safetensors")
        return settings

    assert predictions_of(scored(1.0)) == predictions_of(scored(None))
    assert predictions_of(scored(0.5)) == predictions_of(alone[name])
    assert len({predictions_of(scored(share)) for share in (0.0, 0.5, 1.0)}) == 3
    if name == "vifi_both":
        base = config(run="base", method={**VIFI, "name": "zero_shot"})
        run_evaluation(base, ALONE, checkpoint=None)
        assert predictions_of(base) == predictions_of(scored(0.0))


IMPORTED: dict[str, tuple[Any, dict[str, Any]]] = {
    "bmpt": (
        published_files.bmpt_state,
        {
            "name": "bmpt",
            "tune": "all",
            "exchange": "none",
            "vision_depth": 4,
            "vision_tokens": 3,
            "text_tokens": 3,
            "space_time_blocks": [3],
        },
    ),
    "vifi_clip": (published_files.vifi_state, {**VIFI, "tune": "all"}),
    "vifi_clip_prompts": (
        published_files.vifi_prompt_state,
        {**VIFI, "tune": "prompts", "text_depth": 2},
    ),
    "bdc_clip": (
        published_files.bdc_state,
        {**BDC, "reduced_width": published_files.REDUCED, "space_time_blocks": [3]},
    ),
    "bike": (
        lambda tuned: published_files.bike_file(tuned, published_files.temporal_head()),
        {"name": "bike", "tune": "all", "counts_padding": True, "space_time_blocks": None},
    ),
}


@pytest.mark.parametrize("name", IMPORTED)
def test_an_imported_checkpoint_is_scored(
    config: MakeConfig, tmp_path: Path, clip: Path, toy_pool: Path, name: str
) -> None:
    make, method = IMPORTED[name]
    system = name.removesuffix("_prompts")
    tuned = published_files.tuned_backbone(tmp_path)
    tuned.model.token_embedding.load_state_dict(
        load_tiny(clip).model.token_embedding.state_dict()
    )  # none trains it
    content = make(tuned)
    torch.save(
        content if system == "bike" else published_files.training_file(content),
        tmp_path / "published.pth",
    )
    of_clip = ("--model", "tiny", "--pretrained", str(clip))
    out = tmp_path / "imported"
    command(
        "import-checkpoint",
        str(tmp_path / "published.pth"),
        "--system",
        system,
        *of_clip,
        "--out",
        str(out),
    )
    pretrained = out / "clip.safetensors" if name == "vifi_clip_prompts" else clip
    sections: Sections = {
        "method": method,
        "model": {"pretrained": str(pretrained)},
        "data": {"train": None},
    }
    path = write_config(tmp_path, clip, toy_pool, **sections)
    command("eval", str(path), "--checkpoint", str(out / "checkpoint.safetensors"))
    settings = load_config(path)
    assert results_of(settings)["evaluations"][0]["scored"] == 12
    command(
        "export", str(out / "checkpoint.safetensors"), "--out", str(tmp_path / "model.safetensors")
    )
    assert_scored(
        settings, scores_of(load_model(tmp_path / "model.safetensors").method, settings, clip)
    )
    if name == "vifi_clip":
        as_it_is = {
            "method": {**VIFI, "name": "zero_shot"},
            "model": {"pretrained": str(out / "clip.safetensors")},
        }
        zero_shot = config(run="zero_shot", **as_it_is)
        run_evaluation(zero_shot, ALONE, checkpoint=None)
        assert predictions_of(zero_shot) == predictions_of(settings)
