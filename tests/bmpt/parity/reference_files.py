"""Folders as ../shared/fixtures/reference, of any sizes: drawn weights, and what the originals'
formulas make of them.

Shapes: B clips, T frames, K classes, P sentences a class, D joint width, d reduced width."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bmpt.clip.architecture import import_open_clip
from tests.bmpt.parity import naive_originals as naive
from tests.bmpt.parity.drawn import drawn_like
from tests.bmpt.tiny import random_frames

NAMES = (
    "brush hair",
    "ride_bike",
    "shoot ball",
    "walk",
    "draw sword",
    "golf_swing",
    "cartwheel",
    "fall floor",
)
SENTENCES = (
    "a video of a person who is going to {} outdoors on a sunny day with friends.",
    "{} is an action in which a person moves the body in a particular and easily recognised way.",
)
NEGATIVES = (
    "comb",
    "driving",
    "dribble a basketball",
    "Run",
    "possession_of_swords",
    "baseball",
    "hop",
    "sit down",
)
CONTEXT, VOCABULARY = 77, 49408
SPACE_TIME_BLOCKS = (3, 7, 11)

Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """Of a folder: the two towers, what they are given, and what each system adds.

    ivlp, bmpt: (visual depth, its tokens, text depth, its tokens), the first block counted
    reduced_width: of BDC-CLIP, at least 2, since one channel has no distance to another"""

    seed: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    joint_width: int
    patch_px: int
    image_px: int
    clips: int
    frames: int
    classes: int
    ivlp: tuple[int, int, int, int]
    bmpt: tuple[int, int, int, int]
    reduced_width: int
    temporal_layers: int

    @property
    def text_heads(self) -> int:
        """Of the text tower and of BIKE's temporal transformer."""
        return max(1, self.text_width // 64)


def write_reference(folder: Path, sizes: Sizes) -> Path:
    """Write the five files of a folder, float32 but for CLIP's weights, which are float16 as
    OpenAI's."""
    originals = Originals(sizes)
    save_file(originals.weights, folder / "clip_tiny.safetensors")
    for name in ("vifi", "bdc", "bmpt", "bike"):
        tensors = {key: value.contiguous() for key, value in getattr(originals, name)().items()}
        tensors |= {
            key: value.float() for key, value in tensors.items() if value.is_floating_point()
        }
        save_file(
            tensors, folder / f"{name}.safetensors", {"meta": json.dumps(originals.meta(name))}
        )
    return folder


def drawn(shapes: Shapes, seed: int) -> Tensors:
    """Of float32 values, in float64 as all that is computed here."""
    values = drawn_like({name: torch.Size(shape) for name, shape in shapes.items()}, seed)
    return {name: value.double() for name, value in values.items()}


def block_shapes(prefix: str, width: int, layers: int) -> Shapes:
    """Residual blocks, of the towers and of BIKE's transformer."""
    shapes: Shapes = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        **norm_shapes("ln_1", width),
        **norm_shapes("ln_2", width),
    }
    blocks = range(layers)
    return {
        f"{prefix}transformer.resblocks.{block}.{name}": shape
        for block in blocks
        for name, shape in shapes.items()
    }


