"""Test imports of published checkpoints: all tensors, all keys, and no code of a file runs."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bmpt.checkpoints.checkpoint import load_checkpoint, read_trained_classes
from bmpt.checkpoints.export import export_checkpoint, load_model
from bmpt.checkpoints.import_report import import_text
from bmpt.checkpoints.published_import import (
    ImportedCheckpoint,
    import_checkpoint,
    join_attributes,
    write_import,
)
from bmpt.cli.app import app
from bmpt.clip.backbone import Backbone, load_backbone
from bmpt.clip.weights import hash_weights
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import Method
from bmpt.methods.bmpt import Bmpt
from bmpt.settings import MethodSettings, ModelSettings
from bmpt.texts.class_texts import ClassSentences
from shards.cli import run_app
from shards.errors import BmptError, ConfigError, FormatError, StorageError
from tests.bmpt.checkpoints import published_files
from tests.bmpt.checkpoints.published_files import (
    STATES,
    RunsWhenLoaded,
    training_file,
    tuned_backbone,
    with_prefix,
)
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.parity import naive_originals as naive
from tests.bmpt.parity.stored_outputs import assert_close, read, stored_passes
from tests.bmpt.tiny import SPEC, clip_inputs, cosine_logits, load_tiny, random_frames, write_clip
from tests.complaints import refused

TEXTS = ["a video of a person who walks along the road", "a video of a person who draws a sword"]


@pytest.fixture
def base(clip: Path) -> Backbone:
    return load_tiny(clip)


@pytest.fixture
def tuned(tmp_path: Path) -> Backbone:
    return tuned_backbone(tmp_path)


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refuses_to_import(
    file: Path, system: str, base: Backbone, kind: type[BmptError], sentence: str
) -> None:
    with refused(file, kind, sentence):
        import_checkpoint(file, system, base)


def assert_clip_is(
    imported: ImportedCheckpoint, tuned: Backbone, base: Backbone, *, with_tokens: bool
) -> None:
    """Check that all CLIP weights are the tuned ones, except an unsaved token embedding."""
    expected = dict(tuned.model.state_dict())
    if not with_tokens:
        expected["token_embedding.weight"] = base.model.state_dict()["token_embedding.weight"]
    assert imported.tensors.clip.keys() == expected.keys()
    assert all(torch.equal(imported.tensors.clip[name], expected[name]) for name in expected)


@torch.no_grad()
def logits(method: Method) -> torch.Tensor:
    return cosine_logits(
        method, random_frames(2, 1, 4, 3, 32, 32, seed=3), method.prepare_texts(TEXTS)
    )


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("system", STATES)
def test_import_reads_every_clip_weight_under_any_prefix(
    tmp_path: Path, base: Backbone, tuned: Backbone, system: str, prefix: str
) -> None:
    file = write(tmp_path / "best.pth", training_file(with_prefix(prefix, STATES[system](tuned))))
    imported = import_checkpoint(file, system, base)
    assert_clip_is(imported, tuned, base, with_tokens=False)
    assert imported.report.keys.missing == ["token_embedding.weight"]
    assert imported.report.keys.unexpected == ()
    assert imported.report.keys.left_out == [
        "epoch",
        "lr_scheduler",
        "max_accuracy",
        "optimizer",
        "scaler",
    ]
    assert imported.report.source.epoch == 9


def test_import_report_has_every_key_once(tmp_path: Path, base: Backbone, tuned: Backbone) -> None:
    for system, make in STATES.items():
        state = make(tuned)
        report = import_checkpoint(
            write(tmp_path / "best.pth", training_file(state)), system, base
        ).report
        groups = [
            *report.keys.mapped,
            *report.keys.prompts,
            *report.keys.heads,
            *report.keys.dropped,
        ]
        assert sorted(groups) == sorted(state)


def test_import_accepts_half_precision_and_a_bare_state_dict(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    state = {name: value.half() for name, value in published_files.vifi_state(tuned).items()}
    imported = import_checkpoint(write(tmp_path / "bare.pth", state), "vifi_clip", base)
    assert {value.dtype for value in imported.tensors.clip.values()} == {torch.float32}
    assert torch.equal(
        imported.tensors.clip["visual.proj"], tuned.model.visual.proj.detach().half().float()
    )


def test_import_keeps_the_names_of_vifi_clips_prompts(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    state = published_files.vifi_prompt_state(tuned)
    imported = import_checkpoint(
        write(tmp_path / "prompts.pth", training_file(state)), "vifi_clip", base
    )
    assert sorted(imported.tensors.prompts) == [
        "image_encoder.VPT",
        "image_encoder.transformer.resblocks.1.VPT_shallow",
        "image_encoder.transformer.resblocks.2.VPT_shallow",
        "prompt_learner.ctx",
        "text_encoder.transformer.resblocks.1.VPT_shallow",
    ]
    assert all(torch.equal(value, state[key]) for key, value in imported.tensors.prompts.items())
    assert sorted(imported.report.keys.dropped) == [
        "prompt_learner.token_prefix",
        "prompt_learner.token_suffix",
    ]


def test_import_keeps_bdc_clips_adapters_and_drops_bmpts_as_unused(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    bdc = import_checkpoint(
        write(tmp_path / "bdc.pth", training_file(published_files.bdc_state(tuned))),
        "bdc_clip",
        base,
    )
    assert bdc.tensors.heads.keys() == published_files.adapters(classifier="vision_bdc_head").keys()
    released = import_checkpoint(
        write(tmp_path / "bmpt.pth", training_file(published_files.bmpt_state(tuned))), "bmpt", base
    )
    assert released.tensors.heads == {}
    dead = {
        key
        for key, why in released.report.keys.dropped.items()
        if why == "never used by the released forward"
    }
    assert published_files.adapters().keys() < dead
    assert any("cross_modal_interactions.1.v2t_mlp" in key for key in dead)
    assert any("resblocks.1.cross_modal_interaction.t2v_mlp" in key for key in dead)


@pytest.mark.parametrize(
    "make_head",
    [
        published_files.temporal_head,
        published_files.attribute_head,
        lambda: dict[str, torch.Tensor](),
    ],
)
def test_import_reads_bikes_clip_and_head(
    tmp_path: Path,
    base: Backbone,
    tuned: Backbone,
    make_head: Callable[[], dict[str, torch.Tensor]],
) -> None:
    head = make_head()
    tuned.model.token_embedding.load_state_dict(base.model.token_embedding.state_dict())
    imported = import_checkpoint(
        write(tmp_path / "model_best.pt", published_files.bike_file(tuned, head)), "bike", base
    )
    assert_clip_is(imported, tuned, base, with_tokens=True)
    assert imported.report.keys.missing == []
    assert {
        key.removeprefix("fusion_model_state_dict."): value.sum()
        for key, value in imported.tensors.heads.items()
    } == {key: value.sum() for key, value in head.items()}


def test_import_reads_an_embedded_config_without_its_library(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    values = {
        "DATA": {"NUM_FRAMES": 16, "LABEL_LIST": "labels.csv"},
        "BASE": [""],
        "TRAIN": {"LR": 8e-6, "FLAG": True},
    }
    with published_files.yacs_is_installed() as node:
        content = training_file(
            published_files.vifi_state(tuned), config=node(values), max_accuracy=np.float64(76.25)
        )
        file = write(tmp_path / "best.pth", content)
    with pytest.raises(pickle.UnpicklingError, match=r"CfgNode|multiarray"):
        torch.load(file, weights_only=True)
    imported = import_checkpoint(file, "vifi_clip", base)
    assert imported.report.source.config == values
    assert_clip_is(imported, tuned, base, with_tokens=False)
    assert "yacs" not in sys.modules


@pytest.mark.parametrize("function", [os.mkdir, shutil.copytree])
@pytest.mark.parametrize("where", ["config", "model"])
def test_import_refuses_a_file_that_would_run_code(
    tmp_path: Path, base: Backbone, tuned: Backbone, where: str, function: Callable[..., Any]
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "empty").mkdir()
    arguments = [str(marker)] if function is os.mkdir else [str(tmp_path / "empty"), str(marker)]
    planted = RunsWhenLoaded(function, *arguments)
    pickle.loads(pickle.dumps(planted, protocol=2))
    assert marker.exists(), "loaded by pickle alone, the planted object runs"
    marker.rmdir()
    content = training_file(published_files.vifi_state(tuned))
    if where == "config":
        content["config"] = planted
    else:
        content["model"]["logit_scale"] = planted
    name = rf"{function.__module__}\.{function.__name__}"
    refuses_to_import(
        write(tmp_path / "bad.pth", content),
        "vifi_clip",
        base,
        FormatError,
        f"it asks for {name}, which is not a ten",
    )
    assert not marker.exists()


@pytest.fixture
def imported_to(tmp_path: Path, base: Backbone, tuned: Backbone) -> Callable[[str], Path]:
    """Return a function that imports a system's checkpoint and returns the written folder."""

    def write_to(system: str) -> Path:
        file = write(tmp_path / "best.pth", training_file(STATES[system](tuned)))
        write_import(
            import_checkpoint(file, system, base),
            base,
            ModelSettings(name="tiny"),
            tmp_path / "out",
        )
        return tmp_path / "out"

    return write_to


