"""All metrics of synthetic images, per class and over all, from one pass of features, as one torchmetrics Metric.

Each metric refuses the numbers of images at which it means nothing, and says what to use instead; what was refused is in
:attr:`SetQuality.notes`, and not among the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from visynth.core.errors import UsageError, VisynthError, choices
from visynth.metrics.diversity import mode_coverage, repeats, vendi_ratio
from visynth.metrics.frechet import extrapolated_frechet, frechet_of, needed, reduced_frechet
from visynth.metrics.kernel import kid
from visynth.metrics.memorization import authenticity, memorization, near_duplicates
from visynth.metrics.probe import probe, utility
from visynth.metrics.quality import EVERYTHING, even, frechet_name, kid_name
from visynth.metrics.stats import FeatureReservoir, split
from visynth.metrics.support import coverage, density, precision, recall

Features = NDArray[Any]
Side = Literal["real", "held_out", "fake"]
SIDES: tuple[Side, ...] = ("real", "held_out", "fake")
FEW = 20  # images a side below which shares of neighbourhoods are steps of several percent


@dataclass(frozen=True)
class Sides:
    """Features ``[n, D]`` of one class: the real images that the generator was fitted on, real ones that it was not, and its
    own."""

    real: Features
    held_out: Features
    fake: Features


@dataclass(frozen=True)
class Kind:
    """A metric of one class.

    Attributes:
        compute: values by the ending of their name ("" for the metric itself).
        few: images of the real and of the synthetic side that it needs.
        instead: what to use with fewer.
    """

    compute: Callable[[Sides], Mapping[str, float]]
    few: int = FEW
    instead: str = "look at the images"


def _kid(sides: Sides) -> dict[str, float]:
    found = kid(sides.real, sides.fake)
    return {"": found.value, "_low": found.low, "_high": found.high, "_null": found.null_high}


def _frechet(sides: Sides) -> dict[str, float]:
    """With few images in as many principal components as they carry, which its name then says; beside it the limit of endless
    images where parts of the sets suffice."""
    real, fake = sides.real, sides.fake
    if min(len(real), len(fake)) < needed(real.shape[1]):
        value, kept = reduced_frechet(real, fake)
        return {f"_pca{kept}": value}
    found = {"": frechet_of(real, fake)}
    if min(len(real), len(fake)) >= 2 * needed(real.shape[1]):
        found["_infinity"] = extrapolated_frechet(real, fake)
    return found


def _plain(function: Callable[[Features, Features], float]) -> Callable[[Sides], dict[str, float]]:
    return lambda sides: {"": function(sides.real, sides.fake)}


KINDS: dict[str, Kind] = {
    "kid": Kind(_kid, instead="look at the images beside real ones"),
    "frechet": Kind(_frechet, instead="kid"),
    "precision": Kind(_plain(precision), instead="kid"),
    "recall": Kind(_plain(recall), instead="near_duplicates"),
    "density": Kind(_plain(density), instead="kid"),
    "coverage": Kind(_plain(coverage), instead="near_duplicates"),
    "mode_coverage": Kind(_plain(mode_coverage), instead="recall"),
    "vendi_ratio": Kind(_plain(vendi_ratio), 5, "look at the images"),
    "repeats": Kind(_plain(repeats), 5, "look at the images"),
    "near_duplicates": Kind(lambda s: {"": near_duplicates(s.real, s.fake).share}, 3, "look at nearest neighbours"),
    "authenticity": Kind(lambda s: {"": authenticity(s.real, s.fake)}, 5, "near_duplicates"),
    "memorization": Kind(lambda s: {"": memorization(s.real, s.held_out, s.fake)}, 10, "near_duplicates"),
    "probe": Kind(_plain(probe), instead="kid"),
}
ACROSS = ("utility",)  # over all classes at once


def full_name(metric: str, part: str, features: str) -> str:
    """The name that a value is logged under: a distance is named by its features, and only Inception's whole one is an FID.

    Example:
        >>> full_name("frechet", "", "inception_v3"), full_name("frechet", "_pca4", "inception_v3"), full_name("recall", "", "x")
        ('fid', 'fd_inception_v3_pca4', 'recall')
    """
    if metric == "kid":
        return f"{kid_name(features)}{part}"
    if metric == "frechet":
        return f"{frechet_name(features, whole=not part.startswith('_pca'))}{part}"
    return f"{metric}{part}"


class SetQuality(Metric):
    """Quality of synthetic images, per class (``name/class``) and over all (``name``), from features.

    Every rank updates with what it has, however unevenly; samples of a fixed size are synchronised when it computes.

    Args:
        classes: names, by label.
        width: of a feature.
        features: name of the extractor with its resolution: it is part of the names of distances.
        metrics: which, by default all of :data:`KINDS` and :data:`ACROSS`.
        size: images of a side that are kept, as many of each class as there is room for.
        seed: of the sample.
        rank: of this process.

    Raises:
        UsageError: an unknown metric or side.

    Example:
        >>> metric = SetQuality(["crack", "dent"], 4, features="toy", metrics=["kid", "recall"])
        >>> labels = torch.arange(60) % 2
        >>> _ = torch.manual_seed(0)
        >>> for side in ("real", "fake"):
        ...     metric.update(torch.randn(60, 4), labels, side)
        >>> sorted(metric.compute())[:4]
        ['kid_toy', 'kid_toy/crack', 'kid_toy/dent', 'kid_toy_high']
    """

    full_state_update = False

    def __init__(
        self,
        classes: Sequence[str],
        width: int,
        *,
        features: str = "features",
        metrics: Sequence[str] | None = None,
        size: int = 5000,
        seed: int = 0,
        rank: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        known = (*KINDS, *ACROSS)
        unknown = sorted(set(metrics or ()) - set(known))
        if unknown:
            raise UsageError(f"there are no metrics {choices(unknown)}; there are {choices(known)}.")
        self.classes, self.features = tuple(classes), features
        self.metrics = tuple(known if metrics is None else metrics)
        self.notes: list[str] = []
        for side in SIDES:
            setattr(self, side, FeatureReservoir(width, size, seed, rank, by_class=True))

    def update(self, features: Tensor, labels: Tensor, side: Side) -> None:
        """Add images of a side.

        Args:
            features: ``[N, D]``.
            labels: of their classes, ``[N]``.
            side: ``"real"`` (that the generator was fitted on), ``"held_out"`` (real, that it was not) or ``"fake"``.
        """
        if side not in SIDES:
            raise UsageError(f"side must be one of {choices(SIDES)}, but got {side!r}.")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise UsageError(f"labels must be 0 to {len(self.classes) - 1}, but got {sorted(set(labels.tolist()))}.")
        getattr(self, side).update(features, labels)

    def compute(self) -> dict[str, Tensor]:
        """Values by name. What there were too few images for is told in :attr:`notes`."""
        found: dict[Side, list[Features]] = {}
        for side in SIDES:
            pool: FeatureReservoir = getattr(self, side)
            pool.update(torch.zeros(0, pool.features.shape[1]))  # nothing: a rank may have had none of a side
            features, labels = pool.compute()
            found[side] = list(split(features, labels, len(self.classes)))
        by_class = {name: Sides(*(found[side][k] for side in SIDES)) for k, name in enumerate(self.classes)}
        self.notes = []
        values: dict[str, float] = {}
        for name, sides in by_class.items():
            if len(sides.fake):
                values |= self._of(sides, f"/{name}")
        made = [name for name, sides in by_class.items() if min(len(sides.real), len(sides.fake))]
        if len(made) > 1:
            parts = [even({name: getattr(by_class[name], side) for name in made}, made) for side in ("real", "fake")]
            held = even({n: by_class[n].held_out for n in made}, made)
            whole = Sides(*(np.concatenate(list(part.values())) for part in (parts[0], held, parts[1])))
            values |= self._of(whole, "", EVERYTHING)
        if "utility" in self.metrics:
            try:
                real, held_out, fake = ({n: getattr(by_class[n], side) for n in made} for side in SIDES)
                values["utility"] = utility(real, held_out, fake)
            except VisynthError as error:
                self.notes.append(f"utility: {error}")
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def forward(self, features: Tensor, labels: Tensor, side: Side) -> None:
        """As :meth:`update`; there is no value of a batch."""
        self.update(features, labels, side)

    def reset(self) -> None:
        super().reset()
        for side in SIDES:
            getattr(self, side).reset()

    def _of(self, sides: Sides, ending: str, label: str = "") -> dict[str, float]:
        values: dict[str, float] = {}
        for metric in self.metrics:
            if metric in ACROSS:
                continue
            kind = KINDS[metric]
            counts = f"{len(sides.real)} real, {len(sides.fake)} synthetic"
            try:
                if min(len(sides.real), len(sides.fake)) < kind.few:
                    raise UsageError(f"needs {kind.few} a side: {kind.instead} instead")
                found = kind.compute(sides)
                values |= {f"{full_name(metric, part, self.features)}{ending}": v for part, v in found.items()}
            except VisynthError as error:
                self.notes.append(f"{metric} of {label or ending[1:]} ({counts}): {error}")
        return values
