"""Setting a patch into an image: ring matching, feathering and Poisson blending, as pure functions on float arrays.

Arrays are float32 ``[H, W, C]`` in the image's own units; masks are bool ``[H, W]``.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


def grow(mask: Mask, pixels: int) -> Mask:
    """The mask with every pixel within ``pixels`` of it (Chebyshev distance)."""
    if pixels <= 0:
        return mask
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1,) * 2, np.uint8)).astype(bool)


def ring(mask: Mask, width: int) -> Mask:
    """The pixels around a mask, up to ``width`` away."""
    return grow(mask, width) & ~mask


def match_ring(patch: Floats, patch_ring: Mask, target: Floats, target_ring: Mask, limit: float = 2.0) -> Floats:
    """The patch with mean and standard deviation of its surroundings brought to those of the place it goes to.

    A defect keeps its contrast relative to what surrounds it. The gain is held within [1/limit, limit], because the
    standard deviation of a nearly flat ring says little.

    Example:
        >>> patch = np.full((3, 3, 1), 5, np.float32)
        >>> edge = ~np.eye(3, dtype=bool)
        >>> float(match_ring(patch, edge, patch + 10, edge)[1, 1, 0])
        15.0
    """
    if not patch_ring.any() or not target_ring.any():
        return patch
    from_mean, from_std = patch[patch_ring].mean(axis=0), patch[patch_ring].std(axis=0)
    to_mean, to_std = target[target_ring].mean(axis=0), target[target_ring].std(axis=0)
    gain = np.clip((to_std + 1e-3) / (from_std + 1e-3), 1 / limit, limit)
    return np.asarray((patch - from_mean) * gain + to_mean, dtype=np.float32)


def feather_weights(mask: Mask, width: float) -> Floats:
    """Opacity: 1 on the mask, falling linearly to 0 at ``width`` pixels outside it (0: a hard edge).

    Example:
        >>> feather_weights(np.array([[True, False, False, False]]), 2.0).round(2).tolist()
        [[1.0, 0.5, 0.0, 0.0]]
    """
    if width <= 0:
        return mask.astype(np.float32)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(np.clip(1.0 - distance / width, 0.0, 1.0), dtype=np.float32)


def feather(patch: Floats, target: Floats, mask: Mask, width: float) -> Floats:
    """The patch over the target with a feathered edge; outside the feather the target is untouched."""
    weights = feather_weights(mask, width)[:, :, None]
    return np.asarray(weights * patch + (1 - weights) * target, dtype=np.float32)


def poisson(patch: Floats, target: Floats, mask: Mask, *, mixed: bool = False) -> Floats:
    """Gradient-domain blending: inside the mask the patch's gradients, on its border the target's values.

    Solves the discrete Poisson equation with Dirichlet border, Perez, Gangnet and Blake, "Poisson image editing"
    (SIGGRAPH 2003), eq. 7 with guidance eq. 11; ``mixed`` takes the stronger of the two gradients, eq. 12. At the
    border of the image the missing neighbours drop out of the equation, as the paper's definition of N_p says.

    Returns:
        a copy of ``target`` that differs inside ``mask`` alone.

    Example:
        >>> flat, bump = np.zeros((5, 5, 1), np.float32), np.full((5, 5, 1), 9, np.float32)
        >>> hole = np.zeros((5, 5), bool); hole[1:4, 1:4] = True
        >>> bool(np.allclose(poisson(bump, flat, hole), 0, atol=1e-5))
        True
    """
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import splu

    height, width, channels = target.shape
    out = target.copy()
    rows, columns = np.nonzero(mask)
    count = len(rows)
    if count == 0 or count == height * width:
        return out if count == 0 else patch.copy()
    index = np.full((height, width), -1, np.int64)
    index[rows, columns] = np.arange(count)

    # One equation per masked pixel p: |N_p| f_p - sum of f_q inside = sum of target_q on the border + sum of v_pq.
    degree = np.zeros(count)
    right = np.zeros((count, channels))
    entries: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for step_row, step_column in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        near_row, near_column = rows + step_row, columns + step_column
        inside = (near_row >= 0) & (near_row < height) & (near_column >= 0) & (near_column < width)
        p, r, c, nr, nc = (values[inside] for values in (np.arange(count), rows, columns, near_row, near_column))
        guidance = patch[r, c] - patch[nr, nc]
        if mixed:
            own = target[r, c] - target[nr, nc]
            guidance = np.where(np.abs(own) > np.abs(guidance), own, guidance)
        degree[p] += 1
        right[p] += guidance
        neighbour = index[nr, nc]
        free = neighbour >= 0
        entries.append((p[free], neighbour[free]))
        right[p[~free]] += target[nr[~free], nc[~free]]

    p, q = (np.concatenate(side) for side in zip(*entries, strict=True))
    everyone = np.arange(count)
    matrix = csc_matrix(
        (np.concatenate([degree, -np.ones(len(p))]), (np.concatenate([everyone, p]), np.concatenate([everyone, q]))),
        shape=(count, count),
    )
    out[rows, columns] = splu(matrix).solve(right).astype(np.float32)
    return out