def norm_shapes(name: str, width: int) -> Shapes:
    """Gain and shift."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def clip_shapes(sizes: Sizes) -> Shapes:
    """All of CLIP by OpenAI's names."""
    vision, text, joint = sizes.vision_width, sizes.text_width, sizes.joint_width
    return {
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (1 + (sizes.image_px // sizes.patch_px) ** 2, vision),
        "visual.conv1.weight": (vision, 3, sizes.patch_px, sizes.patch_px),
        "visual.proj": (vision, joint),
        **norm_shapes("visual.ln_pre", vision),
        **norm_shapes("visual.ln_post", vision),
        **block_shapes("visual.", vision, sizes.vision_layers),
        "token_embedding.weight": (VOCABULARY, text),
        "positional_embedding": (CONTEXT, text),
        "text_projection": (text, joint),
        "logit_scale": (),
        **norm_shapes("ln_final", text),
        **block_shapes("", text, sizes.text_layers),
    }


def prompt_names(tower: str, first: str | None, deeper: str, depth: int) -> list[str | None]:
    """Of each block's prompt; None for an input without one."""
    blocks = [f"{tower}.transformer.resblocks.{block}.{deeper}" for block in range(1, depth)]
    return [first, *blocks][:depth]


class Originals:
    """The systems on one drawn CLIP and one drawn batch, in float64."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, dice = sizes, random.Random(sizes.seed)
        self.weights = {
            name: value.half() for name, value in drawn(clip_shapes(sizes), sizes.seed).items()
        }
        self.weights["logit_scale"] = torch.tensor(math.log(dice.uniform(20, 100)))
        heads = max(1, sizes.vision_width // 64)
        weights = {name: value.double() for name, value in self.weights.items()}
        self.clip = naive.Clip(weights, heads, sizes.text_heads, quick_gelu=True)
        self.images = self.normal(sizes.frames, 3, sizes.image_px, sizes.image_px)
        self.names = NAMES[: sizes.classes]
        self.sentences = [
            [text.format(name.replace("_", " ")) for name in self.names] for text in SENTENCES
        ]
        # between two multiples of the divisor: where float32 and float64 floor alike
        self.covariance_scale = torch.tensor(math.log(5 * dice.randint(4, 20) + 2.5)).double()
        self.labels = [dice.randrange(sizes.classes) for _ in range(sizes.clips)]
        self.tokenize = import_open_clip().SimpleTokenizer(
            context_length=CONTEXT
        )  # K texts -> ids [K, S]

    def normal(self, *shape: int) -> torch.Tensor:
        """[B, ...] of a normal distribution."""
        return random_frames(self.sizes.clips, *shape, seed=self.sizes.seed).double()

    def meta(self, system: str) -> dict[str, Any]:
        """What a file says of itself."""
        sizes, columns = self.sizes, list(zip(*self.sentences, strict=True))
        vision_depth, vision_ctx, language_depth, language_ctx = sizes.bmpt
        config = {
            "trainer": "bmpt",
            "num_frames": sizes.frames,
            "vision_depth": vision_depth,
            "language_depth": language_depth,
            "vision_ctx": vision_ctx,
            "language_ctx": language_ctx,
            "cross_modal_interaction": False,
        }
        return {
            "classes": self.names,
            "llm": dict(zip(self.names, columns, strict=True)),
            "negatives": NEGATIVES[: sizes.classes],
            "T": sizes.frames,
            "B": sizes.clips,
            **({"prompt_config": config} if system == "bmpt" else {}),
        }

    def prompts(
        self, sized: tuple[int, int, int, int], vision: str, text: str | None, deeper: str
    ) -> tuple[Tensors, list[torch.Tensor], list[torch.Tensor | None]]:
        """(by their names, those of the visual blocks, those of the text blocks)."""
        vision_depth, vision_tokens, text_depth, text_tokens = sized
        of_vision = prompt_names("image_encoder", vision, deeper, vision_depth)
        of_text = prompt_names("text_encoder", text, deeper, text_depth)
        shapes: Shapes = {
            name: (vision_tokens, self.sizes.vision_width) for name in of_vision if name is not None
        }
        shapes |= {
            name: (text_tokens, self.sizes.text_width) for name in of_text if name is not None
        }
        found = drawn(shapes, self.sizes.seed + 1)
        return (
            found,
            [found[name] for name in of_vision if name],
            [found[name] if name else None for name in of_text],
        )

    def videos(self, **how: Any) -> list[torch.Tensor]:
        """Projected tokens [T, S, D] of each clip."""
        return [naive.video_tokens(self.clip, frames_TCHW, **how) for frames_TCHW in self.images]

    def texts(self, texts: Sequence[str], prompts: naive.Prompts = ()) -> list[torch.Tensor]:
        """The unit feature [D] of each."""
        return [
            naive.text_feature(self.clip, ids_S, prompts=prompts)
            for ids_S in self.tokenize(list(texts))
        ]

    def logits(
        self,
        vectors: Sequence[torch.Tensor],
        classes: Sequence[torch.Tensor],
        scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scaled cosines [B, K]; scale: CLIP's if there is none."""
        scale = self.clip.scale if scale is None else scale
        return torch.stack([naive.scaled_cosines(scale, vector, classes) for vector in vectors])

    def vifi(self) -> Tensors:
        """ViFi-CLIP: whole, as CLIP alone, and with prompts in both towers."""
        prompts, vision, text = self.prompts(
            self.sizes.ivlp, "image_encoder.VPT", "prompt_learner.ctx", "VPT_shallow"
        )
        plain = [naive.pooled(tokens) for tokens in self.videos()]
        prompted = [naive.pooled(tokens) for tokens in self.videos(prompts=vision)]
        slots = "X " * self.sizes.ivlp[3]
        slotted = [f"{slots}{name.replace('_', ' ')}." for name in self.names]
        return {
            "images": self.images,
            "full.logits": self.logits(
                plain, self.texts([f"a photo of a {name}." for name in self.names])
            ),
            "zeroshot.logits": self.logits(plain, self.texts(self.names)),
            "ivlp.logits": self.logits(prompted, self.texts(slotted, text)),
            **{f"ivlp.param.{name}": value for name, value in prompts.items()},
        }

    def bdc(self) -> Tensors:
        """BDC-CLIP: three kinds of logits, of one sentence a class and of all."""
        joint, reduced = self.sizes.joint_width, self.sizes.reduced_width
        shapes: Shapes = {
            f"{tower}_reduce.weight": (reduced, joint) for tower in ("vision", "text")
        }
        shapes |= {f"vision_{letter}_proj.weight": (reduced, reduced) for letter in "qk"}
        shapes |= {**norm_shapes("vision_norm", joint), **norm_shapes("text_norm", joint)}
        shapes["vision_bdc_head_downstream.weight"] = (
            len(self.names),
            reduced * (reduced + 1) // 2,
        )
        shapes["vision_bdc_head_downstream.bias"] = (len(self.names),)
        heads = drawn(shapes, self.sizes.seed + 2) | {"logits_scale_vision": self.covariance_scale}
        videos = self.videos(space_time_blocks=SPACE_TIME_BLOCKS)
        pooled = [naive.pooled(tokens) for tokens in videos]
        covariances = [naive.video_covariance(heads, tokens) for tokens in videos]
        cosines_P, covariances_P = [], []
        for sentence in self.sentences:
            found = [
                (naive.text_tokens(self.clip, ids_S), naive.eot(ids_S))
                for ids_S in self.tokenize(sentence)
            ]
            cosines_P.append([tokens[end] for tokens, end in found])
            covariances_P.append(
                [naive.text_covariance(heads, tokens, end) for tokens, end in found]
            )
        classified = torch.stack(
            [naive.linear(heads, "vision_bdc_head_downstream", vector) for vector in covariances]
        )
        tensors = {
            "images": self.images,
            **{f"param.{name}": value for name, value in heads.items()},
        }
        for name, features, of_texts in (
            *(
                (f"train_s{p}", *pair)
                for p, pair in enumerate(zip(cosines_P, covariances_P, strict=True))
            ),
            ("eval", joined(cosines_P), joined(covariances_P)),
        ):
            scale = naive.covariance_scale(heads, trains=name != "eval", floors=True)
            tensors[f"{name}.logits_cos"] = self.logits(pooled, features)
            tensors[f"{name}.logits_cls"] = classified.clone()
            tensors[f"{name}.logits_bdc"] = self.logits(covariances, of_texts, scale)
        return tensors

    def bmpt(self) -> Tensors:
        """BMPT as released: no exchange, and text prompts that overwrite words."""
        prompts, vision, text = self.prompts(
            self.sizes.bmpt, "image_encoder.VPT_shallow", None, "VPT"
        )
        videos = self.videos(prompts=vision, space_time_blocks=SPACE_TIME_BLOCKS)
        pooled = [naive.pooled(tokens) for tokens in videos]
        knowledge = self.normal(self.sizes.joint_width)
        texts = [
            f"a video of a person {name.replace('_', ' ')}" for name in NEGATIVES[: len(self.names)]
        ]
        negatives = self.texts(texts, text)
        features_P = [self.texts(sentence, text) for sentence in self.sentences]
        tensors = {
            "images": self.images,
            "knowledge": knowledge,
            "eval.logits_cos": self.logits(pooled, joined(features_P)),
            **{f"param.{name}": value for name, value in prompts.items()},
        }
        for p, features in enumerate(features_P):
            tensors[f"train_s{p}.logits_cos"] = self.logits(pooled, features)
            tensors[f"train_s{p}.logits_knowledge"] = self.logits(list(knowledge), features)
            tensors[f"train_s{p}.logits_negative"] = self.logits(pooled, negatives)
        return tensors

    def bike(self) -> Tensors:
        """BIKE: both interactions with and without its transformer, the attributes' head, the
        loss."""
        joint, seed = self.sizes.joint_width, self.sizes.seed
        shapes: Shapes = {"frame_position_embeddings.weight": (CONTEXT, joint)}
        temporal = drawn(shapes | block_shapes("", joint, self.sizes.temporal_layers), seed + 3)
        linear: Shapes = {"weight": (joint, joint), "bias": (joint,)}
        layers = [f"{text}_fc.{index}" for text in ("query", "sentence") for index in (0, 2)]
        head = drawn(
            {f"{layer}.{name}": shape for layer in layers for name, shape in linear.items()},
            seed + 4,
        )
        ids_KS = self.tokenize([f"This is a video about {name}" for name in self.names])
        words_KSD = torch.stack([naive.text_tokens(self.clip, ids_S) for ids_S in ids_KS])
        classes_KD = torch.stack(
            [words[naive.eot(ids)] for words, ids in zip(words_KSD, ids_KS, strict=True)]
        )
        frames_BTD = torch.stack([tokens_TSD[:, 0] for tokens_TSD in self.videos()])
        moved = [
            naive.temporal_transformer(temporal, frames_TD, self.sizes.text_heads)
            for frames_TD in frames_BTD
        ]
        sentences_BD, logits_BB = self.normal(joint), self.normal(self.sizes.clips)
        tensors = {
            "images": self.images,
            "token_ids": ids_KS,
            "text.eot": classes_KD,
            "text.tokens": words_KSD,
            "frames": frames_BTD,
            "attr.sentence": sentences_BD,
            "attr.logits": torch.stack(
                [
                    torch.stack(
                        [naive.attribute_cosine(head, sentence, feature) for feature in classes_KD]
                    )
                    for sentence in sentences_BD
                ]
            ),
            "nce.labels": torch.tensor(self.labels),
            "nce.logits": logits_BB,
            "nce.loss": naive.matching(logits_BB, self.labels).mean(),
            **{f"param.{name}": value for name, value in temporal.items()},
            **{f"attr.param.{name}": value for name, value in head.items()},
        }
        for header, videos in (("None", list(frames_BTD)), ("Transf", moved)):
            pairs = [
                [(frames, *text) for text in zip(classes_KD, words_KSD, strict=True)]
                for frames in videos
            ]
            means = [
                [naive.mean_frame_cosine(frames, feature) for frames, feature, _ in row]
                for row in pairs
            ]
            spotted = [
                [naive.spotted_cosine(*triple[:2], list(triple[2])) for triple in row]
                for row in pairs
            ]
            tensors[f"{header}.DP.logits"] = torch.tensor(means)
            tensors[f"{header}.VCS.logits"] = torch.tensor(spotted)
        return tensors


def joined(features_PK: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """Each class's mean over sentences."""
    return [naive.mean_sentence(of_class) for of_class in zip(*features_PK, strict=True)]
