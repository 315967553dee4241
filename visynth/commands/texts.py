"""Texts by language models: reviews, texts of a rare class, conversations, rows of a table."""

from __future__ import annotations

import sys
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any, Literal

from visynth.commands.options import BackendOptions, JobOptions, RepeatOptions
from visynth.commands.printing import printer, verdicts
from visynth.core.errors import UsageError
from visynth.core.progress import Progress


def text_reviews(
    products: list[str],
    backend: BackendOptions,
    job: JobOptions,
    repeats: RepeatOptions,
    n: int = 100,
    sentiments: list[str] | None = None,
    words: list[int] | None = None,
    features: list[str] | None = None,
    features_by_product: dict[str, list[str]] | None = None,
    mention: int = 1,
    styles: list[str] | None = None,
    personas: list[str] | None = None,
    language: str | None = "en",
    data: str | None = None,
    text: str = "text",
    label: str = "sentiment",
    shown: int = 0,
) -> int:
    """Write customer reviews by product, sentiment, length and features to mention. Killed, the same command goes on.

    Args:
        products: each equally often.
        backend: who writes.
        job: where to, and how often it is tried.
        repeats: when two reviews are the same.
        n: number of reviews.
        sentiments: positive and negative by default.
        words: least and most words, e.g. '[8, 30]'.
        features: to mention, of all products.
        features_by_product: instead, by product, e.g. '{phone: [battery, screen], lamp: [light]}'.
        mention: features in each review.
        styles: such as 'terse' or 'a story'.
        personas: such as 'a retired teacher'.
        language: ISO 639-1 code that reviews must be in; null does not ask.
        data: real reviews (CSV, Parquet, JSON Lines), which are not copied, and shown where --shown is above 0.
        text: column of the real reviews.
        label: column of their sentiments.
        shown: real reviews of the sentiment in each prompt.
    """
    from visynth.tabular.text.examples import read_examples
    from visynth.tabular.text.generator import TextGenerator
    from visynth.tabular.text.jobs import Job, run_job
    from visynth.tabular.text.plan import TextPlan
    from visynth.tabular.text.reviews import SENTIMENTS, review_spec

    backend.check()
    if features and features_by_product:
        raise UsageError("give either --features or --features-by-product.")
    limits = words or [8, 30]
    if len(limits) != 2:
        raise UsageError(f"words must be two numbers, the lower first, but got {limits}.")
    spec = review_spec(
        products, sentiments=sentiments or SENTIMENTS, words=(limits[0], limits[1]),
        features=features_by_product or features or (), mention=mention, styles=styles or (), personas=personas or (),
        language=language, shown=shown, attempts=job.attempts, rounds=job.rounds,
    )  # fmt: skip
    spec = replace(spec, duplicates=repeats.rule())
    unlike_lesson(backend.lesson(), spec, printer(job.quiet))
    examples = [] if data is None else read_examples(data, text, label)
    task = Job(
        "text reviews", TextGenerator(spec, examples), Path(job.out), TextPlan(spec.attributes).records(n, job.seed),
        seed=job.seed, subject="reviews", embedder=repeats.make(),
    )  # fmt: skip
    return print_summary(run_job(task, backend.make, progress=printer(job.quiet)), job)


