"""`bmpt bench train`: compare a training step with the plain step of the published systems.

The work of a step: K classes and their negatives, A micro-batches of random frames, and only the
prompts are trained. The plain step encodes all class texts in every micro-batch, on every rank and
at the whole context of 77 tokens, computes attention as products and a softmax, and propagates the
gradient to the weights below the first prompts.

Every other contender uses one optimisation. Its ratio is the time of the plain step over the time
of a plain step with this optimisation only; `together` uses all of them, as training does. Frozen
texts and scoring are other work and have their own plain contenders, which run on one process only.

All contenders get the same frames, which are on the device before the clock starts: `bmpt bench
loader` measures reading. All contenders compute the same gradients of the prompts, up to rounding
(on a GPU that of bfloat16).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

# Tokens of a class text; the median is 31 in UCF-101's prompt files and 26 in HMDB-51's.
TEXT_TOKENS = 30
NEGATIVE_TOKENS = 10
SEED = 0

# SOT, EOT and the three digits of the class number.
_OTHER_TOKENS = 5


@dataclass(frozen=True)
class BenchmarkSize:
    """The amount of work of a step."""

    model: str = "ViT-B-32"

    classes: int = 51

    frames: int = 8
    """Frames per clip."""

    accumulation: int = 8
    """Micro-batches per step and rank."""

    clips: int = 1
    """Clips per micro-batch."""


@dataclass(frozen=True)
class Variant:
    """A way to compute a step; every field is an optimisation that keeps the gradients."""

    text_once: bool = False
    """Encode the class texts one time per step."""

    over_ranks: bool = False
    """Encode a share of the classes on each rank; needs `text_once`."""

    short_text: bool = False
    """Cut the texts to the longest one."""

    fused_attention: bool = False
    """Use PyTorch's fused attention."""

    no_gradient_below_prompts: bool = False
    """Stop the gradient at the first prompts of both towers."""


@dataclass(frozen=True)
class TrainBenchmark:
    """The measurements of one run of the benchmark."""

    size: BenchmarkSize

    device: str
    """Name of the GPU, or CPU."""

    repeats: int
    """Measurements per contender."""

    cores: int
    """CPU cores of the machine."""

    ranks: int

    seconds: dict[str, float]
    """Duration of a step per contender, on the slowest rank; the best of all repeats."""

    gradient_differences: dict[str, float]
    """Largest difference from the gradients of the plain step, over all trained tensors, per
    contender.

    It is relative to the largest gradient of the tensor's group (prompts, exchange): the gradient
    of a single gate is a sum that may cancel down to the rounding error."""

    def ratios(self) -> dict[str, float]:
        """Return the claimed numbers, which are ratios of times and therefore portable."""
        other_plain = {
            "frozen_text_once_a_run": "frozen_plain",
            "class_features_once": "scoring_plain",
        }
        baselines = {"plain", *other_plain.values()}
        ratios = {}

        for name, seconds in self.seconds.items():
            if name not in baselines:
                ratios[name] = self.seconds[other_plain.get(name, "plain")] / seconds

        return ratios

    def as_json(self) -> dict[str, Any]:
        """Return the measurements and the ratios as one JSON object."""
        return {**asdict(self), "ratios": self.ratios()}

    def summary(self) -> str:
        """Return the size of the step, the device and the largest gradient difference."""
        size = self.size
        return (
            f"{size.model}, {size.classes} classes with negatives, {size.frames} frames, "
            f"{size.accumulation} micro-batches of {size.clips} clips, {self.ranks} ranks, "
            f"{self.device}; gradients differ by {max(self.gradient_differences.values()):.0e} "
            "of the largest at most"
        )


# Computes a step from the micro-batches of this rank.
Run = Callable[[Sequence[ClipsAndTargets]], None]
# The method whose gradients a run computes, and the run.
Contender = tuple[Method, Run]


def bench_train(
    size: BenchmarkSize, world: World, *, repeats: int, progress: Progress = NullProgress()
) -> TrainBenchmark:
    """Measure a step of each contender; with several ranks, every rank calls this function.

    Args:
        size: the work of a step.
        world: this rank and its device.
        repeats: measurements per contender; the best counts.
        progress: shows the measurements that are done.

    Raises:
        ConfigError: if open_clip does not have the model.
    """
    backbone = load_backbone(size.model, "random", seed=SEED)
    backbone.model.to(world.device)

    contenders = _training_contenders(backbone, size, world)
    if world.size == 1:
        contenders |= _frozen_text_contenders(backbone, size, world)
        contenders |= _scoring_contenders(backbone, size, world)

    batches = _micro_batches(backbone, size, world)
    seconds = dict.fromkeys(contenders, float("inf"))
    plain: dict[str, torch.Tensor] = {}
    differences: dict[str, float] = {}

    # All contenders once per repeat, so that a slow minute of the machine meets each of them.
    for repeat in range(repeats):
        for number, (name, (method, run)) in enumerate(contenders.items(), start=1):
            # The contenders share the backbone, and each one trains other parts of it.
            method.freeze_untrained()
            if repeat == 0:
                # The first step allocates memory and chooses kernels.
                run(batches[:1])

            method.zero_grad(set_to_none=True)
            seconds[name] = min(seconds[name], _time_slowest(partial(run, batches), world))

            gradients = _gradients_of(method)
            if name == "plain":
                plain = {key: gradient.clone() for key, gradient in gradients.items()}
            elif gradients.keys() == plain.keys():
                # Frozen texts train other tensors and scoring none.
                differences[name] = _difference(plain, gradients, method.trained_groups())

            progress.update("measure", repeat * len(contenders) + number, repeats * len(contenders))

    return TrainBenchmark(
        size=size,
        device=_device_name(world.device),
        repeats=repeats,
        cores=os.cpu_count() or 1,
        ranks=world.size,
        seconds=seconds,
        gradient_differences=differences,
    )


