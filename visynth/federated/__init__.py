"""Training over sites whose images stay where they are: every round the sites train a little, and only updates travel."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visynth.federated.options import FederatedOptions
    from visynth.federated.server import Federated
    from visynth.federated.site import Site

_HOMES = {"FederatedOptions": "options", "Federated": "server", "Site": "site"}
__all__ = ["Federated", "FederatedOptions", "Site"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"visynth.federated.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'visynth.federated' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
