"""Compare generated with real images by feature metrics, per class and over all, with numbers of images and names in
full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError
from visynth.metrics.frechet import frechet_of, needed, reduced_frechet
from visynth.metrics.kernel import FEWEST, Kid, kid
from visynth.metrics.memorization import NearDuplicates, near_duplicates

Features = NDArray[Any]
EVERYTHING = "all classes"


@dataclass(frozen=True)
class Quality:
    """The metrics of one class, or of all together. What the images were too few for is None, and ``notes`` says so.

    ``frechet`` is (name, value): ``fid`` with Inception, else ``fd_<features>``; ``_pca<k>`` where n allowed only k
    components.
    """

    label: str
    real: int
    made: int
    kid: Kid | None
    frechet: tuple[str, float] | None
    near_duplicates: NearDuplicates | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "class": self.label,
            "real": self.real,
            "made": self.made,
            "kid": self.kid.to_json() if self.kid else None,
            "frechet": {self.frechet[0]: round(self.frechet[1], 4)} if self.frechet else None,
            "near_duplicates": self.near_duplicates.to_json() if self.near_duplicates else None,
            "notes": list(self.notes),
        }


def compare(
    real: Features, synthetic: Features, label: str, features: str, seed: int = 0, frechet: bool = True
) -> Quality:
    """All metrics of two sets of features ``[n, D]``; ``features`` is the extractor's name with its resolution."""
    notes: list[str] = []
    found_kid = near = found_frechet = None
    if min(len(real), len(synthetic)) >= FEWEST:
        found_kid = kid(real, synthetic, seed)
    else:
        notes.append(f"too few for KID ({len(real)} real, {len(synthetic)} made; {FEWEST} a side)")
    try:
        near = near_duplicates(real, synthetic)
    except DataError as error:
        notes.append(str(error))
    if frechet and min(len(real), len(synthetic)) >= needed(real.shape[1]):
        found_frechet = (frechet_name(features), frechet_of(real, synthetic))
    elif frechet and min(len(real), len(synthetic)) >= FEWEST:
        value, kept = reduced_frechet(real, synthetic)
        found_frechet = (f"{frechet_name(features, whole=False)}_pca{kept}", value)
    return Quality(label, len(real), len(synthetic), found_kid, found_frechet, near, tuple(notes))


def per_class(
    real: Mapping[str, Features], synthetic: Mapping[str, Features], features: str, seed: int = 0, frechet: bool = True
) -> list[Quality]:
    """Every class that was made, and all of them together (with equal shares of each class on either side).

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(60, 4))
        >>> [q.label for q in per_class({"a": draws[:30], "b": draws[30:]}, {"a": draws[:25], "b": draws[30:55]}, "toy")]
        ['a', 'b', 'all classes']
    """
    names = [name for name in synthetic if len(synthetic[name]) and len(real.get(name, ()))]
    rows = [compare(real[name], synthetic[name], name, features, seed, frechet) for name in names]
    if len(names) > 1:
        whole = [np.concatenate([side[name] for name in names]) for side in (even(real, names), even(synthetic, names))]
        rows.append(compare(whole[0], whole[1], EVERYTHING, features, seed, frechet))
    return rows


def even(features: Mapping[str, Features], names: Sequence[str]) -> dict[str, Features]:
    """The same number of each class, evenly spaced: a balanced set against an unbalanced one would measure the
    balance."""
    fewest = min(len(features[name]) for name in names)
    return {name: evenly(features[name], fewest) for name in names}


def evenly(features: Features, count: int) -> Features:
    """So many rows at most, evenly spaced.

    Example:
        >>> evenly(np.arange(5), 3).tolist(), evenly(np.arange(2), 9).tolist(), len(evenly(np.zeros((0, 4)), 3))
        ([0, 2, 4], [0, 1], 0)
    """
    if len(features) <= count:
        return features
    return np.asarray(features[np.linspace(0, len(features) - 1, count).astype(int)])


def frechet_name(features: str, whole: bool = True) -> str:
    """``fid`` with Inception and nothing else.

    Example:
        >>> frechet_name("inception_v3"), frechet_name("efficientnet_lite0@112")
        ('fid', 'fd_efficientnet_lite0@112')
    """
    return "fid" if whole and features == "inception_v3" else f"fd_{features}"


def kid_name(features: str) -> str:
    """``kid`` with Inception, else ``kid_<features>``."""
    return "kid" if features == "inception_v3" else f"kid_{features}"


def table_rows(qualities: Sequence[Quality]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for a report."""
    columns = [
        "class",
        "n real",
        "n made",
        "KID [95 % CI]",
        "KID of real halves (95th percentile)",
        "Frechet distance",
        "near-duplicates",
        "distance ratio",
    ]
    rows = []
    for q in qualities:
        rows.append(
            [
                q.label,
                str(q.real),
                str(q.made),
                f"{q.kid.value:.4f} [{q.kid.low:.4f}, {q.kid.high:.4f}]" if q.kid else "too few",
                f"{q.kid.null:.4f} ({q.kid.null_high:.4f})" if q.kid else "-",
                f"{q.frechet[1]:.2f} ({q.frechet[0]})" if q.frechet else "-",
                f"{q.near_duplicates.share:.0%}" if q.near_duplicates else "-",
                f"{q.near_duplicates.ratio:.2f}" if q.near_duplicates else "-",
            ]
        )
    return columns, rows
