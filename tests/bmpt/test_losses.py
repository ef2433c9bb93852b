"""The loss is a weighted sum, so that the caller can divide by the clips of the global batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bmpt.losses import cross_entropy_sum
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
    parts = [cross_entropy_sum(logits[i : i + 1], LABELS[i : i + 1], weights[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = random_frames(3, 5).bfloat16()
    loss = cross_entropy_sum(logits, LABELS, torch.ones(3))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy_sum(logits.float(), LABELS, torch.ones(3)))
