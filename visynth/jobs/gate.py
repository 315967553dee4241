"""The gate: from a report to a decision. It needs a shown benefit; without evidence it says so instead of guessing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from visynth.core.errors import UsageError, choices
from visynth.core.report import Report

PROMOTE, REJECT, INSUFFICIENT = "promote", "reject", "insufficient evidence"
EXIT_CODES = {PROMOTE: 0, REJECT: 20, INSUFFICIENT: 21}


@dataclass(frozen=True)
class Decision:
    """``outcome`` is ``"promote"``, ``"reject"`` or ``"insufficient evidence"``; reasons name each class."""

    outcome: str
    reasons: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(report: Report, classes: list[str] | None = None) -> Decision:
    """Promote when every class in question helps, reject when one is shown not to, else insufficient evidence.

    Args:
        report: with verdicts.
        classes: the classes in question; by default all that were measured.

    Example:
        >>> from visynth.core.report import ClassVerdict
        >>> decide(Report("trial", "x", [ClassVerdict("crack", "cannot tell", "too few")])).outcome
        'insufficient evidence'
    """
    known = {v.label: v for v in report.verdicts}
    unknown = [name for name in classes or [] if name not in known]
    if unknown:
        raise UsageError(f"the report has no verdict on {choices(unknown)}; it has {choices(known)}.")
    judged = [v for v in report.verdicts if v.numbers or v.answer not in ("not measured", "undertrained")]
    asked = [known[name] for name in classes] if classes else judged
    answers = {v.answer for v in asked}
    if asked and answers == {"helps"}:
        outcome = PROMOTE
    elif "does not" in answers:
        outcome = REJECT
    else:
        outcome = INSUFFICIENT
    return Decision(outcome, [f"{v.label}: {v.answer} ({v.reason})" for v in asked] or ["no class was measured"])
