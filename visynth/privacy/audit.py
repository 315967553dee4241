"""What an audit says: each attack beside two controls, so that an all-clear is worth something.

*Positive control*: the same attack where leaking is certain; if it is not flagged there, the attack cannot see, and its
all-clear says nothing. *Negative control*: a classifier that never saw the generator; if it tells members from controls, the two
sides differ by themselves, and attacks find that (Das, Zhang and Tramer, "Blind baselines beat membership inference attacks for
foundation models", 2024). What an audit does not find may still be there: it is no guarantee.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError
from visynth.core.report import table, text
from visynth.privacy.membership import SURE, Floats, Membership, membership

FEWEST = 20  # members and controls each, below which nothing is attacked
GUESSES = 0.2  # share of the records that are guessed for the bound on epsilon, the surest ones
Finding = Literal["leaks", "nothing found", "cannot see", "sides differ"]


@dataclass(frozen=True)
class Attacked:
    """One attack with its controls.

    Attributes:
        found: members against controls.
        positive: where leaking is certain.
        negative: members against controls, by a classifier that never saw the generator.
        white_box: whether it looks into the generator, which sees more than what comes out of it.
    """

    found: Membership
    positive: Membership
    negative: Membership
    white_box: bool = False

    @property
    def usable(self) -> bool:
        """Whether its answer means anything."""
        return self.finding in ("leaks", "nothing found")

    @property
    def finding(self) -> Finding:
        """What may be said of it."""
        if self.negative.leaks:
            return "sides differ"
        if self.found.leaks:
            return "leaks"
        return "nothing found" if self.positive.leaks else "cannot see"

    @property
    def advantage(self) -> tuple[float, float, float]:
        """2 AUC - 1 with its 95 % interval: 0 is chance, 1 is certainty."""
        return 2 * self.found.auc - 1, 2 * self.found.low - 1, 2 * self.found.high - 1

    def to_json(self) -> dict[str, Any]:
        return {"finding": self.finding, "advantage": list(self.advantage), **asdict(self)}


def epsilon_bound(right: int, guesses: int, records: int, delta: float = 0.0, level: float = 0.05) -> float:
    """The epsilon below which so many right guesses of membership would be too lucky: a lower bound at 95 %.

    Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run" (NeurIPS 2023), theorem 5.2 and appendix D. It
    holds where each record was trained on by the throw of a coin, and is never proof of a small epsilon: 100 right guesses of
    100 say no more than 3.49.

    Args:
        right: guesses that are right.
        guesses: that were made; others abstain.
        records: that could have been members.
        delta: of the claim.
        level: one-sided error.

    Example:
        >>> round(epsilon_bound(100, 100, 100), 2), epsilon_bound(50, 100, 100)
        (3.49, 0.0)
    """
    from scipy.stats import binom

    def luck(epsilon: float) -> float:
        chance = 1 / (1 + np.exp(-epsilon))
        beta = float(binom.sf(right - 1, guesses, chance))
        sums = np.cumsum(binom.pmf(right - np.arange(1, right + 1), guesses, chance)) if right else np.zeros(1)
        alpha = float(np.max(sums / np.arange(1, len(sums) + 1)))
        return min(beta + 2 * records * delta * alpha, 1.0)

    if luck(0.0) > level:
        return 0.0
    low, high = 0.0, 30.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if luck(middle) <= level else (low, middle)
    return low


def blind(
    members: NDArray[Any], controls: NDArray[Any], seed: int = 0, *, categorical: NDArray[np.bool_] | None = None
) -> Membership:
    """How well members are told from controls without the generator: by a classifier of the records, each scored by one that was
    fitted to others.

    Args:
        members: ``[N, D]``.
        controls: ``[N, D]``.
        seed: of the folds.
        categorical: columns of codes ``[D]``; None: numbers alone, many of which go together (features of images).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> blind(rng.standard_normal((80, 2)), rng.standard_normal((80, 2)) + 3).leaks
        True
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([members, controls])
    truth = np.repeat([1, 0], [len(members), len(controls)])
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    if categorical is not None:
        own = [column for column in np.flatnonzero(categorical) if len(np.unique(x[:, column])) <= 255]
        model = HistGradientBoostingClassifier(max_iter=60, categorical_features=own, random_state=seed % 2**32)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed % 2**32)
    scores = cross_val_predict(model, x, truth, cv=folds, method="predict_proba")[:, 1]
    return membership("a classifier without the generator", scores[truth == 1], scores[truth == 0], seed)


