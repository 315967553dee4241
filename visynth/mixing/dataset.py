"""A rendered set as a map-style dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from visynth.core.codec import Array, read
from visynth.core.errors import UsageError, choices
from visynth.core.manifest import Record, Renders, need_folders, read_renders


class SyntheticDataset(Dataset[tuple[Any, int]]):
    """Rendered images as ``(image, label)``.

    Args:
        source: a renders folder.
        transform: applied to the image: a PIL image where PIL holds it (8 bits, 1, 3 or 4 channels), else an array
            ``[H, W, C]``; by default the image is given as it is.
        classes: ``{class name: label}``; by default the place in the generator's classes.

    Raises:
        IntegrityError: the folder is unfinished or files are missing.
        UsageError: classes that do not cover the rendered ones.

    Example:
        >>> SyntheticDataset("no/such")
        Traceback (most recent call last):
        visynth.core.errors.IntegrityError: there is no renders folder no/such. Make one with 'visynth render'.
    """

    def __init__(
        self,
        source: str | Path | Renders,
        transform: Callable[[Any], Any] | None = None,
        classes: Mapping[str, int] | None = None,
    ) -> None:
        self.renders = need_folders(source if isinstance(source, Renders) else read_renders(source))
        self.transform = transform
        names = self.renders.classes
        self.classes = dict(classes) if classes is not None else {name: place for place, name in enumerate(names)}
        missing = [name for name, count in self.renders.counts().items() if count and name not in self.classes]
        if missing:
            raise UsageError(f"classes must give a label to {choices(missing)}; it names {choices(self.classes)}.")

    def __len__(self) -> int:
        return len(self.renders.records)

    def record(self, index: int) -> Record:
        return self.renders.records[index]

    def image(self, index: int) -> Any:
        """The image without transform: PIL where it can be, else an array ``[H, W, C]``."""
        return as_pil(read(self.renders.folder / self.record(index).file_name))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.image(index)
        return (self.transform(image) if self.transform else image), self.classes[self.record(index).label]


def as_pil(image: Array) -> Any:
    """A PIL image of ``[H, W, C]`` uint8 with 1, 3 or 4 channels; any other array as it is."""
    if image.dtype.name != "uint8" or image.shape[2] not in (1, 3, 4):
        return image
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def by_label(records: Sequence[Record]) -> dict[str, list[int]]:
    """Places of the records of each class."""
    places: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault(record.label, []).append(place)
    return places
