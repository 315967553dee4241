"""What a text generator is, apart from the model: plan, prompt, schema of the reply, checks. Plain data, from YAML or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from visynth.core.errors import UsageError, choices, raise_all
from visynth.tabular.text import checks as checking
from visynth.tabular.text.checks import Check
from visynth.tabular.text.duplicates import Deduplication
from visynth.tabular.text.plan import TextPlan
from visynth.tabular.text.prompts import Prompt
from visynth.tabular.text.replies import check_schema


@dataclass(frozen=True)
class Wanted:
    """What a text is checked for.

    Attributes:
        least_words: of a text.
        most_words: of a text; None for any number.
        words: attribute that says how many words a text should have, within a half.
        mentions: attribute whose things a text must mention.
        language: ISO 639-1 code; None does not ask.
        run: words in a row that must not be copied from a real text; None does not ask.
        boilerplate: whether what an assistant says about itself, and open places, are refused.
        personal_data: whether e-mail addresses, telephone and card numbers and the like are refused.
    """

    least_words: int = 1
    most_words: int | None = None
    words: str | None = None
    mentions: str | None = None
    language: str | None = None
    run: int | None = 8
    boilerplate: bool = True
    personal_data: bool = True

    def __post_init__(self) -> None:
        problems = []
        if self.least_words < 1 or (self.most_words is not None and self.most_words < self.least_words):
            problems.append(f"words must be from 1 upwards, but got {self.least_words} to {self.most_words}")
        raise_all("the checks", problems, UsageError)

    def checks(self, real: Sequence[str]) -> dict[str, Check]:
        """The checks by name.

        Args:
            real: texts that must not be copied.
        """
        own: dict[str, Check] = {"length": checking.length(self.least_words, self.most_words, self.words)}
        if self.boilerplate:
            own["boilerplate"] = checking.no_boilerplate
        if self.personal_data:
            own["personal data"] = checking.no_personal_data
        if self.language is not None:
            own["language"] = checking.in_language(self.language)
        if self.mentions is not None:
            own["mentions"] = checking.mentions(self.mentions)
        if self.run is not None and real:
            own["copied words"] = checking.Overlap(real, self.run)
        return own


@dataclass(frozen=True)
class TextSpec:
    """A text generator without its model.

    Attributes:
        prompt: template over the attributes and, where there are examples, ``examples``.
        attributes: of the plan; see :class:`visynth.tabular.text.plan.TextPlan`. Empty where they come from real rows.
        label: attribute that is the class.
        schema: JSON schema of the reply; None for plain text.
        wanted: what a text is checked for.
        duplicates: what counts as said already.
        shown: real texts of the record's class in each prompt.
        attempts: at a record, the first and those with the error told.
        rounds: in which records without a text are written anew.

    Raises:
        UsageError: all that is wrong.
    """

    prompt: Prompt
    attributes: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
    schema: Mapping[str, Any] | None = None
    wanted: Wanted = field(default_factory=Wanted)
    duplicates: Deduplication = field(default_factory=Deduplication)
    shown: int = 0
    attempts: int = 3
    rounds: int = 3

    def __post_init__(self) -> None:
        problems = []
        if self.attributes:
            TextPlan(self.attributes)
            for name in (self.label, self.wanted.words, self.wanted.mentions):
                if name is not None and name not in self.attributes:
                    problems.append(f"there is no attribute {name!r}; there are {choices(self.attributes)}")
        for name, least in (("shown", 0), ("attempts", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                problems.append(f"{name} must be at least {least}, but got {getattr(self, name)}")
        raise_all("the text generator", problems, UsageError)
        if self.schema is not None:
            check_schema(self.schema)

    @property
    def names(self) -> set[str]:
        """Attributes that the prompt and the checks use."""
        own = {self.label, self.wanted.words, self.wanted.mentions} - {None}
        return {*(name for name in own if name), *self.prompt.names} - ({"examples"} if self.shown else set())

    def check_names(self, attributes: Mapping[str, Any]) -> None:
        """Refuse attributes that are used and that a record has not.

        Raises:
            UsageError: all of them.
        """
        lost = sorted(
            {name for name in (self.label, self.wanted.words, self.wanted.mentions) if name} - set(attributes)
        )
        if lost:
            raise UsageError(f"there are no attributes {choices(lost)}; a record has {choices(attributes)}.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> TextSpec:
        """The specification again.

        Raises:
            UsageError: unknown or missing fields.
        """
        unknown = sorted(set(said) - {f.name for f in fields(cls)})
        if unknown or "prompt" not in said:
            allowed = [f.name for f in fields(cls)]
            raise UsageError(f"a text generator has {choices(allowed)}; got {choices(unknown)}, and needs 'prompt'.")
        parts = {"prompt": Prompt, "wanted": Wanted, "duplicates": Deduplication}
        own = {name: _part(parts[name], name, value) if name in parts else value for name, value in said.items()}
        return cls(**own)


def _part(kind: type, name: str, value: Any) -> Any:
    if name == "prompt" and isinstance(value, str):
        return Prompt(value)
    try:
        return kind(**value)
    except TypeError as error:
        raise UsageError(f"{name}: {error}; it has {choices(f.name for f in fields(kind))}.") from error
