"""Learned defects in real images: a denoiser that knows the surroundings paints inside the mask, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from visynth.core import seeds as seeding
from visynth.core.pictures import box
from visynth.generators.arrangement import Background, Defect
from visynth.generators.base import Samples, Spec
from visynth.generators.blend import grow
from visynth.generators.compose import Array, Composition, Mask, parts
from visynth.generators.compose_settings import Settings
from visynth.generators.diffusion import OPTIONS, check_options, finite, run_sampler, to_integers, to_values
from visynth.networks.unet import Denoiser

GROW = 2  # pixels painted around the mask, because outlines drawn by hand cut through a defect's soft edge
OVERLAP = 4  # of a window's side, the part that neighbouring windows share


class Inpainting(Composition):
    """As :class:`Composition`, seed for seed with the same background, mask and place, but with new pixels in the mask.

    Backgrounds are real defect-free images; the mask is a real one, mirrored, scaled and shifted. The network sees a
    window at native scale with the mask cut out, and fills it as the class looks. A mask larger than the window is
    filled window by window, each seeing what the last one painted. Outside of the mask, grown by 2 pixels, the image
    is the background's own, bit for bit.
    """

    options: ClassVar = {**OPTIONS, "steps": 10}

    def __init__(
        self,
        spec: Spec,
        defects: Sequence[Defect],
        backgrounds: Sequence[Background],
        settings: Sequence[Settings],
        network: Denoiser,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, defects, backgrounds, settings, **kwargs)
        self.network = network.eval().requires_grad_(False)

    def _sample(self, seeds: Sequence[int], labels: Sequence[int], **options: Any) -> Samples:
        check_options(options)
        side = int(self.spec.arguments["window"])
        plans = [self.arrange(seed, label) for seed, label in zip(seeds, labels, strict=True)]
        canvases = [pad_to(plan.ground.image, side) for plan in plans]
        regions = [
            pad_mask(grow(plan.placed(), GROW), canvas.shape[:2]) for plan, canvas in zip(plans, canvases, strict=True)
        ]
        todo = [windows(region, side) for region in regions]
        # The batch keeps its size in every round, so that pixels do not depend on the other images' masks.
        valid = torch.ones(len(seeds), dtype=torch.bool)
        for turn in range(max(map(len, todo))):
            valid &= self._paint(seeds, labels, canvases, regions, todo, turn, side, options)
        painted = []
        for plan, canvas in zip(plans, canvases, strict=True):
            height, width = plan.ground.image.shape[:2]
            painted.append((canvas[:height, :width], plan.labelled(), plan.parents))
        return replace(self._gather(painted), valid=valid)

    def _paint(
        self,
        seeds: Sequence[int],
        labels: Sequence[int],
        canvases: list[Array],
        regions: list[Mask],
        todo: list[list[tuple[int, int]]],
        turn: int,
        side: int,
        options: dict[str, Any],
    ) -> Tensor:
        """Fill window number ``turn`` of every image, in place; gives whether each came out finite, bool ``[N]``."""
        channels, device = self.spec.channels, self.network.of_class.weight.device
        crops = np.zeros((len(seeds), channels, side, side), self.spec.dtype)
        holes = np.zeros((len(seeds), 1, side, side), bool)
        for row, own in enumerate(todo):
            if turn < len(own):
                part = _part(own[turn], side)
                crops[row], holes[row, 0] = canvases[row][part].transpose(2, 0, 1), regions[row][part]
        known = to_values(torch.from_numpy(crops)).to(device)
        mask = torch.from_numpy(holes).to(device, torch.float32)
        condition, level = surroundings(known, mask)
        noise = seeding.noise(seeds, (channels, side, side), f"inpaint/{turn}").to(device)
        painted = run_sampler(self.network, noise, torch.tensor(list(labels), device=device), condition, **options)
        filled = to_integers(painted + level, self.spec.dtype).cpu().numpy()
        for row, own in enumerate(todo):
            if turn < len(own):
                part = _part(own[turn], side)
                hole = holes[row, 0]
                canvases[row][part][hole] = filled[row].transpose(1, 2, 0)[hole]
                regions[row][part] = False  # known from now on
        return finite(painted)

    def weights(self) -> dict[str, Tensor]:
        network = {f"network.{name}": t.detach().cpu() for name, t in self.network.state_dict().items()}
        return {**super().weights(), **network}

    @classmethod
    def build(cls, spec: Spec, weights: dict[str, Tensor], device: str | torch.device) -> Inpainting:
        side = int(spec.arguments["window"])
        with torch.random.fork_rng(devices=[]):
            network = Denoiser(spec.channels, len(spec.classes), (side, side), **spec.arguments["network"])
        own = {name.removeprefix("network."): t for name, t in weights.items() if name.startswith("network.")}
        network.load_state_dict(own)
        return cls(spec, *parts(spec, weights), network.to(device))


def surroundings(known: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The network's conditioning, and the brightness that everything is measured from.

    Args:
        known: windows ``[N, C, S, S]`` in [-1, 1].
        mask: ``[N, 1, S, S]``, 1 where nothing is known.

    Returns:
        condition ``[N, C + 1, S, S]``: the window around its own level with a hole of zeros, and the mask; and the
        level ``[N, C, 1, 1]``, the mean of the known pixels, so that a dark part and a bright one look alike to the
        network.

    Example:
        >>> hole = torch.zeros(1, 1, 2, 2); hole[0, 0, 0, 0] = 1
        >>> condition, level = surroundings(torch.full((1, 1, 2, 2), 0.5), hole)
        >>> float(level), condition[0, 0].abs().max().item()
        (0.5, 0.0)
    """
    free = 1 - mask
    level = (known * free).sum(dim=(2, 3), keepdim=True) / free.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return torch.cat([(known - level) * free, mask], dim=1), level


def windows(region: Mask, side: int) -> list[tuple[int, int]]:
    """Top left corners of windows that together cover a region, in reading order.

    One window around its middle where the region fits, else rows and columns of windows that overlap by a quarter,
    without those that hold none of it.

    Example:
        >>> area = np.zeros((100, 100), bool); area[40:60, 10:90] = True
        >>> windows(area, 64)
        [(18, 2), (18, 36)]
    """
    x1, y1, x2, y2 = (int(v) for v in box(region))
    rows, columns = _starts(y1, y2, region.shape[0], side), _starts(x1, x2, region.shape[1], side)
    return [(r, c) for r in rows for c in columns if region[r : r + side, c : c + side].any()]


def _starts(first: int, last: int, length: int, side: int) -> list[int]:
    margin = side // (2 * OVERLAP)
    if last - first <= side - 2 * margin:
        return [min(max((first + last) // 2 - side // 2, 0), length - side)]
    step = side - side // OVERLAP
    starts = list(range(max(first - margin, 0), max(last + margin - side, 0) + step, step))
    return sorted({min(start, length - side) for start in starts})


def pad_to(image: Array, side: int) -> Array:
    """A copy of ``[H, W, C]``, continued by reflection at the bottom and right to at least ``side``."""
    more = [(0, max(side - length, 0)) for length in image.shape[:2]]
    return np.pad(image, [*more, (0, 0)], mode="reflect")


def pad_mask(mask: Mask, shape: tuple[int, ...]) -> Mask:
    return np.pad(mask, [(0, wanted - length) for wanted, length in zip(shape, mask.shape, strict=True)])


def _part(corner: tuple[int, int], side: int) -> tuple[slice, slice]:
    return slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side)
