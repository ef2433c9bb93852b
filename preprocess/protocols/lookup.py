"""Find the video that a list line means, and the class that the data set gives it."""

from __future__ import annotations

from collections.abc import Iterable

from preprocess.sources import Source, SourceVideo
from preprocess.sources.naming import storable, youtube_id
from shards.errors import ConfigError
from shards.format.names import fold_name


class VideoIndex:
    """Find videos by relative path, key, YouTube id (Kinetics), and key in any case.

    Answers are cached, because lists repeat names; a new name costs about 2 us."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._by_path = {video.relative_path: video for video in source.videos}
        self._by_key = {video.key: video for video in source.videos}
        self._by_folded_key: dict[str, list[SourceVideo]] = {}
        self._by_id: dict[str, list[SourceVideo]] = {}
        self._answers: dict[str, SourceVideo | None] = {}
        for video in source.videos:
            self._by_folded_key.setdefault(video.key.casefold(), []).append(video)
            video_id = self._youtube_id(video.key)
            if video_id is not None:
                self._by_id.setdefault(video_id, []).append(video)

    def key_of(self, name: str) -> str:
        """Return the key that a file with this name would have."""
        return self.source.dataset.key_of(name)

    def has(self, key: str) -> bool:
        """Return whether there is a video for a key of an annotation file."""
        if self._youtube_id(key) in self._by_id:
            return True
        return key in self._by_key or key.casefold() in self._by_folded_key

    def find(self, name: str, *, where: str) -> SourceVideo | None:
        """Return the video that a list line means; None if there is none.

        Raises:
            ConfigError: two videos match; the message names `where` and the files."""
        if name not in self._answers:
            self._answers[name] = self._look_up(name, where)
        return self._answers[name]

    def absent_names(self) -> list[str]:
        """Return the names for which `find` has found no video, in the order of the calls."""
        return [name for name, video in self._answers.items() if video is None]

    def _youtube_id(self, key: str) -> str | None:
        return youtube_id(key) if self.source.dataset.has_youtube_ids else None

    def _look_up(self, name: str, where: str) -> SourceVideo | None:
        # A path is unambiguous, so it also resolves a name that two videos share.
        exact = self._by_path.get(storable(name)) or self._by_key.get(self.key_of(name))
        if exact is not None:
            return exact
        key = self.key_of(name)
        # Lists and mirrors shorten Kinetics names to the id, and change the case of UCF-101 names.
        matches = self._by_id.get(self._youtube_id(key) or "", [])
        if not matches:
            matches = self._by_folded_key.get(key.casefold(), [])
        if len(matches) > 1:
            files = " and ".join(video.relative_path for video in matches[:2])
            raise ConfigError(
                f"{where}: {storable(name)} means both {files} below {self.source.root}; "
                "remove one of them or write the line as a path below --videos"
            )
        return matches[0] if matches else None


class ClassFinder:
    """Find the class that the data set gives a video.

    The official annotations come first, then the folder of the video, then its file name. If
    official classes or class files are known, a folder or a part of a file name counts only if
    they hold it: mirrors have folders such as `part_1`."""

    def __init__(self, source: Source, class_names: Iterable[str]) -> None:
        """Prepare the look-up; `class_names` are those of all class files in use."""
        self._annotations = source.annotations
        self._spelling: dict[str, str] = {}
        names = list(class_names)
        if source.annotations is not None:
            self._spelling = source.annotations.official_spelling
            names = [*source.annotations.classes, *names]
        self._known = {fold_name(name) for name in names}
        # Built from all known names, because one class name may be a part of another.
        make_pattern = source.dataset.class_in_name
        self._in_name = make_pattern(names) if make_pattern is not None else None

    def class_of(self, key: str, video: SourceVideo | None) -> str | None:
        """Return the class of a list line, in the official spelling if there is one.

        None if no source names the class."""
        if self._annotations is not None:
            official = self._annotations.official_class(key)
            if official is not None:
                return official
        if video is not None and video.class_name is not None and self._is_known(video.class_name):
            return video.class_name
        names = self._in_name.findall(key) if self._in_name is not None else []
        if not names or not self._is_known(names[-1]):
            return None
        return self._spelling.get(fold_name(names[-1]), names[-1])

    def _is_known(self, name: str) -> bool:
        return not self._known or fold_name(name) in self._known
