"""`exchange: batch_gated`: towers side by side, features that move each other."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bmpt.methods.base import COSINE, ClassTexts, Features, Method, Targets
from bmpt.methods.bmpt import NEGATIVE
from bmpt.methods.components.batch_gated import BatchGatedLayer
from bmpt.texts.class_texts import ClassSentences
from tests.bmpt.methods.method_parts import assert_gradients, drawn
from tests.bmpt.tiny import clip_inputs, method_on, random_frames, training_loss

CLASSES = ("walk", "run", "jump")
ALL_BLOCKS, TWO_BLOCKS = {"vision_depth": 4, "text_depth": 4}, {"vision_depth": 2, "text_depth": 2}


def gated(clip: Path, **changes: int) -> tuple[Method, ClassTexts]:
    method = method_on(clip, exchange="batch_gated", **changes).eval()
    return method, texts_of(method)


def texts_of(method: Method, *negatives: str, num_sentences: int = 1) -> ClassTexts:
    sentences = tuple(
        tuple(f"a person {'slowly ' * p}going to {name}" for p in range(num_sentences))
        for name in CLASSES
    )
    other = (
        ClassSentences(CLASSES, tuple((text,) * num_sentences for text in negatives))
        if negatives
        else None
    )
    return method.prepare_classes(ClassSentences(CLASSES, sentences), other)


@torch.no_grad()
def encode(
    method: Method, texts: ClassTexts, frames: torch.Tensor, weights: list[float] | None = None
) -> tuple[Features, Features]:
    return method.encode_together(
        clip_inputs(frames, torch.tensor(weights or [1.0] * len(frames))), texts
    )


def test_a_layer_moves_the_second_halves_by_the_mean_over_frames_and_the_largest_over_classes() -> (
    None
):
    torch.manual_seed(0)
    layer = BatchGatedLayer(6, 4, 5).eval()
    vision_NPE, text_KPE = random_frames(3, 4, 6), random_frames(2, 4, 4, seed=1)
    vision, text = layer(vision_NPE, text_KPE, torch.tensor([1.0, 1.0, 0.0]))
    share = 1 / (1 + math.exp(-0.2))
    mean_HE = (vision_NPE[0, :2] + vision_NPE[1, :2]) / 2
    largest_HE = torch.maximum(text_KPE[0, :2], text_KPE[1, :2])
    for row in range(3):
        torch.testing.assert_close(vision[row, :2], vision_NPE[row, :2])
        torch.testing.assert_close(
            vision[row, 2:], vision_NPE[row, 2:] + share * layer.text_to_vision(largest_HE)
        )
    for row in range(2):
        torch.testing.assert_close(text[row, :2], text_KPE[row, :2])
        torch.testing.assert_close(
            text[row, 2:], text_KPE[row, 2:] + share * layer.vision_to_text(mean_HE)
        )
    assert round(share, 6) == 0.549834
    assert "gate" not in dict(layer.named_parameters())


@pytest.mark.parametrize(("vision", "text"), [(4, 4), (3, 5)])
def test_gradients_equal_finite_differences(vision: int, text: int) -> None:
    layer = drawn(BatchGatedLayer(3, 2, 2), 0).eval()
    inputs = (random_frames(2, vision, 3), random_frames(2, text, 2, seed=1))

    def run(
        layer: BatchGatedLayer, vision_NPE: torch.Tensor, text_KPE: torch.Tensor
    ) -> torch.Tensor:
        outputs = layer(vision_NPE, text_KPE, torch.ones(2).double())
        return torch.cat([output.flatten() for output in outputs])

    assert_gradients(layer, run, *inputs)


def test_class_features_depend_on_the_clips_only_beyond_the_prompt_depth(
    clip: Path,
) -> None:
    one, other = random_frames(2, 1, 4, 3, 32, 32), random_frames(2, 1, 4, 3, 32, 32, seed=1)
    for depth, depends in ((ALL_BLOCKS, False), (TWO_BLOCKS, True)):
        method, texts = gated(clip, **depth)
        features = [encode(method, texts, frames)[1][COSINE] for frames in (one, other)]
        assert bool((features[0] - features[1]).abs().max() > 1e-4) == depends


@pytest.mark.parametrize("depth", [ALL_BLOCKS, TWO_BLOCKS])
def test_clip_features_do_not_depend_on_the_classes(clip: Path, depth: dict[str, int]) -> None:
    """Text prompts stand before the caption in a causal tower."""
    method, texts = gated(clip, **depth)
    frames = random_frames(2, 1, 4, 3, 32, 32)
    of_all, of_one = (
        encode(method, some, frames)[0][COSINE] for some in (texts, texts.rows(slice(1, 2)))
    )
    torch.testing.assert_close(of_all, of_one)


def test_the_towers_move_each_other_from_the_start(clip: Path) -> None:
    method, texts = gated(clip, **ALL_BLOCKS)
    frames = random_frames(2, 1, 4, 3, 32, 32)
    clips, classes = encode(method, texts, frames)
    with torch.no_grad():
        assert (clips[COSINE] - method.encode_clips(clip_inputs(frames))[COSINE]).abs().max() > 1e-3
        assert (classes[COSINE] - method.encode_sentence(texts)[COSINE]).abs().max() > 1e-3


def test_placeholder_samples_and_negatives_change_no_clip_feature(clip: Path) -> None:
    method, texts = gated(clip, **TWO_BLOCKS)
    frames = random_frames(3, 1, 4, 3, 32, 32)
    alone_clips, alone = encode(method, texts, frames[:2])
    clips, classes = encode(method, texts, frames, [1.0, 1.0, 0.0])
    torch.testing.assert_close(classes[COSINE], alone[COSINE], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clips[COSINE][:2], alone_clips[COSINE], rtol=1e-4, atol=1e-5)
    method.train()
    for layer in method.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.eval()
    with_negatives = texts_of(method, "sit", "stand", "lie")
    clips, classes = encode(method, with_negatives, frames[:2])
    torch.testing.assert_close(clips[COSINE], alone_clips[COSINE], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(classes[COSINE], alone[COSINE], rtol=1e-4, atol=1e-5)
    negatives = classes[NEGATIVE]
    assert (torch.cdist(negatives, negatives) + torch.eye(3)).min() > 1e-3


@torch.no_grad()
def test_scores_of_several_sentences_are_of_the_mean_class_features(clip: Path) -> None:
    method, _ = gated(clip, **TWO_BLOCKS)
    texts, frames, ones = (
        texts_of(method, num_sentences=2),
        random_frames(2, 1, 4, 3, 32, 32),
        torch.ones(2),
    )
    each = [method.encode_together(clip_inputs(frames, ones), texts, index) for index in range(2)]
    classes_KD = F.normalize(each[0][1][COSINE] + each[1][1][COSINE], dim=-1)
    expected = method.clip.logit_scale.exp() * each[0][0][COSINE][:, 0] @ classes_KD.T
    torch.testing.assert_close(
        method.predict(clip_inputs(frames, ones), texts), expected, rtol=1e-4, atol=1e-4
    )


def test_all_that_trains_gets_a_gradient_of_the_loss(clip: Path) -> None:
    method, texts = gated(clip, **TWO_BLOCKS)
    method.train()
    targets = Targets(torch.tensor([0, 1]), torch.ones(2))
    training_loss(method, random_frames(2, 1, 4, 3, 32, 32), texts, targets).backward()
    still = [name for name in method.trained_groups() if method.get_parameter(name).grad is None]
    assert still == []
    assert any(name.startswith("exchange.layers.3.") for name in method.trained_groups())
