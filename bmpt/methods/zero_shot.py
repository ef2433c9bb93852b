"""CLIP as it is: nothing trains. Class texts: bare names, one template, or an ensemble of sentences."""

from __future__ import annotations

from bmpt.methods.base import Method


class ZeroShot(Method):
    """Frame-wise CLIP, or with the backbone's own space-time blocks and temporal embedding where it has them."""
