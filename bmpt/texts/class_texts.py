"""Class names to class texts: what the text tower reads for each class, and for the class it must
not be.

Three inputs, never mixed: a JSON of sentences {class: [texts]} (BDC-CLIP, BMPT); a mapping `class
    -> negative`, a
look-alike action that training pushes away; a mapping `class -> paraphrase`, the same action in
other words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpt.settings import TextSettings
from shards.errors import ConfigError
from shards.format.names import fold_name

if TYPE_CHECKING:
    from bmpt.clip.backbone import Backbone

NEGATIVE_TEMPLATE = (
    "a video of a person {}"  # of a negative that has no sentences of its own; without a full stop
)
# a capital after a small letter or digit, and the last capital of a run before a small letter:
# "TaiChi", "YoYo"
_CAMEL_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def readable(class_name: str) -> str:
    """Make text of a class name: CamelCase split, `_` to space, lower case.

    `ApplyEyeMakeup` -> `apply eye makeup`, `shoot_bow` -> `shoot bow`."""
    return " ".join(_CAMEL_BOUNDARY.sub(" ", class_name).replace("_", " ").split()).lower()


@dataclass(frozen=True)
class ClassSentences:
    """P sentences for each of K classes.

    sentences: [K][P], in the order of `classes`; notes: what a look-up found that a person should
        know, a line each"""

    classes: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def num_sentences(self) -> int:
        """P."""
        return len(self.sentences[0]) if self.sentences else 0

    def at(self, index: int) -> list[str]:
        """Sentence `index` of every class, K texts."""
        return [texts[index] for texts in self.sentences]


def class_sentences(class_names: Sequence[str], settings: TextSettings) -> ClassSentences:
    """What a config says of classes: the sentences of a file, of several templates, or of one.
    Raises: ConfigError."""
    if settings.sentences is not None:
        for key in ("templates", "paraphrases"):
            if getattr(settings, key):
                raise ConfigError(
                    f"text.{key}: is not read beside text.sentences={settings.sentences}, which has whole sentences; "
                    "leave one of them out"
                )
        return file_sentences(class_names, settings.sentences)
    templates = settings.templates or (settings.template,)
    if settings.paraphrases is None:
        return template_sentences(class_names, templates, raw_names=settings.raw_names)
    named, notes = mapped_names(class_names, settings.paraphrases, what="paraphrase")
    found = template_sentences(named, templates, raw_names=settings.raw_names)
    return ClassSentences(tuple(class_names), found.sentences, notes)


def template_sentences(
    class_names: Sequence[str], templates: Sequence[str], *, raw_names: bool = False
) -> ClassSentences:
    """Sentence p of a class is template p with its name.

    Raises: ConfigError for no template, or one without exactly one `{}`."""
    if not templates:
        raise ConfigError(
            "no template is given; expected at least one, for example 'a video of a person {}.'"
        )
    columns = [_fill(template, class_names, raw_names=raw_names) for template in templates]
    return ClassSentences(tuple(class_names), tuple(zip(*columns, strict=True)))


def file_sentences(class_names: Sequence[str], file: Path) -> ClassSentences:
    """Look the classes up in a JSON of sentences; their number must be equal for all of them, as it
    is stacked.

    Raises: ConfigError that lists the classes without text, or says that the file is of another
        data set."""
    texts = read_sentences(file)
    found = look_up(class_names, texts, source=str(file), what="text")
    chosen = tuple(texts[key] for key in found.keys)
    counts = [len(sentences) for sentences in chosen]
    if len(set(counts)) > 1:
        other = next(index for index, count in enumerate(counts) if count != counts[0])
        raise ConfigError(
            f"{file}: {class_names[0]!r} has {counts[0]} sentences, {class_names[other]!r} {counts[other]}; "
            "give every class the same number"
        )
    return ClassSentences(tuple(class_names), chosen, found.notes)


def negative_sentences(
    class_names: Sequence[str],
    mapping: Path,
    num_sentences: int,
    *,
    texts: Path | None = None,
    raw_names: bool = False,
) -> ClassSentences:
    """P sentences of each class's negative: its own of the JSON `texts` if it stands there, else
    one template.

    Fewer than P repeat the last, more are cut, as BMPT does; BMPT finds a negative in its JSON by
    the exact spelling
    alone. raw_names: only `_` becomes a space, as there.
    Raises: ConfigError that lists the classes without a negative, or says that the mapping is of
        another data set."""
    named, notes = mapped_names(class_names, mapping, what="negative")
    for class_name, negative in zip(class_names, named, strict=True):
        if fold_name(class_name) == fold_name(negative):
            raise ConfigError(
                f"{mapping}: {class_name!r} is its own negative; name another action for it"
            )
    known = read_sentences(texts) if texts is not None else {}
    keys = _Folded(known, source=str(texts))
    sentences = []
    for negative in named:
        key = keys.find(negative)
        name = negative.replace("_", " ") if raw_names else negative
        own = (
            known[key]
            if key is not None
            else tuple(_fill(NEGATIVE_TEMPLATE, [name], raw_names=raw_names))
        )
        sentences.append((own + own[-1:] * num_sentences)[:num_sentences])
    return ClassSentences(tuple(class_names), tuple(sentences), notes)


def mapped_names(
    class_names: Sequence[str], mapping: Path, *, what: str
) -> tuple[list[str], tuple[str, ...]]:
    """What a mapping file says of each class, in order, and the notes of the look-up.

    Raises: ConfigError that lists the classes that are not in it, or says that it is of another
        data set."""
    pairs = read_mapping(mapping)
    found = look_up(class_names, pairs, source=str(mapping), what=what)
    return [pairs[key] for key in found.keys], found.notes


@dataclass(frozen=True)
class Lookup:
    """keys: of the file, one a class; notes: lines on what was matched loosely and what was not
    used"""

    keys: tuple[str, ...]
    notes: tuple[str, ...]


def look_up(class_names: Sequence[str], known: Iterable[str], *, source: str, what: str) -> Lookup:
    """Find each class among the keys of a file: by its exact spelling, else without case, spaces,
    `_` and `-`.

    A file may hold more classes than these, as that of a data set does for its base classes.
    Raises: ConfigError naming `source` and the classes that have no `what`."""
    keys = _Folded(known, source=source)
    found = [keys.find(name) for name in class_names]
    absent = [name for name, key in zip(class_names, found, strict=True) if key is None]
    if absent and len(absent) == len(class_names):
        raise ConfigError(
            f"{source}: none of its {len(keys)} classes ({_listed(keys.names, 3)}) is one of the {len(class_names)} "
            f"here ({_listed(class_names, 3)}); it is of another data set"
        )
    if absent:
        doubt = ", if it is not of another data set" if 2 * len(absent) > len(class_names) else ""
        raise ConfigError(
            f"{source}: no {what} for {len(absent)} of {len(class_names)} classes: {', '.join(absent)}; add them{doubt}"
        )
    chosen = tuple(key for key in found if key is not None)
    loose = [(name, key) for name, key in zip(class_names, chosen, strict=True) if name != key]
    used = set(chosen)
    unused = [name for name in keys.names if name not in used]
    notes = []
    if loose:
        notes.append(
            f"{source}: has all {len(chosen)} classes, {len(loose)} in another spelling (case, spaces, _ and -), "
            f"for example {loose[0][0]!r} and {loose[0][1]!r}"
        )
    if unused:
        notes.append(
            f"{source}: {len(unused)} of its {len(keys)} classes are not used here: {_listed(unused, 3)}"
        )
    return Lookup(chosen, tuple(notes))


def read_sentences(file: Path) -> dict[str, tuple[str, ...]]:
    """Read {class: [sentences]}. Raises: ConfigError naming the file, the class and what is
    wrong."""
    try:
        values = json.loads(
            _read_text(file), object_pairs_hook=lambda pairs: _without_repeats(pairs, file)
        )
    except ValueError as error:
        raise ConfigError(
            f"{file}: is not JSON ({error}); expected {{class: [sentences]}}"
        ) from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{file}: holds no classes; expected {{class: [sentences]}}")
    for name, sentences in values.items():
        is_list = isinstance(sentences, list) and len(sentences) > 0
        if not is_list or not all(isinstance(text, str) and text.strip() for text in sentences):
            raise ConfigError(
                f"{file}: {name!r} has {str(sentences)[:80]!r}, expected a list of sentences; correct it"
            )
    return {name: tuple(sentences) for name, sentences in values.items()}


def read_mapping(file: Path) -> dict[str, str]:
    """Read lines `class -> name`. Raises: ConfigError naming the file, the line and what is
    wrong."""
    pairs: dict[str, str] = {}
    spellings: dict[str, str] = {}
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("->")]
        if len(parts) != 2 or not all(parts):
            raise ConfigError(
                f"{file}: line {number} is {line.strip()[:80]!r}, expected `class -> name`; correct it"
            )
        name, other = parts
        before = spellings.setdefault(fold_name(name), name)
        if name in pairs or before != name:
            raise ConfigError(
                f"{file}: line {number} names {name!r} a second time; remove one of the lines"
            )
        pairs[name] = other
    if not pairs:
        raise ConfigError(f"{file}: holds no line `class -> name`; get the mapping again")
    return pairs


def cut_warning(
    backbone: Backbone, texts: Iterable[str], *, num_slots: int = 0, what: str = "class texts"
) -> str | None:
    """Count the texts that tokenising cuts, in one line; None if there are none.

    num_slots: prompt tokens that are inserted before a text and leave it less room"""
    tokenizer = backbone.tokenizer
    room = tokenizer.context_length - num_slots - 2  # SOT and EOT
    all_texts = list(texts)
    cut = [text for text in all_texts if len(tokenizer.encode(text)) > room]
    if not cut:
        return None
    slots = f", {num_slots} of them prompt tokens" if num_slots else ""
    return (
        f"{len(cut)} of {len(all_texts)} {what} are over {tokenizer.context_length} tokens{slots} and are cut at the "
        f"end, for example {cut[0][:60]!r}"
    )


class _Folded:
    """Names that are found by their exact spelling, else by what their spellings have in common."""

    def __init__(self, names: Iterable[str], *, source: str) -> None:
        self.names = list(names)
        self._exact = set(self.names)
        self._source = source
        self._spellings: dict[str, list[str]] = {}
        for name in self.names:
            self._spellings.setdefault(fold_name(name), []).append(name)

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: str) -> str | None:
        """Raises: ConfigError if several spellings would do."""
        if name in self._exact:
            return name
        found = self._spellings.get(fold_name(name), [])
        if len(found) > 1:
            raise ConfigError(
                f"{self._source}: {name!r} may be {' or '.join(map(repr, found))}; keep one of them"
            )
        return found[0] if found else None


def _fill(template: str, class_names: Sequence[str], *, raw_names: bool) -> list[str]:
    if template.count("{}") != 1:
        raise ConfigError(
            f"text.template={template!r}: expected exactly one {{}} for the class name"
        )
    before, after = template.split("{}")
    return [before + (name if raw_names else readable(name)) + after for name in class_names]


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 at byte {error.start}; convert it") from None


def _without_repeats(pairs: Sequence[tuple[str, Any]], file: Path) -> Mapping[str, Any]:
    """A JSON object; Python's reader would keep the last of two equal keys and say nothing."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{file}: {repeated!r} stands twice; remove one of them")
    return values


def _listed(names: Sequence[str], limit: int) -> str:
    """`a, b, c and 7 more`."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
