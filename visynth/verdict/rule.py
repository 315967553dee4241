"""The rule: from paired scores of arms to "helps", "does not" or "cannot tell".

Simulated end to end by ``scripts/bench/verdict.py``; its false alarms and power are in ``scripts/bench/README.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from visynth.core.errors import DataError
from visynth.verdict.bootstrap import WORDS, Bootstrap, Floats, Interval, Scored, measure, own_weights

HELPS, DOES_NOT, CANNOT_TELL = "helps", "does not", "cannot tell"
ALARM = 0.025  # of false "helps", one-sided, over all classes that are named
LOSS = 0.05  # of a false loss, one-sided: the 90 % interval
FEWEST = 2  # positive test groups below which there is no verdict
TAIL = 10  # replicates without a gain below which their number says little


@dataclass(frozen=True)
class Design:
    """How the cells came about, as far as the rule depends on it.

    Attributes:
        draws: that were planned; None where as many as there are.
        fewest: positive test groups below which there is no verdict.
    """

    draws: int | None = None
    fewest: int = FEWEST


@dataclass(frozen=True)
class TwoWay:
    """Standard error of a mean over draws and groups, and its degrees of freedom (Satterthwaite)."""

    error: float
    freedom: float


@dataclass(frozen=True)
class Evidence:
    """The difference of two arms, with all that its limits are made of.

    Attributes:
        mean: of the difference over cells.
        luck: by which the best baseline's mean is too high for having been picked as the best.
        replicates: of the difference, from the bootstrap, ``[R]``.
        two_way: the second limit; None leaves it out.
        groups: positive test groups.
    """

    mean: float
    luck: float
    replicates: Floats
    two_way: TwoWay | None
    groups: int

    def limit(self, alpha: float, side: int) -> float:
        """Lower (``side`` -1) or upper (1) limit with a one-sided error of ``alpha``: the wider one of both."""
        finite = self.replicates[np.isfinite(self.replicates)]
        if not len(finite):
            return side * float("inf")
        limit = float(np.quantile(finite, alpha if side < 0 else 1 - alpha)) + self.luck
        if self.two_way is None:
            return limit
        from scipy.stats import t

        other = self.mean + self.luck + side * float(t.ppf(1 - alpha, self.two_way.freedom)) * self.two_way.error
        return min(limit, other) if side < 0 else max(limit, other)

    def interval(self, level: float = 0.95) -> Interval:
        """Mean and two-sided interval; the limits are moved up by the luck of the best baseline."""
        alpha = (1 - level) / 2
        return Interval(self.mean, self.limit(alpha, -1), self.limit(alpha, 1))

    def p_gain(self) -> float:
        """One-sided p-value of no gain: the larger one of bootstrap and two-way limit. Where fewer than ten replicates show no
        gain, that of the bootstrap is of a normal distribution with its mean and deviation."""
        finite = self.replicates[np.isfinite(self.replicates)] + self.luck
        if not len(finite) or self.mean <= 0:
            return 1.0
        from scipy.stats import norm, t

        count = int((finite <= 0).sum())
        p = (1 + count) / (len(finite) + 1)
        if count < TAIL:
            p = min(p, float(norm.sf(finite.mean() / max(float(finite.std()), 1e-12))))
        if self.two_way is not None:
            p = max(p, float(t.sf((self.mean + self.luck) / max(self.two_way.error, 1e-12), self.two_way.freedom)))
        return p

    def detectable(self, alpha: float = ALARM, power: float = 0.8) -> float:
        """Smallest true difference that is found with a power of 80 %."""
        from scipy.stats import norm, t

        own = float(np.nanstd(self.replicates))
        if self.two_way is None:
            return float(norm.ppf(1 - alpha) + norm.ppf(power)) * own
        freedom = self.two_way.freedom
        return float(t.ppf(1 - alpha, freedom) + t.ppf(power, freedom)) * max(self.two_way.error, own)


@dataclass(frozen=True)
class Verdict:
    """Answer for one class, with its reason in a sentence.

    Attributes:
        answer: ``"helps"``, ``"does not"`` or ``"cannot tell"``.
        reason: in a sentence.
        difference: in the metric, with its 95 % interval.
        baseline: that it is against.
        detectable: smallest effect that the test sees with 80 % power.
        metric: that was named beforehand.
        p: one-sided, of no gain, for this class and synthesizer alone.
        adjusted: for all classes named and synthesizers compared.
        groups: positive test groups.
        luck: in the limits.
    """

    answer: str
    reason: str
    difference: Interval
    baseline: str
    detectable: float
    metric: str = "ap"
    p: float = 1.0
    adjusted: float = 1.0
    groups: int = 0
    luck: float = 0.0

    def to_json(self) -> dict[str, Any]:
        values = {name: float(getattr(self, name)) for name in ("detectable", "p", "adjusted", "luck")}
        rounded = {name: round(value, 5) if np.isfinite(value) else None for name, value in values.items()}
        return {**asdict(self), "difference": self.difference.to_json(), **rounded}


@dataclass
class Comparison:
    """Arms of one class on the same cells.

    Attributes:
        tested: by arm, its scores on each cell.
        bootstrap: weights that all arms share.
        metric: that was named beforehand.
        design: of the cells.
    """

    tested: Mapping[str, Sequence[Scored]]
    bootstrap: Bootstrap
    metric: str = "ap"
    design: Design = field(default_factory=Design)

    def means(self, names: Sequence[str]) -> dict[str, float]:
        """Mean of each arm over the cells."""
        return {name: self.bootstrap.mean(self.tested[name], self.metric)[0] for name in names}

    def best(self, names: Sequence[str], first: str = "") -> str:
        """The arm with the best mean; of equal ones ``first``, else the first in order."""
        means = self.means(names)
        return max(names, key=lambda name: (means[name], name == first))

    def evidence(self, candidate: str, baselines: Sequence[str], baseline: str) -> Evidence:
        """A candidate against the best of several baselines.

        Raises:
            DataError: arms that were not tested on the same cells, which would pair what does not belong together.
        """
        for name in (candidate, *baselines):
            own_cells, others = ([cell.draw for cell in self.tested[n]] for n in (name, baseline))
            if own_cells != others:
                raise DataError(
                    f"arm {name} was tested on the draws {own_cells}, but {baseline} on {others}: they cannot be compared."
                )
        own, replicates = self.bootstrap.mean(self.tested[candidate], self.metric)
        point, against = self.bootstrap.mean(self.tested[baseline], self.metric)
        several = np.stack([self.bootstrap.mean(self.tested[name], self.metric)[1] for name in baselines])
        with np.errstate(invalid="ignore"):
            gained = np.max(several, axis=0) - against
        luck = float(np.nanmean(gained)) if np.isfinite(gained).any() else 0.0
        groups = positive_groups(self.tested[candidate])
        two_way = two_way_error(self.tested[candidate], self.tested[baseline], self.metric)
        return Evidence(own - point, luck, replicates - against, two_way, groups)


def positive_groups(cells: Sequence[Scored]) -> int:
    """Groups of the class among all test images."""
    return len({g for cell in cells for g, true in zip(cell.groups, cell.truth, strict=True) if true})


def two_way_error(first: Sequence[Scored], second: Sequence[Scored], metric: str = "ap") -> TwoWay:
    """Standard error of the mean difference of two arms by a jackknife over the groups of each cell, summed over groups and
    over draws.

    Leaving a group out of a cell gives its pseudo-value; with pseudo-values by draw and group the variance of their mean is
    that of groups plus that of draws minus that of single cells (Cameron, Gelbach and Miller, JBES 2011, eq. 2.8), with
    degrees of freedom after Satterthwaite (1946). A group lies in one fold of each draw, and groups with and without
    positives are drawn apart.

    Args:
        first: an arm on each cell.
        second: another one on the same cells.
        metric: one of :data:`visynth.verdict.bootstrap.METRICS`.
    """
    cells = [(one.draw, *_pseudo_values(one, other, metric)) for one, other in zip(first, second, strict=True)]
    cells = [cell for cell in cells if np.isfinite(cell[1])]
    if not cells:
        return TwoWay(float("inf"), 1.0)
    mean = float(np.mean([value for _, value, _ in cells]))
    draws = len({draw for draw, *_ in cells})
    pieces: list[tuple[float, int]] = []  # variances and their degrees of freedom
    variance = 0.0
    for kind in (True, False):
        by_group: dict[str, float] = {}
        single = 0.0
        for _, value, kinds in cells:
            for name, change in kinds[kind].items():
                # A cell's own place counts once: with the groups of the class.
                part = ((value - mean if kind else 0.0) + change) / len(kinds[kind]) / len(cells)
                by_group[name] = by_group.get(name, 0.0) + part
                single += part**2
        count = len(by_group)
        if count < 2:
            if kind:
                return TwoWay(float("inf"), 1.0)
            continue
        grouped = float(np.sum(np.square(list(by_group.values())))) * count / (count - 1)
        variance += grouped
        pieces.append((grouped, count - 1))
        if draws > 1:  # what single cells add is counted with groups and with draws, so it is taken off once
            variance -= single
            pieces.append((single, (count - 1) * (draws - 1)))
    if draws > 1:
        of_draw: dict[int, float] = {}
        for draw, value, _ in cells:
            of_draw[draw] = of_draw.get(draw, 0.0) + (value - mean) / len(cells)
        between = float(np.sum(np.square(list(of_draw.values())))) * draws / (draws - 1)
        variance += between
        pieces.append((between, draws - 1))
    variance = max(variance, *(piece for piece, _ in pieces))  # never below one of its parts
    if variance <= 0 and mean:  # all parts equal: nothing is known of how they vary
        return TwoWay(float("inf"), 1.0)
    below = sum(piece**2 / freedom for piece, freedom in pieces)
    return TwoWay(variance**0.5, max(variance**2 / below, 1.0) if below > 0 else 1.0)


def _pseudo_values(one: Scored, other: Scored, metric: str) -> tuple[float, dict[bool, dict[str, float]]]:
    """The difference on a cell, and by whether it has positives, each group's pseudo-value less that difference; 0 for the
    only group of its kind."""
    weights = own_weights(one)
    names = list(dict.fromkeys(one.groups))
    place = {name: k for k, name in enumerate(names)}
    of = np.array([place[name] for name in one.groups])
    left = np.where(of[None] == np.arange(len(names))[:, None], 0.0, weights[None])
    rows = np.concatenate([weights[None], left])
    difference = measure(one, metric, rows) - measure(other, metric, rows)
    positive = np.zeros(len(names), bool)
    np.logical_or.at(positive, of, one.truth)
    kinds: dict[bool, dict[str, float]] = {}
    for kind in (True, False):
        own = np.flatnonzero(positive == kind)
        changes = np.nan_to_num(difference[0] - difference[1 + own])
        kinds[kind] = {names[k]: (len(own) - 1) * float(change) for k, change in zip(own, changes, strict=True)}
    return float(difference[0]), kinds


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for all of them (Holm, 1979).

    Example:
        >>> {name: round(p, 3) for name, p in holm({"crack": 0.01, "break": 0.04, "hole": 0.03}).items()}
        {'crack': 0.03, 'hole': 0.06, 'break': 0.06}
    """
    order = sorted(values, key=lambda name: values[name])
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(order):
        largest = max(largest, min(1.0, values[name] * (len(order) - place)))
        adjusted[name] = largest
    return adjusted


