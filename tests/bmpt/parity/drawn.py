"""Drawn weights, sizes and inputs, and what the originals' formulas make of them in float64."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from bmpt.clip.architecture import build_clip
from bmpt.clip.backbone import Backbone, backbone_from_state
from bmpt.methods import build_method
from bmpt.methods.base import ClassTexts, Method, Targets
from bmpt.texts.class_texts import ClassSentences
from tests.bmpt.parity import naive_originals as naive
from tests.bmpt.tiny import random_frames, settings_of

PATCH_PX = 8
ACTIONS = ("walk", "ride_bike", "golf swing", "jump", "cartwheel")
WORDS = (
    "slowly",
    "a",
    "person",
    "outdoors",
    "with",
    "one",
    "hand",
    "on",
    "the",
    "wall",
    "near",
    "water",
)
NEGATIVES = (
    "a video of a person {} run",
    "a video of a person {} drive",
    "a video of a person {} dig",
)
Rows = list[list[torch.Tensor]]


@dataclass(frozen=True)
class Sizes:
    """Of a CLIP and of what it is given.

    head_width: of both towers; grid: patches a side; joint_eighths: of the joint width"""

    seed: int
    head_width: int
    vision_heads: int
    vision_layers: int
    text_heads: int
    text_layers: int
    grid: int
    joint_eighths: int
    quick_gelu: bool
    context: int
    clips: int
    views: int
    frames: int
    classes: int
    sentences: int


# depth 12 with the default space-time blocks; heads of 64, of which the text tower has two
RELEASED = Sizes(5, 64, 1, 12, 2, 12, 2, 1, True, 77, 1, 1, 3, 3, 1)


def drawn_like(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Normal numbers: no bias is 0, no gain 1, and a matrix about keeps the length of what it is
    given."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        is_gain = name.endswith("weight") and ("ln_" in name or "norm" in name)
        state[name] = (
            values / math.sqrt(shape[1:].numel()) if len(shape) > 1 else 0.3 * values + is_gain
        )
    return state


class Drawn:
    """What the seed of `Sizes` stands for, and what the originals make of it in float64."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        side, self.dice = sizes.grid * PATCH_PX, random.Random(sizes.seed)
        self.frames_BVTCHW = random_frames(
            sizes.clips, sizes.views, sizes.frames, 3, side, side, seed=sizes.seed
        )
        self.names = ACTIONS[: sizes.classes]
        self.sentences = self._sentences(
            lambda name: f"{name} {' '.join(self.dice.choices(WORDS, k=self._length()))}"
        )
        self.labels = [self.dice.randrange(sizes.classes) for _ in range(sizes.clips)]
        self.weights = [float(self.dice.random() < 0.7) for _ in range(sizes.clips)]
        self.smoothing = self.dice.choice([0.0, 0.1, 0.2])
        self.chosen = [self.dice.randrange(sizes.sentences) for _ in range(sizes.classes)]

    def _length(self) -> int:
        return self.dice.randint(5, 30)  # some are cut at the shorter contexts

    def _sentences(self, of_name: Any) -> ClassSentences:
        texts = tuple(
            tuple(of_name(name) for _ in range(self.sizes.sentences)) for name in self.names
        )
        return ClassSentences(self.names, texts)

    @cached_property
    def negatives(self) -> ClassSentences:
        """Short ones, as the release makes them."""
        return self._sentences(lambda name: self.dice.choice(NEGATIVES).format(name))

    @cached_property
    def backbone(self) -> Backbone:
        """A CLIP whose every weight is drawn."""
        sizes = self.sizes
        spec: dict[str, Any] = {
            "embed_dim": 8 * sizes.joint_eighths,
            "quick_gelu": sizes.quick_gelu,
            "vision_cfg": {
                "image_size": sizes.grid * PATCH_PX,
                "patch_size": PATCH_PX,
                "width": sizes.vision_heads * sizes.head_width,
                "head_width": sizes.head_width,
                "layers": sizes.vision_layers,
            },
            "text_cfg": {
                "context_length": sizes.context,
                "vocab_size": 49408,
                "width": sizes.text_heads * sizes.head_width,
                "heads": sizes.text_heads,
                "layers": sizes.text_layers,
            },
        }
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in build_clip(spec).state_dict().items()}
        state = drawn_like(shapes, sizes.seed) | {
            "logit_scale": torch.tensor(math.log(self.dice.uniform(5, 100)))
        }
        # a bare state dict, as OpenAI's: heads are 64 wide and the activation is QuickGELU
        stated = {} if sizes.head_width == 64 and sizes.quick_gelu else spec
        return backbone_from_state("drawn", state, stated, where="a drawn CLIP")

    @cached_property
    def clip(self) -> naive.Clip:
        """The same weights for the originals."""
        weights = {name: value.double() for name, value in self.backbone.model.state_dict().items()}
        return naive.Clip(
            weights, self.sizes.vision_heads, self.sizes.text_heads, self.sizes.quick_gelu
        )

    def method(self, name: str, *, blocks: Sequence[int] | None = None, **values: Any) -> Method:
        """Ours on these weights; depths and blocks beyond the towers are left out."""
        for tower, layers in (
            ("vision", self.sizes.vision_layers),
            ("text", self.sizes.text_layers),
        ):
            if f"{tower}_depth" in values:
                values[f"{tower}_depth"] = min(values[f"{tower}_depth"], layers)
        chosen = settings_of({"name": name, "space_time_blocks": self.within(blocks)}, **values)
        return build_method(
            self.backbone, chosen, num_frames=self.sizes.frames, seed=0, classes=self.names
        )

    def within(self, blocks: Sequence[int] | None) -> list[int] | None:
        """Blocks that the visual tower has."""
        return (
            None
            if blocks is None
            else [block for block in blocks if block < self.sizes.vision_layers]
        )

    def tokens(self, *, prompts: naive.Prompts = (), blocks: Sequence[int] = ()) -> Rows:
        """Projected tokens [T, S, D] of each view of each clip."""
        return [
            [
                naive.video_tokens(self.clip, view, prompts=prompts, space_time_blocks=blocks)
                for view in views
            ]
            for views in self.frames_BVTCHW.double()
        ]

    def videos(self, **how: Any) -> Rows:
        """Unit features [D] of each view of each clip."""
        return [[naive.pooled(view) for view in views] for views in self.tokens(**how)]

    def ids(self, sentences: ClassSentences, *, slots: int = 0) -> Rows:
        """Token ids [S] of each sentence of each class; the originals' slots are words that stand
        for nothing."""
        texts = [["X " * slots + text for text in of_class] for of_class in sentences.sentences]
        return [list(self.backbone.tokenize(of_class)) for of_class in texts]

    def texts(
        self, sentences: ClassSentences, *, slots: int = 0, prompts: naive.Prompts = ()
    ) -> Rows:
        """Unit features [D] of each sentence of each class."""
        ids = self.ids(sentences, slots=slots)
        return [
            [naive.text_feature(self.clip, ids_S, prompts=prompts) for ids_S in of_class]
            for of_class in ids
        ]

    def step(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """The one sentence of each class that a step draws."""
        return [of_class[index] for of_class, index in zip(rows, self.chosen, strict=True)]

    def drawn_texts(self, texts: ClassTexts) -> ClassTexts:
        """The same of ours."""
        return texts.drawn(torch.tensor(self.chosen))

    def targets(self, **features: torch.Tensor) -> Targets:
        """What a step of ours is trained towards."""
        labels_B, weights_B = torch.tensor(self.labels), torch.tensor(self.weights)
        return Targets(labels_B, weights_B, self.smoothing, features)

    def summed(self, costs: Sequence[torch.Tensor]) -> float:
        """Costs of the clips that are there."""
        return sum(weight * cost.item() for weight, cost in zip(self.weights, costs, strict=True))

    def cross_entropies(self, logits: Sequence[torch.Tensor], *, hard: bool = False) -> float:
        """Of one kind of logits; hard: of the label alone, without smoothing."""
        smoothing = 0.0 if hard else self.smoothing
        pairs = zip(logits, self.labels, strict=True)
        return self.summed(
            [naive.cross_entropy(row, label, smoothing=smoothing) for row, label in pairs]
        )
