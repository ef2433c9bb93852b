"""The settings of `bmpt train` and `bmpt eval`: one frozen model a section, every key with its
meaning.

Keys that others call are fixed (shards/README.md and README.md name them); a YAML may have one
`base:`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shards.config import Settings, load_settings
from shards.fetching.frames import ReadSettings
from shards.sampling.clip_settings import ClipSettings, CutSettings
from shards.sampling.orders import OrderSettings
from shards.stream.failures import MAX_FAILURES

# Settings that decide how data is fetched, not which data: no part of the identity of a run.
_FETCHING = {"num_workers", "max_failures", *ReadSettings.model_fields}


class RunSettings(Settings):
    """Where a run lies and how a process computes."""

    dir: str | None = Field(None, description="run folder; default runs/<config stem>")
    threads: int = Field(
        1,
        ge=1,
        description="CPU threads a process; the same for every topology, so that sums agree",
    )
    save_every_steps: int | None = Field(
        None, ge=1, description="state.pt within an epoch too; always at its end"
    )
    tensorboard: bool = Field(
        True, description="write the numbers of metrics.jsonl to <run.dir>/tensorboard too"
    )


class SelectionSettings(Settings):
    """Which samples of which pool are read."""

    pool: str = Field(description="folder or address of the pool")
    train: str | None = Field(None, description="manifest, for example few_shot/train_k2")
    val: str | None = Field(None, description="manifest; the default of eval.manifests")
    verdicts: tuple[Literal["ok", "short", "damaged"], ...] = ("ok", "short", "damaged")
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

    @property
    def reading(self) -> ReadSettings:
        """Return how a pool in object storage is read."""
        return ReadSettings(**self.model_dump(include=set(ReadSettings.model_fields)))

    def clip_settings(self, size_px: int) -> ClipSettings:
        """Return how clips of `size_px` pixels are made from samples."""
        cut = self.model_dump(include=set(CutSettings.model_fields))
        return ClipSettings(frames=self.frames, size_px=size_px, **cut)


class ModelSettings(Settings):
    """The CLIP backbone."""

    name: str = Field(
        "ViT-B-16", description="open_clip architecture; a free name if the file carries its own"
    )
    pretrained: str = Field("openai", description="open_clip tag, a weight file, or `random`")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]  # one may stand for a list of one


class TextSettings(Settings):
    """How a class name becomes a class text."""

    template: str = Field(
        "a video of a person {}.", description="`{}` is the class name; `{}` alone is the bare name"
    )
    raw_names: bool = Field(
        False, description="keep CamelCase and `_` as the label file spells them"
    )
    templates: Names = Field(
        (), description="several instead of one: drawn in training, averaged in scoring"
    )
    sentences: Path | None = Field(
        None, description="JSON {class: [texts]} instead of templates (BDC-CLIP, BMPT)"
    )
    paraphrases: Path | None = Field(
        None,
        description="lines `class -> same action in other words`, which templates then name instead of the class",
    )
    negatives: Path | None = Field(
        None, description="lines `class -> look-alike action`, for bmpt's margin loss"
    )
    knowledge: Path | None = Field(
        None, description="knowledge.parquet of the training list (bmpt)"
    )
    attributes: Annotated[tuple[Path, ...], BeforeValidator(_listed)] = Field(
        (),
        description="attributes.parquet of all lists, trained and scored, for method.attributes (bike)",
    )


class MethodSettings(Settings):
    """What is put onto the backbone and what of it trains."""

    name: str = Field(
        "bmpt", description="one of bmpt/methods: zero_shot, vifi_clip, bdc_clip, bmpt, bike"
    )
    tune: Annotated[
        Literal["prompts", "all", "both", "image", "text"],
        AfterValidator(lambda tune: "all" if tune == "both" else tune),
    ] = Field(
        "prompts",
        description="what is new alone, or weights too: all (both is the same) or those of one tower",
    )
    vision_depth: int = Field(
        12, ge=0, description="visual blocks with own prompt tokens, the first counted"
    )
    vision_tokens: int = Field(8, ge=1)
    text_depth: int = Field(
        12, ge=0, description="text blocks with own prompt tokens, the first counted"
    )
    text_tokens: int = Field(8, ge=1)
    start_words: str | None = Field(
        None, description="vifi_clip: words that the text tokens start from"
    )
    exchange: Literal["none", "bidirectional", "batch_gated"] = Field(
        "bidirectional",
        description="bmpt: none as released; bidirectional between prompts; batch_gated between features, where class "
        "features depend on the clips computed with them",
    )
    exchange_width: int = Field(
        256, ge=1, description="hidden width of the exchange's two-layer maps"
    )
    space_time_blocks: tuple[int, ...] | None = Field(
        None,
        description="visual blocks that attend over all frames; default [3, 7, 11] for bmpt and bdc_clip, none else",
    )
    temporal_position: Literal["none", "learned", "causal"] = Field(
        "none",
        description="learned: an embedding a frame, without which a clip equals its reverse; causal: sets `causal`",
    )
    causal: bool = Field(
        False,
        description="space-time blocks see earlier frames alone: order without a parameter",
    )
    negative_weight: float = Field(1.0, ge=0, description="bmpt: of the margin loss on negatives")
    knowledge_weight: float = Field(1.0, ge=0, description="bmpt: of the loss on knowledge texts")
    reduced_width: int = Field(
        192, ge=1, description="bdc_clip: channels whose covariance is taken"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="bdc_clip: before the classifier")
    coefficients: tuple[float, float, float] = Field(
        (0.2, 0.3, 0.5),
        description="bdc_clip: of the probabilities of cosine, classifier and covariance",
    )
    scale_divisor: float = Field(
        5.0, gt=0, description="bdc_clip: of the covariance logits' scale in scoring"
    )
    floors_scale: bool = Field(False, description="bdc_clip: floor that quotient, as released")
    interaction: Literal["DP", "VCS"] = Field(
        "VCS", description="bike: mean of frames, or frames that words pick"
    )
    temporal_layers: int = Field(
        6, ge=0, description="bike: layers of its temporal transformer, 0 for none"
    )
    counts_padding: bool = Field(
        False, description="bike: VCS averages over padding too, as released"
    )
    attributes: bool = Field(
        False, description="bike: the attributes branch too, read from text.attributes"
    )
    dual_softmax: bool = Field(False, description="bike: its DS loss instead of NCE")

    @model_validator(mode="before")
    @classmethod
    def _causal_is_a_position(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("temporal_position") != "causal":
            return values
        if values.get("causal") is False:
            raise ValueError(
                "temporal_position=causal and causal=false exclude each other; leave one of them out"
            )
        return {**values, "temporal_position": "none", "causal": True}


class TrainSettings(Settings):
    """The optimiser. Rates of the prompts and of the exchange default to `lr`."""

    epochs: int = Field(12, ge=1)
    lr: float = Field(8e-6, gt=0, allow_inf_nan=False)
    lr_prompts: float | None = Field(None, gt=0, allow_inf_nan=False)
    lr_exchange: float | None = Field(None, gt=0, allow_inf_nan=False)
    lr_adapters: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="bdc_clip: norms and projections"
    )
    lr_head: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="classifier, temporal transformer"
    )
    betas: tuple[float, float] = Field((0.9, 0.98), description="of AdamW; BIKE 0.9, 0.999")
    eps: float = Field(
        1e-8, gt=0, allow_inf_nan=False, description="of AdamW; BMPT and BDC-CLIP as released 1e-6"
    )
    weight_decay: float = Field(
        0.001,
        ge=0,
        allow_inf_nan=False,
        description="of all matrices that train; prompts, gains and biases have none",
    )
    warmup_epochs: float = Field(1, ge=0, allow_inf_nan=False)
    accumulation: int = Field(1, ge=1, description="micro-batches of one optimiser step")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="autocast type; fp16 needs a GPU"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class EvalSettings(Settings):
    """What is scored."""

    manifests: Names = Field((), description="manifests to score; default data.val")
    batch_size: int = Field(
        16, ge=1, description="rows of one fixed block; the same at any number of ranks"
    )
    wise_ft: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of the tuned weights, the rest is of the base: WiSE-FT",
    )
    clips: Literal[1] = 1
    crops: Literal[1] = 1


class TrainConfig(Settings):
    """Everything that decides the numbers of a run."""

    seed: int = Field(0, ge=0)
    run: RunSettings = RunSettings()
    data: DataSettings
    model: ModelSettings = ModelSettings()
    text: TextSettings = TextSettings()
    method: MethodSettings = MethodSettings()
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()

    @property
    def depends_on_spread(self) -> bool:
        """Whether numbers depend on which clips of a step are computed at once, and on the
        ranks."""
        method = self.method
        return (method.name == "bmpt" and method.exchange == "batch_gated") or (
            method.name == "bdc_clip" and method.dropout > 0
        )

    @property
    def scored_manifests(self) -> tuple[str, ...]:
        """`eval.manifests`, else `data.val`."""
        return self.eval.manifests or ((self.data.val,) if self.data.val is not None else ())


def identity(config: TrainConfig, *, with_places: bool) -> dict[str, Any]:
    """What makes two configs one run: not the folder, the threads, or how a step is spread over
    workers.

    with_places: where pool and weights lie; without, since both have hashes of their own, results
        are the same
    bytes wherever they are computed."""
    spread: Any = {"run": True, "data": _FETCHING}
    if not config.depends_on_spread:
        spread["train"] = {"accumulation"}
    if not with_places:
        spread |= {"data": {"pool", *_FETCHING}, "model": {"pretrained"}}
    return config.model_dump(mode="json", exclude=spread)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a config and settle its run folder. Raises: ConfigError naming file, key and value."""
    config = load_settings(TrainConfig, path, overrides)
    if config.run.dir is not None:
        return config
    return config.model_copy(
        update={"run": config.run.model_copy(update={"dir": f"runs/{path.stem}"})}
    )
