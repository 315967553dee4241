"""Texts by a prompt and plan of one's own, and fine-tuning of a local language model."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from visynth.commands.options import BackendOptions, JobOptions, RepeatOptions, refuse
from visynth.commands.printing import printer
from visynth.commands.tables import drop_checkpoint, resumable_training
from visynth.commands.texts import print_summary, unlike_lesson
from visynth.core.errors import UsageError
from visynth.tabular.text.private import TextPrivacy


def text_write(
    prompt: str,
    backend: BackendOptions,
    job: JobOptions,
    repeats: RepeatOptions,
    n: int | None = None,
    system: str = "",
    plan: dict[str, Any] | None = None,
    rows: str | None = None,
    columns: list[str] | None = None,
    reply: dict[str, Any] | None = None,
    wanted: dict[str, Any] | None = None,
    label: str | None = None,
    data: str | None = None,
    text: str = "text",
    shown: int = 0,
) -> int:
    """Write texts by a prompt and plan of your own. Killed, the same command goes on.

    Args:
        prompt: Jinja template over the attributes of a text, and over 'examples' where --shown is above 0.
        backend: who writes.
        job: where to, and how often it is tried.
        repeats: when two texts are the same.
        n: number of texts; by default one for each row, or 100.
        system: what is said before the prompt.
        plan: attributes by name: lists are crossed, '{shares: {a: 0.9, b: 0.1}}', '{choose: 2, of: [...]}', '{range: [5, 30]}'.
        rows: file of real rows (CSV, Parquet, JSON Lines) whose cells are attributes, each row equally often. They stand in
            texts.jsonl beside the text.
        columns: of the rows; by default those that the prompt, --label and --wanted name.
        reply: JSON schema of the reply; plain text by default.
        wanted: what a text is checked for, e.g. '{words: words, mentions: features, language: en}'.
        label: attribute that is the class.
        data: real texts, which are not copied, and shown where --shown is above 0.
        text: column of the real texts.
        shown: real texts of the class in each prompt.
    """
    from visynth.core.files import hash_file
    from visynth.tabular.text.examples import read_examples, read_records
    from visynth.tabular.text.generator import TextGenerator
    from visynth.tabular.text.jobs import Job, run_job
    from visynth.tabular.text.real_rows import planned_records
    from visynth.tabular.text.spec import TextSpec

    backend.check()
    frame = None if rows is None else read_records(rows)
    spec = TextSpec.from_json({
        "prompt": {"user": prompt, "system": system}, "attributes": (plan or {}) if frame is None else {}, "label": label,
        "schema": reply, "wanted": wanted or {}, "duplicates": vars(repeats.rule()), "shown": shown, "attempts": job.attempts,
        "rounds": job.rounds,
    })  # fmt: skip
    if frame is not None and columns is None:
        columns = [name for name in frame.columns if name in spec.names]
    records = planned_records(plan or {}, frame, columns, n, job.seed)
    spec.check_names(records[0].attributes)
    unlike_lesson(backend.lesson(), spec, printer(job.quiet))
    examples = [] if data is None else read_examples(data, text, label)
    given = {"rows": rows and hash_file(rows), "data": data and hash_file(data)}
    task = Job(
        "text write", TextGenerator(spec, examples), Path(job.out), records, given, seed=job.seed, subject="texts",
        embedder=repeats.make(),
    )  # fmt: skip
    return print_summary(run_job(task, backend.make, progress=printer(job.quiet)), job)


def text_fit(
    data: str,
    model: str,
    out: str,
    task: Literal["texts", "rows"] = "texts",
    text: str = "text",
    label: str | None = None,
    columns: list[str] | None = None,
    prompt: str | None = None,
    system: str = "",
    meanings: dict[str, str] | None = None,
    shown: int = 0,
    held: float = 0.2,
    holdout: str | None = None,
    kinds: dict[str, str] | None = None,
    drop: list[str] | None = None,
    arguments: dict[str, Any] | None = None,
    canaries: int = 0,
    canary_repeats: list[int] | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
    privacy: TextPrivacy | None = None,
    quiet: bool = False,
) -> int:
    """Fine-tune a local language model on your texts or rows (LoRA), and measure what it learned and what it remembers. Killed,
    the same command goes on.

    Args:
        data: CSV, Parquet or JSON Lines file; give the training part only.
        model: folder or GGUF file of a causal language model.
        out: folder for the report and generator/, which is what --adapter takes, and what peft and vLLM read.
        task: texts (for 'text classify' and your own prompts) or rows (for 'text rows').
        text: column of the texts.
        label: column of the classes.
        columns: further columns that your own prompt uses.
        prompt: Jinja template over the label's name and the columns, instead of that of the job.
        system: what is said before a prompt of your own.
        meanings: of the classes, for the prompt, e.g. '{"0": a complaint, "1": praise}'.
        shown: other real texts in each prompt; ask with the same number later.
        held: share of each class's texts that is not learned, to measure with.
        holdout: instead, a file of real texts to measure with.
        kinds: of a table's columns where the data mislead.
        drop: columns of a table to leave out.
        arguments: of the fine-tuning, e.g. '{rank: 16, steps: 200, lr: 0.0001}'.
        canaries: secrets to learn, to measure how well texts are remembered; such a generator is for an audit alone.
        canary_repeats: copies of the secrets, in turn.
        seed: of everything.
        trainer: of Lightning's Trainer, e.g. '{accelerator: gpu, devices: 2, strategy: ddp}'.
        privacy: differential privacy for each text.
        quiet: no progress.
    """
    from visynth.core import plugins
    from visynth.core.distributed import on_main
    from visynth.core.folders import claim, work_folder
    from visynth.tabular.text.generator import TextGenerator
    from visynth.tabular.text.memory import Canaries
    from visynth.tabular.text.models import weight_files
    from visynth.tabular.text.tuning import (
        OUT,
        Talks,
        Tuning,
        done_already,
        learn,
        learnable_rows,
        learnable_texts,
        split_texts,
        write_tuning,
    )

    claim(out, OUT)
    weight_files(model)
    lora = plugins.make("writers", "lora", {"seed": seed, **(arguments or {})})
    if canary_repeats and not canaries:
        raise UsageError("--canary-repeats is of --canaries: say how many.")
    secrets = Canaries(canaries, tuple(canary_repeats or (1, 4, 16)), seed=seed)
    if task == "rows":
        if privacy is not None:
            raise UsageError(
                "--task rows reads ranges, categories and number formats off all rows, which is not paid for: fit the table with "
                "'visynth tabular fit --privacy.epsilon'."
            )
        given = {
            "--prompt": prompt,
            "--label": label,
            "--columns": columns,
            "--holdout": holdout,
            "--meanings": meanings,
            "--text": text != "text",
            "--system": system,
        }
        refuse(given, "rows take none of them: a part of the rows is held out")
        spec, known = learnable_rows(data, kinds or {}, drop or (), shown)
    else:
        refuse({"--kinds": kinds, "--drop": drop}, "they are for --task rows")
        spec, known = learnable_texts(data, text, label, columns or (), prompt, system, shown)
    if holdout is None:
        known, other = split_texts(known, held, seed, alone=privacy is not None)
    else:
        other = learnable_texts(holdout, text, label, columns or (), prompt, system, shown)[1]
    by_hash = (held, seed) if privacy is not None and holdout is None else None
    own = Tuning(
        TextGenerator(spec, known),
        other,
        model,
        Path(out),
        meanings or {},
        secrets,
        seed,
        Path(data).stem,
        privacy,
        by_hash,
    )
    talks = Talks.of(own)
    private = {} if privacy is None else {"privacy": asdict(privacy)}
    key = talks.key(model, {**dict(lora.hparams), **private}, seed)
    if done_already(own.out, key):
        printer(quiet)(f"{out}: this fine-tuning is done")
        return 0
    run = work_folder(out) / f"run-{key[:16]}"
    learn(own, talks, lora, printer(quiet), **resumable_training(lora, run, trainer or {}))

    def finish() -> None:
        write_tuning(own, talks, lora, key, printer(quiet))
        drop_checkpoint(run)
        spent = f" with epsilon {lora.spent['epsilon']:.3g}" if lora.spent else ""
        print(f"{out}: learned {len(talks.learned)} texts{spent}; digest {lora.digest[:16]}")
        print(f"report: {Path(out) / 'report.html'}", file=sys.stderr)

    on_main(finish)
    return 0
