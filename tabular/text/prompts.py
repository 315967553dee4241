"""Prompts: a template that the author of a job writes, filled with values that are data and nothing else.

Templates are Jinja's, in its sandbox: what is filled in is never a template itself, whatever braces it has, and a name that
the template has and the values have not is an error before the first request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from visynth.core.errors import UsageError

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
ROLES = ("system", "user", "assistant")

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@dataclass(frozen=True)
class Prompt:
    """A template of messages.

    Attributes:
        user: what is asked.
        system: what is said before, if anything.

    Raises:
        UsageError: a template that cannot be read.

    Example:
        >>> Prompt("Write about {{ product }}.").messages({"product": "{{ 7 * 7 }}"})
        ({'role': 'user', 'content': 'Write about {{ 7 * 7 }}.'},)
    """

    user: str
    system: str = ""

    def __post_init__(self) -> None:
        for name in ("user", "system"):
            _template(name, getattr(self, name))
        if not self.user.strip():
            raise UsageError("the prompt's user part is empty.")

    @property
    def names(self) -> set[str]:
        """What the templates refer to.

        Example:
            >>> sorted(Prompt("{{ a }}{% if b is defined %}{{ b }}{% endif %}").names)
            ['a', 'b']
        """
        return {
            name
            for text in (self.system, self.user)
            for name in meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
        }

    def messages(self, values: Mapping[str, Any]) -> tuple[Message, ...]:
        """The messages for a record's values.

        Raises:
            UsageError: the template has a name that the values have not, or does what the sandbox forbids.
        """
        parts = (("system", self.system), ("user", self.user))
        filled = [(role, _filled(role, text, values)) for role, text in parts if text]
        return tuple({"role": role, "content": content} for role, content in filled)


def _template(name: str, text: str) -> Any:
    try:
        return _ENVIRONMENT.from_string(text)
    except TemplateError as error:
        raise UsageError(f"the prompt's {name} part is no template: {error}.") from error


def _filled(name: str, text: str, values: Mapping[str, Any]) -> str:
    try:
        return whole_characters(str(_template(name, text).render(**values)).strip())
    except TemplateError as error:
        raise UsageError(f"the prompt's {name} part cannot be filled: {error}; it may use {sorted(values)}.") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(f"the prompt's {name} part cannot be filled: {error}.") from error


def whole_characters(text: str) -> str:
    """A text in which halves of characters, which nothing can be sent with, are question marks.

    Example:
        >>> whole_characters("a" + chr(0xD800) + "b")
        'a?b'
    """
    return text.encode("utf-8", "replace").decode()
