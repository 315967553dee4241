"""Distances from defect-free images, CutMix and early refusals: what every trial and evaluation measures with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from visynth.core.errors import UsageError
from visynth.data.imageset import Item
from visynth.jobs.measured import CUTMIX, MeasuredSet, check_learner
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractor import Extractor
from visynth.verdict.cells import Extra
from visynth.verdict.learners import learner_of

GOOD, CRACKS = 12, 4


@pytest.fixture
def measured() -> MeasuredSet:
    """12 good images of 6 groups and 4 cracks of 2; patches of good images lie at their group's number."""
    labels = ["good"] * GOOD + ["crack"] * CRACKS
    groups = [f"g{k // 2}" for k in range(GOOD)] + ["c0", "c0", "c1", "c1"]
    items = [Item(Path(f"{k}.png"), f"{k}.png", (label,), group=groups[k]) for k, label in enumerate(labels)]
    images = [np.full((32, 32, 1), 10 * k, np.uint8) for k in range(len(items))]
    bank = FeatureBank(Extractor("toy", nn.AvgPool2d(32), 3), (0,))
    bank.add(images)
    for row in range(len(items)):
        bank.patches[row] = np.full((5, 4), row // 2 if row < GOOD else 50, np.float16)
    positive = {name: np.array([label == name for label in labels]) for name in ("good", "crack")}
    return MeasuredSet(
        items=items, image=lambda row: images[row], bank=bank, positive=positive, groups=groups,
        weights=np.ones(len(items)), good="good",
    )  # fmt: skip


def test_an_image_lies_as_far_as_the_nearest_other_group(measured: MeasuredSet) -> None:
    train, test = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13]), np.array([10, 11, 14, 15])
    cell = measured.cell("crack", train=train, test=test)
    made = measured.bank.add([np.zeros((32, 32, 1), np.uint8)])
    measured.bank.patches[int(made[0])] = np.full((5, 4), 2.0, np.float16)  # a composite on an image of group g2
    cell = type(cell)(**{**vars(cell), "synthetic": Extra(made, [frozenset({"g2", "c0"})], 1)})
    found = measured.with_distances(cell).anomaly
    assert found is not None
    assert found[4] == pytest.approx(2.0, abs=0.01)  # g2 in four numbers: the nearest is g1 or g3, one off in each
    assert found[0] == pytest.approx(2.0, abs=0.01)
    assert found[10] == pytest.approx(2.0, abs=0.01)  # g5 is tested on: the nearest in training is g4
    assert found[14] == pytest.approx(2 * (50 - 4), abs=0.1)
    assert found[int(made[0])] == pytest.approx(2.0, abs=0.01)  # not 0: its own background does not count


def test_a_made_image_has_other_distances_where_other_groups_are_behind_it(measured: MeasuredSet) -> None:
    """The classes of one rendered set share their controls, and an untraced generator saw the groups of the class in question."""
    cell = measured.cell("crack", train=np.arange(0, 10), test=np.array([10, 14]))
    made = measured.bank.add([np.zeros((32, 32, 1), np.uint8)])
    measured.bank.patches[int(made[0])] = np.full((5, 4), 2.0, np.float16)
    seen = []
    for behind in ({"g2"}, {"c0"}, {"g2", "g3"}):
        one = type(cell)(**{**vars(cell), "control": Extra(made, [frozenset(behind)], 0)})
        seen.append(float(measured.with_distances(one).anomaly[made[0]]))
    assert seen == pytest.approx([2.0, 0.0, 2.0], abs=0.01)


def test_few_groups_have_no_distances(measured: MeasuredSet) -> None:
    cell = measured.cell("crack", train=np.array([0, 2, 4, 6, 12]), test=np.array([8, 14]))
    assert measured.with_distances(cell).anomaly is None  # of four groups
    measured.good = None
    cell = measured.cell("crack", train=np.arange(0, 14), test=np.array([14]))
    assert measured.with_distances(cell).anomaly is None


def test_cutmix_mixes_two_groups_of_the_training_side(measured: MeasuredSet) -> None:
    measured.add_augmented("crack", [12, 13, 14, 15], 0)
    cell = measured.cell("crack", train=np.array([0, 2, 12, 13, 14]), test=np.array([4, 15]), augmented=6)
    before = len(measured.bank)
    mixed = measured.with_cutmix(cell, "crack", 6, 0).augmented[CUTMIX]
    assert len(measured.bank) == before + 3
    assert set(mixed.parents) == {frozenset({"c0", "c1"})}
    assert mixed.label == measured.number("crack")
    bare = measured.cell("crack", train=np.array([0, 12]), test=np.array([4, 15]))
    assert measured.with_cutmix(bare, "crack", 6, 0) is bare


def test_metrics_of_decisions_are_refused_before_anything_is_measured(measured: MeasuredSet) -> None:
    check_learner(learner_of("frozen"), "frozen", "macro-f1", measured)
    check_learner(learner_of("finetune"), "finetune", "ap", measured)
    with pytest.raises(UsageError, match="the learner tells all classes apart, and finetune does not"):
        check_learner(learner_of("finetune"), "finetune", "macro-f1", measured)
    measured.items = [Item(Path("a"), "a", ("good", "crack"))] * 16
    del measured.labels
    with pytest.raises(UsageError, match="metric recall needs that images have one class each"):
        check_learner(learner_of("frozen"), "frozen", "recall", measured)
