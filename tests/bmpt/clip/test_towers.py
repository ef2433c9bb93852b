"""Test the towers against open_clip and against slow loops over tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile

from bmpt.clip.backbone import Backbone
from bmpt.clip.towers import encode_frames, encode_text_tokens, encode_texts, insert_slots, take_eot
from bmpt.methods.base import Method
from tests.bmpt.tiny import (
    JOINT_WIDTH,
    SPEC,
    TEXT_WIDTH,
    VISION_TOKENS,
    VISION_WIDTH,
    clip_inputs,
    cosine_logits,
    load_tiny,
    method_on,
    random_frames,
    write_clip,
)

SOT, EOT = 49406, 49407
TEXTS = [
    "a video of a cat",
    "walk",
    "a person who is riding a bike outdoors on a sunny day, seen from behind",
]
T = 3


@pytest.fixture(scope="module")
def backbone(clip: Path) -> Backbone:
    return load_tiny(clip)


@pytest.fixture
def images() -> torch.Tensor:
    return random_frames(2 * T, 3, 32, 32)


def naive_block(
    block: Any, tokens_SE: torch.Tensor, *, visible: list[int] | None = None
) -> torch.Tensor:
    """Compute one block over one sequence, with attention query by query and head by head.

    visible: number of leading tokens that each query attends to; all if None"""
    attention = block.attn
    normed = block.ln_1(tokens_SE)
    query, key, value = (normed @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(
        3, dim=-1
    )
    width = query.shape[-1] // attention.num_heads
    rows = []
    for index in range(len(normed)):
        heads = []
        for head in range(attention.num_heads):
            at = slice(head * width, (head + 1) * width)
            seen = slice(None if visible is None else visible[index])
            weights = torch.softmax(key[seen, at] @ query[index, at] / width**0.5, dim=0)
            heads.append(weights @ value[seen, at])
        rows.append(torch.cat(heads))
    tokens_SE = tokens_SE + attention.out_proj(torch.stack(rows))
    return tokens_SE + block.mlp(block.ln_2(tokens_SE))


def clip_features(method: Method, frames_BVTCHW: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return method.encode_clips(clip_inputs(frames_BVTCHW))["cosine"]


@torch.no_grad()
def test_encode_frames_without_prompts_equals_open_clips_image_feature(
    backbone: Backbone, images: torch.Tensor
) -> None:
    ours = encode_frames(backbone.model, images, num_frames=T)
    assert ours.shape == (2 * T, VISION_TOKENS, JOINT_WIDTH)
    torch.testing.assert_close(
        ours[:, 0], backbone.model.encode_image(images), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_encode_texts_without_prompts_equals_open_clips_text_feature(backbone: Backbone) -> None:
    ids = backbone.tokenize(TEXTS)
    ours = encode_texts(backbone.model, ids)
    torch.testing.assert_close(ours, backbone.model.encode_text(ids), rtol=1e-5, atol=1e-5)
    assert (ours[0] - ours[1]).abs().max() > 0.1


@torch.no_grad()
def test_encode_texts_of_full_context_length_equals_open_clip(backbone: Backbone) -> None:
    ids = backbone.tokenize(["very " * 100, "walk"])
    assert ids[0, -1] == EOT
    torch.testing.assert_close(
        encode_texts(backbone.model, ids), backbone.model.encode_text(ids), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("has_prompts", [False, True])
@torch.no_grad()
def test_take_eot_of_all_text_tokens_is_the_text_feature(
    backbone: Backbone, has_prompts: bool
) -> None:
    ids = insert_slots(backbone.tokenize([*TEXTS, "very " * 100]), 3)
    prompts = list(random_frames(2, 3, TEXT_WIDTH, seed=3)) if has_prompts else []
    tokens = encode_text_tokens(backbone.model, ids, prompts=prompts)
    assert tokens.shape == (4, 77, JOINT_WIDTH)
    expected = encode_texts(backbone.model, ids, prompts=prompts)
    torch.testing.assert_close(take_eot(tokens, ids), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_encode_text_tokens_runs_under_autocast(backbone: Backbone) -> None:
    ids = backbone.tokenize(TEXTS)
    plain = encode_text_tokens(backbone.model, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encode_text_tokens(backbone.model, ids)
    assert (rounded.float() - plain).abs().max() < 0.1 * plain.abs().max()


@torch.no_grad()
def test_encode_text_tokens_equals_open_clip(backbone: Backbone) -> None:
    model, ids = backbone.model, backbone.tokenize(TEXTS)
    tokens = model.token_embedding(ids) + model.positional_embedding
    tokens = (
        model.ln_final(model.transformer(tokens, attn_mask=model.attn_mask)) @ model.text_projection
    )
    torch.testing.assert_close(encode_text_tokens(model, ids), tokens, rtol=1e-5, atol=1e-5)
    assert (tokens[:, -1] - tokens[:, -2]).abs().max() > 1e-3, (
        "what stands after EOT differs from place to place"
    )


@torch.no_grad()
def test_text_feature_does_not_depend_on_the_other_texts(backbone: Backbone) -> None:
    alone = encode_texts(backbone.model, backbone.tokenize(TEXTS[1:2]))
    together = encode_texts(backbone.model, backbone.tokenize(TEXTS))[1:2]
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_space_time_attention_over_one_frame_equals_the_plain_tower(
    backbone: Backbone, images: torch.Tensor
) -> None:
    plain = encode_frames(backbone.model, images, num_frames=1)
    joint = encode_frames(backbone.model, images, num_frames=1, space_time_blocks=(0, 1, 2, 3))
    torch.testing.assert_close(joint, plain, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_space_time_attention_over_several_frames_differs_from_the_plain_tower(
    backbone: Backbone, images: torch.Tensor
) -> None:
    plain = encode_frames(backbone.model, images, num_frames=T)
    joint = encode_frames(backbone.model, images, num_frames=T, space_time_blocks=(1,))
    assert (joint - plain).abs().max() > 1e-3


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_the_vision_tower_with_prompts_equals_a_loop_over_tokens(
    backbone: Backbone, images: torch.Tensor, causal: bool
) -> None:
    visual = backbone.model.visual
    prompts = list(random_frames(3, 2, VISION_WIDTH, seed=1))
    temporal_TE = random_frames(T, VISION_WIDTH, seed=2)
    joint_blocks = (1, 3)
    ours = encode_frames(
        backbone.model,
        images,
        num_frames=T,
        prompts=prompts,
        temporal_TE=temporal_TE,
        space_time_blocks=joint_blocks,
        causal=causal,
    )
    num_tokens = VISION_TOKENS + len(prompts[0])
    visible = (
        [(frame + 1) * num_tokens for frame in range(T) for _ in range(num_tokens)]
        if causal
        else None
    )
    for clip_index in range(2):
        sequences = []
        for frame in range(T):
            image = images[clip_index * T + frame]
            patches = visual.conv1(image[None])[0].flatten(1).T
            tokens = (
                torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
            )
            tokens = torch.cat([tokens + temporal_TE[frame], prompts[0]])
            sequences.append(visual.ln_pre(tokens))
        for index, block in enumerate(visual.transformer.resblocks):
            if index in (1, 2):
                sequences = [
                    torch.cat([tokens[:VISION_TOKENS], prompts[index]]) for tokens in sequences
                ]
            if index in joint_blocks:
                sequences = list(naive_block(block, torch.cat(sequences), visible=visible).chunk(T))
            else:
                sequences = [naive_block(block, tokens) for tokens in sequences]
        expected = torch.stack([visual.ln_post(tokens) @ visual.proj for tokens in sequences])
        torch.testing.assert_close(
            ours[clip_index * T : (clip_index + 1) * T], expected, rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_prompt_tokens_of_each_block_change_the_feature(
    backbone: Backbone, images: torch.Tensor
) -> None:
    prompts = list(random_frames(3, 2, VISION_WIDTH, seed=1))
    before = encode_frames(backbone.model, images, num_frames=T, prompts=prompts)[:, 0]
    for index in range(3):
        changed = [-prompt if number == index else prompt for number, prompt in enumerate(prompts)]
        after = encode_frames(backbone.model, images, num_frames=T, prompts=changed)[:, 0]
        assert (after - before).abs().max() > 1e-4, f"the prompt of block {index} is not used"


@torch.no_grad()
def test_text_prompts_follow_sot_and_leave_earlier_tokens_unchanged(backbone: Backbone) -> None:
    model = backbone.model
    prompts = list(random_frames(2, 3, TEXT_WIDTH, seed=3))
    ids = insert_slots(backbone.tokenize(TEXTS[:1]), 3)
    length = int(ids[0].argmax()) + 1
    tokens = model.token_embedding(ids[0, :length])
    tokens = torch.cat([tokens[:1], prompts[0], tokens[4:]]) + model.positional_embedding[:length]
    mask = model.attn_mask[:length, :length]
    for index, block in enumerate(model.transformer.resblocks):
        if index == 1:
            tokens = torch.cat([tokens[:1], prompts[1], tokens[4:]])
        normed = block.ln_1(tokens)[None]
        tokens = (
            tokens + block.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0][0]
        )
        tokens = tokens + block.mlp(block.ln_2(tokens))
    expected = model.ln_final(tokens[-1]) @ model.text_projection
    ours = encode_texts(model, ids, prompts=prompts)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def video_feature(backbone: Backbone, images: torch.Tensor, **how: Any) -> torch.Tensor:
    """Return the mean CLS of one clip."""
    with torch.no_grad():
        return encode_frames(backbone.model, images, num_frames=len(images), **how)[:, 0].mean(
            dim=0
        )


def largest_allocation(backbone: Backbone, frames: torch.Tensor) -> int:
    """Return the bytes of the largest tensor of a space-time pass without gradients, including
    those inside torch's kernels."""
    with torch.no_grad(), profile(profile_memory=True) as profiled:
        encode_frames(
            backbone.model, frames, num_frames=len(frames), space_time_blocks=(0, 1, 2, 3)
        )
    return max(event.self_cpu_memory_usage for event in profiled.events())


