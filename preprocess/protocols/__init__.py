"""Plan the manifests of a pool from split lists or own draws, and write them."""

from preprocess.protocols.manifests import write_manifests
from preprocess.protocols.plan import plan_protocols
from preprocess.protocols.records import ManifestPlan, MissingVideo, PlannedRow, ProtocolPlan

__all__ = [
    "ManifestPlan",
    "MissingVideo",
    "PlannedRow",
    "ProtocolPlan",
    "plan_protocols",
    "write_manifests",
]
