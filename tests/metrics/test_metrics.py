"""Ranking against scikit-learn, bootstrap and verdicts in closed forms, features, learners, arms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_curve
from torch import nn

from visynth.core.errors import UsageError
from visynth.metrics.bank import FeatureBank
from visynth.metrics.dense import DenseHead, coverage
from visynth.metrics.extractor import Extractor, prepare, prepare_square
from visynth.metrics.extractors import efficientnet_lite0, extractor
from visynth.verdict import cells as arms
from visynth.verdict import comparison
from visynth.verdict.bootstrap import Bootstrap, Interval, Scored, compare, measure, weighted_ap, weighted_recall
from visynth.verdict.comparison import run_cells
from visynth.verdict.frozen import FrozenLearner, Scale, _space
from visynth.verdict.learners import Items, inner_folds, split_parts
from visynth.verdict.linear import logistic
from visynth.verdict.ranking import average_precision, recall_at_fpr
from visynth.verdict.rule import Comparison


def case(seed: int, count: int = 60, rounded: bool = False):
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.3
    truth[0], truth[1] = True, False
    scores = rng.normal(size=count) + truth
    return (
        truth,
        scores.round(1) if rounded else scores,
        rng.integers(0, 4, count).astype(float) + (np.arange(count) < 2),
    )


class TestRanking:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("rounded", [False, True])
    def test_average_precision_is_scikit_learns(self, seed: int, rounded: bool) -> None:
        truth, scores, weights = case(seed, rounded=rounded)
        assert average_precision(truth, scores) == pytest.approx(average_precision_score(truth, scores))
        assert average_precision(truth, scores, weights) == pytest.approx(
            average_precision_score(truth, scores, sample_weight=weights)
        )

    @pytest.mark.parametrize("seed", range(5))
    def test_weighted_rows_are_single_calls(self, seed: int) -> None:
        truth, scores, weights = case(seed)
        rows = np.stack([weights, np.ones(60)])
        assert weighted_ap(truth, scores, rows).tolist() == pytest.approx(
            [average_precision(truth, scores, w) for w in rows]
        )
        assert weighted_recall(truth, scores, rows, 0.1).tolist() == pytest.approx(
            [recall_at_fpr(truth, scores, 0.1, w) for w in rows]
        )

    @pytest.mark.parametrize("seed", range(5))
    def test_recall_is_the_roc_curve_at_its_rate(self, seed: int) -> None:
        truth, scores, _ = case(seed)
        fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
        assert recall_at_fpr(truth, scores, 0.05) == pytest.approx(tpr[fpr <= 0.05].max())

    def test_macro_f1_is_scikit_learns(self) -> None:
        rng = np.random.default_rng(0)
        truth, guess = rng.integers(0, 4, 100), rng.integers(0, 4, 100)
        cell = Scored(0, truth == 0, np.zeros(100), ["g"] * 100, None, truth, guess)
        assert measure(cell, "macro-f1", np.ones((1, 100)))[0] == pytest.approx(f1_score(truth, guess, average="macro"))

    def test_without_positives_there_is_no_number(self) -> None:
        assert np.isnan(average_precision(np.array([False, False]), np.array([1.0, 2.0])))
        assert np.isnan(recall_at_fpr(np.array([True]), np.array([1.0])))


class TestVerdict:
    def make(self, shift: float, draws: int = 4, groups: int = 12, seed: int = 0) -> list[Scored]:
        rng, out = np.random.default_rng(seed), []
        for draw in range(draws):
            truth = np.repeat(np.arange(groups) % 3 == 0, 4)
            out.append(
                Scored(
                    draw,
                    truth,
                    rng.normal(size=len(truth)) + shift * truth,
                    [str(g) for g in np.repeat(np.arange(groups), 4)],
                )
            )
        return out

    def test_equal_arms_differ_by_nothing(self) -> None:
        same = {"a": self.make(1), "b": self.make(1)}
        difference, replicates = compare(same, "a", "b", Bootstrap(same["a"]))
        assert difference == Interval(0, 0, 0)
        assert not replicates.any()

    def test_a_real_difference_is_found_and_a_small_one_is_not(self) -> None:
        results = {"weak": self.make(0.2), "strong": self.make(3), "like": self.make(0.25, seed=1)}
        bootstrap = Bootstrap(results["weak"])
        assert compare(results, "strong", "weak", bootstrap)[0].low > 0.2
        assert (
            compare(results, "like", "weak", bootstrap)[0].low < 0 < compare(results, "like", "weak", bootstrap)[0].high
        )

    def test_weights_count_as_repeated_images_do(self) -> None:
        truth, scores = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.1])
        weighted = Scored(0, truth, scores, list("abcd"), np.array([1.0, 3.0, 1.0, 2.0]))
        rows = np.repeat(np.arange(4), [1, 3, 1, 2])
        repeated = Scored(0, truth[rows], scores[rows], [list("abcd")[r] for r in rows])
        for metric in ("ap", "recall@fpr"):
            first = Bootstrap([weighted]).mean([weighted], metric)
            second = Bootstrap([repeated]).mean([repeated], metric)
            assert first[0] == pytest.approx(second[0])
            np.testing.assert_allclose(first[1], second[1])

    def test_groups_are_resampled_whole(self) -> None:
        cells = self.make(1, draws=1, groups=6)
        weights = Bootstrap(cells, replicates=200).groups
        assert weights.shape == (200, 6)
        # Positive and negative groups among themselves: 2 and 4 in every replicate.
        assert (weights[:, [0, 3]].sum(1) == 2).all()
        assert (weights[:, [1, 2, 4, 5]].sum(1) == 4).all()

    def test_group_interval_is_wider_than_one_over_images(self) -> None:
        rng = np.random.default_rng(0)
        truth = np.repeat(np.arange(20) % 2 == 0, 10)
        scores = np.repeat(rng.normal(size=20), 10) + truth + rng.normal(size=200) * 0.1
        grouped = Scored(0, truth, scores, [str(g) for g in np.repeat(np.arange(20), 10)])
        single = Scored(0, truth, scores, [str(i) for i in range(200)])
        spread = [np.nanstd(Bootstrap([t]).mean([t], "ap")[1]) for t in (grouped, single)]
        assert spread[0] > 2 * spread[1]


class TestFrozen:
    def items(self, seed: int = 0, count: int = 60, width: int = 300):
        rng = np.random.default_rng(seed)
        table = rng.normal(size=(count, width)).astype(np.float32)
        positive = np.arange(count) < 15
        table[positive, :8] += 1.2
        items = Items(
            np.arange(count),
            positive,
            np.ones(count),
            [frozenset({str(i // 3)}) for i in range(count)],
            np.ones(count, bool),
        )
        return table, items

    def test_the_triangular_problem_has_the_same_scores(self) -> None:
        table, items = self.items()
        space = _space([Scale([table], np.arange(40))])
        assert space.triangular
        assert not np.triu(space.rows, 1).any()
        train, test = space.rows[:40, :40], space.rows[40:, :40]
        centred = (table - table[:40].mean(0)).astype(np.float64)
        scale = np.sqrt(1280 / (centred[:40] ** 2).sum(1).mean())
        for penalty in (0.001, 0.03):
            weights, bias = logistic(train, items.positive[:40], items.weights[:40], penalty)
            model = LogisticRegression(C=penalty, tol=1e-6, max_iter=1000).fit(
                centred[:40] * scale, items.positive[:40]
            )
            np.testing.assert_allclose(test @ weights + bias, model.decision_function(centred[40:] * scale), atol=0.02)

    def test_with_nothing_to_choose_it_is_still_validated(self) -> None:
        table, items = self.items()
        folds = inner_folds(items, [str(g) for g in range(20)], 3, seed=0)
        outcome = FrozenLearner(penalties=(0.1,)).fit({(0, "max"): table}, items, np.arange(5), folds, seed=0)
        assert len(outcome.by_fold) == 3
        assert outcome.inner == pytest.approx(np.mean(outcome.by_fold))

    def test_it_leaves_out_what_only_adds_noise(self) -> None:
        """Native scale tells; the other resolution, and means, are noise: by the inner folds they are left out."""
        table, items = self.items()
        noise = np.random.default_rng(9).normal(size=(3, *table.shape)).astype(np.float32) ** 3
        folds = inner_folds(items, [str(g) for g in range(20)], 3, seed=0)
        tables = {(0, "max"): table, (160, "max"): noise[0], (0, "mean"): noise[1], (160, "mean"): noise[2]}
        outcome = FrozenLearner().fit(tables, items, np.arange(5), folds, seed=0)
        assert (outcome.chosen["resolution"], outcome.chosen["pooling"]) == ("native", "max")
        assert outcome.inner > 0.5

    def test_scales_and_their_tables_have_equal_parts(self) -> None:
        rng = np.random.default_rng(0)
        parts = [rng.normal(0, spread, (30, width)) for spread, width in ((1, 9), (50, 4), (0.1, 5))]
        space = _space([Scale(own, np.arange(30)) for own in (parts[:2], parts[2:])])
        products = space.rows @ space.rows.T
        expected = 0
        for part, share in zip(parts, (320, 320, 640), strict=True):
            centred = part - part.mean(0)
            expected = expected + centred @ centred.T * share / (centred**2).sum(1).mean()
        np.testing.assert_allclose(products, expected, atol=1e-3)

    def test_the_distance_from_good_images_is_taken_where_it_tells(self) -> None:
        table, items = self.items()
        distance = (items.positive * 2.0 + np.random.default_rng(0).normal(0, 0.1, 60)).astype(np.float32)[:, None]
        folds = inner_folds(items, [str(g) for g in range(20)], 3, seed=0)
        noise = np.random.default_rng(9).normal(size=table.shape).astype(np.float32)
        outcome = FrozenLearner().fit({(0, "max"): noise, (0, "anomaly"): distance}, items, np.arange(60), folds, 0)
        assert outcome.chosen["anomaly score"] == "too"
        assert average_precision(items.positive, outcome.scores) > 0.99

    def test_one_positive_group_leaves_nothing_to_choose_on(self) -> None:
        table, items = self.items()
        one = Items(
            items.rows,
            items.positive,
            items.weights,
            [frozenset({"p" if p else str(i)}) for i, p in enumerate(items.positive)],
            items.real,
        )
        assert inner_folds(one, ["p", *map(str, range(60))], 3, 0) == []
        assert np.isnan(FrozenLearner().fit({(0, "max"): table}, one, np.arange(5), [], 0).inner)

    def test_nothing_made_from_held_out_groups_is_trained_on(self) -> None:
        items = Items(
            np.arange(4),
            np.array([True] * 4),
            np.ones(4),
            [frozenset("a"), frozenset("b"), frozenset("ab"), frozenset("bc")],
            np.array([True, True, False, False]),
        )
        train, held = split_parts(items, frozenset("a"))
        assert train.tolist() == [False, True, False, True]
        assert held.tolist() == [True, False, False, False]

    def test_inner_folds_deal_positive_groups_evenly(self) -> None:
        _, items = self.items()
        folds = inner_folds(items, [str(g) for g in range(20)], 3, seed=1)
        positive = {str(g) for g in range(5)}
        assert sorted(len(fold & positive) for fold in folds) == [1, 2, 2]
        assert frozenset().union(*folds) == {str(g) for g in range(20)}


TABLES = {(0, "max"): np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)}


class TestArms:
    def cell(self) -> arms.Cell:
        positive = np.array([True] * 4 + [False] * 16 + [True] * 4)
        groups = [f"g{i}" for i in range(24)]
        made = arms.Extra(np.arange(30, 36), [frozenset({"g0", "g9"})] * 6)
        return arms.Cell(
            0,
            0,
            np.arange(20),
            np.arange(20, 22),
            np.arange(22, 24),
            positive,
            groups,
            synthetic=made,
            control=arms.Extra(np.arange(36, 38), [frozenset({"g9"})] * 2),
            augmented={"geometry": made},
            has_oracle=True,
        )

    def built(self):
        cell = self.cell()
        built = arms.build_arms(cell, 0, TABLES) | {"augment geometry": arms.augmented_arm(cell, "geometry")}
        built["synthetic"] = arms.synthetic_arm(cell, arms.Amount(arms.HALF, control=False))
        built["synthetic+control"] = arms.synthetic_arm(cell, arms.Amount(arms.HALF))
        return built

    def test_synthetic_images_have_their_share_of_the_class(self) -> None:
        for control in (False, True):
            for share in arms.SHARES:
                for images in (None, 2):
                    items = arms.synthetic_arm(self.cell(), arms.Amount(share, images, control=control))
                    made = items.positive & ~items.real
                    assert made.sum() == (images or 6)
                    assert items.weights.sum() == pytest.approx(20)
                    assert items.weights[items.positive].sum() == pytest.approx(10)
                    assert items.weights[made].sum() == pytest.approx(10 * share)

    def test_a_mixture_with_classic_copies_has_both_shares(self) -> None:
        items = arms.synthetic_arm(self.cell(), arms.Amount(0.25, classic="geometry", control=False))
        assert items.weights[20:26].sum() == pytest.approx(10 * 0.25)
        assert items.weights[26:32].sum() == pytest.approx(10 * arms.LESS)
        assert items.weights[:4].sum() == pytest.approx(10 * 0.5)
        assert items.weights.sum() == pytest.approx(20)

    def test_weights_of_all_classes_are_even_where_the_class_is_balanced(self) -> None:
        labels = np.array([0] * 4 + [1] * 12 + [2] * 4 + [0] * 4)
        cell = replace(self.cell(), labels=labels, synthetic=replace(self.cell().synthetic, label=0))
        items = arms.synthetic_arm(cell, arms.Amount(0.25, control=False))
        weights = items.class_weights()
        sums = [weights[items.labels == label].sum() for label in range(3)]
        assert sums == pytest.approx([20 / 3] * 3)
        made = ~items.real
        assert weights[made].sum() == pytest.approx(0.25 * sums[0])
        plain = arms.real_items(cell)
        assert plain.class_weights() is plain.weights

    def test_every_arm_has_the_same_total_weight(self) -> None:
        built = self.built()
        assert set(built) == {
            "real",
            "balanced",
            "logit_adjusted",
            "duplicate",
            "smote",
            "focal",
            "ldam",
            "augment geometry",
            "synthetic",
            "synthetic+control",
            "oracle",
        }
        for items in built.values():
            assert items.weights.sum() == pytest.approx(20)

    def test_what_each_arm_is(self) -> None:
        built = self.built()
        real, double, balanced = built["real"], built["duplicate"], built["balanced"]
        assert set(real.weights) == {1.0}
        assert double.weights[0] / double.weights[5] == pytest.approx(
            10 / 4
        )  # 4 reals repeated to the 4 + 6 of synthesis
        for name in ("balanced", "synthetic", "smote", "oracle", "augment geometry", "synthetic+control"):
            items = built[name]
            assert items.weights[items.positive].sum() == pytest.approx(items.weights.sum() / 2)
        assert balanced.rows.tolist() == list(range(20))
        for name in ("synthetic", "smote", "augment geometry"):
            items = built[name]
            made = items.positive & ~items.real
            assert items.weights[made].sum() == pytest.approx(items.weights[items.positive & items.real].sum())
        assert built["oracle"].rows.tolist() == list(range(22))
        assert built["synthetic"].real.sum() == 20
        assert not built["synthetic+control"].positive[-2:].any()

    def test_smote_lies_between_two_reals_of_the_class(self) -> None:
        table = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
        items = arms.build_arms(self.cell(), 0, TABLES)["smote"]
        values = items.features(table)
        np.testing.assert_array_equal(values[:20], table[:20])
        for k in range(20, 26):
            a, b = table[items.rows[k]], table[items.partners[k]]
            assert items.rows[k] != items.partners[k]
            assert items.rows[k] < 4
            np.testing.assert_allclose(values[k], a + items.mix[k] * (b - a), rtol=1e-5)
            assert len(items.parents[k]) == 2

    def test_smote_takes_one_of_the_five_nearest_of_the_class(self) -> None:
        # Eight images of the class on a line, listed in an order that says nothing: neighbours lie near in value, not
        # in row.
        line = np.array([0, 100, 1, 101, 2, 102, 3, 103], np.float32)
        table = np.concatenate([line, np.full(12, 50, np.float32)])[:, None]
        made = arms.Extra(np.arange(60) % 8, [frozenset({"g0"})] * 60)
        cell = arms.Cell(
            0, 0, np.arange(20), np.zeros(0, np.int64), np.arange(2), np.arange(20) < 8, [f"g{i}" for i in range(20)], synthetic=made
        )  # fmt: skip
        near = arms.nearest_in_class(np.arange(8), {(0, "max"): table}, 3)
        for row, others in enumerate(near):
            assert set(others) == {other for other in range(8) if other % 2 == row % 2 and other != row}
        items = arms.build_arms(cell, 0, {(0, "max"): table})["smote"]
        truth = np.abs(table[:8] - table[:8].T)
        np.fill_diagonal(truth, np.inf)
        allowed = np.argsort(truth, axis=1)[:, :5]
        pairs = {(int(a), int(b)) for a, b in zip(items.rows[20:], items.partners[20:], strict=True)}
        assert all(b in allowed[a] for a, b in pairs)
        assert len(pairs) > 20, "all five neighbours are drawn from"

    def test_smote_mixes_activation_maps_too(self) -> None:
        table = np.random.default_rng(0).normal(size=(40, 3, 2, 2)).astype(np.float16)
        items = arms.build_arms(self.cell(), 0, TABLES)["smote"]
        assert items.features(table).shape == (26, 3, 2, 2)

    def test_logit_adjustment_takes_off_the_log_of_the_prior(self) -> None:
        cell = replace(self.cell(), labels=np.array([0] * 4 + [1] * 16 + [0] * 4))
        items = arms.build_arms(cell, 0, TABLES)["real"]
        np.testing.assert_allclose(arms.adjust(np.zeros((3, 2)), items), np.tile(-np.log([0.2, 0.8]), (3, 1)))


class TestBaseline:
    def results(self):
        cells = [
            arms.Cell(
                d,
                0,
                np.arange(12),
                np.zeros(0, np.int64),
                np.arange(12, 24),
                np.arange(24) % 3 == 0,
                [f"g{i}" for i in range(24)],
            )
            for d in range(2)
        ]
        table = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
        return run_cells("class", cells, {(0, "max"): table}, workers=0)

    def test_equal_baselines_are_named_in_their_own_order(self) -> None:
        """Logit adjustment ranks as "real" does: which of the two a report names must not depend on the interpreter's
        hashing."""
        results = self.results()
        assert results.tested.keys() == {"real", "balanced", "logit_adjusted", "duplicate", "focal", "ldam"}
        for name in ("balanced", "duplicate", "focal", "ldam"):
            results.tested[name] = results.tested["real"]
        compared = Comparison(results.tested, Bootstrap(results.tested["real"]))
        assert compared.best(["real", "balanced", "logit_adjusted"]) == "real"
        assert compared.best(["balanced", "real"], first="real") == "real"


class TestDenseWithoutMasks:
    def test_an_arm_that_some_cell_lacks_is_left_out(self) -> None:
        positive = np.arange(12) % 2 == 0
        covered = [np.ones(2, np.float32) if row in (0, 2) else None for row in range(12)]
        head = DenseHead(dict(enumerate([np.ones((2, 3), np.float16)] * 12)), dict(enumerate(covered)))
        groups = [f"g{i}" for i in range(12)]
        none = np.zeros(0, np.int64)
        masked = arms.Cell(0, 0, np.arange(6), none, np.arange(6, 12), positive, groups)
        bare = arms.Cell(0, 1, np.arange(6, 12), none, np.arange(6), positive, groups)
        outcomes = [comparison.dense_arms(cell, head) for cell in (masked, bare)]
        assert [list(outcome) for outcome in outcomes] == [["dense"], []]
        assert "dense" not in comparison.gather("crack", [masked, bare], outcomes, 0.0).tested
        assert len(comparison.gather("crack", [masked], outcomes[:1], 0.0).tested["dense"]) == 1


class TestFeatures:
    toy = Extractor("toy", nn.AvgPool2d(32), 3)

    def test_pictures_are_whole_and_keep_their_proportions(self, picture) -> None:
        assert prepare(picture(64, 96, 1), 0).shape == (64, 96, 1)
        assert prepare(picture(100, 100, 3), 50).shape == (64, 64, 3)
        assert prepare(picture(10, 10, 5, "uint16"), 0).shape == (32, 32, 3)
        assert prepare(picture(2000, 500, 1), 0).shape == (1024, 256, 1)
        assert prepare_square(picture(40, 80, 1), 64).shape == (64, 64, 1)

    def test_depths_agree(self, picture) -> None:
        eight = picture(40, 40, 3)
        np.testing.assert_allclose(prepare(eight, 0), prepare(eight.astype(np.uint16) * 257, 0), atol=1e-6)

    def test_features_do_not_depend_on_company_or_cache(self, picture, tmp_path) -> None:
        images = [picture(32 + 32 * (i % 2), 40, 1, seed=i) for i in range(7)]
        alone = [FeatureBank(self.toy, (0,)) for _ in images]
        for bank, image in zip(alone, images, strict=True):
            bank.add([image])
        together = FeatureBank(self.toy, (0, 20), cache=tmp_path)
        together.add(images)
        np.testing.assert_allclose(together.get(0, "max"), np.concatenate([b.get(0, "max") for b in alone]), atol=1e-6)
        again = FeatureBank(self.toy, (0, 20), cache=tmp_path)
        again.add(images)
        assert again.computed == 0
        np.testing.assert_array_equal(again.get(20, "mean"), together.get(20, "mean"))
        assert {p.name.rsplit("-", 1)[0] for p in tmp_path.iterdir()} == {"toy@native", "toy@20"}

    def test_a_torn_cache_entry_is_computed_again(self, picture, tmp_path) -> None:
        FeatureBank(self.toy, (0,), cache=tmp_path).add([picture(32, 32)])
        entry = next(tmp_path.rglob("*.f32"))
        entry.write_bytes(entry.read_bytes()[:5])
        bank = FeatureBank(self.toy, (0,), cache=tmp_path)
        bank.add([picture(32, 32)])
        assert bank.computed == 1

    def test_lite0_knows_a_cat(self) -> None:
        import timm
        from skimage import data

        from visynth.metrics import extractors

        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1000)
        weights = torch.load(extractors._lite0_file(), weights_only=True)
        network.load_state_dict(extractors._renamed(weights, network))
        maps = efficientnet_lite0().maps([prepare(np.asarray(data.chelsea()), 224)])
        logits = network.eval().classifier(maps.mean((2, 3)))
        assert int(logits.argmax()) in (281, 282, 285)  # tabby, tiger cat, Egyptian cat

    def test_folded_norms_and_the_parted_network_change_nothing(self) -> None:
        import timm

        from visynth.metrics import extractors

        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1000).eval()
        network.load_state_dict(extractors._renamed(torch.load(extractors._lite0_file(), weights_only=True), network))
        batch = torch.rand(2, 3, 64, 64) * 2 - 1
        ours = extractor()
        with torch.inference_mode():
            expected = network.forward_features(batch)
            turned = expected.flip(2, 3)  # it sees images turned, so that its padding is even on all sides
            torch.testing.assert_close(ours.network(batch), turned, atol=2e-4, rtol=1e-3)
            torch.testing.assert_close(ours.tail(ours.trunk(batch)), turned, atol=2e-4, rtol=1e-3)
            images = [((image + 1) / 2).permute(1, 2, 0).numpy() for image in batch]
            torch.testing.assert_close(ours.maps(images), expected, atol=2e-4, rtol=1e-3)

    @pytest.mark.parametrize("shape", [(64, 64), (96, 32), (45, 77)], ids=str)
    def test_the_turned_network_is_the_same_at_odd_sizes_too(self, shape: tuple[int, int]) -> None:
        import timm

        from visynth.metrics import extractors

        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1000).eval()
        network.load_state_dict(extractors._renamed(torch.load(extractors._lite0_file(), weights_only=True), network))
        batch = torch.rand(1, 3, *shape) * 2 - 1
        with torch.inference_mode():
            turned = network.forward_features(batch).flip(2, 3)
            torch.testing.assert_close(extractor().network(batch), turned, atol=2e-4, rtol=1e-3)

    def test_a_network_that_keeps_things_is_called_by_one_thread(self) -> None:
        import threading

        from visynth.metrics.extractors import of_module

        class Keeps(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.threads: set[int] = set()

            def forward(self, values):
                self.threads.add(threading.get_ident())
                self.last = values.mean(dim=(2, 3))
                return self.last

        own = Keeps()
        made = of_module(own, "keeps")
        made.described([np.full((400, 400, 1), k / 9, np.float32) for k in range(9)])
        assert own.threads == {threading.get_ident()}

    def test_images_on_several_cores_have_the_features_that_each_has_alone(self) -> None:
        ours, rng = extractor(), np.random.default_rng(0)
        images = [rng.random((64, 96, 3), np.float32) for _ in range(9)]
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            together = ours.described(images, patches=True)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(threads)
        for k, image in enumerate(images):
            alone = ours.described([image], patches=True)
            torch.testing.assert_close(together.pooled[k], alone.pooled[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(together.maps[k], alone.maps[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(together.patches[k], alone.patches[0], atol=1e-2, rtol=1e-2)

    def test_unknown_extractor(self) -> None:
        with pytest.raises(UsageError, match="there are 'dinov2', 'efficientnet_lite0', 'inception_v3'"):
            extractor("resnet999")
        with pytest.raises(UsageError, match="cannot be fine-tuned"):
            self.toy.trunk_of([])


class TestDense:
    def test_coverage_counts_mask_pixels_at_each_place(self) -> None:
        mask = np.random.default_rng(0).random((70, 50)) < 0.3
        counts = coverage(mask).reshape(3, 2)
        assert counts.sum() == mask.sum()
        assert counts[1, 0] == mask[32:64, :32].sum()

    def test_it_finds_a_defect_at_one_place(self) -> None:
        rng = np.random.default_rng(0)
        places, covered = [], []
        for row in range(60):
            values, hit = rng.normal(size=(6, 16)), np.zeros(6, np.float32)
            if row < 20:
                where = rng.integers(6)
                values[where, :4] += 3
                hit[where] = 9
            places.append(values.astype(np.float16))
            covered.append(hit if row < 20 else None)
        rows = np.arange(0, 60, 2)
        items = Items(rows, rows < 20, np.ones(30), [frozenset({str(r)}) for r in rows], np.ones(30, bool))
        test = np.arange(1, 60, 2)
        head = DenseHead(dict(enumerate(places)), dict(enumerate(covered)))
        outcome = head.fit(items, test, inner_folds(items, [str(r) for r in rows], 2, 0), seed=0)
        assert average_precision(test < 20, outcome.scores) > 0.9
        assert outcome.inner > 0.8


def test_the_finetuned_learner_learns_and_repeats(picture) -> None:
    from visynth.lightning_modules.classifier import FinetuneLearner

    bank = FeatureBank(extractor(), (0,), trunk=64)
    images = [picture(64, 64, 3, seed=i) // (1 if i % 2 else 4) for i in range(24)]
    bank.add(images)
    tables = {(160, "trunk"): bank.tables()[(64, "trunk")]}
    rows = np.arange(16)
    items = Items(rows, rows % 2 == 1, np.ones(16), [frozenset({str(r)}) for r in rows], np.ones(16, bool))
    state = torch.random.get_rng_state()
    outcomes = [
        FinetuneLearner(steps=12, batch=8).fit(tables, items, np.arange(16, 24), [frozenset({"0", "1"})], seed=1)
        for _ in range(2)
    ]
    assert average_precision(np.arange(16, 24) % 2 == 1, outcomes[0].scores) > 0.8
    np.testing.assert_allclose(outcomes[0].scores, outcomes[1].scores, atol=1e-5)
    assert np.isfinite(outcomes[0].inner)
    assert torch.equal(torch.random.get_rng_state(), state)
