"""Drift: false alarms, power, and the stability index."""

from __future__ import annotations

import numpy as np
import pytest

from visynth.verdict.drift import drifted, mmd_p_value, stability_index


class TestDrift:
    @pytest.mark.slow
    @pytest.mark.injected
    def test_false_alarms(self) -> None:
        """Over 1,000 resamplings of one distribution the trigger fires in at most its level, within its own error."""
        pool = np.random.default_rng(0).standard_t(4, size=(4000, 12)) @ np.random.default_rng(1).normal(size=(12, 12))
        fired = 0
        for seed in range(1000):
            numbers = np.random.default_rng(1000 + seed)
            rows = pool[numbers.permutation(len(pool))[:90]]
            before = {"a": rows[:30], "b": rows[30:50]}
            fired += bool(drifted(before, {"a": rows[50:75], "b": rows[75:]}, 0.05, seed))
        assert fired <= 50

    def test_power(self) -> None:
        numbers = np.random.default_rng(0)
        x = numbers.normal(size=(40, 12))
        assert drifted(
            {"a": x, "b": x}, {"a": x + numbers.normal(0, 0.01, x.shape), "b": numbers.normal(0.8, 1, x.shape)}, 0.05
        ).keys() == {"b"}
        assert mmd_p_value(x, numbers.normal(size=(40, 12)) * 2) < 0.01
        assert drifted({"a": x}, {"a": x[:5] + 9}, 0.05) == {}  # too few to say
        assert drifted({"a": x}, {"a": x + 9}, 0.0) == {}

    def test_stability(self) -> None:
        assert stability_index({"a": 80, "b": 20}, {"a": 800, "b": 200}) < 0.01
        assert stability_index({"a": 80, "b": 20}, {"a": 80, "b": 20, "c": 100}) > 0.25
        p, q = np.array([80.5, 20.5]) / 101, np.array([40.5, 60.5]) / 101
        assert stability_index({"a": 80, "b": 20}, {"a": 40, "b": 60}) == pytest.approx(((q - p) * np.log(q / p)).sum())
