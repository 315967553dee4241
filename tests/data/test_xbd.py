"""Paired disaster tiles in xBD's layout, on files made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from visynth.core.codec import encode_png
from visynth.core.errors import DataError
from visynth.data.masks import load_mask
from visynth.data.reading import read_images
from visynth.data.xbd import building_crops, read_pairs, read_xbd


def feature(x: int, y: int, side: int, damage: str) -> dict:
    ring = f"{x} {y}, {x + side} {y}, {x + side} {y + side}, {x} {y + side}, {x} {y}"
    return {"properties": {"feature_type": "building", "subtype": damage, "uid": f"{x}"}, "wkt": f"POLYGON (({ring}))"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for event, number, damage in (("flood", 1, "no-damage"), ("flood", 2, "destroyed"), ("fire", 1, "destroyed")):
        before = np.full((64, 80, 3), 90, np.uint8)
        before[10:30, 20:40] = 200
        after = before.copy()
        after[10:30, 20:40] = 30 if damage == "destroyed" else 200
        stem = f"{event}_{number:08d}"
        (tmp_path / "images" / f"{stem}_pre_disaster.png").write_bytes(encode_png(before))
        (tmp_path / "images" / f"{stem}_post_disaster.png").write_bytes(encode_png(after))
        told = {"features": {"xy": [feature(20, 10, 20, damage)]}, "metadata": {"disaster": event}}
        (tmp_path / "labels" / f"{stem}_post_disaster.json").write_text(json.dumps(told))
    return tmp_path


def test_pairs_with_their_buildings(root: Path) -> None:
    pairs = read_pairs(root)
    assert [(p.name, p.event) for p in pairs] == [
        ("fire_00000001", "fire"),
        ("flood_00000001", "flood"),
        ("flood_00000002", "flood"),
    ]
    assert pairs[0].buildings[0].damage == "destroyed"
    assert pairs[0].buildings[0].outline == ((20, 10), (40, 10), (40, 30), (20, 30))


def test_crops_show_the_same_place_before_and_after(root: Path) -> None:
    crop = next(building_crops(read_pairs(root)[0], 40))
    assert crop.before.shape == crop.after.shape == (40, 40, 3)
    inside, outside = crop.mask, ~crop.mask
    assert 0.2 < inside.mean() < 0.35  # a building with half its side around it fills a quarter of the window
    assert crop.before[inside].mean() > 180
    assert crop.after[inside].mean() < 45
    assert np.abs(crop.before[outside].astype(int) - crop.after[outside]).mean() < 12
    assert crop.damage == "destroyed"


def test_a_building_at_the_edge_stays_inside_the_tile(root: Path) -> None:
    path = root / "labels" / "fire_00000001_post_disaster.json"
    path.write_text(
        json.dumps({"features": {"xy": [feature(70, 50, 9, "minor-damage"), feature(0, 0, 60, "destroyed")]}})
    )
    assert [c.mask.any() for c in building_crops(read_pairs(root)[0], 16)] == [True, True]


def test_as_a_set_events_are_groups_and_polygons_masks(root: Path) -> None:
    images = read_xbd(root)
    assert read_images(root).items == images.items
    assert images.classes == ("no-damage", "destroyed")
    assert images.counts() == {"no-damage": 1, "destroyed": 2}
    assert {item.group for item in images.items} == {"fire", "flood"}
    mask = load_mask(images, images.items[0], "destroyed")
    assert mask[15, 25]
    assert not mask[5, 5]


def test_everything_that_is_wrong_is_told_at_once(root: Path) -> None:
    (root / "images" / "flood_00000001_pre_disaster.png").unlink()
    (root / "images" / "fire_00000001_post_disaster.png").rename(root / "images" / "fire_00000009_post_disaster.png")
    (root / "labels" / "flood_00000002_post_disaster.json").write_text(
        '{"features": {"xy": [{"properties": {}, "wkt": "POINT (1 2)"}]}}'
    )
    with pytest.raises(DataError) as told:
        read_pairs(root)
    for words in (
        "flood_00000001_post_disaster.png has no tile before",
        "fire_00000001_pre_disaster.png has no tile after",
    ):
        assert words in str(told.value)
    assert "flood_00000002_post_disaster.json cannot be read" in str(told.value)
    with pytest.raises(DataError, match=r"not of the xBD layout"):
        read_pairs(root / "images")


def test_tiles_of_other_sizes_are_refused(root: Path) -> None:
    (root / "images" / "fire_00000001_pre_disaster.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(DataError, match="a pair must match"):
        read_pairs(root)[0].images()
