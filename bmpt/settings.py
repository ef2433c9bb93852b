"""The sections of a config: one frozen model per section, with the meaning of every key.

Methods have settings models of their own, beside their classes in `bmpt/methods`; `MethodSettings`
is their base. `bmpt/config.py` joins the sections into a run's config. Keys that users write in
YAML files are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shards.config import Settings
from shards.fetching.frames import ReadSettings
from shards.sampling.clip_settings import ClipSettings, CutSettings
from shards.sampling.orders import OrderSettings
from shards.stream.failures import MAX_FAILURES


def _listed(value: Any) -> Any:
    """Return a single name as a list of one."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""A list of names; a single name stands for a list of one."""


class RunSettings(Settings):
    """The run folder, and how a process computes."""

    dir: str | None = Field(
        None,
        description="run folder; default runs/NAME, with the name of a shipped experiment, or of "
        "any other file without .yaml",
    )
    threads: int = Field(
        1,
        ge=1,
        description="CPU threads per process; use the same number for every topology, so that sums "
        "are equal",
    )
    save_every_steps: int | None = Field(
        None, ge=1, description="steps between saves of state.pt; the end of an epoch always saves"
    )
    tensorboard: bool = Field(
        True, description="write the numbers of metrics.jsonl for TensorBoard too, to tensorboard/"
    )


class SelectionSettings(Settings):
    """The samples of a pool that are read."""

    pool: str = Field(description="folder or address of the pool")
    train: str | None = Field(None, description="manifest, for example few_shot/train_k2")
    val: str | None = Field(None, description="manifest; the default of eval.manifests")
    verdicts: tuple[Literal["ok", "short", "damaged"], ...] = Field(
        ("ok", "short", "damaged"), description="verdicts of the samples that are used"
    )
    frames: int = Field(8, ge=1, description="T, frames per clip")


class DataSettings(ReadSettings, OrderSettings, CutSettings, SelectionSettings):
    """Which samples are read, how clips are cut out of them, in which order, and how fast."""

    batch_size: int = Field(
        64, ge=1, description="clips of one optimiser step over all ranks and micro-batches"
    )
    num_workers: int = Field(
        0, ge=0, description="loader processes per rank; 0 decodes in the training process"
    )
    max_failures: int = Field(
        MAX_FAILURES, ge=1, description="unreadable samples in a row that end the run"
    )
    augment: Names = Field(
        (), description="augmentations of training clips on the device, a list of: gray"
    )

    @property
    def reading(self) -> ReadSettings:
        """Return how a pool in object storage is read."""
        return ReadSettings(**self.model_dump(include=set(ReadSettings.model_fields)))

    def clip_settings(self, size_px: int) -> ClipSettings:
        """Return how clips of `size_px` pixels are made from samples."""
        # The backbone decides the pixels, so the settings of a clip are complete only with it.
        cut = self.model_dump(include=set(CutSettings.model_fields))
        return ClipSettings(frames=self.frames, size_px=size_px, **cut)


class ModelSettings(Settings):
    """The CLIP backbone."""

    name: str = Field(
        "ViT-B-16", description="open_clip architecture; a free name if the file carries its own"
    )
    pretrained: str = Field("openai", description="open_clip tag, a weight file, or `random`")


class TextSettings(Settings):
    """The texts of a class, made from its name."""

    template: str = Field(
        "a video of a person {}.",
        description="class text, in which `{}` stands for the class name",
    )
    raw_names: bool = Field(
        False, description="keep CamelCase and `_` of class names as the label file spells them"
    )
    templates: Names = Field(
        (), description="several templates instead of one: drawn in training, averaged in scoring"
    )
    sentences: Path | None = Field(
        None, description="JSON file {class: [texts]} that replaces templates"
    )
    paraphrases: Path | None = Field(
        None,
        description="file of lines `class -> same action in other words`; templates then name "
        "these words instead of the class",
    )
    negatives: Path | None = Field(
        None, description="file of lines `class -> similar action`, for the margin loss of bmpt"
    )
    knowledge: Path | None = Field(
        None, description="knowledge.parquet of the training list, for bmpt"
    )
    attributes: Annotated[tuple[Path, ...], BeforeValidator(_listed)] = Field(
        (),
        description="attributes.parquet of all lists that are trained on or scored, for bike with "
        "method.attributes",
    )


