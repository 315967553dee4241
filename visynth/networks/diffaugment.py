"""DiffAugment: three simple augmentations that every image gets, real and made alike.

Source: Zhao et al., "Differentiable augmentation for data-efficient GAN training" (NeurIPS 2020), section 3.2 and its
settings colour, translation and cutout.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KINDS = ("colour", "translation", "cutout")
UNIFORMS = 7


def diffaugment(images: Tensor, uniform: NDArray[np.float64], kinds: Collection[str] = KINDS) -> Tensor:
    """Augmented images.

    Args:
        images: ``[N, C, S, S]`` about in [-1, 1], of 1 to 4 channels; a second or fourth one is alpha and keeps its
            values in "colour".
        uniform: ``[N, 7]`` in [0, 1).
        kinds: out of "colour", "translation" and "cutout".

    Example:
        >>> diffaugment(torch.ones(1, 1, 8, 8), np.full((1, 7), 0.5), ["colour"]).mean().item()
        1.0
    """
    draws = torch.from_numpy(uniform).to(images.device, images.dtype)
    if "colour" in kinds:
        images = _colour(images, draws[:, :3, None, None, None])
    if "translation" in kinds:
        images = _translation(images, draws[:, 3:5])
    if "cutout" in kinds:
        images = _cutout(images, draws[:, 5:7])
    return images


def _colour(images: Tensor, draws: Tensor) -> Tensor:
    shown = images.shape[1] - (images.shape[1] in (2, 4))
    images, alpha = images[:, :shown], images[:, shown:]
    images = images + (draws[:, 0] - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (draws[:, 1] * 2) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return torch.cat([(images - mean) * (draws[:, 2] + 0.5) + mean, alpha], dim=1)


def _translation(images: Tensor, draws: Tensor) -> Tensor:
    """By whole pixels up to an eighth of the size; black comes in."""
    count, _, height, width = images.shape
    most = int(width / 8 + 0.5)
    steps = (draws * (2 * most + 1)).floor().long() - most
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    rows, columns = (
        (torch.arange(side, device=images.device) + steps[:, i : i + 1] + 1).clamp(0, side + 1)
        for i, side in enumerate((height, width))
    )
    first = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[first, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, draws: Tensor) -> Tensor:
    """A square of half the size around any pixel."""
    size = images.shape[-1]
    middle = (draws * (size + 1 - size % 2)).floor()
    places = torch.arange(size, device=images.device, dtype=images.dtype)
    first = middle[..., None] - size // 4
    inside = (places >= first) & (places < first + size // 2)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    return images * (~hole)[:, None].to(images.dtype)
