"""CLIP's two towers, walked block by block so that prompts and space-time attention can enter.

Shapes: N = B*T images with the frames of a clip next to each other, S tokens, E tower width, D
    joint width,
K texts, P prompt tokens. `prompts[l]` enters at block l (0-based); None leaves the block alone.
Without prompts and space-time blocks both functions equal open_clip's `encode_image` and
`encode_text`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

Prompts = Sequence["torch.Tensor | None"]


class FrameWalk:
    """The visual tower, one block at a time: `enter` and `run` each block in order, then `project`.

    tokens_NSE: where it stands; CLS first, prompt tokens last"""

    def __init__(
        self,
        model: Any,
        frames_NCHW: torch.Tensor,
        *,
        num_frames: int,
        prompts: Prompts = (),
        temporal_TE: torch.Tensor | None = None,
        space_time_blocks: Collection[int] = (),
        causal: bool = False,
    ) -> None:
        """Embed the images; arguments as `encode_frames`."""
        self._visual, self._prompts = model.visual, prompts
        self._num_frames, self._space_time_blocks = num_frames, space_time_blocks
        self.blocks = self._visual.transformer.resblocks
        self.tokens_NSE = self._embed(frames_NCHW, temporal_TE)
        self._mask_SS = (
            _causal_mask(num_frames, self.tokens_NSE)
            if causal and len(space_time_blocks) > 0
            else None
        )

    def _embed(self, frames_NCHW: torch.Tensor, temporal_TE: torch.Tensor | None) -> torch.Tensor:
        visual, prompts = self._visual, self._prompts
        tokens_NSE = visual.conv1(frames_NCHW).flatten(2).transpose(1, 2)
        cls_N1E = visual.class_embedding.to(tokens_NSE.dtype).expand(len(tokens_NSE), 1, -1)
        tokens_NSE = torch.cat([cls_N1E, tokens_NSE], dim=1) + visual.positional_embedding.to(
            tokens_NSE.dtype
        )
        if temporal_TE is not None:
            tokens_BTSE = tokens_NSE.unflatten(0, (-1, self._num_frames))
            tokens_NSE = (tokens_BTSE + temporal_TE.to(tokens_NSE.dtype)[:, None]).flatten(0, 1)
        if len(prompts) > 0 and prompts[0] is not None:
            tokens_NSE = torch.cat([tokens_NSE, _expand(prompts[0], tokens_NSE)], dim=1)
        return visual.ln_pre(tokens_NSE)

    def enter(self, index: int) -> None:
        """Put the block's own prompt, if it has one, in the place of what the last one's has
        become."""
        prompt = self._prompts[index] if 0 < index < len(self._prompts) else None
        if prompt is not None:
            kept_NSE = self.tokens_NSE[:, : -len(prompt)]
            self.tokens_NSE = torch.cat([kept_NSE, _expand(prompt, kept_NSE)], dim=1)

    def run(self, index: int) -> None:
        """Compute a block."""
        if index in self._space_time_blocks:
            together, mask_SS = self._num_frames, self._mask_SS
            self.tokens_NSE = _block(
                self.blocks[index], self.tokens_NSE, frames_together=together, mask_SS=mask_SS
            )
        else:
            self.tokens_NSE = _block(self.blocks[index], self.tokens_NSE)

    def project(self) -> torch.Tensor:
        """All tokens in the joint space [N, S, D]."""
        return self._visual.ln_post(self.tokens_NSE) @ self._visual.proj


class TextWalk:
    """The text tower, one block at a time, as `FrameWalk`.

    tokens_KSE: where it stands; S is the given ids', which may be shorter than the context"""

    def __init__(self, model: Any, ids_KS: torch.Tensor, *, prompts: Prompts = ()) -> None:
        """Embed the words; prompts as `encode_texts`."""
        self._model, self._prompts, length = model, prompts, ids_KS.shape[1]
        self.blocks = model.transformer.resblocks
        tokens_KSE = model.token_embedding(ids_KS)
        if len(prompts) > 0 and prompts[0] is not None:
            tokens_KSE = _replace_slots(tokens_KSE, prompts[0])
        self.tokens_KSE = tokens_KSE + model.positional_embedding[:length].to(tokens_KSE.dtype)

    def enter(self, index: int) -> None:
        """Put the block's own prompt, if it has one, at positions 1..P."""
        prompt = self._prompts[index] if 0 < index < len(self._prompts) else None
        if prompt is not None:
            self.tokens_KSE = _replace_slots(self.tokens_KSE, prompt)

    def run(self, index: int) -> None:
        """Compute a block."""
        self.tokens_KSE = _block(self.blocks[index], self.tokens_KSE, is_causal=True)

    def project(self) -> torch.Tensor:
        """All tokens in the joint space [K, S, D]."""
        return self._project(self.tokens_KSE)

    def project_eot(self, ids_KS: torch.Tensor) -> torch.Tensor:
        """The EOT features in the joint space [K, D]."""
        return self._project(take_eot(self.tokens_KSE, ids_KS))

    def _project(self, tokens_XE: torch.Tensor) -> torch.Tensor:
        projection = self._model.text_projection
        normed_XE = self._model.ln_final(tokens_XE)
        return (
            projection(normed_XE) if isinstance(projection, nn.Linear) else normed_XE @ projection
        )


