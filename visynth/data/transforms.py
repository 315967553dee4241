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

from visynth.core import seeds as seeding
from visynth.core.codec import Array
from visynth.core.errors import UsageError, choices
from visynth.core.pictures import resize

CANDIDATES = ("geometry", "light", "elastic")
ELASTIC = 3.0, 4.0  # largest displacement, and how smooth it is (sigma), in hundredths of the image's shorter side


def backend() -> str:
    """``"albumentations"`` where it can be imported, else ``"torchvision"``."""
    return "torchvision" if _albumentations() is None else "albumentations"


def augment(
    image: Array, candidate: str, seed: int, mask: NDArray[np.bool_] | None = None
) -> tuple[Array, NDArray[np.bool_] | None]:
    """One augmented copy of an image, and of its mask.

    Args:
        image: ``[H, W, C]`` uint8 or uint16.
        candidate: ``"geometry"`` (mirror, shift up to 10 %, scale 0.85 to 1.15, turn up to 8 degrees); ``"light"`` (the same,
            with brightness and contrast up to 20 %, a little noise, and half of the copies blurred); or ``"elastic"``
            (mirror, scale 0.7 to 1.4, turn up to 20 degrees, and a smooth random displacement).
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
        wide = candidate == "elastic"
        steps = [
            module.HorizontalFlip(p=0.5),
            module.VerticalFlip(p=0.5),
            module.Affine(
                scale=(0.7, 1.4) if wide else (0.85, 1.15),
                translate_percent=(-0.1, 0.1),
                rotate=(-20, 20) if wide else (-8, 8),
                border_mode=cv2.BORDER_REFLECT_101,
                p=1.0,
            ),
        ]
        if candidate == "light":
            steps += [
                module.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=1.0),
                module.GaussNoise(std_range=(0.005, 0.02), p=0.5),
                module.GaussianBlur(blur_limit=(3, 5), p=0.5),
            ]
        _pipelines[candidate] = module.Compose(steps)
    pipeline = _pipelines[candidate]
    pipeline.set_random_seed(seed % 2**31)  # type: ignore[attr-defined]
    values = np.ascontiguousarray(image.astype(np.float32) / np.iinfo(image.dtype).max)
    if candidate == "elastic":
        values, mask = _displaced(values, mask, seed)
    out = pipeline(image=values, mask=mask)
    return _back(out["image"], image), out["mask"]


def _displaced(values: Array, mask: Array, seed: int) -> tuple[Array, Array]:
    """An image and its mask under one smooth random displacement (Simard et al., ICDAR 2003): its size goes with the
    image's, which a fixed number of pixels does not."""
    import cv2

    height, width = values.shape[:2]
    amount, sigma = (part / 100 * min(height, width) for part in ELASTIC)
    generator = seeding.rng(seeding.derive("elastic", seed), "displacement")
    fields = []
    for places in np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)):
        noise = cv2.GaussianBlur(generator.normal(0, 1, (height, width)).astype(np.float32), (0, 0), max(sigma, 0.5))
        fields.append(places + noise * (amount / max(float(np.abs(noise).max()), 1e-6)))
    moved = cv2.remap(values, fields[0], fields[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    mask = cv2.remap(mask, fields[0], fields[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
    return moved.reshape(values.shape), mask


def _by_torchvision(image: Array, mask: NDArray[np.uint8], candidate: str, seed: int) -> tuple[Array, Array]:
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    wide = candidate == "elastic"
    steps = [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        v2.RandomAffine(
            degrees=20 if wide else 8,
            translate=(0.1, 0.1),
            scale=(0.7, 1.4) if wide else (0.85, 1.15),
            interpolation=v2.InterpolationMode.BILINEAR,
        ),
    ]
    scaled = image.astype(np.float32) / np.iinfo(image.dtype).max
    if wide:
        scaled, mask = _displaced(scaled, mask, seed)
    values = torch.from_numpy(scaled).permute(2, 0, 1)
    # torchvision's transforms read the global generator: lend it this seed and give it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        moved, moved_mask = v2.Compose(steps)(tv_tensors.Image(values), tv_tensors.Mask(torch.from_numpy(mask)))
        if candidate == "light":
            gain, offset = 1 + 0.4 * (torch.rand(()) - 0.5), 0.4 * (torch.rand(()) - 0.5)
            moved = moved * gain + offset + 0.01 * torch.randn(moved.shape)
            if torch.rand(()) < 0.5:
                moved = v2.functional.gaussian_blur(moved, [5, 5])
    return _back(moved.permute(1, 2, 0).numpy(), image), moved_mask.numpy()


def cutmix(image: Array, other: Array, seed: int) -> Array:
    """An image with a random box of another one of its class, of a random share of its area.

    Source: Yun et al., "CutMix" (ICCV 2019), section 3.1, with both images of one class, so that the label stays.

    Args:
        image: ``[H, W, C]`` uint8 or uint16.
        other: of the same dtype and channels; brought to the image's size.
        seed: of place and size.

    Example:
        >>> mixed = cutmix(np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 1), 9, np.uint8), seed=1)
        >>> sorted(np.unique(mixed).tolist())
        [0, 9]
    """
    height, width = image.shape[:2]
    if other.shape[:2] != (height, width):
        other = resize(other, (height, width))
    generator = seeding.rng(seeding.derive("cutmix", seed), "box")
    side = float(np.sqrt(1 - generator.beta(1, 1)))  # eq. 3: the box has 1 - lambda of the area
    own = max(1, round(side * height)), max(1, round(side * width))
    top, left = (
        int(generator.integers(0, length - part + 1)) for length, part in zip((height, width), own, strict=True)
    )
    mixed = image.copy()
    box = slice(top, top + own[0]), slice(left, left + own[1])
    mixed[box] = other[box]
    return mixed


def _back(values: Array, like: Array) -> Array:
    top = np.iinfo(like.dtype).max
    return np.asarray(np.clip(np.rint(values * top), 0, top), dtype=like.dtype)
