"""PatchCore against brute force, and on textures with planted defects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from visynth.core.errors import DataError
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractor import PATCH, patches_of
from visynth.metrics.extractors import extractor
from visynth.metrics.patchcore import LARGEST, PatchCore, fit_patchcore


def some(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(count, 12, 6)).astype(np.float32))


def test_scores_are_means_of_the_largest_distances() -> None:
    free = some(8)
    core = fit_patchcore(free, list("aabbccdd"), size=1000)
    assert len(core.bank) == 96
    found = core.scores(some(3, seed=1))
    nearest = NearestNeighbors(n_neighbors=1).fit(np.concatenate(free))
    for score, image in zip(found, some(3, seed=1), strict=True):
        distances = np.sort(nearest.kneighbors(image)[0][:, 0])
        assert score == pytest.approx(distances[-LARGEST:].mean(), rel=1e-3)


def test_an_image_is_not_measured_by_its_own_group() -> None:
    free = some(4)
    core = fit_patchcore(free, list("aabb"), size=1000)
    assert core.scores(free[:1])[0] == pytest.approx(0.0, abs=1e-2)
    own = core.scores(free[:1], [{"a"}])[0]
    alone = fit_patchcore(free[2:], list("bb"), size=1000).scores(free[:1])[0]
    assert own == pytest.approx(alone, rel=1e-4)
    assert np.isnan(core.scores(free[:1], [{"a", "b"}])[0])


def test_a_greedy_bank_covers_better_than_a_random_one() -> None:
    rng = np.random.default_rng(0)
    free = [rng.normal(size=(40, 3)) ** 3 for _ in range(10)]  # heavy tails
    every = np.concatenate(free)
    greedy = fit_patchcore(free, ["g"] * 10, size=60)
    chance = PatchCore(every[rng.permutation(400)[:60]].astype(np.float32), np.array(["g"] * 60))
    pool = fit_patchcore(free, ["g"] * 10, size=100).bank  # 4 times as many are looked at: all of them

    def worst(core: PatchCore) -> float:
        return float(max(core.scores([patch[None] for patch in every[:240]])))

    assert len(pool) == 100
    assert worst(greedy) < worst(chance)


def test_without_images_there_is_no_bank() -> None:
    with pytest.raises(DataError, match="needs a defect-free image"):
        fit_patchcore([], [])


def test_patches_keep_distances_and_lie_on_the_coarser_grid() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 40, 8, 12), torch.randn(2, 112, 4, 6)]
    patches = patches_of(maps)
    assert patches.shape == (2, 24, PATCH)
    assert patches.dtype == torch.float16
    again = patches_of([m[:1] for m in maps])
    torch.testing.assert_close(patches[:1], again)
    still = patches_of([torch.ones(1, 40, 8, 8), torch.ones(1, 112, 4, 4)])[0].float()
    torch.testing.assert_close(still, still[:1].expand_as(still))


def texture(side: int, seed: int) -> np.ndarray:
    """Smooth grey noise."""
    import cv2

    noise = np.random.default_rng(seed).normal(0, 1, (side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.clip(128 + 60 * smooth / smooth.std() / 2, 0, 255).astype(np.uint8)[:, :, None]


def test_it_finds_defects_on_textures_that_it_never_saw(tmp_path) -> None:
    """Spots on textures, other ones than those of the bank; its patches come from the cache as from the network."""
    rng = np.random.default_rng(0)
    free = [texture(64, seed) for seed in range(24)]
    spoiled = []
    for seed in range(100, 112):
        image, (top, left) = texture(64, seed), rng.integers(8, 48, 2)
        image[top : top + 8, left : left + 8] = 250
        spoiled.append(image)
    bank = FeatureBank(extractor(), (0,), cache=tmp_path, keep_patches=True)
    rows = bank.add([*free, *spoiled])
    core = fit_patchcore([bank.patches[row] for row in rows[:12]], [str(k) for k in range(12)])
    scores = core.scores([bank.patches[row] for row in rows[12:]])
    assert roc_auc_score(np.arange(24) >= 12, scores) > 0.9
    again = FeatureBank(extractor(), (0,), cache=tmp_path, keep_patches=True)
    again.add([*free, *spoiled])
    assert again.computed == 0
    np.testing.assert_array_equal(again.patches[3], bank.patches[3])
