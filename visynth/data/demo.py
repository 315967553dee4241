"""A small semi-synthetic defect set, made on the spot from photographs that ship with scikit-image.

Real part: tiles of three texture photographs (brick, grass and gravel, CC0). Simulated part: three kinds of defect
drawn onto some tiles, with exact masks: ``scratch`` (thin and bright), ``spot`` (small, dark and blurred) and ``stain``
(broad and soft). Each 102-pixel region of a photograph is a group, shot several times at other offsets and exposures,
as a part on a line is; a region carries at most one kind of defect. It is for trying the tool out: results on it are no
evidence about real defects.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.codec import encode_png
from visynth.core.errors import UsageError, choices
from visynth.core.files import write_bytes
from visynth.core.folders import new_folder

PHOTOGRAPHS = ("brick", "grass", "gravel")
REGION, TILE = 102, 80
SHOTS = {"good": 6, "spot": 3, "stain": 3, "scratch": 3}
COUNTS = {"good": 240, "spot": 45, "stain": 30, "scratch": 30}  # images; the imbalance of a line that mostly works

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


def write_samples(folder: str | Path, *, per_class: Mapping[str, int] | None = None, seed: int = 0) -> Path:
    """Write ``images/<class>/*.png``, ``masks/<class>/*.png`` and ``groups.csv`` into a new folder.

    Args:
        folder: made anew; an older one of this name is replaced if it holds nothing else.
        per_class: images per class, by default good 240, spot 45, stain 30, scratch 30.
        seed: of offsets, exposures and defects.

    Returns:
        the folder.
    """
    counts = dict(COUNTS if per_class is None else per_class)
    unknown = [name for name in counts if name not in COUNTS]
    if unknown:
        raise UsageError(f"samples have no classes {choices(unknown)}; there are {choices(COUNTS)}.")
    regions = _regions()
    order = seeding.rng(seed, "samples/regions").permutation(len(regions))
    taken = 0
    rows: list[tuple[str, str, str]] = []
    with new_folder(folder) as new:
        # Defects first, each on regions of its own; the good class takes the rest and wraps around if it must.
        for name in sorted(counts, key=lambda c: (c == "good", counts[c], c)):
            groups = -(-counts[name] // SHOTS[name])
            for index in range(counts[name]):
                group, shot = divmod(index, SHOTS[name])
                region = int(order[(taken + group) % len(order)])
                image, mask = _shot(regions[region], name, region, shot, seed)
                file = f"{name}/region{region:02d}_shot{shot}_{index:03d}.png"
                for kind, pixels in (("images", image[:, :, None]), ("masks", mask[:, :, None].astype(np.uint8) * 255)):
                    if kind == "images" or name != "good":
                        (new / kind / name).mkdir(parents=True, exist_ok=True)
                        write_bytes(new / kind / file, encode_png(pixels))
                rows.append((file, name, f"region{region:02d}"))
            taken += groups
        with open(new / "groups.csv", "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("file", "class", "group"), *sorted(rows)])
    return Path(folder)


def _regions() -> list[NDArray[np.uint8]]:
    from skimage import data

    regions = []
    for name in PHOTOGRAPHS:
        photograph = np.asarray(getattr(data, name)())
        for top in range(0, photograph.shape[0] - REGION + 1, REGION):
            for left in range(0, photograph.shape[1] - REGION + 1, REGION):
                regions.append(photograph[top : top + REGION, left : left + REGION])
    return regions


def _shot(region: NDArray[np.uint8], name: str, number: int, shot: int, seed: int) -> tuple[NDArray[np.uint8], Mask]:
    """One exposure of a region: the defect belongs to the region, offset and light to the shot."""
    image: NDArray[Any] = region.astype(np.float32)
    image = 96 + (image - image.mean()) * 0.5  # the three photographs at one brightness, so that grain stays grain
    mask = np.zeros(region.shape, bool)
    if name != "good":
        image, mask = DRAW[name](image, seeding.rng(seeding.derive(seed, "defect", number, name), "samples"))
    light = seeding.rng(seeding.derive(seed, "shot", number, name, shot), "samples")
    top, left = (int(v) for v in light.integers(0, REGION - TILE + 1, 2))
    image = image * light.uniform(0.75, 1.3) + light.normal(0, 3, image.shape)
    part = np.s_[top : top + TILE, left : left + TILE]
    return np.clip(np.rint(image[part]), 0, 255).astype(np.uint8), mask[part]


def _scratch(image: Floats, generator: np.random.Generator) -> tuple[Floats, Mask]:
    angle, length = generator.uniform(0, np.pi), generator.uniform(26, 44)
    direction = np.array([np.cos(angle), np.sin(angle)])
    centre = REGION / 2 + generator.uniform(-8, 8, 2)
    bend = generator.uniform(-4, 4) * np.array([-direction[1], direction[0]])
    steps = np.linspace(-1, 1, 24)[:, None]
    points = centre + steps * direction * length / 2 + (1 - steps**2) * bend
    canvas = np.zeros(image.shape, np.uint8)
    cv2.polylines(canvas, [np.round(points).astype(np.int32)], False, 1, thickness=2)
    opacity = cv2.GaussianBlur(canvas.astype(np.float32), (0, 0), 0.7)[:, :, None][:, :, 0]
    return image + opacity * generator.uniform(45, 70), canvas.astype(bool)


def _spot(image: Floats, generator: np.random.Generator) -> tuple[Floats, Mask]:
    canvas = np.zeros(image.shape, np.uint8)
    centre = REGION / 2 + generator.uniform(-8, 8, 2)
    for _ in range(3):
        axes = tuple(int(v) for v in np.round(generator.uniform(3, 6.5, 2)))
        middle = tuple(int(v) for v in np.round(centre + generator.uniform(-3, 3, 2)))
        cv2.ellipse(canvas, middle, axes, float(generator.uniform(0, 180)), 0, 360, 1, -1)
    opacity = cv2.GaussianBlur(canvas.astype(np.float32), (0, 0), 1.2) * generator.uniform(0.55, 0.8)
    return np.asarray(image * (1 - opacity) + 40 * opacity, dtype=np.float32), canvas.astype(bool)


def _stain(image: Floats, generator: np.random.Generator) -> tuple[Floats, Mask]:
    canvas = np.zeros(image.shape, np.uint8)
    centre = tuple(int(v) for v in np.round(REGION / 2 + generator.uniform(-8, 8, 2)))
    axes = tuple(int(v) for v in np.round(generator.uniform(11, 19, 2)))
    cv2.ellipse(canvas, centre, axes, float(generator.uniform(0, 180)), 0, 360, 1, -1)
    opacity = cv2.GaussianBlur(canvas.astype(np.float32), (0, 0), 3)
    return image + opacity * generator.choice([-1, 1]) * generator.uniform(16, 26), canvas.astype(bool)


DRAW = {"scratch": _scratch, "spot": _spot, "stain": _stain}
