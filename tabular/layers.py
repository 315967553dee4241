"""Parts that the tables' networks share: codes as numbers, residual layers, logits by field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from visynth.tabular.discrete import Field


class CodeEmbedding(nn.Module):
    """Codes of several fields, some hidden, as one vector.

    Args:
        sizes: codes of each field.
        dim: numbers that stand for a code.
    """

    starts: Tensor
    hidden: Tensor

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        starts = np.concatenate([[0], np.cumsum([size + 1 for size in sizes])])
        self.register_buffer("starts", torch.from_numpy(starts[:-1]), persistent=False)
        self.register_buffer("hidden", torch.tensor(self.sizes), persistent=False)
        self.table = nn.Embedding(int(starts[-1]), dim)
        nn.init.normal_(self.table.weight, std=0.5)

    def forward(self, codes: Tensor) -> Tensor:
        """``[B, fields * dim]`` of codes int64 ``[B, fields]``, -1 where hidden."""
        places = torch.where(codes < 0, self.hidden, codes) + self.starts
        return cast(Tensor, self.table(places).flatten(1))

    def rows(self) -> list[Tensor]:
        """For each field, what stands for its codes; the last is "hidden", ``[size + 1, dim]``."""
        return list(torch.split(self.table.weight, [size + 1 for size in self.sizes]))


class ResidualBlocks(nn.Module):
    """Pre-normalised residual layers; each begins as the identity.

    Args:
        width: of the layers.
        depth: number of blocks.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        lasts = [nn.Linear(width, width) for _ in range(depth)]
        for last in lasts:
            nn.init.zeros_(last.weight)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), last) for last in lasts
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return functional.silu(self.norm(x))


def illegal_codes(field: Field, parent: Tensor | None, device: torch.device) -> Tensor:
    """Codes of a field that must not be drawn, bool ``[B or 1, size]``.

    Args:
        field: the field.
        parent: codes int64 ``[B]`` of the field that limits it, or None.
        device: of the result.
    """
    illegal = torch.zeros((1, field.size), dtype=torch.bool, device=device)
    illegal[:, list(field.never)] = True
    if parent is None:
        return illegal
    limits = torch.tensor(field.limits, device=device)[parent]
    return illegal | (torch.arange(field.size, device=device)[None] >= limits[:, None])


def parted(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Columns ``[B, sum of sizes]`` as one ``[B, size]`` a field."""
    return list(torch.split(x, list(sizes), dim=1))


def cross_entropies(logits: Tensor, codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Cross-entropy of each field ``[B, fields]``.

    Args:
        logits: ``[B, sum of sizes]``.
        codes: int64 ``[B, fields]``.
        sizes: codes of each field.
    """
    parts = parted(logits, sizes)
    return torch.stack([functional.cross_entropy(p, codes[:, i], reduction="none") for i, p in enumerate(parts)], dim=1)


def one_hot(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """One-hot codes ``[B, sum of sizes]`` of int64 ``[B, fields]``; a code of -1 gives zeros.

    Example:
        >>> one_hot(torch.tensor([[1, 0], [-1, 1]]), [2, 2]).tolist()
        [[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    parts = []
    for number, size in enumerate(sizes):
        own = codes[:, number]
        parts.append(functional.one_hot(own.clamp_min(0), size).float() * (own >= 0)[:, None])
    return torch.cat(parts, dim=1)


def pick(logits: Tensor, u: Tensor) -> Tensor:
    """Codes int64 ``[B]`` by inverting the cumulative distribution of logits ``[B, K]`` at u ``[B]`` in (0, 1).

    Example:
        >>> pick(torch.tensor([[0.0, 0.0, -torch.inf]]).expand(3, 3), torch.tensor([0.1, 0.6, 0.999])).tolist()
        [0, 1, 1]
    """
    cumulative = torch.softmax(logits.double(), dim=1).cumsum(1)
    drawn = (cumulative < u[:, None] * cumulative[:, -1:]).sum(1)
    # Rounding may leave a place behind the last code with any probability.
    last = logits.shape[1] - 1 - torch.isfinite(logits).flip(1).int().argmax(1)
    return torch.minimum(drawn, last)
