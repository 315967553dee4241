"""Do synthetic texts help? From a file of labelled texts with a rare class to a verdict per class."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError, UsageError, choices
from visynth.core.files import hash_json
from visynth.core.folders import claimed_files, work_folder
from visynth.core.lock import only_one
from visynth.core.progress import Progress, no_progress
from visynth.core.report import FILES, Report, bullets, environment, text
from visynth.core.stage import Stage
from visynth.tabular.shares import chosen_shares
from visynth.tabular.text.backends import Backend
from visynth.tabular.text.cache import file_name
from visynth.tabular.text.classify import label_checks
from visynth.tabular.text.generator import Example, TextGenerator, text_hash
from visynth.tabular.text.outputs import LOCK, tidy
from visynth.tabular.text.plan import Record, meant
from visynth.tabular.text.spec import TextSpec
from visynth.tabular.text.utility import TextCells, rare_texts
from visynth.verdict.rule import Design
from visynth.verdict.summary import arms_block, class_verdict, summarise

SAMPLES = 12
LEAD = "One answer per class, measured on real texts that no prompt showed. Only a shown benefit is a yes."
LEARNER = "weights of words and characters, and a logistic regression"


def run_text_trial(
    examples: Sequence[Example],
    rare: Sequence[str],
    backend: Callable[[], Backend],
    spec: TextSpec,
    out: str | Path,
    cells: TextCells,
    *,
    agreement: float = 0.3,
    meanings: Mapping[str, str] | None = None,
    subject: str = "the texts",
    progress: Progress = no_progress,
) -> Report:
    """Measure whether texts by a language model help a classifier of real ones. Killed, the same call goes on.

    Args:
        examples: real texts with their classes.
        rare: classes that matter; by default the rarest.
        backend: makes who writes.
        spec: of the generator; its prompts may use ``label``, ``meaning`` and ``examples``.
        out: folder for report.json and report.html.
        cells: how many, and what is in them.
        agreement: least probability of the asked class by a classifier of a cell's training texts; 0 does not ask.
        meanings: of the classes, for the prompt.
        subject: what the report is headed with.
        progress: receives lines.

    Returns:
        the report, as written.

    Raises:
        UsageError: unknown classes.
        DataError: too few texts.
        UnavailableError: nobody answers; what came is kept.
    """
    labels = Counter(example.label for example in examples)
    unknown = [name for name in [*rare, *(meanings or {})] if name not in labels]
    if unknown:
        raise UsageError(f"no text has the label {choices(unknown)}; the labels are {choices(sorted(labels))}.")
    rare = list(rare) or [min(sorted(labels), key=lambda name: labels[name])]
    out, started = Path(out), time.monotonic()
    with claimed_files(out, FILES):
        answers = backend()
        _check_unlearned(examples, answers)
    work = work_folder(out)
    with only_one(work / LOCK, f"a text trial for {out}"):
        inputs = {
            "texts": hash_json([[e.text, e.label] for e in examples]), "spec": spec.to_json(), "cells": asdict(cells),
            "backend": dict(answers.identity), "agreement": agreement, "meanings": dict(meanings or {}),
            "versions": environment(),
        }  # fmt: skip
        stage, key = Stage(work, inputs), {**answers.identity, "trial": hash_json(inputs)}
        writer = _Writer(spec, answers, work, key, agreement, meanings or {}, progress)
        found = {label: rare_texts(examples, label, writer, cells, stage=stage, progress=progress) for label in rare}
        report = Report("text trial", subject, lead=LEAD)
        for label, summary in summarise(found, design=Design(draws=cells.draws), seed=cells.seed).items():
            report.verdicts.append(class_verdict(found[label], summary))
            shares = ", ".join(f"{share}: {count}" for share, count in chosen_shares(found[label]).items())
            chosen = text(
                f"Share of the class's weight that synthetic texts got on inner folds, by number of cells: {shares}."
            )
            report.section(f"Is it worth it? {label}", *arms_block(found[label], summary, LEARNER), chosen)
        if writer.samples:
            report.section("Samples", bullets(writer.samples))
        report.conditions |= {
            "texts": len(examples), "classes": ", ".join(f"{name} {count}" for name, count in sorted(labels.items())),
            **{f"cells: {name}": value for name, value in asdict(cells).items()},
            "backend": dict(answers.identity), "refused in this run": dict(writer.refused), "prompt": spec.prompt.user,
            "meanings": dict(meanings or {}),
            "seconds": round(time.monotonic() - started), **environment(),
        }  # fmt: skip
        report.write(out)
        tidy(work, file_name(key))
        stage.clear()
    progress(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report


def _check_unlearned(examples: Sequence[Example], backend: Backend) -> None:
    """Refuse a model that learned texts of the trial: its test parts would not be unseen.

    Raises:
        DataError: it did.
    """
    known = sum(text_hash(example.text) in backend.learned for example in examples)
    if known:
        raise DataError(
            f"the adapter learned {known} of the {len(examples)} texts of this trial, so that no test part of it is unseen: "
            "fine-tune on other texts, or give the trial texts that it did not learn."
        )


class _Writer:
    """Writes the texts of a cell from its training texts alone."""

    def __init__(
        self,
        spec: TextSpec,
        backend: Backend,
        work: Path,
        key: Mapping[str, Any],
        agreement: float,
        meanings: Mapping[str, str],
        progress: Progress,
    ) -> None:
        self.spec, self.backend, self.work, self.key = spec, backend, work, key
        self.agreement, self.meanings, self.progress = agreement, meanings, progress
        self.refused: Counter[str] = Counter()
        self.samples: list[str] = []

    def __call__(
        self, real: Sequence[Example], records: Sequence[Record], name: str, seed: int
    ) -> Sequence[tuple[int, str]]:
        generator = TextGenerator(self.spec, real)
        records = [self._meant(record) for record in records]
        checks, _ = label_checks(real, self.agreement, seed)
        written = generator.write(
            records, self.backend, self.work, recipe=generator.recipe(checks), key=self.key, progress=self.progress
        )
        self.refused.update(written.refused)
        texts = [(one.record.number, str(one.fields["text"])) for one in written.texts]
        self.samples += [f"({name}) {said}" for _, said in texts[: max(0, min(3, SAMPLES - len(self.samples)))]]
        return texts

    def _meant(self, record: Record) -> Record:
        return replace(record, attributes=meant(record.attributes, str(record.attributes["label"]), self.meanings))