Walk = TypeVar("Walk", FrameWalk, TextWalk)


def walked(walk: Walk) -> Walk:
    """The same at its end."""
    for index in range(len(walk.blocks)):
        walk.enter(index)
        walk.run(index)
    return walk


def encode_frames(
    model: Any,
    frames_NCHW: torch.Tensor,
    *,
    num_frames: int,
    prompts: Prompts = (),
    temporal_TE: torch.Tensor | None = None,
    space_time_blocks: Collection[int] = (),
    causal: bool = False,
) -> torch.Tensor:
    """Encode normalised images to projected tokens [N, S, D]; token 0 is CLS, prompt tokens come
    last.

    prompts[0] [P, E] is appended before `ln_pre` and has no position; later ones replace the last P
    tokens.
    space_time_blocks: blocks whose attention runs over all tokens of a clip's T = num_frames frames
        together
    (BDC-CLIP; parameter-free, and blind to the order of frames unless temporal_TE [T, E] is added).
    causal: there a token of frame t attends to the tokens of frames 0 .. t alone, which tells their
        order without a
    parameter; the mask of [T * S, T * S], made once a call, has 172 MB in float32 for 32 frames of
    a ViT-B/16 with 8 prompts."""
    walk = FrameWalk(
        model,
        frames_NCHW,
        num_frames=num_frames,
        prompts=prompts,
        temporal_TE=temporal_TE,
        space_time_blocks=space_time_blocks,
        causal=causal,
    )
    return walked(walk).project()


def encode_texts(model: Any, ids_KS: torch.Tensor, *, prompts: Prompts = ()) -> torch.Tensor:
    """Encode token ids to the projected EOT features [K, D], not normalised.

    prompts[0] [P, E] replaces the word vectors of positions 1..P (the slots of `insert_slots`),
    positions are added to it; later ones replace the tokens of positions 1..P at their block's
    entry. The tower is causal, so tokens after the last EOT change nothing and are not computed."""
    walk = TextWalk(model, cut_to_longest(ids_KS), prompts=prompts)
    return walked(walk).project_eot(ids_KS)


def cut_to_longest(ids_XS: torch.Tensor) -> torch.Tensor:
    """The same ids up to the last EOT, any leading axes."""
    return ids_XS[..., : int(ids_XS.argmax(dim=-1).max()) + 1]


def encode_text_tokens(model: Any, ids_KS: torch.Tensor, *, prompts: Prompts = ()) -> torch.Tensor:
    """Encode token ids to all projected tokens [K, S, D] of the context, what stands after EOT
    included.

    Its `take_eot` is what `encode_texts` gives, at the price of the whole context (77 tokens)."""
    walk = TextWalk(model, ids_KS, prompts=prompts)
    return walked(walk).project()


