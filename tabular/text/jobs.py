"""The text jobs' common way: a generator, records, a backend; texts, a report and the generator's folder come out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError
from visynth.core.folders import claim
from visynth.core.lock import only_one
from visynth.core.progress import Progress, no_progress
from visynth.core.report import Report, environment
from visynth.tabular.text.backends import Backend
from visynth.tabular.text.cache import FILE as REPLIES
from visynth.tabular.text.checks import Check, Scorer
from visynth.tabular.text.generator import Example, TextGenerator
from visynth.tabular.text.outputs import FILES, put_texts, tidy
from visynth.tabular.text.plan import Record
from visynth.tabular.text.report import LEAD, text_sections
from visynth.tabular.text.writing import Written

More = Callable[[Written, Report], Mapping[str, bytes]]  # further files of a job; it may add sections


@dataclass(frozen=True)
class Job:
    """What is written, and where.

    Attributes:
        kind: of the job, for the report.
        generator: that writes.
        backend: that answers.
        out: folder for texts.jsonl, missing.jsonl, summary.json, members.jsonl, the report and generator/.
        records: of the plan.
        held: real texts that the generator is not shown, to measure with.
        classifier: of real texts, for the check of the label.
        checks: further ones by name.
        seed: of everything.
        subject: what the report is headed with.
        conditions: further ones, for the report.
    """

    kind: str
    generator: TextGenerator
    backend: Backend
    out: Path
    records: Sequence[Record]
    held: Sequence[Example] = ()
    classifier: Scorer | None = None
    checks: Mapping[str, Check] = field(default_factory=dict)
    seed: int = 0
    subject: str = "the texts"
    conditions: Mapping[str, Any] = field(default_factory=dict)


def run_job(job: Job, more: More | None = None, progress: Progress = no_progress) -> Written:
    """Write the texts of a job and its files. Killed, the same call goes on; what came before is kept in ``out.work``.

    Args:
        job: of one of the kinds.
        more: further files, from what was written.
        progress: receives lines.

    Raises:
        DataError: not one text could be had.
        UnavailableError: nobody answers.
        OutputError: ``out`` holds something that visynth did not write.
    """
    recipe = job.generator.recipe(job.classifier, job.checks)
    out, started = claim(job.out, FILES), time.monotonic()
    work = out.with_name(out.name + ".work")
    with only_one(work / "lock", f"a text job for {out}"):
        try:
            written = job.generator.write(job.records, job.backend, work, recipe=recipe, progress=progress)
        except BaseException:
            if not (work / REPLIES).exists():  # nothing to go on from
                tidy(work)
            raise
        if not written.texts:
            raise DataError(_nothing(written))
        report = Report(job.kind, job.subject, lead=LEAD)
        text_sections(report, job.generator, written, job.records, job.held, job.seed)
        files = {} if more is None else more(written, report)
        summary = _summary(job, written)
        report.conditions |= {
            **summary,
            **job.conditions,
            "seconds": round(time.monotonic() - started),
            **environment(),
        }
        put_texts(out, job.generator, job.backend, written, summary, files)
        job.generator.save(out / "generator")
        report.write(out)
        tidy(work)
    progress(f"{out}: {len(written.texts)} of {len(job.records)} texts")
    for line in shortfall(written):
        progress(f"  {line}")
    return written


def shortfall(written: Written) -> list[str]:
    """What was refused and what is missing, in words."""
    lines = [f"refused: {count} for {check}" for check, count in written.refused.most_common()]
    counts = Counter(failure.check for failure in written.failures)
    return [*lines, *(f"without a text in the end: {count} for {check}" for check, count in counts.most_common())]


def _nothing(written: Written) -> str:
    reasons = Counter(f"{failure.check}: {failure.why}" for failure in written.failures)
    told = "; ".join(f"{count} times {reason}" for reason, count in reasons.most_common(5))
    return f"not one of {len(written.failures)} texts could be had: {told}. Nothing was written."


def _summary(job: Job, written: Written) -> dict[str, Any]:
    usage = getattr(job.backend, "usage", None)
    cost = None if usage is None else usage.cost(job.backend.price_in, job.backend.price_out)  # type: ignore[attr-defined]
    return {
        "asked": len(job.records),
        "texts": len(written.texts),
        "missing": dict(Counter(failure.check for failure in written.failures)),
        "refused": dict(written.refused),
        "replies": written.replies,
        "tokens in": written.tokens[0],
        "tokens out": written.tokens[1],
        "cost of this run": cost,
        "seed": job.seed,
        "generator": job.generator.digest,
        "backend": dict(job.backend.identity),
    }
