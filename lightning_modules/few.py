"""Warn or refuse when a class has too few images to train from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visynth.core.errors import UsageError
from visynth.lightning_modules.data import FEW

FEW_GROUPS = 10  # parts, scenes or patients below which many images are still few
TOO_FEW = 20  # images below which an adversarial training from scratch is refused
INSTEAD = (
    "composition or inpainting (masks; 'visynth trial' measures what they do), image-to-image with a foundation "
    "model, or transfer from a "
    "generator of more images, may serve them better"
)


def warn_if_few(data: Any, warn: Callable[[str], None]) -> None:
    """Name the classes below 50 images or 10 groups; images in memory are a trial's, which measures what they are
    worth.

    Args:
        data: a datamodule with ``facts``, and ``images`` where they are known by group.
        warn: prints the warning.
    """
    images = getattr(data, "images", None)
    if images is None or getattr(data, "private", False):  # counts of private images are not told
        return
    groups = images.select(lambda item: item.split in ("", "train")).groups()
    few = [
        f"{c} ({n} images" + (f" of {groups[c]} groups)" if groups.get(c, n) < n else ")")
        for c, n in zip(data.facts.classes, data.facts.counts, strict=True)
        if n < FEW or groups.get(c, FEW_GROUPS) < FEW_GROUPS
    ]
    if few:
        warn(f"few images: {', '.join(few)}: {INSTEAD}.")


def refuse_if_few(name: str, data: Any) -> None:
    """A class with fewer than 20 images is refused by an adversarial training from scratch.

    Raises:
        UsageError: names the classes, what would serve them, and how to train all the same.
    """
    if getattr(data, "private", False):  # counts of private images are not told
        return
    facts = data.facts
    short = [f"{c} ({n})" for c, n in zip(facts.classes, facts.counts, strict=True) if n < TOO_FEW]
    if short:
        raise UsageError(
            f"{name} from scratch cannot learn {', '.join(short)} from fewer than {TOO_FEW} images of a class: "
            f"{INSTEAD} "
            "(transfer=FOLDER starts from a generator). allow_few=True trains all the same."
        )