def test_space_time_block_without_gradients_stores_no_attention_weights(tmp_path: Path) -> None:
    # torch's native path, which writes them, is for towers in evaluation with an even number of
    # heads
    spec = {**SPEC, "vision_cfg": {**SPEC["vision_cfg"], "head_width": 12}}
    backbone = load_tiny(write_clip(tmp_path / "even.safetensors", spec=spec))
    backbone.model.eval()
    num_heads = backbone.model.visual.transformer.resblocks[0].attn.num_heads
    frames = random_frames(16, 3, 32, 32)
    weights_bytes = num_heads * (16 * VISION_TOKENS) ** 2 * 4
    assert num_heads == 4
    assert largest_allocation(backbone, frames) < weights_bytes / 4
    with sdpa_kernel(SDPBackend.MATH):
        assert largest_allocation(backbone, frames) >= weights_bytes, "what is measured shows them"


@pytest.mark.parametrize("has_prompts", [False, True])
def test_reversed_clip_has_another_feature_only_under_causal_blocks(
    backbone: Backbone, has_prompts: bool
) -> None:
    frames = random_frames(4, 3, 32, 32)
    prompts = list(random_frames(2, 3, VISION_WIDTH, seed=1)) if has_prompts else []
    for causal in (False, True):
        how = {"space_time_blocks": (1, 3), "causal": causal, "prompts": prompts}
        difference = (
            video_feature(backbone, frames, **how) - video_feature(backbone, frames.flip(0), **how)
        ).abs()
        assert (difference.max() > 1e-2) == causal
        assert causal or difference.max() < 1e-5


