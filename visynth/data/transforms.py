"""Classic augmentation: a few fixed candidates, by albumentations, else by torchvision.

This is the only module that imports albumentations (2.0.x, MIT, no longer maintained; its successor is AGPL and takes
the same import name). Where it cannot be imported, the torchvision v2 versions of the same candidates are used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.codec import Array
from visynth.core.errors import UsageError, choices

CANDIDATES = ("geometry", "geometry+light")


def backend() -> str:
    """``"albumentations"`` where it can be imported, else ``"torchvision"``."""
    return "torchvision" if _albumentations() is None else "albumentations"


def augment(
    image: Array, candidate: str, seed: int, mask: NDArray[np.bool_] | None = None
) -> tuple[Array, NDArray[np.bool_] | None]:
    """One augmented copy of an image, and of its mask.

    Args:
        image: ``[H, W, C]`` uint8 or uint16.
        candidate: ``"geometry"`` (mirror, shift up to 10 %, scale 0.85 to 1.15, turn up to 8 degrees) or
            ``"geometry+light"`` (the same, with brightness and contrast up to 20 % and a little noise).
        seed: the copy is a function of it.
        mask: ``[H, W]``, moved along.

    Returns:
        the copy, of the same shape and dtype, and its mask.

    Example:
        >>> image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
        >>> copy, _ = augment(image, "geometry", seed=3)
        >>> bool((augment(image, "geometry", seed=3)[0] == copy).all())
        True
    """
    if candidate not in CANDIDATES:
        raise UsageError(f"augmentation must be one of {choices(CANDIDATES)}, but got {candidate!r}.")
    module = _albumentations()
    run = _by_torchvision if module is None else _by_albumentations
    given = np.zeros(image.shape[:2], np.uint8) if mask is None else mask.astype(np.uint8)
    augmented, moved = run(image, given, candidate, seed)
    return augmented.reshape(image.shape), None if mask is None else moved.astype(bool)


def _albumentations() -> Any:
    """The module, or None."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for news at import
    try:
        import albumentations
    except ImportError:
        return None
    return albumentations


_pipelines: dict[str, Callable[..., dict[str, Array]]] = {}


def _by_albumentations(image: Array, mask: NDArray[np.uint8], candidate: str, seed: int) -> tuple[Array, Array]:
    import cv2

    if candidate not in _pipelines:
        module = _albumentations()
        steps = [
            module.HorizontalFlip(p=0.5),
            module.VerticalFlip(p=0.5),
            module.Affine(
                scale=(0.85, 1.15),
                translate_percent=(-0.1, 0.1),
                rotate=(-8, 8),
                border_mode=cv2.BORDER_REFLECT_101,
                p=1.0,
            ),
        ]
        if candidate == "geometry+light":
            steps += [
                module.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=1.0),
                module.GaussNoise(std_range=(0.005, 0.02), p=0.5),
            ]
        _pipelines[candidate] = module.Compose(steps)
    pipeline = _pipelines[candidate]
    pipeline.set_random_seed(seed % 2**31)  # type: ignore[attr-defined]
    out = pipeline(image=np.ascontiguousarray(image.astype(np.float32) / np.iinfo(image.dtype).max), mask=mask)
    return _back(out["image"], image), out["mask"]


def _by_torchvision(image: Array, mask: NDArray[np.uint8], candidate: str, seed: int) -> tuple[Array, Array]:
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    steps = [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        v2.RandomAffine(
            degrees=8, translate=(0.1, 0.1), scale=(0.85, 1.15), interpolation=v2.InterpolationMode.BILINEAR
        ),
    ]
    values = torch.from_numpy(image.astype(np.float32) / np.iinfo(image.dtype).max).permute(2, 0, 1)
    # torchvision's transforms read the global generator: lend it this seed and give it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        moved, moved_mask = v2.Compose(steps)(tv_tensors.Image(values), tv_tensors.Mask(torch.from_numpy(mask)))
        if candidate == "geometry+light":
            gain, offset = 1 + 0.4 * (torch.rand(()) - 0.5), 0.4 * (torch.rand(()) - 0.5)
            moved = moved * gain + offset + 0.01 * torch.randn(moved.shape)
    return _back(moved.permute(1, 2, 0).numpy(), image), moved_mask.numpy()


def _back(values: Array, like: Array) -> Array:
    top = np.iinfo(like.dtype).max
    return np.asarray(np.clip(np.rint(values * top), 0, top), dtype=like.dtype)
