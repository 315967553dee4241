"""Inpainting: crops that repeat, pixels that change inside the mask alone, defects where composition would set them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch

from tests.ranks import TRAINER
from visynth.core.errors import UsageError
from visynth.generators.base import load_generator
from visynth.generators.blend import grow
from visynth.generators.inpainting import GROW, pad_to, surroundings, windows
from visynth.lightning_modules import DefectCrops, Inpainting


@pytest.fixture(scope="module")
def trained(samples: Path, tmp_path_factory):
    data = DefectCrops(
        str(samples / "images"), str(samples / "masks"), window=32, groups=str(samples / "groups.csv"), batch_size=8
    )
    own = Inpainting(width=8, multipliers=[1, 1], attention=[], warmup=16, sampler={"steps": 3}, micro_batch=4)
    root = tmp_path_factory.mktemp("inpaint")
    pytorch_lightning.Trainer(max_steps=6, default_root_dir=root, **TRAINER).fit(own, data)
    return own, data, own.export(root / "generator")


def test_it_trains_and_exports_and_loads(trained) -> None:
    own, data, folder = trained
    loaded = load_generator(folder)
    assert loaded.spec.kind == "inpainted"
    assert loaded.classes == data.facts.classes
    assert loaded.classes[-1] == "good"
    assert {m.split for m in loaded.members} == {"train"}
    made, again = (g.sample([1, 2, 3], [0, 1, 2]) for g in (own, loaded))
    assert torch.equal(made.images, again.images)


def test_pixels_change_inside_the_grown_mask_and_nowhere_else(trained) -> None:
    own, data, _ = trained
    grounds = {b.name: b.image for b in data.composition.backgrounds}
    samples = own.sample(list(range(12)), [k % 3 for k in range(12)])
    changed = 0
    for i in range(12):
        image = samples.crop(i).permute(1, 2, 0).numpy()
        ground = grounds[samples.parents[i][0]]
        mask = samples.masks[i, : image.shape[0], : image.shape[1]].numpy()
        differs = (image != ground).any(axis=2)
        assert not (differs & ~grow(mask, GROW)).any()
        changed += int((differs & mask).sum() > 0.5 * mask.sum())
    assert changed >= 10


def test_a_control_has_no_labelled_pixel(trained) -> None:
    own, _, _ = trained
    samples = own.sample([5], [len(own.facts.classes) - 1])
    assert not samples.masks.any()
    assert samples.boxes[0].numel() == 0


def test_it_paints_where_composition_pastes_on_the_same_seed(trained) -> None:
    own, data, _ = trained
    seeds, labels = [7, 8, 9], [0, 1, 2]
    painted = own.sample(seeds, labels)
    for k, plan in enumerate(map(data.composition.arrange, seeds, labels)):
        placed = torch.from_numpy(plan.placed())
        assert torch.equal(painted.masks[k, : placed.shape[0], : placed.shape[1]], placed)
        assert painted.parents[k][0] == plan.ground.name
    assert not torch.equal(data.composition.sample(seeds, labels).images, painted.images)


def test_real_defects_are_not_in_the_folder(trained) -> None:
    _, _, folder = trained
    assert all(not defect.image[defect.mask].any() for defect in load_generator(folder).defects)


def test_crops_are_functions_of_their_position(trained) -> None:
    _, data, _ = trained
    together = data.crops.__getitems__([3, 9, 4])
    alone = data.crops[9]
    assert torch.equal(together["image"][1], alone["image"])
    assert torch.equal(together["mask"][1], alone["mask"])
    masks = data.crops.__getitems__(range(200))
    assert masks["mask"].flatten(1).any(dim=1).all()
    free = (masks["label"] == len(data.facts.classes) - 1).double().mean()
    assert float(free) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_windows_cover_any_region(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    region = np.zeros((int(numbers.integers(64, 300)), int(numbers.integers(64, 300))), bool)
    y, x = (int(numbers.integers(0, s - 8)) for s in region.shape)
    region[y : y + int(numbers.integers(1, 250)), x : x + int(numbers.integers(1, 250))] = True
    covered = np.zeros_like(region)
    for top, left in windows(region, 64):
        assert top >= 0
        assert left >= 0
        assert top + 64 <= region.shape[0]
        assert left + 64 <= region.shape[1]
        covered[top : top + 64, left : left + 64] = True
    assert covered[region].all()


def test_the_network_is_told_nothing_of_what_is_in_the_hole() -> None:
    known = torch.rand(2, 1, 8, 8)
    hole = torch.zeros(2, 1, 8, 8)
    hole[:, :, 2:6, 2:6] = 1
    other = known.clone()
    other[:, :, 2:6, 2:6] = 5.0
    for a, b in zip(surroundings(known, hole), surroundings(other, hole), strict=True):
        assert torch.equal(a, b)


def test_small_pictures_are_continued_by_reflection() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert pad_to(image, 4)[0, :, 0].tolist() == [0, 1, 2, 1]
    assert pad_to(image, 2).shape == (2, 3, 1)


def test_wrong_input_is_told(samples: Path) -> None:
    with pytest.raises(UsageError, match="window must be at least 16"):
        DefectCrops(str(samples / "images"), window=8)
    with pytest.raises(UsageError, match="leave augment at 0"):
        Inpainting(augment=0.5)
    data = DefectCrops(str(samples / "images"), str(samples / "masks"), good="nothing")
    with pytest.raises(UsageError, match="defect-free class 'nothing'"):
        data.setup()