def _training_contenders(
    backbone: Backbone, size: BenchmarkSize, world: World
) -> dict[str, Contender]:
    """Return the plain step, one step per optimisation, and the step with all of them."""
    variants = {
        "plain": Variant(),
        "text_once_a_step": Variant(text_once=True),
        "text_once_a_step_over_ranks": Variant(text_once=True, over_ranks=True),
        "short_text": Variant(short_text=True),
        "fused_attention": Variant(fused_attention=True),
        "no_gradient_below_prompts": Variant(no_gradient_below_prompts=True),
        "together": Variant(*[True] * len(fields(Variant))),
    }
    if world.size == 1:
        del variants["text_once_a_step_over_ranks"]

    return {
        name: _training_contender(backbone, size, world, variant)
        for name, variant in variants.items()
    }


def _training_contender(
    backbone: Backbone, size: BenchmarkSize, world: World, variant: Variant
) -> Contender:
    """Return a step of BMPT that is computed by one variant."""
    kind = Bmpt if variant.short_text else _WholeContextBmpt
    method = _make_method(kind, _bmpt_settings(backbone), backbone, size, world)
    texts = _make_texts(method, size, world, negatives=True)

    encoder = None
    if variant.text_once:
        encoder_world = world if variant.over_ranks else _single_rank(world)
        encoder = ClassEncoder(method, texts, encoder_world)
    gradient = StepGradient(method, texts, world, classes=encoder, autocast=_autocast(world))

    def run(batches: Sequence[ClipsAndTargets]) -> None:
        with (
            _attention(is_fused=variant.fused_attention),
            _gradient_flow(method, stops_at_prompts=variant.no_gradient_below_prompts),
        ):
            _accumulate(gradient, size, batches)

    return method, run


def _frozen_text_contenders(
    backbone: Backbone, size: BenchmarkSize, world: World
) -> dict[str, Contender]:
    """Return steps of ViFi-CLIP's visual tower, with texts encoded per micro-batch and per run."""
    method = _make_method(VifiClip, VifiClipSettings(tune="image"), backbone, size, world)
    texts = _make_texts(method, size, world, negatives=False)
    encoders = {"frozen_plain": None, "frozen_text_once_a_run": ClassEncoder(method, texts, world)}
    contenders: dict[str, Contender] = {}

    for name, encoder in encoders.items():
        gradient = StepGradient(method, texts, world, classes=encoder, autocast=_autocast(world))
        contenders[name] = (method, partial(_accumulate, gradient, size))

    return contenders


def _scoring_contenders(
    backbone: Backbone, size: BenchmarkSize, world: World
) -> dict[str, Contender]:
    """Return the scoring of clips with class features per block of clips and per evaluation."""
    method = _make_method(Bmpt, _bmpt_settings(backbone), backbone, size, world)
    texts = _make_texts(method, size, world, negatives=False)

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
    """BMPT that encodes texts at the whole context, as the published systems do."""

    def encode_sentence(self, texts: ClassTexts, index: int = 0) -> dict[str, torch.Tensor]:
        """Return the features of one sentence per class, without cutting to the longest one."""
        found, prompts = {}, self.layer_prompts()[1]

        for kind, ids_KPS in ((COSINE, texts.ids_KPS), (NEGATIVE, texts.negatives_KPS)):
            if ids_KPS is not None:
                ids_KS = ids_KPS[:, index]
                tokens_KSD = encode_text_tokens(self.clip, ids_KS, prompts=prompts)
                found[kind] = F.normalize(take_eot(tokens_KSD, ids_KS), dim=-1)

        return found


def _bmpt_settings(backbone: Backbone) -> BmptSettings:
    """Return the defaults, with depths limited to the towers: open_clip's `alt` models have 10 text
    blocks only."""
    defaults = BmptSettings()
    vision_depth = min(defaults.vision_depth, backbone.vision_layers)
    text_depth = min(defaults.text_depth, backbone.text_layers)
    return defaults.model_copy(update={"vision_depth": vision_depth, "text_depth": text_depth})


