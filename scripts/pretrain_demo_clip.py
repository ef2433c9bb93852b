"""Pretrain the demo's tiny CLIP from scratch on rendered motions and write it as safetensors.

    # 20 to 30 minutes on 2 cores
    python scripts/pretrain_demo_clip.py
    # a short run, to check that the script works
    python scripts/pretrain_demo_clip.py --out /tmp/clip.safetensors --scale 0.02

The seed and the number of steps are fixed. Training has three stages:

1. Captions name only the motion, and backgrounds are dark and flat. With colours and shapes in the
   captions, the model learns appearance and stays at chance on motion.
2. Backgrounds are brighter and noisy, and some captions name colour and shape.
3. Half of the steps insert random prompt tokens, and the learning rate falls to 0. Without this
   stage a tower of only 17 tokens per frame does not tolerate prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bmpt.clip.architecture import build_clip, import_open_clip
from bmpt.clip.backbone import OPENAI_MEAN, OPENAI_STD
from bmpt.clip.towers import encode_frames, encode_texts, insert_slots
from bmpt.clip.weights import SPEC_METADATA_KEY, TEMPORAL_KEY
from bmpt.demo.render import FADED, MOTIONS, PLAIN, PLAIN_DARK, Clip, Look, render_clip

NUM_FRAMES = 8
SPACE_TIME_BLOCKS = (1, 3)
CONTEXT_LENGTH = 32
BATCH_SIZE = 32
# 1.8e-3 in the second stage was no better after 150,000 clips.
LR = 1.5e-3
SPEC: dict[str, Any] = {
    "embed_dim": 64,
    # PyTorch has a fused GELU; QuickGELU written out is slower.
    "quick_gelu": False,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 32},
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": 49408,
        "width": 48,
        "heads": 2,
        "layers": 3,
    },
    "image_mean": OPENAI_MEAN,
    "image_std": OPENAI_STD,
    "space_time_blocks": SPACE_TIME_BLOCKS,
}
SYNONYMS = {
    "blinking": ("flashing on and off", "appearing and disappearing"),
    "bouncing": ("bouncing up and down", "hopping on the ground"),
    "circling clockwise": ("going around clockwise", "orbiting clockwise"),
    "circling counterclockwise": ("going around counterclockwise", "orbiting counterclockwise"),
    "growing": ("getting bigger", "expanding"),
    "moving down": ("going down", "sinking to the bottom"),
    "moving left": ("going left", "drifting to the left"),
    "moving right": ("going right", "drifting to the right"),
    "moving up": ("going up", "rising to the top"),
    "pulsing": ("swelling again and again", "throbbing"),
    "shaking": ("trembling", "jittering in place"),
    "shrinking": ("getting smaller", "contracting"),
    "spinning clockwise": ("rotating clockwise", "turning clockwise in place"),
    "spinning counterclockwise": ("rotating counterclockwise", "turning counterclockwise in place"),
    "staying still": ("not moving", "resting in place"),
    "zigzagging": ("moving in a zigzag", "weaving up and down"),
}
# Of different lengths: prompts shift a caption to later positions, which must be trained, too.
TEMPLATES = (
    "{m}",
    "something {m}",
    "a video of something {m}",
    "a clip of a shape {m}",
    "in this video a shape is {m}",
    "this is a short video that shows a shape {m}",
)


@dataclass(frozen=True)
class Stage:
    """A stage of training."""

    name: str
    num_clips: int
    look: Look

    full_captions: float = 0.0
    """Share of captions that name colour and shape."""

    random_prompts: float = 0.0
    """Share of steps with random prompt tokens."""


STAGES = (
    Stage("1 motion", 70_000, PLAIN_DARK),
    Stage("2 backgrounds", 110_000, PLAIN, full_captions=0.15),
    Stage("3 prompts", 120_000, PLAIN, full_captions=0.15, random_prompts=0.5),
)


class Vocabulary:
    """The words of the captions, with small ids in CLIP's order, so that EOT has the largest id."""

    def __init__(self) -> None:
        self.tokenizer = import_open_clip().SimpleTokenizer(context_length=CONTEXT_LENGTH)

        phrases = [*SYNONYMS]
        for synonyms in SYNONYMS.values():
            phrases += synonyms
        phrases += TEMPLATES
        phrases += ["red green blue yellow cyan magenta orange white"]
        phrases += ["square triangle bar cross half disc"]
        words = " ".join(phrases).replace("{m}", "").split()

        # 0 pads every caption.
        self.ids = torch.unique(torch.cat([torch.tensor([0]), self.tokenizer(words).flatten()]))

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the small ids [K, context] of K texts."""
        return torch.searchsorted(self.ids, self.tokenizer(list(texts)))


def make_model(vocabulary: Vocabulary, rng: np.random.Generator) -> tuple[Any, torch.nn.Parameter]:
    """Return an untrained CLIP over the small vocabulary and its temporal embedding [T, E].

    The embeddings of place and time start as rotated sines and cosines: with CLIP's small random
    positions no motion is learned.
    """
    spec = {**SPEC, "text_cfg": {**SPEC["text_cfg"], "vocab_size": len(vocabulary.ids)}}
    model = build_clip(spec)
    width, layers = spec["vision_cfg"]["width"], spec["vision_cfg"]["layers"]

    with torch.no_grad():
        init_weight = torch.nn.init.normal_
        for block in model.visual.transformer.resblocks:
            init_weight(block.attn.in_proj_weight, std=width**-0.5)
            init_weight(block.attn.out_proj.weight, std=3 * width**-0.5 * (2 * layers) ** -0.5)
            init_weight(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            init_weight(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)

        grid = spec["vision_cfg"]["image_size"] // spec["vision_cfg"]["patch_size"]
        axis = (np.arange(grid) + 0.5) / grid
        rows, columns = np.meshgrid(axis, axis, indexing="ij")
        halves = [_waves(rows.reshape(-1), width // 2), _waves(columns.reshape(-1), width // 2)]
        place = _rotate(np.concatenate(halves, axis=1), rng)
        model.visual.positional_embedding[1:] = torch.from_numpy(place).float()

        # At 14, CLIP's start, all texts collapse to one vector.
        model.logit_scale.fill_(math.log(5.0))
        times = _rotate(_waves(np.arange(NUM_FRAMES) / NUM_FRAMES, width), rng)

    return model, torch.nn.Parameter(torch.from_numpy(times).float())


def _waves(positions: np.ndarray, width: int) -> np.ndarray:
    """Return sines and cosines of a quarter turn to two turns: [positions, width]."""
    angles = positions[:, None] * np.pi * np.geomspace(0.5, 4, width // 2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _rotate(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the features around their mean, rotated randomly and scaled by 0.7."""
    rotation, _ = np.linalg.qr(rng.standard_normal((features.shape[1], features.shape[1])))
    return 0.7 * (features - features.mean(axis=0)) @ rotation


