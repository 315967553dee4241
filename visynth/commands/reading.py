"""Reading a set for a command: what was left out or understood in some way is told on stderr."""

from __future__ import annotations

import sys
from typing import Any

from visynth.data.items import ImageSet
from visynth.data.reading import read_images
from visynth.errors import listing


def read(data: str, **options: Any) -> ImageSet:
    """As :func:`visynth.read_images`; notes and unusable files are printed."""
    images = read_images(data, **options)
    for note in images.notes:
        print(f"note: {note}", file=sys.stderr)
    if images.bad:
        told = listing([f"{bad.name} {bad.reason}" for bad in images.bad])
        print(f"{len(images.bad)} files are left out:\n{told}", file=sys.stderr)
    return images
