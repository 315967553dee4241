"""Who writes the texts: the contract of every backend, and one that needs no model.

A reply is a function of the request alone where a backend can promise it (:class:`Template`, :class:`TransformersLocal`);
servers are asked with the record's seed and promise what they promise, so their replies are kept (:mod:`.cache`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError, raise_all
from visynth.tabular.text.prompts import Message

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: share of the probability that is drawn from (Holtzman et al., "The curious case of neural text degeneration",
            ICLR 2020).
        max_tokens: of a reply.
    """

    temperature: float = 0.9
    top_p: float = 0.95
    max_tokens: int = 200

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature <= 5:
            problems.append(f"temperature must be from 0 to 5, but got {self.temperature}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be above 0 and at most 1, but got {self.top_p}")
        if self.max_tokens < 1:
            problems.append(f"max_tokens must be at least 1, but got {self.max_tokens}")
        raise_all("the decoding", problems, UsageError)


@dataclass(frozen=True)
class Request:
    """One text asked for.

    Attributes:
        messages: the conversation so far.
        seed: of the draws, in [0, 2**63).
        schema: JSON schema of the reply, or None for plain text.
        attributes: of the record; only :class:`Template` reads them.
    """

    messages: tuple[Message, ...]
    seed: int
    schema: Schema | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What came.

    Attributes:
        text: of the reply.
        finish: ``"stop"``; ``"length"`` where it was cut off at ``max_tokens``, ``"filtered"`` where by a server's filter.
        tokens_in: of the prompt.
        tokens_out: of the reply.
    """

    text: str
    finish: Literal["stop", "length", "filtered"] = "stop"
    tokens_in: int = 0
    tokens_out: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class RequestFailed(DataError):
    """One request could not be answered, while others may be: a text longer than the context, an error of the server that
    stays."""


class Backend(Protocol):
    """Whatever answers requests.

    Attributes:
        batch: requests that are answered together; always the same ones, so that a reply does not depend on what was
            answered before.
        at_once: batches under way at a time.
        learned: hashes of texts that it was fine-tuned on, by :func:`visynth.tabular.text.generator.text_hash`.
    """

    batch: int
    at_once: int
    learned: frozenset[str]

    @property
    def cost(self) -> float | None:
        """Of all replies so far; None where nothing is counted."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON of all that decides a reply to a request: model and parameters."""

    async def answer(self, requests: Sequence[Request]) -> Sequence[Reply | RequestFailed]:
        """One reply, or its failure, for each of at most ``batch`` requests.

        Raises:
            UnavailableError: nobody answers.
            UsageError: nobody will ever answer (wrong key, unknown model).
        """

    def resumed(self, replies: Sequence[Reply]) -> None:
        """Replies of an earlier run, which count towards a limit of costs."""

    async def close(self) -> None:
        """Free what is held."""


class Template:
    """Texts from sentences with places to fill in: offline, the same for equal seeds, and plain. A baseline that any language
    model must beat, and a way to try a job before it costs anything.

    Args:
        sentences: with places such as ``{product}`` for attributes; one is drawn for each record. In a reply with a schema
            they fill the fields that are texts.

    Example:
        >>> import asyncio
        >>> request = Request(({"role": "user", "content": "?"},), 5, attributes={"product": "lamp"})
        >>> asyncio.run(Template(["The {product} is fine."]).answer([request]))[0].text
        'The lamp is fine.'
    """

    batch, at_once, cost = 1, 16, None
    learned: frozenset[str] = frozenset()

    def __init__(self, sentences: Sequence[str]) -> None:
        if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise UsageError("the template backend needs sentences, e.g. 'The {product} is {sentiment}.'.")
        self.sentences = tuple(sentences)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"backend": "template", "sentences": list(self.sentences)}

    async def answer(self, requests: Sequence[Request]) -> Sequence[Reply | RequestFailed]:
        return [self._reply(request) for request in requests]

    def resumed(self, replies: Sequence[Reply]) -> None:
        """Nothing costs anything."""

    async def close(self) -> None:
        """Nothing is held."""

    def _reply(self, request: Request) -> Reply:
        from visynth.core.files import canonical_json

        generator = seeding.rng(request.seed, "text/template")
        if request.schema is None:
            return Reply(self._sentence(request, generator))
        return Reply(canonical_json(self._value(request.schema, request, generator)))

    def _sentence(self, request: Request, generator: Any) -> str:
        sentence = self.sentences[int(generator.integers(len(self.sentences)))]
        for name, value in request.attributes.items():
            said = " and ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            sentence = sentence.replace("{" + name + "}", said)
        return sentence

    def _value(self, schema: Schema, request: Request, generator: Any) -> Any:
        """A value that a schema of the kinds that our jobs use allows."""
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][int(generator.integers(len(schema["enum"])))]
        if "anyOf" in schema:
            return self._value(schema["anyOf"][int(generator.integers(len(schema["anyOf"])))], request, generator)
        kind = schema.get("type")
        if kind == "object":
            return {name: self._value(own, request, generator) for name, own in schema["properties"].items()}
        if kind == "array":
            count = int(schema.get("minItems", 1))
            return [self._value(schema["items"], request, generator) for _ in range(count)]
        low, high = schema.get("minimum", 0), schema.get("maximum", 100)
        if kind == "integer":
            return int(generator.integers(int(low), int(high) + 1))
        if kind == "number":
            return round(float(generator.uniform(low, high)), 3)
        return {"boolean": bool(generator.integers(2)), "null": None}.get(str(kind), self._sentence(request, generator))
