"""Test the wording of docstrings, comments and pages: a docstring starts with a verb, is more than
one word, and no phrase is used that CONTRIBUTING has a plain word for.

`python -m tests.rules.test_prose [PATH ...]` prints every finding below the paths."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rules.sources import PACKAGES, ROOT, relative, source_files, tree_of

LONGEST_LINE = 100
RULES = (
    "no verb first",
    "one word",
    "starts with a clause",
    "long line",
    "phrase",
    "phrase in a message",
)

# The findings that are left, per package and rule. Numbers may only be lowered, and a line goes
# when its number is 0; a rule without a line allows none.
ALLOWED: dict[tuple[str, str], int] = {}

# First words of docstrings of functions and methods. Add a verb that is missing here.
_VERBS = """
abort accept accumulate acquire add adjust advance align allocate allow answer append apply
approximate arrange ask assemble assert assign attach audit average avoid await begin bind block
bound broadcast buffer build cache calculate call cancel cast center chain check choose classify
clean clear clip clone close collect combine come commit compare compile complete compute
configure connect construct consume continue convert coordinate copy correct count cover create
crop crossfade cut deal decide declare decode decompress deduplicate defer define delete deliver
demux derive describe detach detect determine disable discard dispatch display distribute divide
do download draw drop dump duplicate echo embed emit empty enable encode end enqueue ensure enter
enumerate erase escape estimate evaluate evict exchange exclude execute exit expand expect explain
export expose extend extract fail fetch fill filter finalise find finish fit fix flag flatten
flush fold follow force forget format forward freeze gather generate get give go group grow guess
halt hand handle hash help hide hold identify ignore import include increase index infer inform
initialise insert inspect install instantiate interpolate intersect invert issue iterate join keep
kill label lay learn leave lend let limit link list load locate lock log look lower maintain make
manage map mark mask match measure mention merge mix monitor mount move multiply name negate
normalise note notice number observe obtain omit open order override pack pad parse partition pass
patch pause peek percent-encode permit permute pick pin place plan point poll pop predict prepare
prepend preserve prevent print probe process produce project prompt propagate prove prune publish
pull push put query queue quote raise rank re-raise read rebuild receive recognise recompute
reconstruct record recover redirect reduce refer refresh refuse register reject relay release
remember remove rename render reopen reorder repack repair repeat replace report reproduce request
require rerun resample reserve reset reshape resize resolve respond restore restrict resume retry
return reuse reverse rewind rewrite rotate round route run sample sanitise save say scale scan
schedule score search seed seek select send separate serialise serve set share shift shorten show
shrink shuffle shut sign signal silence simulate skip sleep slice smooth snapshot sort specify
spell split spread stack standardise start state step stop store stream strip submit subtract sum
summarise supply suppress swap sweep switch synchronise tabulate tag take tally tell terminate
test throttle tie time tokenise total touch trace track train transform translate traverse treat
trim truncate try tune turn undo unflatten unify unlock unpack unwrap update upload use validate
vary verify visit wait wake walk warn watch weigh weight widen work wrap write yield zero zip
"""
VERBS = frozenset(_VERBS.split())

_COUNT = r"\d[\d,.]*|one|two|three|four|five|several|many|few"
_NOUN = r"(?!(?:of|in|on|if|for|over|is|than|to|per|by|from|with|as|at|or|and|where|which)\b)[\w-]+"
_MEASURE = "clips|bytes|frames|seconds|samples|requests|steps|texts|sentences|threads|MB|ms|us"
_UNIT = (
    "second|minute|hour|step|class|rank|clip|sample|video|shard|node|process|worker|epoch|batch"
    "|frame|file|row|request|entry|run|line"
)
_NO_CLAUSE = "(?! that| which| of)"
_PER = "'per' for a rate"
_IS_IN = "'is in', 'is at', 'has'"

# (the phrase, what to write instead)
PHRASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), instead)
    for pattern, instead in (
        (rf"\b(?:{_COUNT}) (?:{_NOUN} )?{_NOUN} an? (?:{_UNIT})\b{_NO_CLAUSE}", _PER),
        (rf"\b(?:{_MEASURE}) an? (?:{_UNIT})\b{_NO_CLAUSE}", _PER),
        (r"\bonce an? (?:step|run|epoch|rank|node|class|process|optimiser step)\b", _PER),
        (r"(?:^|[.!?] )Likewise\b", "a sentence"),
        (r"\bis nobody's\b", "'was left by'"),
        (r"\bthat which\b", "a noun"),
        (r"\bwhoever\b", "the noun, or 'anyone who'"),
        (r"\b(?:it|they|which|that|what|bytes|samples?|files?|pools?) lies?\b", _IS_IN),
        (r"\b(?:it|they|which|that|what|words?) stands?\b(?! for\b)", _IS_IN),
        (r"\bcomplain", "'report' or 'warn'"),
        (r"\bshould know of\b", "what is stated"),
        (r"\bso many (?![\w ]{0,30}\bthat\b)", "a number, or 'this many'"),
        (
            r"(?<!there )\bis no (?:method|key|tag|kind|command|file|folder|pool|manifest)\b",
            "'is not a' or 'unknown'",
        ),
        (r"[,(] ?but for\b", "'except'"),
        (r"\banew\b", "'again' or 'from the start'"),
        (r"\bempty places?\b", "'placeholder'"),
        (r"\bpassing (?:pieces?|entr(?:y|ies)|bytes|ones)\b", "'transient'"),
        (r"\bgo(?:es)? on (?:where|at|from|after)\b", "'resume' or 'continue'"),
    )
)
HEADLESS = re.compile(r"^(?:What|Whoever|That which)\b(?![^.]*\?)")


@dataclass(frozen=True)
class Finding:
    """A place that breaks a rule."""

    rule: str
    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.text}"


@dataclass(frozen=True)
class Docstring:
    """A docstring and what it documents."""

    text: str
    line: int
    # module, class, property, or function (a public one, which a caller reads)
    kind: str


def docstrings(path: Path) -> Iterator[Docstring]:
    """Yield the docstrings of a file, with the kind `private` for private and nested functions."""
    yield from _docstrings(tree_of(path), "module")


def _docstrings(node: ast.AST, kind: str) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield Docstring(text, node.body[0].lineno, kind)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            is_private = kind == "private" or child.name.startswith("_")
            yield from _docstrings(child, "private" if is_private else "class")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            is_private = kind in ("private", "function", "property") or child.name.startswith("_")
            decorators = [ast.unparse(item) for item in child.decorator_list]
            is_property = any("property" in item or ".setter" in item for item in decorators)
            kind_of_child = "property" if is_property else "function"
            yield from _docstrings(child, "private" if is_private else kind_of_child)
        elif not isinstance(child, ast.expr):
            yield from _docstrings(child, kind) if isinstance(child, ast.If | ast.Try) else ()


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every comment of a program."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#! ")


def first_word(docstring: str) -> str:
    """Return the first word of a docstring in lower case, without punctuation."""
    return docstring.split()[0].strip("`.,:;()").lower()


def docstring_findings(path: Path) -> Iterator[Finding]:
    """Yield what is wrong with the form of a file's docstrings."""
    name = relative(path)
    for found in docstrings(path):
        first_line = found.text.split("\n")[0]
        if len(found.text.split()) == 1:
            yield Finding("one word", name, found.line, first_line)
        elif found.kind == "function" and first_word(found.text) not in VERBS:
            yield Finding("no verb first", name, found.line, first_line)
        if HEADLESS.match(found.text):
            yield Finding("starts with a clause", name, found.line, first_line)
        for line in found.text.split("\n"):
            if len(line) > LONGEST_LINE:
                yield Finding("long line", name, found.line, line)