@dataclass(frozen=True)
class MethodTraits:
    """Facts about a method that the rest of the code needs before it is built.

    The settings model of each method returns one, see `MethodSettings.traits`.
    """

    tunes: tuple[str, ...] = ("prompts", "all", "image", "text")
    """Values of `method.tune` that the method accepts."""

    reads: frozenset[str] = frozenset()
    """Keys of the section `text` that only some methods read: negatives, knowledge, attributes."""

    reads_with: Mapping[str, str] = field(default_factory=dict)
    """Keys that the method reads, and then needs, if one of its settings says so; by key, that
    setting, for example `{"attributes": "method.attributes=true"}`."""

    compares_clips: bool = False
    """Whether the loss of a clip depends on the other clips of its micro-batch."""

    couples_towers: bool = False
    """Whether class features depend on the clips that they are computed with."""

    depends_on_batch: bool = False
    """Whether the numbers of a run depend on micro-batches and ranks, so that these belong to the
    identity of the run."""


class MethodSettings(Settings):
    """Settings that all methods share; base of the settings model of each method.

    A method subclasses it beside its class, gives `name` its own name as the default, and adds the
    settings that only it has. `method.name` chooses the model, see `bmpt.methods.METHODS`.
    """

    name: str = Field(description="name of the method, a key of the table in bmpt/methods")
    tune: Annotated[
        Literal["prompts", "all", "both", "image", "text"],
        AfterValidator(lambda tune: "all" if tune == "both" else tune),
    ] = Field(
        "prompts",
        description="parameters that train: the new ones alone (prompts), all weights too "
        "(all; both is an alias), or the weights of one tower (image, text)",
    )
    space_time_blocks: tuple[int, ...] | None = Field(
        None,
        description="visual blocks that attend over all frames; default [3, 7, 11] for bmpt and "
        "bdc_clip, none for other methods",
    )
    temporal_position: Literal["none", "learned", "causal"] = Field(
        "none",
        description="learned: one embedding per frame, without which a clip and its reverse have "
        "equal features; causal: the same as `causal: true`",
    )
    causal: bool = Field(
        False,
        description="let space-time blocks see earlier frames only, which adds order without a "
        "parameter",
    )

    @property
    def traits(self) -> MethodTraits:
        """Return the traits of a method with these settings."""
        return MethodTraits()

    @model_validator(mode="before")
    @classmethod
    def _causal_is_a_position(cls, values: Any) -> Any:
        # An alias of `causal: true`: both spellings give one config.
        if not isinstance(values, dict) or values.get("temporal_position") != "causal":
            return values
        if values.get("causal") is False:
            raise ValueError(
                "temporal_position=causal and causal=false exclude each other; leave one of them "
                "out"
            )
        return {**values, "temporal_position": "none", "causal": True}


class TrainSettings(Settings):
    """The optimiser and its schedule. The rates of other groups default to `lr`."""

    epochs: int = Field(12, ge=1, description="passes over the training list")
    lr: float = Field(
        8e-6, gt=0, allow_inf_nan=False, description="learning rate after the warm-up"
    )
    lr_prompts: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="rate of the prompts; default lr"
    )
    lr_exchange: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="rate of bmpt's exchange; default lr"
    )
    lr_adapters: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="rate of bdc_clip's norms and projections; default lr",
    )
    lr_head: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="rate of bdc_clip's classifier and of bike's temporal transformer; default lr",
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.98), description="betas of AdamW; BIKE uses 0.9, 0.999"
    )
    eps: float = Field(
        1e-8,
        gt=0,
        allow_inf_nan=False,
        description="epsilon of AdamW; BMPT and BDC-CLIP as released use 1e-6",
    )
    weight_decay: float = Field(
        0.001,
        ge=0,
        allow_inf_nan=False,
        description="weight decay of all trained matrices; prompts, gains and biases have none",
    )
    warmup_epochs: float = Field(
        1, ge=0, allow_inf_nan=False, description="epochs in which the rate rises to lr"
    )
    accumulation: int = Field(1, ge=1, description="micro-batches per optimiser step")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="autocast type; fp16 needs a GPU"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="probability that the target gives to all classes together"
    )


class EvalSettings(Settings):
    """The manifests to score, and how."""

    manifests: Names = Field((), description="manifests to score; default data.val")
    batch_size: int = Field(
        16,
        ge=1,
        description="rows that are scored at once; blocks are the same on any number of ranks",
    )
    wise_ft: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="fraction of the tuned weights in a mix with the base weights (WiSE-FT)",
    )
    clips: Literal[1] = Field(1, description="clips per video; 1 in this version")
    crops: Literal[1] = Field(1, description="crops per clip; 1 in this version")
