"""Feature metrics against torchmetrics with the same extractor, against closed forms, and over two uneven ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.ranks import run_ranks
from visynth.core.errors import DataError, UsageError
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractors import INCEPTION_FILE, extractor, inception_v3, of_module, read_weights, timm_network
from visynth.metrics.frechet import frechet_distance, frechet_of, reduced_frechet
from visynth.metrics.kernel import kernel, kid, kid_value, mmd2
from visynth.metrics.memorization import near_duplicates
from visynth.metrics.quality import EVERYTHING, compare, frechet_name, kid_name, per_class, table_rows
from visynth.metrics.stats import FeatureReservoir, FeatureStats


class Colours(nn.Module):
    """A tiny extractor that torchmetrics takes, too: means of a 4x4 grid of one channel."""

    num_features = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float()[:, :1], 4).flatten(1)


def pictures(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    numbers = np.random.default_rng(seed)
    return torch.from_numpy(np.clip(numbers.normal(100 + shift, 40, (count, 3, 16, 16)), 0, 255).astype(np.uint8))


class TestFrechet:
    def test_closed_forms(self) -> None:
        one = np.eye(3)
        assert frechet_distance(np.zeros(3), one, np.zeros(3), one) == 0.0
        assert frechet_distance(np.zeros(3), one, np.full(3, 2.0), one) == pytest.approx(12.0)
        assert frechet_distance(np.zeros(3), np.diag([1.0, 4, 9]), np.zeros(3), np.diag([4.0, 4, 1])) == pytest.approx(
            1 + 0 + 4
        )

    def test_the_symmetric_form_equals_the_matrix_square_root(self) -> None:
        from scipy.linalg import sqrtm

        numbers = np.random.default_rng(0)
        a, b = (numbers.normal(size=(40, 6)) @ numbers.normal(size=(6, 6)) for _ in range(2))
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
            np.cov(a.T) + np.cov(b.T) - 2 * sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        )
        assert frechet_of(a, b) == pytest.approx(expected, rel=1e-6)

    def test_it_equals_torchmetrics_with_the_same_extractor(self) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        real, fake = pictures(60, 0), pictures(50, 1, 15)
        theirs = FrechetInceptionDistance(feature=Colours())
        theirs.update(real, real=True)
        theirs.update(fake, real=False)
        ours = frechet_of(Colours()(real).numpy(), Colours()(fake).numpy())
        assert ours == pytest.approx(float(theirs.compute()), rel=1e-4)

    def test_too_few_are_refused_and_reduced_instead(self) -> None:
        numbers = np.random.default_rng(0)
        real, fake = numbers.normal(size=(60, 80)), numbers.normal(size=(70, 80))
        with pytest.raises(DataError, match="needs at least 81 images a side, but there are 60"):
            frechet_of(real, fake)
        value, kept = reduced_frechet(real, fake)
        assert kept == 12
        assert value > 0
        with pytest.raises(DataError, match="at least 10"):
            reduced_frechet(real[:5], fake)


class TestKid:
    @pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")
    def test_it_equals_torchmetrics_on_one_subset_of_everything(self) -> None:
        from torchmetrics.image.kid import KernelInceptionDistance

        real, fake = pictures(50, 0), pictures(50, 1, 15)
        theirs = KernelInceptionDistance(feature=Colours(), subsets=1, subset_size=50)
        theirs.update(real, real=True)
        theirs.update(fake, real=False)
        mean, _ = theirs.compute()
        assert kid_value(Colours()(real).numpy(), Colours()(fake).numpy()) == pytest.approx(float(mean), rel=1e-4)

    def test_it_equals_the_sum_over_pairs(self) -> None:
        numbers = np.random.default_rng(0)
        x, y = numbers.normal(size=(7, 3)), numbers.normal(size=(5, 3)) + 1

        def k(a: np.ndarray, b: np.ndarray) -> float:
            return (a @ b / 3 + 1) ** 3

        within = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 42
        other = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 20
        across = sum(k(a, b) for a in x for b in y) / 35
        assert kid_value(x, y) == pytest.approx(within + other - 2 * across)

    def test_it_is_unbiased_and_its_interval_covers(self) -> None:
        inside, values = 0, []
        for seed in range(60):
            numbers = np.random.default_rng(seed)
            found = kid(numbers.normal(size=(40, 4)), numbers.normal(size=(40, 4)), seed)
            values.append(found.value)
            inside += found.low <= 0 <= found.high
        assert abs(np.mean(values)) < 2.5 * np.std(values) / 60**0.5
        assert inside >= 51  # 95 % of 60 are 57

    def test_the_null_is_that_of_real_halves_and_a_shift_exceeds_it(self) -> None:
        numbers = np.random.default_rng(0)
        real = numbers.normal(size=(80, 4))
        same, shifted = kid(real, numbers.normal(size=(60, 4))), kid(real, numbers.normal(size=(60, 4)) + 1.5)
        assert same.value < same.null_high
        assert shifted.low > shifted.null_high
        assert (same.real, same.fake) == (80, 60)
        assert "n = 80 and 60" in str(same)

    @pytest.mark.parametrize(("n", "m"), [(60, 60), (60, 300), (200, 40)])
    def test_equal_distributions_pass_the_null_in_95_of_100(self, n: int, m: int) -> None:
        above = 0
        for seed in range(200):
            numbers = np.random.default_rng(seed)
            found = kid(numbers.normal(size=(n, 6)), numbers.normal(size=(m, 6)), seed)
            above += found.value > found.null_high
        assert 2 <= above <= 28  # 10 are expected

    def test_fewer_than_twenty_a_side_are_too_few(self) -> None:
        with pytest.raises(DataError, match="too few images for KID: 19 real and 40 made"):
            kid(np.zeros((19, 2)), np.zeros((40, 2)))

    def test_leaving_blocks_out_uses_the_same_estimate(self) -> None:
        x, y = np.random.default_rng(0).normal(size=(2, 30, 3))
        assert kid(x, y).value == pytest.approx(mmd2(kernel(x, x), kernel(y, y), kernel(x, y)))


class TestCopies:
    def test_copies_are_found_and_fresh_images_are_not(self) -> None:
        numbers = np.random.default_rng(0)
        train, fresh = numbers.normal(size=(200, 16)), numbers.normal(size=(200, 16))
        made = np.concatenate([train[:30] + 0.01 * numbers.normal(size=(30, 16)), fresh[:70]])
        found = near_duplicates(train, made)
        assert found.share == pytest.approx(0.3, abs=0.06)
        assert found.nearest[:30].tolist() == list(range(30))
        assert near_duplicates(train, fresh).share == pytest.approx(0.05, abs=0.05)
        assert near_duplicates(train, fresh).ratio == pytest.approx(1.0, abs=0.1)

    def test_a_set_with_repeats_does_not_hide_copies(self) -> None:
        train = np.random.default_rng(0).normal(size=(40, 8))
        train[20:] = train[:20]
        assert near_duplicates(train, train[:10]).share == 1.0
        assert near_duplicates(train, np.random.default_rng(1).normal(size=(30, 8))).share < 0.3

    def test_too_few_are_told(self) -> None:
        with pytest.raises(DataError, match="at least 3 training images"):
            near_duplicates(np.zeros((2, 4)), np.zeros((1, 4)))


def stats_worker(rank: int, out: str) -> None:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(23, 5))).float()
    own = features[:17] if rank == 0 else features[17:]  # 17 in three batches here, 6 in one there
    stats, pool = FeatureStats(5), FeatureReservoir(5, size=40, rank=rank)
    for part in own.split(6):
        stats.update(part)
        pool.update(part, torch.arange(len(part)))
    mean, covariance = stats.compute()
    kept, labels = pool.compute()
    torch.save({"mean": mean, "covariance": covariance, "kept": kept, "labels": labels}, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


class TestStats:
    def test_mean_and_covariance_in_batches(self) -> None:
        features = torch.from_numpy(np.random.default_rng(0).normal(3, 2, size=(50, 4)))
        stats = FeatureStats(4)
        for part in features.split(7):
            stats.update(part)
        mean, covariance = stats.compute()
        assert torch.allclose(mean, features.mean(0))
        assert torch.allclose(covariance, features.T.cov())
        assert stats.half().products.dtype == torch.float64
        lonely = FeatureStats(4)
        lonely.update(features[:1])
        with pytest.raises(DataError, match="at least 2"):
            lonely.compute()

    def test_a_reservoir_is_even_and_never_grows(self) -> None:
        kept = np.zeros(100)
        for seed in range(200):
            pool = FeatureReservoir(1, size=10, seed=seed)
            for part in torch.arange(100.0).split(9):
                pool.update(part[:, None])
                assert pool.features.shape == (10, 1)
            kept[pool.compute()[0][:, 0].long().numpy()] += 1
        assert kept.sum() == 2000
        assert abs(kept[:50].sum() - 1000) < 100
        assert kept.max() < 45

    def test_two_ranks_with_uneven_batches_have_what_one_has(self, tmp_path: Path) -> None:
        run_ranks(stats_worker, str(tmp_path))
        ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
        features = torch.from_numpy(np.random.default_rng(0).normal(size=(23, 5))).float()
        for found in ranks:
            assert torch.allclose(found["mean"], features.double().mean(0))
            assert torch.allclose(found["covariance"], features.double().T.cov())
            assert {tuple(row.tolist()) for row in found["kept"]} == {tuple(row.tolist()) for row in features}

    def test_nothing_is_kept_of_an_empty_batch(self) -> None:
        pool = FeatureReservoir(2, size=3)
        pool.update(torch.zeros(0, 2))
        assert pool.compute()[0].shape == (0, 2)
        with pytest.raises(UsageError, match="at least one feature"):
            FeatureReservoir(2, size=0)


class TestQuality:
    def test_each_class_and_all_of_them_with_their_numbers(self) -> None:
        numbers = np.random.default_rng(0)
        real = {
            "a": numbers.normal(size=(60, 4)),
            "b": numbers.normal(size=(25, 4)) + 3,
            "c": numbers.normal(size=(9, 4)),
        }
        made = {"a": numbers.normal(size=(40, 4)), "b": numbers.normal(size=(30, 4)), "c": numbers.normal(size=(30, 4))}
        found = {q.label: q for q in per_class(real, made, "toy@8")}
        assert list(found) == ["a", "b", "c", EVERYTHING]
        assert (found["a"].real, found["a"].made) == (60, 40)
        assert found["b"].kid.value > found["b"].kid.null_high
        assert found["c"].kid is None
        assert "too few for KID (9 real, 30 made; 20 a side)" in found["c"].notes
        assert found["a"].frechet[0] == "fd_toy@8"
        assert (found[EVERYTHING].real, found[EVERYTHING].made) == (27, 90)
        assert len(table_rows(list(found.values()))[1]) == 4

    def test_only_inception_is_called_fid(self) -> None:
        assert frechet_name("inception_v3") == "fid"
        assert frechet_name("dinov2@224") == "fd_dinov2@224"
        assert kid_name("inception_v3") == "kid"
        numbers = np.random.default_rng(0)
        reduced = compare(numbers.normal(size=(50, 90)), numbers.normal(size=(50, 90)), "a", "inception_v3").frechet
        assert reduced[0] == "fd_inception_v3_pca10"


class TestExtractors:
    def test_an_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(
            UsageError, match=r"no features 'resnet'.*'efficientnet_lite0', 'inception_v3'.*every name of timm's"
        ):
            extractor("resnet")

    def test_missing_weights_without_network_say_which_file_to_bring(self, monkeypatch, tmp_path: Path) -> None:
        monkeypatch.delenv("VISYNTH_INCEPTION", raising=False)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

        def no_network(*_, **__):
            raise OSError("no network")

        monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
        with pytest.raises(DataError, match=f"Bring the file {INCEPTION_FILE} .*VISYNTH_INCEPTION"):
            inception_v3()
        with pytest.raises(DataError, match="there is no file"):
            inception_v3(tmp_path / "nothing.pth")

    def test_timm_weights_that_cannot_be_fetched_say_so(self, monkeypatch) -> None:
        import timm

        def no_network(*_, **__):
            raise OSError("no network")

        monkeypatch.setattr(timm, "create_model", no_network)
        with pytest.raises(DataError, match=r"the weights of resnet18.a1_in1k could not be loaded.*weights="):
            extractor("resnet18.a1_in1k")

    def test_a_timm_network_from_a_local_file(self, tmp_path: Path) -> None:
        import timm
        from safetensors.torch import save_file

        source = timm.create_model("resnet10t", pretrained=False, num_classes=5).eval()
        save_file(source.state_dict(), tmp_path / "model.safetensors")
        found = timm_network("resnet10t", tmp_path / "model.safetensors")
        assert found.width == 512
        values = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
        expected = source.forward_features((torch.from_numpy(values).permute(2, 0, 1)[None] - found.mean) / found.std)
        assert torch.allclose(found.maps([values]), expected, atol=1e-4)

    def test_inception_through_the_real_loading_code(self, tmp_path: Path, monkeypatch) -> None:
        from torch_fidelity import feature_extractor_inceptionv3 as theirs

        # The real class with weights made here: its own loader is kept from the network while they are made.
        shapes: dict[str, torch.Tensor] = {}
        monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: shapes)
        monkeypatch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        plain = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        monkeypatch.undo()
        torch.save(plain.state_dict(), tmp_path / INCEPTION_FILE)

        monkeypatch.setenv("VISYNTH_INCEPTION", str(tmp_path / INCEPTION_FILE))
        found = extractor("inception_v3")
        images = pictures(3, 0)
        bank = FeatureBank(found, resolutions=(0,))
        bank.add([image.permute(1, 2, 0).numpy() for image in images])
        assert np.allclose(bank.get(0, "mean"), plain(images)[0].numpy(), atol=1e-5)
        assert (found.name, found.width) == ("inception_v3", 2048)

    def test_weights_are_read_without_running_anything(self, tmp_path: Path) -> None:
        import pickle

        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": Evil()}))
        with pytest.raises(DataError, match="cannot be read as weights"):
            read_weights(tmp_path / "evil.pth")
        assert not (tmp_path / "ran").exists()
        torch.save({"a": 1}, tmp_path / "odd.pth")
        with pytest.raises(DataError, match="does not hold a dict of tensors"):
            read_weights(tmp_path / "odd.pth")

    def test_a_module_is_frozen_and_told_its_width(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Dropout(0.5)).train()
        found = of_module(network, "mine")
        assert found.width == 7
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
