"""The schedule and the optimiser's groups."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bmpt.engine.optim import LOWEST_FRACTION, build_optimizer, lr_fraction, set_lr
from bmpt.settings import TrainSettings
from tests.bmpt.tiny import method_on


def test_warm_up_rises_linearly_and_reaches_the_base_rate_at_its_last_step() -> None:
    shares = [lr_fraction(step, num_steps=20, warmup_steps=4) for step in range(5)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_without_warm_up_the_first_step_has_the_base_rate() -> None:
    assert lr_fraction(0, num_steps=10, warmup_steps=0) == 1.0


def test_the_cosine_ends_at_the_lowest_share_and_stays_there() -> None:
    assert lr_fraction(20, num_steps=20, warmup_steps=4) == pytest.approx(LOWEST_FRACTION)
    assert lr_fraction(99, num_steps=20, warmup_steps=4) == pytest.approx(LOWEST_FRACTION)


def test_the_fraction_half_way_after_the_warm_up_is_the_mean_of_1_and_the_lowest() -> None:
    assert lr_fraction(12, num_steps=20, warmup_steps=4) == pytest.approx((1 + LOWEST_FRACTION) / 2)
    quarter = LOWEST_FRACTION + (1 - LOWEST_FRACTION) * 0.5 * (1 + math.cos(math.pi / 4))
    assert lr_fraction(8, num_steps=20, warmup_steps=4) == pytest.approx(quarter)


def test_the_rate_never_rises_after_warm_up_and_never_reaches_0() -> None:
    shares = [lr_fraction(step, num_steps=50, warmup_steps=5) for step in range(50)]
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert min(shares) > 0


@pytest.mark.parametrize("warmup", [10, 30])
def test_a_warm_up_as_long_as_the_run_or_longer_is_only_a_warm_up(warmup: int) -> None:
    shares = [lr_fraction(step, num_steps=10, warmup_steps=warmup) for step in range(10)]
    assert shares == pytest.approx([(step + 1) / warmup for step in range(10)])


def groups_by_name(
    clip: Path, settings: TrainSettings, **method: Any
) -> dict[str, dict[str, float]]:
    """The optimiser's group of every trained parameter."""
    built = method_on(clip, **method)
    optimizer = build_optimizer(built, settings)
    by_identity = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: by_identity[id(built.get_parameter(name))] for name in built.trained_groups()}


def test_every_trained_parameter_is_in_exactly_one_group(clip: Path) -> None:
    method = method_on(clip, tune="all", temporal_position="learned")
    optimizer = build_optimizer(method, TrainSettings())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in method.parameters() if p.requires_grad}


def test_prompts_gates_gains_and_biases_have_no_weight_decay_and_matrices_have(clip: Path) -> None:
    groups = groups_by_name(
        clip, TrainSettings(weight_decay=0.3), tune="all", temporal_position="learned"
    )
    decay = {name: group["weight_decay"] for name, group in groups.items()}
    free = (
        "vision_LPE",
        "text_LPE",
        "temporal_TE",
        "exchange.layers.0.gate_to_text",
        "clip.logit_scale",
    )
    assert {decay[name] for name in free} == {0.0}
    assert decay["clip.visual.ln_pre.weight"] == 0.0
    assert decay["exchange.layers.0.vision_to_text.0.bias"] == 0.0
    assert decay["exchange.layers.0.vision_to_text.0.weight"] == 0.3
    assert decay["clip.visual.transformer.resblocks.0.attn.in_proj_weight"] == 0.3


def test_each_group_has_its_own_base_rate(clip: Path) -> None:
    settings = TrainSettings(lr=1e-6, lr_prompts=1e-2, lr_exchange=1e-4)
    rates = {
        name: group["base_lr"] for name, group in groups_by_name(clip, settings, tune="all").items()
    }
    assert rates["vision_LPE"] == rates["text_LPE"] == 1e-2
    assert (
        rates["exchange.layers.1.gate_to_vision"]
        == rates["exchange.layers.0.text_to_vision.2.weight"]
        == 1e-4
    )
    assert rates["clip.visual.conv1.weight"] == rates["clip.logit_scale"] == 1e-6


def test_rates_of_prompts_and_exchange_default_to_lr(clip: Path) -> None:
    groups = groups_by_name(clip, TrainSettings(lr=3e-4))
    assert {group["base_lr"] for group in groups.values()} == {3e-4}


def test_setting_a_share_keeps_the_base_rates(clip: Path) -> None:
    optimizer = build_optimizer(method_on(clip), TrainSettings(lr=1e-3, lr_prompts=1e-2))
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.25)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx(
        [0.25e-3, 0.25e-2]
    )


def test_a_step_uses_the_fraction_of_the_rate(clip: Path) -> None:
    method = method_on(clip, exchange="none", text_depth=0)
    optimizer = build_optimizer(method, TrainSettings(lr=1e-3))
    set_lr(optimizer, 0.5)
    before = method.get_parameter("vision_LPE").detach().clone()
    method.get_parameter("vision_LPE").sum().backward()
    optimizer.step()
    # the first step of Adam moves every value by the rate
    torch.testing.assert_close(
        before - method.get_parameter("vision_LPE"), torch.full_like(before, 0.5e-3)
    )
