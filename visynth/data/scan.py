"""One pass over a set after reading: an image that is needed is decoded once, and all that is asked of it is worked out
then.

Reading decodes every file to check it (see :mod:`visynth.data.looks`); the scan is the second and last time. What it
keeps in memory is small, but for the images that the caller names.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from visynth.core.codec import Array
from visynth.core.members import Member
from visynth.core.pictures import fit_square, to_display
from visynth.data.imageset import ImageSet, Item, fingerprint, in_threads
from visynth.data.masks import EMPTY, Mask, load_mask, mask_problem
from visynth.data.parts import Features, local_features

THUMBNAIL = 96  # pixels


class PackedMasks:
    """The masks of a set by image name, each file read once; one bit a pixel, compressed.

    An image without a mask has none here, nor has one whose mask is empty; the latter are in ``empty``.
    """

    def __init__(self, images: ImageSet) -> None:
        loaded = in_threads(lambda item: _packed(load_mask(images, item)), images.items)
        packed_masks = {i.name: packed for i, packed in zip(images.items, loaded, strict=True) if packed is not None}
        self.empty = frozenset(name for name, (_, bits) in packed_masks.items() if not bits)
        self._packed = {name: packed for name, packed in packed_masks.items() if name not in self.empty}

    def __contains__(self, name: str) -> bool:
        return name in self._packed

    def given(self, name: str) -> bool:
        """Whether an image has a mask, be it an empty one."""
        return name in self._packed or name in self.empty

    def get(self, name: str) -> Mask | None:
        """The mask ``[H, W]`` of an image, or None."""
        if name not in self._packed:
            return None
        (height, width), bits = self._packed[name]
        flat = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=height * width)
        return flat.reshape(height, width).astype(bool)


def _packed(mask: Mask | None) -> tuple[tuple[int, int], bytes] | None:
    if mask is None:
        return None
    return (mask.shape[0], mask.shape[1]), zlib.compress(np.packbits(mask).tobytes(), 1) if mask.any() else b""


@dataclass(frozen=True, eq=False)
class Scanned:
    """Facts of one image.

    Attributes:
        member: its fingerprint.
        mask_problem: why its mask should not be pasted, or None.
        image: pixels ``[H, W, C]`` if they were to be kept.
        features: local features if they were asked for.
        thumbnail: ``[96, 96, 3]`` uint8 if it was asked for.
    """

    member: Member
    mask_problem: str | None = None
    image: Array | None = None
    features: Features | None = None
    thumbnail: Array | None = None


@dataclass
class Scan:
    """A set's images and masks as far as they were looked into.

    Attributes:
        images: the set, with groups.
        masks: of it.
        known: by name, what the pass over the images found.
    """

    images: ImageSet
    masks: PackedMasks
    known: dict[str, Scanned] = field(default_factory=dict)

    def read(
        self,
        *,
        keep: Collection[str] = (),
        check: Collection[str] = (),
        match: Collection[str] = (),
        show: Collection[str] = (),
    ) -> None:
        """Decode every image that is named, once.

        Args:
            keep: names of images whose pixels stay in memory.
            check: those whose masks are judged, see :func:`visynth.data.masks.mask_problem`.
            match: those whose local features are wanted.
            show: those of which a thumbnail is wanted.
        """

        def look(item: Item) -> Scanned:
            image, name = self.images.image(item), item.name
            mask = self.masks.get(name) if name in check else None
            return Scanned(
                fingerprint(item, image, item.split or "train"),
                None if mask is None else mask_problem(image, mask),
                image if name in keep else None,
                local_features(image) if name in match else None,
                fit_square(to_display(image), THUMBNAIL) if name in show else None,
            )

        wanted = {*keep, *check, *match, *show}
        items = [item for item in self.images.items if item.name in wanted]
        self.known |= dict(zip((i.name for i in items), in_threads(look, items), strict=True))

    def is_kept(self, name: str) -> bool:
        """Whether an image's pixels are in memory."""
        return name in self.known and self.known[name].image is not None

    def kept(self, name: str) -> Array:
        """The pixels of an image that was to be kept."""
        image = self.known[name].image
        if image is None:
            raise KeyError(f"{name} was not kept in memory")
        return image

    def problems(self, names: Iterable[str]) -> dict[str, str]:
        """Masks of some images that should not be pasted, with the reason."""
        reasons = {n: EMPTY if n in self.masks.empty else self.known[n].mask_problem for n in names if n in self.known}
        return {name: why for name, why in reasons.items() if why is not None}

    def features(self) -> Mapping[str, Features]:
        """Local features by name."""
        return {name: s.features for name, s in self.known.items() if s.features is not None}

    def members(self) -> list[Member]:
        """Fingerprints of all images of the set; images without a split are training images."""
        return in_threads(
            lambda i: self.known[i.name].member if i.name in self.known else self.images.member(i, i.split or "train"),
            self.images.items,
        )
