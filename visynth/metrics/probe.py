"""Classifiers as judges of synthetic images: can one tell them from real ones, and does one learn the classes from them?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError

Features = NDArray[Any]
FEWEST = 20  # images a side
TESTED = 10  # held-out images of a class
FOLDS = 5


def probe(real: Features, fake: Features, seed: int = 0) -> float:
    """Area under the ROC curve of a linear classifier of real against synthetic, cross-validated: 0.5 where it cannot tell, 1
    where it always can. A high value is no verdict: a classifier sees seams that do no harm.

    Source: Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (ICLR 2017), with the area in place of the accuracy.

    Args:
        real: features ``[n, D]``.
        fake: features ``[m, D]``.
        seed: of the folds.

    Raises:
        DataError: fewer than 20 a side.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(200, 3))
        >>> 0.35 < probe(x[:100], x[100:]) < 0.65, probe(x[:100], x[100:] + 9) > 0.99
        (True, True)
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    if min(len(real), len(fake)) < FEWEST:
        raise DataError(f"a probe needs at least {FEWEST} images a side, but there are {len(real)} and {len(fake)}.")
    x = np.concatenate([real, fake]).astype(np.float64)
    truth = np.arange(len(x)) >= len(real)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seeding.derive("probe", seed) % 2**32)
    # Each fold's scores are ranked within it: those of different models have no common scale.
    areas = [
        roc_auc_score(truth[test], _model(x[train], truth[train]).decision_function(x[test]))
        for train, test in folds.split(x, truth)
    ]
    return float(np.mean(areas))


def utility(
    real: Mapping[str, Features], held_out: Mapping[str, Features], fake: Mapping[str, Features], seed: int = 0
) -> float:
    """Balanced accuracy over all classes of a linear classifier that learned from synthetic images alone, on real ones that the
    generator was not fitted on, over that of one that learned from as many real ones that it was (train on synthetic, test on
    real): 1 is as good as real images.

    Source: Esteban et al., "Real-valued (medical) time series generation with recurrent conditional GANs" (2017), section 4.2.

    Args:
        real: features by class, of images that the generator was fitted on; they teach.
        held_out: of images that it was not; they test.
        fake: of its own.
        seed: of which images teach.

    Raises:
        DataError: fewer than two classes with 20 real and synthetic images, and 10 held-out ones.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> real, test, fake = ({name: rng.normal(k * 4, 1, (40, 3)) for k, name in enumerate("ab")} for _ in range(3))
        >>> round(utility(real, test, fake), 1), utility(real, test, {"a": fake["b"], "b": fake["a"]}) < 0.1
        (1.0, True)
    """
    from sklearn.metrics import balanced_accuracy_score

    names = [
        name
        for name in real
        if min(len(real[name]), len(fake.get(name, ()))) >= FEWEST and len(held_out.get(name, ())) >= TESTED
    ]
    if len(names) < 2:
        raise DataError(
            f"utility needs two classes with at least {FEWEST} real and synthetic images and {TESTED} held-out ones, but there "
            f"are {len(names)}."
        )
    stream = seeding.rng(seeding.derive("utility", seed), "rows")
    own = {name: real[name][stream.permutation(len(real[name]))] for name in names}
    made = {name: fake[name][stream.permutation(len(fake[name]))] for name in names}
    counts = {name: min(len(own[name]), len(made[name])) for name in names}
    test, truth = _stacked({name: held_out[name] for name in names})
    scores = []
    for side in (made, own):
        x, labels = _stacked({name: side[name][: counts[name]] for name in names})
        scores.append(balanced_accuracy_score(truth, _model(x, labels).predict(test)))
    return float(scores[0] / max(scores[1], 1e-12))


def _stacked(parts: Mapping[str, Features]) -> tuple[Features, NDArray[np.int64]]:
    x = np.concatenate(list(parts.values())).astype(np.float64)
    return x, np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])


def _model(x: Features, labels: NDArray[Any]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500, class_weight="balanced")).fit(
        x, labels
    )
