"""Adaptive discriminator augmentation: the whole pipeline, differentiable twice, each image by its own random numbers.

Source: Karras et al., "Training generative adversarial networks with limited data" (NeurIPS 2020), cited as *ADA*:
section 3 for the control of the strength, appendix B (algorithm 1 and table 3) for the transformations; wavelets after
Daubechies, "Ten lectures on wavelets" (1992). Every transformation happens with probability p, so that below p = 0.8
the generator learns the data and not the augmentation.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812, the field's name

from visynth.core.errors import UsageError, choices
from visynth.networks.augment import rotation, scaling
from visynth.networks.gridsample import grid_sample
from visynth.networks.resample import upfirdn

GROUPS = {
    "blit": ("xflip", "rotate90", "shift"),
    "geometry": ("scale", "rotate", "stretch", "move"),
    "colour": ("brightness", "contrast", "lumaflip", "hue", "saturation"),
    "filter": ("filter",),
    "corruption": ("noise", "cutout"),
}
KINDS = tuple(kind for group in GROUPS.values() for kind in group)
DEFAULT = (*GROUPS["blit"], *GROUPS["geometry"], *GROUPS["colour"])  # the paper's choice, "bgc"
UNIFORMS, NORMALS = 30, 12  # numbers that one image takes
HIGHEST = 0.8  # above that augmentations leak into what is generated (ADA, section 2.2)

Array = NDArray[np.float64]

# Symlets with 6 and 2 vanishing moments: orthogonal low-pass filters of sum sqrt(2).
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
CENTRE = sum(place * tap for place, tap in enumerate(SYM6)) / sum(SYM6)  # where its mass is: 5.098
POWER = np.array([10.0, 1.0, 1.0, 1.0]) / 13  # expected power of natural images in the four bands


@dataclass(frozen=True)
class AugmentPlan:
    """Augmentation of each image of a batch.

    Attributes:
        geometry: ``[N, 2, 3]``, from output to input, in coordinates of [-1, 1].
        colour: ``[N, 3, 4]``, linear part and offset.
        gains: ``[N, 4]`` of the frequency bands, from low to high.
        sigma: ``[N]`` of noise.
        hole: ``[N, 3]``: 1 if there is one, and its middle in [0, 1].
    """

    geometry: Array
    colour: Array
    gains: Array
    sigma: Array
    hole: Array


def check_kinds(kinds: Collection[str]) -> tuple[str, ...]:
    """Kinds of augmentation by name or group, in order.

    Raises:
        UsageError: unknown ones.

    Example:
        >>> check_kinds(["blit", "noise"])
        ('xflip', 'rotate90', 'shift', 'noise')
    """
    unknown = [kind for kind in kinds if kind not in KINDS and kind not in GROUPS]
    if unknown:
        raise UsageError(
            f"augmentations {choices(unknown)} are unknown; there are the groups {choices(GROUPS)} and "
            f"{choices(KINDS)}."
        )
    wanted = {name for kind in kinds for name in GROUPS.get(kind, (kind,))}
    return tuple(kind for kind in KINDS if kind in wanted)


def plan(uniform: Array, normal: Array, probability: float, kinds: Collection[str], size: int) -> AugmentPlan:
    """The transformations of a batch.

    Args:
        uniform: ``[N, 30]`` in [0, 1).
        normal: ``[N, 12]`` standard normal.
        probability: of each transformation.
        kinds: those that keep an image's class what it is.
        size: of the square images in pixels.

    Example:
        >>> plan(np.full((1, 30), 0.5), np.zeros((1, 12)), 0.0, KINDS, 32).geometry[0].tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    if not 0 <= probability <= 1:
        raise UsageError(f"the probability of augmentation must be in [0, 1], but got {probability}.")
    count, kinds = len(uniform), frozenset(kinds)
    flags = iter(uniform.T[:16])

    def happens(kind: str, chance: float = probability) -> Array:
        return np.asarray((next(flags) < chance) & (kind in kinds), dtype=np.float64)

    rotations = 1 - np.sqrt(1 - probability)  # two of them make one of probability p
    value = uniform.T[16:26]
    matrix = np.tile(np.eye(3), (count, 1, 1))
    # Blitting, then general geometry; each step is put in front, so that the first one acts on the image first.
    flip = np.where(happens("xflip") * (value[0] < 0.5), -1.0, 1.0)
    matrix = scaling(flip, np.ones(count)) @ matrix
    matrix = rotation(np.floor(value[1] * 4) * happens("rotate90") * np.pi / 2) @ matrix
    steps = np.round((value[2:4] * 2 - 1) * 0.125 * size) * happens("shift")
    matrix = _shifting(*(steps * 2 / size)) @ matrix
    scale = 2 ** (0.2 * normal[:, 0] * happens("scale"))
    matrix = scaling(scale, scale) @ matrix
    matrix = rotation((value[4] * 2 - 1) * np.pi * happens("rotate", rotations)) @ matrix
    stretch = 2 ** (0.2 * normal[:, 1] * happens("stretch"))
    matrix = scaling(stretch, 1 / stretch) @ matrix
    matrix = rotation((value[5] * 2 - 1) * np.pi * happens("rotate", rotations)) @ matrix
    moved = happens("move")
    matrix = (
        _shifting(normal[:, 2] * 0.25 * moved, normal[:, 3] * 0.25 * moved) @ matrix
    )  # an eighth; images are 2 wide
    geometry = np.linalg.inv(matrix)[:, :2]

    hole = np.stack([np.zeros(count), value[6], value[7]], axis=1)
    colour = _colours(happens, value[8], value[9], normal)
    gains = np.ones((count, 4))
    happened = happens("filter", 1.0)
    for band in range(4):
        each = np.ones((count, 4))
        chosen = (uniform[:, 26 + band] < probability) * happened
        each[:, band] = 2 ** (normal[:, 7 + band] * chosen)
        gains *= each / np.sqrt((POWER * each**2).sum(axis=1, keepdims=True))
    sigma = np.abs(normal[:, 11]) * 0.1 * happens("noise")
    hole[:, 0] = happens("cutout")
    return AugmentPlan(np.asarray(geometry, dtype=np.float64), colour, gains, sigma, hole)