def test_imported_bmpt_computes_the_same_logits_with_our_method(
    imported_to: Callable[[str], Path], clip: Path, tuned: Backbone, config: MakeConfig
) -> None:
    method = {"name": "bmpt", "tune": "all", "exchange": "none", "space_time_blocks": [3]}
    method |= {"vision_depth": 4, "vision_tokens": 3, "text_depth": 3, "text_tokens": 3}
    settings = config(method=method)
    ours, backbone = built(clip, settings), load_tiny(clip)
    load_checkpoint(imported_to("bmpt") / "checkpoint.safetensors", ours, backbone, settings)

    state = published_files.bmpt_state(tuned)
    tuned.model.token_embedding.load_state_dict(backbone.model.token_embedding.state_dict())
    original = build_method(tuned, settings.method, num_frames=4, seed=0)
    assert isinstance(original, Bmpt)
    with torch.no_grad():
        for block in range(4):
            name = f"transformer.resblocks.{block}.VPT" if block else "VPT_shallow"
            original.vision_LPE[block] = state[f"image_encoder.{name}"]
        for block in (1, 2):
            original.text_LPE[block - 1] = state[f"text_encoder.transformer.resblocks.{block}.VPT"]
    torch.testing.assert_close(logits(ours), logits(original))


def test_imported_vifi_clip_is_a_checkpoint_and_a_base_model(
    imported_to: Callable[[str], Path], clip: Path, tuned: Backbone, config: MakeConfig
) -> None:
    folder = imported_to("vifi_clip")
    settings = config(method={"name": "vifi_clip", "tune": "all", "space_time_blocks": None})
    as_checkpoint, backbone = built(clip, settings), load_tiny(clip)
    load_checkpoint(folder / "checkpoint.safetensors", as_checkpoint, backbone, settings)
    tuned.model.token_embedding.load_state_dict(backbone.model.token_embedding.state_dict())
    zero_shot = MethodSettings(name="zero_shot")
    expected = logits(build_method(tuned, zero_shot, num_frames=4, seed=0))
    # not bitwise: the memory has another alignment
    torch.testing.assert_close(logits(as_checkpoint), expected)
    as_base = load_backbone("any name", str(folder / "clip.safetensors"))
    torch.testing.assert_close(
        logits(build_method(as_base, zero_shot, num_frames=4, seed=0)), expected
    )


