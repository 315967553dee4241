"""Metrics of sets against closed forms and outside references, their smallest sizes, and two uneven ranks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from visynth.core.errors import DataError, UsageError
from visynth.metrics.diversity import mode_coverage, repeats, vendi, vendi_ratio
from visynth.metrics.frechet import extrapolated_frechet, frechet_of
from visynth.metrics.memorization import authenticity, memorization
from visynth.metrics.probe import probe, utility
from visynth.metrics.suite import ACROSS, KINDS, SetQuality
from visynth.metrics.support import coverage, density, expected_coverage, precision, recall

CLASSES = ("crack", "dent", "free")


def normal(count: int, width: int = 6, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, width)) + shift).astype(np.float32)


class TestSupport:
    def test_density_and_coverage_by_hand(self) -> None:
        real = np.array([[0.0], [1.0], [3.0], [10.0]], np.float32)  # radius to the nearest other: 1, 1, 2, 7
        fake = np.array([[0.5], [4.0], [20.0]], np.float32)
        # 0.5 lies in the balls of 0 and 1 alone; 4 in those of 3 and 10; 20 in none.
        assert density(real, fake, 1) == pytest.approx(4 / 3)
        assert coverage(real, fake, 1) == 1.0
        assert coverage(real, fake[:1], 1) == 0.5
        assert precision(real, fake, 1) == pytest.approx(2 / 3)

    def test_against_torch_fidelity(self) -> None:
        reference = pytest.importorskip("torch_fidelity.metric_prc")
        real, fake = normal(120, seed=1), normal(90, seed=2, shift=0.4)
        found = reference.calculate_precision_recall_full(torch.from_numpy(fake), torch.from_numpy(real), 3)
        assert found == pytest.approx((precision(real, fake), recall(real, fake)), abs=1e-6)

    @pytest.mark.parametrize(("n", "m"), [(40, 40), (60, 30)])
    def test_fresh_reals_are_covered_as_often_as_chance_has_it(self, n: int, m: int) -> None:
        found = [coverage(normal(n, 3, 2 * k), normal(m, 3, 2 * k + 1)) for k in range(200)]
        assert np.mean(found) == pytest.approx(expected_coverage(n, m), abs=0.01)
        crowd = [density(normal(n, 3, 2 * k), normal(m, 3, 2 * k + 1)) for k in range(200)]
        assert np.mean(crowd) == pytest.approx(1 + 1 / (n - 1), abs=0.03)


class TestDiversity:
    def test_vendi_of_groups_that_do_not_meet(self) -> None:
        """Shares p of orthogonal images: exp of their entropy."""
        features = np.eye(3)[[0, 0, 0, 1, 1, 2]]
        entropy = -sum(p * math.log(p) for p in (1 / 2, 1 / 3, 1 / 6))
        assert vendi(features) == pytest.approx(math.exp(entropy))
        assert vendi(np.tile(features, (4, 1)) * 7) == pytest.approx(
            math.exp(entropy)
        )  # scale and number do not matter

    def test_lost_modes_and_repeats(self) -> None:
        rng = np.random.default_rng(0)
        real = np.concatenate([rng.normal(5 * k, 0.2, (20, 4)) for k in range(5)])
        assert mode_coverage(real, real[:60]) == pytest.approx(0.6)
        assert repeats(real, rng.normal(2, 3, (50, 4))) < 0.3
        assert repeats(real, np.repeat(real[:10], 2, axis=0)) == 1.0
        assert vendi_ratio(real, real[:20]) < 0.8 < vendi_ratio(real, real[::2])


class TestCopies:
    def test_rates_of_fresh_images_and_of_copies(self) -> None:
        parts = [normal(100, seed=k) for k in range(3)]
        assert memorization(*parts) == pytest.approx(0.5, abs=0.12)
        half = np.concatenate([parts[2][:50], parts[0][:50] + 1e-4])
        assert memorization(parts[0], parts[1], half) == pytest.approx(0.75, abs=0.07)
        assert authenticity(parts[0], parts[2]) == pytest.approx(0.5, abs=0.12)
        assert authenticity(parts[0], parts[0] + 1e-5) == 0.0


class TestProbe:
    def test_what_a_linear_classifier_can_tell(self) -> None:
        # Two normals a distance d apart along one axis: the best area is Phi(d / sqrt 2).
        real, fake = normal(2000, 2, 0), normal(2000, 2, 1)
        fake[:, 0] += 1.0
        best = 0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2)))
        assert probe(real, fake) == pytest.approx(best, abs=0.02)
        assert probe(normal(60, 20, 2), normal(60, 20, 3)) == pytest.approx(0.5, abs=0.15)

    def test_utility(self) -> None:
        real, held, fresh = ({n: normal(60, 4, s + k, 2.0 * k) for k, n in enumerate("abc")} for s in (0, 10, 20))
        assert utility(real, held, fresh) == pytest.approx(1.0, abs=0.08)
        assert utility(real, held, {**fresh, "c": fresh["a"]}) < 0.8

    def test_copies_are_worth_what_they_copy(self) -> None:
        """Classes of pure noise: whoever gives training images back must not look better than real ones."""
        found = []
        for seed in range(8):
            real, held = ({n: normal(40, 8, 100 * seed + s + k) for k, n in enumerate("ab")} for s in (0, 10))
            found.append(utility(real, held, {name: own + 1e-4 for name, own in real.items()}))
        assert np.mean(found) == pytest.approx(1.0, abs=0.02)


class TestLimit:
    @pytest.mark.parametrize("shift", [0.0, 0.5])
    def test_the_part_that_few_images_add_goes(self, shift: float) -> None:
        pairs = [(normal(200, 4, 2 * k), normal(200, 4, 2 * k + 1, shift)) for k in range(30)]
        plain = np.mean([frechet_of(*pair) for pair in pairs])
        limit = np.mean([extrapolated_frechet(*pair) for pair in pairs])
        true = 4 * shift**2
        assert plain - true > 0.02
        assert abs(limit - true) < (plain - true) / 4


def filled(classes: tuple[str, ...] = CLASSES, count: int = 40, **options) -> SetQuality:
    metric = SetQuality(classes, 6, features="toy", **options)
    labels = torch.arange(count * len(classes)) % len(classes)
    for k, side in enumerate(("real", "held_out", "fake")):
        metric.update(torch.from_numpy(normal(len(labels), seed=k)) + labels[:, None], labels, side)
    return metric


class TestSuite:
    def test_every_metric_has_a_value_of_each_class_and_of_all(self) -> None:
        metric = filled()
        values = metric.compute()
        assert metric.notes == []
        for name in KINDS:
            stem = {"kid": "kid_toy", "frechet": "fd_toy"}.get(name, name)
            for ending in ("", *(f"/{label}" for label in CLASSES)):
                assert torch.isfinite(values[f"{stem}{ending}"]), name
        assert all(name in values for name in ACROSS)
        assert values["fd_toy_infinity"] < values["fd_toy"]

    def test_a_class_has_what_its_features_have(self) -> None:
        metric = filled(metrics=["recall", "frechet"])
        real, fake = (normal(120, seed=k) + (np.arange(120) % 3)[:, None] for k in (0, 2))
        own = np.arange(120) % 3 == 1
        values = metric.compute()
        assert float(values["recall/dent"]) == recall(real[own].astype(np.float32), fake[own].astype(np.float32))
        assert float(values["fd_toy/dent"]) == pytest.approx(frechet_of(real[own], fake[own]), rel=1e-4)

    @pytest.mark.parametrize("name", list(KINDS))
    def test_below_its_smallest_size_it_is_told_and_not_given(self, name: str) -> None:
        few = KINDS[name].few
        metric = SetQuality(["a"], 6, features="toy", metrics=[name])
        for side in ("real", "held_out", "fake"):
            metric.update(torch.from_numpy(normal(few - 1)), torch.zeros(few - 1, dtype=torch.int64), side)
        assert metric.compute() == {}
        (note,) = metric.notes
        assert name in note
        assert f"{few - 1} real" in note
        for k, side in enumerate(("real", "held_out", "fake")):
            metric.update(torch.from_numpy(normal(3, seed=k)), torch.zeros(3, dtype=torch.int64), side)
        assert metric.compute()
        metric.reset()
        metric.update(torch.zeros(1, 6), torch.zeros(1, dtype=torch.int64), "fake")
        assert metric.compute() == {}

    def test_what_is_wrong_is_refused(self) -> None:
        with pytest.raises(UsageError, match="'sharpness'"):
            SetQuality(["a"], 6, metrics=["sharpness"])
        metric = SetQuality(["a"], 6)
        with pytest.raises(UsageError, match="side must be one of"):
            metric.update(torch.zeros(1, 6), torch.zeros(1), "made")
        with pytest.raises(UsageError, match="labels must be 0 to 0"):
            metric.update(torch.zeros(1, 6), torch.ones(1, dtype=torch.int64), "real")
        with pytest.raises(DataError, match="two classes"):
            utility({"a": normal(30)}, {"a": normal(30)}, {"a": normal(30)})

    def test_called_as_a_metric_it_keeps_what_it_saw(self) -> None:
        metric = SetQuality(["a"], 6, features="toy", metrics=["recall"])
        labels = torch.zeros(30, dtype=torch.int64)
        metric.update(torch.from_numpy(normal(30)), labels, "real")
        assert metric(torch.from_numpy(normal(30, seed=1)), labels, "fake") is None
        assert set(metric.compute()) == {"recall/a"}

    def test_a_rare_class_is_kept_whole_beside_many(self) -> None:
        metric = SetQuality(["free", "crack"], 6, features="toy", metrics=["recall"], size=100)
        for seed in range(10):
            labels = (torch.arange(100) >= 96).long()
            for side in ("real", "fake"):
                metric.update(torch.from_numpy(normal(100, seed=seed)), labels, side)
        features, labels = metric.real.compute()
        assert len(features) == 100
        assert torch.bincount(labels).tolist() == [60, 40]
        assert "recall/crack" in metric.compute()

    def test_two_ranks_with_uneven_batches_have_what_one_has(self, tmp_path: Path) -> None:
        run_ranks(suite_worker, str(tmp_path))
        ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
        one = SetQuality(CLASSES[:2], 6, features="toy", metrics=EXACT, size=500)
        for side, features, labels in parts():
            one.update(features, labels, side)
        expected = one.compute()
        for found in ranks:
            assert set(found) == set(expected)
            for name, value in expected.items():
                if "infinity" in name:  # by random parts of the images, which lie in another order
                    continue
                assert float(found[name]) == pytest.approx(float(value), rel=1e-6, abs=1e-9), name


EXACT = ["frechet", "precision", "recall", "density", "coverage", "near_duplicates", "authenticity", "memorization"]


def parts():
    labels = torch.arange(90) % 2
    for k, side in enumerate(("real", "held_out", "fake")):
        yield side, torch.from_numpy(normal(90, seed=k)), labels


def suite_worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    metric = SetQuality(CLASSES[:2], 6, features="toy", metrics=EXACT, size=500, rank=rank)
    for side, features, labels in parts():
        own = slice(0, 70) if rank == 0 else slice(70, 90)  # one rank has most, and in more batches
        for some, of in zip(features[own].split(16), labels[own].split(16), strict=True):
            metric.update(some, of, side)
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