def bound_by_scores(
    members: Floats, controls: Floats, delta: float = 0.0, level: float = 0.05
) -> tuple[float, int, int]:
    """A lower bound on epsilon of scores: the highest are guessed members, the lowest not; how many is fixed beforehand.

    Args:
        members: scores ``[N]``.
        controls: scores ``[N]``.
        delta: of the claim.
        level: one-sided error; several attacks share one.

    Returns:
        The bound, guesses that were right, and guesses.
    """
    # Equal scores have no order.
    mixed = seeding.rng(len(members), "audit/ties").permutation(len(members) + len(controls))
    scores = np.concatenate([members, controls])[mixed]
    truth = np.concatenate([np.ones(len(members), bool), np.zeros(len(controls), bool)])[mixed]
    guesses = max(int(GUESSES * len(scores)) // 2, 1)
    order = np.argsort(-scores, kind="stable")
    right = int(truth[order[:guesses]].sum() + (~truth[order[-guesses:]]).sum())
    return epsilon_bound(right, 2 * guesses, len(scores), delta, level), right, 2 * guesses


def check_sides(members: int, controls: int) -> None:
    """Refuse an audit without enough on both sides.

    Raises:
        UsageError: there is no holdout.
        DataError: too few on a side.
    """
    if not controls:
        raise UsageError(
            "an audit needs records that were not trained on (held_out, or --holdout): without them every attack finds what "
            "the population gives away."
        )
    if min(members, controls) < FEWEST:
        raise DataError(
            f"an audit needs at least {FEWEST} members and as many controls, but there are {members} and {controls}."
        )


SAID = {
    "leaks": "members are told from records that were not trained on",
    "nothing found": "this attack finds nothing; others may",
    "cannot see": "not flagged where leaking is certain: its all-clear says nothing here",
    "sides differ": "members and controls are told apart without the generator: it says nothing here",
}


def attack_blocks(attacks: Sequence[Attacked]) -> list[dict[str, Any]]:
    """A report's table of attacks."""
    rows = []
    for one in attacks:
        found = one.found
        hits = "; ".join(f"{h:.1%} [{low:.1%}, {high:.1%}] at {rate}" for rate, (h, low, high) in found.hits.items())
        rows.append(
            [
                found.attack,
                f"{found.auc:.3f} [{found.low:.3f}, {found.high:.3f}]",
                hits or f"not claimed below 1 in {found.controls}",
                f"{one.positive.auc:.3f}",
                f"{one.negative.auc:.3f}",
                f"{one.finding}: {SAID[one.finding]}",
            ]
        )
    heads = [
        "attack",
        "AUC [95 %]",
        "members found at a false-positive rate",
        "positive control",
        "negative control",
        "finding",
    ]
    return [table(heads, rows), text("AUC 0.5 is chance. Intervals of shares by Clopper and Pearson.")]


def claim_blocks(findings: Findings) -> list[dict[str, Any]]:
    """A report's lower bounds on epsilon beside the claim."""
    rows = [
        [name, f"{bound:.2f}", f"{right} of {guesses}"] for name, (bound, right, guesses) in findings.bounds.items()
    ]
    spent = findings.privacy
    claim = f"Claimed: {spent['epsilon']:.3g} at delta {spent['delta']:g}" if spent else "Nothing is claimed"
    note = (
        "A lower bound holds where each record was trained on by the throw of a coin (Steinke et al., 2023); it is never proof of "
        f"a small epsilon. {claim}."
    )
    return [table(["attack", "epsilon at least (95 %)", "right guesses"], rows, note)]


@dataclass(frozen=True)
class Findings:
    """All of an audit.

    Attributes:
        attacks: membership inferences, with their controls.
        bounds: by attack, the lower bound on epsilon, guesses that were right, and guesses.
        privacy: what the generator claims; empty without differential privacy.
        closer: share of synthetic records that are closer to members than to as many controls, with its 95 % interval; None where
            it was not tested.
        others: leaks that other attacks found, in words.
    """

    attacks: Sequence[Attacked]
    bounds: Mapping[str, tuple[float, int, int]]
    privacy: Mapping[str, Any]
    closer: tuple[float, float, float] | None
    others: Sequence[str] = ()

    @property
    def leaks(self) -> list[str]:
        copied = []
        if self.closer is not None:
            share, low, _ = self.closer
            copied = ["synthetic records closer to members"] if share - 0.5 > SURE * (share - low) / 1.96 else []
        found = [one.found.attack for one in self.attacks if one.finding == "leaks"]
        usable = any(one.usable for one in self.attacks)  # else the sides differ by themselves
        return [*found, *copied, *self.others] if usable else found

    @property
    def refuted(self) -> list[str]:
        """Attacks whose lower bound is above the claimed epsilon, among those whose controls hold."""
        valid = {one.found.attack for one in self.attacks if one.usable} if self.privacy else set()
        return [
            name for name, (bound, _, _) in self.bounds.items() if name in valid and bound > self.privacy["epsilon"]
        ]

    @property
    def lead(self) -> str:
        """The first sentence of the report."""
        said = "No attack that was tried found a leak; that is no guarantee."
        if self.leaks:
            said = f"Leaks, shown by {', '.join(self.leaks)}."
        return said + (f" The claimed epsilon is refuted by {', '.join(self.refuted)}." if self.refuted else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "attacks": [one.to_json() for one in self.attacks],
            "leaks": self.leaks,
            "epsilon bounds": {name: list(found) for name, found in self.bounds.items()},
            "claimed": dict(self.privacy),
            "refuted": self.refuted,
            "closer to members": None if self.closer is None else list(self.closer),
        }