def text_classify(
    data: str,
    backend: BackendOptions,
    job: JobOptions,
    repeats: RepeatOptions,
    text: str = "text",
    label: str = "label",
    rare: list[str] | None = None,
    to: int | None = None,
    per_class: int | None = None,
    meanings: dict[str, str] | None = None,
    shown: int | None = None,
    holdout: str | None = None,
    language: str | None = None,
    agreement: float = 0.3,
) -> int:
    """Write texts of the rare class of a set of labelled texts, and the balanced set. Killed, the same command goes on.

    Args:
        data: CSV, Parquet or JSON Lines file; give the training part only.
        backend: who writes.
        job: where to, and how often it is tried.
        repeats: when two texts are the same.
        text: column of the texts.
        label: column of the classes.
        rare: classes to fill; by default all but the largest.
        to: fill each up to this many texts, counting its reals, instead of up to the largest class.
        per_class: instead, exactly so many of each.
        meanings: of the classes, for the prompt, e.g. '{"0": a complaint, "1": praise}'; by default as the adapter learned.
        shown: real texts of the class in each prompt; by default 5, or as the adapter learned.
        holdout: file of real texts that are not shown, to measure with.
        language: ISO 639-1 code that texts must be in; null does not ask.
        agreement: least probability of the asked class by a classifier of the real texts; 0 does not ask.
    """
    from visynth.core.files import hash_file
    from visynth.tabular.balance import check_unmarked
    from visynth.tabular.text.classify import balanced_lines, class_records, classify_spec, label_checks
    from visynth.tabular.text.examples import examples_of, read_examples, read_records
    from visynth.tabular.text.generator import TextGenerator
    from visynth.tabular.text.jobs import Job, run_job

    backend.check()
    frame = read_records(data)
    examples = examples_of(frame, data, text, label)
    held = [] if holdout is None else read_examples(holdout, text, label)
    check_unmarked(frame.columns)
    lesson = backend.lesson()
    if lesson is not None:
        meanings, shown = meanings or dict(lesson.meanings), lesson.shown if shown is None else shown
    meanings, shown = {str(name): meaning for name, meaning in (meanings or {}).items()}, 5 if shown is None else shown
    records = class_records(
        examples, rare=[str(name) for name in rare or ()], to=to, per_class=per_class, meanings=meanings, seed=job.seed
    )
    spec = classify_spec(examples, shown=shown, language=language, attempts=job.attempts, rounds=job.rounds)
    spec = replace(spec, duplicates=repeats.rule())
    checks, least = label_checks(examples, agreement, job.seed)
    progress = printer(job.quiet)
    unlike_lesson(lesson, spec, progress)
    if least:
        asked = ", ".join(f"{name} {least[name]:.2f}" for name in sorted({r.attributes["label"] for r in records}))
        progress(f"  a text must have its class with a probability of at least: {asked}")
    task = Job(
        "text classify", TextGenerator(spec, examples), Path(job.out), records, {"agreement": agreement, "data": hash_file(data)},
        held, checks, job.seed, Path(data).stem, embedder=repeats.make(),
    )  # fmt: skip

    def files(made: Any, report: Any) -> dict[str, bytes]:
        return {"balanced.jsonl": balanced_lines(frame, made, text, label)}

    return print_summary(run_job(task, backend.make, files, progress), job)


def text_trial(
    data: str,
    backend: BackendOptions,
    job: JobOptions,
    text: str = "text",
    label: str = "label",
    rare: list[str] | None = None,
    rare_texts: int | None = None,
    draws: int = 5,
    folds: int = 2,
    synthetic: int = 60,
    meanings: dict[str, str] | None = None,
    shown: int = 5,
    language: str | None = None,
    agreement: float = 0.3,
) -> int:
    """Do synthetic texts help? Texts of the rare class by a language model, and a verdict on a classifier of real texts. Killed,
    the same command goes on.

    Args:
        data: CSV, Parquet or JSON Lines file; give the training part only.
        backend: who writes.
        job: where to, and how often it is tried.
        text: column of the texts.
        label: column of the classes.
        rare: classes that matter; by default the rarest.
        rare_texts: pretend that only so many texts of the class exist in training; the rest serves the oracle.
        draws: repetitions with other folds.
        folds: test parts of each draw.
        synthetic: texts to write in each of the draws x folds cells.
        meanings: of the classes, for the prompt, e.g. '{"0": a complaint, "1": praise}'.
        shown: real texts of the class in each prompt.
        language: ISO 639-1 code that texts must be in; null does not ask.
        agreement: least probability of the asked class by a classifier of the real texts; 0 does not ask.
    """
    from visynth.tabular.text.classify import classify_spec
    from visynth.tabular.text.examples import read_examples
    from visynth.tabular.text.trial import run_text_trial
    from visynth.tabular.text.utility import TextCells

    backend.check()
    examples = read_examples(data, text, label)
    cells = TextCells(draws, folds, synthetic, shown, rare_texts, job.seed)
    spec = classify_spec(examples, shown=shown, language=language, attempts=job.attempts, rounds=job.rounds)
    unlike_lesson(backend.lesson(), spec, printer(job.quiet))
    report = run_text_trial(
        examples, [str(name) for name in rare or ()], backend.make, spec, job.out, cells, agreement=agreement,
        meanings={str(name): meaning for name, meaning in (meanings or {}).items()}, subject=Path(data).stem, progress=printer(job.quiet),
    )  # fmt: skip
    verdicts(report, job.json)
    if not job.json:
        print(f"report: {Path(job.out) / 'report.html'}", file=sys.stderr)
    return 0


