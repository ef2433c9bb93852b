"""Pretrain the demo's tiny CLIP from scratch on rendered motions and write it as safetensors.

    python scripts/pretrain_demo_clip.py                     # 20 to 30 minutes on 2 cores
    python scripts/pretrain_demo_clip.py --out /tmp/clip.safetensors --scale 0.02     # does it run?

Seeded and bounded in steps. Three stages: captions that name only the motion, on dark flat
backgrounds (with colours and shapes in the captions it learns appearance and stays at chance on
motion); then brighter, noisy backgrounds and some full captions; then random prompt tokens in half
of the steps while the rate goes to 0, so that a tower of 17 tokens a frame stands prompts at
all."""

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
LR = 1.5e-3  # 1.8e-3 in the second stage was no better after 150,000 clips
SPEC: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": False,  # fused GELU; QuickGELU by hand is slower
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
# of different length, so that the text positions that prompts shift a caption to are trained too
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
    """A stretch of training: how many clips, how they look and what is said of them."""

    name: str
    num_clips: int
    look: Look
    full_captions: float = 0.0
    random_prompts: float = 0.0


STAGES = (
    Stage("1 motion", 70_000, PLAIN_DARK),
    Stage("2 backgrounds", 110_000, PLAIN, full_captions=0.15),
    Stage("3 prompts", 120_000, PLAIN, full_captions=0.15, random_prompts=0.5),
)


class Vocabulary:
    """The words of the captions under small ids that keep CLIP's order, so that EOT stays the
    largest."""

    def __init__(self) -> None:
        self.tokenizer = import_open_clip().SimpleTokenizer(context_length=CONTEXT_LENGTH)
        names = [*SYNONYMS, *(text for texts in SYNONYMS.values() for text in texts)]
        words = " ".join(
            [
                *names,
                *TEMPLATES,
                "red green blue yellow cyan magenta orange white",
                "square triangle bar cross half disc",
            ]
        ).replace("{m}", "")
        self.ids = torch.unique(
            torch.cat([torch.tensor([0]), self.tokenizer(words.split()).flatten()])
        )

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Small ids [K, context]."""
        return torch.searchsorted(self.ids, self.tokenizer(list(texts)))


def make_model(vocabulary: Vocabulary, rng: np.random.Generator) -> tuple[Any, torch.nn.Parameter]:
    """An untrained CLIP over the small vocabulary and its temporal embedding [T, E].

    Place and time start as rotated sines and cosines: from CLIP's small random positions no motion
    is learned."""
    spec = {**SPEC, "text_cfg": {**SPEC["text_cfg"], "vocab_size": len(vocabulary.ids)}}
    model = build_clip(spec)
    width, layers = spec["vision_cfg"]["width"], spec["vision_cfg"]["layers"]
    with torch.no_grad():
        for block in model.visual.transformer.resblocks:
            torch.nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            torch.nn.init.normal_(
                block.attn.out_proj.weight, std=3 * width**-0.5 * (2 * layers) ** -0.5
            )
            torch.nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            torch.nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        grid = spec["vision_cfg"]["image_size"] // spec["vision_cfg"]["patch_size"]
        axis = (np.arange(grid) + 0.5) / grid
        rows, columns = (a.reshape(-1) for a in np.meshgrid(axis, axis, indexing="ij"))
        place = np.concatenate([_waves(rows, width // 2), _waves(columns, width // 2)], axis=1)
        model.visual.positional_embedding[1:] = torch.from_numpy(_rotate(place, rng)).float()
        model.logit_scale.fill_(math.log(5.0))  # at 14 the text side collapses to one vector
        time_TE = torch.from_numpy(
            _rotate(_waves(np.arange(NUM_FRAMES) / NUM_FRAMES, width), rng)
        ).float()
    return model, torch.nn.Parameter(time_TE)


def _waves(positions: np.ndarray, width: int) -> np.ndarray:
    """Sines and cosines of half a turn to a few turns [positions, width]."""
    angles = positions[:, None] * np.pi * np.geomspace(0.5, 4, width // 2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _rotate(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random rotation, amplitude 0.7."""
    rotation, _ = np.linalg.qr(rng.standard_normal((features.shape[1], features.shape[1])))
    return 0.7 * (features - features.mean(axis=0)) @ rotation


def to_input(clips: Sequence[Clip]) -> torch.Tensor:
    """Normalised frames [N, 3, H, W], the frames of a clip next to each other."""
    frames = (
        torch.from_numpy(np.stack([clip.frames_THWC for clip in clips]))
        .flatten(0, 1)
        .permute(0, 3, 1, 2)
    )
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (OPENAI_MEAN, OPENAI_STD))
    return (frames.float() / 255 - mean) / std


