"""The pictures of a trial's report: composites beside what they were made from and the nearest real images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from visynth.data.decode import decode
from visynth.manifest import Record, Renders, decode_mask
from visynth.pictures import outline, to_display
from visynth.report import gallery, text

if TYPE_CHECKING:
    from visynth.trial import Workbench

SHOWN = 3  # composites of each class


def galleries(renders: Renders, bench: Workbench) -> list[dict[str, Any]]:
    """One gallery per composed class: rows of composite, its mask, defect parent, background, nearest and second nearest real."""
    blocks: list[dict[str, Any]] = [
        text(
            "Each row: the composite, its exact mask, the real image that the defect was cut from, the defect-free image that it was "
            "set into, and the two real images nearest to it in feature space. Look for seams, for defects where none can be, and for copies."
        )
    ]
    resolution = bench.bank.resolutions[0]
    for label in renders.classes:
        chosen = [r for r in renders.records if r.label == label][:SHOWN]
        pictures = [decode(renders.folder / r.file_name) for r in chosen]
        rows = bench.bank.add(pictures, cache=False)
        features = bench.bank.get(resolution, "max")
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        captions: list[str] = []
        shown: list[Any] = []
        for record, picture, row in zip(chosen, pictures, rows, strict=True):
            likeness = unit[: len(bench.items)] @ unit[row]
            first, second = (int(i) for i in np.argsort(-likeness)[:2])
            shown += [
                to_display(picture),
                _marked(record, to_display(picture)),
                *(_parent(bench, name) for name in _parents(record)),
            ]
            shown += [to_display(bench.sources[i].image) for i in (first, second)]
            captions += [f"{label}, composite", "its mask", *(f"parent: {name}" for name in _parents(record))]
            captions += [
                f"{word} real: {bench.sources[i].name} (cosine {likeness[i]:.3f})"
                for word, i in (("nearest", first), ("second", second))
            ]
        blocks.append(gallery(captions, shown, columns=6))
    return blocks


def _parents(record: Record) -> list[str]:
    """Defect first, then background."""
    return [record.parents[1], record.parents[0]]


def _parent(bench: Workbench, name: str) -> Any:
    return to_display(bench.images.image(next(i for i in bench.images.items if i.name == name)))


def _marked(record: Record, picture: Any) -> Any:
    return picture if record.mask is None else outline(picture, decode_mask(record.mask))