def text_chat(
    topics: list[str],
    backend: BackendOptions,
    job: JobOptions,
    repeats: RepeatOptions,
    n: int = 100,
    turns: list[int] | None = None,
    styles: list[str] | None = None,
    personas: list[str] | None = None,
    form: Literal["messages", "alpaca", "sharegpt"] = "messages",
    test: float = 0.1,
    system: str = "",
    benchmark: str | None = None,
    language: str | None = None,
) -> int:
    """Write prompts and responses, of one or several turns, for fine-tuning. Killed, the same command goes on.

    Args:
        topics: each equally often.
        backend: who writes.
        job: where to, and how often it is tried.
        repeats: when two conversations are the same.
        n: number of conversations.
        turns: numbers of questions in a conversation, each equally often, e.g. '[1, 3]'.
        styles: of the assistant.
        personas: of the user.
        form: messages (OpenAI, TRL), alpaca or sharegpt.
        test: share of the conversations in test.jsonl.
        system: message at the head of each conversation in the files.
        benchmark: file whose texts must not appear: 13 words in a row are too many.
        language: ISO 639-1 code that they must be in; null does not ask.
    """
    from visynth.core.files import hash_file
    from visynth.tabular.text.chat import benchmark_texts, chat_checks, chat_files, chat_spec, check_form
    from visynth.tabular.text.generator import TextGenerator
    from visynth.tabular.text.jobs import Job, run_job
    from visynth.tabular.text.plan import TextPlan

    backend.check()
    check_form(form, test)
    spec = chat_spec(
        topics, turns=turns or [1], styles=styles or (), personas=personas or (), language=language, attempts=job.attempts,
        rounds=job.rounds,
    )  # fmt: skip
    spec = replace(spec, duplicates=repeats.rule())
    checks = chat_checks([] if benchmark is None else benchmark_texts(benchmark))
    task = Job(
        "text chat", TextGenerator(spec), Path(job.out), TextPlan(spec.attributes).records(n, job.seed),
        {"form": form, "test": test, "system": system, "benchmark": benchmark and hash_file(benchmark)}, checks=checks, seed=job.seed,
        subject="conversations", embedder=repeats.make(),
    )  # fmt: skip

    def files(made: Any, report: Any) -> dict[str, bytes]:
        return chat_files(made, report, form, test, system, job.seed)

    return print_summary(run_job(task, backend.make, files, printer(job.quiet)), job)


def text_rows(
    data: str,
    backend: BackendOptions,
    job: JobOptions,
    n: int = 100,
    kinds: dict[str, str] | None = None,
    drop: list[str] | None = None,
    constraints: list[dict[str, Any]] | None = None,
    shown: int | None = None,
) -> int:
    """Write rows of a table by a language model, and measure whether their cells fit one another. Killed, the same command goes on.

    Args:
        data: CSV, Parquet or JSON Lines file; half of its rows may be shown to the model, the other half measures.
        backend: who writes.
        job: where to, and how often it is tried.
        n: number of rows.
        kinds: of columns where the data mislead, e.g. '{zip: categorical, note: text}'.
        drop: columns to leave out.
        constraints: rules between columns that every row keeps, e.g. '[{kind: inequality, low: start, high: end}]'.
        shown: real rows in each prompt; by default 5, or as the adapter learned.
    """
    from visynth.core.files import hash_file
    from visynth.tabular.constraints import Rules
    from visynth.tabular.text import rows as own
    from visynth.tabular.text.generator import TextGenerator
    from visynth.tabular.text.jobs import Job, run_job
    from visynth.tabular.trial import halves

    backend.check()
    lesson = backend.lesson()
    shown = (5 if lesson is None else lesson.shown) if shown is None else shown
    frame, schema = own.read_rows(data, kinds or {}, drop or [])
    rules = Rules.of(constraints or (), schema, schema.table(frame))
    first, second = halves(len(frame), seed=job.seed)
    known, held = frame.iloc[first].reset_index(drop=True), frame.iloc[second].reset_index(drop=True)
    spec = own.rows_spec(own.row_schema(schema, frame), shown=shown, attempts=job.attempts, rounds=job.rounds)
    unlike_lesson(lesson, spec, printer(job.quiet))
    task = Job(
        "text rows", TextGenerator(spec, own.row_examples(schema, known)), Path(job.out), own.row_records(n, job.seed),
        {"constraints": constraints, "data": hash_file(data)}, own.row_examples(schema, held),
        {"row": own.FitsTable(schema, rules, frame)}, job.seed, Path(data).stem, own.said_row,
    )  # fmt: skip

    def files(made: Any, report: Any) -> dict[str, bytes]:
        own.consistency_section(report, schema, rules, known, held, made, job.seed)
        return {"rows.csv": own.rows_frame(schema, made, job.seed).to_csv(index=False).encode()}

    return print_summary(run_job(task, backend.make, files, printer(job.quiet)), job)


def unlike_lesson(lesson: Any, spec: Any, progress: Progress) -> None:
    """Tell where a job asks in another way than the adapter learned."""
    if lesson is not None and lesson.shown != spec.shown:
        progress(f"  the adapter learned prompts that show {lesson.shown} real texts; these show {spec.shown}")
    if lesson is not None and lesson.prompt != spec.prompt:
        progress(f"  the adapter learned another prompt: {lesson.prompt.user!r}; this one is {spec.prompt.user!r}")


def print_summary(summary: dict[str, Any], job: JobOptions) -> int:
    if job.json:
        print(dumps(summary))
    else:
        print(f"{job.out}: {summary['texts']} texts, {summary['asked'] - summary['texts']} missing")
        print(f"report: {Path(job.out) / 'report.html'}", file=sys.stderr)
    return 0
