"""The loss is a weighted sum, so that the caller can divide by the clips of the global batch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bmpt.methods.components.losses import (
    cross_entropy_sum,
    divergence_sum,
    knowledge_logits,
    matching_sum,
    negative_margin_sum,
)
from tests.bmpt.parity import naive_originals as naive
from tests.bmpt.tiny import random_frames

LABELS = torch.tensor([0, 4, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_with_weights_1_the_sum_over_the_count_is_torchs_mean(smoothing: float) -> None:
    logits = random_frames(3, 5)
    ours = cross_entropy_sum(logits, LABELS, torch.ones(3), label_smoothing=smoothing) / 3
    torch.testing.assert_close(ours, F.cross_entropy(logits, LABELS, label_smoothing=smoothing))


def test_an_empty_place_of_weight_0_changes_neither_loss_nor_gradient() -> None:
    logits = random_frames(3, 5).requires_grad_()
    loss = cross_entropy_sum(logits, LABELS, torch.tensor([1.0, 0.0, 1.0]))
    loss.backward()
    alone = cross_entropy_sum(logits[[0, 2]].detach(), LABELS[[0, 2]], torch.ones(2))
    torch.testing.assert_close(loss.detach(), alone)
    assert logits.grad is not None
    assert torch.equal(logits.grad[1], torch.zeros(5))
    assert logits.grad[0].abs().sum() > 0


def test_a_batch_of_empty_places_has_loss_0_with_a_gradient_path() -> None:
    logits = random_frames(3, 5).requires_grad_()
    loss = cross_entropy_sum(logits, LABELS, torch.zeros(3))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


def test_the_parts_of_a_batch_sum_to_the_whole() -> None:
    logits, weights = random_frames(3, 5), torch.tensor([1.0, 0.0, 1.0])
    whole = cross_entropy_sum(logits, LABELS, weights)
    parts = [
        cross_entropy_sum(logits[i : i + 1], LABELS[i : i + 1], weights[i : i + 1])
        for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = random_frames(3, 5).bfloat16()
    loss = cross_entropy_sum(logits, LABELS, torch.ones(3))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy_sum(logits.float(), LABELS, torch.ones(3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_divergence_of_the_specifications_example_is_its_numbers(dtype: torch.dtype) -> None:
    logits, labels = torch.arange(16.0, dtype=dtype).reshape(4, 4) / 4, torch.tensor([0, 1, 0, 2])
    rows, columns = (divergence_sum(side, labels, torch.ones(4)) / 4 for side in (logits, logits.T))
    assert rows.item() == pytest.approx(1.0774498, abs=1e-6)
    assert columns.item() == pytest.approx(1.5926401, abs=1e-6)
    both = matching_sum(logits, labels, torch.ones(4)) / 4
    assert both.item() == pytest.approx((1.0774498 + 1.5926401) / 2, abs=1e-6)


def test_the_naive_loops_give_the_numbers_of_the_specification() -> None:
    logits, labels = torch.arange(16.0).reshape(4, 4).double() / 4, [0, 1, 0, 2]
    means = [naive.divergences(side, labels).mean().item() for side in (logits, logits.T)]
    assert means == pytest.approx([1.0774498, 1.5926401], abs=1e-6)


@given(
    clips=st.integers(1, 4),
    classes=st.integers(1, 5),
    smoothing=st.sampled_from([0.0, 0.1, 0.2]),
    spread=st.sampled_from([1.0, 50.0]),
    seed=st.integers(0, 10**6),
)
def test_the_cross_entropy_with_smoothing_equals_a_loop(
    clips: int, classes: int, smoothing: float, spread: float, seed: int
) -> None:
    logits_BK = spread * random_frames(clips, classes, seed=seed).double()
    labels = [(seed + clip) % classes for clip in range(clips)]
    weights = [float((seed + clip) % 3 > 0) for clip in range(clips)]
    ours = cross_entropy_sum(
        logits_BK, torch.tensor(labels), torch.tensor(weights).double(), label_smoothing=smoothing
    )
    expected = 0.0
    for row, label, weight in zip(logits_BK, labels, weights, strict=True):
        expected += weight * naive.cross_entropy(row, label, smoothing=smoothing).item()
    assert ours.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(
    size=st.integers(1, 6),
    names=st.integers(1, 4),
    spread=st.sampled_from([0.1, 1.0, 50.0]),
    dual=st.booleans(),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_the_matching_loss_equals_a_loop_over_the_valid_clips(
    size: int, names: int, spread: float, dual: bool, seed: int, data: st.DataObject
) -> None:
    logits_NN = spread * random_frames(size, size, seed=seed).double()
    labels = data.draw(st.lists(st.integers(0, names - 1), min_size=size, max_size=size))
    valid = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    ours = matching_sum(logits_NN, torch.tensor(labels), torch.tensor(valid).double(), dual=dual)
    kept = [index for index in range(size) if valid[index]]
    alone = [labels[index] for index in kept]
    expected = (
        naive.matching(logits_NN[kept][:, kept], alone, dual=dual).sum().item() if kept else 0.0
    )
    assert ours.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("bounds", [(0, 2, 5), (0, 0, 1, 5), (0, 1, 2, 3, 4, 5)])
def test_the_parts_of_the_ranks_sum_to_the_whole_in_value_and_gradient(
    bounds: tuple[int, ...], dual: bool
) -> None:
    logits_NN = 5 * random_frames(5, 5).double()
    labels_N, weights_N = torch.tensor([0, 1, 0, 2, 1]), torch.tensor([1.0, 1, 0, 1, 1]).double()

    def value_and_gradient(owns: list[slice]) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = logits_NN.clone().requires_grad_()
        parts = [matching_sum(leaf, labels_N, weights_N, own=own, dual=dual) for own in owns]
        total = torch.stack(parts).sum()
        return total.detach(), torch.autograd.grad(total, leaf)[0]

    whole = value_and_gradient([slice(None)])
    parts = value_and_gradient([slice(*pair) for pair in itertools.pairwise(bounds)])
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_empty_place_is_neither_a_row_nor_a_column() -> None:
    logits_NN = random_frames(4, 4).double().requires_grad_()
    labels_N, weights_N = torch.tensor([0, 0, 1, 2]), torch.tensor([1.0, 0, 1, 1]).double()
    loss = matching_sum(logits_NN, labels_N, weights_N)
    loss.backward()
    kept = [0, 2, 3]
    alone = matching_sum(logits_NN.detach()[kept][:, kept], labels_N[kept], torch.ones(3).double())
    torch.testing.assert_close(loss.detach(), alone)
    assert logits_NN.grad is not None
    assert not logits_NN.grad[1].any()
    assert not logits_NN.grad[:, 1].any()
    assert logits_NN.grad[0, 2] != 0


@pytest.mark.parametrize("dual", [False, True])
def test_a_batch_without_a_valid_clip_has_a_matching_loss_of_0_with_a_gradient_path(
    dual: bool,
) -> None:
    logits_NN = random_frames(3, 3).requires_grad_()
    loss = matching_sum(logits_NN, torch.tensor([0, 1, 0]), torch.zeros(3), dual=dual)
    loss.backward()
    assert loss.item() == 0
    assert logits_NN.grad is not None
    assert not logits_NN.grad.any()


def test_the_matching_loss_of_half_precision_logits_is_taken_in_float32() -> None:
    logits_NN, labels_N = random_frames(3, 3).bfloat16(), torch.tensor([0, 1, 0])
    loss = matching_sum(logits_NN, labels_N, torch.ones(3))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, matching_sum(logits_NN.float(), labels_N, torch.ones(3)))


@pytest.mark.parametrize("dual", [False, True])
def test_the_gradient_of_the_matching_loss_equals_finite_differences(dual: bool) -> None:
    labels_N, weights_N = torch.tensor([0, 1, 0, 2]), torch.tensor([1.0, 1, 1, 0]).double()
    logits_NN = 3 * random_frames(4, 4).double()
    assert torch.autograd.gradcheck(
        lambda logits: matching_sum(logits, labels_N, weights_N, dual=dual),
        logits_NN.requires_grad_(),
    )


@given(
    clips=st.integers(1, 4),
    classes=st.integers(1, 5),
    margin=st.sampled_from([0.0, 0.1, 0.7]),
    seed=st.integers(0, 99),
)
def test_the_negative_margin_equals_a_loop(
    clips: int, classes: int, margin: float, seed: int
) -> None:
    logits, negatives = random_frames(2, clips, classes, seed=seed).double()
    labels = [(seed + clip) % classes for clip in range(clips)]
    weights = [float((seed + clip) % 3 > 0) for clip in range(clips)]
    ours = negative_margin_sum(
        logits, negatives, torch.tensor(labels), torch.tensor(weights).double(), margin=margin
    )
    expected = 0.0
    for row, other, label, weight in zip(logits, negatives, labels, weights, strict=True):
        expected += weight * naive.negative_margin(row, other, label, margin=margin).item()
    assert ours.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_a_class_that_beats_its_negative_by_the_margin_costs_nothing() -> None:
    logits, negatives = torch.tensor([[0.0, 4.0]]), torch.tensor([[4.0, 0.0]])
    assert negative_margin_sum(logits, negatives, torch.tensor([1]), torch.ones(1)).item() == 0
    assert negative_margin_sum(negatives, logits, torch.tensor([1]), torch.ones(1)).item() > 1
    equal = negative_margin_sum(logits, logits, torch.tensor([1]), torch.ones(1))
    assert equal.item() == pytest.approx(0.1)


def test_the_gradient_of_the_negative_margin_equals_finite_differences() -> None:
    labels_B, weights_B = torch.tensor([0, 2, 1]), torch.tensor([1.0, 0, 1]).double()
    logits = [random_frames(3, 4, seed=seed).double().requires_grad_() for seed in (1, 2)]

    def run(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        return negative_margin_sum(positive, negative, labels_B, weights_B, margin=0.9)

    assert run(*logits).item() > 0
    assert torch.autograd.gradcheck(run, logits)


@given(
    clips=st.integers(1, 3),
    classes=st.integers(1, 4),
    width=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_knowledge_logits_are_scaled_cosines(
    clips: int, classes: int, width: int, seed: int
) -> None:
    knowledge_BD = 5 * random_frames(clips, width, seed=seed).double()
    classes_KD = random_frames(classes, width, seed=seed + 1).double()
    ours = knowledge_logits(knowledge_BD, classes_KD, torch.tensor(20.0))
    for clip, vector in enumerate(knowledge_BD.tolist()):
        for name, other in enumerate(classes_KD.tolist()):
            expected = (
                20 * sum(a * b for a, b in zip(vector, other, strict=True)) / math.hypot(*vector)
            )
            assert ours[clip, name].item() == pytest.approx(
                expected / math.hypot(*other), rel=1e-9, abs=1e-9
            )


def test_the_knowledge_loss_moves_the_class_texts_towards_the_knowledge_of_their_clips() -> None:
    knowledge_BD, classes_KD = (
        random_frames(3, 8).double(),
        random_frames(5, 8, seed=1).double().requires_grad_(),
    )
    scale = torch.tensor(20.0).double().requires_grad_()

    def loss(classes_KD: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return cross_entropy_sum(
            knowledge_logits(knowledge_BD, classes_KD, scale), LABELS, torch.ones(3).double()
        )

    assert torch.autograd.gradcheck(loss, (classes_KD, scale))
    gradient = torch.autograd.grad(loss(classes_KD, scale), classes_KD)[0]
    assert loss(classes_KD - 1e-3 * gradient, scale) < loss(classes_KD, scale)


def test_knowledge_logits_are_the_same_under_autocast() -> None:
    knowledge_BD, classes_KD = random_frames(3, 64), random_frames(5, 64, seed=1)
    plain = knowledge_logits(knowledge_BD, classes_KD, torch.tensor(100.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(knowledge_logits(knowledge_BD, classes_KD, torch.tensor(100.0)), plain)
