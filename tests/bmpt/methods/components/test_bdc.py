"""Brownian distance covariance against the numbers of the specification and against loops over its
formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bmpt.methods.components.bdc import BdcHeads, distance_covariance, weigh_tokens
from tests.bmpt.methods.method_parts import assert_gradients, drawn, ids_with_eot
from tests.bmpt.parity import naive_originals as naive
from tests.bmpt.tiny import random_frames


def heads_of(width: int, classes: int, reduced: int, *, seed: int = 0, **changes: Any) -> BdcHeads:
    return drawn(BdcHeads(width, classes, reduced_width=reduced, **changes), seed)


CHANNELS = torch.tensor([[1.0, 0, 2, -1], [0, 1, 1, 1], [2, 2, 0, 1]], dtype=torch.float64)


COVARIANCE = [-0.787742, 0.280758, 0.506984, -0.515257, 0.234499, -0.741483]
WEIGHTED_COVARIANCE = [-0.142603, 0.046928, 0.095675, -0.210258, 0.163330, -0.259005]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_covariance_of_the_specifications_example_is_its_numbers(dtype: torch.dtype) -> None:
    assert distance_covariance(CHANNELS.T.to(dtype)).tolist() == pytest.approx(COVARIANCE, abs=1e-6)


def test_the_weighted_covariance_of_the_specifications_example_is_its_numbers() -> None:
    weighted = weigh_tokens(CHANNELS.T, CHANNELS.T[0])
    weights = (weighted / CHANNELS.T).nanmean(dim=-1)
    assert weights.tolist() == pytest.approx([0.544180, 0.305494, 0.096277, 0.054048], abs=1e-6)
    assert distance_covariance(weighted).tolist() == pytest.approx(WEIGHTED_COVARIANCE, abs=1e-6)


def test_the_naive_loops_give_the_numbers_of_the_specification() -> None:
    weighed = naive.weighed(CHANNELS.T, CHANNELS.T[0])
    assert naive.distance_covariance(CHANNELS.T).tolist() == pytest.approx(COVARIANCE, abs=1e-6)
    assert naive.distance_covariance(weighed).tolist() == pytest.approx(
        WEIGHTED_COVARIANCE, abs=1e-6
    )


@given(
    sets=st.integers(1, 3),
    tokens=st.integers(1, 7),
    width=st.integers(1, 6),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 10**6),
)
def test_the_covariance_equals_a_loop(
    sets: int, tokens: int, width: int, size: float, seed: int
) -> None:
    values = size * random_frames(sets, tokens, width, seed=seed).double()
    expected = torch.stack([naive.distance_covariance(tokens_Md) for tokens_Md in values])
    torch.testing.assert_close(distance_covariance(values), expected, rtol=1e-8, atol=1e-9)


@given(
    clips=st.integers(1, 2),
    frames=st.integers(1, 4),
    tokens=st.integers(1, 4),
    width=st.integers(2, 5),
    reduced=st.integers(2, 4),
    classes=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_the_video_branch_equals_a_loop(
    clips: int, frames: int, tokens: int, width: int, reduced: int, classes: int, seed: int
) -> None:
    heads = heads_of(width, classes, reduced, seed=seed)
    tokens_BTSD = random_frames(clips, frames, tokens, width, seed=seed).double()
    with torch.no_grad():
        features_BF = heads.video_features(tokens_BTSD)
        logits_BK = heads.classifier_logits(features_BF)
        expected = torch.stack(
            [naive.video_covariance(heads.state_dict(), tokens_TSD) for tokens_TSD in tokens_BTSD]
        )
        of_classes = naive.linear(heads.state_dict(), "vision_bdc_head", expected)
    torch.testing.assert_close(features_BF, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(logits_BK, of_classes, rtol=1e-8, atol=1e-9)


@given(
    context=st.integers(2, 6),
    width=st.integers(2, 5),
    reduced=st.integers(2, 4),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_the_text_branch_equals_a_loop(
    context: int, width: int, reduced: int, seed: int, data: st.DataObject
) -> None:
    heads = heads_of(width, 2, reduced, seed=seed)
    eots = data.draw(st.lists(st.integers(0, context - 1), min_size=1, max_size=3))
    tokens_KSD = random_frames(len(eots), context, width, seed=seed + 1).double()
    with torch.no_grad():
        ours = heads.text_features(tokens_KSD, ids_with_eot(*eots, context=context))
        pairs = zip(tokens_KSD, eots, strict=True)
        expected = torch.stack(
            [naive.text_covariance(heads.state_dict(), tokens_SD, eot) for tokens_SD, eot in pairs]
        )
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-9)


def test_a_batch_of_one_keeps_its_axis_and_its_feature() -> None:
    heads, tokens_BTSD = heads_of(8, 3, 5), random_frames(3, 2, 4, 8).double()
    with torch.no_grad():
        alone, together = heads.video_features(tokens_BTSD[:1]), heads.video_features(tokens_BTSD)
        ids_KS = ids_with_eot(3, context=4)
        text_KF = heads.text_features(tokens_BTSD[:1, 0], ids_KS)
    assert alone.shape == text_KF.shape == (1, 15)
    torch.testing.assert_close(alone[0], together[0])
    assert heads.covariance_logits(alone, text_KF).shape == (1, 1)


def test_the_order_of_frames_and_of_patches_does_not_matter_and_that_of_cls_does() -> None:
    heads, tokens_BTSD = heads_of(8, 3, 5), random_frames(1, 3, 4, 8).double()
    with torch.no_grad():
        feature = heads.video_features(tokens_BTSD)
        torch.testing.assert_close(heads.video_features(tokens_BTSD[:, [2, 0, 1]]), feature)
        torch.testing.assert_close(heads.video_features(tokens_BTSD[:, :, [0, 3, 1, 2]]), feature)
        assert (heads.video_features(tokens_BTSD[:, :, [1, 0, 2, 3]]) - feature).abs().max() > 1e-4


def test_tokens_after_eot_count_in_the_text_branch() -> None:
    heads, tokens_KSD = heads_of(8, 3, 5), random_frames(1, 4, 8).double()
    changed = tokens_KSD.clone()
    changed[0, 3] *= -1
    ids_KS = ids_with_eot(1, context=4)
    with torch.no_grad():
        assert (
            heads.text_features(changed, ids_KS) - heads.text_features(tokens_KSD, ids_KS)
        ).abs().max() > 1e-4


def test_covariance_logits_are_scaled_cosines() -> None:
    heads = heads_of(8, 3, 2)
    video_BF, text_KF = (
        torch.tensor([[3.0, 0, 4], [0, 2, 0]]).double(),
        torch.tensor([[0.0, 0, 7], [1, 1, 0]]).double(),
    )
    cosines = torch.tensor([[0.8, 3 / 50**0.5], [0.0, 0.5**0.5]], dtype=torch.float64)
    torch.testing.assert_close(heads.covariance_logits(video_BF, text_KF), 100 * cosines)
    torch.testing.assert_close(heads.eval().covariance_logits(video_BF, text_KF), 20 * cosines)


@pytest.mark.parametrize(("floors_scale", "expected"), [(False, 99.9 / 5), (True, 19.0)])
def test_the_scale_is_divided_outside_training_and_rounded_down_on_request(
    floors_scale: bool, expected: float
) -> None:
    heads = BdcHeads(8, 3, reduced_width=4, floors_scale=floors_scale).double()
    with torch.no_grad():
        heads.logits_scale_vision.fill_(math.log(99.9))
    assert heads.train().scale().item() == pytest.approx(99.9)
    assert heads.eval().scale().item() == pytest.approx(expected)


def test_the_scale_starts_at_100() -> None:
    assert BdcHeads(8, 3).scale().item() == pytest.approx(100.0, rel=1e-5)


def test_dropout_acts_before_the_classifier_only_in_training() -> None:
    heads = heads_of(8, 3, 5, dropout=0.8)
    feature_BF = heads.video_features(random_frames(1, 2, 4, 8).double()).detach()
    torch.manual_seed(0)
    dropped = [heads.train().classifier_logits(feature_BF) for _ in range(2)]
    assert not torch.equal(*dropped)
    assert torch.equal(
        heads.eval().classifier_logits(feature_BF), heads.classifier_logits(feature_BF)
    )


def test_a_vit_b_16s_heads_have_the_published_sizes() -> None:
    with torch.device("meta"):
        heads = BdcHeads(512, 51)
    assert heads.vision_bdc_head.weight.shape == (51, 18528)
    assert {name for name, _ in heads.named_parameters() if "head" not in name} == {
        "logits_scale_vision",
        *(f"{tower}_norm.{kind}" for tower in ("vision", "text") for kind in ("weight", "bias")),
        *(
            f"{name}.weight"
            for name in ("vision_reduce", "text_reduce", "vision_q_proj", "vision_k_proj")
        ),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_heads_compute_in_float32(dtype: torch.dtype) -> None:
    heads = heads_of(16, 3, 8).float()
    tokens_BTSD = random_frames(2, 3, 5, 16).to(dtype)
    ids_KS = ids_with_eot(4, 2, context=5)

    def logits() -> list[torch.Tensor]:
        video_BF = heads.video_features(tokens_BTSD)
        text_KF = heads.text_features(tokens_BTSD[:, 0], ids_KS)
        return [heads.classifier_logits(video_BF), heads.covariance_logits(video_BF, text_KF)]

    plain = logits()
    with torch.autocast("cpu", dtype=dtype):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits(), plain, strict=True))
    sum(part.sum() for part in plain).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in heads.parameters()
    )


def test_equal_channels_and_silent_tokens_have_a_finite_gradient() -> None:
    """The root of a distance of 0: without its epsilon the gradient would not be finite."""
    tokens = torch.zeros(1, 4, 3, requires_grad=True)
    distance_covariance(tokens + 1.0).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize(("tokens", "width"), [(1, 2), (5, 3), (2, 4)])
def test_the_gradient_of_the_covariance_equals_finite_differences(tokens: int, width: int) -> None:
    values = random_frames(2, tokens, width).double().requires_grad_()
    whole = random_frames(2, width, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(distance_covariance, values)
    assert torch.autograd.gradcheck(weigh_tokens, (values, whole))


@pytest.mark.parametrize("trains", [True, False])
def test_the_gradients_of_the_heads_equal_finite_differences(trains: bool) -> None:
    ids_KS = ids_with_eot(1, 3, context=4)

    def run(heads: BdcHeads, tokens_BTSD: torch.Tensor, tokens_KSD: torch.Tensor) -> torch.Tensor:
        video_BF = heads.video_features(tokens_BTSD)
        text_KF = heads.text_features(tokens_KSD, ids_KS)
        return torch.cat(
            [heads.classifier_logits(video_BF), heads.covariance_logits(video_BF, text_KF)], dim=1
        )

    heads = heads_of(5, 3, 4).train(trains)
    assert_gradients(heads, run, random_frames(2, 3, 4, 5), random_frames(2, 4, 5, seed=1))
