"""The commands `describe`, `knowledge` and `attributes`; each imports what it needs when it runs,
as all of `bmpt`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shards.cli import EXIT_FINDINGS, JsonOption, PoolPath, print_report, warn

if TYPE_CHECKING:
    from bmpt.clip.backbone import Backbone
    from bmpt.offline.answers import Asking
    from bmpt.offline.describe import Kind

_ENDPOINT = typer.Option(
    metavar="URL", help="an OpenAI-compatible server: http://localhost:8000/v1"
)
ManifestPath = Annotated[
    str, typer.Argument(help="the training list, for example few_shot/train_k16")
]
ClipModelOption = Annotated[str, typer.Option(metavar="NAME", help="as model.name of the training")]
PretrainedOption = Annotated[
    str, typer.Option(metavar="TAG", help="as model.pretrained of the training")
]


@dataclass(frozen=True)
class AskOptions:
    """What the commands that ask an endpoint have in common; its fields are their options."""

    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Parquet of all answers; default: beside --out, .answers.parquet"
        ),
    ] = None
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="variable with the key; default OPENAI_API_KEY"),
    ] = None
    concurrency: Annotated[int, typer.Option(metavar="N", help="questions at a time")] = 8
    requests_per_minute: Annotated[
        float | None, typer.Option(metavar="R", help="of all of them, further tries counted")
    ] = None
    retries: Annotated[int, typer.Option(metavar="N", help="further tries of a question")] = 5
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0.001, help="of one request, seconds")
    ] = 120.0
    retry_malformed: Annotated[
        bool,
        typer.Option("--retry-malformed", help="ask again for kept answers that cannot be used"),
    ] = False
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="of an answer; models that reason before they answer need more"
        ),
    ] = None

    def asking(self, endpoint: str, model: str, out: Path) -> Asking:
        """Raises: ConfigError naming an option that cannot be used."""
        from bmpt.offline.answers import Asking
        from bmpt.offline.chat import Pace
        from bmpt.offline.endpoint import parse_endpoint

        return Asking(
            parse_endpoint(
                endpoint, model, api_key_env=self.api_key_env, timeout_seconds=self.timeout
            ),
            Pace(self.concurrency, self.requests_per_minute, self.retries),
            self.answers or out.parent / f"{out.stem}.answers.parquet",
            self.retry_malformed,
            self.max_tokens,
        )


def _with_ask_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put the fields of `AskOptions` in the place of a command's parameter `ask`: typer has no
    groups of options."""
    signature = inspect.signature(command, eval_str=True)
    options = inspect.signature(AskOptions, eval_str=True).parameters

    @wraps(command)
    def ungrouped(**given: Any) -> None:
        ask = AskOptions(**{name: given.pop(name) for name in options})
        command(**given, ask=ask)

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        parameters += options.values() if name == "ask" else [parameter]
    ungrouped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return ungrouped


@_with_ask_options
def describe(
    endpoint: Annotated[str, _ENDPOINT],
    model: Annotated[str, typer.Option(metavar="NAME", help="the model that the endpoint serves")],
    out: Annotated[
        Path, typer.Option(metavar="FILE.json", help="class texts: {class: [sentences]}")
    ],
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="a label CSV `id,name`, or one class name a line"),
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(metavar="MANIFEST", help="its classes: POOL/manifests/PROTOCOL/NAME.parquet"),
    ] = None,
    sentences: Annotated[int, typer.Option(metavar="P", help="class texts of a class")] = 2,
    negatives: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="also: `class -> look-alike action`, to be pushed away"),
    ] = None,
    paraphrases: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="also: `class -> same action in other words`"),
    ] = None,
    *,
    ask: AskOptions,
    as_json: JsonOption = False,
) -> None:
    """Let a language model write class texts, negatives and paraphrases; ends with 1 if a class is
    left without.

    Every answer is kept: the same command asks only for what is missing."""
    from bmpt.offline.describe import describe_classes, description_text, manifest_classes
    from shards.errors import ConfigError
    from shards.progress import ProgressBars

    if (classes is None) == (manifest is None):
        raise ConfigError("give --classes FILE or --manifest MANIFEST, one of them")
    names = manifest_classes(str(manifest)) if classes is None else _read_names(classes)
    outputs: dict[Kind, Path] = {"texts": out}
    if negatives is not None:
        outputs["negatives"] = negatives
    if paraphrases is not None:
        outputs["paraphrases"] = paraphrases
    asking = ask.asking(endpoint, model, out)
    with ProgressBars(enabled=True) as bars:
        done = describe_classes(
            names, outputs, asking, num_sentences=sentences, progress=bars.update
        )
    print_report(done, description_text(done), as_json=as_json)
    if not done.is_complete:
        raise typer.Exit(EXIT_FINDINGS)


