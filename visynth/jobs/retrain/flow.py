"""One run: is there a reason, fit, judge, promote, look, roll back; every step kept, the whole told.

Nothing here decides by the clock but the age of the champion. A run is named by its data, its configuration and the code,
so that the same command makes the same run, goes on with it after any stop, and does not repeat it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from visynth import __version__
from visynth.core.errors import IntegrityError, UsageError, VisynthError
from visynth.core.files import hash_json, readable_json, write_json
from visynth.core.folders import put_files
from visynth.core.lock import only_one
from visynth.core.progress import Progress, no_progress
from visynth.jobs.registry.base import CHALLENGER, CHAMPION, Registry
from visynth.jobs.registry.events import Alias
from visynth.jobs.registry.opening import open_registry
from visynth.jobs.retrain.options import Job, Triggers
from visynth.verdict.challenge import INSUFFICIENT, PROMOTE, REJECT, Fingerprint, Subject
from visynth.verdict.drift import STABLE, stability_index

STATE, OUTCOME, MADE, LOCK = "state.json", "outcome.json", "made.json", "retrain.lock"
SKIPPED, PROMOTED, REJECTED, APPROVAL = "skipped", "promoted", "rejected", "awaiting approval"
ROLLED_BACK = "rolled back"
TO_BE_USED = (PROMOTED, APPROVAL)  # outcomes of runs that are worth another look where there is no champion
ACTOR = "visynth retrain"


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        outcome: skipped, promoted, rejected, insufficient evidence, awaiting approval or rolled back.
        reasons: in sentences: why it ran, and why it ended so.
        run: its name; empty where nothing was to do.
        champion: version that is the champion now; empty where there is none.
        challenger: version that was made; empty where none was.
        numbers: of the comparison.
        seconds: it took.
    """

    outcome: str
    reasons: list[str]
    run: str = ""
    champion: str = ""
    challenger: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def retrain(
    subject: Subject,
    job: Job,
    out: str | Path,
    registry: str | Path,
    *,
    triggers: Triggers | None = None,
    progress: Progress = no_progress,
) -> Outcome:
    """Run once.

    Args:
        subject: the data and what is made of them.
        job: how.
        out: folder of the runs, the state and the lock; one for each generator that is kept fresh.
        registry: where champions are: a folder, or an address on an MLflow server.
        triggers: when there is a reason.
        progress: receives lines.

    Returns:
        The outcome, which is also in ``out/state.json``.

    Raises:
        LockedError: another run is at work.
        ConflictError: somebody moved the champion while this run was at work: nothing was promoted.
        DataError: bad data.
    """
    out, started = Path(out), time.monotonic()
    triggers = triggers or Triggers()
    with only_one(out / LOCK, "a retraining"):
        own = open_registry(registry)
        outcome = _run(subject, job, out, own, triggers, progress)
        champion = own.alias(CHAMPION)
        outcome = replace(
            outcome, champion=champion.version if champion else "", seconds=round(time.monotonic() - started, 1)
        )
        write_json(out / STATE, {**outcome.to_json(), "last success": time.time()})
        return outcome


