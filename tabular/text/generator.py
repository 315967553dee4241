"""A text generator as a folder: specification, and the real texts that its prompts show.

The folder is the product's artifact (:mod:`visynth.core.artifact`) with schema ``visynth.text/1``. The language model is not in
it: a generator works with any backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.artifact import Artifact
from visynth.core.errors import DataError, IntegrityError, UsageError, choices
from visynth.core.loading import load_generator
from visynth.core.members import Member
from visynth.core.progress import Progress, no_progress
from visynth.tabular.text.backends import Backend
from visynth.tabular.text.cache import Replies
from visynth.tabular.text.checks import Check, main_text
from visynth.tabular.text.duplicates import normalised
from visynth.tabular.text.embedding import Embedder
from visynth.tabular.text.plan import Record, TextPlan
from visynth.tabular.text.prompts import Message
from visynth.tabular.text.spec import TextSpec
from visynth.tabular.text.writing import Recipe, Written, write_texts

SCHEMA = "visynth.text/1"


@dataclass(frozen=True)
class Example:
    """A real text.

    Attributes:
        text: of it.
        label: its class, or "".
        attributes: further ones that prompts may use.
    """

    text: str
    label: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


class TextGenerator:
    """Writes texts by a plan.

    Args:
        spec: plan, prompt, checks.
        examples: real texts: prompts show those of the record's class, and none may be copied.
        notes: what people should know.

    Example:
        >>> import tempfile
        >>> from visynth.tabular.text import Prompt, Template, TextGenerator, TextSpec
        >>> spec = TextSpec(Prompt("A {{ mood }} word."), {"mood": ["good", "bad"]})
        >>> generator = TextGenerator(spec)
        >>> made = generator.write(generator.records(2), Template(["A {mood} day."]), tempfile.mkdtemp())
        >>> sorted(text.fields["text"] for text in made.texts)
        ['A bad day.', 'A good day.']
    """

    network: ClassVar[str] = "text"

    def __init__(self, spec: TextSpec, examples: Sequence[Example] = (), notes: Sequence[str] = ()) -> None:
        if spec.shown and not examples:
            raise UsageError(f"each prompt shows {spec.shown} real texts, but there are none: give data, or shown: 0.")
        self.spec, self.examples, self.notes = spec, tuple(examples), tuple(notes)
        self._of_class: dict[str, list[int]] = {}
        for place, example in enumerate(self.examples):
            self._of_class.setdefault(example.label, []).append(place)

    def recipe(self, checks: Mapping[str, Check] | None = None, embedder: Embedder | None = None) -> Recipe:
        """How a record becomes a text.

        Args:
            checks: further ones by name.
            embedder: for near-duplicates; by default weights of words and runs of characters.

        Raises:
            UsageError: checks that cannot be.
        """
        spec, real = self.spec, [example.text for example in self.examples]
        own = {**spec.wanted.checks(real), **(checks or {})}
        return Recipe(
            self.messages, spec.schema, own, spec.duplicates, embedder, tuple(real), spec.attempts, spec.rounds
        )

    def records(self, n: int, seed: int = 0) -> list[Record]:
        """Records of the generator's own plan.

        Raises:
            UsageError: it has none.
        """
        if not self.spec.attributes:
            raise UsageError("the generator has no plan of its own: give records.")
        return TextPlan(self.spec.attributes).records(n, seed)

    def write(
        self,
        records: Sequence[Record],
        backend: Backend,
        work: str | Path,
        *,
        recipe: Recipe | None = None,
        key: Mapping[str, Any] | None = None,
        progress: Progress = no_progress,
    ) -> Written:
        """Write a text for each record.

        Args:
            records: see :meth:`records`.
            backend: that answers.
            work: folder where replies are kept until the job is done.
            recipe: instead of :meth:`recipe`.
            key: what replies are kept under, instead of :meth:`reply_key`.
            progress: receives lines.

        Raises:
            UsageError: nobody will ever answer.
            UnavailableError: nobody answers; what came is kept, and the same call goes on.
        """
        recipe = self.recipe() if recipe is None else recipe
        if backend.learned and self.spec.duplicates.equal:  # what may be repeated may be a learned text, too
            recipe = replace(recipe, checks={**recipe.checks, "learned": _Learned(backend.learned)})
        shown = [self._with_examples(record) for record in records]
        for record in shown[:1]:
            self.messages(record)  # a template that cannot be filled is told before anything is asked
        replies = Replies(work, self.reply_key(backend) if key is None else key)
        return write_texts(shown, recipe, backend, replies, progress)

    def reply_key(self, backend: Backend) -> dict[str, Any]:
        """What replies are kept under, besides their requests."""
        return {**backend.identity, "generator": self.digest}

    def messages(self, record: Record) -> Sequence[Message]:
        """The prompt of a record."""
        values = dict(record.attributes)
        if self.spec.shown:
            values["examples"] = [self.examples[place].text for place in record.parents]
        return self.spec.prompt.messages(values)

    def _with_examples(self, record: Record) -> Record:
        """The record with the real texts that its prompt shows, drawn by its own seed."""
        if not self.spec.shown or record.parents:
            return record
        label = str(record.attributes[self.spec.label]) if self.spec.label else ""
        own = self._like(label)
        if not own:
            raise DataError(f"no real text has the class {label!r}; there are {choices(sorted(self._of_class))}.")
        return showing(record, own, self.spec.shown)

    def _like(self, label: str) -> list[int]:
        """Places of the real texts of a class; of all where texts have none."""
        return self._of_class.get(label, []) if self.spec.label else list(range(len(self.examples)))

    def showing_others(self, record: Record, example: Example) -> Record:
        """The record of a real text with real texts of its class, but for such of the same words, as those that its prompt shows.

        Raises:
            DataError: there is no other.
        """
        if not self.spec.shown:
            return record
        label, mark = example.label, text_hash(example.text)
        own = [other for other in self._like(label) if text_hash(self.examples[other].text) != mark]
        if not own:
            raise DataError(f"class {label!r} has one real text, and its prompt should show another one: use shown: 0.")
        return showing(record, own, self.spec.shown)

    # -- storing -----------------------------------------------------------------------------------------------------

    @property
    def classes(self) -> tuple[str, ...]:
        if self.spec.label is None:
            return ()
        levels = TextPlan(self.spec.attributes).crossed.get(self.spec.label) if self.spec.attributes else None
        return tuple(map(str, levels)) if levels else tuple(sorted(self._of_class))

    @property
    def members(self) -> tuple[Member, ...]:
        """One fingerprint for each real text."""
        return members_of(self.examples)

    @property
    def card(self) -> dict[str, Any]:
        """What people are told of it."""
        holds = (
            "the real texts that its prompts show are in its folder"
            if self.examples
            else "no real texts are in its folder"
        )
        return {
            "task": "synthetic text",
            "real texts": len(self.examples),
            "notes": list(self.notes),
            "privacy": f"without differential privacy; {holds}",
            "licence": "as the real texts, and as the language model's terms allow",
            "made by": "visynth text",
        }

    def artifact(self) -> Artifact:
        """The generator as it is stored."""
        examples = [[e.text, e.label, dict(e.attributes)] for e in self.examples]
        identity = {
            "schema": SCHEMA, "network": self.network, "classes": list(self.classes), "spec": self.spec.to_json(),
            "examples": examples,
        }  # fmt: skip
        return Artifact(identity, b"", self.members, self.card)

    @property
    def digest(self) -> str:
        """Hex sha256 of all of it but the language model."""
        return self.artifact().digest

    def save(self, folder: str | Path) -> Path:
        """Write the generator folder; it appears complete or not at all."""
        return self.artifact().save(folder, self._readme())

    def _readme(self) -> str:
        notes = "".join(f"- {note}\n" for note in self.notes) or "- none\n"
        held = f"{len(self.examples)} real texts (in `generator.json`: share it as you would share them)"
        return (
            f"# Text generator\n\nDigest: `{self.digest}`. Written for {held}.\n\n"
            f"Prompt:\n\n```\n{self.spec.prompt.user}\n```\n\nNotes:\n\n{notes}\n"
            "Intended use: training data. Not for evaluation, not as evidence of what people said.\n"
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A generator from its folder.

        Raises:
            IntegrityError: altered, cut short, or of another kind.
        """
        loaded = load_generator(folder)
        if not isinstance(loaded, cls):
            raise IntegrityError(f"{folder} holds a {type(loaded).__name__}, no text generator.")
        return loaded

    @classmethod
    def from_artifact(cls, stored: Artifact, device: str = "cpu") -> Self:
        """The generator that an artifact of schema ``visynth.text/1`` holds."""
        said = stored.identity
        examples = [Example(text, label, attributes) for text, label, attributes in said["examples"]]
        spec, notes = TextSpec.from_json(said["spec"]), stored.card.get("notes", ())
        return cls(spec, examples, notes)


class _Learned:
    """Refuses texts whose words are those of a text that the language model was fine-tuned on."""

    def __init__(self, marks: frozenset[str]) -> None:
        self.marks = marks

    def __call__(self, fields: Mapping[str, Any], record: Record) -> str:
        return (
            "it repeats a text that the model learned: use other words"
            if text_hash(main_text(fields)) in self.marks
            else ""
        )


def showing(record: Record, places: Sequence[int], count: int) -> Record:
    """The record with some of the places of real texts as those that its prompt shows, drawn by its own seed."""
    order = seeding.rng(record.seed, "text/examples").permutation(len(places))[:count]
    return replace(record, parents=tuple(int(places[place]) for place in np.sort(order)))


def members_of(examples: Sequence[Example]) -> tuple[Member, ...]:
    """One fingerprint for each real text."""
    return tuple(
        Member(f"text/{place:09d}", example.label, "", "train", mark, mark, "")
        for place, example in enumerate(examples)
        for mark in [text_hash(example.text)]
    )


def text_hash(text: str) -> str:
    """Hex hash of a text's words, the same for copies that differ in case, spaces or punctuation."""
    return blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