def built(clip: Path, settings: RunConfig) -> Method:
    return build_method(load_tiny(clip), settings.method, num_frames=4, seed=5)


def test_import_writes_heads_by_their_original_names(
    imported_to: Callable[[str], Path], tuned: Backbone
) -> None:
    state = published_files.bdc_state(tuned)
    kept = load_file(imported_to("bdc_clip") / "tensors.safetensors")
    assert all(
        torch.equal(value, state[name.removeprefix("heads.")]) for name, value in kept.items()
    )
    assert len(kept) == len(published_files.adapters())


def test_import_of_bikes_attributes_head_alone_writes_no_checkpoint(
    tmp_path: Path, base: Backbone
) -> None:
    file = write(
        tmp_path / "attributes.pt",
        published_files.bike_file(base, published_files.attribute_head()),
    )
    report = write_import(
        import_checkpoint(file, "bike", base), base, ModelSettings(name="tiny"), tmp_path / "out"
    )
    assert [Path(name).name for name in report.files] == ["clip.safetensors", "tensors.safetensors"]


def bike_with_attributes(
    folder: Path, base: Backbone, *, temporal: dict[str, torch.Tensor] | None = None
) -> tuple[Path, Path]:
    """Write the files of the video branch, whose visual tower is tuned, and of the attributes."""
    tuned = tuned_backbone(folder)
    state = {**base.model.state_dict(), **below_visual(tuned)}
    head = published_files.temporal_head() if temporal is None else temporal
    video = {**published_files.bike_file(base, head), "model_state_dict": state}
    attributes = published_files.bike_file(base, published_files.attribute_head())
    return write(folder / "video.pt", video), write(folder / "attributes.pt", attributes)


