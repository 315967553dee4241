"""Whether the way that was found for synthetic pictures makes of a real file what the dataset makes of it.

Values that come out wrong (fifteen times too bright, not normalised) train a model on "synthetic is bright" without a word. So before a
training starts, the way is run on real files and compared with the dataset's own samples; where there are no files, black and white are
sent through it and their values compared with the range of real samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from visynth.data.convert import Converter, random_state_kept
from visynth.data.decode import Array, decode
from visynth.data.paths import file_paths
from visynth.data.targets import Truth
from visynth.errors import UsageError

FILES = 6  # compared with their samples
APART = (
    0.06  # difference of mean, deviation or ends, as a part of the range, from which on two pictures are not the same
)
WIDER = 6.0  # times the range of real values, from which on black to white is another scale
HELP = "Give transform= (it gets a PIL image, or an array [H, W, C]) that ends like your own."


def check_values(convert: Converter, dataset: Any, reals: Sequence[Any], pictures: Sequence[Array], image: Any) -> None:
    """Refuse a way whose values are not the dataset's.

    Args:
        convert: the way.
        dataset: the user's, or None.
        reals: images of real samples, or rows of a batch.
        pictures: some synthetic pictures ``[H, W, C]``.
        image: gets the image out of a sample of the dataset: ``sample -> image``.

    Raises:
        UsageError: values that cannot be right, with both sides.
    """
    with random_state_kept():
        if dataset is not None and _check_files(convert, dataset, image):
            return
        _check_range(convert, [r for r in map(_values, reals) if r is not None], pictures)


def _check_files(convert: Converter, dataset: Any, image: Any) -> bool:
    """Compare with real files where their samples are the same at every reading; whether that could be done."""
    paths = file_paths(dataset)
    if not paths:
        return False
    rows = sorted({round(k * (len(paths) - 1) / (FILES - 1)) for k in range(FILES)})
    compared = 0
    for row in rows:
        try:
            own, again = _values(image(dataset[row])), _values(image(dataset[row]))
            picture = decode(paths[row])
            made = _values(convert(picture, Truth(0, None))[0])
        except Exception:  # the user's code, or a picture of another kind than the rendered ones
            return False
        if own is None or again is None or made is None or own.shape != made.shape or not np.array_equal(own, again):
            return False  # augmented at random: two readings differ as much as a wrong way would
        # Of each: mean, deviation and both ends, which a flip at random leaves as they are.
        sides = [np.array([v.mean(), v.std(), v.min(), v.max()]) for v in (own, made)]
        if float(np.abs(sides[0] - sides[1]).max()) > APART * max(float(own.max() - own.min()), 1e-6):
            raise UsageError(
                f"synthetic images would not look like the dataset's own: {paths[row]} has values from {own.min():.3g} to {own.max():.3g} "
                f"(mean {own.mean():.3g}) in its sample, but {made.min():.3g} to {made.max():.3g} (mean {made.mean():.3g}) by the way that was "
                f"found ({convert.name}), so the dataset does more than that. {HELP}"
            )
        compared += 1
    return compared > 0


def _check_range(convert: Converter, reals: Sequence[np.ndarray[Any, Any]], pictures: Sequence[Array]) -> None:
    if not reals or not pictures:
        return
    top = np.iinfo(pictures[0].dtype).max
    try:
        ends = [_values(convert(np.full_like(pictures[0], level), Truth(0, None))[0]) for level in (0, top)]
        shown = [_values(convert(picture, Truth(0, None))[0]) for picture in pictures]
    except Exception:  # it will be told with the first picture that is converted
        return
    if any(v is None for v in [*ends, *shown]):
        return
    black, white = float(ends[0].min()), float(ends[1].max())  # type: ignore[union-attr]
    low, high = min(float(r.min()) for r in reals), max(float(r.max()) for r in reals)
    made = max(float(v.max()) for v in shown if v is not None)
    width, real_width = white - black, high - low
    told = f"real samples have values from {low:.3g} to {high:.3g}, but black and white become {black:.3g} and {white:.3g} ({convert.name})"
    slack = 0.05 * max(width, 1e-6)
    if low < black - slack or high > white + slack:
        raise UsageError(
            f"synthetic images would have other values than the dataset's: {told}, so it does more than that. {HELP}"
        )
    wide = width > WIDER * max(real_width, 1e-9) and made - black > WIDER / 2 * max(high - black, 1e-9)
    if wide and real_width > 0:
        raise UsageError(f"synthetic images would be brighter than the dataset's: {told}. {HELP}")
    # Values that every image reaches: either end of a scale of two values, or each image scaled by its own.
    stretched = len(reals) >= 6 and all(abs(r.min() - low) < 1e-6 and abs(r.max() - high) < 1e-6 for r in reals)
    if stretched and "float" in str(reals[0].dtype) and real_width > 0:
        reach = [v for v in shown if v is not None and float(v.max() - v.min()) > 0.98 * real_width]
        if len(reach) < len(shown) / 2:
            raise UsageError(
                f"each real sample goes from {low:.3g} to {high:.3g} exactly, as where every image is scaled by its own least and greatest "
                f"value, and synthetic ones do not ({convert.name}). {HELP}"
            )


def _values(image: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(image, Image.Image):
        return np.asarray(image).astype(np.float64) if image.mode in ("L", "RGB") else None
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        return np.asarray(image.float() if image.dtype in (torch.bfloat16, torch.float16) else image, np.float64)
    return np.asarray(image, np.float64) if isinstance(image, np.ndarray) and image.dtype != object else None
