"""What every generator of rows and series is as a folder: a digest, written whole, loaded after a check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from visynth.core.artifact import Artifact
from visynth.core.errors import IntegrityError
from visynth.core.loading import load_generator

if TYPE_CHECKING:
    import torch


class Stored(ABC):
    """Subclasses write ``artifact`` and ``_readme``, and forget ``_digest`` with every fit."""

    _digest: str | None = None

    @abstractmethod
    def artifact(self) -> Artifact:
        """The generator as it is stored."""

    @abstractmethod
    def _readme(self, digest: str) -> str:
        """The README of its folder."""

    @property
    def digest(self) -> str:
        """Hex sha256 of what decides every sample."""
        if self._digest is None:
            self._digest = self.artifact().digest
        return self._digest

    def save(self, folder: str | Path) -> Path:
        """Write the generator folder; it appears complete or not at all. There is no pickle in it."""
        stored = self.artifact()
        return stored.save(folder, self._readme(stored.digest))

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Self:
        """A generator of this class from its folder.

        Raises:
            IntegrityError: altered, cut short, or of another class.
        """
        loaded = load_generator(folder, device)
        if not isinstance(loaded, cls):
            raise IntegrityError(f"{folder} holds a {type(loaded).__name__} generator, not a {cls.__name__}.")
        return loaded


def packed(weights: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as a safetensors file, the same bytes for the same tensors."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(weights.items())})
