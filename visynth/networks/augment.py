"""Non-leaking augmentation: geometric changes that the network is told of, so that sampling can ask for none.

Source: Karras et al., "Elucidating the design space of diffusion-based generative models" (NeurIPS 2022), appendix F.2
and table
6: flips, isotropic scaling, rotation, anisotropic scaling and translation, each with probability p, and nine labels.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812, the field's name

from visynth.core.errors import UsageError, choices

KINDS = ("xflip", "yflip", "scale", "rotate", "stretch", "translate")
SCALE, SHIFT = 2.0**0.2, 1 / 8
UNIFORMS = 9  # numbers in [0, 1) that one image's augmentation takes
NORMALS = 4


def parameters(
    uniform: NDArray[np.float64], normal: NDArray[np.float64], probability: float, kinds: Collection[str] = KINDS
) -> tuple[Tensor, Tensor]:
    """Affine matrices and labels.

    Args:
        uniform: ``[N, 9]`` in [0, 1).
        normal: ``[N, 4]`` standard normal.
        probability: of each kind; flips come half the time whenever they are allowed and probability is above 0.
        kinds: those that keep the class what it is; a hue or direction that *is* the class must not be among them.

    Returns:
        ``[N, 2, 3]`` for ``affine_grid`` (output to input, in [-1, 1] coordinates) and labels ``[N, 9]``, float32.

    Example:
        >>> theta, labels = parameters(np.zeros((1, 9)), np.zeros((1, 4)), 0.0)
        >>> theta[0].tolist(), int(labels.count_nonzero())
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 0)
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not 0 <= probability <= 1:
        raise UsageError(
            f"augmentation takes a probability in [0, 1] and kinds out of {choices(KINDS)}, but got {probability} and "
            f"{choices(unknown or kinds)}."
        )
    count = len(uniform)

    def happens(column: int, kind: str, chance: float) -> NDArray[np.float64]:
        return ((uniform[:, column] < chance) & (kind in kinds)).astype(np.float64)

    flips = 0.5 if probability > 0 else 0.0
    x_flip, y_flip = happens(0, "xflip", flips), happens(1, "yflip", flips)
    scale = normal[:, 0] * happens(2, "scale", probability)
    angle = (uniform[:, 6] * 2 - 1) * np.pi * happens(3, "rotate", probability)
    stretched = happens(4, "stretch", probability)
    stretch, direction = normal[:, 1] * stretched, (uniform[:, 7] * 2 - 1) * np.pi * stretched
    moved = happens(5, "translate", probability)
    across, down = normal[:, 2] * moved, normal[:, 3] * moved

    matrix = np.tile(np.eye(3), (count, 1, 1))
    matrix = scaling(1 - 2 * x_flip, 1 - 2 * y_flip) @ matrix
    matrix = scaling(SCALE**scale, SCALE**scale) @ matrix
    matrix = rotation(-angle) @ matrix
    matrix = rotation(direction) @ scaling(SCALE**stretch, SCALE**-stretch) @ rotation(-direction) @ matrix
    matrix[:, 0, 2] += 2 * SHIFT * across  # an eighth of the image; its coordinates are 2 wide
    matrix[:, 1, 2] += 2 * SHIFT * down
    inverse = np.linalg.inv(matrix)[:, :2]
    columns = [
        *(x_flip, y_flip, scale, np.cos(angle) - 1, np.sin(angle)),
        *(stretch * np.cos(direction), stretch * np.sin(direction), across, down),
    ]
    return torch.from_numpy(inverse.astype(np.float32)), torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def warp(images: Tensor, theta: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` moved by ``theta``; what comes from outside is the image reflected. Identity rows are
    untouched."""
    still = (theta == torch.eye(2, 3, device=theta.device)).flatten(1).all(dim=1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return torch.where(still.reshape(-1, 1, 1, 1), images, moved)


def scaling(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrices ``[N, 3, 3]`` that scale both axes."""
    matrices = np.tile(np.eye(3), (len(x), 1, 1))
    matrices[:, 0, 0], matrices[:, 1, 1] = x, y
    return matrices


def rotation(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrices ``[N, 3, 3]`` that turn by radians."""
    matrices = np.tile(np.eye(3), (len(angle), 1, 1))
    cos, sin = np.cos(angle), np.sin(angle)
    matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 0], matrices[:, 1, 1] = cos, -sin, sin, cos
    return matrices
