"""The gate: from a report to a decision per class. It needs a shown benefit and no copies; without evidence it says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visynth.core.errors import UsageError, choices
from visynth.core.report import ClassVerdict, Report
from visynth.verdict.rule import HELPS

PROMOTE, REJECT, INSUFFICIENT = "promote", "reject", "insufficient evidence"
EXIT_CODES = {PROMOTE: 0, REJECT: 20, INSUFFICIENT: 21}
MOST_ADVANTAGE = 0.2  # of membership inference, 2 AUC - 1
SOME = 3  # times the false-positive rate, from which members that are found for certain are a leak
LEVEL = 0.005  # one-sided, of a false promotion: a gate is passed again and again


@dataclass(frozen=True)
class Decision:
    """``outcome`` is ``"promote"``, ``"reject"`` or ``"insufficient evidence"``; reasons name each class."""

    outcome: str
    reasons: list[str]
    classes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(report: Report, classes: Sequence[str] | None = None, level: float = LEVEL) -> Decision:
    """Promote when every class in question helps without copies, reject when one is shown not to, else insufficient evidence.

    A class is promoted where its gain is shown at ``level`` by both limits of the rule, among all that were named, and its
    synthetic images are not flagged as copies where that was measured. At 0.5 % about one of 500 useless generators passes,
    and a gain of 0.2 AP does in two of three cases with 12 test groups (``scripts/bench/README.md``).

    Args:
        report: with verdicts.
        classes: the classes in question; by default those that were named and measured.
        level: one-sided error of a promotion.

    Raises:
        UsageError: classes that the report has no verdict on, or a level outside (0, 0.5).

    Example:
        >>> decide(Report("trial", "x", [ClassVerdict("crack", "cannot tell", "too few")])).outcome
        'insufficient evidence'
    """
    if not 0 < level < 0.5:
        raise UsageError(f"level must be in (0, 0.5), but got {level}.")
    known = {v.label: v for v in report.verdicts}
    unknown = [name for name in classes or [] if name not in known]
    if unknown:
        raise UsageError(f"the report has no verdict on {choices(unknown)}; it has {choices(known)}.")
    judged = [
        v
        for v in report.verdicts
        if not v.aside and ("difference" in v.numbers or v.answer not in ("not measured", "undertrained"))
    ]
    asked = [known[name] for name in classes] if classes else judged
    outcomes = {v.label: _of_class(v, level) for v in asked}
    found = [outcome for outcome, _ in outcomes.values()]
    if found and set(found) == {PROMOTE}:
        whole = PROMOTE
    else:
        whole = REJECT if REJECT in found else INSUFFICIENT
    reasons = [f"{label}: {outcome}: {why}" for label, (outcome, why) in outcomes.items()]
    return Decision(whole, reasons or ["no class was measured"], {label: one for label, (one, _) in outcomes.items()})


def _of_class(verdict: ClassVerdict, level: float) -> tuple[str, str]:
    """Outcome and reason of one class."""
    said = f"{verdict.answer} ({verdict.reason})"
    copies = verdict.numbers.get("copies")
    if isinstance(copies, Mapping) and copies.get("flagged"):
        return REJECT, f"{copies['found']} of {copies['of']} synthetic images are copies of training images; {said}"
    measured = (
        f"; {copies['found']} of {copies['of']} are copies, at most {copies['high']:.1%}"
        if isinstance(copies, Mapping)
        else "; copies were not measured"
    )
    if copies is None and verdict.numbers.get("synthesizer") == "composition":
        measured = "; composites hold pixels of real images by design"
    if verdict.answer == "does not":
        return REJECT, said + measured
    p = verdict.numbers.get("adjusted")
    if verdict.answer != HELPS:
        return INSUFFICIENT, said + measured
    if p is None or p > level:
        shown = "no p-value is on record" if p is None else f"p {p:.4f} is above the gate's {level:g}"
        return INSUFFICIENT, f"{said}, but {shown}{measured}"
    return PROMOTE, f"{said}, p {p:.4f}{measured}"


def with_audit(decision: Decision, report: Report, audit: Report, most: float = MOST_ADVANTAGE) -> Decision:
    """A decision that also needs an audit of the same generator: the advantage of a member's attacker below a limit.

    The advantage is 2 AUC - 1, with its 95 % interval, over the attacks whose controls say that they can see: shown above the
    limit by any of them is a rejection, not shown below it by all is insufficient evidence.

    Args:
        decision: of the benefit.
        report: that it rests on.
        audit: what ``visynth audit`` wrote.
        most: advantage that is allowed, in (0, 1).

    Raises:
        UsageError: no audit, or one of another generator.
    """
    if not 0 < most < 1:
        raise UsageError(f"the advantage that is allowed must be in (0, 1), but got {most}.")
    said = audit.conditions.get("audit")
    if not isinstance(said, Mapping):
        raise UsageError("the second report is no audit: 'visynth audit' writes one.")
    own, audited = report.conditions.get("generator"), audit.conditions.get("generator")
    if own is None or own != audited:
        raise UsageError(
            f"the audit is of generator {str(audited)[:16]}, the report of {str(own)[:16] if own else 'none that it names'}: an "
            "audit decides about its own generator alone."
        )
    outcome, why = _of_audit(said, most)
    order = [REJECT, INSUFFICIENT, PROMOTE]
    whole = min((decision.outcome, outcome), key=order.index)
    return Decision(whole, [*decision.reasons, f"privacy: {outcome}: {why}"], decision.classes)


def _of_audit(said: Mapping[str, Any], most: float) -> tuple[str, str]:
    if said["refuted"]:
        return REJECT, f"the claimed epsilon is refuted by {', '.join(said['refuted'])}"
    usable = [one for one in said["attacks"] if one["finding"] in ("leaks", "nothing found")]
    blind = [one["found"]["attack"] for one in said["attacks"] if one["white_box"] and one not in usable]
    if not usable or (blind and not any(one["white_box"] for one in usable)):
        names = ", ".join(blind) or "every attack"
        return INSUFFICIENT, f"the controls of {names} do not hold, so that an all-clear says nothing"
    for one in usable:
        for rate, (_, low, _) in one["found"]["hits"].items():
            if one["finding"] == "leaks" and low > SOME * float(rate):
                return (
                    REJECT,
                    f"{one['found']['attack']}: at least {low:.1%} of the members are found at a false-positive rate of {rate}",
                )
    lowest = max(usable, key=lambda one: one["advantage"][1])
    if lowest["advantage"][1] > most:
        return (
            REJECT,
            f"{lowest['found']['attack']}: advantage at least {lowest['advantage'][1]:.2f}, allowed is {most:g}",
        )
    others = [name for name in said["leaks"] if name not in {one["found"]["attack"] for one in said["attacks"]}]
    if others:
        return REJECT, f"leaks, shown by {', '.join(others)}"
    highest = max(usable, key=lambda one: one["advantage"][2])
    shown = f"{highest['found']['attack']}: advantage at most {highest['advantage'][2]:.2f} (95 %)"
    if highest["advantage"][2] > most:
        return INSUFFICIENT, f"{shown}, not shown below {most:g}: more members and controls would"
    return PROMOTE, f"{shown}, allowed is {most:g}; {len(usable)} of {len(said['attacks'])} attacks"


def check_renders(report: Report, renders: str | Path) -> None:
    """A report speaks of the images that it was made with, of no others.

    Raises:
        UsageError: these renders are of another generator than the report's, or the report names none.
    """
    from visynth.core.manifest import read_renders

    own, found = report.conditions.get("generator"), read_renders(renders).plan.get("generator")
    if own is None:
        raise UsageError(
            "the report names no generator, so that it speaks of no renders: a gate on renders needs 'evaluate'."
        )
    if own != found:
        raise UsageError(
            f"the report is about generator {str(own)[:16]}, but {renders} is of {str(found)[:16]}: it decides nothing on them."
        )
