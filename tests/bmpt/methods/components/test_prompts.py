"""The exchange between the towers' prompts, on tensors alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bmpt.methods.components.prompts import (
    PROMPT_STD,
    Exchange,
    ExchangeLayer,
    QuickGELU,
    new_prompts,
)
from shards.errors import ConfigError
from tests.bmpt.tiny import method_on, random_frames

VISION, TEXT, HIDDEN = 48, 32, 8


def open_gates(module: nn.Module, value: float = 1.0) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "gate" in name:
                parameter.fill_(value)


def layer_and_tokens(
    vision_tokens: int, text_tokens: int
) -> tuple[ExchangeLayer, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = ExchangeLayer(VISION, TEXT, HIDDEN)
    open_gates(layer)
    return (
        layer,
        random_frames(vision_tokens, VISION, seed=1),
        random_frames(text_tokens, TEXT, seed=2),
    )


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_quick_gelu_is_clips_own() -> None:
    x = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))


def test_new_prompts_have_the_stated_shape_and_spread() -> None:
    torch.manual_seed(0)
    prompts = new_prompts(12, 8, 768)
    assert prompts.shape == (12, 8, 768)
    assert prompts.std().item() == pytest.approx(PROMPT_STD, rel=0.02)
    assert abs(prompts.mean().item()) < 0.001


def test_closed_gates_leave_both_towers_unchanged() -> None:
    vision_LPE, text_LPE = new_prompts(3, 4, VISION), new_prompts(3, 4, TEXT)
    vision, text = Exchange(vision_LPE, text_LPE, HIDDEN)(vision_LPE, text_LPE)
    assert torch.equal(torch.stack(vision), vision_LPE)
    assert torch.equal(torch.stack(text), text_LPE)


def test_the_gates_start_at_0_and_have_a_gradient() -> None:
    vision_LPE, text_LPE = new_prompts(3, 4, VISION), new_prompts(3, 4, TEXT)
    exchange = Exchange(vision_LPE, text_LPE, HIDDEN)
    vision, text = exchange(vision_LPE, text_LPE)
    (torch.stack(vision).square().sum() + torch.stack(text).square().sum()).backward()
    gates = {name: gate for name, gate in exchange.named_parameters() if "gate" in name}
    assert len(gates) == 2 * 2
    for name, gate in gates.items():
        assert gate.item() == 0, name
        assert gate.grad is not None, name
        assert gate.grad.item() != 0, name


def test_halves_of_equal_size_move_each_other_token_by_token() -> None:
    layer, vision, text = layer_and_tokens(4, 4)
    new_vision, new_text = layer(vision, text)
    torch.testing.assert_close(
        new_text, torch.cat([text[:2], text[2:] + layer.vision_to_text(vision[:2])])
    )
    torch.testing.assert_close(
        new_vision, torch.cat([vision[:2], vision[2:] + layer.text_to_vision(text[:2])])
    )


def test_halves_of_different_size_use_the_mean_over_tokens() -> None:
    layer, vision, text = layer_and_tokens(8, 4)
    new_vision, new_text = layer(vision, text)
    to_text = layer.vision_to_text(vision[:4].mean(dim=0))
    to_vision = layer.text_to_vision(text[:2].mean(dim=0))
    torch.testing.assert_close(new_text, torch.cat([text[:2], text[2:] + to_text]))
    torch.testing.assert_close(new_vision, torch.cat([vision[:4], vision[4:] + to_vision]))


def test_an_odd_number_of_tokens_gives_the_smaller_half_and_uses_the_mean() -> None:
    layer, vision, text = layer_and_tokens(5, 5)
    new_vision, new_text = layer(vision, text)
    torch.testing.assert_close(
        new_text[2:], text[2:] + layer.vision_to_text(vision[:2].mean(dim=0))
    )
    torch.testing.assert_close(
        new_vision[2:], vision[2:] + layer.text_to_vision(text[:2].mean(dim=0))
    )
    assert torch.equal(new_vision[:2], vision[:2])


def test_each_direction_chooses_token_by_token_or_the_mean_on_its_own() -> None:
    # 5 visual tokens give 2 and take 3; 4 text tokens give 2 and take 2
    layer, vision, text = layer_and_tokens(5, 4)
    new_vision, new_text = layer(vision, text)
    torch.testing.assert_close(new_text[2:], text[2:] + layer.vision_to_text(vision[:2]))
    torch.testing.assert_close(
        new_vision[2:], vision[2:] + layer.text_to_vision(text[:2].mean(dim=0))
    )


def test_a_gate_scales_the_update_of_its_own_direction() -> None:
    layer, vision, text = layer_and_tokens(4, 4)
    with torch.no_grad():
        layer.gate_to_text.fill_(0.5)
        layer.gate_to_vision.fill_(-2.0)
    new_vision, new_text = layer(vision, text)
    torch.testing.assert_close(new_text[2:] - text[2:], 0.5 * layer.vision_to_text(vision[:2]))
    torch.testing.assert_close(new_vision[2:] - vision[2:], -2.0 * layer.text_to_vision(text[:2]))


def test_the_giving_half_does_not_depend_on_the_taking_half() -> None:
    layer, vision, text = layer_and_tokens(4, 4)
    _, before = layer(vision, text)
    changed = torch.cat([vision[:2], -vision[2:]])  # the taking half alone
    _, after = layer(changed, text)
    assert torch.equal(before, after)


def test_block_0_and_blocks_of_only_one_tower_keep_their_prompts() -> None:
    vision_LPE, text_LPE = new_prompts(4, 4, VISION), new_prompts(3, 4, TEXT)
    exchange = Exchange(vision_LPE, text_LPE, HIDDEN)
    open_gates(exchange)
    vision, text = exchange(vision_LPE, text_LPE)
    moved_vision = [not torch.equal(vision[index], vision_LPE[index]) for index in range(4)]
    moved_text = [not torch.equal(text[index], text_LPE[index]) for index in range(3)]
    assert moved_vision == [False, True, True, False]
    assert moved_text == [False, True, True]


@pytest.mark.parametrize("tokens", [(4, 4), (5, 2)])
def test_the_gradient_of_a_layer_equals_finite_differences(tokens: tuple[int, int]) -> None:
    layer, vision, text = layer_and_tokens(*tokens)
    layer.double()
    names = [name for name, _ in layer.named_parameters()]

    def run(vision: torch.Tensor, text: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (vision, text)
        )
        return torch.cat([output.flatten() for output in outputs])

    inputs = [
        vision.double(),
        text.double(),
        *(parameter.detach() for parameter in layer.parameters()),
    ]
    assert torch.autograd.gradcheck(
        run, [value.requires_grad_() for value in inputs], fast_mode=True
    )


@pytest.mark.parametrize("name", ["bidirectional", "batch_gated"])
@pytest.mark.parametrize(
    ("vision", "text"), [((1, 4), (3, 4)), ((3, 4), (0, 4)), ((3, 1), (3, 4)), ((3, 4), (3, 1))]
)
def test_an_exchange_without_prompts_is_refused_with_all_four_numbers(
    clip: Path, vision: tuple[int, int], text: tuple[int, int], name: str
) -> None:
    sentence = f"got depths {vision[0]} and {text[0]}, tokens {vision[1]} and {text[1]}"
    sizes = {
        "vision_depth": vision[0],
        "vision_tokens": vision[1],
        "text_depth": text[0],
        "text_tokens": text[1],
    }
    with pytest.raises(
        ConfigError, match=rf"method\.exchange={name} needs .*at least 2.*{sentence}"
    ):
        method_on(clip, exchange=name, **sizes)


def test_prompts_and_exchange_of_a_vit_b_16_have_the_stated_sizes() -> None:
    vision_LPE, text_LPE = new_prompts(12, 8, 768), new_prompts(12, 8, 512)
    exchange = Exchange(vision_LPE, text_LPE, 256)
    one_layer = (768 * 256 + 256 + 256 * 512 + 512) + (512 * 256 + 256 + 256 * 768 + 768) + 2
    assert count(exchange) == 11 * one_layer
    prompt_bytes = 4 * (vision_LPE.numel() + text_LPE.numel())
    assert round(prompt_bytes / 1e6, 1) == 0.5
    assert round((prompt_bytes + 4 * count(exchange)) / 1e6) == 29