def augment(images: Tensor, how: AugmentPlan, noise: Tensor | None = None) -> Tensor:
    """Transformed images; what is not changed comes back bit for bit.

    Args:
        images: ``[N, C, S, S]`` about in [-1, 1], of 1 to 4 channels; a second or fourth one is alpha and keeps its
            colour.
        how: of :func:`plan`.
        noise: standard normal, as ``images``, where the plan has noise.
    """
    moved, whole = (how.geometry != np.eye(2, 3)).any(axis=(1, 2)), _whole_pixels(how.geometry, images.shape[-1])
    images = _on_rows(images, moved & whole, blit, how.geometry)
    images = _on_rows(images, moved & ~whole, warp, how.geometry)
    images = _on_rows(images, (how.colour != np.eye(3, 4)).any(axis=(1, 2)), recolour, how.colour)
    images = _on_rows(images, (how.gains != 1).any(axis=1), amplify, how.gains)
    if how.sigma.any():
        assert noise is not None
        images = images + noise.to(images.dtype) * _like(how.sigma, images)[:, None, None, None]
    return _on_rows(images, how.hole[:, 0] > 0, cut, how.hole[:, 1:])


def blit(images: Tensor, geometry: Tensor) -> Tensor:
    """Flips, quarter turns and shifts by whole pixels: values are only moved."""
    size = images.shape[-1]
    places = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * 2 / size - 1
    return grid_sample(images, _grid(places, geometry), nearest=True)


