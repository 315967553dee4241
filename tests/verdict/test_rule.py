"""The rule, in closed forms: limits, luck, families of classes, and what is no verdict."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, recall_score

from visynth.core.errors import DataError, UsageError
from visynth.verdict.bootstrap import Bootstrap, Scored, measure, weighted_ap, weighted_recall
from visynth.verdict.rule import (
    Comparison,
    Evidence,
    TwoWay,
    decide,
    holm,
    two_way_error,
)

GROUPS = 6


def decided(draw: int, hits: np.ndarray, names: str = "p") -> Scored:
    """A cell whose recall is the mean of ``hits`` [groups, images], beside ten negatives of one group each."""
    right = hits.ravel().astype(bool)
    truth = np.append(np.ones(len(right), bool), np.zeros(10, bool))
    groups = [*np.repeat([f"{names}{k}" for k in range(len(hits))], hits.shape[1]), *(f"n{k}" for k in range(10))]
    labels = truth.astype(int)
    return Scored(draw, truth, np.zeros(len(truth)), groups, None, labels, np.append(right, np.zeros(10)).astype(int))


def test_one_draw_is_a_t_interval_over_groups() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((GROUPS, 4)) < 0.7, rng.random((GROUPS, 4)) < 0.4
    found = two_way_error([decided(0, first)], [decided(0, second)], "recall")
    differences = first.mean(axis=1) - second.mean(axis=1)
    assert found.error == pytest.approx(differences.std(ddof=1) / np.sqrt(GROUPS))
    assert found.freedom == pytest.approx(GROUPS - 1)


def test_draws_and_groups_add_up_and_their_cells_are_taken_off() -> None:
    """With one image in each cell of a table of draws and groups, the error is that of the two-way formula."""
    rng = np.random.default_rng(1)
    draws = 5
    table = (rng.random((draws, GROUPS)) < 0.5).astype(float) - (rng.random((draws, GROUPS)) < 0.3)
    first = [decided(d, (table[d] > 0)[:, None]) for d in range(draws)]
    second = [decided(d, (table[d] < 0)[:, None]) for d in range(draws)]
    found = two_way_error(first, second, "recall")
    part = (table - table.mean()) / table.size
    grouped = (part.sum(axis=0) ** 2).sum() * GROUPS / (GROUPS - 1)
    drawn = (part.sum(axis=1) ** 2).sum() * draws / (draws - 1)
    assert found.error**2 == pytest.approx(max(grouped + drawn - (part**2).sum(), grouped, drawn))


def test_folds_of_one_draw_are_as_one_test() -> None:
    """Recall in two folds of equal size: the groups are the same six, wherever they are tested."""
    rng = np.random.default_rng(2)
    hits, none = rng.random((GROUPS, 4)) < 0.6, np.zeros((GROUPS, 4), bool)
    whole = two_way_error([decided(0, hits)], [decided(0, none)], "recall")
    folds = [(hits[:3], none[:3], "a"), (hits[3:], none[3:], "b")]
    parted = two_way_error([decided(0, h, n) for h, _, n in folds], [decided(0, z, n) for _, z, n in folds], "recall")
    assert parted.error == pytest.approx(whole.error)


def test_a_single_group_has_no_error_that_could_be_known() -> None:
    hits = np.ones((1, 4), bool)
    assert np.isinf(two_way_error([decided(0, hits)], [decided(0, ~hits)], "recall").error)


def arms(shift: float, seed: int = 0, groups: int = 20, draws: int = 5) -> dict[str, list[Scored]]:
    rng = np.random.default_rng(seed)
    names = [f"g{k // 3}" for k in range(6 * groups)]
    truth = np.array([k // 3 % 2 == 0 for k in range(6 * groups)])
    base = rng.normal(0, 1, len(truth)) + truth
    made = {"real": 0.0, "twin": 0.0, "synthetic": shift}
    return {
        name: [Scored(d, truth, base + own * truth + rng.normal(0, 0.3, len(truth)), names) for d in range(draws)]
        for name, own in made.items()
    }


def test_the_best_of_equal_baselines_is_lucky_and_a_clear_best_is_not() -> None:
    tested = arms(0.0)
    compared = Comparison(tested, Bootstrap(tested["real"]))
    best = compared.best(["real", "twin"])
    assert compared.evidence("synthetic", ["real", "twin"], best).luck > 0.001
    assert compared.evidence("synthetic", [best], best).luck == 0.0
    worse = {**tested, "twin": [Scored(c.draw, c.truth, -c.scores, c.groups) for c in tested["twin"]]}
    clear = Comparison(worse, Bootstrap(worse["real"]))
    assert clear.evidence("synthetic", ["real", "twin"], "real").luck == pytest.approx(0.0, abs=1e-9)


def test_a_gain_helps_a_loss_does_not_and_nothing_cannot_tell_which() -> None:
    answers = {}
    for shift in (-1.5, 0.0, 1.5):
        tested = arms(shift)
        evidence = Comparison(tested, Bootstrap(tested["real"])).evidence("synthetic", ["real"], "real")
        answers[shift] = decide(evidence, "real", 0.02).answer
    assert answers[1.5] == "helps"
    assert answers[-1.5] == "does not"
    assert answers[0.0] in ("cannot tell", "does not")


def test_a_loss_that_is_not_shown_is_no_does_not() -> None:
    replicates = np.random.default_rng(0).normal(-0.05, 0.1, 2000)
    assert decide(Evidence(-0.05, 0.0, replicates, None, 12), "real", 0.02).answer == "cannot tell"


@pytest.mark.parametrize(("draws", "groups"), [(5, 20), (5, 6), (1, 20), (10, 12)])
def test_the_wider_of_two_limits_counts(draws: int, groups: int) -> None:
    tested = arms(0.5, groups=groups, draws=draws)
    evidence = Comparison(tested, Bootstrap(tested["real"])).evidence("synthetic", ["real"], "real")
    alone = Evidence(evidence.mean, evidence.luck, evidence.replicates, None, evidence.groups)
    assert evidence.limit(0.025, -1) <= alone.limit(0.025, -1)
    assert evidence.limit(0.025, 1) >= alone.limit(0.025, 1)
    assert evidence.p_gain() >= alone.p_gain()


def test_a_clear_gain_passes_any_gate() -> None:
    """1,000 replicates that all show a gain are no floor under p: ten comparisons at 0.5 % can be passed."""
    replicates = np.random.default_rng(0).normal(0.5, 0.05, 1000)
    assert Evidence(0.5, 0.0, replicates, TwoWay(0.05, 15.0), 20).p_gain() * 10 < 0.005


def test_arms_of_other_draws_are_not_compared() -> None:
    tested = arms(0.5)
    tested["synthetic"] = tested["synthetic"][:3]
    with pytest.raises(DataError, match="arm synthetic was tested on the draws"):
        Comparison(tested, Bootstrap(tested["real"])).evidence("synthetic", ["real"], "real")


def test_groups_that_do_not_vary_tell_nothing() -> None:
    hits = np.ones((2, 1), bool)
    assert np.isinf(two_way_error([decided(0, hits)], [decided(0, ~hits)], "recall").error)


def test_p_and_limit_agree() -> None:
    for mean in (0.02, 0.05, 0.1, 0.14):
        replicates = np.random.default_rng(3).normal(mean, 0.04, 999)
        for two_way in (None, TwoWay(0.05, 4.0)):
            evidence = Evidence(mean, 0.0, replicates, two_way, 9)
            assert (evidence.p_gain() <= 0.025) == (evidence.limit(0.025, -1) > 0)


def test_below_two_test_groups_there_is_no_verdict() -> None:
    sure = np.random.default_rng(0).normal(0.5, 0.01, 999)
    assert decide(Evidence(0.5, 0.0, sure, None, 1), "real", 0.02).answer == "cannot tell"
    assert "test group(s), and a verdict needs 2" in decide(Evidence(0.5, 0.0, sure, None, 1), "real", 0.02).reason
    assert decide(Evidence(0.5, 0.0, sure, None, 2), "real", 0.02, fewest=3).answer == "cannot tell"
    assert decide(Evidence(0.5, 0.0, sure, None, 3), "real", 0.02, fewest=3).answer == "helps"


def test_shown_alone_but_not_among_many() -> None:
    replicates = np.random.default_rng(0).normal(0.1, 0.045, 999)
    evidence = Evidence(0.1, 0.0, replicates, None, 12)
    assert decide(evidence, "real", 0.02).answer == "helps"
    family = holm({"crack": evidence.p_gain(), **{f"other{k}": 0.6 for k in range(9)}})
    among = decide(evidence, "real", 0.02, family["crack"])
    assert among.answer == "cannot tell"
    assert "not among all that were compared" in among.reason


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """The adjusted value of a class is the largest over all families with it of size times smallest p."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        values = {name: float(p) for name, p in zip("abcde", rng.random(5) ** 3, strict=True)}
        families = [set(f) for size in range(1, 6) for f in combinations(values, size)]
        for name, found in holm(values).items():
            largest = max(len(f) * min(values[k] for k in f) for f in families if name in f)
            assert found == pytest.approx(min(1.0, largest))


