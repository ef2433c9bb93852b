"""BIKE's zero-shot protocol: ten seeded halves of the classes of one full list."""

from __future__ import annotations

import numpy as np

from preprocess.protocols.catalogue import NUM_HALVES, half_spec
from preprocess.protocols.records import ClassNames, Selection


def cut_in_halves(full: Selection) -> list[Selection]:
    """`half_0` to `half_9`: np.random.seed(r), the first K//2 of a permutation of the K classes.

    Labels are re-numbered by ascending class id, as in BIKE's test_zeroshot; lines keep the list's
    order."""
    names = full.classes.names
    halves = []
    for seed in range(NUM_HALVES):
        # RandomState(r) is what np.random.seed(r) sets up, without touching the global state
        chosen = sorted(
            np.random.RandomState(seed).permutation(len(names))[: len(names) // 2].tolist()
        )
        ids = {old: new for new, old in enumerate(chosen)}
        lines = [
            (name, ids[label])
            for name, label in zip(full.names, full.labels, strict=True)
            if label in ids
        ]
        classes = ClassNames(
            [names[old] for old in chosen], full.classes.labels, full.classes.sha256
        )
        halves.append(
            Selection(
                half_spec(seed),
                classes,
                full.source,
                full.source_sha256,
                [name for name, _ in lines],
                [label for _, label in lines],
            )
        )
    return halves
