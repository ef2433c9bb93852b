"""The commands that write texts and features with models: describe, knowledge, attributes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bmpt.cli.help import add_command
from shards.cli import EXIT_FINDINGS, JsonOption, PoolPath, print_report, warn

if TYPE_CHECKING:
    from bmpt.clip.backbone import Backbone
    from bmpt.offline.answers import Asking
    from bmpt.offline.describe import Kind

_SECTION = "Texts and features by models"

ManifestName = Annotated[str, typer.Argument(help="A manifest, for example few_shot/train_k16.")]
ClipModelOption = Annotated[str, typer.Option(metavar="NAME", help="model.name of the training.")]
PretrainedOption = Annotated[
    str, typer.Option(metavar="TAG", help="model.pretrained of the training.")
]

# The options of the commands that ask an endpoint.
_ENDPOINT_HELP = "An OpenAI-compatible server, for example http://localhost:8000/v1."
EndpointOption = Annotated[str, typer.Option(metavar="URL", help=_ENDPOINT_HELP)]
OptionalEndpointOption = Annotated[str | None, typer.Option(metavar="URL", help=_ENDPOINT_HELP)]
AnswersOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Parquet file of all answers.  [default: OUT.answers.parquet]"
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Environment variable with the key.  [default: OPENAI_API_KEY]"
    ),
]
ConcurrencyOption = Annotated[int, typer.Option(metavar="N", help="Requests at the same time.")]
RateOption = Annotated[
    float | None, typer.Option(metavar="R", help="Limit of all requests, retries included.")
]
RetriesOption = Annotated[int, typer.Option(metavar="N", help="Retries per question.")]
TimeoutOption = Annotated[float, typer.Option(metavar="S", min=0.001, help="Seconds per request.")]
RetryMalformedOption = Annotated[
    bool, typer.Option("--retry-malformed", help="Ask again where the stored answer is unusable.")
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Tokens per answer; models that reason first need more."),
]


@dataclass(frozen=True)
class AskOptions:
    """The values of the options that the commands `describe` and `knowledge` share."""

    answers: Path | None
    api_key_env: str | None
    concurrency: int
    requests_per_minute: float | None
    retries: int
    timeout: float
    retry_malformed: bool
    max_tokens: int | None

    def asking(self, endpoint: str, model: str, out: Path) -> Asking:
        """Return the settings for the questions.

        Raises:
            ConfigError: naming an option that cannot be used.
        """
        from bmpt.offline.answers import Asking
        from bmpt.offline.chat import Pace
        from bmpt.offline.endpoint import parse_endpoint

        server = parse_endpoint(
            endpoint, model, api_key_env=self.api_key_env, timeout_seconds=self.timeout
        )
        pace = Pace(self.concurrency, self.requests_per_minute, self.retries)
        answers = self.answers or out.parent / f"{out.stem}.answers.parquet"
        return Asking(server, pace, answers, self.retry_malformed, self.max_tokens)


def describe(
    endpoint: EndpointOption,
    model: Annotated[str, typer.Option(metavar="NAME", help="The model that the server offers.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE.json", help="Class texts: {class: [sentences]}.")
    ],
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Class names, one per line or as a CSV with the columns id,name."
        ),
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(
            metavar="MANIFEST", help="Use its classes: POOL/manifests/PROTOCOL/NAME.parquet."
        ),
    ] = None,
    sentences: Annotated[int, typer.Option(metavar="P", help="Sentences per class.")] = 2,
    negatives: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write `class -> similar action` for the margin."),
    ] = None,
    paraphrases: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write `class -> same action in other words`."),
    ] = None,
    answers: AnswersOption = None,
    api_key_env: ApiKeyOption = None,
    concurrency: ConcurrencyOption = 8,
    requests_per_minute: RateOption = None,
    retries: RetriesOption = 5,
    timeout: TimeoutOption = 120.0,
    retry_malformed: RetryMalformedOption = False,
    max_tokens: MaxTokensOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write class texts with a language model.

    Also writes negatives and paraphrases on request. Stores every answer: the same command asks
    only for the missing ones. Exits with 1 if a class has no text.
    """
    from bmpt.offline.describe import describe_classes, description_text, manifest_classes
    from shards.errors import ConfigError
    from shards.progress import Progress

    if (classes is None) == (manifest is None):
        raise ConfigError("give either --classes FILE or --manifest MANIFEST")

    names = manifest_classes(str(manifest)) if classes is None else _read_names(classes)
    outputs: dict[Kind, Path] = {"texts": out}
    if negatives is not None:
        outputs["negatives"] = negatives
    if paraphrases is not None:
        outputs["paraphrases"] = paraphrases

    options = AskOptions(
        answers,
        api_key_env,
        concurrency,
        requests_per_minute,
        retries,
        timeout,
        retry_malformed,
        max_tokens,
    )
    asking = options.asking(endpoint, model, out)
    with Progress() as progress:
        description = describe_classes(
            names, outputs, asking, num_sentences=sentences, progress=progress
        )

    print_report(description, description_text(description), as_json=as_json)
    if not description.is_complete:
        raise typer.Exit(EXIT_FINDINGS)


