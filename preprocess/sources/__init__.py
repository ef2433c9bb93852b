"""The table of data sets, and the step that finds the videos of one of them.

A data set is a file with one record, and a line here. Data sets of other packages register as
entry points of the group `bmpt.data_sets`: the name of the entry point is the name of the data
set, and its value is `package.module:RECORD`, where RECORD is a `DataSet`."""

from __future__ import annotations

from pathlib import Path

from preprocess.sources.folder import DEMO, FOLDER
from preprocess.sources.hmdb51 import HMDB51
from preprocess.sources.kinetics import KINETICS400, KINETICS600
from preprocess.sources.naming import first_clash, storable
from preprocess.sources.records import Annotations, DataSet, OfficialList, Source, SourceVideo
from preprocess.sources.scanner import VideoFile, scan_videos
from preprocess.sources.ssv2 import SSV2
from preprocess.sources.ucf101 import UCF101
from shards.errors import ConfigError
from shards.format.names import fold_name
from shards.plugins import find_plugins, load_plugin

__all__ = [
    "DATASETS",
    "Annotations",
    "DataSet",
    "OfficialList",
    "Source",
    "SourceVideo",
    "find_dataset",
    "open_source",
]

DATASETS: dict[str, DataSet] = {
    dataset.name: dataset
    for dataset in (KINETICS400, KINETICS600, UCF101, HMDB51, SSV2, FOLDER, DEMO)
}


ENTRY_POINTS = "bmpt.data_sets"


def find_dataset(name: str) -> DataSet:
    """Return the record of a data set, of this package or of an installed one.

    Raises:
        ConfigError: the name is unknown, two packages claim it, or its package is broken."""
    plugins = find_plugins(ENTRY_POINTS)
    registered = plugins.get(name, [])
    if name in DATASETS:
        # Neither record may win silently: their keys and lists may differ.
        if registered:
            raise ConfigError(
                f"--dataset {name}: package {registered[0].package} registers a data set of this "
                "name, which bmpt has already; rename its entry point or uninstall the package"
            )
        return DATASETS[name]
    if not registered:
        from shards.config import suggest_key  # with pydantic, which `--help` need not import

        known = [*DATASETS, *sorted(plugins)]
        raise ConfigError(f"--dataset {name}: unknown data set; {suggest_key(name, known)}")

    record = load_plugin(f"--dataset {name}", registered)
    origin = f"{registered[0].value} of package {registered[0].package}"
    if not isinstance(record, DataSet):
        raise ConfigError(
            f"--dataset {name}: {origin} is not a preprocess.sources.DataSet; correct the package"
        )
    if record.name != name:
        raise ConfigError(
            f"--dataset {name}: {origin} has the name {record.name!r}; make it {name!r}, the name "
            "of the entry point"
        )
    return record


def open_source(name: str, videos: Path, annotations: Path | None) -> Source:
    """Find all videos of a data set and read its annotation files.

    Args:
        name: of the data set, as in `--dataset`
        videos: folder of the video files
        annotations: folder of the official annotation files, if given

    Raises:
        ConfigError: unknown data set, missing folder, unusable annotation files, two files with
            the same key, or two class folders that lists could not tell apart."""
    dataset = find_dataset(name)
    official = dataset.read_annotations(annotations) if annotations is not None else None

    video_of: dict[str, SourceVideo] = {}
    for file in scan_videos(videos, name):
        video = _source_video(dataset, file, official)
        if video.key in video_of:
            raise ConfigError(
                f"{videos}: {video_of[video.key].relative_path} and {video.relative_path} have the "
                f"same key, {video.key}; remove one of the files"
            )
        video_of[video.key] = video

    names = (video.class_name for video in video_of.values() if video.class_name is not None)
    clash = first_clash(names)
    if clash is not None:
        raise ConfigError(
            f"{videos}: the classes {clash[0]!r} and {clash[1]!r} differ only in case, spaces, "
            "`_` or `-`, so lists cannot tell them apart; rename one of the folders"
        )
    # The order in which videos are divided into shards; it must not depend on the file system.
    ordered = sorted(video_of.values(), key=lambda video: video.key.encode())
    return Source(dataset, videos.absolute(), ordered, official)


def _source_video(dataset: DataSet, file: VideoFile, official: Annotations | None) -> SourceVideo:
    """Give a file its key and its class."""
    key = dataset.key_of(file.relative_path)
    class_name = official.official_class(key) if official is not None else None
    if class_name is None:
        class_name = dataset.folder_class(file.relative_path)
        # With annotations only the official classes count, in their official spelling.
        if class_name is not None and official is not None:
            class_name = official.official_spelling.get(fold_name(class_name))
    return SourceVideo(key, file.path, storable(file.relative_path), file.num_bytes, class_name)
