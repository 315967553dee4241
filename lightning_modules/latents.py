"""Random numbers of an adversarial step: latents, labels, noise and augmentations, each row by its position in the stream
alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visynth.core import seeds as seeding
from visynth.lightning_modules.prefetch import Positions, Prefetcher
from visynth.lightning_modules.randomness import drawn_classes
from visynth.networks import ada
from visynth.networks.diffaugment import UNIFORMS, diffaugment

Array = NDArray[np.float64]
Augment = Literal["ada", "diffaugment", "none"]


@dataclass(frozen=True)
class Latents:
    """Inputs of a generator for some positions.

    Attributes:
        z: ``[N, z_dim]``, and
        other: a second one, to mix styles with.
        labels: ``[N]`` out of the tempered distribution.
        class_noise: ``[N, w_dim]`` standard normal, for the embedding of the class.
        mix: ``[N, 2]`` in [0, 1): whether and where styles are mixed.
    """

    z: Tensor
    other: Tensor
    labels: Tensor
    class_noise: Tensor
    mix: Array


def latents(
    seed: int,
    purpose: str,
    positions: Sequence[int],
    z_dim: int,
    w_dim: int,
    shares: Array,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    ahead: Prefetcher | None = None,
) -> Latents:
    """Latents of positions for a purpose ("discriminator", "generator").

    Args:
        seed: of the run.
        purpose: keeps uses of one position apart.
        positions: in the stream.
        z_dim: of the latent.
        w_dim: of the class embedding; 0 for no noise.
        shares: probability of each class.
        device: of the result, and
        dtype: of its numbers.
        ahead: draws the next batch's numbers while this one trains.

    Example:
        >>> a, b = (latents(0, "g", p, 3, 0, np.ones(2) / 2, torch.device("cpu")) for p in ([4, 9], [9]))
        >>> bool((a.z[1] == b.z[0]).all())
        True
    """

    def numbers(places: Positions) -> tuple[Array, NDArray[np.float32]]:
        rows = [seeding.rng(place, f"gan/{seed}/{purpose}") for place in places]
        return (
            np.stack([row.random(3) for row in rows]),
            np.stack([row.standard_normal(2 * z_dim + w_dim, dtype=np.float32) for row in rows]),
        )

    uniform, z = (ahead or Prefetcher())(f"latents/{purpose}", numbers, positions)
    values = torch.from_numpy(z).to(device, dtype)
    return Latents(
        values[:, :z_dim],
        values[:, z_dim : 2 * z_dim],
        torch.from_numpy(drawn_classes(shares, uniform[:, 0])).to(device),
        values[:, 2 * z_dim :],
        uniform[:, 1:],
    )


@dataclass(frozen=True)
class Augmenter:
    """Augments a batch by the numbers of its positions.

    Attributes:
        augment: "ada", "diffaugment" or "none".
        kinds: what may happen.
        seed: of the run.
        ahead: draws the next batch's numbers while this one trains.
    """

    augment: Augment
    kinds: tuple[str, ...]
    seed: int
    ahead: Prefetcher = field(default_factory=Prefetcher)

    def __call__(self, images: Tensor, positions: Sequence[int], purpose: str, probability: float) -> Tensor:
        """Augmented images ``[N, C, S, S]``."""
        if self.augment == "none" or (self.augment == "ada" and probability <= 0):
            return images
        if self.augment == "diffaugment":
            return diffaugment(images, self.ahead(f"augment/{purpose}", self._uniform(purpose), positions), self.kinds)
        uniform, normal = self.ahead(f"augment/{purpose}", self._numbers(purpose), positions)
        how = ada.plan(uniform, normal, probability, self.kinds, images.shape[-1])
        noise = None
        if how.sigma.any():
            shape = tuple(images.shape[1:])
            noise = self.ahead(f"augment/{purpose}/{shape}", self._noise(purpose, shape), positions).to(images.device)
        return ada.augment(images, how, noise)

    def _rows(self, purpose: str, positions: Positions) -> list[np.random.Generator]:
        return [seeding.rng(position, f"augment/{self.seed}/{purpose}") for position in positions]

    def _uniform(self, purpose: str) -> Callable[[Positions], Array]:
        return lambda positions: np.stack([row.random(UNIFORMS) for row in self._rows(purpose, positions)])

    def _numbers(self, purpose: str) -> Callable[[Positions], tuple[Array, Array]]:
        def make(positions: Positions) -> tuple[Array, Array]:
            rows = self._rows(purpose, positions)
            uniform = np.stack([row.random(ada.UNIFORMS) for row in rows])
            return uniform, np.stack([row.standard_normal(ada.NORMALS) for row in rows])

        return make

    def _noise(self, purpose: str, shape: tuple[int, ...]) -> Callable[[Positions], Tensor]:
        def make(positions: Positions) -> Tensor:
            rows = self._rows(purpose, positions)
            for row in rows:  # what stands before in each position's stream
                row.random(ada.UNIFORMS), row.standard_normal(ada.NORMALS)
            return torch.from_numpy(np.stack([row.standard_normal(shape, dtype=np.float32) for row in rows]))

        return make