def _grid(places: Tensor, geometry: Tensor) -> Tensor:
    """Source coordinates of a square of ``places`` x ``places`` points, ``[N, S, S, 2]``."""
    y, x = torch.meshgrid(places, places, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(1, -1, 3)
    return (points @ geometry.transpose(1, 2)).reshape(len(geometry), len(places), len(places), 2)


def _whole_pixels(geometry: Array, size: int) -> NDArray[np.bool_]:
    """Rows that move values from pixel to pixel."""
    turned, steps = geometry[:, :, :2], geometry[:, :, 2] * size / 2
    close = np.isclose(turned, turned.round(), atol=1e-9).all(axis=(1, 2))
    return np.asarray(close & np.isclose(steps, steps.round(), atol=1e-6).all(axis=1))


def warp(images: Tensor, geometry: Tensor) -> Tensor:
    """Affine transformation at twice the resolution, between wavelet filters; outside is the image reflected (ADA,
    appendix B.2).

    Because the filters are orthogonal, going up and down without a transformation between gives the image again.
    """
    size, reach = images.shape[-1], len(SYM6) // 2
    # Value n of the filtered image stands at (n - CENTRE) / 2 pixels; those from 5 to 2 S + 4 are the image at
    # twice its size.
    inside = slice(reach, reach + 2 * size)
    high = upfirdn(reflect(images, reach), SYM6, up=2, gain=4)[..., inside, inside]
    places = (torch.arange(2 * size + 2 * reach - 2, device=images.device, dtype=images.dtype) - CENTRE + 1) / size - 1
    grid = _grid(places, geometry) + (CENTRE - reach + 0.5) / size
    return upfirdn(grid_sample(high, grid), SYM6[::-1], down=2)


def recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Linear colours ``[N, 3, 4]`` of RGB; a grey image is one whose three channels are equal."""
    shown = images.shape[1] - (images.shape[1] in (2, 4))  # without alpha
    if shown == 1:
        colour = torch.cat([colour[..., :3].sum(dim=2, keepdim=True), colour[..., 3:]], dim=2).mean(dim=1, keepdim=True)
    coloured = torch.einsum("nij,njhw->nihw", colour[..., :shown], images[:, :shown]) + colour[..., -1][..., None, None]
    return torch.cat([coloured, images[:, shown:]], dim=1)


def amplify(images: Tensor, gains: Tensor) -> Tensor:
    """Four frequency bands multiplied by ``gains [N, 4]`` along both axes (ADA, appendix B.2)."""
    filters = gains @ _like(BANK, images)  # [N, taps]
    count, channels, height, width = images.shape
    half = filters.shape[1] // 2
    rows = filters.repeat_interleave(channels, dim=0)[:, None, None, :]
    flat = reflect(images, half).reshape(1, count * channels, height + 2 * half, width + 2 * half)
    flat = F.conv2d(flat, rows, groups=count * channels)
    return F.conv2d(flat, rows.transpose(2, 3), groups=count * channels).reshape(images.shape)


def cut(images: Tensor, middle: Tensor) -> Tensor:
    """A square hole of half the size around ``middle [N, 2]`` in [0, 1]."""
    size = images.shape[-1]
    places = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size
    outside = (places - middle[..., None]).abs() >= 0.25  # [N, 2, S]
    keep = outside[:, 0, None, :] | outside[:, 1, :, None]
    return images * keep[:, None].to(images.dtype)


def reflect(images: Tensor, margin: int) -> Tensor:
    """Reflection beyond the borders, in several rounds where the margin is wider than the image."""
    while margin > 0:
        step = min(margin, images.shape[-1] - 1)
        images = F.pad(images, (step, step, step, step), mode="reflect")
        margin -= step
    return images


def adjusted(probability: float, sign: float, target: float, images: float, kimg: float) -> float:
    """The next probability: a step towards where ``sign``, the mean of sign(D(real)), is ``target`` (ADA, section 3).

    Args:
        probability: now.
        sign: in [-1, 1]; above the target the discriminator overfits.
        target: 0.6 in the paper.
        images: shown since the last adjustment.
        kimg: thousands of images in which the probability may rise from 0 to 1.

    Example:
        >>> round(adjusted(0.0, 0.9, 0.6, images=32 * 4, kimg=500), 6)
        0.000256
    """
    return float(np.clip(probability + np.sign(sign - target) * images / (kimg * 1000), 0.0, HIGHEST))


def _on_rows(images: Tensor, rows: NDArray[np.bool_], change: Any, values: Array) -> Tensor:
    """``change(images, values)`` on some rows only: at low probabilities most images are not touched."""
    if not rows.any():
        return images
    if rows.all():
        after: Tensor = change(images, _like(values, images))
        return after
    places = torch.from_numpy(np.flatnonzero(rows)).to(images.device)
    changed: Tensor = change(images[places], _like(values[rows], images))
    return images.index_copy(0, places, changed.to(images.dtype))


def _like(values: Array, images: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(images.device, images.dtype)


def _bank() -> Array:
    """Filters of the four bands ``[4, taps]``, from low to high; their sum is a unit pulse."""
    low = np.convolve(SYM2, SYM2[::-1]) / 2
    high = low * (-1.0) ** (np.arange(len(low)) - len(low) // 2)  # the other half of a unit pulse
    bank = np.ones((1, 1))
    for _ in range(3):
        stretched = np.zeros((len(bank), 2 * bank.shape[1] - 1))
        stretched[:, ::2] = bank
        lower = np.stack([np.convolve(row, low) for row in stretched])
        top = np.zeros((1, lower.shape[1]))
        first = (lower.shape[1] - len(high)) // 2
        top[0, first : first + len(high)] = high
        bank = np.concatenate([lower, top])
    return bank


BANK = _bank()


def _colours(happens: Any, flip: Array, angle: Array, normal: Array) -> Array:
    """``[N, 3, 4]`` in the order of the paper: brightness, contrast, luma flip, hue, saturation."""
    count = len(flip)
    grey = np.full((3, 3), 1 / 3)  # the projection on the axis of greys
    offset = np.zeros((count, 3)) + 0.2 * (normal[:, 4] * happens("brightness"))[:, None]
    matrix = np.tile(np.eye(3), (count, 1, 1))
    contrast = 2 ** (0.5 * normal[:, 5] * happens("contrast"))
    matrix, offset = matrix * contrast[:, None, None], offset * contrast[:, None]
    flipped = np.floor(flip * 2) * happens("lumaflip")
    steps = [np.eye(3) - 2 * grey * flipped[:, None, None]]
    turn = (angle * 2 - 1) * np.pi * happens("hue")
    steps.append(_about_grey(turn))
    saturation = 2 ** (normal[:, 6] * happens("saturation"))
    steps.append(grey + (np.eye(3) - grey) * saturation[:, None, None])
    for step in steps:
        matrix, offset = step @ matrix, (step @ offset[..., None])[..., 0]
    return np.concatenate([matrix, offset[..., None]], axis=2)


def _about_grey(angle: Array) -> Array:
    """Rotations of colour space about the axis of greys (Rodrigues' formula)."""
    axis = np.ones(3) / np.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    sin, cos = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.asarray(np.eye(3) + sin * cross + (1 - cos) * (cross @ cross))


def _shifting(x: Array, y: Array) -> Array:
    matrices = np.tile(np.eye(3), (len(x), 1, 1))
    matrices[:, 0, 2], matrices[:, 1, 2] = x, y
    return matrices
