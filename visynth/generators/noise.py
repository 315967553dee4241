"""Regions for classes without masks: Perlin noise and NSA's patch sizes, to cut stand-ins for defects by.

Sources: Perlin, "Improving noise" (SIGGRAPH 2002), the fade curve; Zavrtanik et al., "DRAEM" (ICCV 2021), section 3.1,
thresholded Perlin masks over a texture with random opacity; Schlueter et al., "Natural synthetic anomalies" (ECCV
2022), section 3, patch sides from a Gamma distribution.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def perlin(shape: tuple[int, int], cells: tuple[int, int], generator: np.random.Generator) -> Floats:
    """Gradient noise in about [-1, 1], zero at the corners of ``cells`` (rows, columns) of a lattice.

    Example:
        >>> perlin((8, 8), (2, 2), np.random.default_rng(0)).shape
        (8, 8)
    """
    angles = 2 * np.pi * generator.random((cells[0] + 1, cells[1] + 1))
    gradients = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    y = np.linspace(0, cells[0], shape[0], endpoint=False)[:, None] + np.zeros(shape)
    x = np.linspace(0, cells[1], shape[1], endpoint=False)[None, :] + np.zeros(shape)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    v, u = y - top, x - left

    def corner(row: int, column: int) -> NDArray[np.float64]:
        gradient = gradients[top + row, left + column]
        return np.asarray(gradient[..., 0] * (v - row) + gradient[..., 1] * (u - column))

    fade_v, fade_u = (t**3 * (t * (6 * t - 15) + 10) for t in (v, u))
    upper = corner(0, 0) * (1 - fade_u) + corner(0, 1) * fade_u
    lower = corner(1, 0) * (1 - fade_u) + corner(1, 1) * fade_u
    return np.asarray(np.sqrt(2) * (upper * (1 - fade_v) + lower * fade_v), dtype=np.float32)


def perlin_mask(shape: tuple[int, int], generator: np.random.Generator, max_area: float = 0.2) -> NDArray[np.bool_]:
    """One blob of thresholded Perlin noise, at most ``max_area`` of the image, never empty."""
    cells = tuple(int(2 ** generator.integers(1, 4)) for _ in range(2))
    noise = perlin(shape, (cells[0], cells[1]), generator)
    level = max(0.3, float(np.quantile(noise, 1 - max_area)))
    blob = (noise > level).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(blob)
    if count < 2:
        return np.asarray(noise >= noise.max())
    # One connected part: an object with one box, chosen in proportion to its area.
    areas = stats[1:, cv2.CC_STAT_AREA].astype(np.float64)
    return np.asarray(parts == 1 + generator.choice(count - 1, p=areas / areas.sum()))


def nsa_side(length: int, generator: np.random.Generator) -> int:
    """A patch side in pixels: (Gamma(2, 0.05) + 0.03) of the image's side, at most 0.4 of it."""
    share = min(generator.gamma(2.0, 0.05) + 0.03, 0.4)
    return max(2, round(share * length))
