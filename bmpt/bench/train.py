"""`bmpt bench train`: an optimiser step beside the plain step of the systems it stands for, and
what each lever gives.

A step of BMPT, prompts alone: K classes and their negatives, A micro-batches of random frames. The
    plain step encodes
all class texts in every micro-batch, on every rank, at the whole context of 77 tokens, with
attention written out, and carries the gradient down to what stands below the first prompts. Each
lever is the plain step's time over that of the plain step with this lever alone; `together` has all
of them, which is what training does. Frozen texts and scoring are other work, with plain sides of
their own (one process alone). All sides take the same frames, which lie on the device
before any time is taken: reading them is for `bmpt bench loader`. The gradients by which prompts
    move are the same on
all sides, up to rounding (on a GPU that of bfloat16)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bmpt.clip.backbone import Backbone, load_backbone
from bmpt.clip.towers import encode_text_tokens, take_eot
from bmpt.engine.step import ClassEncoder, ClipsAndTargets, StepGradient
from bmpt.methods.base import COSINE, ClassTexts, ClipInputs, Group, Method, Targets
from bmpt.methods.bmpt import NEGATIVE, Bmpt, BmptSettings
from bmpt.methods.vifi_clip import VifiClip, VifiClipSettings
from bmpt.runtime.distributed import World, sum_over_ranks
from bmpt.settings import MethodSettings
from bmpt.texts.class_texts import ClassSentences
from shards.progress import NullProgress, Progress

TEXT_TOKENS = 30  # of a class text; the median of UCF-101's and HMDB-51's prompt files is 31 and 26
NEGATIVE_TOKENS = 10
SEED = 0


@dataclass(frozen=True)
class BenchmarkSize:
    """What a step computes: `clips` in each of `accumulation` micro-batches of a rank."""

    model: str = "ViT-B-32"
    classes: int = 51
    frames: int = 8
    accumulation: int = 8
    clips: int = 1


@dataclass(frozen=True)
class Way:
    """How a step is computed; every field is a lever that changes no gradient.

    over_ranks: each rank encodes a share of the classes, where they are encoded once a step"""

    text_once: bool = False
    over_ranks: bool = False
    short_text: bool = False
    fused_attention: bool = False
    no_gradient_below_prompts: bool = False


@dataclass(frozen=True)
class TrainBenchmark:
    """seconds: of a step of each side, the best of `repeats`, of the slowest rank

    gradient_differences: of each lever, the largest over all trained tensors between the plain step
        and it, as a share
    of the largest value of the tensor's group (prompts, exchange): a gate alone is a sum that may
    cancel to nothing but rounding"""

    size: BenchmarkSize
    device: str
    repeats: int
    cores: int
    ranks: int
    seconds: dict[str, float]
    gradient_differences: dict[str, float]

    def ratios(self) -> dict[str, float]:
        """What is claimed: multiples, not times."""
        own = {"frozen_text_once_a_run": "frozen_plain", "class_features_once": "scoring_plain"}
        plain = {
            name: own.get(name, "plain")
            for name in self.seconds
            if name not in {"plain", *own.values()}
        }
        return {name: self.seconds[side] / self.seconds[name] for name, side in plain.items()}

    def as_json(self) -> dict[str, Any]:
        """Measurements and ratios."""
        return {**asdict(self), "ratios": self.ratios()}

    def summary(self) -> str:
        """What was measured, in a line."""
        size = self.size
        return (
            f"{size.model}, {size.classes} classes with negatives, {size.frames} frames, {size.accumulation} "
            f"micro-batches of {size.clips} clips, {self.ranks} ranks, {self.device}; gradients differ by "
            f"{max(self.gradient_differences.values()):.0e} of the largest at most"
        )


def bench_train(
    size: BenchmarkSize, world: World, *, repeats: int, progress: Progress = NullProgress()
) -> TrainBenchmark:
    """Measure a step of each side; on several ranks all call it. Raises: ConfigError for an unknown
    model."""
    backbone = load_backbone(size.model, "random", seed=SEED)
    backbone.model.to(world.device)
    sides = _training_sides(backbone, size, world)
    if world.size == 1:
        sides |= _frozen_text_sides(backbone, size, world) | _scoring_sides(backbone, size, world)
    batches = _micro_batches(backbone, size, world)
    seconds = dict.fromkeys(sides, float("inf"))
    plain: dict[str, torch.Tensor] = {}
    differences: dict[str, float] = {}
    for repeat in range(repeats):
        for number, (name, (method, run)) in enumerate(sides.items(), start=1):
            method.freeze_untrained()  # sides share the backbone
            if repeat == 0:
                run(batches[:1])  # reaches for memory and picks its kernels
            method.zero_grad(set_to_none=True)
            seconds[name] = min(seconds[name], _slowest(partial(run, batches), world))
            found = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
            if name == "plain":
                plain = {key: gradient.clone() for key, gradient in found.items()}
            elif found.keys() == plain.keys():  # those of a step of BMPT
                differences[name] = _difference(plain, found, method.trained_groups())
            progress.update("measure", repeat * len(sides) + number, repeats * len(sides))
    return TrainBenchmark(
        size=size,
        device=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU",
        repeats=repeats,
        cores=os.cpu_count() or 1,
        ranks=world.size,
        seconds=seconds,
        gradient_differences=differences,
    )


Run = Callable[[Sequence[ClipsAndTargets]], None]
Sides = dict[str, tuple[Method, Run]]


def _training_sides(backbone: Backbone, size: BenchmarkSize, world: World) -> Sides:
    ways = {
        "plain": Way(),
        "text_once_a_step": Way(text_once=True),
        "text_once_a_step_over_ranks": Way(text_once=True, over_ranks=True),
        "short_text": Way(short_text=True),
        "fused_attention": Way(fused_attention=True),
        "no_gradient_below_prompts": Way(no_gradient_below_prompts=True),
        "together": Way(*[True] * len(fields(Way))),
    }
    if world.size == 1:
        del ways["text_once_a_step_over_ranks"]
    return {name: _side(backbone, size, world, way) for name, way in ways.items()}


def _side(backbone: Backbone, size: BenchmarkSize, world: World, way: Way) -> tuple[Method, Run]:
    """A step of BMPT by one way."""
    kind = Bmpt if way.short_text else _WholeContextBmpt
    method = _ready(kind, _bmpt_settings(backbone), backbone, size, world)
    texts = _texts(method, size, world, negatives=True)
    encoder = (
        ClassEncoder(method, texts, world if way.over_ranks else _alone(world))
        if way.text_once
        else None
    )
    gradient = StepGradient(method, texts, world, classes=encoder, autocast=_autocast(world))

    def run(batches: Sequence[ClipsAndTargets]) -> None:
        with (
            _attention(is_fused=way.fused_attention),
            _feeding_gradients(method, way.no_gradient_below_prompts),
        ):
            _add(gradient, size, batches)

    return method, run


def _frozen_text_sides(backbone: Backbone, size: BenchmarkSize, world: World) -> Sides:
    """ViFi-CLIP's visual tower: the texts in every micro-batch, or once a run."""
    method = _ready(VifiClip, VifiClipSettings(tune="image"), backbone, size, world)
    texts = _texts(method, size, world, negatives=False)
    encoders = {"frozen_plain": None, "frozen_text_once_a_run": ClassEncoder(method, texts, world)}
    sides: Sides = {}
    for name, encoder in encoders.items():
        gradient = StepGradient(method, texts, world, classes=encoder, autocast=_autocast(world))
        sides[name] = (method, partial(_add, gradient, size))
    return sides


