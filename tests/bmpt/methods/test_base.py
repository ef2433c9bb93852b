"""The parameters that each method trains and the settings that it refuses, on the tiny CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from bmpt.methods import METHODS
from bmpt.methods.base import Group, Method
from bmpt.methods.bmpt import Bmpt
from shards.errors import ConfigError
from tests.bmpt.tiny import (
    JOINT_WIDTH,
    LAYERS,
    TEXT_WIDTH,
    VISION_WIDTH,
    clip_inputs,
    cosine_logits,
    encode_classes,
    load_tiny,
    method_on,
    random_frames,
    write_clip,
)

TEXTS = [
    "a video of a person who walks",
    "a video of a person who shoots a ball",
    "a video of a cat on a sofa",
]


def bmpt_on(clip: Path, **changes: Any) -> Bmpt:
    method = method_on(clip, **changes)
    assert isinstance(method, Bmpt)
    return method


def open_gates(method: Bmpt) -> None:
    assert method.exchange is not None
    with torch.no_grad():
        for name, parameter in method.exchange.named_parameters():
            if "gate" in name:
                parameter.fill_(1.0)


def classes_of(method: Method) -> torch.Tensor:
    with torch.no_grad():
        return encode_classes(method, method.prepare_texts(TEXTS))


def clips_of(method: Method) -> torch.Tensor:
    with torch.no_grad():
        return method.encode_clips(clip_inputs(random_frames(2, 1, 4, 3, 32, 32)))["cosine"]


def moves(method: Bmpt, prompts: str, features: str) -> float:
    """How far features move when the given prompts are negated."""
    read = {"text": classes_of, "vision": clips_of}[features]
    before = read(method)
    with torch.no_grad():
        method.get_parameter(prompts).neg_()
    return (read(method) - before).abs().max().item()


def trained_numel(method: Method) -> dict[str, int]:
    """Trained parameters by group."""
    groups: dict[str, int] = {}
    for name, group in method.trained_groups().items():
        groups[group] = groups.get(group, 0) + method.get_parameter(name).numel()
    return groups


def exchange_numel(layers: int, hidden: int) -> int:
    to_text = VISION_WIDTH * hidden + hidden + hidden * TEXT_WIDTH + TEXT_WIDTH
    to_vision = TEXT_WIDTH * hidden + hidden + hidden * VISION_WIDTH + VISION_WIDTH
    return layers * (to_text + to_vision + 2)


@pytest.mark.parametrize("exchange", ["none", "bidirectional"])
@pytest.mark.parametrize("tune", ["prompts", "all"])
def test_features_are_unit_vectors_and_logits_scaled_cosines(
    clip: Path, exchange: str, tune: str
) -> None:
    method = bmpt_on(clip, exchange=exchange, tune=tune)
    frames, ids = random_frames(2, 1, 4, 3, 32, 32), method.prepare_texts(TEXTS)
    with torch.no_grad():
        classes, videos = (
            encode_classes(method, ids),
            method.encode_clips(clip_inputs(frames))["cosine"],
        )
        torch.testing.assert_close(classes.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(videos.norm(dim=-1), torch.ones(2, 1))
        assert videos.shape == (2, 1, JOINT_WIDTH)
        torch.testing.assert_close(
            cosine_logits(method, frames, ids),
            20.0 * videos[:, 0] @ classes.T,
            rtol=1e-4,
            atol=1e-4,
        )


def test_class_features_that_are_given_are_used(clip: Path) -> None:
    method = bmpt_on(clip)
    frames, ids = random_frames(2, 1, 4, 3, 32, 32), method.prepare_texts(TEXTS)
    with torch.no_grad():
        classes = encode_classes(method, ids)
        assert torch.equal(
            cosine_logits(method, frames, ids, classes), cosine_logits(method, frames, ids)
        )
        assert torch.equal(
            cosine_logits(method, frames, ids, classes.flip(0)),
            cosine_logits(method, frames, ids).flip(1),
        )


def test_the_exchange_changes_no_prompt_at_step_0(clip: Path) -> None:
    method = bmpt_on(clip)
    vision, text = method.layer_prompts()
    assert torch.equal(torch.stack(list(vision)), method.vision_LPE)
    assert torch.equal(torch.stack(list(text)), method.text_LPE)


@pytest.mark.parametrize(("prompts", "features"), [("vision_LPE", "text"), ("text_LPE", "vision")])
def test_with_open_gates_the_prompts_of_one_tower_move_the_features_of_the_other(
    clip: Path, prompts: str, features: str
) -> None:
    method = bmpt_on(clip)
    open_gates(method)
    assert moves(method, prompts, features) > 1e-4


@pytest.mark.parametrize(("prompts", "features"), [("vision_LPE", "text"), ("text_LPE", "vision")])
def test_without_an_exchange_the_towers_are_independent(
    clip: Path, prompts: str, features: str
) -> None:
    method = bmpt_on(clip, exchange="none")
    assert moves(method, prompts, features) == 0


@pytest.mark.parametrize("exchange", ["none", "bidirectional"])
@pytest.mark.parametrize(("prompts", "features"), [("vision_LPE", "vision"), ("text_LPE", "text")])
def test_prompts_move_the_features_of_their_own_tower(
    clip: Path, exchange: str, prompts: str, features: str
) -> None:
    assert moves(bmpt_on(clip, exchange=exchange), prompts, features) > 1e-5


@pytest.mark.parametrize(("vision_tokens", "text_tokens"), [(5, 2), (2, 7), (3, 3)])
def test_odd_and_unequal_numbers_of_tokens_work(
    clip: Path, vision_tokens: int, text_tokens: int
) -> None:
    method = bmpt_on(
        clip, vision_tokens=vision_tokens, text_tokens=text_tokens, vision_depth=4, text_depth=2
    )
    open_gates(method)
    assert moves(method, "vision_LPE", "text") > 1e-5


def test_every_trained_parameter_of_the_exchange_has_a_gradient_once_the_gates_are_open(
    clip: Path,
) -> None:
    method = bmpt_on(clip)
    open_gates(method)
    cosine_logits(method, random_frames(2, 1, 4, 3, 32, 32), method.prepare_texts(TEXTS)).logsumexp(
        dim=1
    ).sum().backward()
    idle = [
        name
        for name in method.trained_groups()
        if not method.get_parameter(name).grad.abs().sum() > 0
    ]
    assert idle == []


def test_the_gates_have_a_gradient_at_step_0(clip: Path) -> None:
    method = bmpt_on(clip)
    cosine_logits(method, random_frames(2, 1, 4, 3, 32, 32), method.prepare_texts(TEXTS)).logsumexp(
        dim=1
    ).sum().backward()
    gates = {name: gate.grad for name, gate in method.named_parameters() if "gate" in name}
    assert len(gates) == 4
    assert all(grad is not None and grad.item() != 0 for grad in gates.values())


def test_the_frozen_backbone_gets_no_gradient(clip: Path) -> None:
    method = bmpt_on(clip)
    cosine_logits(
        method, random_frames(2, 1, 4, 3, 32, 32), method.prepare_texts(TEXTS)
    ).sum().backward()
    assert [
        name for name, parameter in method.clip.named_parameters() if parameter.grad is not None
    ] == []


def test_under_tune_prompts_exactly_prompts_and_exchange_train(clip: Path) -> None:
    method = bmpt_on(clip, vision_tokens=5, text_tokens=3)
    assert trained_numel(method) == {
        "prompts": 3 * 5 * VISION_WIDTH + 3 * 3 * TEXT_WIDTH,
        "exchange": exchange_numel(2, 8),
    }
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == sum(
        trained_numel(method).values()
    )


def test_without_an_exchange_the_text_tower_has_no_prompt_of_layer_0(clip: Path) -> None:
    method = bmpt_on(clip, exchange="none", vision_tokens=5, text_tokens=3)
    assert trained_numel(method) == {"prompts": 3 * 5 * VISION_WIDTH + 2 * 3 * TEXT_WIDTH}


@pytest.mark.parametrize("text_depth", [0, 1])
def test_visual_prompts_without_text_prompts_are_all_that_trains(
    clip: Path, text_depth: int
) -> None:
    method = bmpt_on(clip, exchange="none", text_depth=text_depth)
    assert method.trained_groups() == {"vision_LPE": "prompts"}


@pytest.mark.parametrize("name", ["bmpt", "vifi_clip"])
def test_under_tune_all_every_weight_but_the_token_embedding_trains(clip: Path, name: str) -> None:
    method = method_on(clip, name=name, tune="all", space_time_blocks=[1])
    all_of_clip = sum(p.numel() for p in method.clip.parameters())
    assert trained_numel(method)["backbone"] == all_of_clip - 49408 * TEXT_WIDTH
    assert not method.clip.token_embedding.weight.requires_grad
    assert method.clip.logit_scale.requires_grad


def test_zero_shot_trains_nothing(clip: Path) -> None:
    method = method_on(clip, name="zero_shot")
    assert method.trained_groups() == {}
    assert [name for name, p in method.named_parameters() if p.requires_grad] == []


def test_trained_groups_have_known_groups_and_names_of_parameters(
    clip: Path,
) -> None:
    kinds = [
        (name, tune)
        for name, (_, settings) in METHODS.items()
        for tune in settings.model_validate({}).traits.tunes
    ]
    for name, tune in kinds:
        position = "none" if name == "zero_shot" else "learned"
        method = method_on(clip, name=name, tune=tune, temporal_position=position)
        groups, parameters = method.trained_groups(), dict(method.named_parameters())
        assert set(groups.values()) <= set(get_args(Group))
        assert groups.keys() <= parameters.keys()


def test_the_trained_state_holds_copies_of_exactly_the_trained_tensors(clip: Path) -> None:
    method = bmpt_on(clip)
    state = method.trained_state()
    assert state.keys() == method.trained_groups().keys()
    state["vision_LPE"].zero_()
    assert method.vision_LPE.abs().sum() > 0


def test_prompts_depend_on_the_seed(clip: Path) -> None:
    first, again, other = (bmpt_on(clip, seed=seed).trained_state() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["vision_LPE"], other["vision_LPE"])


def test_a_new_temporal_position_starts_at_zero_and_equals_none(clip: Path) -> None:
    learned, none = bmpt_on(clip, temporal_position="learned"), bmpt_on(clip)
    assert torch.equal(clips_of(learned), clips_of(none))
    assert learned.trained_groups()["temporal_TE"] == "prompts"
    assert learned.get_parameter("temporal_TE").shape == (4, VISION_WIDTH)
    assert "temporal_TE" not in dict(none.named_parameters())


def test_a_backbones_own_temporal_position_belongs_to_the_backbone(tmp_path: Path) -> None:
    temporal_TE = random_frames(4, VISION_WIDTH)
    file = write_clip(tmp_path / "temporal.safetensors", temporal_TE=temporal_TE)
    frozen = bmpt_on(file, temporal_position="learned")
    tuned = bmpt_on(file, temporal_position="learned", tune="all")
    assert torch.equal(frozen.get_parameter("temporal_TE"), temporal_TE)
    assert "temporal_TE" not in frozen.trained_groups()
    assert not frozen.get_parameter("temporal_TE").requires_grad
    assert tuned.trained_groups()["temporal_TE"] == "backbone"


def test_a_backbones_temporal_position_is_left_out_under_none(clip: Path, tmp_path: Path) -> None:
    file = write_clip(tmp_path / "temporal.safetensors", temporal_TE=random_frames(4, VISION_WIDTH))
    assert torch.equal(clips_of(bmpt_on(file)), clips_of(bmpt_on(clip)))


def test_zero_shot_refuses_a_new_temporal_position(clip: Path, tmp_path: Path) -> None:
    file = write_clip(tmp_path / "temporal.safetensors", temporal_TE=random_frames(4, VISION_WIDTH))
    assert method_on(file, name="zero_shot", temporal_position="learned").temporal_TE is not None
    with pytest.raises(
        ConfigError,
        match=r"temporal_position=learned: tiny has no temporal embedding, and zero_shot trains",
    ):
        method_on(clip, name="zero_shot", temporal_position="learned")


def test_a_temporal_position_for_another_number_of_frames_is_refused(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "temporal.safetensors", temporal_TE=random_frames(8, VISION_WIDTH))
    with pytest.raises(ConfigError, match=r"data\.frames=4: .* temporal embedding for 8 frames"):
        method_on(file, temporal_position="learned")


@pytest.mark.parametrize(("tower", "key"), [("vision", "vision_depth"), ("text", "text_depth")])
def test_a_depth_beyond_the_tower_is_refused_with_both_numbers(
    clip: Path, tower: str, key: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"method\.{key}=5: the {tower} tower has {LAYERS} blocks"
    ):
        method_on(clip, **{key: 5})


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_depth": 1},
        {"text_depth": 1},
        {"vision_depth": 0},
        {"vision_tokens": 1},
        {"text_tokens": 1},
    ],
)
def test_a_depth_or_number_of_tokens_below_2_is_refused_under_an_exchange(
    clip: Path, changes: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match=r"method\.exchange=bidirectional needs .* at least 2"):
        method_on(clip, **changes)


@pytest.mark.parametrize("block", [4, -1])
def test_a_space_time_block_beyond_the_tower_is_refused_with_both_numbers(
    clip: Path, block: int
) -> None:
    sentence = (
        rf"method\.space_time_blocks=\[1, {block}\]: block {block} is beyond the {LAYERS} blocks"
    )
    with pytest.raises(ConfigError, match=sentence):
        method_on(clip, space_time_blocks=[1, block])


def test_bmpts_default_blocks_are_3_7_11_and_refused_where_the_tower_is_shorter(clip: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"method\.space_time_blocks=\[3, 7, 11\]: block 7 is beyond the 4 blocks"
    ):
        method_on(clip, space_time_blocks=None)


def test_frame_wise_methods_have_no_space_time_block_by_default(clip: Path) -> None:
    assert method_on(clip, name="zero_shot", space_time_blocks=None).space_time_blocks == ()


def test_class_texts_that_prompts_would_overwrite_are_refused_under_none(clip: Path) -> None:
    method = bmpt_on(clip, exchange="none", text_tokens=4)
    with pytest.raises(
        ConfigError, match=r"overwrites the first 4 caption tokens.* 2 class texts such as 'walk'"
    ):
        method.prepare_texts(["a person who walks", "walk", "run fast now"])


def test_a_class_text_with_one_token_left_is_taken_under_none(clip: Path) -> None:
    method = bmpt_on(clip, exchange="none", text_tokens=3)
    texts = ["run fast now", "run fast today"]
    with torch.no_grad():
        features = encode_classes(method, method.prepare_texts(texts))
    assert (features[0] - features[1]).abs().max() > 1e-6


def test_short_class_texts_are_fine_where_no_text_prompt_overwrites_them(clip: Path) -> None:
    method = bmpt_on(clip, exchange="none", text_depth=1)
    assert method.prepare_texts(["walk"]).shape == (1, 77)


def test_short_class_texts_are_fine_with_slots_of_their_own(clip: Path) -> None:
    method = bmpt_on(clip, text_tokens=7)
    with torch.no_grad():
        features = encode_classes(method, method.prepare_texts(["walk", "run"]))
    assert (features[0] - features[1]).abs().max() > 1e-5


@pytest.mark.parametrize("text_tokens", [75, 76, 77, 100])
def test_prompts_that_leave_no_room_for_a_caption_are_refused(clip: Path, text_tokens: int) -> None:
    """The context is 77: SOT, slots, at least one caption token, EOT. Else all classes share one
    feature."""
    method = bmpt_on(clip, text_tokens=text_tokens)
    sentence = (
        rf"method\.text_tokens={text_tokens}: leaves no room for a caption .* 77 tokens; "
        r".* most 74$"
    )
    with pytest.raises(ConfigError, match=sentence):
        method.prepare_texts(["walk", "run"])


def test_prompts_that_leave_room_for_one_caption_token_are_taken(clip: Path) -> None:
    method = bmpt_on(clip, text_tokens=74)
    assert method.prepare_texts(["walk", "run"]).shape == (2, 77)


def test_captions_that_become_equal_when_cut_are_refused(clip: Path) -> None:
    method = bmpt_on(clip, text_tokens=71)  # leaves four caption tokens: "a video of a"
    sentence = (
        r"method\.text_tokens=71: pushes the ends .*, and some of the 2 become equal; lower it"
    )
    with pytest.raises(ConfigError, match=sentence):
        method.prepare_texts(["a video of a cat", "a video of a dog"])


def test_captions_that_stay_different_when_cut_are_taken(clip: Path) -> None:
    method = bmpt_on(clip, text_tokens=70)  # leaves a fifth caption token: "cat" or "dog"
    assert method.prepare_texts(["a video of a cat", "a video of a dog"]).shape == (2, 77)


@pytest.mark.parametrize(
    ("name", "tune"), [("bdc_clip", "prompts"), ("bike", "prompts"), ("bmpt", "image")]
)
def test_a_method_refuses_to_tune_what_it_does_not_have(clip: Path, name: str, tune: str) -> None:
    with pytest.raises(ConfigError, match=rf"method\.tune={tune}: {name} can tune"):
        method_on(clip, name=name, tune=tune)


def test_a_method_does_not_change_the_weights_it_is_put_on(clip: Path) -> None:
    before = load_tiny(clip).model.state_dict()
    after = bmpt_on(clip).clip.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
