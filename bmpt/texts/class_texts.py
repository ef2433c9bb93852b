"""Make class texts of class names, by templates or from files, and those of the classes' negatives.

Three kinds of file are read: a JSON of sentences {class: [texts]} (BDC-CLIP, BMPT); a mapping
`class -> negative`, a look-alike action that training pushes the class away from; and a mapping
`class -> paraphrase`, the same action in other words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpt.settings import TextSettings
from shards.errors import ConfigError
from shards.files import name_some, os_error_text
from shards.format.names import fold_name

if TYPE_CHECKING:
    from bmpt.clip.backbone import Backbone

# for negatives without sentences of their own; BMPT has no full stop here
NEGATIVE_TEMPLATE = "a video of a person {}"
# between a small letter or digit and a capital ("TaiChi"), and before the last capital of a run
# that a small letter follows ("TVShow")
_CAMEL_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NAMES_SHOWN = 3
_VALUE_CHARACTERS = 80
_TEXT_CHARACTERS = 60


def readable(class_name: str) -> str:
    """Make text of a class name: split CamelCase, replace `_` by a space, use lower case.

    `ApplyEyeMakeup` becomes `apply eye makeup`, and `shoot_bow` becomes `shoot bow`.
    """
    return " ".join(_CAMEL_BOUNDARY.sub(" ", class_name).replace("_", " ").split()).lower()


@dataclass(frozen=True)
class ClassSentences:
    """P sentences for each of K classes."""

    classes: tuple[str, ...]
    """Class names [K]."""
    sentences: tuple[tuple[str, ...], ...]
    """Sentences [K][P], in the order of `classes`."""
    notes: tuple[str, ...] = ()
    """One line per remark about the file: other spellings, unused classes."""

    @property
    def num_sentences(self) -> int:
        """Number of sentences per class (P)."""
        return len(self.sentences[0]) if self.sentences else 0

    def at(self, index: int) -> list[str]:
        """Return one sentence per class, K texts.

        Args:
            index: of the sentence, from 0 to P - 1.
        """
        return [texts[index] for texts in self.sentences]


def class_sentences(class_names: Sequence[str], settings: TextSettings) -> ClassSentences:
    """Make the sentences of classes as the settings say: from a file, or from templates.

    Raises:
        ConfigError: if the settings contradict each other, or a file does not fit the classes.
    """
    if settings.sentences is not None:
        for key in ("templates", "paraphrases"):
            if getattr(settings, key):
                raise ConfigError(
                    f"text.{key}: cannot be used with text.sentences={settings.sentences}, which "
                    "has whole sentences; leave one of them out"
                )
        return file_sentences(class_names, settings.sentences)

    templates = settings.templates or (settings.template,)
    if settings.paraphrases is None:
        return template_sentences(class_names, templates, raw_names=settings.raw_names)

    paraphrases, notes = mapped_names(class_names, settings.paraphrases, what="paraphrase")
    filled = template_sentences(paraphrases, templates, raw_names=settings.raw_names)
    return ClassSentences(tuple(class_names), filled.sentences, notes)


def template_sentences(
    class_names: Sequence[str], templates: Sequence[str], *, raw_names: bool = False
) -> ClassSentences:
    """Fill every template with every class name; sentence p of a class is template p.

    Args:
        class_names: names [K].
        templates: texts [P] with exactly one `{}`.
        raw_names: whether to insert the names unchanged instead of `readable`.

    Raises:
        ConfigError: if there is no template, or one without exactly one `{}`.
    """
    if not templates:
        raise ConfigError(
            "text.templates: no template is given; give at least one, for example "
            "'a video of a person {}.'"
        )
    columns = [_fill(template, class_names, raw_names=raw_names) for template in templates]
    return ClassSentences(tuple(class_names), tuple(zip(*columns, strict=True)))


def file_sentences(class_names: Sequence[str], file: Path) -> ClassSentences:
    """Read the sentences of classes from a JSON file.

    Raises:
        ConfigError: if classes are not in the file, or have unequal numbers of sentences, which
            could not be stacked.
    """
    texts = read_sentences(file)
    keys, notes = look_up(class_names, texts, source=str(file), what="text")
    chosen = tuple(texts[key] for key in keys)

    for name, sentences in zip(class_names, chosen, strict=True):
        if len(sentences) != len(chosen[0]):
            raise ConfigError(
                f"{file}: {class_names[0]!r} has {len(chosen[0])} sentences, {name!r} "
                f"{len(sentences)}; give every class the same number"
            )
    return ClassSentences(tuple(class_names), chosen, notes)


def negative_sentences(
    class_names: Sequence[str],
    mapping: Path,
    num_sentences: int,
    *,
    texts: Path | None = None,
    raw_names: bool = False,
) -> ClassSentences:
    """Make P sentences of each class's negative: those of a file, or else a template.

    If the file has fewer than P sentences, the last one is repeated; if it has more, the first P
    are taken, as in BMPT. BMPT itself finds negatives in the file only by their exact spelling.

    Args:
        class_names: names [K].
        mapping: file of lines `class -> negative`.
        num_sentences: number of sentences per class (P).
        texts: JSON of sentences that may contain the negatives.
        raw_names: whether to only replace `_` by a space in a template, as BMPT does.

    Raises:
        ConfigError: if classes have no negative, or a class is its own negative.
    """
    negatives, notes = mapped_names(class_names, mapping, what="negative")
    for class_name, negative in zip(class_names, negatives, strict=True):
        if fold_name(class_name) == fold_name(negative):
            raise ConfigError(
                f"{mapping}: {class_name!r} is its own negative; name another action for it"
            )

    known = read_sentences(texts) if texts is not None else {}
    keys = _FoldedNames(known, source=str(texts))
    sentences = []
    for negative in negatives:
        key = keys.find(negative)
        if key is not None:
            own = known[key]
        else:
            name = negative.replace("_", " ") if raw_names else negative
            own = tuple(_fill(NEGATIVE_TEMPLATE, [name], raw_names=raw_names))
        sentences.append((own + own[-1:] * num_sentences)[:num_sentences])

    return ClassSentences(tuple(class_names), tuple(sentences), notes)


def mapped_names(
    class_names: Sequence[str], mapping: Path, *, what: str
) -> tuple[list[str], tuple[str, ...]]:
    """Read the name that a mapping file gives for each class.

    Args:
        class_names: names [K].
        mapping: file of lines `class -> name`.
        what: `negative` or `paraphrase`, for errors.

    Returns:
        The names in the order of the classes, and notes as in `ClassSentences`.

    Raises:
        ConfigError: if classes are not in the file.
    """
    pairs = read_mapping(mapping)
    keys, notes = look_up(class_names, pairs, source=str(mapping), what=what)
    return [pairs[key] for key in keys], notes


def look_up(
    class_names: Sequence[str], known: Iterable[str], *, source: str, what: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find each class among the keys of a file.

    A key matches by its exact spelling, or else ignoring case, spaces, `_` and `-`. The file may
    contain more classes, as the file of a data set does for the base classes.

    Args:
        class_names: names [K].
        known: keys of the file.
        source: name of the file, for errors.
        what: kind of value that the file gives for a class, for errors.

    Returns:
        The keys [K], and a line each on other spellings and on unused keys.

    Raises:
        ConfigError: naming the classes that are not in the file.
    """
    names = _FoldedNames(known, source=source)
    keys = [names.find(name) for name in class_names]
    missing = [name for name, key in zip(class_names, keys, strict=True) if key is None]
    if missing:
        raise _missing_classes(class_names, missing, names, source=source, what=what)

    chosen = tuple(key for key in keys if key is not None)
    respelled = [pair for pair in zip(class_names, chosen, strict=True) if pair[0] != pair[1]]
    used = set(chosen)
    unused = [name for name in names.all if name not in used]

    notes = []
    if respelled:
        ours, theirs = respelled[0]
        notes.append(
            f"{source}: has all {len(chosen)} classes, {len(respelled)} in another spelling "
            f"(case, spaces, _ and -), for example {ours!r} and {theirs!r}"
        )
    if unused:
        notes.append(
            f"{source}: {len(unused)} of its {len(names.all)} classes are not used here: "
            f"{name_some(unused, _NAMES_SHOWN)}"
        )
    return chosen, tuple(notes)


