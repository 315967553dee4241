"""Learners: a candidate that loses on the inner folds is never fitted whole, and holds next to nothing until it is asked."""

from __future__ import annotations

import numpy as np
import pytest

from visynth.verdict import frozen
from visynth.verdict.cells import SHARES, Cell, Extra
from visynth.verdict.comparison import fit_cells
from visynth.verdict.learners import Outcome, Predictions


def test_an_outcome_is_worked_out_when_it_is_asked_for_and_once() -> None:
    asked = []
    outcome = Outcome(lambda: asked.append(1) or Predictions(np.ones(3)), 0.5)
    assert (outcome.inner, asked) == (0.5, [])
    assert outcome.scores.tolist() == [1, 1, 1]
    assert outcome.logits is None
    assert asked == [1]
    assert Outcome(Predictions(np.zeros(2), np.zeros((2, 3))), 0.5).logits.shape == (2, 3)
    with pytest.raises(TypeError, match=r"needs Predictions\(scores\) or a function that gives it, but got ndarray"):
        Outcome(np.zeros(2), 0.5)


def test_only_what_wins_is_fitted_on_all_items(monkeypatch) -> None:
    """One model of all classes is fitted with each arm that is tested, whatever number of shares was tried."""
    rng = np.random.default_rng(0)
    positive = np.arange(60) < 20
    made = Extra(np.arange(60, 70), [frozenset({str(k)}) for k in range(10)], 1)
    cell = Cell(
        0, 0, np.arange(0, 60, 2), np.zeros(0, int), np.arange(1, 60, 2), positive, [str(i // 2) for i in range(60)],
        synthetic=made, labels=positive.astype(np.int64),
    )  # fmt: skip
    fitted, before = [], frozen.softmax
    monkeypatch.setattr(frozen, "softmax", lambda *given: fitted.append(1) or before(*given))
    (outcome,) = fit_cells([cell], {(0, "max"): rng.normal(size=(70, 8)).astype(np.float32)}, workers=0)
    assert len(outcome["synthetic"].tried) > len(SHARES)
    own = [name for name in outcome if name != "logit_adjusted"]  # scores of "real", adjusted
    assert len(own) - 1 <= len(fitted) <= len(own)  # synthesis may choose none, and is then "balanced"
    predicted = [arm.predicted for arm in outcome.values()]
    assert all(one is not None and len(one) == 30 for one in predicted)
