"""Prompts and responses: conversations of several turns by topic, for fine-tuning, kept apart from a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, raise_all
from visynth.core.report import Report, table
from visynth.tabular.text.checks import Check, Overlap, strings, words
from visynth.tabular.text.examples import read_records
from visynth.tabular.text.outputs import FORMS, conversation, json_lines
from visynth.tabular.text.plan import Record
from visynth.tabular.text.prompts import Prompt
from visynth.tabular.text.spec import TextSpec, Wanted
from visynth.tabular.text.writing import Written

DECONTAMINATION = 13  # words in a row, as in Brown et al., "Language models are few-shot learners" (2020), appendix C
SHORTEST = 5  # words of a benchmark's text that must not appear as a whole
PROMPT = Prompt(
    system="You write conversations between a user and a helpful assistant, as JSON.",
    user=(
        "Write a conversation about {{ topic }} with {{ turns }} {{ 'question' if turns == 1 else 'questions' }} by the user, each "
        "followed by the assistant's answer.{% if style is defined %} The assistant's style is {{ style }}.{% endif %}"
        "{% if persona is defined %} The user is {{ persona }}.{% endif %}\n"
        'Reply with JSON like {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.'
    ),
)


def chat_spec(
    topics: Sequence[str],
    *,
    turns: Sequence[int] = (1,),
    styles: Sequence[str] = (),
    personas: Sequence[str] = (),
    language: str | None = None,
    prompt: Prompt | None = None,
    attempts: int = 3,
    rounds: int = 3,
) -> TextSpec:
    """The generator of a set of conversations.

    Args:
        topics: each equally often.
        turns: numbers of questions, each equally often with each topic.
        styles: of the assistant.
        personas: of the user.
        language: that they must be in; None does not ask.
        prompt: instead of the built-in one.
        attempts: at a conversation.
        rounds: in which those that could not be had are written anew.

    Raises:
        UsageError: no topic, or turns below 1.
    """
    problems = [] if topics else ["topics must name at least one"]
    if not turns or min(turns) < 1:
        problems.append(f"turns must be whole numbers of at least 1, but got {list(turns)}")
    raise_all("the conversations", problems, UsageError)
    attributes: dict[str, Any] = {"topic": list(topics), "turns": list(turns)}
    attributes |= {name: list(levels) for name, levels in (("style", styles), ("persona", personas)) if levels}
    message = {
        "type": "object",
        "properties": {"role": {"enum": ["user", "assistant"]}, "content": {"type": "string", "minLength": 1}},
        "required": ["role", "content"],
        "additionalProperties": False,
    }
    messages = {"type": "array", "items": message, "minItems": 2 * min(turns), "maxItems": 2 * max(turns)}
    schema = {
        "type": "object",
        "properties": {"messages": messages},
        "required": ["messages"],
        "additionalProperties": False,
    }
    wanted = Wanted(least_words=4, language=language, run=None)
    return TextSpec(prompt or PROMPT, attributes, None, schema, wanted, attempts=attempts, rounds=rounds)


def chat_checks(benchmark: Sequence[str] = ()) -> dict[str, Check]:
    """Checks of conversations beyond those of all texts: turns alternate, and nothing of a benchmark stands in them."""
    checks: dict[str, Check] = {"turns": alternates}
    if benchmark:
        checks["benchmark"] = Overlap(benchmark, DECONTAMINATION, SHORTEST)
    return checks


def alternates(fields: Mapping[str, Any], record: Record) -> str:
    """Refuse conversations whose roles do not alternate from a user to an assistant, or of another number of turns.

    Example:
        >>> alternates({"messages": [{"role": "assistant", "content": "Hi"}]}, Record(0, {"turns": 1}, 0))
        'it has the roles assistant: user and assistant take 1 turn each, the user first'
    """
    turns = int(record.attributes["turns"])
    roles = [message["role"] for message in fields["messages"]]
    if roles == ["user", "assistant"] * turns:
        return ""
    each = "1 turn" if turns == 1 else f"{turns} turns"
    return f"it has the roles {', '.join(roles)}: user and assistant take {each} each, the user first"


def benchmark_texts(path: str | Path) -> list[str]:
    """All texts of a benchmark's file: of each cell in CSV, Parquet and JSON Lines, else of each line.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() in (".txt", ".md"):
        return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    frame = read_records(path)
    return [
        text for name in frame.columns for value in map(_listed, frame[name]) for text in strings(value, names=False)
    ]


def _listed(value: Any) -> Any:
    """A cell of Parquet, whose lists are arrays, as plain lists."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def chat_files(written: Written, report: Report, form: str, test: float, system: str, seed: int) -> dict[str, bytes]:
    """``train.jsonl`` and ``test.jsonl`` in a form; which is which follows from the seed and the record.

    Args:
        written: conversations.
        report: that gets a section on the answers.
        form: see :func:`visynth.tabular.text.outputs.conversation`.
        test: share of the conversations in the test file.
        system: message at the head of each; "" for none.
        seed: of the parting.

    Raises:
        UsageError: an unknown form, or a share outside [0, 1).
    """
    check_form(form, test)
    head = [{"role": "system", "content": system}] if system else []
    numbers = np.array([one.record.number for one in written.texts], np.int64)
    held = seeding.uniforms(seed, numbers, 1, "text/test")[:, 0] < test
    lines = [conversation(form, [*head, *one.fields["messages"]]) for one in written.texts]
    answers = [m["content"] for one in written.texts for m in one.fields["messages"] if m["role"] == "assistant"]
    counts = [len(words(answer)) for answer in answers]
    quantiles = [f"{value:.0f}" for value in np.quantile(counts, [0, 0.25, 0.5, 0.75, 1])]
    rows: list[list[Any]] = [
        ["answers", len(answers)],
        ["words of an answer (least, quartiles, most)", ", ".join(quantiles)],
    ]
    rows += [["conversations to train on", int((~held).sum())], ["conversations to test on", int(held.sum())]]
    report.section("The answers", table(["", ""], rows))
    sides = {"train.jsonl": ~held, "test.jsonl": held}
    return {
        name: json_lines([line for line, own in zip(lines, side, strict=True) if own]) for name, side in sides.items()
    }


def check_form(form: str, test: float) -> None:
    """Refuse wrong options before anything is written.

    Raises:
        UsageError: see :func:`chat_files`.
    """
    problems = [] if form in FORMS else [f"form must be one of {', '.join(FORMS)}, but got {form!r}"]
    if not 0 <= test < 1:
        problems.append(f"test must be from 0 to below 1, but got {test}")
    raise_all("the options", problems, UsageError)