def _missing_classes(
    class_names: Sequence[str],
    missing: Sequence[str],
    names: _FoldedNames,
    *,
    source: str,
    what: str,
) -> ConfigError:
    if len(missing) == len(class_names):
        return ConfigError(
            f"{source}: none of its {len(names.all)} classes "
            f"({name_some(names.all, _NAMES_SHOWN)}) is one of the {len(class_names)} here "
            f"({name_some(class_names, _NAMES_SHOWN)}); the file belongs to another data set, "
            "give the one of this data set"
        )

    # With most classes missing, a wrong file is as likely as an incomplete one.
    hint = "add them"
    if 2 * len(missing) > len(class_names):
        hint += ", unless the file belongs to another data set"
    return ConfigError(
        f"{source}: no {what} for {len(missing)} of {len(class_names)} classes: "
        f"{', '.join(missing)}; {hint}"
    )


def read_sentences(file: Path) -> dict[str, tuple[str, ...]]:
    """Read a JSON of sentences {class: [texts]}.

    Raises:
        ConfigError: naming the file and the class, if the file has another form.
    """
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
                f"{file}: {name!r} has {str(sentences)[:_VALUE_CHARACTERS]!r}, expected a list of "
                "sentences; correct it"
            )
    return {name: tuple(sentences) for name, sentences in values.items()}


