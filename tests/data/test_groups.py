"""Near-duplicates, leaks, proposed groups, splits by group."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
import pytest

from visynth.core.errors import DataError, UsageError
from visynth.data import groups as grouping
from visynth.data.looks import grey_copy
from visynth.data.reading import read_images
from visynth.data.splits import group_folds, pick_groups
from visynth.lightning_modules.samplers import TemperedSampler, class_probabilities


def shots(parts: int, repeats: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Names and copies of ``parts`` images, each shot ``repeats`` times in a row with other light and noise."""
    rng = np.random.default_rng(seed)
    names, copies = [], []
    for part in range(parts):
        base = np.kron(rng.uniform(40, 200, (16, 16)), np.ones((4, 4)))
        for shot in range(repeats):
            image = base * rng.uniform(0.7, 1.2) + rng.normal(0, 4, base.shape)
            names.append(f"part/exp{shot}_num_{1000 * part + 7 * shot}.png")
            copies.append(grouping.small_copies(grey_copy(image.clip(0, 255).astype(np.uint8)[:, :, None])))
    return names, np.stack(copies)


def test_repeats_are_found_and_grouped_by_their_numbers() -> None:
    names, copies = shots(30, 4)
    found = grouping.neighbours(copies)
    assert found.repeated == 1.0
    proposal = grouping.propose_groups(names, found)
    assert "runs of the last number" in proposal.rule
    assert proposal.holds == 1.0
    assert list(proposal.groups) == [str(i // 4) for i in range(120)]
    assert grouping.across_groups(found, proposal.groups) == []


def test_where_names_say_nothing_likeness_groups() -> None:
    _, copies = shots(30, 3)
    order = np.random.default_rng(1).permutation(90)
    names = [f"{n:x}.png" for n in np.random.default_rng(2).integers(0, 2**60, 90)]
    proposal = grouping.propose_groups(names, grouping.neighbours(copies[order]))
    assert "look alike" in proposal.rule
    groups = np.array(proposal.groups)
    assert all(len(set(groups[order // 3 == part])) == 1 for part in range(30))


def test_a_chain_of_near_duplicates_does_not_become_one_group() -> None:
    """A camera that pans: each image is like its neighbours, the first and the last have nothing in common."""
    rng = np.random.default_rng(0)
    wide = np.kron(rng.uniform(40, 200, (4, 40)), np.ones((16, 16)))
    wide = cv2.GaussianBlur(wide, (0, 0), 4)
    places = np.cumsum([1 if place % 10 else 2 for place in range(120)])  # faster from ten to ten images than within
    images = [wide[:, place : place + 64] + rng.normal(0, 1, (64, 64)) for place in places]
    copies = np.stack([grouping.small_copies(grey_copy(i.clip(0, 255).astype(np.uint8)[:, :, None])) for i in images])
    found = grouping.neighbours(copies)
    names = [f"{n:x}" for n in rng.integers(0, 2**60, len(images))]
    proposal = grouping.propose_groups(names, found)
    sizes = np.unique(proposal.groups, return_counts=True)[1]
    chained = grouping._connected(len(images), found.pairs)
    assert np.bincount(chained).max() > 0.25 * len(images)
    assert sizes.max() <= grouping.SMALL
    assert "where they would chain" in proposal.rule


def test_distinct_pictures_need_no_groups() -> None:
    names, copies = shots(60, 1)
    found = grouping.neighbours(copies)
    assert found.repeated == 0
    assert grouping.propose_groups(names, found) is None
    assert grouping.random_split_leak(found) == 0


def test_leak_of_a_random_split_is_what_chance_gives() -> None:
    found = grouping.neighbours(shots(40, 4)[1])
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        test = rng.random(160) < 0.2
        part = np.arange(160) // 4
        trained = {int(p) for p in part[~test]}
        rates.append(np.mean([int(p) in trained for p in part[test]]))
    assert abs(grouping.random_split_leak(found) - np.mean(rates)) < 0.01


def test_blocks_do_not_matter() -> None:
    copies = shots(10, 3)[1]
    whole, pieces = grouping.neighbours(copies), grouping.neighbours(copies, block=7)
    assert (whole.nearest == pieces.nearest).all()
    assert (whole.pairs == pieces.pairs).all()


@pytest.mark.data
def test_magnetic_tile_leaks_and_its_tiles_are_found_without_being_told(real_data) -> None:
    from sklearn.metrics import adjusted_rand_score

    root = real_data("magnetic_tile")
    images = read_images(root / "images", groups=root / "groups.csv")
    found = grouping.find_neighbours(images)
    assert grouping.random_split_leak(found) > 0.8
    proposal = grouping.propose_groups([item.name for item in images.items], found)
    assert adjusted_rand_score([item.group for item in images.items], proposal.groups) > 0.9


@pytest.mark.data
@pytest.mark.parametrize("name", ["neu_det/images", "bccd_cells", "fire_uia"])
def test_sets_without_repeats_raise_no_alarm(real_data, name: str) -> None:
    images = read_images(real_data(name))
    found = grouping.find_neighbours(images)
    assert found.repeated < 0.02
    assert grouping.propose_groups([item.name for item in images.items], found) is None


class TestSplits:
    labels: ClassVar = ["a"] * 30 + ["b"] * 12
    groups: ClassVar = [str(i // 3) for i in range(42)]

    def test_groups_stay_whole_and_every_image_is_tested_once(self) -> None:
        tested = []
        for train, test in group_folds(self.labels, self.groups, 3, seed=4):
            assert not {self.groups[i] for i in train} & {self.groups[i] for i in test}
            assert {self.labels[i] for i in test} == {"a", "b"}
            tested += test.tolist()
        assert sorted(tested) == list(range(42))

    def test_seeds_change_the_folds_and_repeat_them(self) -> None:
        first, again, other = (group_folds(self.labels, self.groups, 3, seed=s)[0][1].tolist() for s in (1, 1, 2))
        assert first == again != other

    def test_too_few_groups(self) -> None:
        with pytest.raises(DataError, match="need at least 5 groups, but there are 2"):
            group_folds(["a", "b"], ["1", "2"], 5, seed=0)
        with pytest.raises(DataError, match="3 groups were asked for, but there are 2"):
            pick_groups(["1", "2"], 3, seed=0)

    def test_picked_groups_do_not_depend_on_order(self) -> None:
        assert pick_groups(list("abcdef"), 3, 1) == pick_groups(list("fedcba"), 3, 1)


class TestSampler:
    labels: ClassVar = [0] * 90 + [1] * 10

    @pytest.mark.parametrize(("temper", "share"), [(1.0, 0.1), (0.5, 0.25), (0.0, 0.5)])
    def test_shares_follow_n_to_the_temper(self, temper: float, share: float) -> None:
        assert class_probabilities(self.labels, temper)[90:].sum() == pytest.approx(share)
        draws = np.array(list(TemperedSampler(self.labels, temper=temper, length=20_000)))
        assert abs((draws >= 90).mean() - share) < 0.015

    def test_epochs_differ_and_repeat(self) -> None:
        sampler = TemperedSampler(self.labels, seed=3)
        first = list(sampler)
        sampler.set_epoch(1)
        second = list(sampler)
        sampler.set_epoch(0)
        assert list(sampler) == first != second
        assert len(sampler) == 100

    def test_bad_arguments(self) -> None:
        with pytest.raises(UsageError, match="at least one label"):
            TemperedSampler([])
        with pytest.raises(UsageError, match=r"temper must be in \[0, 1\]"):
            TemperedSampler([1], temper=2)
