"""Check that the conversion of synthetic images turns a real file into the dataset's own sample of it.

Values that come out wrong (fifteen times too bright, not normalised) train a model on "synthetic is bright" without a
word, and images that lie on their side (MONAI's reader gives ``[W, H]``) on "synthetic is turned". So before a
training starts, the conversion is run on real files and compared with the dataset's own samples; where there are no files,
black and white are sent through it and their values compared with the range of real samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from visynth.core.codec import Array, decode
from visynth.core.errors import UsageError
from visynth.data.paths import file_paths
from visynth.mixing.convert import ALBUMENTATIONS, Converter, Through, random_state_kept, random_states

FILES = 6  # compared with their samples
APART = 0.06  # difference of mean, deviation or ends, as a part of the range, from which on two images are not the same
GROSS = 3.0  # ratio of spreads from which on random augmentation does not explain it
TURNED = 0.25  # of the difference as it lies, below which another way to lie is the right one
WIDER = 6.0  # times the range of real values, from which on black to white is another scale
HELP = "Give transform= (it gets a PIL image, or an array [H, W, C]) that ends like your own."


def check_values(
    convert: Converter,
    dataset: Any,
    reals: Sequence[Any],
    images: Sequence[Array],
    image: Callable[[Any], Any] | None,
) -> None:
    """Refuse a way whose values are not the dataset's; of a transform that the user gave, only warn: it is the user's
    word.

    Args:
        convert: the conversion.
        dataset: the user's, or None.
        reals: images of real samples, or rows of a batch.
        images: some synthetic images ``[H, W, C]``.
        image: gets the image out of a sample of the dataset.

    Raises:
        UsageError: values that cannot be right, with both sides.
    """
    with random_state_kept():
        draws = _is_random(convert, images)
        problem = _kind_problem(convert, reals, images)
        if problem is None and dataset is not None and image is not None:
            problem = _file_problem(convert, dataset, image, draws)
        if problem is None and not draws:  # what a random transform makes of black and white says little
            problem = _range_problem(convert, [r for r in map(_values, reals) if r is not None], images)
    if problem is None:
        return
    if isinstance(convert.through, Through) and convert.through.given:
        warnings.warn(f"{problem}. If that is meant, nothing is to be done.", stacklevel=3)
    else:
        raise UsageError(f"{problem}, so the dataset does more than that. {HELP}")


def _is_random(convert: Converter, images: Sequence[Array]) -> bool:
    """Whether the conversion draws random numbers; albumentations draws from a generator of its own."""
    if not isinstance(convert.through, Through):
        return False
    if convert.through.way in ALBUMENTATIONS:
        return True
    before = random_states()
    for image in images[:4]:
        try:
            convert.image(image)
        except Exception:  # it will be told with the first image that is converted
            return True
    return random_states() != before


def _kind_problem(convert: Converter, reals: Sequence[Any], images: Sequence[Array]) -> str | None:
    """A project's own tensor class (MONAI's MetaTensor) says more than values, and its collation asks for it;
    torchvision's do not."""
    real = type(reals[0]) if reals else torch.Tensor
    if not issubclass(real, torch.Tensor) or real is torch.Tensor or real.__module__.startswith("torchvision."):
        return None
    try:
        converted = convert.image(images[0])
    except Exception:  # it will be told with the first image that is converted
        return None
    if isinstance(converted, real):
        return None
    return (
        f"real images are {real.__module__}.{real.__qualname__}, but synthetic ones would be {type(converted).__qualname__} "
        f"({convert.name})"
    )


def _file_problem(convert: Converter, dataset: Any, image: Callable[[Any], Any], draws: bool) -> str | None:
    """Compare what the way makes of real files with their samples: each by itself, or, under random transforms, roughly
    and in the middle."""
    paths = file_paths(dataset)
    if not paths:
        return None
    ratios, shifts = [], []
    turns: list[set[str]] = []
    shown_first = ""
    for row in sorted({round(k * (len(paths) - 1) / (FILES - 1)) for k in range(FILES)}):
        try:
            before = random_states()
            own = _values(image(dataset[row]))
            draws = draws or random_states() != before
            converted = _values(convert.image(decode(paths[row])))
        except Exception:  # the user's code, or an image of another kind than the rendered ones
            return None
        if own is None or converted is None or own.ndim != converted.ndim:
            return None
        width = max(float(own.max() - own.min()), 1e-6)
        sides = [np.array([v.mean(), v.std(), v.min(), v.max()]) for v in (own, converted)]
        shown = (
            f"synthetic images would not look like the dataset's own: {paths[row]} has values from {own.min():.3g} to "
            f"{own.max():.3g} (mean "
            f"{own.mean():.3g}) in its sample, but {converted.min():.3g} to {converted.max():.3g} (mean {converted.mean():.3g}) by "
            "the conversion that was found "
            f"({convert.name})"
        )
        # A flip leaves mean, deviation and ends as they are.
        if not draws and own.shape == converted.shape and float(np.abs(sides[0] - sides[1]).max()) > APART * width:
            return shown
        turns.append(set() if draws else _turns(own, converted))
        # The middle half of the values: a random patch of noise, as erasing makes it, hardly moves it.
        middles = [float(np.subtract(*np.percentile(v, [75, 25]))) for v in (own, converted)]
        if min(middles) > 1e-6:
            ratios.append(middles[1] / middles[0])
        shifts.append(abs(float(np.median(own) - np.median(converted))) / width)
        shown_first = shown_first or shown
    common = set.intersection(*turns) if len(turns) >= 3 else set()
    if common:
        return (
            f"synthetic images would lie otherwise than the dataset's own: {len(turns)} of {len(turns)} files that "
            "were compared are "
            f"{min(common)} in their samples, and not by the conversion that was found ({convert.name})"
        )
    ratio = float(np.median(ratios)) if ratios else 1.0
    return shown_first if ratio > GROSS or ratio < 1 / GROSS or np.median(shifts) > 1 else None


