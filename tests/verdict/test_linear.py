"""Linear models against scikit-learn, finite differences and torch's losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from sklearn.linear_model import LogisticRegression

from visynth.verdict.linear import GAMMA, MARGIN, _minimise, focal, logistic, softmax, softplus


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = np.arange(80) < 16
    return rng.normal(size=(80, 5)) + positive[:, None] * 0.8, positive, rng.random(80) + 0.5


@pytest.mark.parametrize("loss", [softplus, focal])
def test_derivatives_are_finite_differences(loss) -> None:
    for margin in (-3.0, -0.4, 0.0, 0.7, 4.0):
        one = np.array([margin])
        assert check_grad(lambda m: float(loss(m)[0][0]), lambda m: loss(m)[1], one) < 1e-6


def test_focal_loss_is_the_papers() -> None:
    margins = torch.linspace(-4, 4, 9, dtype=torch.float64)
    p = torch.sigmoid(margins)
    np.testing.assert_allclose(focal(margins.numpy())[0], ((1 - p) ** GAMMA * -p.log()).numpy())


def test_our_minimum_of_the_logistic_loss_is_scikit_learns() -> None:
    values, positive, weights = problem()
    coefficients, bias = _minimise(values, positive, weights, 0.3, softplus)
    model = LogisticRegression(C=0.3, tol=1e-8, max_iter=2000).fit(values, positive, sample_weight=weights)
    np.testing.assert_allclose(coefficients, model.coef_[0], atol=2e-3)
    assert bias == pytest.approx(model.intercept_[0], abs=2e-3)


@pytest.mark.parametrize("loss", ["focal", "ldam"])
def test_the_minimum_is_one(loss: str) -> None:
    """No small step in any direction lowers the objective, written out anew with torch."""
    values, positive, weights = problem()
    coefficients, bias = logistic(values, positive, weights, 0.3, loss)
    y = torch.tensor(np.where(positive, 1.0, -1.0))
    counts = {1.0: 16, -1.0: 64}
    shift = torch.tensor([MARGIN * (16 / counts[float(s)]) ** 0.25 for s in y])
    theta = torch.tensor(np.append(coefficients, bias), requires_grad=True)
    margins = y * (torch.tensor(values) @ theta[:-1] + theta[-1])
    p = torch.sigmoid(margins)
    losses = (1 - p) ** GAMMA * -p.log() if loss == "focal" else torch.nn.functional.softplus(-(margins - shift))
    total = 0.3 * (torch.tensor(weights) * losses).sum() + 0.5 * (theta[:-1] ** 2).sum()
    (slope,) = torch.autograd.grad(total, theta)
    assert float(slope.abs().max()) < 5e-3


def test_the_rare_class_has_the_larger_margin() -> None:
    values, positive, weights = problem()
    plain, pushed = (logistic(values, positive, weights, 10.0, loss) for loss in ("logistic", "ldam"))
    scores = [values[positive] @ w + b for w, b in (plain, pushed)]
    assert scores[1].mean() > scores[0].mean()


def test_softmax_is_scikit_learns_with_classes_that_are_missing() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 2, 3], 60)
    values = rng.normal(size=(60, 4)) + labels[:, None]
    found = softmax(values, labels, np.ones(60), 0.5, values[:7])
    model = LogisticRegression(C=0.5, tol=1e-3, max_iter=300).fit(values, labels)
    np.testing.assert_allclose(np.exp(found[:, [0, 2, 3]]), model.predict_proba(values[:7]))
    assert np.isneginf(found[:, 1]).all()
    alone = softmax(values, np.ones(60, int), np.ones(60), 0.5, values[:2])
    assert alone.argmax(axis=1).tolist() == [1, 1]