def phrase_findings(path: Path) -> Iterator[Finding]:
    """Yield the refused phrases in a file: in the docstrings and comments of a program and in its
    messages and help texts, or in the prose of a page."""
    yield from _phrases("phrase", path, prose_of(path))
    if path.suffix == ".py":
        yield from _phrases("phrase in a message", path, messages(path))


def _phrases(rule: str, path: Path, texts: Iterable[tuple[int, str]]) -> Iterator[Finding]:
    for line, text in texts:
        for pattern, instead in PHRASES:
            for match in pattern.finditer(" ".join(text.split())):
                yield Finding(rule, relative(path), line, f"{match[0]!r}: write {instead}")


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every text in a program that is a sentence and not a docstring."""
    tree = tree_of(path)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) not in bare and len(node.value.split()) >= 3:
            yield node.lineno, node.value


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the prose of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from ((found.line, found.text) for found in docstrings(path))
        yield from comments(text)
    elif path.suffix == ".md":
        outside = re.sub(r"^```.*?^```$|`[^`\n]*`", _blank, text, flags=re.M | re.S)
        yield from enumerate(outside.split("\n"), start=1)
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if "#" in line:
                yield number, line.partition("#")[2]


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def pages() -> list[Path]:
    """Return README, the pages beside it and those of `docs/` that are written by hand."""
    top = [ROOT / name for name in ("README.md", "CHANGELOG.md", "shards/README.md")]
    every = [*top, *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in every if "<!-- Generated" not in page.read_text(encoding="utf-8")]


def findings_of_package(package: str) -> list[Finding]:
    """Return all findings of a package."""
    found: list[Finding] = []
    for path in source_files(package):
        found += [*docstring_findings(path), *phrase_findings(path)]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_new_finding_in_docstrings_and_comments(package: str) -> None:
    found = findings_of_package(package)
    for rule in RULES:
        of_rule = [item for item in found if item.rule == rule]
        allowed = ALLOWED.get((package, rule), 0)
        shown = "\n".join(map(str, of_rule))
        assert len(of_rule) <= allowed, f"{rule}: {len(of_rule)}, allowed are {allowed}\n{shown}"


def test_no_refused_phrase_in_the_pages() -> None:
    assert len(pages()) > 15
    found = [str(item) for page in pages() for item in phrase_findings(page)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "It reads 12 clips a second.",
        "one sentence a class",
        "about 40 ms a clip",
        "Encoded once an optimiser step.",
        "It works. Likewise for text.",
        "a part that is nobody's",
        "what a person should know of it",
        "it is no method",
    ],
)
def test_a_refused_phrase_is_found(text: str) -> None:
    assert any(pattern.search(text) for pattern, _ in PHRASES)


@pytest.mark.parametrize(
    "text",
    [
        "It reads 12 clips per second.",
        "There is no method of that name.",
        "one of the files a run writes",
        "B stands for videos.",
        "so many that the cache is full",
        "frames of a clip",
        "Return a row per sample, and a class for each.",
        "three samples in a row of a class",
        "exit with 1 if a clip is left",
    ],
)
def test_a_plain_sentence_is_not_refused(text: str) -> None:
    assert [pattern.pattern for pattern, _ in PHRASES if pattern.search(text)] == []


def test_the_form_of_docstrings_is_seen() -> None:
    file = ROOT / "tests" / "rules" / "sources.py"
    kinds = Counter(found.kind for found in docstrings(file))
    assert kinds["module"] == 1
    assert kinds["class"] == 1
    assert kinds["function"] >= 7
    assert first_word("`Return` it.") in VERBS
    assert first_word("The rows of a file.") not in VERBS
    assert HEADLESS.match("What a clip is.")
    assert not HEADLESS.match("What is a clip? A few frames.")


def main(arguments: list[str]) -> None:
    """Print every finding below the given paths, or of everything."""
    found = [item for package in PACKAGES for item in findings_of_package(package)]
    found += [item for page in pages() for item in phrase_findings(page)]
    chosen = [item for item in found if item.file.startswith(tuple(arguments) or ("",))]
    print(*chosen, sep="\n")
    for (package, rule), count in sorted(
        Counter((item.file.split("/")[0], item.rule) for item in chosen).items()
    ):
        print(f"{package:12}{rule:24}{count:5}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
