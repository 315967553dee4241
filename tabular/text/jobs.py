"""The text jobs' common way: a generator, records, a backend; texts, a report and the generator's folder come out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visynth.core.errors import ConflictError, DataError
from visynth.core.files import hash_json
from visynth.core.folders import claim, work_folder
from visynth.core.lock import only_one
from visynth.core.progress import Progress, no_progress
from visynth.core.report import Report, environment
from visynth.tabular.text.backends import Backend
from visynth.tabular.text.cache import file_name
from visynth.tabular.text.checks import Check
from visynth.tabular.text.embedding import Encoder
from visynth.tabular.text.generator import Example, TextGenerator
from visynth.tabular.text.outputs import FILES, LOCK, put_texts, tidy
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
        out: folder for texts.jsonl, missing.jsonl, summary.json, members.jsonl, the report and generator/.
        records: of the plan.
        options: all else that decides the files, as plain JSON.
        held: real texts that the generator is not shown, to measure with.
        checks: further ones by name.
        seed: of everything.
        subject: what the report is headed with.
        said: a real text's words, as those of a reply's fields are.
        embedder: for near-duplicates; by default weights of words and runs of characters.
    """

    kind: str
    generator: TextGenerator
    out: Path
    records: Sequence[Record]
    options: Mapping[str, Any] = field(default_factory=dict)
    held: Sequence[Example] = ()
    checks: Mapping[str, Check] = field(default_factory=dict)
    seed: int = 0
    subject: str = "the texts"
    said: Callable[[str], str] = str
    embedder: Encoder | None = None


def run_job(
    job: Job, backend: Callable[[], Backend], more: More | None = None, progress: Progress = no_progress
) -> dict[str, Any]:
    """Write the texts of a job and its files. Killed, the same call goes on; what came before is kept in ``out.work``. A job
    that is done already is not done again.

    Args:
        job: of one of the kinds.
        backend: makes who answers, once everything else is known to be right.
        more: further files, from what was written.
        progress: receives lines.

    Returns:
        What ``summary.json`` says.

    Raises:
        DataError: not one text could be had.
        UnavailableError: nobody answers.
        ConflictError: ``out`` holds the texts of another job.
        OutputError: ``out`` holds something that visynth did not write.
    """
    recipe = job.generator.recipe(job.checks, job.embedder)
    out, started = claim(job.out, FILES), time.monotonic()
    answers = backend()
    done = _done(job, answers)
    if done is not None:
        progress(f"{out}: this job is done; nothing was asked")
        return done
    work = work_folder(out)
    replies = file_name(job.generator.reply_key(answers))
    with only_one(work / LOCK, f"a text job for {out}"):
        try:
            written = job.generator.write(job.records, answers, work, recipe=recipe, progress=progress)
        except BaseException:
            if not (work / replies).exists():  # nothing to go on from
                tidy(work, replies)
            raise
        if not written.texts:
            raise DataError(_nothing(written))
        report = Report(job.kind, job.subject, lead=LEAD)
        text_sections(report, job.generator, written, job.records, job.held, job.said, job.seed)
        files = {} if more is None else more(written, report)
        summary = _summary(job, answers, written)
        report.conditions |= {**summary, "seconds": round(time.monotonic() - started), **environment()}
        job.generator.save(out / "generator")
        report.write(out)
        put_texts(out, job.generator, answers, written, summary, files)
        tidy(work, replies)
    progress(f"{out}: {len(written.texts)} of {len(job.records)} texts")
    for line in shortfall(written):
        progress(f"  {line}")
    return summary


def _key(job: Job, backend: Backend) -> str:
    """Hash of all that decides a job's files."""
    records = [[record.number, dict(record.attributes), record.seed] for record in job.records]
    own = {
        "kind": job.kind,
        "records": records,
        "options": dict(job.options),
        "checks": sorted(job.checks),
        "seed": job.seed,
    }
    own |= {} if job.embedder is None else {"embedder": job.embedder.digest}
    return hash_json({**own, **job.generator.reply_key(backend)})


def _done(job: Job, backend: Backend) -> dict[str, Any] | None:
    """The summary of the job, where its folder holds it finished.

    Raises:
        ConflictError: the folder holds another one.
    """
    path = job.out / "summary.json"
    if not path.is_file():
        return None
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if said.get("job") == _key(job, backend):
        return said
    raise ConflictError(
        f"{job.out} holds {said.get('texts')} texts of another job (other options, data or seed), which were paid for: choose "
        "another folder, or remove it."
    )


def shortfall(written: Written) -> list[str]:
    """What was refused and what is missing, in words."""
    lines = [f"refused: {count} for {check}" for check, count in written.refused.most_common()]
    counts = Counter(failure.check for failure in written.failures)
    return [*lines, *(f"without a text in the end: {count} for {check}" for check, count in counts.most_common())]


def _nothing(written: Written) -> str:
    reasons = Counter(f"{failure.check}: {failure.why}" for failure in written.failures)
    listed = "; ".join(f"{count} times {reason}" for reason, count in reasons.most_common(5))
    return f"not one of {len(written.failures)} texts could be had: {listed}. Nothing was written."


def _summary(job: Job, backend: Backend, written: Written) -> dict[str, Any]:
    return {
        "asked": len(job.records),
        "texts": len(written.texts),
        "missing": dict(Counter(failure.check for failure in written.failures)),
        "refused": dict(written.refused),
        "replies": written.replies,
        "tokens in": written.tokens[0],
        "tokens out": written.tokens[1],
        "cost": backend.cost,
        "seed": job.seed,
        "generator": job.generator.digest,
        "backend": dict(backend.identity),
        "job": _key(job, backend),
    }
