"""Compare two recordings, fact by fact."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from behaviour.checkout import Facts

# longer values are cut in the line that shows them
_SHOWN = 70
_ON_TWO_RANKS = "runs/*/ranks_2/*"


def find_differences(before: Facts, after: Facts, *, rtol_2_ranks: float = 0.0) -> list[str]:
    """Return a line per difference, each beginning with the path of its fact.

    A mapping that only one side has is one difference.

    Args:
        before: the facts of one recording.
        after: those of the other.
        rtol_2_ranks: largest relative difference of two numbers that counts as none, in runs on
            2 ranks alone.
    """
    return list(_compare(before, after, "", rtol_2_ranks))


def drop_ignored(lines: list[str], patterns: list[str]) -> list[str]:
    """Leave out the lines whose fact matches one of the patterns, such as `calls/diff*`."""
    kept = []
    for line in lines:
        path = line.partition(": ")[0]
        if not any(fnmatchcase(path, pattern) for pattern in patterns):
            kept.append(line)
    return kept


def count_facts(facts: Any) -> int:
    """Return the number of values below a mapping."""
    if not isinstance(facts, dict):
        return 1
    return sum(count_facts(value) for value in facts.values())


def _compare(before: Any, after: Any, path: str, rtol: float) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            below = f"{path}/{key}" if path else key
            if key not in after:
                yield f"{below}: only before: {_shown(before[key])}"
            elif key not in before:
                yield f"{below}: only after: {_shown(after[key])}"
            else:
                yield from _compare(before[key], after[key], below, rtol)
    elif _is_list_of_mappings(before) and _is_list_of_mappings(after) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _compare(old, new, f"{path}/{index}", rtol)
    elif not _equal(before, after, rtol if fnmatchcase(path, _ON_TWO_RANKS) else 0.0):
        yield f"{path}: {_shown(before)} -> {_shown(after)}"


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _equal(before: Any, after: Any, rtol: float) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        return before == after or math.isclose(before, after, rel_tol=rtol, abs_tol=0.0)
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return all(_equal(old, new, rtol) for old, new in zip(before, after, strict=True))
    return type(before) is type(after) and before == after


def _shown(value: Any) -> str:
    """Return a value as JSON on one line, cut where it is long."""
    if isinstance(value, dict):
        return f"{count_facts(value)} facts"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
