"""Test that WiSE-FT is exact at both ends, and interpolates only weights of the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bmpt.checkpoints.checkpoint import config_sha256
from bmpt.checkpoints.wise_ft import apply_wise_ft, base_weights, interpolate
from bmpt.methods.base import Method
from shards.errors import ConfigError
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.tiny import cosine_logits, load_tiny, method_on, random_frames, write_clip

ALL: dict[str, Any] = {"tune": "all"}


def tune(method: Method) -> None:
    """Change every trained tensor, as training would."""
    with torch.no_grad():
        for index, name in enumerate(sorted(method.trained_groups())):
            parameter = method.get_parameter(name)
            parameter.add_(0.05 * random_frames(*parameter.shape, seed=index))


@torch.no_grad()
def logits(method: Method) -> torch.Tensor:
    return cosine_logits(
        method,
        random_frames(2, 1, 4, 3, 32, 32),
        method.prepare_texts(["a walk in the park", "a sword is drawn"]),
    )


def test_interpolate_is_exact_at_both_ends_and_the_mean_between() -> None:
    base, tuned = (
        {"w": random_frames(5, 7)},
        {"w": random_frames(5, 7, seed=1), "prompt": random_frames(3, seed=2)},
    )
    assert torch.equal(interpolate(base, tuned, 0.0)["w"], base["w"])
    assert torch.equal(interpolate(base, tuned, 1.0)["w"], tuned["w"])
    assert torch.equal(interpolate(base, tuned, 0.5)["w"], (base["w"] + tuned["w"]) / 2)
    assert all(
        torch.equal(interpolate(base, tuned, weight)["prompt"], tuned["prompt"])
        for weight in (0.0, 0.5, 1.0)
    )


@pytest.mark.parametrize("name", ["vifi_clip", "bmpt"])
def test_wise_ft_of_1_gives_the_tuned_logits_and_0_those_of_the_base(clip: Path, name: str) -> None:
    method = method_on(clip, name=name, **ALL)
    base = base_weights(method)
    tune(method)
    tuned = logits(method)
    apply_wise_ft(method, base, 1.0)
    assert torch.equal(logits(method), tuned)
    prompts = {key: value for key, value in method.trained_state().items() if key not in base}
    apply_wise_ft(method, base, 0.0)
    untouched = method_on(clip, name=name, **ALL)
    with torch.no_grad():
        for key, value in prompts.items():
            untouched.get_parameter(key).copy_(value)
    torch.testing.assert_close(logits(method), logits(untouched))
    assert not torch.allclose(logits(method), tuned, atol=1e-2)


def test_wise_ft_of_a_half_is_the_mean_of_weights_and_keeps_prompts(clip: Path) -> None:
    method = method_on(clip, **ALL)
    base = base_weights(method)
    tune(method)
    tuned = method.trained_state()
    apply_wise_ft(method, base, 0.5)
    mixed = method.trained_state()
    assert base.keys() == {key for key in tuned if key.startswith("clip.")}
    assert all(torch.equal(mixed[key], 0.5 * base[key] + 0.5 * tuned[key]) for key in base)
    assert all(torch.equal(mixed[key], tuned[key]) for key in tuned.keys() - base.keys())
    assert {"vision_LPE", "text_LPE"} < tuned.keys() - base.keys()


def test_wise_ft_interpolates_a_temporal_embedding_of_the_base(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "temporal.safetensors", temporal_TE=random_frames(4, 48))
    pretrained = method_on(file, temporal_position="learned", **ALL)
    assert torch.equal(base_weights(pretrained)["temporal_TE"], random_frames(4, 48))
    new = method_on(write_clip(tmp_path / "none.safetensors"), temporal_position="learned", **ALL)
    assert "temporal_TE" not in base_weights(new)


@pytest.mark.parametrize("changes", [{}, {"name": "zero_shot"}])
def test_wise_ft_refuses_a_method_that_tunes_no_weights(
    clip: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigError, match=r"eval\.wise_ft .* tunes none; set method\.tune=all"
    ) as caught:
        base_weights(method_on(clip, **changes))
    assert "\n" not in str(caught.value)


def test_base_weights_do_not_change_with_the_method(clip: Path) -> None:
    method = method_on(clip, **ALL)
    base = base_weights(method)
    tune(method)
    untouched = load_tiny(clip).model.state_dict()
    assert all(
        torch.equal(value, untouched[key.removeprefix("clip.")]) for key, value in base.items()
    )


def test_wise_ft_weight_is_a_fraction_and_part_of_the_config_hash(config: MakeConfig) -> None:
    assert config().eval.wise_ft is None
    hashes = {config_sha256(config(eval={"wise_ft": weight})) for weight in (None, 0.0, 0.5, 1.0)}
    assert len(hashes) == 4
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"eval\.wise_ft: "):
            config(eval={"wise_ft": weight})
