"""Measures against closed forms and scipy, attacks against a generator that copies and one that does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from tests.tabular.tables import dependent, every_kind
from visynth.core.errors import DataError
from visynth.privacy.membership import clopper_pearson, membership
from visynth.tabular import infer
from visynth.tabular.attacks import attack
from visynth.tabular.diversity import alpha_precision, authenticity, beta_recall, diversity, duplicates, modes
from visynth.tabular.fidelity import (
    associations,
    correlation_ratio,
    cramers_v,
    fidelity,
    jensen_shannon,
    ks_distance,
    shape,
    total_variation,
    trend,
    trends,
    two_sample_auc,
    wasserstein,
)
from visynth.tabular.schema import taken

G = np.random.default_rng(0)


def test_distances_of_marginals_agree_with_scipy_and_closed_forms() -> None:
    x, y = G.standard_normal(4000), G.standard_normal(4000) + 1
    assert ks_distance(x, y) == pytest.approx(stats.ks_2samp(x, y).statistic)
    assert ks_distance(x, y) == pytest.approx(2 * stats.norm.cdf(0.5) - 1, abs=0.03)  # of normals one deviation apart
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    assert total_variation(p, q) == pytest.approx(0.3)
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2))
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == 1.0
    assert wasserstein(x, x + 2) == pytest.approx(2 / x.std())


def test_a_column_is_compared_with_its_missing_values() -> None:
    x = G.standard_normal(1000)
    half = np.where(np.arange(1000) % 2 == 0, np.nan, x)
    assert shape(x, x, None).score == 1.0
    assert shape(x, half, None).score == pytest.approx(0.5)
    assert shape(x, half, None).missing == (0.0, 0.5)
    codes = np.array([0, 0, 1, -1])
    assert shape(codes, np.array([0, 0, 0, 0]), 2).score == pytest.approx(0.5)
    assert shape(np.full(9, np.nan), np.full(9, np.nan), None).score == 1.0


def test_trends_are_those_of_the_published_definition() -> None:
    frame = dependent(800)
    schema = infer(frame)
    real, fake = schema.table(frame), schema.table(dependent(800, seed=1).sample(frac=1, random_state=0))
    names = ("level", "double")
    own = [np.corrcoef(t[names[0]], t[names[1]])[0, 1] for t in (real, fake)]
    assert trend(real, fake, schema, *names) == pytest.approx(1 - abs(own[0] - own[1]) / 2)
    joint = [pd.crosstab(t["kind"], t["copy"], normalize=True).to_numpy() for t in (real, fake)]
    assert trend(real, fake, schema, "kind", "copy") == pytest.approx(1 - np.abs(joint[0] - joint[1]).sum() / 2)
    assert len(trends(real, fake, schema)) == 6  # of four columns: none is left out for being weak
    assert set(trends(real, real, schema).values()) == {1.0}


def test_associations_agree_with_scipy() -> None:
    a, b = G.integers(0, 4, 500), G.integers(0, 3, 500)
    b = np.where(G.random(500) < 0.6, a % 3, b)
    plain = stats.contingency.association(pd.crosstab(a, b).to_numpy(), method="cramer")
    assert abs(cramers_v(a, b) - plain) < 0.02  # ours is bias-corrected
    codes, numbers = G.integers(0, 3, 400), G.standard_normal(400)
    numbers = numbers + codes
    groups = [numbers[codes == k] for k in range(3)]
    f = stats.f_oneway(*groups).statistic
    assert correlation_ratio(codes, numbers) ** 2 == pytest.approx(2 * f / (2 * f + 397))  # eta squared of F
    frame = every_kind(200)
    schema = infer(frame)
    names, matrix = associations(schema.table(frame), schema)
    assert matrix.shape == (len(names), len(names))
    assert (matrix == matrix.T).all()
    assert ((matrix >= 0) & (matrix <= 1)).all()


def test_the_two_sample_test_sees_what_the_logistic_regression_does_not() -> None:
    frame = dependent(1500)
    schema = infer(frame)
    real = schema.table(dependent(1500, seed=2))
    shuffled = {
        name: values[np.random.default_rng(i).permutation(1500)] for i, (name, values) in enumerate(real.items())
    }
    independent = two_sample_auc(schema.table(frame), shuffled, schema)
    assert independent["boosted trees"] > 0.95
    assert independent["logistic regression"] < 0.6
    assert abs(two_sample_auc(schema.table(frame), real, schema)["boosted trees"] - 0.5) < 0.05


def test_real_against_itself_is_perfect(frame: pd.DataFrame) -> None:
    schema = infer(frame)
    table = schema.table(frame)
    measured = fidelity(table, table, schema)
    assert measured["shape_error"] == measured["trend_error"] == measured["association_error"] == 0
    spread = diversity(table, table, schema)
    for name in ("category coverage", "range coverage", "pairs of categories", "clusters reached"):
        assert spread[name] == 1.0
    assert spread["cluster difference"] == 0.0
    assert spread["authenticity"] == 0.0  # copies


def test_precision_recall_and_authenticity_in_closed_form() -> None:
    x = G.standard_normal((1500, 2))
    y = G.standard_normal((1500, 2))
    assert alpha_precision(x, x) == pytest.approx(1.0, abs=0.01)
    assert alpha_precision(x, y) > 0.95
    assert alpha_precision(x, y + 9) < 0.1
    assert beta_recall(x, y + 9) < beta_recall(x, y)
    assert 0.3 < authenticity(x, y) < 0.45  # of fresh rows: a row has one nearest neighbour, but may be that of several
    assert authenticity(x, x + 1e-9) == 0.0
    # The distance to compare with is the real neighbour's own: an index into the wrong array would say 1 here.
    real = np.array([[0.0], [0.1], [5.0], [9.0]])
    assert authenticity(real, np.array([[7.5]])) == 0.0
    assert authenticity(real, np.array([[0.35]])) == 1.0


def test_modes_and_repetitions_are_seen() -> None:
    x = np.concatenate([G.standard_normal((200, 2)), G.standard_normal((200, 2)) + 12])
    found = modes(x, x[:200])
    assert found == {"clusters": 2.0, "reached": 0.5, "difference": 0.5}
    assert duplicates({"a": np.array([1.0, 1.0, np.nan, np.nan])}) == 0.5


def test_attacks_find_a_generator_that_copies_and_not_one_that_does_not() -> None:
    frame = every_kind(900, seed=3)
    schema = infer(frame)
    table = schema.table(frame)
    members, controls, fresh = (taken(table, np.arange(300) + 300 * k) for k in range(3))
    copier = attack(members, controls, members, schema)
    assert copier.exact == (1.0, 0.0)
    assert copier.closer[0] > 0.95
    for one in copier.memberships:
        assert one.auc > (0.95 if "distance" in one.attack else 0.6), one.attack
        assert one.leaks
    assert any(g.leaks and "reconstruction" in g.attack for g in copier.guesses)
    honest = attack(members, controls, fresh, schema)
    assert honest.exact == (0.0, 0.0)
    assert honest.closer[1] < 0.5 < honest.closer[2]
    assert honest.leaks == []
    assert "distance to closest record" in copier.leaks


def test_a_share_closer_to_members_needs_as_many_controls(frame: pd.DataFrame) -> None:
    schema = infer(frame)
    table = schema.table(frame)
    with pytest.raises(DataError, match="as many controls as members, but got 50 and 100"):
        attack(taken(table, np.arange(100)), taken(table, np.arange(50)), table, schema)


def test_hits_at_a_rate_below_one_control_are_not_claimed() -> None:
    outcome = membership("a", G.random(500), G.random(500))
    assert set(outcome.hits) == {"0.01"}
    assert set(membership("a", G.random(2000), G.random(2000)).hits) == {"0.01", "0.001"}
    low, high = clopper_pearson(3, 50)
    assert low == pytest.approx(stats.binomtest(3, 50).proportion_ci(method="exact").low)
    assert high == pytest.approx(stats.binomtest(3, 50).proportion_ci(method="exact").high)