def below_visual(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in backbone.model.state_dict().items()
        if name.startswith("visual.")
    }


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [0, 1, 6])
def test_join_attributes_makes_one_checkpoint_of_bikes_two_files(
    tmp_path: Path, clip: Path, num_layers: int
) -> None:
    base = load_tiny(clip)
    head = published_files.temporal_head(num_layers=num_layers) if num_layers else {}
    video, attributes = bike_with_attributes(tmp_path, base, temporal=head)
    model = ModelSettings(name="tiny", pretrained=str(clip))
    joined = join_attributes(import_checkpoint(video, "bike", base), attributes, base)
    report = write_import(joined, base, model, tmp_path / "out")
    assert [Path(name).name for name in report.files] == [
        "clip.safetensors",
        "tensors.safetensors",
        "checkpoint.safetensors",
    ]
    assert "video.pt with the attributes head of attributes.pt: bike on tiny" in import_text(report)
    export_checkpoint(tmp_path / "out" / "checkpoint.safetensors", tmp_path / "model.safetensors")
    method = load_model(tmp_path / "model.safetensors").method
    assert (method.settings.attributes, method.settings.temporal_layers) == (True, num_layers)
    found = dict(method.named_parameters())
    for branch, published in (("attributes", published_files.attribute_head()), ("temporal", head)):
        for key, value in published.items():
            torch.testing.assert_close(found[f"{branch}.{key}"], value)
    for key, value in below_visual(tuned_backbone(tmp_path)).items():
        torch.testing.assert_close(method.clip.get_parameter(key), value)


