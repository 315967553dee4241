"""The pictures of a trial's report: made images beside what they were made from and the nearest real images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.pictures import outline, to_display
from visynth.core.report import gallery, text

if TYPE_CHECKING:
    from visynth.generators.base import Generator
    from visynth.jobs.trial.bench import Workbench

SHOWN = 3  # images of each class
EXPLAINED = (
    "Each row: the made image; where it has one its exact mask, the real image that the defect (or its shape) was taken from and "
    "the defect-free image that it was set into; and the two real images nearest to it in feature space. Look for seams, for "
    "defects where none can be, and for copies."
)


def galleries(generator: Generator, bench: Workbench, seed: int) -> list[dict[str, Any]]:
    """One gallery per class: rows of made image, its mask, defect parent, background, nearest and second nearest real."""
    blocks: list[dict[str, Any]] = [text(EXPLAINED)]
    resolution = bench.bank.resolutions[0]
    for label, name in enumerate(generator.classes):
        samples = generator.sample([seeding.derive("gallery", seed, name, k) for k in range(SHOWN)], [label] * SHOWN)
        pictures = [samples.crop(k).permute(1, 2, 0).numpy() for k in range(SHOWN)]
        rows = bench.bank.add(pictures, cache=False)
        features = bench.bank.get(resolution, "max")
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        captions: list[str] = []
        shown: list[Any] = []
        for k, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
            likeness = unit[: len(bench.items)] @ unit[row]
            near = [int(i) for i in np.argsort(-likeness)[:2]]
            parents = (
                list(samples.parents[k])[::-1] if samples.parents else []
            )  # the defect's first, then the background
            mask = None if samples.masks is None else samples.masks[k, : picture.shape[0], : picture.shape[1]].numpy()
            shown += [to_display(picture)] + ([] if mask is None else [outline(to_display(picture), mask)])
            shown += [_real(bench, parent) for parent in parents] + [to_display(bench.sources[i].image) for i in near]
            captions += [
                f"{name}, made",
                *([] if mask is None else ["its mask"]),
                *(f"parent: {parent}" for parent in parents),
            ]
            captions += [f"nearest real: {bench.sources[i].name} (cosine {likeness[i]:.3f})" for i in near]
        blocks.append(gallery(captions, shown, columns=len(shown) // SHOWN))
    return blocks


def _real(bench: Workbench, name: str) -> Any:
    return to_display(bench.images.image(next(i for i in bench.images.items if i.name == name)))
