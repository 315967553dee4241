"""Open the place of a set by its path or address."""

from __future__ import annotations

from pathlib import Path

from visynth.core.store import is_url
from visynth.render.stage import DiskStage, Stage


def open_stage(where: str | Path) -> Stage:
    """A folder's stage, or that of an object store's prefix (``s3://bucket/prefix``).

    Raises:
        MissingExtra: an address, and obstore is not installed.
    """
    if is_url(where):
        from visynth.render.object_stage import ObjectStage

        return ObjectStage(str(where))
    return DiskStage(where)
