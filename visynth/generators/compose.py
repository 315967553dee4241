"""The composition generator: real defect pixels on defect-free images, with exact masks, boxes and parents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError
from visynth.core.pictures import box
from visynth.generators import blend as blending
from visynth.generators.arrangement import Background, Defect, Placed, anywhere, cut, in_context, mirrored
from visynth.generators.base import Generator, Samples, Spec
from visynth.generators.compose_settings import Settings

Array = NDArray[Any]
Mask = NDArray[np.bool_]
SEEN = 6  # pixels of its mask that a composite must change, by more than
CHANGE = 2  # grey levels of 256 (any change counts in images pasted hard)
REDRAWS = 20  # places tried until a defect can be seen
ATTEMPTS = 20  # defects tried for one image before the last resort; the latter half as they are, at any place
SEARCHES = 4  # of them whose surroundings are looked for, if they fit nowhere; the best place found is taken then


@dataclass(frozen=True)
class Arrangement:
    """A defect in its place: ``mask [h, w]`` with its top left corner at ``where`` of the background.

    ``control`` is the background whose defect-free pixels take the defect's place, for seam controls; ``contrast`` a factor
    of what stands out from the surroundings; ``error`` says how well these fit (NaN where they were not compared).
    """

    ground: Background
    source: Defect
    patch: Array
    mask: Mask
    where: tuple[int, int]
    settings: Settings
    control: Background | None = None
    contrast: float = 1.0
    error: float = float("nan")

    @property
    def parents(self) -> tuple[str, ...]:
        return self.ground.name, (self.source if self.control is None else self.control).name

    def placed(self) -> Mask:
        """The mask on the whole background."""
        full = np.zeros(self.ground.image.shape[:2], bool)
        top, left = self.where
        full[top : top + self.mask.shape[0], left : left + self.mask.shape[1]] = self.mask
        return full

    def labelled(self) -> Mask:
        """The defect's pixels: none where defect-free pixels take its place."""
        return self.placed() if self.control is None else np.zeros(self.ground.image.shape[:2], bool)