def test_decisions_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    weights = rng.random((3, 60))
    cell = Scored(0, labels == 2, rng.normal(size=60), ["g"] * 60, None, labels, predicted)
    for row, own in enumerate(weights):
        recall = recall_score(labels == 2, predicted == 2, sample_weight=own)
        assert measure(cell, "recall", weights)[row] == pytest.approx(recall)
        macro = f1_score(labels, predicted, average="macro", sample_weight=own)
        assert measure(cell, "macro-f1", weights)[row] == pytest.approx(macro)


def test_ties_are_one_step_as_in_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(80) < 0.3, rng.integers(0, 6, 80) / 5.0
    weights = rng.random((4, 80))
    for row, own in zip(weighted_ap(truth, scores, weights), weights, strict=True):
        assert row == pytest.approx(average_precision_score(truth, scores, sample_weight=own))


def test_what_cannot_be_measured_is_nan_or_told() -> None:
    truth = np.ones(3, bool)
    assert np.isnan(weighted_recall(truth, np.arange(3.0), np.ones((1, 3)))[0])
    with pytest.raises(DataError, match="1 of 3 scores are not finite"):
        Scored(0, truth, np.array([1.0, np.nan, 2.0]), list("abc"))
    with pytest.raises(UsageError, match="needs decisions between all classes"):
        measure(Scored(0, truth, np.arange(3.0), list("abc")), "macro-f1", np.ones((1, 3)))
    with pytest.raises(UsageError, match="metric must be one of 'ap', 'recall@fpr'"):
        measure(Scored(0, truth, np.arange(3.0), list("abc")), "auc", np.ones((1, 3)))
