"""CLIP's two towers, computed block by block, with prompts and space-time attention.

Shapes: N = B*T images, the frames of a clip next to each other; S tokens; E tower width; D joint
width; K texts; P prompt tokens. `prompts[l]` enters at block l, counted from 0; None leaves a block
without a prompt of its own. Without prompts and space-time blocks, `encode_frames` and
`encode_texts` equal open_clip's `encode_image` and `encode_text`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

Prompts = Sequence["torch.Tensor | None"]


class TowerWalk(ABC):
    """A tower that is computed one block at a time: `enter` and `run` of each block, in order."""

    blocks: nn.ModuleList
    """The residual blocks of the tower."""

    @abstractmethod
    def enter(self, index: int) -> None:
        """Insert the prompt of a block into the tokens, if the block has one."""

    @abstractmethod
    def run(self, index: int) -> None:
        """Compute a block."""

    def run_all(self) -> Self:
        """Compute all blocks and return the walk."""
        for index in range(len(self.blocks)):
            self.enter(index)
            self.run(index)
        return self


class FrameWalk(TowerWalk):
    """The visual tower; `project` returns its output."""

    tokens_NSE: torch.Tensor
    """Tokens after the last computed block: CLS, patches, prompt tokens."""

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
        """Embed the images; the arguments are those of `encode_frames`."""
        self._visual = model.visual
        self._prompts = prompts
        self._num_frames = num_frames
        self._space_time_blocks = space_time_blocks
        self.blocks = self._visual.transformer.resblocks
        self.tokens_NSE = self._embed(frames_NCHW, temporal_TE)

        self._mask_SS = None
        if causal and len(space_time_blocks) > 0:
            self._mask_SS = _causal_mask(num_frames, self.tokens_NSE)

    def _embed(self, frames_NCHW: torch.Tensor, temporal_TE: torch.Tensor | None) -> torch.Tensor:
        visual, prompts = self._visual, self._prompts

        patches_NSE = visual.conv1(frames_NCHW).flatten(2).transpose(1, 2)
        cls_N1E = visual.class_embedding.to(patches_NSE.dtype).expand(len(patches_NSE), 1, -1)
        positions_SE = visual.positional_embedding.to(patches_NSE.dtype)
        tokens_NSE = torch.cat([cls_N1E, patches_NSE], dim=1) + positions_SE

        if temporal_TE is not None:
            tokens_BTSE = tokens_NSE.unflatten(0, (-1, self._num_frames))
            tokens_NSE = (tokens_BTSE + temporal_TE.to(tokens_NSE.dtype)[:, None]).flatten(0, 1)

        # After the positions: prompt tokens have none.
        if len(prompts) > 0 and prompts[0] is not None:
            tokens_NSE = torch.cat([tokens_NSE, _expand(prompts[0], tokens_NSE)], dim=1)
        return visual.ln_pre(tokens_NSE)

    def enter(self, index: int) -> None:
        """Replace the last tokens by the prompt of a block, if the block has one."""
        prompt = self._prompts[index] if 0 < index < len(self._prompts) else None
        if prompt is not None:
            kept_NSE = self.tokens_NSE[:, : -len(prompt)]
            self.tokens_NSE = torch.cat([kept_NSE, _expand(prompt, kept_NSE)], dim=1)

    def run(self, index: int) -> None:
        """Compute a block, over all frames of a clip together if it is a space-time block."""
        block = self.blocks[index]
        if index in self._space_time_blocks:
            self.tokens_NSE = _run_block(
                block, self.tokens_NSE, frames_together=self._num_frames, mask_SS=self._mask_SS
            )
        else:
            self.tokens_NSE = _run_block(block, self.tokens_NSE)

    def project(self) -> torch.Tensor:
        """Return all tokens in the joint space, [N, S, D]."""
        return self._visual.ln_post(self.tokens_NSE) @ self._visual.proj


class TextWalk(TowerWalk):
    """The text tower; `project` or `project_eot` returns its output."""

    tokens_KSE: torch.Tensor
    """Tokens after the last computed block; S may be shorter than the context."""

    def __init__(self, model: Any, ids_KS: torch.Tensor, *, prompts: Prompts = ()) -> None:
        """Embed the words; the arguments are those of `encode_texts`."""
        self._model = model
        self._prompts = prompts
        self.blocks = model.transformer.resblocks

        tokens_KSE = model.token_embedding(ids_KS)
        if len(prompts) > 0 and prompts[0] is not None:
            tokens_KSE = _replace_slots(tokens_KSE, prompts[0])
        positions_SE = model.positional_embedding[: ids_KS.shape[1]].to(tokens_KSE.dtype)
        self.tokens_KSE = tokens_KSE + positions_SE

    def enter(self, index: int) -> None:
        """Replace the tokens at positions 1..P by the prompt of a block, if the block has one."""
        prompt = self._prompts[index] if 0 < index < len(self._prompts) else None
        if prompt is not None:
            self.tokens_KSE = _replace_slots(self.tokens_KSE, prompt)

    def run(self, index: int) -> None:
        """Compute a block with causal attention."""
        self.tokens_KSE = _run_block(self.blocks[index], self.tokens_KSE, is_causal=True)

    def project(self) -> torch.Tensor:
        """Return all tokens in the joint space, [K, S, D]."""
        return self._project(self.tokens_KSE)

    def project_eot(self, ids_KS: torch.Tensor) -> torch.Tensor:
        """Return the EOT features in the joint space, [K, D]."""
        return self._project(take_eot(self.tokens_KSE, ids_KS))

    def _project(self, tokens_XE: torch.Tensor) -> torch.Tensor:
        projection = self._model.text_projection
        normed_XE = self._model.ln_final(tokens_XE)
        if isinstance(projection, nn.Linear):
            return projection(normed_XE)
        return normed_XE @ projection


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
    """Encode normalised images.

    Args:
        model: open_clip.CLIP.
        frames_NCHW: images, the frames of a clip next to each other.
        num_frames: number of frames per clip (T).
        prompts: prompt tokens [P, E] per block. The first is appended before `ln_pre` and has no
            position; each later one replaces the last P tokens.
        temporal_TE: embedding of each frame, [T, E], added to all tokens of the frame.
        space_time_blocks: blocks whose attention runs over the tokens of all frames of a clip, as
            in BDC-CLIP. They have no parameters of their own and, without `temporal_TE`, do not
            depend on the order of the frames.
        causal: whether tokens in these blocks attend only to their own and earlier frames, which
            makes the output depend on the order without a parameter. The mask [T * S, T * S] takes
            172 MB in float32 for 32 frames of a ViT-B/16 with 8 prompts.

    Returns:
        All tokens in the joint space, [N, S, D]: CLS, patches, prompt tokens.
    """
    walk = FrameWalk(
        model,
        frames_NCHW,
        num_frames=num_frames,
        prompts=prompts,
        temporal_TE=temporal_TE,
        space_time_blocks=space_time_blocks,
        causal=causal,
    )
    return walk.run_all().project()


def encode_texts(model: Any, ids_KS: torch.Tensor, *, prompts: Prompts = ()) -> torch.Tensor:
    """Encode token ids to EOT features in the joint space, [K, D], not normalised.

    Args:
        model: open_clip.CLIP.
        ids_KS: token ids. Tokens after the last EOT are not computed: the tower is causal, so they
            would not change the features.
        prompts: prompt tokens [P, E] per block. The first replaces the word vectors at positions
            1..P, which `insert_slots` adds, before the positions are added; each later one replaces
            the tokens at these positions.
    """
    walk = TextWalk(model, cut_to_longest(ids_KS), prompts=prompts)
    return walk.run_all().project_eot(ids_KS)


def cut_to_longest(ids_XS: torch.Tensor) -> torch.Tensor:
    """Return token ids, with any leading axes, up to the last EOT of all texts."""
    return ids_XS[..., : int(ids_XS.argmax(dim=-1).max()) + 1]


def encode_text_tokens(model: Any, ids_KS: torch.Tensor, *, prompts: Prompts = ()) -> torch.Tensor:
    """Encode token ids to all tokens in the joint space, [K, S, D], also those after EOT.

    `take_eot` of the result equals `encode_texts`, which computes fewer than the 77 tokens of the
    context. The arguments are those of `encode_texts`.
    """
    return TextWalk(model, ids_KS, prompts=prompts).run_all().project()


def take_eot(tokens_KSE: torch.Tensor, ids_KS: torch.Tensor) -> torch.Tensor:
    """Return the token [K, E] at the EOT of each text; EOT has the largest id."""
    return tokens_KSE[torch.arange(len(ids_KS), device=ids_KS.device), ids_KS.argmax(dim=-1)]


def insert_slots(ids_KS: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Insert slots for prompt tokens after SOT: [SOT, slots, caption, EOT, 0 ...].

    The context length stays. A caption that no longer fits is truncated and still ends in EOT.
    """
    eot = ids_KS.max()
    slots_KP = torch.zeros_like(ids_KS[:, :1]).expand(-1, num_slots)
    shifted_KS = torch.cat([ids_KS[:, :1], slots_KP, ids_KS[:, 1:]], dim=1)
    shifted_KS = shifted_KS[:, : ids_KS.shape[1]].clone()

    is_truncated_K = (shifted_KS != eot).all(dim=1)
    shifted_KS[is_truncated_K, -1] = eot
    return shifted_KS