def to_input(clips: Sequence[Clip]) -> torch.Tensor:
    """Return normalised frames [B * T, 3, H, W]; the frames of a clip are consecutive."""
    frames_BTHWC = torch.from_numpy(np.stack([clip.frames_THWC for clip in clips]))
    frames = frames_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
    mean = torch.tensor(OPENAI_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_STD).view(3, 1, 1)
    return (frames.float() / 255 - mean) / std


def draw_batch(
    stage: Stage, rng: np.random.Generator
) -> tuple[list[Clip], list[str], torch.Tensor]:
    """Draw a batch of B clips with as many clips of every motion.

    Returns:
        The clips, a caption for each of them, and float32 targets [B, B]: 1 where the caption of
        the column is true of the clip of the row.
    """
    motions = rng.permutation(np.repeat(MOTIONS, BATCH_SIZE // len(MOTIONS)))
    clips = [render_clip(str(motion), stage.look, rng, num_frames=NUM_FRAMES) for motion in motions]
    is_full = rng.random(BATCH_SIZE) < stage.full_captions
    captions = []
    targets = np.zeros((BATCH_SIZE, BATCH_SIZE), dtype=np.float32)

    for column, (described, full) in enumerate(zip(clips, is_full, strict=True)):
        # Both draws are made for a full caption, too, so that its share changes no other caption.
        phrase = str(rng.choice([described.motion, *SYNONYMS[described.motion]]))
        template = str(rng.choice(TEMPLATES))
        if full:
            captions.append(f"a {described.color} {described.shape} {phrase}")
        else:
            captions.append(template.format(m=phrase))

        for row, clip in enumerate(clips):
            is_same_shape = (clip.color, clip.shape) == (described.color, described.shape)
            targets[row, column] = clip.motion == described.motion and (is_same_shape or not full)

    return clips, captions, torch.from_numpy(targets)


def draw_prompts(
    rng: np.random.Generator, generator: torch.Generator
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Draw prompt tokens for every block of the visual and the text tower: 1 to 4 tokens per tower,
    of a standard deviation from 0.02 to 2 (log-uniform)."""

    def draw(layers: int, width: int) -> list[torch.Tensor]:
        count, std = int(rng.integers(1, 5)), float(np.exp(rng.uniform(np.log(0.02), np.log(2.0))))
        return [std * torch.randn(count, width, generator=generator) for _ in range(layers)]

    vision, text = SPEC["vision_cfg"], SPEC["text_cfg"]
    return draw(vision["layers"], vision["width"]), draw(text["layers"], text["width"])


def loss_of(
    model: Any,
    time_TE: torch.Tensor,
    ids: torch.Tensor,
    frames: torch.Tensor,
    true: torch.Tensor,
    prompts: tuple[list[torch.Tensor], list[torch.Tensor]] | None,
) -> torch.Tensor:
    """Return CLIP's symmetric loss, in which every true caption is a positive.

    Args:
        model: of `make_model`.
        time_TE: its temporal embedding.
        ids: of the captions, [B, context].
        frames: [B * T, 3, H, W].
        true: targets [B, B] of `draw_batch`.
        prompts: of `draw_prompts`; None for none.
    """
    vision_prompts, text_prompts = prompts or ([], [])
    if text_prompts:
        ids = insert_slots(ids, len(text_prompts[0]))

    video = encode_video(model, time_TE, frames, vision_prompts)
    text = F.normalize(encode_texts(model, ids, prompts=text_prompts), dim=-1)
    logits = model.logit_scale.exp() * video @ text.T

    # The targets are divided among all true captions of a clip, and all clips of a caption.
    to_text = -(true / true.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    to_video = -(true / true.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (to_text + to_video) / 2


def encode_video(
    model: Any, time_TE: torch.Tensor, frames: torch.Tensor, prompts: list[torch.Tensor]
) -> torch.Tensor:
    """Return video features [B, D] of length 1: the mean of the CLS features of the frames."""
    tokens = encode_frames(
        model,
        frames,
        num_frames=NUM_FRAMES,
        prompts=prompts,
        temporal_TE=time_TE,
        space_time_blocks=SPACE_TIME_BLOCKS,
    )
    return F.normalize(tokens[:, 0].unflatten(0, (-1, NUM_FRAMES)).mean(1), dim=-1)


@torch.no_grad()
def zero_shot_accuracy(
    model: Any,
    time_TE: torch.Tensor,
    vocabulary: Vocabulary,
    look: Look,
    *,
    seed: int,
    clips_per_motion: int = 20,
) -> tuple[float, dict[str, float]]:
    """Return the top-1 accuracy in percent over the 16 motions, and the accuracy per motion.

    Args:
        model: of `make_model`.
        time_TE: its temporal embedding.
        vocabulary: of the captions.
        look: of the clips.
        seed: of the clips; another one than that of training.
        clips_per_motion: number of clips.
    """
    rng = np.random.default_rng(seed)
    ids = vocabulary.encode([f"a video of something {motion}" for motion in MOTIONS])
    text = F.normalize(encode_texts(model, ids), dim=-1)
    accuracy_of = {}

    for label, motion in enumerate(MOTIONS):
        clips = [
            render_clip(motion, look, rng, num_frames=NUM_FRAMES) for _ in range(clips_per_motion)
        ]
        scores = encode_video(model, time_TE, to_input(clips), []) @ text.T
        accuracy_of[motion] = 100 * (scores.argmax(1) == label).float().mean().item()

    return sum(accuracy_of.values()) / len(accuracy_of), accuracy_of


def train(scale: float, seed: int) -> tuple[Any, torch.Tensor, Vocabulary]:
    """Train a model in all stages.

    Args:
        scale: factor of the number of clips of every stage.
        seed: of the weights and the clips.

    Returns:
        The model, its temporal embedding [T, E] and its vocabulary.

    Raises:
        SystemExit: if motion was not learned in the first stage.
    """
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    vocabulary = Vocabulary()
    model, time_TE = make_model(vocabulary, rng)
    parameters = [*model.parameters(), time_TE]
    optimizer = make_optimizer(model, time_TE)

    start, step, clips_seen = time.perf_counter(), 0, 0
    for stage in STAGES:
        num_steps = max(1, int(stage.num_clips * scale) // BATCH_SIZE)

        for stage_step in range(num_steps):
            decay = 1.0
            if stage is STAGES[-1]:
                decay = 0.5 * (1 + math.cos(math.pi * stage_step / num_steps))
            for group in optimizer.param_groups:
                group["lr"] = LR * min(1.0, (step + 1) / 20) * decay * group.get("boost", 1.0)

            clips, captions, true = draw_batch(stage, rng)
            prompts = draw_prompts(rng, generator) if rng.random() < stage.random_prompts else None
            ids, frames = vocabulary.encode(captions), to_input(clips)
            loss = loss_of(model, time_TE, ids, frames, true, prompts)

            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            # CLIP's own limit of the scale.
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100.0))

            step, clips_seen = step + 1, clips_seen + BATCH_SIZE
            if step % 250 == 0 or stage_step + 1 == num_steps:
                plain, _ = zero_shot_accuracy(model, time_TE, vocabulary, PLAIN, seed=101)
                dark, _ = zero_shot_accuracy(model, time_TE, vocabulary, PLAIN_DARK, seed=102)
                faded, _ = zero_shot_accuracy(model, time_TE, vocabulary, FADED, seed=103)
                accuracy = f"dark {dark:5.1f}  plain {plain:5.1f}  faded {faded:5.1f}"
                print(
                    f"{time.perf_counter() - start:7.0f} s  step {step:5d}  {clips_seen:6d} clips  "
                    f"stage {stage.name:13s}  loss {loss.item():6.3f}  top-1: {accuracy}",
                    flush=True,
                )

        # Chance is 6.25 percent. Some seeds never leave the first plateau of the loss.
        if stage is STAGES[0] and scale >= 1 and dark < 15:
            raise SystemExit("motion was not learned in stage 1; give another --seed")

    return model, time_TE, vocabulary


def make_optimizer(model: Any, time_TE: torch.nn.Parameter) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on matrices, and ten times the rate for the logit scale."""
    matrices, others = [], []

    for parameter in [*model.parameters(), time_TE]:
        if parameter is model.logit_scale:
            continue
        is_matrix = parameter.ndim >= 2 and parameter is not time_TE
        (matrices if is_matrix else others).append(parameter)

    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.05},
            {"params": others},
            {"params": [model.logit_scale], "boost": 10.0},
        ],
        lr=1.0,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )


