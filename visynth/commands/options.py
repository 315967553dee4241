"""Options that several commands share, said once. Their flags stand flat beside the command's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visynth.data.imageset import ImageSet


@dataclass(frozen=True)
class DataOptions:
    """The real images and how to read them.

    Args:
        data: class folders (with train/, val/, test/ above them if held out), a .csv or .jsonl list, or a COCO .json.
        masks: folder of masks that mirrors the images' layout.
        mask_suffix: what mask files have after their images' names, where it is not _mask, _label, _gt or _seg.
        groups: CSV with columns file,group; images of one group (part, scene, patient) stay together.
        group_pattern: regular expression on image names whose first group is the group.
        max_bad_fraction: share of unusable files up to which they are left out.
    """

    data: str
    masks: str | None = None
    mask_suffix: str | None = None
    groups: str | None = None
    group_pattern: str | None = None
    max_bad_fraction: float = 0.05

    def read(self) -> ImageSet:
        """As :func:`visynth.read_images`; notes and unusable files are printed on stderr."""
        from visynth.data.reading import read_images, tell

        images = read_images(
            self.data,
            masks=self.masks,
            mask_suffix=self.mask_suffix,
            groups=self.groups,
            group_pattern=self.group_pattern,
            max_bad_fraction=self.max_bad_fraction,
        )
        tell(images)
        return images

    def grouped(self, images: ImageSet) -> bool:
        """Whether the user said which images belong together."""
        return bool(self.groups or self.group_pattern) or any(item.group for item in images.items)

    @property
    def title(self) -> str:
        """Name of the set in reports: its folder, with the one above where that says more."""
        path = Path(self.data).resolve()
        return f"{path.parent.name}/{path.name}" if path.name in ("images", "train") else path.name