def _run_block(
    block: Any,
    tokens_NSE: torch.Tensor,
    *,
    mask_SS: torch.Tensor | None = None,
    is_causal: bool = False,
    frames_together: int = 1,
) -> torch.Tensor:
    """Compute a pre-norm residual block, whose attention sees `frames_together` frames as one
    sequence.

    is_causal: whether a token attends only to itself and earlier tokens. Kernels for this need no
        mask and take 0.4 of the time for forward and backward of 102 texts of 77 tokens (by hand,
        torch 2.13, two cores).
    """
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
    """Compute the attention module without storing the weights of its H heads, [N, H, S, S].

    Without gradients, the module itself stores them: 997 MB instead of 312 MB in a space-time
    block of a ViT-B/16 over 2 clips of 16 frames (by hand, torch 2.13).
    """
    projected = F.linear(tokens_NSE, attention.in_proj_weight, attention.in_proj_bias)
    by_head = projected.unflatten(2, (3, attention.num_heads, -1))
    # each [N, H, S, E / H]
    query, key, value = by_head.permute(2, 0, 3, 1, 4)

    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask_SS, is_causal=is_causal
    )
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def _causal_mask(num_frames: int, tokens_NSE: torch.Tensor) -> torch.Tensor:
    """Return the summand of a clip's attention scores, [T * S, T * S]: -inf at later frames."""
    frames = torch.arange(num_frames, device=tokens_NSE.device)
    frame_S = frames.repeat_interleave(tokens_NSE.shape[1])
    is_later_SS = frame_S.unsqueeze(0) > frame_S.unsqueeze(1)
    return tokens_NSE.new_zeros(is_later_SS.shape).masked_fill(is_later_SS, -torch.inf)


def _expand(prompt_PE: torch.Tensor, tokens_NSE: torch.Tensor) -> torch.Tensor:
    return prompt_PE.to(tokens_NSE.dtype).expand(len(tokens_NSE), -1, -1)


def _replace_slots(tokens_KSE: torch.Tensor, prompt_PE: torch.Tensor) -> torch.Tensor:
    """Replace the tokens at positions 1..P, right after SOT."""
    after = tokens_KSE[:, 1 + len(prompt_PE) :]
    return torch.cat([tokens_KSE[:, :1], _expand(prompt_PE, tokens_KSE), after], dim=1)
