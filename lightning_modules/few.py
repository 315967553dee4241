"""What a training from scratch says of classes that are too small for it, and what would serve them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visynth.data.training import FEW
from visynth.errors import UsageError

FEW_GROUPS = 10  # parts, scenes or patients below which many images are still few
TOO_FEW = 20
INSTEAD = (
    "composition or inpainting (masks), image-to-image with a foundation model, or transfer= from a generator of more images, "
    "may serve them better; 'visynth trial' measures it"
)


def refuse_if_few(name: str, data: Any, allowed: bool, transfer: bool, say: Callable[[str], None]) -> None:
    """Warn below 50 images or 10 groups of a class; refuse below 20 unless allowed, or started from a trained generator.

    Args:
        name: of the module.
        data: a datamodule with ``facts``, and ``images`` where they are known by group.
        allowed: the user said that it shall be.
        transfer: the training starts from a trained generator.
        say: prints the warning.

    Raises:
        UsageError: a class with fewer than 20 images.
    """
    facts, images = data.facts, getattr(data, "images", None)
    counts = dict(zip(facts.classes, facts.counts, strict=True))
    groups = images.select(lambda item: item.split in ("", "train")).groups() if images is not None else {}
    short = [f"{c} ({n})" for c, n in counts.items() if n < TOO_FEW]
    if short and not (allowed or transfer):
        raise UsageError(
            f"{name} from scratch cannot learn {', '.join(short)} from fewer than {TOO_FEW} images of a class: {INSTEAD}. allow_few=True trains all the same."
        )
    few = [
        f"{c} ({n} images" + (f" of {groups[c]} groups)" if groups.get(c, n) < n else ")")
        for c, n in counts.items()
        if n < FEW or groups.get(c, FEW_GROUPS) < FEW_GROUPS
    ]
    if few and images is not None:
        say(f"few images: {', '.join(few)}: {INSTEAD}.")