def _make_method(
    kind: type[Method],
    settings: MethodSettings,
    backbone: Backbone,
    size: BenchmarkSize,
    world: World,
) -> Method:
    """Return a method on the shared backbone; all methods of one kind draw the same tensors."""
    # The tensors are drawn on the CPU, and the global generator keeps its state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        method = kind(backbone, settings, num_frames=size.frames).to(world.device).train()

    method.freeze_untrained()
    return method


def _make_texts(
    method: Method, size: BenchmarkSize, world: World, *, negatives: bool
) -> ClassTexts:
    """Return class texts of TEXT_TOKENS tokens, with SOT and EOT, that differ in their number."""
    names = tuple(f"{number:03d}" for number in range(size.classes))

    # Each digit and each repeated word is one token, so the length is the number of words.
    def sentences(word: str, num_tokens: int) -> ClassSentences:
        words = " ".join([word] * (num_tokens - _OTHER_TOKENS))
        return ClassSentences(names, tuple((f"{' '.join(name)} {words}",) for name in names))

    other = sentences("no", NEGATIVE_TOKENS) if negatives else None
    return method.prepare_classes(sentences("a", TEXT_TOKENS), other).to(world.device)


def _micro_batches(backbone: Backbone, size: BenchmarkSize, world: World) -> list[ClipsAndTargets]:
    """Return random frames and labels of one step of this rank, on its device."""
    # Other clips on every rank, as in training; drawn on the CPU, so equal on all devices.
    generator = torch.Generator().manual_seed(SEED + world.rank)
    height, width = backbone.model.visual.image_size
    shape = (size.clips, 1, size.frames, 3, height, width)
    batches = []

    for _ in range(size.accumulation):
        frames_BVTCHW = torch.randn(shape, generator=generator).to(world.device)
        labels_B = torch.randint(size.classes, (size.clips,), generator=generator).to(world.device)
        weights_B = torch.ones(size.clips, device=world.device)
        batches.append((ClipInputs(frames_BVTCHW, weights_B), Targets(labels_B, weights_B)))

    return batches


def _accumulate(
    gradient: StepGradient, size: BenchmarkSize, batches: Sequence[ClipsAndTargets]
) -> None:
    """Accumulate the gradient of a step; every class has one sentence."""
    device = batches[0][0].frames_BVTCHW.device
    sentence_K = torch.zeros(size.classes, dtype=torch.int64, device=device)
    loss_scale = 1 / (size.clips * len(batches))
    gradient.accumulate(
        batches, num_batches=len(batches), sentence_K=sentence_K, loss_scale=loss_scale
    )


@contextmanager
def _attention(*, is_fused: bool) -> Iterator[None]:
    """Compute attention with the fused kernel, or as products and a softmax."""
    if is_fused:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _gradient_flow(method: Method, *, stops_at_prompts: bool) -> Iterator[None]:
    """Propagate gradients to the trained tensors, and unless `stops_at_prompts` also to weights
    below the first prompts of both towers."""
    method.freeze_untrained()
    below = []

    # With one weight at the input of each tower, autograd runs through everything above it.
    if not stops_at_prompts:
        below = [method.clip.visual.conv1.weight, method.clip.positional_embedding]
    for parameter in below:
        parameter.requires_grad_(True)

    yield

    for parameter in below:
        parameter.grad = None
    method.freeze_untrained()


def _autocast(world: World) -> Callable[[], torch.autocast]:
    """Return a factory of autocast contexts: bfloat16 on a GPU, as in training; off on a CPU."""
    return lambda: torch.autocast(
        world.device.type, dtype=torch.bfloat16, enabled=world.device.type == "cuda"
    )


def _single_rank(world: World) -> World:
    """Return a world of one rank on the same device, in which nothing is shared."""
    return World(0, 1, world.device)


def _time_slowest(run: Callable[[], None], world: World) -> float:
    """Return the seconds of the slowest rank."""
    # A sum over ranks is a barrier, too: all ranks start the clock together.
    sum_over_ranks([0.0], world)
    _wait_for(world.device)

    started = time.perf_counter()
    run()
    _wait_for(world.device)

    seconds = [0.0] * world.size
    seconds[world.rank] = time.perf_counter() - started
    return max(sum_over_ranks(seconds, world))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "CPU"


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its kernels."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _gradients_of(method: Method) -> dict[str, torch.Tensor]:
    return {key: p.grad for key, p in method.named_parameters() if p.grad is not None}


def _difference(
    plain: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], groups: Mapping[str, Group]
) -> float:
    """Return the largest difference of two steps, relative to the largest value of the group."""
    largest: dict[Group, float] = {}
    for name, gradient in plain.items():
        # A group without any gradient must not divide by zero.
        largest[groups[name]] = max(largest.get(groups[name], 1e-30), float(gradient.abs().max()))

    return max(
        float((plain[name] - ours[name]).abs().max()) / largest[groups[name]] for name in ours
    )
