"""Texts of the rare class of a set of labelled texts, and the balanced set with every real text in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visynth.core import balance as balancing
from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, choices
from visynth.tabular.text.checks import Check, label_agrees
from visynth.tabular.text.classifier import TextClassifier, least_probabilities
from visynth.tabular.text.generator import Example
from visynth.tabular.text.outputs import json_lines, json_value
from visynth.tabular.text.plan import Record, meant
from visynth.tabular.text.prompts import Prompt
from visynth.tabular.text.spec import TextSpec, Wanted
from visynth.tabular.text.writing import Written

PROMPT = Prompt(
    system="You write new texts like the ones that you are shown. You reply with one text and nothing else.",
    user=(
        "{% if examples is defined %}"
        "These texts have the label {{ label }}{% if meaning is defined %} ({{ meaning }}){% endif %}:\n\n"
        "{% for example in examples %}- {{ example }}\n{% endfor %}\n"
        "Write one more text with this label. It is about something else, in other words."
        "{% else %}"
        "Write one text with the label {{ label }}{% if meaning is defined %} ({{ meaning }}){% endif %}."
        "{% endif %}"
    ),
)


def classify_spec(
    examples: Sequence[Example],
    *,
    shown: int = 5,
    language: str | None = None,
    prompt: Prompt | None = None,
    attempts: int = 3,
    rounds: int = 3,
) -> TextSpec:
    """The generator of texts like some real ones.

    Args:
        examples: real texts with their classes.
        shown: of the class, in each prompt.
        language: that a text must be in; None does not ask.
        prompt: instead of the built-in one, over ``label``, ``examples`` and ``meaning``.
        attempts: at a text.
        rounds: in which texts that could not be had are written anew.
    """
    longest = max(len(example.text.split()) for example in examples)
    wanted = Wanted(least_words=2, most_words=max(2 * longest, 20), language=language)
    return TextSpec(prompt or PROMPT, {}, "label", wanted=wanted, shown=shown, attempts=attempts, rounds=rounds)


def class_records(
    examples: Sequence[Example],
    *,
    rare: Sequence[str] = (),
    to: int | None = None,
    per_class: int | None = None,
    meanings: dict[str, str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Records that balance the classes.

    Args:
        examples: real texts.
        rare: classes to fill; by default all but the largest.
        to: fill each up to this many texts, counting its reals, instead of up to the largest class.
        per_class: exactly so many of each.
        meanings: of the classes, for the prompt.
        seed: of the records.

    Raises:
        UsageError: unknown classes, or nothing to write.

    Example:
        >>> texts = [Example("a", "x"), Example("b", "x"), Example("c", "y")]
        >>> [record.attributes["label"] for record in class_records(texts)]
        ['y']
    """
    labels = [example.label for example in examples]
    counts = {name: labels.count(name) for name in sorted(set(labels))}
    unknown = [name for name in [*rare, *(meanings or {})] if name not in counts]
    if unknown:
        raise UsageError(f"there are no texts with the label {choices(unknown)}; the labels are {choices(counts)}.")
    if per_class is not None:
        wanted = dict.fromkeys(counts, per_class)
    else:
        wanted = balancing.targets("all" if to is not None else "not majority", counts, to=to)
    chosen = set(rare or counts)
    listed = [name for name in counts if name in chosen for _ in range(wanted.get(name, 0))]
    if not listed:
        raise UsageError(f"there is nothing to write: the classes have {counts} texts. Give rare, to or per_class.")
    order = seeding.rng(seed, "text/classes").permutation(len(listed))
    return [
        Record.of(number, meant({"label": listed[place]}, listed[place], meanings or {}), seed)
        for number, place in enumerate(order)
    ]


def label_checks(
    examples: Sequence[Example], agreement: float, seed: int = 0
) -> tuple[dict[str, Check], dict[str, float]]:
    """The check of the asked class by a classifier of real texts, and the probability that it asks for, by class.

    Args:
        examples: real texts with their classes.
        agreement: probability that is asked for at most; 0 asks for none.
        seed: of the classifier's folds.

    Raises:
        UsageError: agreement is outside [0, 1).
    """
    if not 0 <= agreement < 1:
        raise UsageError(f"agreement must be from 0 to below 1, but got {agreement}.")
    if not agreement:
        return {}, {}
    sides = [example.text for example in examples], [example.label for example in examples]
    least = least_probabilities(*sides, agreement, seed=seed)
    return {"label": label_agrees(TextClassifier(*sides, seed=seed), "label", least)}, least


def balanced_lines(real: Any, written: Written, text: str, label: str) -> bytes:
    """All real rows and the synthetic texts, told apart by ``synthetic``, as JSON Lines with the real columns' names and
    values.

    Args:
        real: frame of the real rows.
        written: synthetic texts.
        text: column of the texts.
        label: column of the classes.
    """
    values = {str(value): value for value in real[label].tolist()}
    rows: list[dict[str, Any]] = [
        {**{name: json_value(value) for name, value in row.items()}, "synthetic": False}
        for row in real.to_dict("records")
    ]
    rows += [
        {text: one.fields["text"], label: json_value(values[one.record.attributes["label"]]), "synthetic": True}
        for one in written.texts
    ]
    return json_lines(rows)
