"""Sentences of a class and kinds of logits, joined."""

from __future__ import annotations

import math

import pytest
import torch

from bmpt.methods.components.fusion import fuse_probabilities, mean_over_sentences
from tests.bmpt.tiny import random_frames


def test_each_sentence_counts_the_same_however_long_its_feature() -> None:
    features_PKF = random_frames(3, 4, 5)
    lengths = torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1)
    expected = torch.stack([sum_of_units(features_PKF[:, k]) for k in range(4)])
    torch.testing.assert_close(mean_over_sentences(features_PKF * lengths), expected)
    torch.testing.assert_close(expected.norm(dim=-1), torch.ones(4))


def sum_of_units(vectors_PF: torch.Tensor) -> torch.Tensor:
    total = sum(
        (vector / vector.square().sum().sqrt() for vector in vectors_PF),
        torch.zeros(vectors_PF.shape[1]),
    )
    return total / total.square().sum().sqrt()


def test_the_class_feature_of_one_sentence_is_its_unit_feature() -> None:
    features_KF = random_frames(4, 5)
    unit = features_KF / features_KF.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(mean_over_sentences(features_KF[None]), unit)


def test_probabilities_are_averaged_over_views_and_summed_over_kinds() -> None:
    first, second = random_frames(2, 3, 4).double(), random_frames(2, 3, 4, seed=1).double()
    ours = fuse_probabilities(first, second, coefficients=(0.7, 0.3))
    for clip in range(2):
        for name in range(4):
            expected = 0.0
            for kind, coefficient in ((first, 0.7), (second, 0.3)):
                for view in range(3):
                    exponents = [math.exp(value) for value in kind[clip, view].tolist()]
                    expected += coefficient * exponents[name] / sum(exponents) / 3
            assert ours[clip, name].item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(ours.sum(dim=-1), torch.ones(2, dtype=torch.float64))


def test_one_confident_view_does_not_outvote_the_others() -> None:
    views = torch.tensor([[[8.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    assert views.mean(dim=1).argmax().item() == 0
    assert fuse_probabilities(views, coefficients=[1.0]).argmax().item() == 1


def test_half_precision_logits_are_fused_in_float32() -> None:
    logits = random_frames(2, 1, 4).bfloat16()
    assert torch.equal(
        fuse_probabilities(logits, coefficients=[0.5]),
        fuse_probabilities(logits.float(), coefficients=[0.5]),
    )


def test_a_kind_of_logits_without_a_coefficient_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        fuse_probabilities(random_frames(1, 1, 2), random_frames(1, 1, 2), coefficients=[1.0])


@pytest.mark.parametrize("sentences", [1, 3])
def test_gradients_equal_finite_differences(sentences: int) -> None:
    features = random_frames(sentences, 2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(mean_over_sentences, features)
    logits = [random_frames(2, 2, 3, seed=seed).double().requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(
        lambda *both: fuse_probabilities(*both, coefficients=(0.7, 0.3)), logits
    )
