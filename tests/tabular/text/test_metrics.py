"""Metrics of texts against closed forms and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visynth.core.errors import DataError
from visynth.tabular.text import metrics


def test_distinct_counts_runs() -> None:
    assert metrics.distinct(["a b c", "a b d"], 1) == 4 / 6
    assert metrics.distinct(["a b c", "a b d"], 2) == 3 / 4
    assert metrics.distinct(["a"], 2) == 0


def test_bleu_by_hand() -> None:
    # 5 of 6 words, 2 of 5 pairs, no triple of 4 and no quadruple of 3 (a tenth of a match each), lengths 6 and 7.
    text, reference = ["the", "cat", "sat", "on", "a", "mat"], ["the", "cat", "is", "on", "a", "big", "mat"]
    precisions = [5 / 6, 2 / 5, 0.1 / 4, 0.1 / 3]
    expected = math.exp(sum(map(math.log, precisions)) / 4 + 1 - 7 / 6)
    assert metrics.bleu(text, [reference]) == pytest.approx(expected)
    assert metrics.bleu(["a"], [["a"]]) == 1.0
    assert metrics.bleu(["a", "a"], [["a"]]) == pytest.approx(math.sqrt(0.5 * 0.1))
    assert metrics.bleu([], [["a"]]) == 0.0


def test_self_bleu_is_high_for_repeats_and_low_for_strangers() -> None:
    assert metrics.self_bleu(["it broke after two days"] * 5) == 1.0
    assert metrics.self_bleu([f"a{k} b{k} c{k} d{k}" for k in range(5)]) < 0.1
    texts = ["a b c a b", "a b d a b", "c b a", "a a a", "x y z x"]
    each = [metrics.bleu(t.split(), [o.split() for o in texts[:k] + texts[k + 1 :]]) for k, t in enumerate(texts)]
    assert metrics.self_bleu(texts) == pytest.approx(np.mean(each))


def test_compression_sees_repeats_across_texts() -> None:
    rng = np.random.default_rng(0)
    strangers = ["".join(map(chr, rng.integers(97, 123, 40))) for _ in range(100)]
    assert metrics.compression_ratio(strangers) < 2 < 20 < metrics.compression_ratio(strangers[:1] * 100)
    assert metrics.compression_ratio([]) == 0


def test_distances_of_words_are_those_of_their_distributions() -> None:
    assert metrics.gram_distance(["a a b"], ["a b b"]) == pytest.approx(
        math.sqrt(sum(p * math.log2(p / 0.5) for p in (2 / 3, 1 / 3)))
    )
    assert metrics.gram_distance(["a"], ["a b"], 2) == 1.0
    assert metrics.length_ks(["a", "a"], ["a b c", "a b"]) == 1.0


def test_mmd_is_zero_on_average_for_one_distribution_and_exact_for_points() -> None:
    x, y = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    assert metrics.embedding_mmd(x, y) == pytest.approx(2 * (1 - math.exp(-1)))
    rng = np.random.default_rng(0)
    values = []
    for _ in range(40):
        both = rng.normal(size=(60, 4))
        both /= np.linalg.norm(both, axis=1, keepdims=True)
        values.append(metrics.embedding_mmd(both[:30], both[30:]))
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(40)
    with pytest.raises(DataError, match="two texts"):
        metrics.embedding_mmd(x[:1], y)


def test_the_frontiers_area_has_its_ends_and_order() -> None:
    same, near, far = np.array([0.5, 0.5]), np.array([0.6, 0.4]), np.array([0.99, 0.01])
    areas = [metrics.frontier_area(same, other) for other in (same, near, far)]
    assert areas[0] == pytest.approx(1.0)
    assert areas[0] > areas[1] > areas[2] > 0
    assert metrics.frontier_area(near, far) == pytest.approx(metrics.frontier_area(far, near), abs=1e-6)


def test_mauve_like_tells_equal_from_other_texts() -> None:
    rng = np.random.default_rng(0)
    real, same, other = rng.normal(size=(200, 5)), rng.normal(size=(200, 5)), rng.normal(size=(200, 5)) + 3
    assert metrics.mauve_like(real, same) > 0.8 > 0.2 > metrics.mauve_like(real, other)


def test_copies_and_nearness() -> None:
    real = [f"sentence number {k} of the real set has these words" for k in range(40)]
    assert metrics.equal_share([real[0].upper(), "new words"], real) == 0.5
    assert metrics.copied_share([real[3], "quite new words here"], real) == 0.5
    shown, held = np.eye(40)[:20], np.eye(40)[20:]
    assert metrics.closer_to_shown(shown, shown, held) == (1.0, 20)
    assert metrics.closer_to_shown(held, shown, held) == (0.0, 20)
    assert metrics.closer_to_shown(np.ones((3, 40)) / math.sqrt(40), shown, held) == (0.5, 20)


def test_diversity_falls_with_the_number_of_texts() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "big", "old", "new", "wet", "dry"], 5)) for _ in range(300)]
    rows = metrics.diversity_by_number(texts, rng.normal(size=(300, 8)))
    assert [row["texts"] for row in rows] == [50, 100, 200, 300]
    assert rows[0]["distinct-2"] > rows[-1]["distinct-2"]
    assert rows[0]["self-BLEU-4"] < rows[-1]["self-BLEU-4"]
