"""Settings of composition per class: inferred from the shape of its masks, or set by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import UsageError, choices

METHODS = ("mask", "nsa", "perlin", "control")
PLACES = ("context", "near")
BLENDS = ("feather", "poisson", "mixed", "hard")


@dataclass(frozen=True)
class Settings:
    """Composition of one class.

    Attributes:
        method: ``"mask"`` cuts real defects by mask; ``"nsa"`` and ``"perlin"`` cut random regions of images of the
            class; ``"control"`` does to defect-free images what "mask" does, with defect-free pixels.
        blend: ``"feather"``, ``"poisson"``, ``"mixed"`` (Poisson with mixed gradients) or ``"hard"`` (the pixels inside
            the mask as they are: for line art and printed boards, where a soft edge makes values that no camera gives).
        place: ``"context"``: where the surroundings fit; ``"near"``: within ``shift`` of the defect's own place.
        context: width of the surroundings that are compared, in pixels.
        candidates: best places of which one is drawn.
        misfit: largest error of a place, see :class:`visynth.generators.context.Fit`; beyond it another defect and other
            backgrounds are tried, a bounded number of times.
        shift: largest move from the defect's own place, in pixels.
        feather: width of the soft edge, in pixels.
        scale: smallest and largest factor of size.
        aspect: largest change of the ratio of its sides, as a share.
        rotate: largest angle, in degrees, either way.
        bend: how far parts of the defect move against each other, as a share of its larger side (standard deviation).
        contrast: largest change of the defect's contrast to its surroundings, as a share.
        flip: whether defects may be mirrored in either direction.
        turn: whether they may be turned by a quarter.
        ring: width of the surroundings whose mean and standard deviation are matched, in pixels.
    """

    method: str = "mask"
    blend: str = "feather"
    place: str = "context"
    context: int = 20
    candidates: int = 25
    misfit: float = 0.9
    shift: int = 90
    feather: float = 2.5
    scale: tuple[float, float] = (0.7, 1.4)
    aspect: float = 0.1
    rotate: float = 8.0
    bend: float = 0.06
    contrast: float = 0.15
    flip: bool = True
    turn: bool = False
    ring: int = 15

    def __post_init__(self) -> None:
        problems = []
        if self.method not in METHODS:
            problems.append(f"method must be one of {choices(METHODS)}, but got {self.method!r}")
        if self.blend not in BLENDS:
            problems.append(f"blend must be one of {choices(BLENDS)}, but got {self.blend!r}")
        if self.place not in PLACES:
            problems.append(f"place must be one of {choices(PLACES)}, but got {self.place!r}")
        small = [
            n for n in ("shift", "feather", "aspect", "rotate", "bend", "contrast", "misfit") if getattr(self, n) < 0
        ]
        small += [name for name in ("ring", "context", "candidates") if getattr(self, name) < 1]
        if small:
            given = ", ".join(f"{name} {getattr(self, name)}" for name in small)
            problems.append(
                f"ring, context and candidates must be at least 1, all other numbers at least 0, but got {given}"
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


def from_masks(masks: Sequence[NDArray[np.bool_]], *, hard: bool = False) -> Settings:
    """Settings for a class by the sizes of its masks.

    A defect becomes at most as small and as large as others of its class are, but a tenth always. ``hard`` is for images of
    few values: nothing is bent, scaled, matched or blended there, so that no new value comes up; quarter turns vary it.
    """
    if hard:
        return Settings(
            blend="hard", feather=0.0, scale=(1.0, 1.0), aspect=0.0, rotate=0.0, bend=0.0, contrast=0.0, turn=True,
            context=7, candidates=12, misfit=0.05,
        )  # fmt: skip
    sizes = np.sqrt([float(mask.sum()) for mask in masks])
    middle = max(float(np.median(sizes)), 1.0)
    default = Settings()
    low = min(max(default.scale[0], float(sizes.min()) / middle), 0.9)
    high = max(min(default.scale[1], float(sizes.max()) / middle), 1.1)
    return Settings(scale=(round(low, 3), round(high, 3)))
