"""Synthetic text by language models: a plan, a prompt, a backend, checks. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visynth.tabular.text.backends import Decoding, Reply, Request, Template
    from visynth.tabular.text.generator import Example, TextGenerator
    from visynth.tabular.text.http import OpenAICompatible
    from visynth.tabular.text.local import TransformersLocal
    from visynth.tabular.text.plan import Record, TextPlan
    from visynth.tabular.text.prompts import Prompt
    from visynth.tabular.text.spec import TextSpec, Wanted

_HOMES = {
    **dict.fromkeys(("Decoding", "Reply", "Request", "Template"), "backends"),
    **dict.fromkeys(("Example", "TextGenerator"), "generator"),
    "OpenAICompatible": "http",
    "TransformersLocal": "local",
    **dict.fromkeys(("Record", "TextPlan"), "plan"),
    "Prompt": "prompts",
    **dict.fromkeys(("TextSpec", "Wanted"), "spec"),
}
__all__ = [
    "Decoding",
    "Example",
    "OpenAICompatible",
    "Prompt",
    "Record",
    "Reply",
    "Request",
    "Template",
    "TextGenerator",
    "TextPlan",
    "TextSpec",
    "TransformersLocal",
    "Wanted",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"visynth.tabular.text.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'visynth.tabular.text' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
