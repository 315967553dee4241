"""Linear models on few rows: logistic, focal and margin losses for one class against the rest, and softmax for all classes.

Each minimises C * sum of weight * loss + |w|^2 / 2 (the bias is not penalised), so that C means the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Loss = Literal["logistic", "focal", "ldam"]
GAMMA = 2.0  # of the focal loss, as its paper advises
MARGIN = 1.0  # of LDAM for the rarer class, in logits


def logistic(
    values: NDArray[Any], positive: NDArray[np.bool_], weights: Floats, penalty: float, loss: Loss = "logistic"
) -> tuple[Floats, float]:
    """Weights ``[D]`` and bias of an L2-regularised linear classifier with inverse strength ``penalty`` (C).

    Args:
        values: float ``[n, D]``.
        positive: bool ``[n]``.
        weights: float ``[n]``.
        penalty: C.
        loss: ``"logistic"``; ``"focal"`` (Lin et al., ICCV 2017, eq. 4); or ``"ldam"``, the logistic loss with a margin that
            grows with the class's rarity by the number of rows to the power of -1/4 (Cao et al., NeurIPS 2019, eq. 13).

    Example:
        >>> values, positive = np.array([[-1.0], [-2.0], [1.0], [2.0]]), np.array([False, False, True, True])
        >>> [bool(logistic(values, positive, np.ones(4), 1.0, loss)[0][0] > 0) for loss in ("logistic", "focal", "ldam")]
        [True, True, True]
    """
    if loss == "logistic":
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=penalty, solver="lbfgs", max_iter=300, tol=1e-3)
        model.fit(values, positive, sample_weight=weights)
        return model.coef_[0], float(model.intercept_[0])
    if loss == "focal":
        return _minimise(values, positive, weights, penalty, focal)
    counts = {side: max(int((positive == side).sum()), 1) for side in (True, False)}
    least = min(counts.values())
    shift = np.where(positive, (least / counts[True]) ** 0.25, (least / counts[False]) ** 0.25) * MARGIN
    return _minimise(values, positive, weights, penalty, lambda margins: softplus(margins - shift))


def softplus(margins: Floats) -> tuple[Floats, Floats]:
    """Logistic loss of margins ``y * logit``, and its derivative by them."""
    return np.logaddexp(0, -margins), -_sigmoid(-margins)


def focal(margins: Floats) -> tuple[Floats, Floats]:
    """Focal loss of margins, ``(1 - p)^gamma * -log p`` with ``p = sigmoid(margin)``, and its derivative."""
    wrong, plain = _sigmoid(-margins), np.logaddexp(0, -margins)
    return wrong**GAMMA * plain, -(wrong**GAMMA) * (GAMMA * (1 - wrong) * plain + wrong)


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(values / 2)))


def _minimise(
    values: NDArray[Any],
    positive: NDArray[np.bool_],
    weights: Floats,
    penalty: float,
    loss: Callable[[Floats], tuple[Floats, Floats]],
) -> tuple[Floats, float]:
    from scipy.optimize import minimize

    signs = np.where(positive, 1.0, -1.0)

    def objective(theta: Floats) -> tuple[float, Floats]:
        losses, slopes = loss(signs * (values @ theta[:-1] + theta[-1]))
        pull = penalty * weights * signs * slopes
        total = penalty * float(weights @ losses) + 0.5 * float(theta[:-1] @ theta[:-1])
        return total, np.append(values.T @ pull + theta[:-1], pull.sum())

    start = np.zeros(values.shape[1] + 1)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 300, "gtol": 1e-3})
    return found.x[:-1], float(found.x[-1])


def softmax(values: NDArray[Any], labels: Ints, weights: Floats, penalty: float, test: NDArray[Any]) -> Floats:
    """Log-probabilities ``[m, K]`` of test rows by one multinomial logistic regression over all classes.

    Args:
        values: float ``[n, D]``.
        labels: class numbers ``[n]`` in 0 .. K - 1; K is one more than the largest.
        weights: float ``[n]``.
        penalty: C.
        test: float ``[m, D]``.

    Returns:
        minus infinity for a class that has no training rows.

    Example:
        >>> values = np.array([[-1.0], [-2.0], [1.0], [2.0]])
        >>> softmax(values, np.array([0, 0, 2, 2]), np.ones(4), 1.0, values).argmax(axis=1).tolist()
        [0, 0, 2, 2]
    """
    from sklearn.linear_model import LogisticRegression

    known = np.unique(labels)
    out = np.full((len(test), int(known.max()) + 1), -np.inf)
    if len(known) == 1:
        out[:, known[0]] = 0.0
        return out
    model = LogisticRegression(C=penalty, solver="lbfgs", max_iter=300, tol=1e-3)
    model.fit(values, labels, sample_weight=weights)
    out[:, model.classes_] = model.predict_log_proba(test)
    return out
