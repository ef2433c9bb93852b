"""The differences between two pools: first their content, then where the bytes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.reader import Pool, open_pool

_NUM_SHOWN = 5
_IN_WORDS = {
    "only_in_a": "only in A",
    "only_in_b": "only in B",
    "other_bytes": "with other bytes",
    "other_verdict": "with another verdict",
    "other_fingerprint": "with another fingerprint",
}


@dataclass(frozen=True)
class KeyDifference:
    """Samples that differ in one way."""

    count: int
    first: list[str]
    """The first keys."""


@dataclass(frozen=True)
class PoolDiff:
    """The differences between the pools A and B."""

    a: str
    b: str
    same_pool_id: bool
    fields: dict[str, list[Any]]
    """Both values of each field of the card that differs: dataset, encoding.<name>,
    libraries.<name>."""
    keys: dict[str, KeyDifference]
    """Videos only_in_a, only_in_b, with other_bytes, with an other_verdict."""
    classes: dict[str, list[str]]
    """Classes only_in_a and only_in_b."""
    same_class_order: bool
    manifests: dict[str, list[str]]
    """Manifests only_in_a, only_in_b, with an other_fingerprint."""
    num_elsewhere: int
    """Samples of equal bytes in another shard or at another offset: layout, not content."""

    @property
    def is_equal(self) -> bool:
        """Return whether samples, verdicts, classes and manifests are the same.

        Layout and library versions may differ.
        """
        differences = [
            *(difference.count for difference in self.keys.values()),
            *self.classes.values(),
            *self.manifests.values(),
        ]
        return self.same_pool_id and self.same_class_order and not any(differences)


def diff_pools(uri_a: str | Path, uri_b: str | Path) -> PoolDiff:
    """Compare two pools by their tables; no shard is read.

    Raises:
        FormatError: if one of them is not a finished pool.
    """
    a, b = open_pool(uri_a), open_pool(uri_b)
    keys, num_elsewhere = diff_samples(_rows(a), _rows(b))

    return PoolDiff(
        a=str(uri_a),
        b=str(uri_b),
        same_pool_id=a.card.pool_id == b.card.pool_id,
        fields=_differing_fields(a, b),
        keys={name: _first_of(differing) for name, differing in keys.items()},
        classes=_only(dict.fromkeys(a.card.classes), dict.fromkeys(b.card.classes)),
        same_class_order=a.card.classes == b.card.classes,
        manifests=_differing_manifests(a, b),
        num_elsewhere=num_elsewhere,
    )


def diff_samples(
    rows_a: Mapping[str, dict[str, Any]], rows_b: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, list[str]], int]:
    """Compare the rows of two sample tables by key, in time linear in the number of rows.

    Args:
        rows_a: rows of pool A by key, with `verdict`, `sha256`, `shard` and `offset`.
        rows_b: the same of pool B.

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


def diff_text(difference: PoolDiff) -> str:
    """Return the differences in a few lines, or in one line if there are none."""
    lines = [f"{name}: {a!r} in A, {b!r} in B" for name, (a, b) in difference.fields.items()]

    for name, keys in difference.keys.items():
        if keys.count:
            lines.append(f"samples {_IN_WORDS[name]}: {_count_text(keys)}")

    for kind, groups in (("classes", difference.classes), ("manifests", difference.manifests)):
        for name, names in groups.items():
            if names:
                lines.append(f"{kind} {_IN_WORDS[name]}: {_count_text(_first_of(names))}")

    if not difference.same_class_order and not any(difference.classes.values()):
        lines.append("classes: the same in another order")
    if difference.num_elsewhere:
        lines.append(
            f"layout: {difference.num_elsewhere} samples with the same bytes are in another shard "
            "or at another offset"
        )

    content = "equal" if difference.is_equal else "different"
    identity = "the same pool_id" if difference.same_pool_id else "another pool_id"
    return "\n".join([*lines, f"{content} in content, {identity}"])


def _rows(pool: Pool) -> dict[str, dict[str, Any]]:
    table = pool.samples().select(["key", "verdict", "sha256", "shard", "offset"])
    return {row["key"]: row for row in table.to_pylist()}


def _differing_fields(a: Pool, b: Pool) -> dict[str, list[Any]]:
    """Return both values of each field of the cards that differs."""
    fields_a, fields_b = _card_fields(a), _card_fields(b)
    differing = {}
    for name in dict.fromkeys([*fields_a, *fields_b]):
        values = [fields_a.get(name), fields_b.get(name)]
        if values[0] != values[1]:
            differing[name] = values
    return differing


def _card_fields(pool: Pool) -> dict[str, Any]:
    fields: dict[str, Any] = {"dataset": pool.card.dataset}
    for name, value in pool.card.encoding.model_dump().items():
        fields[f"encoding.{name}"] = value
    for name, version in pool.card.libraries.items():
        fields[f"libraries.{name}"] = version
    return fields


def _differing_manifests(a: Pool, b: Pool) -> dict[str, list[str]]:
    paths_a, paths_b = (dict.fromkeys(pool.manifest_names()) for pool in (a, b))
    other = []
    for path in paths_a:
        if path in paths_b:
            fingerprints = [pool.manifest(path).info.fingerprint for pool in (a, b)]
            if fingerprints[0] != fingerprints[1]:
                other.append(path)
    return {**_only(paths_a, paths_b), "other_fingerprint": other}


def _only(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        "only_in_a": [key for key in a if key not in b],
        "only_in_b": [key for key in b if key not in a],
    }


def _count_text(keys: KeyDifference) -> str:
    more = ", ..." if keys.count > len(keys.first) else ""
    return f"{keys.count} ({', '.join(keys.first)}{more})"


def _first_of(keys: list[str]) -> KeyDifference:
    return KeyDifference(len(keys), keys[:_NUM_SHOWN])