def save(model: Any, time_TE: torch.Tensor, vocabulary: Vocabulary, out: Path) -> None:
    """Write fp16 weights with their architecture; the rows of words outside the captions are 0.

    Raises:
        OSError: if the file cannot be written.
    """
    state = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}

    # Back to CLIP's ids, so that the standard tokenizer fits.
    text = SPEC["text_cfg"]
    table = torch.zeros(text["vocab_size"], text["width"], dtype=torch.float16)
    table[vocabulary.ids] = state["token_embedding.weight"]
    state["token_embedding.weight"] = table
    state[TEMPORAL_KEY] = time_TE.detach().half()

    save_file(state, out, metadata={SPEC_METADATA_KEY: json.dumps(SPEC, sort_keys=True)})


def main() -> None:
    """Train, print the final zero-shot accuracy and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent.parent / "bmpt/demo/motion_clip.safetensors"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor of the number of steps of every stage"
    )
    arguments = parser.parse_args()

    # The matrices are small: a second thread gains nothing, and sums stay reproducible.
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, seed {arguments.seed}, scale {arguments.scale}", flush=True)
    model, time_TE, vocabulary = train(arguments.scale, arguments.seed)

    for name, look in (("plain, its own look", PLAIN), ("faded, the demo's look", FADED)):
        accuracy, accuracy_of = zero_shot_accuracy(
            model, time_TE, vocabulary, look, seed=201, clips_per_motion=60
        )
        print(f"zero-shot top-1 over 16 motions, 960 new clips, {name}: {accuracy:.1f}")
        print("   " + ", ".join(f"{motion} {value:.0f}" for motion, value in accuracy_of.items()))

    save(model, time_TE, vocabulary, arguments.out)
    print(f"wrote {arguments.out.name}: {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