def test_join_attributes_refuses_branches_that_do_not_belong_together(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    video, attributes = bike_with_attributes(tmp_path, base)
    read = partial(import_checkpoint, system="bike", base=base)
    with pytest.raises(
        ConfigError, match=r"--attributes-head \S+video\.pt: has no attributes head; give BIKE's"
    ):
        join_attributes(read(video), video, base)
    with pytest.raises(
        ConfigError, match=r"^attributes\.pt: has an attributes head itself; give the file"
    ):
        join_attributes(read(attributes), attributes, base)
    other = write(tmp_path / "best.pth", training_file(published_files.vifi_state(tuned)))
    with pytest.raises(
        ConfigError, match=r"--attributes-head \S+: vifi_clip has no attributes head; leave it out"
    ):
        join_attributes(import_checkpoint(other, "vifi_clip", base), attributes, base)
    state = {**base.model.state_dict(), "ln_final.bias": torch.ones_like(base.model.ln_final.bias)}
    moved = {**published_files.bike_file(base, {}), "model_state_dict": state}
    with pytest.raises(
        ConfigError,
        match=r"^moved\.pt: its text tower is not that of tiny, .*: ln_final\.bias; give",
    ):
        join_attributes(read(write(tmp_path / "moved.pt", moved)), attributes, base)


def test_import_refuses_a_bike_of_another_token_embedding(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    file = write(tmp_path / "model_best.pt", published_files.bike_file(tuned, {}))
    refuses_to_import(
        file,
        "bike",
        base,
        ConfigError,
        r"was not tuned from tiny \(\w{12}\): its token embedding is another",
    )


@pytest.mark.parametrize("names", [[], ["brush hair", "walk", "run", "jump", "kick"]])
def test_write_import_stores_the_class_names_of_a_classifier(
    tmp_path: Path, base: Backbone, tuned: Backbone, names: list[str]
) -> None:
    file = write(tmp_path / "best.pth", training_file(published_files.bdc_state(tuned)))
    imported = import_checkpoint(file, "bdc_clip", base)
    write_import(imported, base, ModelSettings(name="tiny"), tmp_path / "out", classes=names)
    found = read_trained_classes(tmp_path / "out" / "checkpoint.safetensors")
    assert list(found) == (names or ["class 0", "class 1", "class 2", "class 3", "class 4"])


def test_write_import_refuses_another_number_of_classes(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    file = write(tmp_path / "best.pth", training_file(published_files.bdc_state(tuned)))
    imported = import_checkpoint(file, "bdc_clip", base)
    with pytest.raises(
        ConfigError, match=r"best\.pth: its classifier has 5 classes, --classes names 2"
    ):
        write_import(
            imported, base, ModelSettings(name="tiny"), tmp_path / "out", classes=["walk", "run"]
        )


@pytest.mark.parametrize(
    "name", ["clip.safetensors", "tensors.safetensors", "checkpoint.safetensors"]
)
def test_write_import_that_fails_leaves_no_file(
    tmp_path: Path, base: Backbone, tuned: Backbone, name: str
) -> None:
    file = write(tmp_path / "best.pth", training_file(published_files.bdc_state(tuned)))
    (tmp_path / "out" / f".{name}.part").mkdir(parents=True)
    with pytest.raises(StorageError, match=rf"{name}: cannot be written"):
        write_import(
            import_checkpoint(file, "bdc_clip", base),
            base,
            ModelSettings(name="tiny"),
            tmp_path / "out",
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f".{name}.part"]


def test_import_leaves_the_base_unchanged(
    imported_to: Callable[[str], Path], base: Backbone
) -> None:
    imported_to("vifi_clip")
    assert hash_weights(base.model.state_dict()) == base.weights_sha256


@pytest.mark.parametrize(
    ("system", "change", "sentence"),
    [
        (
            "vifi_clip",
            {"image_encoder.adapter.weight": 1},
            r"unexpected image_encoder\.adapter\.weight; missing none",
        ),
        (
            "vifi_clip",
            {"text_encoder.ln_final.bias": None},
            r"unexpected none; missing ln_final\.bias",
        ),
        (
            "vifi_clip",
            {"logit_scale": None, "logit_scale_clip": 1},
            r"unexpected logit_scale_clip; missing logit_scale",
        ),
        ("vifi_clip", {"prompt_learner.other": 1}, r"unexpected prompt_learner\.other"),
        ("vifi_clip", {"image_encoder.VPT_shallow": 1}, r"unexpected image_encoder\.VPT_shallow"),
        ("bmpt", {"image_encoder.VPT": 1}, r"unexpected image_encoder\.VPT;"),
        ("bmpt", {"image_encoder.VPT_shallow": None}, r"missing image_encoder\.VPT_shallow"),
        (
            "bmpt",
            {"image_encoder.transformer.resblocks.2.VPT": None},
            r"missing image_\S+\.resblocks\.2\.VPT;",
        ),
        (
            "bmpt",
            {"image_encoder.transformer.cross_modal_interactions.1.gate": 1},
            r"unexpected \S+\.gate",
        ),
        ("bdc_clip", {"vision_q_proj.weight": None}, r"missing vision_q_proj\.weight"),
        ("bdc_clip", {"vision_bdc_head.bias": None}, r"missing vision_bdc_head\.bias"),
        ("bdc_clip", {"vision_bdc_head.extra": 1}, r"unexpected vision_bdc_head\.extra"),
    ],
)
def test_import_refuses_unexpected_and_missing_keys(
    tmp_path: Path,
    base: Backbone,
    tuned: Backbone,
    system: str,
    change: dict[str, int | None],
    sentence: str,
) -> None:
    state = STATES[system](tuned)
    for key, value in change.items():
        if value is None:
            del state[key]
        else:
            state[key] = torch.zeros(value)
    file = write(tmp_path / "best.pth", training_file(state))
    refuses_to_import(
        file,
        system,
        base,
        FormatError,
        f"does not have the keys of a {system} checkpoint on tiny: .*{sentence}",
    )


@pytest.mark.parametrize(
    "key", ["frame_position_embeddings.weight", "transformer.resblocks.5.ln_2.bias"]
)
def test_import_refuses_an_incomplete_head_of_bike(
    tmp_path: Path, base: Backbone, tuned: Backbone, key: str
) -> None:
    head = published_files.temporal_head()
    del head[key]
    file = write(tmp_path / "last_model.pt", published_files.bike_file(tuned, head))
    refuses_to_import(file, "bike", base, FormatError, rf"missing fusion_model_state_dict\.{key}")


def test_import_counts_many_unexpected_keys(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    file = write(tmp_path / "bdc.pth", training_file(published_files.bdc_state(tuned)))
    refuses_to_import(
        file,
        "vifi_clip",
        base,
        FormatError,
        r"unexpected logit_scale_clip, .* and 4 more; missing logit_scale;",
    )


@pytest.mark.parametrize(
    ("content", "system", "sentence"),
    [
        ({"epoch": 3, "model_state_dict": {}}, "bike", "it has no 'fusion_model_state_dict'"),
        ({"model": [1, 2]}, "vifi_clip", "it holds no state dict"),
        ([1, 2], "vifi_clip", "it holds no state dict"),
        (
            {"model": {}, "teacher": {}},
            "vifi_clip",
            "has entries that are unknown for vifi_clip: teacher",
        ),
        ({"model": {"logit_scale": 4.6}}, "vifi_clip", "logit_scale: not a tensor"),
        ({"epoch": 3}, "bdc_clip", "epoch: not a tensor"),
    ],
)
def test_import_refuses_a_file_of_another_layout(
    tmp_path: Path, base: Backbone, content: Any, system: str, sentence: str
) -> None:
    refuses_to_import(write(tmp_path / "odd.pth", content), system, base, FormatError, sentence)


def test_import_refuses_a_checkpoint_of_another_width(tmp_path: Path, base: Backbone) -> None:
    wide = {**SPEC, "vision_cfg": {**SPEC["vision_cfg"], "width": 64}}
    other = load_tiny(write_clip(tmp_path / "wide.safetensors", spec=wide))
    file = write(tmp_path / "wide.pth", training_file(published_files.vifi_state(other)))
    refuses_to_import(
        file,
        "vifi_clip",
        base,
        ConfigError,
        r"was not tuned from tiny: .*class_embedding is \[64\], the base has \[48\]",
    )


def test_import_refuses_prompts_of_another_width(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    state = published_files.bmpt_state(tuned)
    state["image_encoder.transformer.resblocks.2.VPT"] = torch.zeros(3, 32)
    file = write(tmp_path / "best.pth", training_file(state))
    refuses_to_import(
        file, "bmpt", base, ConfigError, r"resblocks\.2\.VPT is \[3, 32\], the base has \[3, 48\]"
    )


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut"])
def test_import_refuses_a_file_of_another_kind(
    tmp_path: Path, base: Backbone, content: bytes
) -> None:
    (tmp_path / "cut.pth").write_bytes(content)
    refuses_to_import(
        tmp_path / "cut.pth",
        "bmpt",
        base,
        FormatError,
        "is not a weight file that can be read safely",
    )


def test_import_names_a_missing_file(tmp_path: Path, base: Backbone) -> None:
    refuses_to_import(tmp_path / "gone.pth", "bmpt", base, ConfigError, "no such checkpoint")


def test_import_lists_the_systems_for_an_unknown_system(tmp_path: Path, base: Backbone) -> None:
    with pytest.raises(
        ConfigError,
        match=r"--system vifi: unknown system; choose one of vifi_clip, bdc_clip, bmpt, bike",
    ):
        import_checkpoint(tmp_path / "best.pth", "vifi", base)


def test_import_text_counts_keys_and_gives_reasons(
    tmp_path: Path, base: Backbone, tuned: Backbone
) -> None:
    file = write(tmp_path / "best.pth", training_file(published_files.bmpt_state(tuned)))
    report = import_checkpoint(file, "bmpt", base).report
    text = import_text(report)
    counts = f"mapped      {len(tuned.model.state_dict()) - 1} of CLIP, 6 of prompts, 0 of heads"
    assert f"best.pth: bmpt on tiny, epoch 9\n{counts}" in text
    assert "missing     token_embedding.weight (taken from the base)" in text
    assert re.search(
        r"dropped     logits_scale_vision, .* and \d+ more: never used by the released forward",
        text,
    )
    assert "unexpected  none" in text


def test_import_command_writes_the_files_and_the_report(
    tmp_path: Path, clip: Path, tuned: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "best.pth", training_file(published_files.vifi_state(tuned)))
    options = [
        "--system",
        "vifi_clip",
        "--model",
        "tiny",
        "--pretrained",
        str(clip),
        "--out",
        str(tmp_path / "out"),
    ]
    assert run_app(app, ["import-checkpoint", str(file), *options, "--json"], prog_name="bmpt") == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(name).name for name in report["files"]] == [
        "clip.safetensors",
        "checkpoint.safetensors",
    ]
    assert all(Path(name).is_file() for name in report["files"])
    assert (report["missing"], report["unexpected"]) == (["token_embedding.weight"], [])
    (tmp_path / "labels.csv").write_text("id,name\n0,walk\n1,run\n", encoding="utf-8")
    bdc = write(tmp_path / "bdc.pth", training_file(published_files.bdc_state(tuned)))
    command = ["import-checkpoint", str(bdc), *options[2:], "--system", "bdc_clip"]
    assert (
        run_app(app, [*command, "--classes", str(tmp_path / "labels.csv")], prog_name="bmpt") == 2
    )
    assert "its classifier has 5 classes, --classes names 2" in capsys.readouterr().err
    assert (
        run_app(
            app,
            ["import-checkpoint", str(file), *options[2:], "--system", "bike"],
            prog_name="bmpt",
        )
        == 2
    )
    assert re.fullmatch(r"error: .*best\.pth: .*--system\n", capsys.readouterr().err)


def imported_method(content: Any, system: str, reference: Path, folder: Path) -> Method:
    """Write a published file, import it, export it with its base, and read the export."""
    base = load_backbone("reference", str(reference / "clip_tiny.safetensors"))
    imported = import_checkpoint(write(folder / "published.pth", content), system, base)
    model = ModelSettings(name="reference", pretrained=str(reference / "clip_tiny.safetensors"))
    write_import(imported, base, model, folder / "out")
    export_checkpoint(folder / "out" / "checkpoint.safetensors", folder / "model.safetensors")
    return load_model(folder / "model.safetensors").method


def video_clip_of(reference: Path, own: dict[str, torch.Tensor], *, scale: str) -> dict[str, Any]:
    base = load_backbone("reference", str(reference / "clip_tiny.safetensors"))
    return training_file({**published_files.video_clip_state(base, scale=scale), **own})


@torch.no_grad()
def features(
    method: Method, images_BTCHW: torch.Tensor, classes: list[str], texts: list[str]
) -> tuple[Any, Any]:
    sentences = ClassSentences(tuple(classes), tuple((text,) for text in texts))
    return method.encode_clips(clip_inputs(images_BTCHW.unsqueeze(1))), method.encode_sentence(
        method.prepare_classes(sentences)
    )


def step_texts(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> dict[str, list[str]]:
    """Return the sentence of each class in each training step."""
    passes = {
        step: indices for step, indices in stored_passes(tensors, meta).items() if step != "eval"
    }
    return {
        step: [meta["llm"][name][index] for name in meta["classes"]]
        for step, [index] in passes.items()
    }


@torch.no_grad()
def test_imported_vifi_clip_with_prompts_gives_the_originals_logits(
    reference: Path, tmp_path: Path
) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    file = video_clip_of(reference, naive.below(tensors, "ivlp.param."), scale="logit_scale")
    method = imported_method(file, "vifi_clip", reference, tmp_path)
    texts = [f"{name.replace('_', ' ')}." for name in meta["classes"]]
    found = method.logits(*features(method, tensors["images"], meta["classes"], texts))
    assert_close(found["cosine"][:, 0], tensors["ivlp.logits"])


@torch.no_grad()
def test_imported_bmpt_gives_the_releases_logits(reference: Path, tmp_path: Path) -> None:
    tensors, meta = read(reference / "bmpt.safetensors")
    file = video_clip_of(reference, naive.below(tensors, "param."), scale="logit_scale_clip")
    method = imported_method(file, "bmpt", reference, tmp_path)
    for step, texts in step_texts(tensors, meta).items():
        found = method.logits(*features(method, tensors["images"], meta["classes"], texts))
        assert_close(found["cosine"][:, 0], tensors[f"{step}.logits_cos"])


@torch.no_grad()
def test_imported_bdc_clip_gives_the_originals_three_logits(
    reference: Path, tmp_path: Path
) -> None:
    tensors, meta = read(reference / "bdc.safetensors")
    file = video_clip_of(reference, naive.below(tensors, "param."), scale="logit_scale_clip")
    method = imported_method(file, "bdc_clip", reference, tmp_path)
    method.train()
    for step, texts in step_texts(tensors, meta).items():
        found = method.logits(*features(method, tensors["images"], meta["classes"], texts))
        for kind, theirs in (("cosine", "cos"), ("covariance", "bdc"), ("classifier", "cls")):
            assert_close(found[kind][:, 0], tensors[f"{step}.logits_{theirs}"])


@torch.no_grad()
def test_imported_bike_gives_the_originals_logits(reference: Path, tmp_path: Path) -> None:
    tensors, meta = read(reference / "bike.safetensors")
    base = load_backbone("reference", str(reference / "clip_tiny.safetensors"))
    head = naive.below(tensors, "param.")
    file = published_files.bike_file(base, head)
    method = imported_method(file, "bike", reference, tmp_path)
    texts = [f"This is a video about {name}" for name in meta["classes"]]
    found = method.logits(*features(method, tensors["images"], meta["classes"], texts))
    assert_close(found["cosine"][:, 0], tensors["Transf.VCS.logits"])


def test_import_refuses_a_single_tensor(tmp_path: Path, base: Backbone) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(
        FormatError, match=r"tensor\.pth: is not a checkpoint of bmpt: it holds no state dict"
    ):
        import_checkpoint(tmp_path / "tensor.pth", "bmpt", base)


@pytest.mark.parametrize(
    "config", [{"DATA": "x"}, {"DATA": {"NUM_FRAMES": "many"}}, {"DATA": {"NUM_FRAMES": -1}}]
)
def test_import_ignores_an_embedded_config_of_another_form(
    tmp_path: Path, base: Backbone, config: Any
) -> None:
    tuned = tuned_backbone(tmp_path)
    file = tmp_path / "best.pth"
    torch.save({**training_file(STATES["vifi_clip"](tuned)), "config": config}, file)
    imported = import_checkpoint(file, "vifi_clip", base)
    written = write_import(imported, base, ModelSettings(), tmp_path / "out")
    assert len(written.files) == 2
