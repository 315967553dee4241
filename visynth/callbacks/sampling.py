"""Images that a quality callback compares: samples of the module, and real ones from a loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from visynth.core import seeds as seeding
from visynth.core.codec import Array
from visynth.core.errors import DataError
from visynth.data.labels import class_names

Scale = tuple[float, float] | None  # what black and white are


def sample_images(
    pl_module: Any, seeds: Sequence[int], labels: Sequence[int], options: Mapping[str, Any], scale: Scale = None
) -> list[Array]:
    """Images ``[H, W, C]`` of a module, whose modes and the global random state stay as they were."""
    if not seeds:  # a rank may have nothing to make
        return []
    modes = {module: module.training for module in pl_module.modules()}
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        sampled = pl_module.sample(
            torch.tensor(seeds, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64), **options
        )
    for module, training in modes.items():
        module.training = training
    if hasattr(sampled, "crop"):
        return [sampled.crop(i).permute(1, 2, 0).cpu().numpy() for i in range(len(sampled))]
    images = as_integers(list(sampled), scale, f"{type(pl_module).__name__}.sample()")
    return [image.permute(1, 2, 0).cpu().numpy() for image in images]


def as_integers(images: Sequence[Tensor], scale: Scale, what: str, option: str = "value_range") -> list[Tensor]:
    """Float images as uint8, by a declared scale or, where values below 0 show it, from [-1, 1]; integers of 8 or 16
    bits as they are.

    Raises:
        DataError: values that are of no such scale; nothing is guessed where it is not shown.
    """
    if all(image.dtype in (torch.uint8, torch.uint16) for image in images):
        return list(images)
    if any(not image.is_floating_point() for image in images):
        raise DataError(f"{what} gives {images[0].dtype}: uint8, uint16 or floating-point images [C, H, W] are read.")
    low, high = min(float(i.min()) for i in images), max(float(i.max()) for i in images)
    # Values below 0 show [-1, 1]; networks without a last tanh go beyond it, untrained ones stay near 0.
    if scale is None and not (-3 <= low < -1e-3 and high <= 3):
        raise DataError(
            f"{what} gives floating-point images with values from {low:.3g} to {high:.3g}, which do not show what "
            "black and white are. Say it "
            f"to the callback: {option}=[0, 1], [-1, 1] or [0, 255]."
        )
    black, white = scale or (-1.0, 1.0)
    if max(abs(low - black), abs(high - white)) > 2 * (white - black):
        raise DataError(f"{what} gives values from {low:.3g} to {high:.3g}, far outside {option}={[black, white]}.")
    return [((i.float() - black) * (255 / (white - black))).round().clamp(0, 255).to(torch.uint8) for i in images]


def images_of_loader(
    loader: Any, most: int, scale: Scale = None
) -> tuple[list[Array], NDArray[np.int64], tuple[str, ...]]:
    """Images and labels of the data set behind a training loader that gives (image, label) or dicts; floats by their
    scale, see :func:`as_integers`.

    A loader of our own reads them, evenly spaced and the same on every rank: the training's iterator, its workers and
    its share of the ranks are left alone.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or not hasattr(dataset, "__len__"):
        raise DataError(
            "the training loader has no data set of known length to read real images from: name some by real=."
        )
    count = len(dataset)
    rows = np.linspace(0, count - 1, min(most, count)).astype(int).tolist()
    floats: list[Tensor] = []
    labels: list[int] = []
    with torch.random.fork_rng(devices=[]):  # transforms of the user's may draw from the global generator
        for batch in DataLoader(Subset(dataset, rows), loader.batch_size or 32, collate_fn=loader.collate_fn):
            given, own = (batch["image"], batch["label"]) if isinstance(batch, Mapping) else (batch[0], batch[1])
            floats += list(given)
            labels += own.tolist()
    if not floats:
        raise DataError("the training data hold no images to compare with: name real images by real=.")
    images = [
        i.permute(1, 2, 0).cpu().numpy()
        for i in as_integers(floats, scale, f"the training data set {type(dataset).__name__}", "real_range")
    ]
    named = class_names(dataset) or {}
    names = {label: name for name, label in named.items()}
    return images, np.array(labels, dtype=np.int64), tuple(names.get(k, str(k)) for k in range(max(labels) + 1))


def chosen_rows(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Rows of up to ``most`` images, every class with an equal quota first: a rare class must not be left out by
    chance.

    Example:
        >>> rows = chosen_rows(np.array([0] * 90 + [1] * 10), 30, 0)
        >>> len(rows), int((rows >= 90).sum())
        (30, 10)
    """
    order = seeding.rng(seeding.derive("reals", seed), "quality").permutation(len(labels))
    turns = np.zeros(len(labels), np.int64)
    met: dict[int, int] = {}
    for place, row in enumerate(order):
        turns[place] = met.get(int(labels[row]), 0)
        met[int(labels[row])] = int(turns[place]) + 1
    return np.sort(order[np.argsort(turns, kind="stable")[:most]])
