"""``visynth explore``: what a generator makes, to look at: seeds, truncation, and interpolations
between images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visynth.core.errors import UsageError, choices
from visynth.core.folders import claim_files, put_files
from visynth.core.pictures import fit_square, grid, png, to_display
from visynth.generators.base import Generator

TRUNCATIONS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
FORMATS = ("webp", "gif")


def explore(
    generator: Generator,
    out: str | Path,
    classes: Sequence[str] | None = None,
    seeds: Sequence[int] = range(16),
    frames: int = 24,
    side: int = 128,
    animation: str = "webp",
) -> list[Path]:
    """Write sheets, and for GANs strips and a looping animation of each class.

    Args:
        generator: any.
        out: folder of ``seeds.png``, and for each class ``CLASS_interpolation.png`` and ``CLASS.webp``; for StyleGAN2
            ``truncation.png``.
        classes: by default all.
        seeds: of the sheet; the animation goes from each of the first four to the next, and back to the first.
        frames: from one seed to the next.
        side: of an image on the sheets, in pixels.
        animation: "webp" or "gif".

    Returns:
        The files.

    Raises:
        UsageError: classes or a format that do not exist, or fewer than two seeds.
    """
    names = list(classes or generator.classes)
    problems = []
    unknown = [name for name in names if name not in generator.classes]
    if unknown:
        problems.append(f"classes {choices(unknown)} are not among the generator's {choices(generator.classes)}")
    if animation not in FORMATS:
        problems.append(f"animation must be one of {choices(FORMATS)}, but got {animation!r}")
    if len(seeds) < 2 or frames < 2 or side < 8:
        problems.append(
            f"at least 2 seeds, 2 frames and 8 pixels are needed, but got {len(seeds)}, {frames} and {side}"
        )
    if problems:
        raise UsageError("explore: " + "; ".join(problems) + ".")
    folder = Path(out)
    claim_files(folder, _names(generator, names, animation))
    written = [_sheet(generator, folder / "seeds.png", names, list(seeds), side)]
    if "truncation" in generator.options and "centre" in generator.options:
        written.append(_truncations(generator, folder / "truncation.png", names, list(seeds), side))
    if hasattr(generator, "interpolate"):
        for name in names:
            written += _interpolations(generator, folder, name, list(seeds)[:4], frames, side, animation)
    return written


def _names(generator: Generator, classes: Sequence[str], animation: str) -> list[str]:
    """Every file that may be written."""
    return [
        "seeds.png",
        "truncation.png",
        *(f"{name}{end}" for name in classes for end in ("_interpolation.png", f".{animation}")),
    ]


def _sheet(generator: Generator, path: Path, names: list[str], seeds: list[int], side: int) -> Path:
    """A row a class, a column a seed."""
    labels = [generator.classes.index(name) for name in names for _ in seeds]
    samples = generator.sample(seeds * len(names), labels)
    tiles = [_shown(samples.crop(row)) for row in range(len(samples))]
    put_files(path.parent, {path.name: png(grid(tiles, columns=len(seeds), side=side))})
    return path


def _truncations(generator: Generator, path: Path, names: list[str], seeds: list[int], side: int) -> Path:
    """A row a class and seed, a column a truncation."""
    labels = [generator.classes.index(name) for name in names for _ in seeds[:2]]
    columns = [
        generator.sample(seeds[:2] * len(names), labels, truncation=truncation).images for truncation in TRUNCATIONS
    ]
    tiles = [_shown(image) for row in zip(*columns, strict=True) for image in row]
    put_files(path.parent, {path.name: png(grid(tiles, columns=len(TRUNCATIONS), side=side))})
    return path


def _interpolations(
    generator: Any, folder: Path, name: str, seeds: list[int], frames: int, side: int, animation: str
) -> list[Path]:
    """A strip from the first seed to the second, and a loop over all."""
    label = generator.classes.index(name)
    still = {"noise": "const"} if "noise" in generator.options else {}  # per-seed noise would flicker between segments
    images = []
    for first, last in zip(seeds, [*seeds[1:], seeds[0]], strict=True):
        segment = generator.interpolate(first, last, label, frames + 1, **still)
        images += [_shown(image) for image in segment[:-1]]  # the last one is the next segment's first
    strip, loop = folder / f"{name}_interpolation.png", folder / f"{name}.{animation}"
    sheet = png(grid(images[: frames + 1 : max(1, frames // 8)], columns=9, side=side))
    animated = [Image.fromarray(fit_square(image, side)) for image in images]
    data = io.BytesIO()
    animated[0].save(data, format=animation.upper(), save_all=True, append_images=animated[1:], duration=60, loop=0)
    put_files(folder, {strip.name: sheet, loop.name: data.getvalue()})
    return [strip, loop]


def _shown(image: Any) -> Any:
    return to_display(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
