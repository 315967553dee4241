"""Groups that look like one part: found whatever the light and the turn, and nothing where there is nothing to
match."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest

from visynth.core.codec import encode_png
from visynth.data.parts import align, components, find_same_parts, local_features
from visynth.data.reading import read_images
from visynth.jobs.preflight import preflight, write_groups


def surface(seed: int, side: int = 160) -> np.ndarray:
    """Smooth noise with edges: a part with marks of its own."""
    generator = np.random.default_rng(seed)
    grey = cv2.GaussianBlur(generator.normal(128, 60, (side, side)).astype(np.float32), (0, 0), 2) * 4 - 384
    for _ in range(25):
        a, b = generator.integers(0, side, (2, 2))
        cv2.line(grey, tuple(map(int, a)), tuple(map(int, b)), float(generator.uniform(0, 255)), 2)
    return grey


def shot(part: np.ndarray, turn: float, light: float, seed: int) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((80, 80), turn, 1.0)
    seen = cv2.warpAffine(part, matrix, (160, 160), borderMode=cv2.BORDER_REFLECT)[16:144, 16:144]
    noise = np.random.default_rng(seed).normal(0, 2, seen.shape)
    return np.clip(seen * light + noise, 0, 255).astype(np.uint8)[:, :, None]


@pytest.fixture
def folder(tmp_path):
    """Eight parts in ten groups: part 0 is in groups 0 and 8 (turned, darker), part 1 in groups 1 and 9."""
    rows = []
    for group, part in enumerate([0, 1, 2, 3, 4, 5, 6, 7, 0, 1]):
        for k in range(3):
            name = f"{'bad' if group % 2 else 'good'}/g{group}_{k}.png"
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            late = group >= 8
            turn = 3 * k + (170 if late else 0)
            image = shot(surface(part), turn, (0.45 if late else 1.0) - 0.05 * k, 10 * group + k)
            (tmp_path / "images" / name).write_bytes(encode_png(image))
            rows.append((name, str(group)))
    with open(tmp_path / "groups.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file", "group"), *rows])
    return tmp_path


def test_two_groups_of_one_part_are_named_and_merged(folder) -> None:
    images = read_images(folder / "images", groups=folder / "groups.csv")
    found = preflight(images, ["bad"], good="good", grouped=True)
    assert {pair.groups for pair in found.parts.pairs} == {("0", "8"), ("1", "9")}
    assert any("look like one part" in line and "0 = 8; 1 = 9" in line for line in found.leak_lines())
    assert write_groups(folder / "out", found) == ["groups.csv", "groups_merged.csv"]
    with open(folder / "out/groups_merged.csv", newline="", encoding="utf-8") as stream:
        assert {row["group"] for row in csv.DictReader(stream)} == {str(g) for g in range(8)}


def test_right_groups_stand_as_they_are(folder) -> None:
    with open(folder / "groups.csv", newline="", encoding="utf-8") as stream:
        rows = [(row["file"], {"8": "0", "9": "1"}.get(row["group"], row["group"])) for row in csv.DictReader(stream)]
    with open(folder / "right.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file", "group"), *rows])
    images = read_images(folder / "images", groups=folder / "right.csv")
    found = find_same_parts(images)
    assert (found.pairs, found.checked, found.groups) == ((), 8, 8)


def test_plain_images_and_other_parts_do_not_align() -> None:
    plain = local_features(np.full((64, 64, 1), 30, np.uint8))
    assert not align(plain, plain).holds
    one, other = (local_features(shot(surface(part), 0, 1.0, part)) for part in (0, 1))
    assert not align(one, other).holds
    turned = align(one, local_features(shot(surface(0), 90, 0.5, 5)))
    assert turned.holds
    assert abs(abs(turned.degrees) - 90) < 2
    assert abs(turned.scale - 1) < 0.02


def test_parts_of_one_design_are_told_as_such(tmp_path) -> None:
    for part in range(9):
        path = tmp_path / ("bad" if part % 3 == 0 else "good") / f"{part}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(shot(surface(0), 0, 1.0, part)))
    found = preflight(read_images(tmp_path, group_pattern=r"\d"), ["bad"], good="good", grouped=True)
    assert found.parts.one_design
    assert "parts of one design" in found.part_lines()[0]
    assert write_groups(tmp_path / "out", found) == ["groups.csv"]


def test_components_join_over_several_pairs() -> None:
    assert components([("a", "b"), ("c", "d"), ("d", "a")]) == [{"a", "b", "c", "d"}]