def _scoring_sides(backbone: Backbone, size: BenchmarkSize, world: World) -> Sides:
    """Blocks of clips scored with class features of their own, or with those of the whole
    evaluation."""
    method = _ready(Bmpt, _bmpt_settings(backbone), backbone, size, world)
    texts = _texts(method, size, world, negatives=False)

    @torch.no_grad()
    def run(batches: Sequence[ClipsAndTargets], *, is_once: bool) -> None:
        method.eval()
        with _autocast(world)():
            classes = method.class_features(texts) if is_once else None
            for clips, _ in batches:
                method.predict(clips, texts, classes=classes)

    return {
        "scoring_plain": (method, partial(run, is_once=False)),
        "class_features_once": (method, partial(run, is_once=True)),
    }


class _WholeContextBmpt(Bmpt):
    """Texts at the whole context, as the originals encode them."""

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        found, prompts = {}, self.layer_prompts()[1]
        for kind, ids_KPS in ((COSINE, texts.ids_KPS), (NEGATIVE, texts.negatives_KPS)):
            if ids_KPS is not None:
                ids_KS = ids_KPS[:, index]
                tokens_KSD = encode_text_tokens(self.clip, ids_KS, prompts=prompts)
                found[kind] = F.normalize(take_eot(tokens_KSD, ids_KS), dim=-1)
        return found


