"""Tiny data sets and checkouts for tests: files of a few bytes in the published layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from preprocess.protocols import ManifestPlan, ProtocolPlan
from preprocess.sources import DATASETS, Source


def write_tree(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files by relative path; text is UTF-8 with its line ends as given."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def write_videos(root: Path, names: Sequence[str]) -> Path:
    """Write files that have a video's name and no video in them: sources and protocols open
    none."""
    return write_tree(root, dict.fromkeys(names, b"not opened"))


def hmdb_name(class_name: str, number: int) -> str:
    """A file name in HMDB-51's form."""
    return f"Clip_(#{number})!_{class_name}_f_cm_np1_le_med_{number}.avi"


def hmdb_checkout(root: Path, classes: Sequence[str], names_in_csv: Sequence[str]) -> Path:
    """A ViFi-CLIP checkout for a few HMDB-51 classes: val1.txt and a class file of these names."""
    lines = [
        f"{hmdb_name(name, number)} {label}"
        for label, name in enumerate(classes)
        for number in (1, 2)
    ]
    rows = [f"{label},{name}" for label, name in enumerate(names_in_csv)]
    return write_tree(
        root,
        {
            "datasets_splits/hmdb_splits/val1.txt": "\n".join(lines) + "\n",
            "labels/hmdb_51_labels.csv": "id,name\n" + "\n".join(rows) + "\n",
        },
    )


def no_videos(dataset: str) -> Source:
    """A source without files or annotations: every list line is missing, and still audited."""
    return Source(DATASETS[dataset], Path("/nowhere"), [], None)


def by_path(plan: ProtocolPlan) -> dict[str, ManifestPlan]:
    """The manifests of a plan by `<protocol>/<name>`, each once."""
    assert len({manifest.path for manifest in plan.manifests}) == len(plan.manifests)
    return {manifest.path: manifest for manifest in plan.manifests}
