"""What is retrained: images or a table. The flow knows no more of either than this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from visynth.core.report import Report

PROMOTE, REJECT, INSUFFICIENT = "promote", "reject", "insufficient evidence"
FROZEN = 30  # per cent of the groups, or rows, that are kept for judging


@dataclass(frozen=True)
class Fingerprint:
    """The data, as far as a retraining depends on them.

    Attributes:
        root: hex sha256 of all paths, contents, labels and reviewers' decisions.
        counts: training images or rows of each class.
        items: hex digests of single images or rows, by class.
    """

    root: str
    counts: Mapping[str, int]
    items: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """Challenger and champion on the same frozen real data and the same seeds.

    Attributes:
        outcome: ``"promote"``, ``"reject"`` or ``"insufficient evidence"``.
        reasons: in sentences.
        numbers: for machines.
        report: with everything.
    """

    outcome: str
    reasons: list[str]
    numbers: Mapping[str, Any]
    report: Report | None = None


@dataclass(frozen=True)
class Pair:
    """A generator, and a module of the user's that was trained with what it makes.

    Attributes:
        better: it is at least as good as without synthetic data, and as the champion's.
        reasons: in sentences.
        numbers: for machines.
        files: of the module, by the names that they are kept under.
    """

    better: bool
    reasons: list[str]
    numbers: Mapping[str, Any]
    files: Mapping[str, Path]


class Subject(Protocol):
    """Registered in the plugin group ``subjects``."""

    def fingerprint(self) -> Fingerprint:
        """The data now."""

    def known(self, champion: Path) -> Fingerprint:
        """The data that a champion was made from."""

    def drift(self, champion: Path, alpha: float) -> dict[str, float]:
        """Classes whose content moved since, with p-values; the level is shared among them."""

    def fit(self, folder: Path) -> Path:
        """Make a generator in a run's folder, or go on making it; gives the generator's folder."""

    def evaluate(self, challenger: Path, champion: Path | None, folder: Path) -> Judgement:
        """Compare two generators; the report goes into the folder."""

    def check(self, folder: Path) -> None:
        """Refuse what could only fail after long work."""

    def pair(self, champion: Path | None, folder: Path) -> Pair | None:
        """Train the user's own module with what the challenger of a run makes; None where there is none."""

    def canary(self, generator: Path, folder: Path) -> list[str]:
        """What is wrong with a generator that is about to be used, or that is in use: render a little and look."""
