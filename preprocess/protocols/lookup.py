"""From a name in a list to the video it means, and to the class that the data set itself gives
it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from preprocess.sources import Source, SourceVideo
from preprocess.sources.naming import fold_name, storable, video_key, youtube_id
from shards.errors import ConfigError

_UCF_CLASS = re.compile(r"v_(\w+?)_g\d")


class VideoIndex:
    """Look-up by relative path, key, YouTube id (Kinetics) and key without regard to case.

    Answers are kept: lists repeat names. Cost: about 2 us a new name."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._by_path = {video.relative_path: video for video in source.videos}
        self._by_key = {video.key: video for video in source.videos}
        self._by_folded_key: dict[str, list[SourceVideo]] = {}
        self._by_id: dict[str, list[SourceVideo]] = {}
        self._answers: dict[str, SourceVideo | None] = {}
        for video in source.videos:
            self._by_folded_key.setdefault(video.key.casefold(), []).append(video)
            if self.is_kinetics:
                video_id = youtube_id(video.key)
                if video_id is not None:
                    self._by_id.setdefault(video_id, []).append(video)

    @property
    def is_kinetics(self) -> bool:
        """Whether a name holds a YouTube id."""
        return self.source.dataset.startswith("kinetics")

    def key_of(self, name: str) -> str:
        """The key that a file of that name would have."""
        return video_key(self.source.dataset, name)

    def has(self, key: str) -> bool:
        """Whether a file answers a key (of an annotation file)."""
        if self.is_kinetics and (youtube_id(key) or "") in self._by_id:
            return True
        return key in self._by_key or key.casefold() in self._by_folded_key

    def find(self, name: str, *, where: str) -> SourceVideo | None:
        """The video that a list line means, None if it is absent.

        Raises: ConfigError naming `where` and the files if two answer."""
        if name not in self._answers:
            self._answers[name] = self._look_up(name, where)
        return self._answers[name]

    def absent_names(self) -> list[str]:
        """The names that `find` was asked for and no file answers, in that order."""
        return [name for name, video in self._answers.items() if video is None]

    def _look_up(self, name: str, where: str) -> SourceVideo | None:
        by_path = self._by_path.get(storable(name))
        if by_path is not None:
            return by_path
        key = self.key_of(name)
        by_key = self._by_key.get(key)
        if by_key is not None:
            return by_key
        answers = self._by_id.get(youtube_id(key) or "") if self.is_kinetics else None
        answers = answers or self._by_folded_key.get(key.casefold(), [])
        if len(answers) > 1:
            files = " and ".join(video.relative_path for video in answers[:2])
            raise ConfigError(
                f"{where}: {storable(name)} means both {files} below {self.source.root}; "
                "remove one of them or write the line as a path below --videos"
            )
        return answers[0] if answers else None


class ClassFinder:
    """The class that the data set gives a video: official annotations, else its folder, else a
    token of its name.

    class_names: those of all class files. If these or official classes are there, a folder or token
        of another name
    is not taken for a class, since mirrors have folders such as `part_1`"""

    def __init__(self, source: Source, class_names: Iterable[str]) -> None:
        self._dataset = source.dataset
        self._annotations = source.annotations
        official = source.annotations.classes if source.annotations is not None else []
        self._spelling = {fold_name(name): name for name in official}
        names = [*official, *class_names]
        self._known = {fold_name(name) for name in names}
        self._token = _token_pattern(source.dataset, names)

    def class_of(self, key: str, video: SourceVideo | None) -> str | None:
        """The class of a list line, official spelling where there is one; None if nothing tells."""
        if self._annotations is not None:
            official = self._annotations.official_class(key)
            if official is not None:
                return official
        if video is not None and video.class_name is not None and self._is_known(video.class_name):
            return video.class_name
        tokens = self._token.findall(key) if self._token is not None else []
        if not tokens or not self._is_known(tokens[-1]):
            return None
        return self._spelling.get(fold_name(tokens[-1]), tokens[-1])

    def _is_known(self, name: str) -> bool:
        return not self._known or fold_name(name) in self._known


def _token_pattern(dataset: str, class_names: Iterable[str]) -> re.Pattern[str] | None:
    """How a file name states its class, if it does.

    HMDB-51: `_<class>_[hulf]_[cn]m_np<N>_` with exact class names, the longest first, so that
    `draw_sword` is not `sword`; checked against all 6766 official names."""
    if dataset == "ucf101":
        return _UCF_CLASS
    if dataset != "hmdb51":
        return None
    names = sorted(
        {"_".join(re.findall(r"[^\W_]+", name)) for name in class_names},
        key=lambda name: (-len(name), name),
    )
    if not names:
        return None
    return re.compile(
        "_(" + "|".join(map(re.escape, names)) + r")_[hulf]_[cn]m_np\d+_", re.IGNORECASE
    )
