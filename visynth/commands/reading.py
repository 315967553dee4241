"""Reading a set for a command: what was left out or understood in some way is told on stderr."""

from __future__ import annotations

from typing import Any

from visynth.data.items import ImageSet
from visynth.data.reading import read_images, tell


def read(data: str, **options: Any) -> ImageSet:
    """As :func:`visynth.read_images`; notes and unusable files are printed."""
    images = read_images(data, **options)
    tell(images)
    return images
