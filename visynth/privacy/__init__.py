"""Privacy that is proved (differential privacy) or measured (attacks with controls). Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visynth.privacy.accounting import Release, epsilon_of, noise_for
    from visynth.privacy.dp import DifferentialPrivacy

_HOMES = {**dict.fromkeys(("Release", "epsilon_of", "noise_for"), "accounting"), "DifferentialPrivacy": "dp"}
__all__ = ["DifferentialPrivacy", "Release", "epsilon_of", "noise_for"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"visynth.privacy.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'visynth.privacy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