def knowledge(
    pool: PoolPath,
    manifest: ManifestName,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Parquet file: one CLIP text feature per sample.")
    ],
    endpoint: OptionalEndpointOption = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The vision-language model that the server offers."),
    ] = None,
    clip_model: ClipModelOption = "ViT-B-16",
    pretrained: PretrainedOption = "openai",
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="DIR", help="Import published *_feature.npy files instead."
        ),
    ] = None,
    answers: AnswersOption = None,
    api_key_env: ApiKeyOption = None,
    concurrency: ConcurrencyOption = 8,
    requests_per_minute: RateOption = None,
    retries: RetriesOption = 5,
    timeout: TimeoutOption = 120.0,
    retry_malformed: RetryMalformedOption = False,
    max_tokens: MaxTokensOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe clips with a vision-language model.

    The model sees four frames of each clip. Stores every answer: the same command asks only for
    the missing ones. Exits with 1 if a clip has no feature.
    """
    from shards.errors import ConfigError
    from shards.reader import open_pool

    if import_ is not None:
        from bmpt.texts.knowledge_file import import_features, import_text

        imported = import_features(import_, open_pool(pool).manifest(manifest), out)
        print_report(imported, import_text(imported), as_json=as_json)
        if not imported.is_complete:
            raise typer.Exit(EXIT_FINDINGS)
        return

    if endpoint is None or model is None:
        raise ConfigError(
            "give --endpoint URL and --model NAME, or --import DIR for published features"
        )

    from bmpt.offline.knowledge import describe_clips, knowledge_text
    from shards.progress import Progress

    opened = open_pool(pool)
    samples = opened.manifest(manifest)
    options = AskOptions(
        answers,
        api_key_env,
        concurrency,
        requests_per_minute,
        retries,
        timeout,
        retry_malformed,
        max_tokens,
    )
    asking = options.asking(endpoint, model, out)
    backbone = _load_clip(clip_model, pretrained)
    with Progress() as progress:
        report = describe_clips(opened, samples, asking, backbone, out, progress=progress)

    warn(report.warning)
    print_report(report, knowledge_text(report), as_json=as_json)
    if not report.is_complete:
        raise typer.Exit(EXIT_FINDINGS)


def attributes(
    pool: PoolPath,
    manifest: ManifestName,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Parquet file: one CLIP text feature per sample.")
    ],
    lexicon: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names to choose from, one per line or as a CSV with the columns id,name.",
        ),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="FILE.json", help="Import BIKE's published attributes instead."
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="K", min=1, help="Attributes per sample; BIKE uses the first 5.")
    ] = 5,
    clip_model: ClipModelOption = "ViT-B-16",
    pretrained: PretrainedOption = "openai",
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes that decode frames; 0 for none.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Find the names that fit each clip best (for BIKE).

    CLIP compares the names of a lexicon with eight frames of each clip. Exits with 1 if a clip has
    no attributes.
    """
    from bmpt.offline.attributes import attributes_text, import_attributes, rank_attributes
    from shards.errors import ConfigError
    from shards.progress import Progress
    from shards.reader import open_pool

    if (lexicon is None) == (import_ is None):
        raise ConfigError("give either --lexicon FILE or --import FILE.json")

    opened = open_pool(pool)
    samples = opened.manifest(manifest)
    backbone = _load_clip(clip_model, pretrained)
    with Progress() as progress:
        if lexicon is not None:
            report = rank_attributes(
                opened,
                samples,
                lexicon,
                _read_names(lexicon),
                backbone,
                out,
                top=top,
                num_workers=workers,
                progress=progress,
            )
        else:
            assert import_ is not None
            report = import_attributes(import_, samples, backbone, out, top=top, progress=progress)

    warn(report.warning)
    print_report(report, attributes_text(report), as_json=as_json)
    if not report.is_complete:
        raise typer.Exit(EXIT_FINDINGS)


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    server = "--endpoint http://localhost:8000/v1 --model NAME"
    add_command(
        app,
        describe,
        section=_SECTION,
        examples=(
            f"bmpt describe --classes labels.csv --out texts.json {server}",
            f"bmpt describe --classes labels.csv --out texts.json --sentences 4 {server}",
        ),
    )
    add_command(
        app,
        knowledge,
        section=_SECTION,
        examples=(
            f"bmpt knowledge data/ucf101 few_shot/train_k16 --out knowledge.parquet {server}",
            "bmpt knowledge data/ucf101 few_shot/train_k16 --out k.parquet --import features",
        ),
    )
    add_command(
        app,
        attributes,
        section=_SECTION,
        examples=(
            "bmpt attributes data/ucf101 few_shot/train_k16 --lexicon names.txt --out a.parquet",
            "bmpt attributes data/ucf101 few_shot/val --import ucf101.json --out val.parquet",
        ),
    )


def _read_names(file: Path) -> list[str]:
    from preprocess.protocols.lists import read_class_file

    return read_class_file(file).names


def _load_clip(name: str, pretrained: str) -> Backbone:
    """Load a CLIP onto the GPU, if there is one."""
    from bmpt.clip.backbone import load_backbone
    from bmpt.runtime.distributed import choose_device

    backbone = load_backbone(name, pretrained)
    warn(backbone.note)
    backbone.model.to(choose_device())
    return backbone