@_with_ask_options
def knowledge(
    pool: PoolPath,
    manifest: ManifestPath,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="knowledge.parquet: one CLIP text feature a sample")
    ],
    endpoint: Annotated[str | None, _ENDPOINT] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="the vision-language model that the endpoint serves"),
    ] = None,
    clip_model: ClipModelOption = "ViT-B-16",
    pretrained: PretrainedOption = "openai",
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="DIR", help="published *_feature.npy files instead of asking"
        ),
    ] = None,
    *,
    ask: AskOptions,
    as_json: JsonOption = False,
) -> None:
    """Let a vision-language model say what four frames of each clip show; ends with 1 if a clip is
    left without.

    Every answer is kept: the same command asks only for what is missing."""
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
    from shards.progress import ProgressBars

    opened = open_pool(pool)
    samples, asking = opened.manifest(manifest), ask.asking(endpoint, model, out)
    backbone = _load_clip(clip_model, pretrained)
    with ProgressBars(enabled=True) as bars:
        done = describe_clips(
            opened, samples, asking, backbone, out, progress=partial(bars.update, "frames")
        )
    warn(done.warning)
    print_report(done, knowledge_text(done), as_json=as_json)
    if not done.is_complete:
        raise typer.Exit(EXIT_FINDINGS)


def attributes(
    pool: PoolPath,
    manifest: Annotated[str, typer.Argument(help="a list, for example few_shot/train_k16")],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="attributes.parquet: one CLIP text feature a sample"),
    ],
    lexicon: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="names to choose from: one a line, or a label CSV `id,name`"
        ),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE.json", help="BIKE's published attributes instead"),
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="K", min=1, help="attributes of a sample; the first 5 are used")
    ] = 5,
    clip_model: ClipModelOption = "ViT-B-16",
    pretrained: PretrainedOption = "openai",
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="processes that decode frames; 0 for none")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Find the names that fit each clip best (BIKE's attributes), by CLIP; ends with 1 if a clip is
    left without."""
    from bmpt.offline.attributes import attributes_text, import_attributes, rank_attributes
    from shards.errors import ConfigError
    from shards.progress import ProgressBars
    from shards.reader import open_pool

    if (lexicon is None) == (import_ is None):
        raise ConfigError("give --lexicon FILE or --import FILE.json, one of them")
    opened = open_pool(pool)
    samples = opened.manifest(manifest)
    backbone = _load_clip(clip_model, pretrained)
    with ProgressBars(enabled=True) as bars:
        if lexicon is not None:
            names = _read_names(lexicon)
            done = rank_attributes(
                opened,
                samples,
                lexicon,
                names,
                backbone,
                out,
                top=top,
                num_workers=workers,
                progress=bars.update,
            )
        else:
            assert import_ is not None
            done = import_attributes(import_, samples, backbone, out, top=top, progress=bars.update)
    warn(done.warning)
    print_report(done, attributes_text(done), as_json=as_json)
    if not done.is_complete:
        raise typer.Exit(EXIT_FINDINGS)


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