def take_eot(tokens_KSE: torch.Tensor, ids_KS: torch.Tensor) -> torch.Tensor:
    """The tokens [K, E] at the EOT of each text, whose id is the largest."""
    return tokens_KSE[torch.arange(len(ids_KS), device=ids_KS.device), ids_KS.argmax(dim=-1)]


def insert_slots(ids_KS: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Make room for prompt tokens after SOT: [SOT, slots, caption, EOT, 0 ...], cut to the context
    length.

    A caption that no longer fits loses its end, never its EOT."""
    eot = ids_KS.max()
    slots_KP = torch.zeros_like(ids_KS[:, :1]).expand(-1, num_slots)
    shifted_KS = torch.cat([ids_KS[:, :1], slots_KP, ids_KS[:, 1:]], dim=1)[
        :, : ids_KS.shape[1]
    ].clone()
    is_cut_K = (shifted_KS != eot).all(dim=1)
    shifted_KS[is_cut_K, -1] = eot
    return shifted_KS


def _block(
    block: Any,
    tokens_NSE: torch.Tensor,
    *,
    mask_SS: torch.Tensor | None = None,
    is_causal: bool = False,
    frames_together: int = 1,
) -> torch.Tensor:
    """One pre-norm residual block; the attention alone sees `frames_together` frames as one
    sequence.

    is_causal: a token attends to itself and those before it; without a mask, there are kernels that
        take 0.4 of the
    time for forward and backward of 102 texts of 77 tokens (by hand, torch 2.13, two cores)"""
    num_tokens = tokens_NSE.shape[1]
    normed = block.ln_1(tokens_NSE).reshape(-1, frames_together * num_tokens, tokens_NSE.shape[2])
    attended = _attend(block.attn, normed, mask_SS=mask_SS, is_causal=is_causal)
    tokens_NSE = tokens_NSE + block.ls_1(attended.reshape(tokens_NSE.shape))
    return tokens_NSE + block.ls_2(block.mlp(block.ln_2(tokens_NSE)))


def _attend(
    attention: nn.MultiheadAttention,
    tokens_NSE: torch.Tensor,
    *,
    mask_SS: torch.Tensor | None,
    is_causal: bool,
) -> torch.Tensor:
    """Compute what the module does, by kernels that never write the weights of its H heads, [N, H,
    S, S], out.

    The module itself, where no gradient is needed, takes a path of torch's that does: 997 MB
    instead of 312 MB in a space-time block of a ViT-B/16 over 2 clips of 16 frames (by hand, torch
    2.13)."""
    projected = F.linear(tokens_NSE, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.unflatten(2, (3, attention.num_heads, -1)).permute(
        2, 0, 3, 1, 4
    )  # each [N, H, S, .]
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask_SS, is_causal=is_causal
    )
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def _causal_mask(num_frames: int, tokens_NSE: torch.Tensor) -> torch.Tensor:
    """What is added to a clip's attention scores [T * S, T * S]: -inf at the tokens of later
    frames."""
    frame_S = torch.arange(num_frames, device=tokens_NSE.device).repeat_interleave(
        tokens_NSE.shape[1]
    )
    is_later_SS = frame_S.unsqueeze(0) > frame_S.unsqueeze(1)
    return tokens_NSE.new_zeros(is_later_SS.shape).masked_fill(is_later_SS, -torch.inf)


def _expand(prompt_PE: torch.Tensor, tokens_NSE: torch.Tensor) -> torch.Tensor:
    return prompt_PE.to(tokens_NSE.dtype).expand(len(tokens_NSE), -1, -1)


def _replace_slots(tokens_KSE: torch.Tensor, prompt_PE: torch.Tensor) -> torch.Tensor:
    """Put the prompt at positions 1..P, right after SOT."""
    after = tokens_KSE[:, 1 + len(prompt_PE) :]
    return torch.cat([tokens_KSE[:, :1], _expand(prompt_PE, tokens_KSE), after], dim=1)
