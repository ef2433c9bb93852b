"""BIKE's parts against loops over their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bmpt.methods.components.bike_attributes import (
    ATTRIBUTES_WEIGHT,
    VIDEO_WEIGHT,
    AttributeHead,
    attribute_text,
)
from bmpt.methods.components.bike_video import (
    TemporalTransformer,
    mean_frame_cosines,
    spotted_cosines,
    word_mask,
)
from bmpt.methods.components.fusion import fuse_probabilities
from tests.bmpt.methods.method_parts import assert_gradients, drawn, ids_with_eot
from tests.bmpt.parity import naive_originals as naive
from tests.bmpt.tiny import random_frames


def transformer_of(
    width: int, heads: int, layers: int, *, max_frames: int = 77, seed: int = 0
) -> TemporalTransformer:
    return drawn(
        TemporalTransformer(width, num_heads=heads, num_layers=layers, max_frames=max_frames), seed
    )


@given(
    clips=st.integers(1, 2),
    frames=st.integers(1, 5),
    heads=st.integers(1, 3),
    width=st.integers(1, 3),
    layers=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_the_temporal_transformer_equals_a_loop(
    clips: int, frames: int, heads: int, width: int, layers: int, seed: int
) -> None:
    width = max(2, heads * width)
    heads = heads if width % heads == 0 else 1
    transformer = transformer_of(width, heads, layers, max_frames=frames + 1, seed=seed)
    frames_BTD = random_frames(clips, frames, width, seed=seed).double()
    with torch.no_grad():
        ours = transformer(frames_BTD)
        for clip in range(clips):
            expected = naive.temporal_transformer(transformer.state_dict(), frames_BTD[clip], heads)
            torch.testing.assert_close(ours[clip], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("training", [True, False])
def test_the_temporal_transformer_knows_the_order_of_frames_in_both_modes(training: bool) -> None:
    transformer = transformer_of(8, 2, 6).train(training)
    frames_BTD = random_frames(1, 4, 8).double()
    with torch.no_grad():
        forth, back = transformer(frames_BTD), transformer(frames_BTD.flip(1)).flip(1)
    assert (forth - back).abs().max() > 1e-2


def test_the_start_of_the_temporal_transformer_is_the_releases() -> None:
    torch.manual_seed(0)
    transformer = TemporalTransformer(64, num_heads=2)
    spreads = {
        name: value.std().item()
        for name, value in transformer.named_parameters()
        if value.ndim == 2
    }
    assert len(spreads) == 1 + 6 * 4
    for name, spread in spreads.items():
        # the joint projection keeps the start of torch: uniform with the variance 2 / (fan in + fan
        # out)
        expected = (2 / (4 * 64)) ** 0.5 if "in_proj" in name else 0.02
        assert spread == pytest.approx(expected, rel=0.06), name
    vectors = {name: value for name, value in transformer.named_parameters() if value.ndim == 1}
    assert all(
        torch.equal(value, torch.full_like(value, "ln" in name and "weight" in name))
        for name, value in vectors.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_temporal_transformer_keeps_the_dtype_under_autocast(
    dtype: torch.dtype,
) -> None:
    transformer = transformer_of(8, 2, 2).float()
    frames_BTD = random_frames(2, 3, 8).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours = transformer(frames_BTD)
    assert ours.dtype == dtype
    with torch.no_grad():
        plain = transformer(frames_BTD.float())
    assert (ours.float() - plain).abs().max() < 0.05 * plain.abs().max()


@given(
    clips=st.integers(1, 3),
    frames=st.integers(1, 5),
    width=st.integers(2, 6),
    context=st.integers(1, 6),
    counts_padding=st.booleans(),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_concept_spotting_equals_a_loop(
    clips: int,
    frames: int,
    width: int,
    context: int,
    counts_padding: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    eots = data.draw(st.lists(st.integers(0, context - 1), min_size=1, max_size=3))
    is_word_KS = word_mask(ids_with_eot(*eots, context=context), counts_padding=counts_padding)
    frames_BTD = 7 * random_frames(clips, frames, width, seed=seed).double()
    classes_KD = 3 * random_frames(len(eots), width, seed=seed + 1).double()
    words_KSD = random_frames(len(eots), context, width, seed=seed + 2).double()
    ours = spotted_cosines(frames_BTD, classes_KD, words_KSD, is_word_KS)
    assert ours.shape == (clips, len(eots))
    for clip in range(clips):
        for name in range(len(eots)):
            words = list(words_KSD[name, is_word_KS[name]])
            expected = naive.spotted_cosine(frames_BTD[clip], classes_KD[name], words)
            assert ours[clip, name].item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)


def test_the_word_mask_ends_at_eot() -> None:
    ids_KS = ids_with_eot(0, 2, 3, context=4)
    expected = [[True, False, False, False], [True, True, True, False], [True, True, True, True]]
    assert word_mask(ids_KS).tolist() == expected
    assert word_mask(ids_KS, counts_padding=True).all()


def test_tokens_after_eot_count_only_with_padding() -> None:
    ids_KS = ids_with_eot(1, context=4)
    frames_BTD, classes_KD, words_KSD = (
        random_frames(*shape) for shape in ((1, 3, 8), (1, 8), (1, 4, 8))
    )
    changed_KSD = words_KSD.clone()
    changed_KSD[:, 2:] *= -1
    for counts_padding in (False, True):
        mask = word_mask(ids_KS, counts_padding=counts_padding)
        before, after = (
            spotted_cosines(frames_BTD, classes_KD, words, mask)
            for words in (words_KSD, changed_KSD)
        )
        assert torch.equal(before, after) != counts_padding


def test_cosines_with_the_texts_of_a_batch_are_columns_of_all_class_cosines() -> None:
    frames_BTD, classes_KD, words_KSD = (
        random_frames(*shape).double() for shape in ((4, 3, 8), (3, 8), (3, 5, 8))
    )
    mask_KS, labels_B = word_mask(ids_with_eot(1, 2, 4, context=5)), torch.tensor([2, 0, 2, 1])
    of_classes = spotted_cosines(frames_BTD, classes_KD, words_KSD, mask_KS)
    of_batch = spotted_cosines(
        frames_BTD, classes_KD[labels_B], words_KSD[labels_B], mask_KS[labels_B]
    )
    torch.testing.assert_close(of_batch, of_classes[:, labels_B])


def test_the_interactions_do_not_depend_on_the_order_of_frames() -> None:
    frames_BTD, classes_KD, words_KSD = (
        random_frames(*shape) for shape in ((2, 4, 8), (3, 8), (3, 5, 8))
    )
    mask = word_mask(ids_with_eot(1, 2, 4, context=5))
    shuffled_BTD = frames_BTD[:, [2, 0, 3, 1]]
    torch.testing.assert_close(
        spotted_cosines(shuffled_BTD, classes_KD, words_KSD, mask),
        spotted_cosines(frames_BTD, classes_KD, words_KSD, mask),
    )
    torch.testing.assert_close(
        mean_frame_cosines(shuffled_BTD, classes_KD), mean_frame_cosines(frames_BTD, classes_KD)
    )


@given(
    clips=st.integers(1, 3),
    frames=st.integers(1, 5),
    classes=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_the_mean_of_un_normalised_frames_meets_the_classes(
    clips: int, frames: int, classes: int, seed: int
) -> None:
    frames_BTD = random_frames(clips, frames, 5, seed=seed).double() * torch.arange(
        1, frames + 1
    ).view(1, -1, 1)
    classes_KD = 3 * random_frames(classes, 5, seed=seed + 1).double()
    ours = mean_frame_cosines(frames_BTD, classes_KD)
    for clip in range(clips):
        expected = torch.stack(
            [naive.mean_frame_cosine(frames_BTD[clip], name) for name in classes_KD]
        )
        torch.testing.assert_close(ours[clip], expected, rtol=1e-9, atol=1e-12)


def test_under_autocast_the_interactions_compute_in_float32() -> None:
    frames_BTD, classes_KD, words_KSD = (
        random_frames(*shape).bfloat16() for shape in ((2, 4, 32), (3, 32), (3, 5, 32))
    )
    mask = word_mask(ids_with_eot(1, 2, 4, context=5))

    def cosines() -> tuple[torch.Tensor, torch.Tensor]:
        return spotted_cosines(frames_BTD, classes_KD, words_KSD, mask), mean_frame_cosines(
            frames_BTD, classes_KD
        )

    plain = cosines()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(cosines(), plain, strict=True))
    assert {part.dtype for part in plain} == {torch.float32}


@given(
    clips=st.integers(1, 3),
    classes=st.integers(1, 4),
    width=st.integers(2, 6),
    seed=st.integers(0, 10**6),
)
def test_the_attribute_head_equals_a_loop(clips: int, classes: int, width: int, seed: int) -> None:
    head = drawn(AttributeHead(width), seed)
    sentences_BD = 5 * random_frames(clips, width, seed=seed).double()
    classes_KD = 3 * random_frames(classes, width, seed=seed + 1).double()
    with torch.no_grad():
        ours = head(sentences_BD, classes_KD)
        for clip in range(clips):
            for name in range(classes):
                expected = naive.attribute_cosine(
                    head.state_dict(), sentences_BD[clip], classes_KD[name]
                )
                assert ours[clip, name].item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)


def test_the_start_of_the_attribute_head_is_the_releases() -> None:
    torch.manual_seed(0)
    for name, value in AttributeHead(256).named_parameters():
        if name.endswith("weight"):
            assert value.std().item() == pytest.approx(0.02, rel=0.02)
        else:
            assert not value.any()


def test_a_clips_sentence_names_its_first_five_attributes() -> None:
    names = ["golf driving", "golf chipping", "golf putting", "hitting", "walk", "run"]
    expected = "This is a video about golf driving,golf chipping,golf putting,hitting,walk"
    assert attribute_text(names) == expected
    assert attribute_text(["run"]) == "This is a video about run"
    with pytest.raises(ValueError, match="leave it out"):
        attribute_text([])


def test_the_two_branches_are_fused_at_0_7_and_0_3_of_unscaled_cosines() -> None:
    assert (VIDEO_WEIGHT, ATTRIBUTES_WEIGHT) == (0.7, 0.3)
    video_BVK, sentence_BVK = torch.tensor([[[0.2, 0.1]]]), torch.tensor([[[-0.1, 0.3]]])
    ours = fuse_probabilities(
        video_BVK, sentence_BVK, coefficients=(VIDEO_WEIGHT, ATTRIBUTES_WEIGHT)
    )
    first = 0.7 / (1 + math.exp(-0.1)) + 0.3 / (1 + math.exp(0.4))
    assert ours[0].tolist() == pytest.approx([first, 1 - first])


def test_the_gradients_of_the_temporal_transformer_equal_finite_differences() -> None:
    def run(transformer: nn.Module, frames_BTD: torch.Tensor) -> torch.Tensor:
        return transformer(frames_BTD)

    assert_gradients(transformer_of(4, 2, 2, max_frames=3), run, random_frames(2, 3, 4))


def test_the_gradients_of_the_attribute_head_equal_finite_differences() -> None:
    def run(head: nn.Module, sentences_BD: torch.Tensor, classes_KD: torch.Tensor) -> torch.Tensor:
        return head(sentences_BD, classes_KD)

    assert_gradients(
        drawn(AttributeHead(4), 0), run, random_frames(2, 4), random_frames(3, 4, seed=1)
    )


@pytest.mark.parametrize("counts_padding", [False, True])
def test_the_gradients_of_the_interactions_equal_finite_differences(counts_padding: bool) -> None:
    mask = word_mask(ids_with_eot(1, 2, context=4), counts_padding=counts_padding)
    frames_BTD, classes_KD, words_KSD = (
        random_frames(*shape).double().requires_grad_() for shape in ((2, 3, 4), (2, 4), (2, 4, 4))
    )
    assert torch.autograd.gradcheck(
        lambda frames, classes, words: spotted_cosines(frames, classes, words, mask),
        (frames_BTD, classes_KD, words_KSD),
    )
    assert torch.autograd.gradcheck(mean_frame_cosines, (frames_BTD, classes_KD))
