"""What a trial reads, how often, and which images stand for which."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from visynth.core import codec
from visynth.data.imageset import Item, build
from visynth.data.reading import read_images
from visynth.jobs.preflight import preflight
from visynth.jobs.trial.data import KEPT, measured_items, weights_of
from visynth.jobs.trial.flow import run_trial
from visynth.jobs.trial.options import TrialOptions


def test_a_trial_decodes_each_file_at_most_twice(samples, tmp_path, monkeypatch) -> None:
    reads: Counter[Path] = Counter()
    before = codec._read

    def counted(path, limits):
        reads[path] += 1
        return before(path, limits)

    monkeypatch.setattr(codec, "_read", counted)
    images = read_images(samples / "images", masks=samples / "masks", groups=samples / "groups.csv")
    options = TrialOptions(draws=1, folds=2, synthetic=6, workers=0, learned="none")
    report = run_trial(images, ["spot"], tmp_path / "t", options=options, grouped=True, render=2)
    assert any(
        section["title"].startswith("Synthetic images by") for section in report.sections
    )  # galleries and renders too
    own = {path: count for path, count in reads.items() if samples in path.parents}
    assert len([path for path in own if "images" in path.parts]) == len(images)
    assert max(own.values()) == 2


def large_set(good: dict[str, int], bad: int):
    items = [
        Item(Path(f"/x/{g}_{k}.png"), f"good/{g}_{k}.png", ("good",), group=g)
        for g, n in good.items()
        for k in range(n)
    ]
    items += [Item(Path(f"/x/bad{k}.png"), f"bad/{k}.png", ("bad",), group=f"bad{k}") for k in range(bad)]
    return build(Path("/x"), items, None)


@pytest.mark.parametrize("good", [{"a": 1000, "b": 50, "c": 1}, {f"g{k}": 5 for k in range(400)}, {"a": 10}])
def test_measured_images_stand_for_the_whole_set(good) -> None:
    images = large_set(good, 20)
    items = measured_items(images, "good", 0)
    weights = weights_of(images, items, "good")
    own = np.array([i.labels == ("good",) for i in items])
    assert own.sum() == min(KEPT, sum(good.values()))
    assert weights[own].sum() == pytest.approx(sum(good.values()))
    assert (weights[~own] == 1).all()
    assert len({i.group for i in items if i.labels == ("good",)}) == min(len(good), KEPT)


def test_the_largest_groups_are_shown_and_one_that_dominates_is_told(class_folders) -> None:
    images = read_images(class_folders({"good": 30, "spot": 12}))
    grouped = replace(
        images,
        items=tuple(
            replace(i, group="big" if i.label == "good" and n < 20 else f"g{n // 3}")
            for n, i in enumerate(images.items)
        ),
    )
    found = preflight(grouped, ["spot"], grouped=True)
    assert any("group big holds 20 of 42 images (48%)" in line for line in found.leak_lines())
    sheets = [b for b in found.blocks() if b["kind"] == "gallery"]
    assert sheets[0]["note"] == "Group big: 20 images."
    assert [p.shape for p in sheets[0]["pictures"]] == [(96, 96, 3)] * 6
    assert len(sheets) == 4


def test_a_large_jpeg_is_looked_at_small_and_has_its_whole_size(tmp_path) -> None:
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.normal(128, 60, (1200, 1600)), (0, 0), 40) * 4 - 384
    image = np.clip(noise, 0, 255).astype(np.uint8)
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "x.jpg"), image)
    cv2.imwrite(str(tmp_path / "a" / "y.png"), image)
    images = read_images(tmp_path)
    jpeg, png = (images.look(item) for item in images.items)
    assert jpeg.size == png.size == (1200, 1600)
    assert np.abs(jpeg.grey - png.grey).max() < 3


def test_empty_masks_are_told_of_defects_alone(samples, tmp_path) -> None:
    """Some sets have a mask for every image, and defect-free images have empty ones."""
    shutil.copytree(samples, tmp_path / "s")
    images = read_images(tmp_path / "s" / "images")
    for item in images.items:
        path = tmp_path / "s" / "masks" / Path(item.name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if item.label == "good":
            cv2.imwrite(str(path), np.zeros(images.look(item).size, np.uint8))
    spot = next(item for item in images.items if item.label == "spot")
    cv2.imwrite(
        str(tmp_path / "s" / "masks" / Path(spot.name).with_suffix(".png")), np.zeros(images.look(spot).size, np.uint8)
    )
    found = preflight(read_images(tmp_path / "s" / "images", masks=tmp_path / "s" / "masks"), ["spot"])
    assert found.good == "good"
    assert found.bad_masks[spot.name] == "the mask is empty"
    assert not any(name.startswith("good/") for name in found.bad_masks)