def _run(subject: Subject, job: Job, out: Path, registry: Registry, triggers: Triggers, progress: Progress) -> Outcome:
    untold = _untold(out, registry)
    if untold is not None:
        return untold
    fallen, champion, standing = _check_champion(subject, job, out, registry, progress)
    progress("fingerprint of the data")
    now = subject.fingerprint()
    if champion is None or standing is None:
        reasons = ["there is no champion yet" if champion is None else "no champion is left that can be used"]
    else:
        reasons = _reasons(subject, job, now, champion, standing, registry, triggers)
    if not reasons:
        why = "nothing new: no class has enough new data, nothing moved, the champion is not too old"
        return Outcome(ROLLED_BACK if fallen else SKIPPED, [*fallen, why])
    name = run_name(now, job)
    folder = out / "runs" / name
    before = _outcome_of(folder)
    if before is not None and (standing is not None or before not in TO_BE_USED):
        why = f"the same data, configuration and code were judged already: {before}"
        return Outcome(ROLLED_BACK if fallen else SKIPPED, [*fallen, why], name)
    reasons = fallen + reasons
    for reason in reasons:
        progress(f"retraining: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        outcome = _challenge(subject, job, folder, registry, champion, standing, reasons, progress)
    except VisynthError as error:
        raise type(error)(f"run {name} in {folder}: {error}") from error
    outcome = replace(outcome, run=name)
    put_files(folder, {OUTCOME: readable_json(outcome.to_json())})
    return outcome


def _outcome_of(folder: Path) -> str | None:
    """What a run came to, if it came to an end."""
    path = folder / OUTCOME
    return str(json.loads(path.read_text(encoding="utf-8"))["outcome"]) if path.is_file() else None


def _untold(out: Path, registry: Registry) -> Outcome | None:
    """The outcome of a run that was killed between its promotion and telling of it."""
    for file in sorted((out / "runs").glob(f"*/{MADE}")):
        if (file.parent / OUTCOME).is_file():
            continue
        made = json.loads(file.read_text(encoding="utf-8"))
        mine = (e for e in registry.events() if e.op == "promote" and e.alias == CHAMPION and e.actor == ACTOR)
        if any(event.new == made["version"] for event in mine):
            why = ["the run was stopped after the promotion; it is told now", *made["reasons"]]
            outcome = Outcome(PROMOTED, why, file.parent.name, challenger=made["version"])
            put_files(file.parent, {OUTCOME: readable_json(outcome.to_json())})
            return outcome
    return None


def run_name(data: Fingerprint, job: Job) -> str:
    """Name of the run of these data with this configuration and this code."""
    return hash_json([data.root, job.to_json(), __version__])[:16]


def _check_champion(
    subject: Subject, job: Job, out: Path, registry: Registry, progress: Progress
) -> tuple[list[str], Alias | None, Path | None]:
    """Look at the champion before anything else: one that is not whole, or fails the canary, is rolled back at once,
    whoever promoted it.

    Returns:
        What is to be told; the champion, whose ``gen`` is the fencing token of the whole run (who has lost the lock, or was
        overtaken by a person, cannot promote with it); and its folder, None where it cannot be used.
    """
    messages: list[str] = []
    seen: set[str] = set()
    while (now := registry.alias(CHAMPION)) is not None:
        problems = _canary(subject, job, registry, now.version, out / "canary", progress)
        if not problems:
            return messages, now, registry.path(now.version)
        reason = f"canary of {now.version[:12]}: {'; '.join(problems)}"
        if now.version in seen:
            return [*messages, f"every champion fails ({reason})"], now, None
        seen.add(now.version)
        try:
            registry.rollback(CHAMPION, actor=ACTOR, reason=reason)
        except UsageError as error:
            return [*messages, f"the champion fails ({reason}), and cannot be rolled back: {error}"], now, None
        messages.append(f"the champion was rolled back ({reason})")
        progress(messages[-1])
    return messages, None, None


def _canary(
    subject: Subject, job: Job, registry: Registry, version: str, folder: Path, progress: Progress
) -> list[str]:
    """Problems of a version, as its next user would meet them."""
    try:
        path = registry.path(version)
    except IntegrityError as error:
        return [str(error).splitlines()[0]]
    # The same version, looked at before for the same classes: its content is its name.
    name = hash_json([version, list(job.classes), job.canary])[:32]
    passed = folder / f"{name}.json"
    if passed.is_file():
        return list(json.loads(passed.read_text(encoding="utf-8"))["problems"])
    progress(f"canary of {version[:12]}")
    problems = subject.canary(path, folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    put_files(folder, {passed.name: readable_json({"problems": problems})})
    return problems


def _reasons(
    subject: Subject,
    job: Job,
    now: Fingerprint,
    champion: Alias,
    path: Path,
    registry: Registry,
    triggers: Triggers,
) -> list[str]:
    """Why to retrain; empty where there is no reason."""
    before = subject.known(path)
    reasons = []
    if triggers.new_images:
        for name in job.classes:
            new = len(now.items.get(name, frozenset()) - before.items.get(name, frozenset()))
            if new >= triggers.new_images:
                reasons.append(f"{new} new of {name}")
    if triggers.drift:
        shift = stability_index(before.counts, now.counts)
        if shift >= STABLE:
            reasons.append(
                f"the class counts moved: stability index {shift:.2f}, from {dict(before.counts)} to {dict(now.counts)}"
            )
        moved = subject.drift(path, triggers.drift) if now.root != before.root else {}
        reasons += [f"{name} looks different: p = {p:.4f}" for name, p in moved.items()]
    promoted = [e for e in registry.events() if e.alias == CHAMPION and e.new == champion.version]
    age = time.time() - _seconds(promoted[-1].at)
    if age > triggers.seconds:
        reasons.append(f"the champion is {age / 86400:.1f} days old")
    return reasons


def _challenge(
    subject: Subject,
    job: Job,
    folder: Path,
    registry: Registry,
    champion: Alias | None,
    standing: Path | None,
    reasons: list[str],
    progress: Progress,
) -> Outcome:
    """Fit, keep as challenger, judge, promote, look again."""
    subject.check(folder)
    generator = subject.fit(folder)
    progress("judging the challenger" + (" against the champion" if standing else ""))
    judged = subject.evaluate(generator, standing, folder)
    pair = subject.pair(standing, folder) if judged.outcome == PROMOTE else None
    if pair is not None:
        numbers = {**judged.numbers, "downstream": dict(pair.numbers)}
        judged = replace(
            judged,
            outcome=PROMOTE if pair.better else REJECT,
            reasons=[*judged.reasons, *pair.reasons],
            numbers=numbers,
        )
    blessing = readable_json({"outcome": judged.outcome, "reasons": judged.reasons, "numbers": dict(judged.numbers)})
    version = registry.add(
        generator,
        evidence={"blessing.json": blessing},
        module=pair.files if pair else None,
        actor=ACTOR,
        reason="; ".join(reasons),
    )
    seen = registry.alias(CHALLENGER)
    if seen is None or seen.version != version:
        registry.promote(version, CHALLENGER, expect=seen.gen if seen else 0, actor=ACTOR, reason="; ".join(reasons))
    outcome = Outcome(judged.outcome, [*reasons, *judged.reasons], challenger=version, numbers=dict(judged.numbers))
    if judged.outcome != PROMOTE:
        return replace(outcome, outcome=REJECTED if judged.outcome == REJECT else INSUFFICIENT)
    problems = _canary(subject, job, registry, version, folder.parent.parent / "canary", progress)
    if problems:
        return replace(outcome, outcome=REJECTED, reasons=[*outcome.reasons, *(f"canary: {own}" for own in problems)])
    if job.policy.require_approval:
        how = f"visynth registry promote {registry.where} --version {version[:12]} --expect {champion.gen if champion else 0}"
        return replace(outcome, outcome=APPROVAL, reasons=[*outcome.reasons, f"waiting for a person: {how}"])
    if champion is not None and champion.version == version:
        return replace(outcome, outcome=PROMOTED, reasons=[*outcome.reasons, "it is the champion already"])
    put_files(folder, {MADE: readable_json({"version": version, "reasons": outcome.reasons})})
    evidence = sha256(blessing).hexdigest()
    registry.promote(
        version,
        expect=champion.gen if champion else 0,
        actor=ACTOR,
        reason="; ".join(judged.reasons),
        evidence=evidence,
    )
    return replace(outcome, outcome=PROMOTED)


def _seconds(at: str) -> float:
    import calendar

    return float(calendar.timegm(time.strptime(at, "%Y-%m-%dT%H:%M:%SZ")))