def read_mapping(file: Path) -> dict[str, str]:
    """Read a file of lines `class -> name`.

    Raises:
        ConfigError: naming the file and the line, if the file has another form.
    """
    pairs: dict[str, str] = {}
    spellings: dict[str, str] = {}

    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("->")]
        if len(parts) != 2 or not all(parts):
            raise ConfigError(
                f"{file}: line {number} is {line.strip()[:_VALUE_CHARACTERS]!r}, expected "
                "`class -> name`; correct it"
            )

        name, other = parts
        first_spelling = spellings.setdefault(fold_name(name), name)
        if name in pairs or first_spelling != name:
            raise ConfigError(
                f"{file}: line {number} names {name!r} a second time; remove one of the lines"
            )
        pairs[name] = other

    if not pairs:
        raise ConfigError(f"{file}: holds no line `class -> name`; get the mapping again")
    return pairs


def truncation_warning(
    backbone: Backbone, texts: Iterable[str], *, num_slots: int = 0, what: str = "class texts"
) -> str | None:
    """Return a warning that counts the texts that tokenising truncates, or None.

    Args:
        backbone: whose tokenizer is used.
        texts: any texts.
        num_slots: number of prompt tokens in front of each text, which take room from it.
        what: noun for the texts.
    """
    tokenizer = backbone.tokenizer
    # SOT and EOT take a token each.
    room = tokenizer.context_length - num_slots - 2
    all_texts = list(texts)
    truncated = [text for text in all_texts if len(tokenizer.encode(text)) > room]
    if not truncated:
        return None

    slots = f", {num_slots} of them prompt tokens," if num_slots else ""
    return (
        f"{len(truncated)} of {len(all_texts)} {what} are over {tokenizer.context_length} "
        f"tokens{slots} and are truncated at the end, for example "
        f"{truncated[0][:_TEXT_CHARACTERS]!r}"
    )


class _FoldedNames:
    """Names that can be found by their exact spelling, or else by their folded spelling."""

    def __init__(self, names: Iterable[str], *, source: str) -> None:
        self.all = list(names)
        self._exact = set(self.all)
        self._source = source
        self._spellings: dict[str, list[str]] = {}
        for name in self.all:
            self._spellings.setdefault(fold_name(name), []).append(name)

    def find(self, name: str) -> str | None:
        """Raises: ConfigError if several names have this folded spelling."""
        if name in self._exact:
            return name

        candidates = self._spellings.get(fold_name(name), [])
        if len(candidates) > 1:
            raise ConfigError(
                f"{self._source}: {name!r} may be {' or '.join(map(repr, candidates))}; keep one "
                "of them"
            )
        return candidates[0] if candidates else None


def _fill(template: str, class_names: Sequence[str], *, raw_names: bool) -> list[str]:
    if template.count("{}") != 1:
        raise ConfigError(
            f"text.template={template!r}: expected exactly one {{}} for the class name; correct it"
        )

    # str.format would also replace braces in a class name.
    before, after = template.split("{}")
    names = class_names if raw_names else [readable(name) for name in class_names]
    return [before + name + after for name in names]


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {os_error_text(error)}; give a file that can be read"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 at byte {error.start}; convert it") from None


def _without_repeats(pairs: Sequence[tuple[str, Any]], file: Path) -> Mapping[str, Any]:
    """Return a JSON object, which must not have two equal keys.

    Python's reader would silently keep the last of them.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{file}: {repeated!r} appears twice; remove one of them")
    return values
