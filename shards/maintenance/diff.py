"""How two pools differ: contents first, then where the bytes lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.reader import Pool, open_pool

_NUM_SHOWN = 5
_WORDS = {
    **{"only_in_a": "only in A", "only_in_b": "only in B", "other_bytes": "with other bytes"},
    **{"other_verdict": "with another verdict", "other_fingerprint": "with another fingerprint"},
}


@dataclass(frozen=True)
class KeyDifference:
    """Samples that differ in one way: how many, and the first keys."""

    count: int
    first: list[str]


@dataclass(frozen=True)
class PoolDiff:
    """What differs between pools A and B.

    fields: of the card that differ (dataset, encoding.<name>, libraries.<name>): both values
    keys: videos only_in_a, only_in_b, with other_bytes, with an other_verdict
    classes: only_in_a, only_in_b, and whether the order differs
    manifests: only_in_a, only_in_b, with an other_fingerprint
    num_elsewhere: samples of equal bytes that lie in another shard or at another place: layout, not
        content"""

    a: str
    b: str
    same_pool_id: bool
    fields: dict[str, list[Any]]
    keys: dict[str, KeyDifference]
    classes: dict[str, list[str]]
    same_class_order: bool
    manifests: dict[str, list[str]]
    num_elsewhere: int

    @property
    def is_equal(self) -> bool:
        """Whether samples, verdicts, classes and manifests are the same; layout and versions may
        differ."""
        differences = [
            *(found.count for found in self.keys.values()),
            *self.classes.values(),
            *self.manifests.values(),
        ]
        return self.same_pool_id and self.same_class_order and not any(differences)


def diff_pools(uri_a: str | Path, uri_b: str | Path) -> PoolDiff:
    """Compare two pools by their tables; no shard is read. Raises: FormatError if one is not a
    finished pool."""
    a, b = open_pool(uri_a), open_pool(uri_b)
    keys, num_elsewhere = diff_samples(_rows(a), _rows(b))
    return PoolDiff(
        a=str(uri_a),
        b=str(uri_b),
        same_pool_id=a.card.pool_id == b.card.pool_id,
        fields=_other_fields(a, b),
        keys={name: _shown(found) for name, found in keys.items()},
        classes=_only(dict.fromkeys(a.card.classes), dict.fromkeys(b.card.classes)),
        same_class_order=a.card.classes == b.card.classes,
        manifests=_manifests(a, b),
        num_elsewhere=num_elsewhere,
    )


def diff_samples(
    rows_a: Mapping[str, dict[str, Any]], rows_b: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, list[str]], int]:
    """Compare the rows of two sample tables by key, in time linear in the number of rows.

    Args:
        rows_a: rows of pool A by key, with `verdict`, `sha256`, `shard` and `offset`.
        rows_b: rows of pool B, likewise.

    Returns:
        The differing keys as `PoolDiff.keys` groups them, and `PoolDiff.num_elsewhere`.
    """
    other_bytes, other_verdict = [], []
    num_elsewhere = 0

    for key, row_a in rows_a.items():
        row_b = rows_b.get(key)
        if row_b is None:
            continue

        if row_a["sha256"] != row_b["sha256"]:
            other_bytes.append(key)
        elif (row_a["shard"], row_a["offset"]) != (row_b["shard"], row_b["offset"]):
            num_elsewhere += 1
        if row_a["verdict"] != row_b["verdict"]:
            other_verdict.append(key)

    keys = {**_only(rows_a, rows_b), "other_bytes": other_bytes, "other_verdict": other_verdict}
    return keys, num_elsewhere


def diff_text(found: PoolDiff) -> str:
    """A few lines for people; one if there is no difference."""
    lines = [f"{name}: {a!r} in A, {b!r} in B" for name, (a, b) in found.fields.items()]
    for name, keys in found.keys.items():
        if keys.count:
            lines.append(f"samples {_WORDS[name]}: {_counted(keys)}")
    for what, groups in (("classes", found.classes), ("manifests", found.manifests)):
        lines += [
            f"{what} {_WORDS[name]}: {_counted(_shown(names))}"
            for name, names in groups.items()
            if names
        ]
    if not found.same_class_order and not any(found.classes.values()):
        lines.append("classes: the same in another order")
    if found.num_elsewhere:
        lines.append(
            f"layout: {found.num_elsewhere} samples of the same bytes lie at another place"
        )
    identity = "the same pool_id" if found.same_pool_id else "another pool_id"
    return "\n".join(
        [*lines, f"{'equal' if found.is_equal else 'different'} in content, {identity}"]
    )


def _rows(pool: Pool) -> dict[str, dict[str, Any]]:
    table = pool.samples().select(["key", "verdict", "sha256", "shard", "offset"])
    return {row["key"]: row for row in table.to_pylist()}


def _other_fields(a: Pool, b: Pool) -> dict[str, list[Any]]:
    left, right = (
        {
            "dataset": pool.card.dataset,
            **{
                f"encoding.{name}": value for name, value in pool.card.encoding.model_dump().items()
            },
            **{f"libraries.{name}": value for name, value in pool.card.libraries.items()},
        }
        for pool in (a, b)
    )
    names = dict.fromkeys([*left, *right])
    return {
        name: [left.get(name), right.get(name)]
        for name in names
        if left.get(name) != right.get(name)
    }


def _manifests(a: Pool, b: Pool) -> dict[str, list[str]]:
    left, right = (dict.fromkeys(pool.manifest_names()) for pool in (a, b))
    both = [path for path in left if path in right]
    other = [
        path
        for path in both
        if a.manifest(path).info.fingerprint != b.manifest(path).info.fingerprint
    ]
    return {**_only(left, right), "other_fingerprint": other}


def _only(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        "only_in_a": [key for key in a if key not in b],
        "only_in_b": [key for key in b if key not in a],
    }


def _counted(keys: KeyDifference) -> str:
    more = ", ..." if keys.count > len(keys.first) else ""
    return f"{keys.count} ({', '.join(keys.first)}{more})"


def _shown(keys: list[str]) -> KeyDifference:
    return KeyDifference(len(keys), keys[:_NUM_SHOWN])
