"""Bad input of every kind through the command line: one line that names the file, the value and the
cure.

Nothing is made then: no run folder, and no file beside those that were there. Bad answers of an
    endpoint and published
files that are something else are in `test_offline_*.py` and `test_checkpoint_import.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bmpt.checkpoints.checkpoint import save_checkpoint
from bmpt.cli.app import app
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.texts.knowledge_file import KnowledgeRow, write_knowledge
from shards.cli import run_app
from shards.reader import open_pool
from tests.bmpt.checkpoints import published_files
from tests.bmpt.runs import error_lines, run_ranks
from tests.bmpt.tiny import JOINT_WIDTH, SPEC, load_tiny, make_config, write_clip, write_config
from tests.complaints import complains

TRAIN = "few_shot/train_k2"
Sections = dict[str, dict[str, Any]]
BDC: dict[str, Any] = {"name": "bdc_clip", "tune": "all", "reduced_width": 4}
BIKE: dict[str, Any] = {"name": "bike", "tune": "image", "temporal_layers": 1}


def write_checkpoint(config: RunConfig, path: Path, classes: Sequence[str]) -> None:
    """What a run of these classes leaves."""
    backbone = load_tiny(Path(config.model.pretrained))
    method = build_method(
        backbone, config.method, num_frames=config.data.frames, seed=0, classes=classes
    )
    provenance = {"classes": list(classes), "pool_id": None, "manifest": TRAIN, "fingerprint": None}
    save_checkpoint(path, method, backbone, config, step=1, provenance=provenance)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, clip: Path, toy_pool: Path) -> Path:
    """A folder of files that do not fit the toy pool, and of some that do."""
    folder = tmp_path_factory.mktemp("bad")
    pool = open_pool(toy_pool)
    classes = pool.card.classes

    def sentences(name: str, values: dict[str, list[str]]) -> None:
        (folder / name).write_text(json.dumps(values), encoding="utf-8")

    sentences("good.json", {name: [f"{name} is seen", f"look at {name}"] for name in classes})
    sentences("three.json", {name: [f"{name} is seen"] for name in classes[:3]})
    sentences(
        "uneven.json", {name: [f"{name} is seen"] * (1 + (name == classes[2])) for name in classes}
    )
    sentences("equal.json", {name: ["a wave", "a tide"] for name in classes})
    sentences("alike.json", {name: ["a wave", f"{name} is seen"] for name in classes})
    sentences("other.json", {"walk": ["someone walks"], "run": ["someone runs"]})
    (folder / "notes.json").write_text("walk: someone walks", encoding="utf-8")
    lines = {name: f"{name} -> sit\n" for name in classes}
    (folder / "other.txt").write_text("walk -> run\nrun -> walk\n", encoding="utf-8")
    (folder / "three.txt").write_text(
        "".join(lines[name] for name in classes[:3]), encoding="utf-8"
    )
    (folder / "own.txt").write_text(
        "".join(f"{name} -> {name.lower()}\n" for name in classes), encoding="utf-8"
    )
    other, manifest = (
        load_tiny(write_clip(folder / "other.safetensors", seed=1)),
        pool.manifest(TRAIN),
    )
    unit_D = np.eye(1, JOINT_WIDTH, dtype=np.float32)[0]
    rows = [KnowledgeRow(key, unit_D) for key in manifest.table["key"].to_pylist()]
    write_knowledge(folder / "seven.parquet", rows[1:], manifest, load_tiny(clip))
    write_knowledge(folder / "of_other_clip.parquet", rows, manifest, other)
    wide = {**SPEC, "text_cfg": {**SPEC["text_cfg"], "width": 64}}
    write_clip(folder / "wide.safetensors", spec=wide)
    for name, method, known in (
        ("bmpt", {}, classes),
        ("renamed", {}, [*classes[:2], "walk", "run"]),
        ("causal", {"causal": True}, classes),
        ("bdc", BDC, classes),
        ("bike", BIKE, classes),
    ):
        config = make_config(folder / "made", clip, toy_pool, method=method)
        write_checkpoint(config, folder / f"{name}.ckpt", known)
    state = published_files.vifi_state(published_files.tuned_backbone(folder))
    torch.save(published_files.training_file(state), folder / "published.pth")
    return folder


def complains_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], here: Path, *words: str
) -> str:
    """Run a command that ends with one line of error and no new file; return the line with its
    folder left out."""
    before = sorted(here.rglob("*"))
    line = complains(capsys, *words)
    assert sorted(here.rglob("*")) == before
    return line.replace(f"{here}/", "")


def in_folder(values: Any, here: Path) -> Any:
    """Names of files of `here` as paths, wherever they stand in a config."""
    if isinstance(values, dict):
        return {key: in_folder(value, here) for key, value in values.items()}
    if isinstance(values, list):
        return [in_folder(value, here) for value in values]
    is_name = isinstance(values, str) and values.endswith(
        (".json", ".txt", ".parquet", ".safetensors")
    )
    return str(here / values) if is_name else values


BAD_TRAINING: list[tuple[Sections, str, str, str]] = [
    # class texts
    (
        {"text": {"sentences": "three.json"}},
        "three.json: ",
        "no text for 1 of 4 classes: Class03",
        "; add them",
    ),
    (
        {"text": {"sentences": "other.json"}},
        "other.json: ",
        "none of its 2 classes (walk, run) is one of the 4 here (Class00,",
        "; the file belongs to another data set",
    ),
    (
        {"text": {"sentences": "uneven.json"}},
        "uneven.json: ",
        "'Class00' has 1 sentences, 'Class02' 2",
        "; give every class the same number",
    ),
    (
        {"text": {"sentences": "notes.json"}},
        "notes.json: ",
        "is not JSON",
        "expected {class: [sentences]}",
    ),
    (
        {"text": {"sentences": "equal.json"}},
        "data.train: ",
        "'Class00' and 'Class01' have the same text feature",
        "or other texts in equal.json",
    ),
    (
        {"text": {"sentences": "good.json"}, "method": BIKE},
        "method.name=bike",
        "got 2",
        "set text.template alone",
    ),
    # negatives
    (
        {"text": {"negatives": "other.txt"}},
        "other.txt: ",
        "none of its 2 classes (walk, run)",
        "belongs to another data set",
    ),
    (
        {"text": {"negatives": "three.txt"}},
        "three.txt: ",
        "no negative for 1 of 4 classes: Class03",
        "; add them",
    ),
    (
        {"text": {"negatives": "own.txt"}},
        "own.txt: ",
        "'Class00' is its own negative",
        "; name another action for it",
    ),
    # features of samples
    (
        {"text": {"knowledge": "seven.parquet"}},
        "seven.parquet: ",
        "1 of 8 samples have no knowledge text (the first: Class00/Class00_00)",
        "make it for all of this manifest with `bmpt knowledge`",
    ),
    (
        {"text": {"knowledge": "of_other_clip.parquet"}},
        "of_other_clip.parquet: ",
        "its features were made by tiny ",
        "run `bmpt knowledge` with this CLIP",
    ),
    (
        {"text": {"knowledge": "gone.parquet"}},
        "gone.parquet: ",
        "cannot be read",
        "`bmpt knowledge POOL MANIFEST",
    ),
    (
        {"text": {"attributes": ["seven.parquet"]}, "method": {**BIKE, "attributes": True}},
        "seven.parquet: ",
        "is not a file of attributes, format 1",
        "make one with `bmpt attributes`",
    ),
    # files of `text` that a method does not read, or has not got
    (
        {"text": {"knowledge": "seven.parquet"}, "method": BDC},
        "text.knowledge: ",
        "method bdc_clip reads no such file",
        "leave out what it does not read, or set method.name=bmpt",
    ),
    (
        {"text": {"negatives": "own.txt", "attributes": ["seven.parquet"]}, "method": BDC},
        "text.negatives, text.attributes: ",
        "method bdc_clip reads none of them",
        "leave out what it does not read",
    ),
    (
        {"method": {**BIKE, "attributes": True}},
        "method.attributes=true: ",
        "needs text.attributes=[FILE]",
        "`bmpt attributes POOL MANIFEST --out FILE` makes",
    ),
    (
        {"method": {"attributes": True}},
        "run.yaml: method.attributes: ",
        "method bmpt has no such key, it belongs to bike",
        "leave it out or set method.name=bike",
    ),
    (
        {"text": {"attributes": ["seven.parquet"]}, "method": BIKE},
        "text.attributes: ",
        "bike reads it with method.attributes=true",
        "set both or none of them",
    ),
    (
        {
            "method": {**BIKE, "attributes": True, "tune": "all"},
            "text": {"attributes": ["seven.parquet"]},
        },
        "method.attributes=true: ",
        "method.tune=all moves away",
        "set method.tune=image",
    ),
    # prompts
    (
        {"method": {"vision_depth": -1}},
        "run.yaml: method.vision_depth",
        "got -1",
        "greater than or equal to 0",
    ),
    (
        {"method": {"text_depth": -3}},
        "run.yaml: method.text_depth",
        "got -3",
        "greater than or equal to 0",
    ),
    (
        {"method": {"vision_depth": 5}},
        "method.vision_depth=5",
        "the vision tower has 4 blocks",
        "give at most 4",
    ),
    (
        {"method": {"text_depth": 5, "exchange": "none"}},
        "method.text_depth=5",
        "the text tower has 4 blocks",
        "give at most 4",
    ),
    (
        {"method": {"text_tokens": 0}},
        "run.yaml: method.text_tokens",
        "got 0",
        "greater than or equal to 1",
    ),
    *(
        (
            {"method": {**method, "text_tokens": 75}},
            "method.text_tokens=75",
            "leaves no room for a caption in a context of 77 tokens",
            "give at most 74",
        )
        for method in ({}, {"exchange": "batch_gated"}, {"name": "vifi_clip", "tune": "prompts"})
    ),
    (
        {"method": {"text_tokens": 75, "exchange": "none"}},
        "method.exchange=none overwrites the first 75 caption tokens",
        "nothing of 4 class texts such as 'a video of a person class00.'",
        "lower method.text_tokens",
    ),
    (
        {"method": {"name": "vifi_clip", "start_words": "a photo"}},
        "method.start_words='a photo'",
        "has 2 tokens, method.text_tokens is 4",
        "make them equal",
    ),
    # what a method cannot do
    (
        {"method": {"name": "bike"}},
        "method.tune=prompts",
        "bike can tune image or all",
        "set one of them",
    ),
    (
        {"method": BIKE, "train": {"accumulation": 2}},
        "train.accumulation=2",
        "bike compares",
        "set 1",
    ),
    (
        {"method": BIKE, "train": {"label_smoothing": 0.1}},
        "train.label_smoothing=0.1",
        "bike trains towards",
        "set 0",
    ),
    ({"eval": {"wise_ft": 0.5}}, "eval.wise_ft", "this method tunes none", "set method.tune=all"),
]


@pytest.mark.parametrize(("sections", "where", "value", "cure"), BAD_TRAINING)
def test_bad_input_of_training_is_one_line(
    capsys: pytest.CaptureFixture[str],
    here: Path,
    clip: Path,
    toy_pool: Path,
    sections: Sections,
    where: str,
    value: str,
    cure: str,
) -> None:
    path = write_config(here, clip, toy_pool, **in_folder(sections, here))
    line = complains_and_writes_nothing(capsys, here, "train", str(path))
    assert line.startswith(f"error: {where}")
    assert value in line
    assert cure in line


BAD_SCORING: list[tuple[str, Sections, str, str]] = [
    # another width
    (
        "bmpt",
        {"method": {"vision_tokens": 5, "text_depth": 2}},
        "its tensors do not fit the method: ",
        "it was trained with method.vision_tokens=4, method.text_depth=3: set that",
    ),
    (
        "bmpt",
        {"method": {"tune": "all"}},
        "its tensors do not fit the method: clip.ln_final.bias",
        'method.tune="prompts": set that',
    ),
    (
        "bdc",
        {"method": {**BDC, "reduced_width": 6}},
        "its tensors do not fit the method: heads.",
        "method.reduced_width=4: set that",
    ),
    # another method, or one that acts otherwise
    (
        "bdc",
        {},
        "is a checkpoint of method bdc_clip, the config says bmpt",
        "set method.name=bdc_clip or give another checkpoint",
    ),
    (
        "bmpt",
        {"method": {"exchange": "batch_gated"}},
        "was trained with method.exchange=bidirectional, the config says batch_gated",
        'set method.exchange="bidirectional"',
    ),
    (
        "causal",
        {},
        "was trained with method.causal=True, the config says False",
        "set method.causal=true",
    ),
    (
        "bike",
        {"method": {**BIKE, "interaction": "DP"}},
        "was trained with method.interaction=VCS, the config says DP",
        'set method.interaction="VCS"',
    ),
    # another base
    (
        "bmpt",
        {"model": {"pretrained": "other.safetensors"}},
        "was trained on tiny (",
        "set model.name and model.pretrained to the former",
    ),
    (
        "bmpt",
        {"model": {"pretrained": "wide.safetensors"}},
        "was trained on tiny (",
        "set model.name and model.pretrained to the former",
    ),
    # another class list
    (
        "bmpt",
        {"data": {"train": "base_to_novel/train_base_s1"}},
        "was trained on 4 classes, data.train=base_to_novel/train_base_s1 has 2;",
        "set data.train=null to score other lists with it",
    ),
    (
        "renamed",
        {},
        "was trained on 4 classes, data.train=few_shot/train_k2 has "
        "4: class 2 is 'walk' there, 'Class02' here",
        "give the config that it was trained with",
    ),
]


@pytest.mark.parametrize(("checkpoint", "sections", "value", "cure"), BAD_SCORING)
def test_a_checkpoint_of_something_else_is_one_line(
    capsys: pytest.CaptureFixture[str],
    here: Path,
    clip: Path,
    toy_pool: Path,
    checkpoint: str,
    sections: Sections,
    value: str,
    cure: str,
) -> None:
    path = write_config(here, clip, toy_pool, **in_folder(sections, here))
    line = complains_and_writes_nothing(
        capsys, here, "eval", str(path), "--checkpoint", str(here / f"{checkpoint}.ckpt")
    )
    assert line.startswith(f"error: {checkpoint}.ckpt: ")
    assert value in line
    assert cure in line


@pytest.mark.parametrize(
    ("key", "file"), [("knowledge", "gone.parquet"), ("negatives", "gone.txt")]
)
def test_a_file_of_training_that_is_gone_is_one_line_in_scoring_too(
    capsys: pytest.CaptureFixture[str], here: Path, clip: Path, toy_pool: Path, key: str, file: str
) -> None:
    """Scoring does not read it, but results state its hash."""
    path = write_config(here, clip, toy_pool, text={key: str(here / file)})
    line = complains_and_writes_nothing(
        capsys, here, "eval", str(path), "--checkpoint", str(here / "bmpt.ckpt")
    )
    assert line.startswith(
        f"error: text.{key}={file}: cannot be read: No such file or directory; correct it, or set "
    )
    assert line.endswith(f"text.{key}=null and another run.dir where nothing is trained\n")


def test_another_class_list_is_scored_where_the_config_says_so(
    here: Path, clip: Path, toy_pool: Path, tmp_path: Path
) -> None:
    novel: dict[str, Any] = {
        "data": {"train": None},
        "eval": {"manifests": ["base_to_novel/val_novel"]},
    }
    path = write_config(tmp_path, clip, toy_pool, **novel)
    assert (
        run_app(app, ["eval", str(path), "--checkpoint", str(here / "bmpt.ckpt")], prog_name="bmpt")
        == 0
    )


def test_classes_that_share_one_of_two_sentences_are_trained(
    here: Path, clip: Path, toy_pool: Path, tmp_path: Path
) -> None:
    path = write_config(
        tmp_path, clip, toy_pool, text={"sentences": str(here / "alike.json")}, train={"epochs": 1}
    )
    assert run_app(app, ["train", str(path)], prog_name="bmpt") == 0


@pytest.mark.parametrize(
    ("words", "value", "cure"),
    [
        (
            ["--system", "bmpt"],
            "does not have the keys of a bmpt checkpoint on tiny",
            "give the system that wrote it",
        ),
        (
            ["--pretrained", "wide.safetensors"],
            "was not tuned from tiny: ",
            "give its architecture as --model",
        ),
        (
            ["--system", "clip"],
            "--system clip: unknown system; choose one of vifi_clip, bdc_clip, bmpt, bike",
            "vifi_clip",
        ),
    ],
)
def test_an_import_that_does_not_fit_writes_nothing(
    capsys: pytest.CaptureFixture[str],
    here: Path,
    clip: Path,
    words: list[str],
    value: str,
    cure: str,
) -> None:
    given = ["import-checkpoint", str(here / "published.pth"), "--out", str(here / "imported")]
    given += [
        "--system",
        "vifi_clip",
        "--model",
        "tiny",
        "--pretrained",
        str(clip),
        *in_folder(words, here),
    ]
    line = complains_and_writes_nothing(capsys, here, *given)
    assert value in line
    assert cure in line


def test_an_export_onto_another_base_writes_nothing(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    words = ["export", str(here / "bmpt.ckpt"), "--pretrained", str(here / "other.safetensors")]
    line = complains_and_writes_nothing(
        capsys, here, *words, "--out", str(here / "model.safetensors")
    )
    assert line.startswith("error: bmpt.ckpt: was trained on tiny (")
    assert "set model.name and model.pretrained to the former" in line


def test_bad_input_on_two_ranks_is_one_line_of_one_rank_and_ends_both(
    here: Path, clip: Path, toy_pool: Path
) -> None:
    path = write_config(here, clip, toy_pool, text={"knowledge": str(here / "seven.parquet")})
    ended = run_ranks(2, "train", str(path))
    assert [rank.returncode for rank in ended] == [2, 2]
    (line,) = error_lines(ended)
    assert "seven.parquet: 1 of 8 samples have no knowledge text" in line
    assert not (here / "run").exists()
