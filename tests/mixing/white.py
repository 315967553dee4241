"""Synthetic samples that can be told from real ones: pure white images of one class, rendered or generated."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from visynth.core.codec import encode_png
from visynth.core.files import hash_file, write_json
from visynth.core.manifest import (
    MEMBERS,
    METADATA,
    PLAN,
    SCHEMA,
    SUMMARY,
    SUMMARY_SCHEMA,
    Record,
    Renders,
    encode_mask,
    read_renders,
)
from visynth.generators.base import Generator, Samples, Spec

BOX = (4.0, 4.0, 12.0, 12.0)


Side = int | tuple[int, int]


def pair(side: Side) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def region(side: Side) -> np.ndarray:
    mask = np.zeros(pair(side), bool)
    mask[4:12, 4:12] = True
    return mask


def write_finished(folder: Path, records: list[Record]) -> None:
    """Manifest and summary of a set whose files are there."""
    (folder / METADATA).write_text("".join(record.to_line() + "\n" for record in records))
    counts = {name: sum(r.label == name for r in records) for name in sorted({r.label for r in records})}
    part = {"name": METADATA, "lines": len(records), "sha256": hash_file(folder / METADATA)}
    write_json(
        folder / SUMMARY,
        {"schema": SUMMARY_SCHEMA, "plan": "", "total": len(records), "counts": counts, "failed": [], "root": "",
         "manifest": [part], "rounds": {}},
    )  # fmt: skip


def white_set(
    folder: Path, counts: dict[str, int], classes: tuple[str, ...] | None = None, side: Side = 16, channels: int = 1
) -> Renders:
    """A finished renders folder of white images, each with a mask and a box."""
    data = encode_png(np.full((*pair(side), channels), 255, np.uint8))
    records = []
    for name, count in counts.items():
        for number in range(count):
            file = folder / name / f"{number:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            records.append(
                Record(
                    f"{name}/{file.name}", name, number, "0" * 64, {}, (), encode_mask(region(side)), (BOX,), *pair(side)[::-1],
                    sha256(data).hexdigest(),
                )
            )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, {"schema": SCHEMA, "classes": list(classes or counts), "purpose": "training"})
    (folder / MEMBERS).write_text("")
    write_finished(folder, records)
    return read_renders(folder)


class White(Generator):
    """The same, made on demand; it keeps how it was called."""

    def __init__(self, classes: tuple[str, ...] = ("spot",), side: Side = 16, channels: int = 1) -> None:
        super().__init__(Spec("white", {}, classes, channels, pair(side), micro_batch=1))
        self.calls: list[dict[str, object]] = []

    def _sample(self, seeds, labels, **options):
        self.calls.append(
            {
                "seeds": list(seeds),
                "grad": torch.is_grad_enabled(),
                "inference": torch.is_inference_mode_enabled(),
                "autocast": torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
            }
        )
        side = self.spec.size
        count = len(seeds)
        return Samples(
            torch.full((count, self.spec.channels, *side), 255, dtype=torch.uint8),
            torch.from_numpy(region(side)).expand(count, -1, -1),
            [torch.tensor([BOX])] * count,
        )

    def weights(self):
        return {"nothing": torch.zeros(1)}

    @classmethod
    def build(cls, spec, weights, device):
        return cls(spec.classes, spec.size, spec.channels)