def decide(
    evidence: Evidence,
    baseline: str,
    worth: float,
    adjusted: float | None = None,
    metric: str = "ap",
    fewest: int = FEWEST,
) -> Verdict:
    """The three outcomes.

    *helps*: the mean is above that of every baseline, and no gain at all is refuted at 2.5 %, for all classes named
    together. *does not*: even the upper limit is below the gain that would be ``worth`` having, or a loss is shown at 90 %.
    *cannot tell*: everything else, and fewer than two test groups.

    Args:
        evidence: of the candidate against the best baseline.
        baseline: its name.
        worth: gain from which on it is worth having.
        adjusted: p-value of no gain, adjusted for all classes; by default its own.
        metric: that the difference is in.
        fewest: test groups of the class below which there is no verdict.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> decide(Evidence(0.2, 0.0, rng.normal(0.2, 0.05, 999), None, 12), "balanced", 0.02).answer
        'helps'
        >>> decide(Evidence(-0.1, 0.0, rng.normal(-0.1, 0.05, 999), None, 12), "balanced", 0.02).answer
        'does not'
    """
    p = evidence.p_gain()
    adjusted = p if adjusted is None else adjusted
    limits, smallest, words = evidence.interval(), evidence.detectable(), WORDS[metric]
    effect = f"{words} {limits.mean:+.3f} (95 % CI {limits.low:+.3f} to {limits.high:+.3f}) against {baseline}"
    answer = CANNOT_TELL
    if evidence.groups < fewest:
        reason = (
            f"{words} {limits.mean:+.3f} against {baseline}, but the class has {evidence.groups} test group(s), and a verdict "
            f"needs {fewest} at least"
        )
    elif limits.mean > 0 and adjusted <= ALARM:
        answer, reason = HELPS, f"{effect}: the whole interval is above 0"
    elif limits.high < worth:
        answer, reason = DOES_NOT, f"{effect}: even the upper end is below the {worth:.2f} that would be worth having"
    elif evidence.limit(LOSS, 1) < 0:
        answer, reason = DOES_NOT, f"{effect}: a loss is shown (90 % CI)"
    elif limits.mean > 0 and p <= ALARM:
        reason = f"{effect}: shown for this class alone, but not among all that were compared (p {p:.3f}, adjusted {adjusted:.3f})"
    else:
        sees = (
            f"sees effects from {smallest:.2f} {words} on"
            if np.isfinite(smallest)
            else "has too few groups for a limit"
        )
        reason = f"{effect}: the interval holds both nothing and a gain; this test {sees}"
    return Verdict(answer, reason, limits, baseline, smallest, metric, p, adjusted, evidence.groups, evidence.luck)