def _turns(own: np.ndarray[Any, Any], converted: np.ndarray[Any, Any]) -> set[str]:
    """Rotation or mirroring of a sample against the conversion of its file; empty where they lie alike, or nothing
    can be seen."""
    if own.ndim not in (2, 3):
        return set()
    first = own.ndim == 3 and own.shape[0] <= 8  # channels
    sides = [v if v.ndim == 2 else v.mean(axis=0 if first else 2) for v in (own, converted)]
    moved = {f"turned by {90 * k} degrees": np.rot90(sides[1], k) for k in (1, 2, 3)}
    moved |= {"mirrored": sides[1][:, ::-1], "upside down": sides[1][::-1]}
    moved |= {"transposed": sides[1].T, "transposed across": sides[1][::-1, ::-1].T}
    apart = {name: _distance(sides[0], v) for name, v in {"": sides[1], **moved}.items()}
    return {name for name, value in apart.items() if name and value < TURNED * apart[""] and value < APART}


def _distance(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Mean absolute difference, as a part of the range."""
    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(first - second).mean()) / max(float(first.max() - first.min()), 1e-6)


def _range_problem(convert: Converter, reals: Sequence[np.ndarray[Any, Any]], images: Sequence[Array]) -> str | None:
    """Compare the range of real samples with what black, white and synthetic images become."""
    if not reals or not images:
        return None
    try:
        ends = [_values(convert.plain(images[0], part)) for part in (0.0, 1.0)]
        shown = [v for v in (_values(convert.image(image)) for image in images) if v is not None]
    except Exception:  # it will be told with the first image that is converted
        return None
    if ends[0] is None or ends[1] is None or not shown:
        return None
    black, white = float(ends[0].min()), float(ends[1].max())
    if not np.isfinite([black, white]).all() or white <= black:
        return None  # each image is scaled by its own values: black and white have none
    black, white = min(black, *(float(v.min()) for v in shown)), max(white, *(float(v.max()) for v in shown))
    low, high = min(float(r.min()) for r in reals), max(float(r.max()) for r in reals)
    top = max(float(v.max()) for v in shown)
    width, real_width = white - black, high - low
    words = (
        f"real samples have values from {low:.3g} to {high:.3g}, but black and white become {black:.3g} and "
        f"{white:.3g} ({convert.name})"
    )
    slack = 0.05 * max(width, 1e-6)
    if low < black - slack or high > white + slack:
        return f"synthetic images would have other values than the dataset's: {words}"
    if 0 < real_width < width / WIDER and top - black > WIDER / 2 * max(high - black, 1e-9):
        return f"synthetic images would be brighter than the dataset's: {words}"
    # Values that every image reaches: either end of a scale of two values, or each image scaled by its own.
    stretched = len(reals) >= 6 and all(abs(r.min() - low) < 1e-6 and abs(r.max() - high) < 1e-6 for r in reals)
    adapted = not isinstance(convert.through, Through)
    reaching = sum(float(v.max() - v.min()) > 0.98 * real_width for v in shown)
    if adapted and stretched and "float" in str(reals[0].dtype) and real_width > 0 and reaching < len(shown) / 2:
        return (
            f"each real sample goes from {low:.3g} to {high:.3g} exactly, as where every image is scaled by its own "
            "least and greatest "
            f"value, and synthetic ones do not ({convert.name})"
        )
    return None


def _values(image: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(image, Image.Image):
        return np.asarray(image).astype(np.float64) if image.mode in ("L", "RGB") else None
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        return np.asarray(image.float() if image.dtype in (torch.bfloat16, torch.float16) else image, np.float64)
    return np.asarray(image, np.float64) if isinstance(image, np.ndarray) and image.dtype != object else None
