"""Stateless training randomness: every random number is a function of (run seed, position in the stream).

That is what makes a resumed run the same run, two ranks the same as one with the joined batch, and accumulated
gradients the same as a large batch. No state of a random generator is kept anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visynth.core import seeds as seeding

UNIFORMS, NORMALS = 12, 6


@dataclass(frozen=True)
class Draws:
    """Random numbers of one batch: ``uniform [N, 12]``, ``normal [N, 6]`` (float64 arrays) and ``noise [N, *shape]``."""

    uniform: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    normal: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    noise: Tensor


def draw(seed: int, positions: Sequence[int], shape: Sequence[int]) -> Draws:
    """The numbers of the images at some positions of the stream; row i depends on ``positions[i]`` alone.

    Example:
        >>> both, one = draw(0, [4, 9], (1, 2, 2)), draw(0, [9], (1, 2, 2))
        >>> bool((both.noise[1] == one.noise[0]).all()), bool((both.uniform[1] == one.uniform[0]).all())
        (True, True)
    """
    uniform, normal = np.empty((len(positions), UNIFORMS)), np.empty((len(positions), NORMALS))
    noise = np.empty((len(positions), *shape), np.float32)
    stream = f"training/{seed}"
    for row, generator in enumerate(seeding.rngs(map(int, positions), stream)):
        uniform[row], normal[row] = generator.random(UNIFORMS), generator.standard_normal(NORMALS)
        noise[row] = generator.standard_normal(tuple(shape), dtype=np.float32)
    return Draws(uniform, normal, torch.from_numpy(noise))


def drawn_classes(
    weights: np.ndarray[Any, np.dtype[np.float64]], uniform: np.ndarray[Any, np.dtype[np.float64]]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Labels with probabilities proportional to ``weights``, one for each number in [0, 1).

    Example:
        >>> drawn_classes(np.array([3.0, 1.0]), np.array([0.0, 0.7, 0.8])).tolist()
        [0, 0, 1]
    """
    bounds = np.cumsum(weights)
    return np.searchsorted(bounds / bounds[-1], uniform, side="right").clip(max=len(weights) - 1)


class PositionDropout(nn.Module):
    """Dropout whose mask for each image comes from that image's own generator (:func:`dropout_of`).

    Outside of :func:`dropout_of` it is ordinary dropout.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generators: list[torch.Generator] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        if self.generators is None:
            return nn.functional.dropout(x, self.probability)
        keep = 1 - self.probability
        mask = torch.empty_like(
            x, memory_format=torch.contiguous_format
        )  # numbers in one order, however x lies in memory
        for row, generator in zip(mask, self.generators, strict=True):
            row.bernoulli_(keep, generator=generator)
        return x * (mask / keep)


def use_position_dropout(network: nn.Module) -> None:
    """Put :class:`PositionDropout` wherever a network has ``nn.Dropout``; the weights' names stay."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(module, name, PositionDropout(child.p))


@contextmanager
def dropout_of(network: nn.Module, seed: int, positions: Sequence[int]) -> Iterator[None]:
    """Dropout masks within the block are functions of the run seed and the positions."""
    layers = [m for m in network.modules() if isinstance(m, PositionDropout) and m.probability]
    if layers:
        device = next(network.parameters()).device
        keys = [seeding.derive("dropout", seed, int(p)) for p in positions]
        generators = [torch.Generator(device=device).manual_seed(key) for key in keys]
        for layer in layers:
            layer.generators = generators
    try:
        yield
    finally:
        for layer in layers:
            layer.generators = None
