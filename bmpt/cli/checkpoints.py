"""The commands for checkpoints: import-checkpoint, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmpt.cli.help import add_command
from shards.cli import JsonOption, print_report, warn

_SECTION = "Checkpoints"


def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="The .pth or .pt file that a system published.")
    ],
    system: Annotated[
        str, typer.Option(help="The system that wrote it: vifi_clip, bdc_clip, bmpt or bike.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the files in the format of bmpt.")
    ],
    model: Annotated[
        str, typer.Option(help="The CLIP that it was tuned from, as model.name.")
    ] = "ViT-B-16",
    pretrained: Annotated[
        str, typer.Option(help="The weights of that CLIP, as model.pretrained.")
    ] = "openai",
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="bdc_clip: its class names, one per line or as a CSV with the columns id,name.",
        ),
    ] = None,
    attributes_head: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="bike: the file of the attributes branch; FILE is then the video branch.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint of a published system.

    Accounts for every key of the file, or fails. Executes nothing that the file contains.
    """
    from bmpt.checkpoints.import_report import import_text
    from bmpt.checkpoints.published_import import check_asked, join_attributes, write_import
    from bmpt.checkpoints.published_import import import_checkpoint as read_published
    from bmpt.clip.backbone import load_backbone
    from bmpt.settings import ModelSettings
    from preprocess.protocols.lists import read_class_file

    # Check the files first: loading the backbone takes seconds.
    for file in (checkpoint, attributes_head):
        if file is not None:
            check_asked(file, system)

    base = load_backbone(model, pretrained)
    warn(base.note)
    imported = read_published(checkpoint, system, base)
    if attributes_head is not None:
        imported = join_attributes(imported, attributes_head, base)

    names = () if classes is None else read_class_file(classes).names
    settings = ModelSettings(name=model, pretrained=pretrained)
    report = write_import(imported, base, settings, out, classes=names)
    print_report(report, import_text(report), as_json=as_json)


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="prompts.safetensors of a run.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="[default: model.safetensors beside CHECKPOINT]"),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(help="The base weights, if they are no longer where the run read them."),
    ] = None,
    wise_ft: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Fraction of the tuned weights; the rest is of the base.  [default: the run's "
            "eval.wise_ft, else 1]",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge a checkpoint and its base model into one file.

    If only weights of CLIP were tuned, `model.pretrained=FILE` reads the file. Otherwise
    `bmpt.checkpoints.export.load_model` does.
    """
    from bmpt.checkpoints.export import export_checkpoint, export_text

    target = out or checkpoint.with_name("model.safetensors")
    report = export_checkpoint(checkpoint, target, pretrained=pretrained, wise_ft=wise_ft)
    print_report(report, export_text(report), as_json=as_json)


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    add_command(
        app,
        import_checkpoint,
        name="import-checkpoint",
        section=_SECTION,
        examples=(
            "bmpt import-checkpoint vifi_k400.pth --system vifi_clip --out checkpoints/vifi_k400",
            "bmpt import-checkpoint bike.pt --system bike --attributes-head head.pt --out bike",
        ),
    )
    add_command(
        app,
        export,
        section=_SECTION,
        examples=(
            "bmpt export runs/few_shot/ucf101_k2/prompts.safetensors",
            "bmpt export runs/a/prompts.safetensors --out a.safetensors --wise-ft 0.5",
        ),
    )