def draw_batch(
    stage: Stage, rng: np.random.Generator
) -> tuple[list[Clip], list[str], torch.Tensor]:
    """Clips with balanced motions, a caption for each, and targets [B, B]: captions that are true
    of a clip."""
    motions = rng.permutation(np.repeat(MOTIONS, BATCH_SIZE // len(MOTIONS)))
    clips = [render_clip(str(motion), stage.look, rng, num_frames=NUM_FRAMES) for motion in motions]
    is_full = rng.random(BATCH_SIZE) < stage.full_captions
    captions = []
    for clip, full in zip(clips, is_full, strict=True):
        phrase = str(rng.choice([clip.motion, *SYNONYMS[clip.motion]]))
        template = str(rng.choice(TEMPLATES))
        captions.append(
            f"a {clip.color} {clip.shape} {phrase}" if full else template.format(m=phrase)
        )
    true = np.array(
        [
            [
                clip.motion == other.motion
                and (not full or (clip.color, clip.shape) == (other.color, other.shape))
                for other, full in zip(clips, is_full, strict=True)
            ]
            for clip in clips
        ],
        dtype=np.float32,
    )
    return clips, captions, torch.from_numpy(true)


def draw_prompts(
    rng: np.random.Generator, generator: torch.Generator
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Random prompt tokens for every block of both towers: 1 to 4 tokens, std 0.02 to 2
    (log-uniform)."""

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
    """CLIP's loss both ways, with every true caption a positive."""
    vision_prompts, text_prompts = prompts or ([], [])
    if text_prompts:
        ids = insert_slots(ids, len(text_prompts[0]))
    video = encode_video(model, time_TE, frames, vision_prompts)
    text = F.normalize(encode_texts(model, ids, prompts=text_prompts), dim=-1)
    logits = model.logit_scale.exp() * video @ text.T
    to_text = -(true / true.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    to_video = -(true / true.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (to_text + to_video) / 2


def encode_video(
    model: Any, time_TE: torch.Tensor, frames: torch.Tensor, prompts: list[torch.Tensor]
) -> torch.Tensor:
    """Unit video features [B, D]: the mean of the frames' CLS."""
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
    """Top-1 in percent over the 16 motions on clips of their own seed, and per motion."""
    rng = np.random.default_rng(seed)
    ids = vocabulary.encode([f"a video of something {motion}" for motion in MOTIONS])
    text = F.normalize(encode_texts(model, ids), dim=-1)
    right = {}
    for label, motion in enumerate(MOTIONS):
        clips = [
            render_clip(motion, look, rng, num_frames=NUM_FRAMES) for _ in range(clips_per_motion)
        ]
        scores = encode_video(model, time_TE, to_input(clips), []) @ text.T
        right[motion] = 100 * (scores.argmax(1) == label).float().mean().item()
    return sum(right.values()) / len(right), right


def train(scale: float, seed: int) -> tuple[Any, torch.Tensor, Vocabulary]:
    """Run the stages; `scale` multiplies every stage's clips. Raises: SystemExit if motion is not
    learned."""
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    vocabulary = Vocabulary()
    model, time_TE = make_model(vocabulary, rng)
    parameters = [*model.parameters(), time_TE]
    matrices = [p for p in parameters if p.ndim >= 2 and p is not time_TE]
    others = [p for p in parameters if (p.ndim < 2 or p is time_TE) and p is not model.logit_scale]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.05},
            {"params": others},
            {"params": [model.logit_scale], "boost": 10.0},
        ],
        lr=1.0,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    steps_of = [max(1, int(stage.num_clips * scale) // BATCH_SIZE) for stage in STAGES]
    start, step, clips_seen = time.perf_counter(), 0, 0
    for stage, num_steps in zip(STAGES, steps_of, strict=True):
        for stage_step in range(num_steps):
            decay = (
                0.5 * (1 + math.cos(math.pi * stage_step / num_steps))
                if stage is STAGES[-1]
                else 1.0
            )
            for group in optimizer.param_groups:
                group["lr"] = LR * min(1.0, (step + 1) / 20) * decay * group.get("boost", 1.0)
            clips, captions, true = draw_batch(stage, rng)
            prompts = draw_prompts(rng, generator) if rng.random() < stage.random_prompts else None
            loss = loss_of(
                model, time_TE, vocabulary.encode(captions), to_input(clips), true, prompts
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
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
        if stage is STAGES[0] and scale >= 1 and dark < 15:
            raise SystemExit(
                "motion was not learned in stage 1 (the plateau did not break): try another --seed"
            )
    return model, time_TE, vocabulary


def save(model: Any, time_TE: torch.Tensor, vocabulary: Vocabulary, out: Path) -> None:
    """Write fp16 weights with their architecture; rows of words that were never seen are zero."""
    state = {key: value.detach().half() for key, value in model.state_dict().items()}
    table = torch.zeros(
        SPEC["text_cfg"]["vocab_size"], SPEC["text_cfg"]["width"], dtype=torch.float16
    )
    table[vocabulary.ids] = state["token_embedding.weight"]
    state["token_embedding.weight"] = table
    state[TEMPORAL_KEY] = time_TE.detach().half()
    save_file(
        {key: value.contiguous() for key, value in state.items()},
        out,
        metadata={SPEC_METADATA_KEY: json.dumps(SPEC, sort_keys=True)},
    )


def main() -> None:
    """Train, report the final zero-shot accuracy and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent.parent / "bmpt/demo/motion_clip.safetensors"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the number of steps of every stage"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(
        1
    )  # matrices are small: a second thread gains nothing, and sums stay reproducible
    print(f"torch {torch.__version__}, seed {arguments.seed}, scale {arguments.scale}", flush=True)
    model, time_TE, vocabulary = train(arguments.scale, arguments.seed)
    for name, look in (("plain, its own look", PLAIN), ("faded, the demo's look", FADED)):
        accuracy, right = zero_shot_accuracy(
            model, time_TE, vocabulary, look, seed=201, clips_per_motion=60
        )
        print(f"zero-shot top-1 over 16 motions, 960 new clips, {name}: {accuracy:.1f}")
        print("   " + ", ".join(f"{motion} {value:.0f}" for motion, value in right.items()))
    save(model, time_TE, vocabulary, arguments.out)
    print(f"wrote {arguments.out.name}: {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
