"""Real texts as what a language model is trained on and measured with: a conversation, and the reply that is the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError
from visynth.tabular.text.generator import Example, TextGenerator
from visynth.tabular.text.models import LanguageModel
from visynth.tabular.text.plan import Record, meant
from visynth.tabular.text.prompts import Message

Arrays = dict[str, NDArray[Any]]
LONGEST = 1024  # tokens of a conversation that is learned


@dataclass(frozen=True)
class Talk:
    """A conversation up to a reply.

    Attributes:
        messages: before the reply.
        reply: of the assistant.
        number: place of the real text among those given.
    """

    messages: tuple[Message, ...]
    reply: str
    number: int = 0


def talks_of(
    generator: TextGenerator,
    seed: int = 0,
    meanings: Mapping[str, str] | None = None,
    texts: Sequence[Example] | None = None,
) -> list[Talk]:
    """A talk for each real text: the generator's prompt, which shows other texts of its own where it shows some, and the text.

    Args:
        generator: its prompt may use the label, the attributes of a text and ``examples``.
        seed: of the texts that are shown.
        meanings: of the classes, for the prompt.
        texts: by default the generator's own.

    Raises:
        DataError: a class has one text, and prompts show texts of the class.

    Example:
        >>> from visynth.tabular.text import Example, Prompt, TextSpec
        >>> spec = TextSpec(Prompt("A {{ label }} text."), label="label")
        >>> talks_of(TextGenerator(spec, [Example("So good.", "good")]))[0].messages[0]["content"]
        'A good text.'
    """
    talks = []
    for number, example in enumerate(generator.examples if texts is None else texts):
        attributes = dict(example.attributes)
        if generator.spec.label is not None:
            attributes = meant({**attributes, generator.spec.label: example.label}, example.label, meanings or {})
        record = generator.showing_others(Record.of(number, attributes, seed), example)
        talks.append(Talk(tuple(generator.messages(record)), example.text, number))
    return talks


def encoded(model: LanguageModel, talks: Sequence[Talk]) -> tuple[Arrays, list[int]]:
    """Tokens of talks.

    Args:
        model: whose tokens they are.
        talks: of any length.

    Returns:
        ``ids`` int64 ``[N, L]``, padded on the right, ``first`` (tokens before the reply) and ``length`` (of all) ``[N]``; and
        the places of talks that are longer than the context or :data:`LONGEST` and are left out.

    Raises:
        DataError: all are too long.
    """
    most = min(model.context, LONGEST)
    rows, long = [], []
    for place, talk in enumerate(talks):
        before, reply = model.ids(talk.messages), model.reply_ids(talk.reply)
        if len(before) + len(reply) > most:
            long.append(place)
        else:
            rows.append((before, reply))
    if not rows:
        raise DataError(f"all {len(talks)} texts have, with their prompts, more than {most} tokens.")
    width = max(len(before) + len(reply) for before, reply in rows)
    ids = np.zeros((len(rows), width), np.int64)
    for row, (before, reply) in zip(ids, rows, strict=True):
        row[: len(before) + len(reply)] = [*before, *reply]
    first = np.array([len(before) for before, _ in rows], np.int64)
    return {"ids": ids, "first": first, "length": first + [len(reply) for _, reply in rows]}, long


def batches(arrays: Arrays, size: int) -> Iterable[Arrays]:
    """Rows in order, ``size`` at a time."""
    for start in range(0, len(arrays["ids"]), size):
        yield {name: values[start : start + size] for name, values in arrays.items()}