def test_causal_tower_computes_a_frame_without_later_frames(backbone: Backbone) -> None:
    frames = random_frames(4, 3, 32, 32)
    later = torch.cat([frames[:2], random_frames(2, 3, 32, 32, seed=1)])
    with torch.no_grad():
        ours, others = (
            encode_frames(backbone.model, clip, num_frames=4, space_time_blocks=(0, 2), causal=True)
            for clip in (frames, later)
        )
        prefix = encode_frames(
            backbone.model, frames[:2], num_frames=2, space_time_blocks=(0, 2), causal=True
        )
    torch.testing.assert_close(ours[:2], others[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[:2], prefix, rtol=1e-5, atol=1e-5)
    assert (ours[2:] - others[2:]).abs().max() > 1e-2


def test_causal_tower_over_one_frame_equals_the_plain_tower(
    backbone: Backbone, images: torch.Tensor
) -> None:
    with torch.no_grad():
        plain = encode_frames(backbone.model, images, num_frames=1)
        causal = encode_frames(
            backbone.model, images, num_frames=1, space_time_blocks=(0, 1, 2, 3), causal=True
        )
    torch.testing.assert_close(causal, plain, rtol=1e-5, atol=1e-5)


def test_causal_blocks_do_not_mix_clips(backbone: Backbone) -> None:
    frames = random_frames(6, 3, 32, 32)
    with torch.no_grad():
        together, alone = (
            encode_frames(backbone.model, clip, num_frames=3, space_time_blocks=(1,), causal=True)
            for clip in (frames, frames[3:])
        )
    torch.testing.assert_close(together[3:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trains", [False, True])
def test_causal_blocks_run_under_autocast(
    backbone: Backbone, images: torch.Tensor, trains: bool
) -> None:
    temporal_TE = random_frames(T, VISION_WIDTH, seed=2).requires_grad_(trains)
    how: dict[str, Any] = {
        "num_frames": T,
        "temporal_TE": temporal_TE,
        "space_time_blocks": (1, 3),
        "causal": True,
    }
    plain = encode_frames(backbone.model, images, **how)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encode_frames(backbone.model, images, **how)
    assert rounded.isfinite().all()
    assert (rounded.float() - plain).abs().max() < 0.1 * plain.abs().max()
    if trains:
        rounded.float().square().mean().backward()
        assert temporal_TE.grad is not None
        assert temporal_TE.grad.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_through_the_towers_equal_finite_differences(clip: Path, causal: bool) -> None:
    model = load_tiny(clip).model.double()
    model.requires_grad_(False)
    frames, ids_KS = (
        random_frames(2, 3, 32, 32).double(),
        insert_slots(load_tiny(clip).tokenize(TEXTS[:2]), 2),
    )

    def run(
        temporal_TE: torch.Tensor, vision_PE: torch.Tensor, text_PE: torch.Tensor
    ) -> torch.Tensor:
        tokens_NSD = encode_frames(
            model,
            frames,
            num_frames=2,
            prompts=[vision_PE, vision_PE],
            temporal_TE=temporal_TE,
            space_time_blocks=(1, 3),
            causal=causal,
        )
        tokens_KSD = encode_text_tokens(model, ids_KS, prompts=[text_PE, text_PE])
        return torch.cat([tokens_NSD.flatten(), tokens_KSD[:, :12].flatten()])

    shapes = ((2, VISION_WIDTH), (1, VISION_WIDTH), (2, TEXT_WIDTH))
    inputs = [
        random_frames(*shape, seed=seed).double().requires_grad_()
        for seed, shape in enumerate(shapes)
    ]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_clip_feature_is_the_unit_mean_of_its_frames(clip: Path) -> None:
    method = method_on(clip, name="zero_shot", space_time_blocks=None)
    frames = random_frames(2, 1, 4, 3, 32, 32)
    with torch.no_grad():
        of_frames = method.clip.encode_image(frames.flatten(0, 2)).view(2, 4, JOINT_WIDTH)
    expected = F.normalize(of_frames.mean(dim=1), dim=-1)
    torch.testing.assert_close(clip_features(method, frames)[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_logits_are_averaged_over_views(clip: Path) -> None:
    method = method_on(clip)
    ids = method.prepare_texts(TEXTS)
    frames = random_frames(2, 3, 4, 3, 32, 32)
    with torch.no_grad():
        one_by_one = torch.stack(
            [cosine_logits(method, frames[:, view : view + 1], ids) for view in range(3)]
        ).mean(dim=0)
        torch.testing.assert_close(
            cosine_logits(method, frames, ids), one_by_one, rtol=1e-4, atol=1e-4
        )


def test_insert_slots_puts_slots_between_sot_and_the_caption(backbone: Backbone) -> None:
    ids = backbone.tokenize(["a video of a cat"])
    with_slots = insert_slots(ids, 5)
    assert with_slots.shape == ids.shape
    assert with_slots[0, 0] == SOT
    assert with_slots[0, 1:6].tolist() == [0] * 5
    assert torch.equal(with_slots[0, 6:], ids[0, 1:-5])
    assert int(with_slots[0].argmax()) == int(ids[0].argmax()) + 5


def test_insert_slots_truncates_a_long_caption_before_its_eot(backbone: Backbone) -> None:
    ids = backbone.tokenize(["cat " * 74, "cat " * 100, "walk"])
    with_slots = insert_slots(ids, 5)
    assert (with_slots == EOT).sum(dim=1).tolist() == [1, 1, 1]
    assert with_slots[:, -1].tolist() == [EOT, EOT, 0]
    assert torch.equal(with_slots[1, 6:-1], ids[1, 1:71])


def test_insert_slots_keeps_a_caption_that_just_fits(backbone: Backbone) -> None:
    ids = backbone.tokenize(["cat " * 70])
    with_slots = insert_slots(ids, 5)
    assert torch.equal(with_slots[0, 6:], ids[0, 1:72])


def test_insert_slots_of_no_slot_changes_nothing(backbone: Backbone) -> None:
    ids = backbone.tokenize([*TEXTS, "cat " * 100])
    assert torch.equal(insert_slots(ids, 0), ids)


def test_insert_slots_leaves_its_input_unchanged(backbone: Backbone) -> None:
    ids = backbone.tokenize(["cat " * 100])
    before = ids.clone()
    insert_slots(ids, 3)
    assert torch.equal(ids, before)
