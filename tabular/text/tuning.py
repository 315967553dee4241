"""Fine-tune a language model on people's texts, and measure what it learned and what it remembers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.errors import ConflictError, DataError, UsageError, choices
from visynth.core.files import hash_json, readable_json
from visynth.core.folders import put_files
from visynth.core.progress import Progress, no_progress
from visynth.core.report import FILES, Report, bullets, environment, table, text
from visynth.tabular.text.backends import Decoding, Reply, Request
from visynth.tabular.text.classify import classify_spec
from visynth.tabular.text.examples import read_examples
from visynth.tabular.text.generator import Example, TextGenerator, members_of, text_hash
from visynth.tabular.text.local import TransformersLocal
from visynth.tabular.text.lora import Lesson, TextLoRA
from visynth.tabular.text.losses import losses_of
from visynth.tabular.text.lowrank import switched_off
from visynth.tabular.text.memory import Canaries, Losses, canary_table, membership_blocks, memberships
from visynth.tabular.text.models import LanguageModel, load_model, weights_digest
from visynth.tabular.text.private import TextPrivacy
from visynth.tabular.text.prompts import Prompt
from visynth.tabular.text.rows import read_rows, row_examples, row_schema, rows_spec
from visynth.tabular.text.spec import TextSpec
from visynth.tabular.text.talks import Talk, encoded, talks_of

LEAD = "What the model learned of the texts, measured on texts that it did not learn, and what its weights remember of those that it did."
FEWEST = 20  # texts a side that anything is measured with
MOST = 1000  # texts a side that are measured
SAMPLES = 8
SUMMARY = "summary.json"
OUT = (*FILES, "generator", SUMMARY)


@dataclass(frozen=True)
class Tuning:
    """What is learned, and where it goes.

    Attributes:
        generator: whose prompt and real texts are learned.
        held: real texts to measure with.
        model: folder or GGUF file of the language model.
        out: folder for generator/ and the report.
        meanings: of the classes, for the prompt.
        canaries: secrets to learn; none by default, because a generator that knows them is for an audit alone.
        seed: of what prompts show, and of samples.
        subject: what the report is headed with.
        privacy: of the fine-tuning; None: without.
        held_out: share and seed by which texts were held out for a private fine-tuning.
    """

    generator: TextGenerator
    held: Sequence[Example]
    model: str | Path
    out: Path
    meanings: Mapping[str, str] = field(default_factory=dict)
    canaries: Canaries = field(default_factory=Canaries)
    seed: int = 0
    subject: str = "the texts"
    privacy: TextPrivacy | None = None
    held_out: tuple[float, int] | None = None


@dataclass(frozen=True)
class Talks:
    """All that is learned and measured, made before anything is trained.

    Attributes:
        learned: of the real texts.
        held: of the texts to measure with, but for those that have the words of a learned one.
        same: number of those.
        secrets: the canaries, their controls and the others.
        repeated: canaries that are learned, as often as they are.
    """

    learned: list[Talk]
    held: list[Talk]
    same: int
    secrets: list[Talk]
    repeated: list[Talk]

    @classmethod
    def of(cls, task: Tuning) -> Talks:
        """The talks of a task.

        Raises:
            DataError: prompts cannot show what they should.
            UsageError: templates that cannot be filled, meanings of classes that are not there.
        """
        known = {text_hash(example.text) for example in task.generator.examples}
        unknown = sorted(set(task.meanings) - {example.label for example in task.generator.examples})
        if unknown:
            raise UsageError(
                f"there are meanings of {choices(unknown)}; the labels are {choices(task.generator.classes)}."
            )
        if not task.generator.examples:
            raise DataError("no text is left to learn: hold out fewer.")
        learned = talks_of(task.generator, task.seed, task.meanings)
        new = [example for example in task.held if text_hash(example.text) not in known]
        held = talks_of(task.generator, task.seed, task.meanings, new)
        asked = min((talk.messages for talk in learned), key=lambda messages: sum(len(m["content"]) for m in messages))
        canaries = task.canaries
        secrets = canaries.talks(asked, canaries.secrets) if canaries.count else []
        return cls(learned, held, len(task.held) - len(new), secrets, canaries.learned(asked))

    def key(self, model: str | Path, arguments: Mapping[str, Any], seed: int) -> str:
        """Hash of all that decides the weights and the report."""
        sides = [self.learned, self.held, self.secrets, self.repeated]
        said = [[[[dict(m) for m in talk.messages], talk.reply] for talk in side] for side in sides]
        return hash_json({"talks": said, "model": weights_digest(model), "arguments": dict(arguments), "seed": seed})


def done_already(out: Path, key: str) -> bool:
    """Whether a folder holds this fine-tuning finished.

    Raises:
        ConflictError: it holds another one, or another job's texts.
    """
    path = out / SUMMARY
    if not path.is_file():
        return False
    said = json.loads(path.read_text(encoding="utf-8"))
    if said.get("job") != key:
        raise ConflictError(
            f"{out} holds another fine-tuning or another job's texts: choose another folder, or remove it."
        )
    return True


def learn(task: Tuning, talks: Talks, lora: TextLoRA, progress: Progress = no_progress, **training: Any) -> None:
    """Train.

    Args:
        task: what is learned.
        talks: of the task.
        lora: that is trained.
        progress: receives lines.
        training: ``trainer=`` and ``checkpoint=``.

    Raises:
        UsageError: no such model, or canaries longer than it can read.
        DataError: texts that are all too long.
    """
    if task.privacy is not None:
        task.privacy.check(task.generator.classes, task.generator.spec.shown, task.canaries.count)
    model = load_model(task.model)
    if talks.held:
        encoded(model, talks.held)  # what cannot be measured is told before the training
    if talks.secrets and encoded(model, talks.secrets)[1]:
        raise UsageError("the shortest prompt and a canary are longer than the model can read: use no canaries.")
    notes = [f"learned {task.canaries.count} canaries: for an audit, not for use"] if task.canaries.count else []
    spec = task.generator.spec
    lora.fit(
        model, [*talks.learned, *talks.repeated], lesson=Lesson(spec.prompt, spec.shown, dict(task.meanings)),
        classes=task.generator.classes, members=members_of(task.generator.examples), notes=[*task.generator.notes, *notes],
        privacy=task.privacy, held_out=task.held_out, progress=progress, **training,
    )  # fmt: skip


def write_tuning(task: Tuning, talks: Talks, lora: TextLoRA, key: str, progress: Progress = no_progress) -> Report:
    """Write the generator, measure what was learned, and write the report.

    Returns:
        The report, as written.

    Raises:
        OutputError: ``out`` holds something that visynth did not write.
    """
    started = time.monotonic()
    lora.save(task.out / "generator", str(task.model))
    progress("  measuring what was learned")
    report = Report("text fine-tuning", task.subject, lead=LEAD)
    if lora.spent:
        report.section("Differential privacy", *_spent_blocks(lora))
    _measured(report, task, talks, lora)
    known = {text_hash(talk.reply) for talk in talks.learned}
    report.section("Samples", bullets(_samples(lora.language, talks.learned, known, task.seed)))
    report.conditions |= {
        "texts learned": len(talks.learned), "texts held out": len(task.held), "model": lora.base, "passes": round(lora.passes, 1),
        **{f"fine-tuning: {name}": value for name, value in dict(lora.hparams).items()},
        "canaries": asdict(task.canaries), "prompt": task.generator.spec.prompt.user, "generator": lora.digest,
        "notes": list(lora.card["notes"]), "seconds of measuring": round(time.monotonic() - started), **environment(),
    }  # fmt: skip
    report.write(task.out)
    summary = {"texts": len(talks.learned), "held": len(talks.held), "generator": lora.digest, "job": key}
    put_files(task.out, {SUMMARY: readable_json(summary)})  # last: where it is, the fine-tuning is done
    return report


def learnable_texts(
    path: str | Path,
    text: str,
    label: str | None,
    columns: Sequence[str] = (),
    prompt: str | None = None,
    system: str = "",
    shown: int = 0,
) -> tuple[TextSpec, list[Example]]:
    """The specification of a generator of a file's texts, and the texts.

    Args:
        path: CSV, Parquet or JSON Lines.
        text: column of the texts.
        label: column of the classes; a prompt of one's own knows it by this name.
        columns: further ones that a prompt of one's own uses.
        prompt: instead of that of ``visynth text classify``.
        system: what is said before it.
        shown: other real texts in each prompt.

    Raises:
        UsageError: columns that are not there, or nothing that says what to write.
        DataError: empty texts.
    """
    examples = read_examples(path, text, label, columns)
    if prompt is not None:
        return TextSpec(Prompt(prompt, system), {}, label, shown=shown), examples
    if label is None or columns or system:
        raise UsageError(
            "without a prompt of your own a text is asked for by its class alone: give label, and no columns and no system; or "
            "give a prompt."
        )
    return classify_spec(examples, shown=shown), examples


def learnable_rows(
    path: str | Path, kinds: Mapping[str, str], drop: Sequence[str], shown: int = 0
) -> tuple[TextSpec, list[Example]]:
    """The specification of a generator of a table's rows as ``visynth text rows`` asks for them, and the rows as JSON.

    Args:
        path: CSV, Parquet or JSON Lines.
        kinds: of columns where the data mislead.
        drop: columns to leave out.
        shown: other real rows in each prompt.

    Raises:
        UsageError: columns that are not there or cannot be asked for.
        DataError: a table that cannot be.
    """
    frame, schema = read_rows(path, kinds, drop)
    return rows_spec(row_schema(schema, frame), shown=shown), row_examples(schema, frame)


def split_texts(
    examples: Sequence[Example], share: float, seed: int = 0, *, alone: bool = False
) -> tuple[list[Example], list[Example]]:
    """Texts to learn, and a share of each class to measure with; texts of equal words stay together.

    Args:
        examples: all texts.
        share: that is held out.
        seed: of the split.
        alone: decide about each text by itself, as differential privacy needs it: else one text less moves others to the other side.

    Raises:
        UsageError: the share is outside [0, 0.9].

    Example:
        >>> learned, held = split_texts([Example(f"text {k}", "a") for k in range(10)], 0.2)
        >>> len(learned), len(held)
        (8, 2)
    """
    if not 0 <= share <= 0.9:
        raise UsageError(f"the share of held-out texts must be from 0 to 0.9, but got {share}.")
    if alone:
        inside = [seeding.rng(seed, f"text/held/{text_hash(example.text)}").random() >= share for example in examples]
        both = [[e for e, learned in zip(examples, inside, strict=True) if learned == side] for side in (True, False)]
        return both[0], both[1]
    by_class: dict[str, list[str]] = {}
    for mark, label in {text_hash(example.text): example.label for example in reversed(examples)}.items():
        by_class.setdefault(label, []).append(mark)
    held: set[str] = set()
    for label, marks in by_class.items():
        order = seeding.rng(seed, f"text/held/{label}").permutation(len(marks))
        held |= {sorted(marks)[place] for place in order[: round(share * len(marks))]}
    sides = [[e for e in examples if (text_hash(e.text) in held) == side] for side in (False, True)]
    return sides[0], sides[1]


def _measured(report: Report, task: Tuning, talks: Talks, lora: TextLoRA) -> None:
    if talks.same:
        report.section(
            "Held-out texts", text(f"{talks.same} of them have the words of a learned one and are left out.")
        )
    sides = {"learned": _few(talks.learned, task.seed)}
    if talks.held:
        sides["held out"] = _few(talks.held, task.seed)
    size = int(lora.args.batch_size)
    measured = {name: _losses(lora.language, side, size) for name, side in sides.items()}
    report.section("What was learned", *_learned_blocks(measured))
    enough = "held out" in measured and min(len(after) for _, after in measured.values()) >= FEWEST
    if enough:
        found = memberships(measured["learned"], measured["held out"], task.seed)
        report.section("Privacy: can it be told who was learned?", *membership_blocks(found))
    else:
        report.section(
            "Privacy: can it be told who was learned?", text(f"Not tested: that takes {FEWEST} held-out texts.")
        )
    if talks.secrets:
        losses = _losses(lora.language, talks.secrets, size)[1]
        report.section("Privacy: canaries", canary_table(task.canaries, losses, lora.passes))
    else:
        report.section("Privacy: canaries", text("Not tested: no secrets were learned (canaries)."))


def _spent_blocks(lora: TextLoRA) -> list[dict[str, Any]]:
    rows = [[name, str(value)] for name, value in lora.spent.items() if not isinstance(value, (list, dict))]
    note = "The weights are private. This report is not: it measures the private texts. Keep it where they are."
    return [table(["", ""], rows), text(note)]


def _few(talks: Sequence[Talk], seed: int) -> list[Talk]:
    order = np.sort(seeding.rng(seed, "text/measured").permutation(len(talks))[:MOST])
    return [talks[place] for place in order]


def _losses(model: LanguageModel, talks: Sequence[Talk], size: int) -> tuple[Losses, Losses]:
    """Token losses of the model as it was, and as it is."""
    arrays, _ = encoded(model, talks)
    with switched_off(model.model):
        before = losses_of(model, arrays, size)
    return before, losses_of(model, arrays, size)


def _learned_blocks(measured: Mapping[str, tuple[Losses, Losses]]) -> list[dict[str, Any]]:
    rows, limits = [], {}
    for name, (before, after) in measured.items():
        first, second = (np.array([own.mean() for own in losses]) for losses in (before, after))
        change = second - first
        half = 1.96 * change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.inf
        limits[name] = change.mean() - half, change.mean() + half
        interval = "" if len(change) == 1 else f" [{limits[name][0]:+.3f}, {limits[name][1]:+.3f}]"
        rows.append([
            name, len(first), round(float(first.mean()), 3), round(float(second.mean()), 3), f"{change.mean():+.3f}{interval}",
        ])  # fmt: skip
    note = "Mean loss of a text's tokens in nats, every text the same; the change with its 95 % interval over texts. Lower is likelier."
    blocks = [table(["texts", "number", "before", "after", "change"], rows, note)]
    if "held out" in measured and len(measured["held out"][0]) >= FEWEST:
        low, high = limits["held out"]
        if high < 0:
            said = "Texts that it did not learn became likelier, too."
        elif low > 0:
            said = (
                "Texts that it did not learn became less likely: it learned its texts by heart, not their kind. Fewer steps, a lower "
                "rank, or more texts."
            )
        else:
            said = "Whether texts that it did not learn became likelier cannot be told."
        blocks.append(text(said))
    return blocks


def _samples(model: LanguageModel, talks: Sequence[Talk], known: set[str], seed: int) -> list[str]:
    order = np.sort(seeding.rng(seed, "text/samples").permutation(len(talks))[:SAMPLES])
    requests = [Request(talks[p].messages, seeding.derive("text/sample", seed, int(p))) for p in order]
    longest = max(len(model.reply_ids(talk.reply)) for talk in talks)
    room = max(model.context - max(len(model.ids(request.messages)) for request in requests), 1)
    backend = TransformersLocal(model, Decoding(max_tokens=min(2 * longest, 200, room)), batch=len(requests))
    said = [answer.text if isinstance(answer, Reply) else str(answer) for answer in backend.complete(requests)]
    return [f"(a learned text, word for word) {one}" if text_hash(one) in known else one for one in said]
