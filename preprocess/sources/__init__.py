"""Where the videos of a data set are and what their class is; one file a data set."""

from __future__ import annotations

import difflib
from pathlib import Path

from preprocess.sources import hmdb51, kinetics, ssv2, ucf101
from preprocess.sources.folder import folder_class
from preprocess.sources.folder import read_annotations as read_folder_annotations
from preprocess.sources.naming import first_clash, fold_name, storable, video_key
from preprocess.sources.records import Annotations, OfficialList, Source, SourceVideo
from preprocess.sources.scanner import scan_videos
from shards.errors import ConfigError

__all__ = ["DATASETS", "Annotations", "OfficialList", "Source", "SourceVideo", "open_source"]

DATASETS: tuple[str, ...] = (
    "kinetics400",
    "kinetics600",
    "ucf101",
    "hmdb51",
    "ssv2",
    "folder",
    "demo",
)


def open_source(dataset: str, videos: Path, annotations: Path | None) -> Source:
    """Find all videos of a data set and read its annotation files.

    Raises: ConfigError for an unknown data set, a missing folder, unusable annotations, two files
        of one key."""
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"--dataset {dataset}: no such data set; {hint}known: {', '.join(DATASETS)}"
        )
    official = _read_annotations(dataset, annotations) if annotations is not None else None
    spelling = (
        {fold_name(name): name for name in official.classes} if official is not None else None
    )
    found: dict[str, SourceVideo] = {}
    for file in scan_videos(videos, dataset):
        key = video_key(dataset, file.relative_path)
        if key in found:
            raise ConfigError(
                f"{videos}: {found[key].relative_path} and {storable(file.relative_path)} have one key, {key}; "
                "remove one of the files"
            )
        class_name = official.official_class(key) if official is not None else None
        if class_name is None:
            class_name = folder_class(dataset, file.relative_path)
            if class_name is not None and spelling is not None:
                class_name = spelling.get(fold_name(class_name))
        found[key] = SourceVideo(
            key, file.path, storable(file.relative_path), file.num_bytes, class_name
        )
    clash = first_clash(
        video.class_name for video in found.values() if video.class_name is not None
    )
    if clash is not None:
        raise ConfigError(
            f"{videos}: the classes {clash[0]!r} and {clash[1]!r} differ only in case, spaces, `_` or `-`, which lists "
            "spell as they like; rename one of the folders"
        )
    ordered = sorted(found.values(), key=lambda video: video.key.encode())
    return Source(dataset, videos.absolute(), ordered, official)


def _read_annotations(dataset: str, folder: Path) -> Annotations:
    if dataset == "ucf101":
        return ucf101.read_annotations(folder)
    if dataset == "hmdb51":
        return hmdb51.read_annotations(folder)
    if dataset == "ssv2":
        return ssv2.read_annotations(folder)
    if dataset in ("kinetics400", "kinetics600"):
        return kinetics.read_annotations(folder, dataset)
    return read_folder_annotations(dataset, folder)
