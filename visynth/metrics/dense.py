"""The rival where masks exist: a dense head, one logistic regression over places, supervised by the masks.

A composition uses masks to make images; this uses the same masks to teach a classifier where to look. It sees real
images only. If it beats the synthetic arm, masks are better spent on it, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.pictures import resize
from visynth.core.processes import one_thread
from visynth.metrics.extractor import NATIVE_LIMIT, STRIDE
from visynth.verdict.learners import Ints, Items, Outcome, Predictions, split_parts, wins
from visynth.verdict.linear import logistic
from visynth.verdict.ranking import average_precision

Places = NDArray[np.float16]  # [P, D], the places of one image
PER_IMAGE = 4  # negative places taken from each image
SHARE = 0.25  # a place is positive from this share of the most covered place's mask pixels on


@dataclass(frozen=True)
class DenseHead:
    """Scores an image by its highest-scoring place.

    Attributes:
        places: per bank row of an image its features ``[P, D]``.
        covered: per bank row the mask pixels at each place ``[P]``, or None without a mask.
        penalties: C of the regression, chosen on the inner folds.
    """

    places: dict[int, Places]
    covered: dict[int, NDArray[np.float32] | None]
    penalties: tuple[float, ...] = (0.01, 0.1)

    def can_learn(self, rows: Ints) -> bool:
        """Whether one of these rows, images of the class, has a mask that says where it is."""
        return any(covered is not None and covered.any() for covered in (self.covered.get(int(row)) for row in rows))

    def fit(self, items: Items, test: Ints, folds: Sequence[frozenset[str]], seed: int) -> Outcome:
        """Choose C on two inner folds (the first one, unless another is better on both); each fit has one round of hard
        negatives."""
        with one_thread():
            # A fold whose other side has no mask of the class teaches nothing: nothing is chosen on it.
            parts = [split_parts(items, held) for held in folds[:2]]
            parts = [
                (train, held)
                for train, held in parts
                if items.positive[held].any() and self.can_learn(items.rows[train & items.positive])
            ]

            @cache
            def on(fold: int, penalty: float) -> float:
                """Average precision on an inner fold."""
                train, held = parts[fold]
                model = self._train(items, train, penalty, seed)
                return average_precision(items.positive[held], self._scores(model, items.rows[held]))

            def inner(penalty: float) -> tuple[float, ...]:
                return tuple(on(fold, penalty) for fold in range(len(parts)))

            default = self.penalties[0]
            usual = partial(on, penalty=default)
            others = [c for c in self.penalties[1:] if wins(partial(on, penalty=c), usual, len(parts))]
            penalty = max(others, key=lambda c: float(np.mean(inner(c))), default=default)
            mean = float(np.mean(inner(penalty))) if parts else float("nan")
            by_fold = inner(penalty)

        def tested() -> Predictions:
            with one_thread():
                model = self._train(items, np.ones(len(items), bool), penalty, seed)
                return Predictions(self._scores(model, test))

        return Outcome(tested, mean, {"C": penalty}, by_fold)

    def _train(self, items: Items, use: NDArray[np.bool_], penalty: float, seed: int) -> NDArray[np.float64]:
        rows, positive, weights = items.rows[use].tolist(), items.positive[use], items.weights[use]
        generator = seeding.rng(seeding.derive("dense", seed), "places")
        wanted: list[NDArray[np.float32]] = []
        of_item: list[float] = []  # weight of each wanted place
        others: list[NDArray[np.float32]] = []
        for row, is_positive, weight in zip(rows, positive, weights, strict=True):
            places, covered = _wide(self.places[row]), self.covered[row]
            free = np.ones(len(places), bool)
            if is_positive:
                if covered is None or not covered.any():
                    continue  # a positive without a mask does not say where
                wanted.append(places[covered >= SHARE * covered.max()])
                of_item += [float(weight)] * len(wanted[-1])
                free = covered == 0
            others.append(places[generator.permutation(np.flatnonzero(free))[:PER_IMAGE]])
        model = _regress(wanted, others, of_item, penalty)
        # One round of hard negatives: the place of each other image that this first model takes for a defect.
        for row in [row for row, is_positive in zip(rows, positive, strict=True) if not is_positive]:
            places = _wide(self.places[row])
            others.append(places[[int(np.argmax(places @ model[:-1]))]])
        return _regress(wanted, others, of_item, penalty)

    def _scores(self, model: NDArray[np.float64], rows: Ints) -> NDArray[np.float64]:
        return np.array([float((_wide(self.places[row]) @ model[:-1] + model[-1]).max()) for row in rows.tolist()])


def _wide(places: Places) -> NDArray[np.float32]:
    """As float32, by torch: numpy takes ten times as long, more than all else here."""
    return np.asarray(torch.from_numpy(places).float().numpy(), np.float32)


def _regress(
    wanted: list[NDArray[np.float32]], others: list[NDArray[np.float32]], of_item: list[float], penalty: float
) -> NDArray[np.float64]:
    """Balanced logistic regression, the places of the class weighted as their images are; weights ``[D]`` and the bias behind
    them."""
    values = np.concatenate([*wanted, *others])
    positive = np.arange(len(values)) < sum(map(len, wanted))
    scale = float(np.sqrt(1280 / np.mean((values**2).sum(axis=1))))
    weights = np.full(len(values), 0.5 / (~positive).sum())
    weights[positive] = 0.5 * np.array(of_item) / np.sum(of_item)
    weights *= len(values)
    coefficients, bias = logistic(values * scale, positive, weights, penalty)
    return np.append(coefficients * scale, bias)


def coverage(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mask pixels at each place ``[P]`` of the native-scale feature map, in the map's row order.

    Example:
        >>> mask = np.zeros((40, 64), bool); mask[:4, 40:44] = True
        >>> coverage(mask).tolist()
        [0.0, 16.0, 0.0, 0.0]
    """
    height, width = mask.shape
    scale = min(1.0, NATIVE_LIMIT / (height * width) ** 0.5)
    small = mask.astype(np.float32)[:, :, None]
    if scale != 1.0:
        small = resize(small, (max(1, round(height * scale)), max(1, round(width * scale))))
    bottom, right = (-length % STRIDE for length in small.shape[:2])
    padded = np.pad(small[:, :, 0], ((0, bottom), (0, right)))
    blocks = padded.reshape(padded.shape[0] // STRIDE, STRIDE, padded.shape[1] // STRIDE, STRIDE)
    return np.asarray(blocks.sum(axis=(1, 3)).ravel(), dtype=np.float32)
