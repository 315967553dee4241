"""What a fine-tuned language model remembers: membership by its loss, and secrets that it was made to learn (canaries).

Every attack has controls: texts of the same kind that were not learned, the same attack on the model as it was before, and
secrets that were drawn as the learned ones were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, raise_all
from visynth.core.report import table, text
from visynth.privacy.membership import SURE, Membership, membership
from visynth.tabular.text.losses import min_k
from visynth.tabular.text.prompts import Message
from visynth.tabular.text.talks import Talk

Losses = Sequence[NDArray[np.float64]]  # of the tokens of each text
BEFORE = "loss of the model before (control)"


def memberships(learned: tuple[Losses, Losses], held: tuple[Losses, Losses], seed: int = 0) -> list[Membership]:
    """Attacks that tell learned texts from held-out ones by the losses of their tokens.

    Args:
        learned: losses of learned texts by the model before the fine-tuning, and after it.
        held: of held-out texts.
        seed: of the intervals.

    Returns:
        By the loss (Yeom et al., "Privacy risk in machine learning", 2018); by the loss beside that of the model before (Carlini et
        al., "Membership inference attacks from first principles", 2022, section III, calibrated); by Min-K%; and the control.

    Example:
        >>> before, after = [np.array([2.0, 3.0])] * 30, [np.array([0.1, 0.2])] * 30
        >>> found = memberships((before, after), (before, before))
        >>> [(attack.attack, attack.auc) for attack in found][0], found[-1].auc
        (('loss', 1.0), 0.5)
    """

    ours, theirs = attack_scores(learned), attack_scores(held)
    return [membership(name, ours[name], theirs[name], seed) for name in ours]


def attack_scores(side: tuple[Losses, Losses]) -> dict[str, NDArray[np.float64]]:
    """What each attack says of each text ``[N]``, higher where it is likelier to have been learned.

    Args:
        side: losses by the model before the fine-tuning, and after it.
    """
    before, after = (np.array([own.mean() for own in losses]) for losses in side)
    lowest = np.array([min_k(own) for own in side[1]])
    return {"loss": -after, "loss beside the model before": before - after, "Min-K%": -lowest, BEFORE: -before}


@dataclass(frozen=True)
class Canaries:
    """Secrets that are learned beside the real texts, to measure how well a text of which there are so many copies is remembered
    (Carlini et al., "The secret sharer", USENIX Security 2019).

    Attributes:
        count: of secrets that are learned; 0 for none.
        repeats: copies of them, in turn.
        others: secrets that are not learned, beside which the learned ones are ranked.
        seed: of the secrets.
    """

    count: int = 0
    repeats: Sequence[int] = (1, 4, 16)
    others: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.count < 0:
            problems.append(f"count must be at least 0, but got {self.count}")
        if not self.repeats or min(self.repeats) < 1:
            problems.append(f"repeats must be at least 1, but got {list(self.repeats)}")
        if self.others < 16:
            problems.append(f"others must be at least 16, but got {self.others}")
        raise_all("the canaries", problems, UsageError)

    @property
    def secrets(self) -> list[str]:
        """All secrets: those that are learned, as many that are not (controls), and the others."""
        digits = seeding.rng(self.seed, "text/canaries").integers(10, size=(2 * self.count + self.others, 9))
        return [f"The number on the back is {''.join(map(str, row))}." for row in digits]

    def talks(self, messages: tuple[Message, ...], secrets: Sequence[str]) -> list[Talk]:
        """Secrets as replies to a prompt; they are no real texts and have no place among them."""
        return [Talk(messages, secret, -1) for secret in secrets]

    def learned(self, messages: tuple[Message, ...]) -> list[Talk]:
        """The talks that are added to those that are learned: each secret as often as its turn says."""
        often = [secret for place, secret in enumerate(self.secrets[: self.count]) for _ in range(self.times(place))]
        return self.talks(messages, often)

    def times(self, place: int) -> int:
        """How often a secret is learned."""
        return int(self.repeats[place % len(self.repeats)])


def exposure(own: float, others: NDArray[np.float64]) -> float:
    """How many bits the loss of a whole secret gives away: log2 of the number of secrets over the rank of this one (Carlini et al., 2019,
    definition 2). A secret that was not learned has 1.44 on average, and the first of n has log2 n.

    Example:
        >>> exposure(0.5, np.array([1.0, 2.0, 3.0])), exposure(9.0, np.array([1.0, 2.0, 3.0]))
        (2.0, 0.0)
    """
    rank = 1 + int((others <= own).sum())
    return float(np.log2(len(others) + 1) - np.log2(rank))


def canary_table(canaries: Canaries, losses: Losses, passes: float) -> dict[str, Any]:
    """Exposure of the secrets, from the losses of :attr:`Canaries.secrets` and the passes that were made over them."""
    whole = np.array([own.sum() for own in losses])
    count = canaries.count
    others = whole[2 * count :]
    found = np.array([exposure(own, others) for own in whole[: 2 * count]])
    rows: list[list[Any]] = []
    for times in sorted(set(map(int, canaries.repeats))):
        own = found[:count][[canaries.times(place) == times for place in range(count)]]
        if len(own):
            rows.append(
                [
                    f"learned, {times} copies, {times * passes:.0f} times",
                    len(own),
                    round(float(own.mean()), 2),
                    round(float(own.max()), 2),
                ]
            )
    control = found[count:]
    rows.append(["not learned (control)", count, round(float(control.mean()), 2), round(float(control.max()), 2)])
    most = np.log2(len(others) + 1)
    note = f"Bits. A secret that was not learned has 1.44 on average; one that is likelier than all others has {most:.2f}, the most."
    return table(["secrets", "number", "mean exposure", "highest"], rows, note)


def membership_blocks(found: Sequence[Membership]) -> list[dict[str, Any]]:
    """The attacks as a table, and what they show in words."""
    rows = []
    for own in found:
        hits = [f"{share:.1%} [{low:.1%}, {high:.1%}]" for share, low, high in own.hits.values()]
        rows.append([own.attack, f"{own.auc:.3f} [{own.low:.3f}, {own.high:.3f}]", *(hits or ["too few texts"])[:1]])
    note = (
        f"{found[0].members} learned texts against {found[0].controls} held-out ones. An area of 0.5 is chance. Hits: learned texts found "
        "at a false-positive rate of 1 %."
    )
    leaks = [own.attack for own in found if own.leaks and own.attack != BEFORE]
    control = next(own for own in found if own.attack == BEFORE)
    if abs(control.auc - 0.5) > SURE * (control.high - control.low) / (2 * 1.96):
        said = "The control finds a difference, too: learned and held-out texts are not of one kind, and the areas say little."
    elif leaks:
        said = f"Who has the weights can tell which texts were learned, by {', '.join(leaks)}: share them as you would share the texts."
    else:
        said = "No attack found more than chance would. That is no proof of privacy."
    return [table(["attack", "area under the ROC curve", "hits"], rows, note), text(said)]
