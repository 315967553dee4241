"""Copies: planted ones are found, fresh images are none, whatever their light, turn and mirror image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.stats import binomtest

from visynth.core.errors import DataError
from visynth.data.looks import grey_copy
from visynth.metrics.copies import Copies, find_copies

SIDE = 64


def part(seed: int, shots: int) -> list[np.ndarray]:
    """Shots of one part: its own texture and a line, each with other light and noise."""
    rng = np.random.default_rng(seed)
    base = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 3)
    base /= base.std()
    ends = rng.integers(8, SIDE - 8, 4)
    cv2.line(base, tuple(map(int, ends[:2])), tuple(map(int, ends[2:])), -3.0, 2)
    out = []
    for _ in range(shots):
        noisy = base * rng.uniform(15, 30) + rng.uniform(100, 150) + rng.normal(0, 3, base.shape)
        out.append(np.clip(noisy, 0, 255).astype(np.uint8)[:, :, None])
    return out


def copied(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exact, mirrored, turned or recoloured."""
    way = int(rng.integers(0, 4))
    if way == 1:
        return image[:, ::-1]
    if way == 2:
        if rng.random() < 0.5:
            return np.rot90(image, int(rng.integers(1, 4)))
        matrix = cv2.getRotationMatrix2D((SIDE / 2 - 0.5, SIDE / 2 - 0.5), float(rng.uniform(5, 85)), 1.0)
        return cv2.warpAffine(image, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT_101).reshape(image.shape)
    if way == 3:
        light = (image.astype(float) / 255) ** rng.uniform(0.6, 1.6) * rng.uniform(0.7, 1.2) + rng.uniform(-0.1, 0.1)
        return (np.clip(light, 0, 1) * 255).astype(np.uint8)
    return image


def report(seed: int, copies: bool) -> Copies:
    """8 training parts of 6 shots; 60 synthetic images that are fresh shots of other parts, or a third of them copies."""
    rng = np.random.default_rng(seed)
    train = [(shot, f"p{k}") for k in range(8) for shot in part(1000 * seed + k, 6)]
    fresh = [shot for k in range(20) for shot in part(1000 * seed + 100 + k, 6)]
    made = [shot for k in range(10) for shot in part(1000 * seed + 200 + k, 6)]
    if copies:
        made[:20] = [copied(train[int(rng.integers(len(train)))][0], rng) for _ in range(20)]
    greys = [np.stack([grey_copy(image) for image in images]) for images in ([t for t, _ in train], made, fresh)]
    return find_copies(greys[0], [g for _, g in train], greys[1], greys[2])


def test_reports_with_a_third_of_copies_are_flagged_and_fresh_reals_are_not() -> None:
    count = 20
    assert sum(report(seed, True).flagged for seed in range(count)) >= 0.95 * count
    assert sum(report(seed, False).flagged for seed in range(count)) <= 0.05 * count


@pytest.mark.parametrize("way", ["exact", "mirrored", "quarter", "inverted", "brighter"])
def test_each_way_of_copying_is_found(way: str) -> None:
    train = [(shot, str(k)) for k in range(6) for shot in part(k, 2)]
    change = {
        "exact": lambda image: image,
        "mirrored": lambda image: image[::-1],
        "quarter": lambda image: np.rot90(image),
        "inverted": lambda image: 255 - image,
        "brighter": lambda image: (image * 0.5 + 60).astype(np.uint8),
    }[way]
    greys = np.stack([grey_copy(image) for image, _ in train])
    made = np.stack([grey_copy(change(image)) for image, _ in train])
    found = find_copies(greys, [g for _, g in train], made)
    assert found.found == len(train)
    assert found.nearest.tolist() == list(range(len(train)))


def test_limits_are_scipys_exact_ones() -> None:
    for found, of in ((0, 60), (3, 60), (20, 60), (60, 60)):
        low, high = Copies(found, of, 0, 20, 0.1, np.zeros(0, int), np.zeros(0)).limits
        exact = binomtest(found, of).proportion_ci(0.95, "exact")
        assert (low, high) == pytest.approx((exact.low, exact.high))


def test_too_few_to_say_anything() -> None:
    greys = np.random.default_rng(0).normal(size=(4, 32, 32)).astype(np.float32)
    with pytest.raises(DataError, match="copies need 3 training images and groups"):
        find_copies(greys, ["a", "a", "b", "b"], greys)
