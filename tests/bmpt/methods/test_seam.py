"""Methods through the seam that training and scoring use: the originals' logits, losses, gradients,
order of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bmpt.config import RunConfig
from bmpt.methods import METHODS, build_method, validate_method_settings
from bmpt.methods.base import COSINE
from bmpt.methods.bdc_clip import CLASSIFIER, COVARIANCE, BdcClip, BdcClipSettings
from bmpt.methods.bike import Bike
from bmpt.methods.bmpt import NEGATIVE
from bmpt.texts.class_texts import ClassSentences, class_sentences
from shards.config import load_settings
from shards.errors import ConfigError
from tests.bmpt.methods.small_methods import CLASSES, TUNES, method_of, sentences, targets
from tests.bmpt.parity import naive_originals as naive
from tests.bmpt.parity.stored_outputs import (
    assert_close,
    bdc_state,
    read,
    space_time_blocks,
    stored_passes,
    vifi_clip_of_the_release,
)
from tests.bmpt.runs import ROOT
from tests.bmpt.tiny import clip_inputs, random_frames, training_loss


@pytest.mark.parametrize("name", [name for name in METHODS if name != "zero_shot"])
def test_the_loss_gives_a_gradient_to_exactly_the_trained_parameters(clip: Path, name: str) -> None:
    method = method_of(clip, name, tune=TUNES[name], temporal_position="learned")
    method.train()
    if name == "bmpt":
        with torch.no_grad():
            for parameter_name, parameter in method.named_parameters():
                if "gate" in parameter_name:
                    parameter.fill_(0.5)
    texts = method.prepare_classes(sentences())
    loss = training_loss(method, random_frames(3, 1, 4, 3, 32, 32), texts, targets([0, 1, 2]))
    assert loss.shape == ()
    loss.backward()
    moved = {
        name
        for name, p in method.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert moved <= method.trained_groups().keys()
    still = method.trained_groups().keys() - moved
    # a key's bias moves no softmax; what has no part in a loss of frame-wise means
    assert all("in_proj_bias" in name or "scale" in name for name in still), still


@pytest.mark.parametrize("name", METHODS)
def test_a_placeholder_sample_adds_nothing_to_the_loss(clip: Path, name: str) -> None:
    method = method_of(clip, name, tune=TUNES[name])
    method.train()
    texts = method.prepare_classes(sentences())
    frames = random_frames(3, 1, 4, 3, 32, 32)
    with torch.no_grad():
        alone = training_loss(method, frames[:2], texts, targets([0, 1]))
        beside = training_loss(method, frames, texts, targets([0, 1, 2], [1.0, 1.0, 0.0]))
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_method_scores_clips_of_any_number_of_views(
    clip: Path, name: str, dtype: torch.dtype
) -> None:
    method = method_of(clip, name, tune=TUNES[name]).eval()
    texts = method.prepare_classes(sentences())
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        scores_BK = method.class_scores(
            method.encode_clips(clip_inputs(random_frames(2, 3, 4, 3, 32, 32))),
            method.class_features(texts),
        )
    assert scores_BK.shape == (2, 3)
    assert scores_BK.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_with_its_weights_in_bfloat16(clip: Path, name: str) -> None:
    method = method_of(clip, name, tune=TUNES[name]).to(torch.bfloat16)
    texts, frames = (
        method.prepare_classes(sentences()),
        random_frames(2, 1, 4, 3, 32, 32).bfloat16(),
    )
    with torch.no_grad():
        assert method.eval().predict(clip_inputs(frames, torch.ones(2)), texts).isfinite().all()
    assert training_loss(method.train(), frames, texts, targets([0, 1])).isfinite()


def test_the_attributes_branch_runs_with_its_weights_in_bfloat16(clip: Path) -> None:
    method = method_of(clip, "bike", tune="image", attributes=True).to(torch.bfloat16)
    texts, frames = (
        method.prepare_classes(sentences()),
        random_frames(2, 1, 4, 3, 32, 32).bfloat16(),
    )
    attributes_BD = random_frames(2, 16)
    with torch.no_grad():
        scores = method.eval().predict(
            clip_inputs(frames, torch.ones(2), attributes=attributes_BD), texts
        )
    assert scores.isfinite().all()
    assert training_loss(
        method.train(), frames, texts, targets([0, 1], attributes=attributes_BD)
    ).isfinite()


@torch.no_grad()
def test_scoring_averages_sentences_and_training_draws_one(clip: Path) -> None:
    method = method_of(clip, "zero_shot").eval()
    texts = method.prepare_classes(sentences(3))
    each = torch.stack([method.encode_sentence(texts, index)[COSINE] for index in range(3)])
    expected = torch.nn.functional.normalize(each.mean(dim=0), dim=-1)
    torch.testing.assert_close(method.class_features(texts)[COSINE], expected)
    drawn = method.encode_sentence(texts.drawn(torch.tensor([2, 0, 1])))[COSINE]
    torch.testing.assert_close(drawn, torch.stack([each[2, 0], each[0, 1], each[1, 2]]))


def test_negatives_and_knowledge_add_to_bmpts_loss_and_short_negatives_stay_apart(
    clip: Path,
) -> None:
    """As released, prompts overwrite the words of short negatives, and all of them become one
    vector."""
    method = method_of(clip, "bmpt", text_tokens=4)
    method.train()
    negatives = ClassSentences(CLASSES, (("sit",), ("stand",), ("lie",)))
    texts = method.prepare_classes(sentences(), negatives)
    features = method.encode_sentence(texts)
    distances = torch.cdist(features[NEGATIVE], features[NEGATIVE]) + torch.eye(3)
    assert distances.min() > 1e-3
    frames = random_frames(3, 1, 4, 3, 32, 32)
    plain = training_loss(method, frames, method.prepare_classes(sentences()), targets([0, 1, 2]))
    pushed = training_loss(method, frames, texts, targets([0, 1, 2]))
    knowledge_BD = torch.nn.functional.normalize(torch.randn(3, features[COSINE].shape[1]), dim=-1)
    both = training_loss(method, frames, texts, targets([0, 1, 2], knowledge=knowledge_BD))
    assert plain < pushed < both
    released = method_of(clip, "bmpt", text_tokens=4, exchange="none")
    with pytest.raises(ConfigError, match="overwrites the first 4 caption tokens"):
        released.prepare_classes(sentences(), negatives)


@pytest.mark.parametrize(
    ("name", "changes"), [("bmpt", {"causal": True}), ("bdc_clip", {"causal": True})]
)
@torch.no_grad()
def test_a_clip_and_its_reverse_differ_only_with_a_causal_mask(
    clip: Path, name: str, changes: dict[str, Any]
) -> None:
    frames = random_frames(1, 1, 4, 3, 32, 32)
    for more, differs in ((changes, True), ({}, False)):
        method = method_of(clip, name, tune=TUNES[name], **more).eval()
        there, back = (
            method.encode_clips(clip_inputs(order))[COSINE] for order in (frames, frames.flip(2))
        )
        assert ((there - back).abs().max() > 1e-3) == differs


def test_a_causal_mask_without_blocks_to_act_in_is_refused(clip: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"method\.causal=true: acts in blocks that see all frames"
    ):
        method_of(clip, "vifi_clip", tune="all", causal=True, space_time_blocks=())


@torch.no_grad()
def test_the_classifier_of_bdc_clip_has_no_say_about_other_classes(clip: Path) -> None:
    method = method_of(clip, "bdc_clip", tune="all").eval()
    clips = method.encode_clips(clip_inputs(random_frames(2, 1, 4, 3, 32, 32)))
    own = method.class_features(method.prepare_classes(sentences()))
    assert set(method.logits(clips, own)) == {COSINE, COVARIANCE, CLASSIFIER}
    others = ClassSentences(("sit", "stand"), (("sit",), ("stand",)))
    of_others = method.class_features(method.prepare_classes(others))
    assert set(method.logits(clips, of_others)) == {COSINE, COVARIANCE}
    assert method.class_scores(clips, of_others).shape == (2, 2)


def test_bike_takes_one_text_per_class(clip: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.name=bike: takes one text per class, got 2"):
        method_of(clip, "bike", tune="image").prepare_classes(sentences(2))


def llm_sentences(meta: dict[str, Any]) -> ClassSentences:
    return ClassSentences(
        tuple(meta["classes"]), tuple(tuple(meta["llm"][name]) for name in meta["classes"])
    )


@torch.no_grad()
def test_bdc_clip_through_the_seam_gives_the_originals_logits(
    reference: Path, backbone: Any
) -> None:
    tensors, meta = read(reference / "bdc.safetensors")
    state = bdc_state(tensors)
    sized: dict[str, Any] = {
        "reduced_width": len(state["vision_reduce.weight"]),
        "space_time_blocks": space_time_blocks(backbone),
    }
    settings = BdcClipSettings(tune="all", floors_scale=True, **sized)
    method = build_method(backbone, settings, num_frames=meta["T"], seed=0, classes=meta["classes"])
    assert isinstance(method, BdcClip)
    method.heads.load_state_dict(state)
    texts = method.prepare_classes(llm_sentences(meta))
    for name, indices in stored_passes(tensors, meta).items():
        method.train(name != "eval")
        classes = (
            method.class_features(texts)
            if name == "eval"
            else method.encode_sentence(texts, *indices)
        )
        logits = method.logits(
            method.encode_clips(clip_inputs(tensors["images"].unsqueeze(1))), classes
        )
        for kind, theirs in ((COSINE, "cos"), (CLASSIFIER, "cls"), (COVARIANCE, "bdc")):
            assert_close(logits[kind][:, 0], tensors[f"{name}.logits_{theirs}"])


@pytest.mark.parametrize("interaction", ["DP", "VCS"])
@pytest.mark.parametrize("header", ["None", "Transf"])
@torch.no_grad()
def test_bike_through_the_seam_gives_the_originals_logits(
    reference: Path, backbone: Any, header: str, interaction: str
) -> None:
    tensors, meta = read(reference / "bike.safetensors")
    temporal = naive.below(tensors, "param.")
    layers = 0 if header == "None" else len(naive.blocks(temporal))
    settings = validate_method_settings(
        {
            **{"name": "bike", "tune": "image", "interaction": interaction},
            **{"temporal_layers": layers, "counts_padding": True},
        }
    )
    method = build_method(backbone, settings, num_frames=meta["T"], seed=0, classes=meta["classes"])
    assert isinstance(method, Bike)
    if method.temporal is not None:
        method.temporal.load_state_dict(temporal)
    names = tuple(meta["classes"])
    texts = method.prepare_classes(
        ClassSentences(names, tuple((f"This is a video about {name}",) for name in names))
    )
    clips = method.eval().encode_clips(clip_inputs(tensors["images"].unsqueeze(1)))
    assert_close(
        method.logits(clips, method.class_features(texts))[COSINE][:, 0],
        tensors[f"{header}.{interaction}.logits"],
    )


@torch.no_grad()
def test_vifi_clips_prompts_through_the_seam_give_the_originals_logits(
    reference: Path, backbone: Any
) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    method = vifi_clip_of_the_release(backbone, tensors, meta)
    text = load_settings(
        RunConfig, ROOT / "configs" / "methods" / "vifi_clip_prompts.yaml", ["data.pool=none"]
    ).text
    names = ["ApplyEyeMakeup", "brush_hair"]
    assert method.prepare_texts(class_sentences(names, text).at(0)).equal(
        method.prepare_texts(["ApplyEyeMakeup.", "brush hair."])
    )
    texts = method.prepare_classes(class_sentences(meta["classes"], text))
    clips = method.eval().encode_clips(clip_inputs(tensors["images"].unsqueeze(1)))
    assert_close(method.class_scores(clips, method.class_features(texts)), tensors["ivlp.logits"])


@torch.no_grad()
def test_logits_of_features_are_float32_under_autocast(clip: Path) -> None:
    """bfloat16 has 256 steps between 0.5 and 1: many cosines would be equal."""
    method = method_of(clip, "zero_shot").eval()
    clips = {COSINE: torch.nn.functional.normalize(random_frames(16, 1, 16), dim=-1)}
    classes = {COSINE: torch.nn.functional.normalize(random_frames(101, 16, seed=1), dim=-1)}
    expected = method.class_scores(clips, classes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            method.class_scores(clips, classes), expected, rtol=1e-6, atol=1e-6
        )
        texts = method.prepare_classes(sentences())
        assert method.encode_sentence(texts)[COSINE].norm(dim=-1).sub(1).abs().max() < 1e-6


def test_padding_of_class_texts_is_computed_only_where_it_counts(clip: Path) -> None:
    masked, unmasked = (
        method_of(clip, "bike", tune="image", counts_padding=flag) for flag in (False, True)
    )
    assert masked.prepare_classes(sentences()).ids_KPS.shape[-1] < 20
    assert unmasked.prepare_classes(sentences()).ids_KPS.shape[-1] == 77


def test_a_warning_says_that_the_classifier_is_left_out(clip: Path) -> None:
    method = method_of(clip, "bdc_clip", tune="all")
    texts = method.prepare_classes(sentences())
    assert method.scoring_warning(texts) is None
    said = method.scoring_warning(texts.rows(slice(0, 2)))
    assert said is not None
    assert "trained on 3 classes that are not these 2" in said


def test_start_words_of_no_prompts_are_refused(clip: Path) -> None:
    for changes in ({"tune": "all"}, {"tune": "prompts", "text_depth": 0}):
        with pytest.raises(
            ConfigError, match=r"method\.start_words='a photo of a': .*there are none"
        ):
            method_of(clip, "vifi_clip", start_words="a photo of a", **changes)