class Composition(Generator):
    """Cuts real defects by mask and sets them into defect-free images of the training split. No training.

    Each image takes one defect and one background, drawn evenly over groups and then over images, so that a tile
    shot twelve times counts no more than one shot twice. The defect is bent, scaled and mirrored as its class's
    :class:`Settings` allow, goes where its surroundings fit (:mod:`visynth.generators.context`), is brought to the brightness
    of its new surroundings, and blended in. The mask is exact: it is the placed mask, not a guess from the result.
    """

    options: ClassVar = {
        "poisson_limit": 40_000
    }  # masks with more pixels are feathered: the sparse solve would take seconds

    def __init__(
        self,
        spec: Spec,
        defects: Sequence[Defect],
        backgrounds: Sequence[Background],
        settings: Sequence[Settings],
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, **kwargs)
        self.defects, self.backgrounds, self.settings = tuple(defects), tuple(backgrounds), tuple(settings)
        self._by_label = [
            seeding.by_group([d for d in defects if d.label == label]) for label in range(len(spec.classes))
        ]
        self._all_defects = seeding.by_group(defects)
        self._grounds = seeding.by_group(backgrounds)

    # -- contract ------------------------------------------------------------------------------------------------

    def _sample(self, seeds: Sequence[int], labels: Sequence[int], **options: Any) -> Samples:
        return self._gather([self.compose(seed, label, **options) for seed, label in zip(seeds, labels, strict=True)])

    def _gather(self, composites: Sequence[tuple[Array, Mask, tuple[str, ...]]]) -> Samples:
        """Images of their own sizes on one canvas, with masks, boxes and parents."""
        height, width = self.spec.size
        images = np.zeros((len(composites), self.spec.channels, height, width), self.spec.dtype)
        masks = np.zeros((len(composites), height, width), bool)
        for row, (image, mask, _) in enumerate(composites):
            images[row, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
            masks[row, : mask.shape[0], : mask.shape[1]] = mask
        return Samples(
            images=torch.from_numpy(images),
            masks=torch.from_numpy(masks),
            boxes=[torch.tensor(box(mask), dtype=torch.float32).reshape(-1, 4) for _, mask, _ in composites],
            parents=[parents for _, _, parents in composites],
            sizes=torch.tensor([image.shape[:2] for image, _, _ in composites], dtype=torch.int64),
        )

    def weights(self) -> dict[str, torch.Tensor]:
        tensors = {f"background.{i}": torch.from_numpy(b.image.copy()) for i, b in enumerate(self.backgrounds)}
        for i, defect in enumerate(self.defects):
            tensors[f"defect.{i}.image"] = torch.from_numpy(defect.image.copy())
            tensors[f"defect.{i}.mask"] = torch.from_numpy(defect.mask.astype(np.uint8))
            if defect.outside is not None:
                tensors[f"defect.{i}.outside"] = torch.from_numpy(defect.outside.astype(np.uint8))
        return tensors

    @classmethod
    def build(cls, spec: Spec, weights: dict[str, torch.Tensor], device: str | torch.device) -> Composition:
        """From spec and weights. Composition is numpy work on the CPU; ``device`` changes nothing."""
        return cls(spec, *parts(spec, weights))

    # -- one image -----------------------------------------------------------------------------------------------

    def compose(self, seed: int, label: int, poisson_limit: int) -> tuple[Array, Mask, tuple[str, ...]]:
        """One image ``[h, w, C]``, its mask ``[h, w]`` and the names of the images it was made from.

        A defect that cannot be seen where it came to stand (black on black) would teach that nothing is a defect: its
        place is drawn anew.

        Raises:
            DataError: no defect of the class could be seen in any of 20 places.
        """
        for redraw in range(REDRAWS):
            plan = self.arrange(seed, label, redraw)
            patch = plan.patch
            if plan.control is not None:
                patch = _same_place(plan.control.image, plan.where, patch.shape[:2])
            image = _set_in(plan, patch, poisson_limit)
            labelled = plan.labelled()
            if plan.control is not None or _can_be_seen(image, plan.ground.image, labelled, plan.settings):
                return image, labelled, plan.parents
        raise DataError(
            f"no {self.classes[label]} could be seen in {REDRAWS} places: the pixels under its masks look like the "
            "defect-free images (seed "
            f"{seed}, for instance {plan.source.name} on {plan.ground.name}). Check the masks, or leave this class out "
            "of composition."
        )

    def arrange(self, seed: int, label: int, redraw: int = 0) -> Arrangement:
        """Layout of one composite: a background, a defect and its place; ``redraw`` counts the places drawn
        before. It draws no pixel."""
        generator = seeding.rng(seed, f"compose/{label}" + (f"/{redraw}" if redraw else ""))
        control = self.settings[label].method == "control"
        placed, source, settings = self._placed(label, control, generator)
        other = seeding.draw_even(self._grounds, generator) if control else None
        contrast = 1.0 + generator.uniform(-settings.contrast, settings.contrast)
        piece = placed.piece
        return Arrangement(
            placed.ground, source, piece.image, piece.mask, placed.where, settings, other, contrast, placed.error
        )

    def _placed(self, label: int, control: bool, generator: np.random.Generator) -> tuple[Placed, Defect, Settings]:
        """A defect of the class in a place that fits; after some that do not, the best of them; after that any place."""
        best: tuple[Placed, Defect, Settings] | None = None
        for attempt in range(ATTEMPTS):
            source = seeding.draw_even(self._all_defects if control else self._by_label[label], generator)
            settings = self.settings[source.label]  # a control copies the seams of the defect that it stands in for
            searched = settings.place == "context" and settings.method == "mask"
            if searched and attempt >= SEARCHES and best is not None:
                break
            early = attempt < ATTEMPTS // 2
            piece = cut(source, settings, generator, shaped=early)
            ground = seeding.draw_even(self._grounds, generator)
            if searched and early:
                placed = in_context(piece, ground, settings, generator)
            else:
                shift = settings.shift if early else 10**6
                placed = anywhere(mirrored(piece, settings, generator), source.home, ground, shift, generator)
            if placed is None:
                continue
            if not placed.error > settings.misfit:
                return placed, source, settings
            if best is None or placed.error < best[0].error:
                best = placed, source, settings
        # Luck must not decide whether an image exists: at last the first pair in order that fits.
        return best or self._first_fit(label, control)

    def _first_fit(self, label: int, control: bool) -> tuple[Placed, Defect, Settings]:
        """The first defect and background in order that go together, as it is, wherever there is place."""
        still = seeding.rng(0, "first fit")
        for source in self.defects if control else [d for d in self.defects if d.label == label]:
            settings = self.settings[source.label]
            for ground in self.backgrounds:
                piece = cut(source, settings, still, shaped=False)
                placed = anywhere(piece, source.home, ground, 10**6, still)
                if placed is not None:
                    return placed, source, settings
        raise DataError(
            f"there is no place for a {self.classes[label]} defect on any background: the defects are larger than the "
            "defect-free images. Leave this class out or give larger images."
        )


def parts(spec: Spec, weights: dict[str, torch.Tensor]) -> tuple[list[Defect], list[Background], list[Settings]]:
    """Defects, backgrounds and settings again, from spec and weights."""
    entries = spec.arguments
    defects = [
        Defect(
            d["name"],
            d["group"],
            d["label"],
            weights[f"defect.{i}.image"].numpy(),
            weights[f"defect.{i}.mask"].numpy().astype(bool),
            (d["home"][0], d["home"][1]),
            weights[f"defect.{i}.outside"].numpy().astype(bool) if f"defect.{i}.outside" in weights else None,
        )
        for i, d in enumerate(entries["defects"])
    ]
    backgrounds = [
        Background(b["name"], b["group"], weights[f"background.{i}"].numpy(), bool(b["cut"]))
        for i, b in enumerate(entries["backgrounds"])
    ]
    return defects, backgrounds, [Settings.from_json(s) for s in entries["settings"]]


def _set_in(plan: Arrangement, patch: Array, poisson_limit: int) -> Array:
    """The whole background with the patch in it; pixels beyond mask and feather are the background's own."""
    top, left = plan.where
    mask, ground, settings = plan.mask, plan.ground.image, plan.settings
    tall, wide = mask.shape
    # Work on the patch's window alone: large images cost no more than small ones.
    part = np.s_[top : top + tall, left : left + wide]
    if settings.blend == "hard":
        image = ground.copy()
        image[part][mask] = patch[mask]
        return image
    target = ground[part].astype(np.float32)
    around = blending.ring(mask, settings.ring)
    matched = blending.match_ring(patch.astype(np.float32), around, target, around)
    if around.any():
        level = target[around].mean(axis=0)
        matched = level + (matched - level) * np.float32(plan.contrast)
    if settings.blend == "feather" or mask.sum() > poisson_limit:
        mixed = blending.feather(matched, target, mask, settings.feather)
    else:
        region = blending.grow(mask, round(settings.feather))
        mixed = blending.poisson(matched, target, region, mixed=settings.blend == "mixed")
    image = ground.copy()
    top_value = np.iinfo(ground.dtype).max
    image[part] = np.clip(np.rint(mixed), 0, top_value).astype(ground.dtype)
    return image


def _can_be_seen(image: Array, ground: Array, mask: Mask, settings: Settings) -> bool:
    """Whether enough pixels under the mask differ from the background that was there."""
    least = 0.0 if settings.blend == "hard" else CHANGE * np.iinfo(image.dtype).max / 255
    change = np.abs(image[mask].astype(np.float32) - ground[mask].astype(np.float32)).max(axis=1, initial=0)
    return int((change > least).sum()) >= min(SEEN, int(mask.sum()))


def _same_place(image: Array, where: tuple[int, int], shape: tuple[int, int]) -> Array:
    """A window of ``shape`` at ``where``, moved inside and reflected where the image is smaller."""
    rows = np.abs(np.arange(where[0], where[0] + shape[0]))
    columns = np.abs(np.arange(where[1], where[1] + shape[1]))
    fold = [
        np.where(i % (2 * n) >= n, 2 * n - 1 - i % (2 * n), i % (2 * n))
        for i, n in ((rows, image.shape[0]), (columns, image.shape[1]))
    ]
    return np.asarray(image[fold[0]][:, fold[1]])
