"""Which published list makes which manifest: "Manifest names and sources" of the format."""

from __future__ import annotations

from preprocess.protocols.base_to_novel import base_to_novel_rules
from preprocess.protocols.few_shot import few_shot_rules
from preprocess.protocols.official import full_spec
from preprocess.protocols.records import ListRule
from preprocess.protocols.zero_shot import zero_shot_rules
from preprocess.sources import DataSet

MAPPING_FILE = "mapping/ucf_hmdb_mapping.txt"  # the 12 classes of cross_dataset


def list_rules(dataset: DataSet) -> list[ListRule]:
    """Return the rules of all lists that checkouts may hold, in the order of the format's table."""
    folder = f"datasets_splits/{dataset.splits_folder}/" if dataset.splits_folder else ""
    classes = (dataset.class_file,)
    full = [
        ListRule(full_spec(split), f"{folder}{name}", classes)
        for split, name in dataset.full_lists.items()
    ]
    return [
        *full,
        *few_shot_rules(dataset, folder),
        *base_to_novel_rules(dataset),
        *zero_shot_rules(dataset, folder),
    ]
