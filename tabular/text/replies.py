"""From a reply's text to its fields: JSON found, read and checked against a schema. Whatever a reply holds is data: it is never
run, filled into a template, or used as a path."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from visynth.core.errors import MissingExtra, UsageError, raise_all
from visynth.tabular.text.backends import Reply, Schema
from visynth.tabular.text.checks import strings

MOST_PROBLEMS = 4  # told to the model
SENTENCE_END = re.compile(r"[.!?\u2026\u3002](?=\s|$)[\"'\u201d\u2019)]*")
DEEPEST = 20  # levels of nesting
FENCE = re.compile(r"\A\s*```(?:json)?\s*\n?(.*?)\n?```\s*\Z", re.DOTALL)
THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)


class Unusable(ValueError):
    """A reply that cannot be used.

    Args:
        why: as the model is told.
        check: name of what found it.
    """

    def __init__(self, why: str, check: str) -> None:
        super().__init__(why)
        self.check = check


def read_reply(reply: Reply, schema: Schema | None) -> dict[str, Any]:
    """Fields of a reply: those that the schema names, or ``{"text": ...}`` without one. A plain text that was cut off at the
    token limit ends at its last whole sentence.

    Raises:
        Unusable: empty, cut off, no JSON, or against the schema.

    Example:
        >>> read_reply(Reply('```json\\n{"text": "Fine."}\\n```'), {"type": "object", "required": ["text"]})
        {'text': 'Fine.'}
    """
    if reply.finish == "filtered":
        raise Unusable("the server's filter cut it off: write something harmless", "filtered")
    whole = sentences(reply.text) if schema is None and reply.finish == "length" else ""
    if reply.finish == "length" and not whole:
        raise Unusable("it was cut off because it was too long: write less", "cut off")
    text = THOUGHT.sub("", whole or reply.text).strip()
    if not text:
        raise Unusable("it was empty", "empty")
    if schema is None:
        return {"text": _unquoted(_printable(text))}
    value = _json(text)
    _printable(" ".join(strings(value)))
    problems = schema_problems(value, schema)
    if problems:
        raise Unusable("; ".join(problems[:MOST_PROBLEMS]), "schema")
    assert isinstance(value, dict)
    return value


def sentences(text: str) -> str:
    """The whole sentences at the beginning of a text that was cut off.

    Example:
        >>> sentences("It broke. I was not am"), sentences("It cost 3.50 and then")
        ('It broke.', '')
    """
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


def _printable(text: str) -> str:
    """The text, if a file and a page can show all of it: no control characters, no halves of characters."""
    bad = sorted({c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t\r"})
    if bad:
        raise Unusable(f"it holds characters that are none: {', '.join(map(ascii, bad[:MOST_PROBLEMS]))}", "characters")
    return text


def _unquoted(text: str) -> str:
    """A text without the quotation marks around the whole of it."""
    for first, last in (('"', '"'), ("\u201c", "\u201d")):
        inside = text[1:-1]
        if len(text) > 2 and text[0] == first and text[-1] == last and not {first, last} & set(inside):
            return inside.strip()
    return text


def _json(text: str) -> Any:
    """The one JSON object of a reply, in a fence or among other words."""
    match = FENCE.match(text)
    text = match.group(1) if match else text
    start = text.find("{")
    if start < 0:
        raise Unusable("it held no JSON object", "JSON")
    try:
        value, _ = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite).raw_decode(text[start:])
    except (ValueError, RecursionError) as error:
        raise Unusable(f"its JSON cannot be read: {error}", "JSON") from error
    if _depth(value) > DEEPEST:
        raise Unusable("its JSON is nested too deeply", "JSON")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is too large a number")
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inside = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [item for part in inside for item in part]
    return depth


def schema_problems(value: Any, schema: Schema) -> list[str]:
    """What of a value is against a JSON schema, field by field.

    Example:
        >>> schema_problems({"stars": 9}, {"type": "object", "properties": {"stars": {"maximum": 5}}})
        ["field 'stars': 9 is greater than the maximum of 5"]
    """
    found = _validator(schema).iter_errors(value)
    errors = sorted(found, key=lambda error: [str(part) for part in error.absolute_path])
    return [f"{_place(error.absolute_path)}{error.message[:200]}" for error in errors]


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse what is no JSON schema of an object, or what no reply could meet.

    Raises:
        UsageError: all that is wrong.
    """
    from jsonschema.exceptions import SchemaError

    problems = []
    try:
        type(_validator(schema)).check_schema(dict(schema))
    except SchemaError as error:
        problems.append(f"{_place(error.absolute_path)}{error.message[:200]}")
    if schema.get("type") != "object" or not isinstance(schema.get("properties"), Mapping):
        problems.append("it must be of type object, with properties")
    else:
        lacking = [name for name in schema.get("required", []) if name not in schema["properties"]]
        if lacking and schema.get("additionalProperties") is False:
            problems.append(f"it requires {lacking}, which it does not allow")
    raise_all("the schema", problems, UsageError)


def _place(path: Any) -> str:
    parts = list(path)
    return f"field {'.'.join(map(str, parts))!r}: " if parts else ""


def _validator(schema: Mapping[str, Any]) -> Any:
    try:
        from jsonschema import Draft202012Validator
        from referencing import Registry
    except ImportError as error:
        raise MissingExtra("replies with a schema need jsonschema: pip install 'visynth[text]'.") from error
    return Draft202012Validator(dict(schema), registry=Registry())  # nothing is fetched for a $ref
