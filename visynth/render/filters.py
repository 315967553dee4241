"""Filters that refuse rendered images; refused ones are drawn again."""

from __future__ import annotations

from typing import Any

from visynth.core import members as members_file
from visynth.core.codec import Array
from visynth.core.files import hash_json
from visynth.core.members import FINE, NEAR, Member, fine_hash, perceptual_hash, pixel_hash


class NearDuplicates:
    """Refuses images that the leak guard would take for a real image behind the generator: equal pixels, or perceptual
    hashes and finer structure that agree (:mod:`visynth.core.members`).

    For generators that make whole images. Compositions and inpainted images keep their background, which is a real one.

    Args:
        generator: its members are what is compared with.
    """

    def __init__(self, generator: Any) -> None:
        self.members = [m for m in generator.members if m.split == "train"]
        self.digest = hash_json(["near_duplicates", NEAR, FINE, members_file.merkle_root(self.members)])

    def refusal(self, image: Array, label: str) -> str | None:
        """Why an image ``[H, W, C]`` is refused, or None."""
        own = Member("", label, "", "train", "not a file", pixel_hash(image), perceptual_hash(image), fine_hash(image))
        same, like = members_file.meetings([own], self.members)
        return "a near-duplicate of a training image" if same or like else None
