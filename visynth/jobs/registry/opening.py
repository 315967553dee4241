"""Open a registry by its path or address."""

from __future__ import annotations

from pathlib import Path

from visynth.jobs.registry.base import Registry


def open_registry(where: str | Path) -> Registry:
    """The registry in a folder, or that on an MLflow server (``mlflow+https://host:5000/NAME``).

    Raises:
        UsageError: an address of another kind.
        MissingExtra: an MLflow server, and mlflow-skinny is not installed.

    Example:
        >>> open_registry("registry").where
        'registry'
    """
    if "://" in str(where):
        from visynth.jobs.registry.server import MLflowRegistry

        return MLflowRegistry(str(where))
    from visynth.jobs.registry.local import LocalRegistry

    return LocalRegistry(where)
