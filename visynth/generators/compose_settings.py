"""Settings of composition per class: inferred from the shape of its masks, or set by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import UsageError, choices

METHODS = ("mask", "nsa", "perlin", "control")
BLENDS = ("feather", "poisson", "mixed", "hard")
THIN = 6.0  # area of the mask over the area of its largest inscribed disc, from which on it is a line


@dataclass(frozen=True)
class Settings:
    """Composition of one class.

    Attributes:
        method: ``"mask"`` cuts real defects by mask; ``"nsa"`` and ``"perlin"`` cut random regions of images of the
            class; ``"control"`` does to defect-free images what "mask" does, with defect-free pixels.
        blend: ``"feather"``, ``"poisson"``, ``"mixed"`` (Poisson with mixed gradients) or ``"hard"`` (the pixels inside
            the mask as they are: for line art and printed boards, where a soft edge makes values that no camera gives).
        shift: largest move from the defect's own place, in pixels.
        feather: width of the soft edge, in pixels.
        scale: smallest and largest factor of size.
        flip: whether defects may be mirrored in either direction.
        ring: width of the surroundings whose mean and standard deviation are matched, in pixels.
    """

    method: str = "mask"
    blend: str = "feather"
    shift: int = 90
    feather: float = 7.0
    scale: tuple[float, float] = (0.8, 1.25)
    flip: bool = True
    ring: int = 15

    def __post_init__(self) -> None:
        problems = []
        if self.method not in METHODS:
            problems.append(f"method must be one of {choices(METHODS)}, but got {self.method!r}")
        if self.blend not in BLENDS:
            problems.append(f"blend must be one of {choices(BLENDS)}, but got {self.blend!r}")
        if self.shift < 0 or self.feather < 0 or self.ring < 1:
            problems.append(
                f"shift {self.shift} and feather {self.feather} must be at least 0, ring {self.ring} at least 1"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            problems.append(f"scale must be (smallest, largest) with 0 < smallest <= largest, but got {self.scale}")
        if problems:
            raise UsageError("composition settings: " + "; ".join(problems) + ".")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "scale": list(self.scale)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        known = {field.name for field in fields(cls)}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise UsageError(
                f"composition settings {choices(unknown)} are unknown; there are {choices(sorted(known))}."
            )
        return cls(**{**values, **({"scale": (values["scale"][0], values["scale"][1])} if "scale" in values else {})})


def thinness(mask: NDArray[np.bool_]) -> float:
    """Area of a mask over the area of the largest disc inside it: 1 for a disc, large for a line.

    Example:
        >>> line = np.zeros((40, 40), bool); line[20, 2:38] = True
        >>> thinness(line) > THIN
        True
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    radius = float(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max())
    return float(mask.sum()) / max(np.pi * radius**2, 1.0)


def from_masks(masks: Sequence[NDArray[np.bool_]], *, hard: bool = False) -> Settings:
    """Settings for a class: thin defects (cracks) hardly move and get narrow seams, compact ones move freely.

    ``hard`` is for images of few values: nothing is scaled, matched or blended there, so that no new value comes up.
    A crack follows the edges and grain around it, so a wide shift or a broad feather makes it stand out as false.
    """
    if hard:
        return Settings(blend="hard", feather=0.0, scale=(1.0, 1.0))
    if float(np.median([thinness(mask) for mask in masks])) >= THIN:
        return Settings(blend="mixed", shift=10, feather=2.0, scale=(0.9, 1.1))
    return Settings()