def _bmpt_settings(backbone: Backbone) -> BmptSettings:
    """The defaults, but no deeper than the towers: those of open_clip's `alt` models have 10 text
    blocks."""
    whole = BmptSettings()
    vision_depth = min(whole.vision_depth, backbone.vision_layers)
    text_depth = min(whole.text_depth, backbone.text_layers)
    return whole.model_copy(update={"vision_depth": vision_depth, "text_depth": text_depth})


def _ready(
    kind: type[Method],
    settings: MethodSettings,
    backbone: Backbone,
    size: BenchmarkSize,
    world: World,
) -> Method:
    """A method on the one backbone, with the same drawn tensors as every other of its kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        method = kind(backbone, settings, num_frames=size.frames).to(world.device).train()
    method.freeze_untrained()
    return method


def _texts(method: Method, size: BenchmarkSize, world: World, *, negatives: bool) -> ClassTexts:
    """Texts of so many tokens, SOT and EOT counted, that tell the classes apart by their number."""
    names = tuple(f"{number:03d}" for number in range(size.classes))  # three tokens

    def sentences(what: str, num_tokens: int) -> ClassSentences:
        words = " ".join([what] * (num_tokens - 5))
        return ClassSentences(names, tuple((f"{' '.join(name)} {words}",) for name in names))

    other = sentences("no", NEGATIVE_TOKENS) if negatives else None
    return method.prepare_classes(sentences("a", TEXT_TOKENS), other).to(world.device)


def _micro_batches(backbone: Backbone, size: BenchmarkSize, world: World) -> list[ClipsAndTargets]:
    """Random frames and labels of a step of this rank, on its device."""
    generator = torch.Generator().manual_seed(SEED + world.rank)
    height, width = backbone.model.visual.image_size
    shape = (size.clips, 1, size.frames, 3, height, width)
    batches = []
    for _ in range(size.accumulation):
        frames = torch.randn(shape, generator=generator).to(world.device)
        labels_B = torch.randint(size.classes, (size.clips,), generator=generator).to(world.device)
        weights_B = torch.ones(size.clips, device=world.device)
        batches.append((ClipInputs(frames, weights_B), Targets(labels_B, weights_B)))
    return batches


def _add(gradient: StepGradient, size: BenchmarkSize, batches: Sequence[ClipsAndTargets]) -> None:
    sentence_K = torch.zeros(
        size.classes, dtype=torch.int64, device=batches[0][0].frames_BVTCHW.device
    )
    loss_scale = 1 / (size.clips * len(batches))
    gradient.accumulate(
        batches, num_batches=len(batches), sentence_K=sentence_K, loss_scale=loss_scale
    )


@contextmanager
def _attention(*, is_fused: bool) -> Iterator[None]:
    """Written out as products and a softmax, unless it is fused."""
    with nullcontext() if is_fused else sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _feeding_gradients(method: Method, are_left_out: bool) -> Iterator[None]:
    """Let what trains require a gradient, and unless left out what stands below the first prompts
    of both towers."""
    method.freeze_untrained()
    below = (
        [] if are_left_out else [method.clip.visual.conv1.weight, method.clip.positional_embedding]
    )
    for parameter in below:
        parameter.requires_grad_(True)
    yield
    for parameter in below:
        parameter.grad = None
    method.freeze_untrained()


def _autocast(world: World) -> Callable[[], torch.autocast]:
    """bf16 on a GPU, as one trains there."""
    return lambda: torch.autocast(
        world.device.type, dtype=torch.bfloat16, enabled=world.device.type == "cuda"
    )


def _alone(world: World) -> World:
    return World(0, 1, world.device)


def _slowest(run: Callable[[], None], world: World) -> float:
    """Seconds of the rank that takes longest."""
    sum_over_ranks([0.0], world)
    _wait_for(world.device)
    started = time.perf_counter()
    run()
    _wait_for(world.device)
    waits = [0.0] * world.size
    waits[world.rank] = time.perf_counter() - started
    return max(sum_over_ranks(waits, world))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _difference(
    plain: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], groups: Mapping[str, Group]
) -> float:
    largest: dict[Group, float] = {}
    for name, gradient in plain.items():
        largest[groups[name]] = max(largest.get(groups[name], 1e-30), float(gradient.abs().max()))
    return max(
        float((plain[name] - ours[name]).abs().max()) / largest[groups[name]] for name in ours
    )
