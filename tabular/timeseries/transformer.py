"""Network of the diffusion of series: a transformer over patches of steps, under the noise level and the condition.

Peebles and Xie, "Scalable diffusion models with transformers" (ICCV 2023), section 3.2: layer norms are scaled, shifted and
gated by the condition (adaLN-Zero). Trend and seasons as additional terms of the output: Yuan and Qiao, "Diffusion-TS"
(ICLR 2024), section 3.2.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

CLOCK = 32  # frequencies that stand for the noise level


class Block(nn.Module):
    """Attention and a feed-forward layer under a condition.

    Args:
        width: of a token.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, signal: Tensor) -> Tensor:
        """Tokens ``[B, T, width]`` under a condition ``[B, width]``."""
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(signal)[:, None].chunk(6, dim=2)
        count, steps, width = tokens.shape
        own = self.norms[0](tokens) * (1 + scale) + shift
        q, k, v = self.qkv(own).view(count, steps, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, steps, width)
        tokens = tokens + gate * self.out(seen)
        return cast(Tensor, tokens + gate2 * self.feed(self.norms[1](tokens) * (1 + scale2) + shift2))


class SeriesTransformer(nn.Module):
    """Noisy windows, what is given of them, noise level and condition -> the network's output F of EDM.

    Args:
        window: steps.
        numbers: of a step.
        condition: numbers of the condition.
        width: of a token.
        depth: blocks.
        heads: of the attention.
        patch: steps of a token.
        trend: degree of a polynomial that is added to the output; -1 for none.
        seasons: frequencies of a Fourier series that is added; 0 for none.
    """

    waves: Tensor
    clock: Tensor

    def __init__(
        self, window: int, numbers: int, condition: int, width: int, depth: int, heads: int, patch: int, trend: int,
        seasons: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window, self.numbers, self.patch = window, numbers, patch
        tokens = -(-window // patch)
        self.first = nn.Linear(3 * numbers * patch, width)
        self.places = nn.Parameter(_places(tokens, width))
        self.asked = nn.Linear(
            condition, width
        )  # gates alone, which begin at zero, are slow to learn what is asked for
        self.register_buffer("clock", torch.exp(torch.linspace(-2, 4, CLOCK)), persistent=False)
        self.signal = nn.Sequential(
            nn.Linear(2 * CLOCK + condition, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, numbers * patch)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("waves", _waves(window, trend, seasons), persistent=False)
        self.terms = nn.Linear(width, numbers * len(self.waves)) if len(self.waves) else None
        if self.terms is not None:
            nn.init.zeros_(self.terms.weight)
            nn.init.zeros_(self.terms.bias)

    def forward(self, x: Tensor, given: Tensor, mask: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Args:
        x: scaled noisy windows ``[B, L, numbers]``.
        given: values that are known without noise, 0 elsewhere.
        mask: 1 where a value is given.
        level: ``[B]``, a function of the noise.
        condition: ``[B, C]``.
        """
        count = len(x)
        own = torch.cat([x, given, mask], dim=2)
        room = len(self.places) * self.patch - self.window
        own = nn.functional.pad(own, (0, 0, 0, room)).view(count, len(self.places), -1)
        angles = level[:, None] * self.clock
        signal = self.signal(torch.cat([angles.sin(), angles.cos(), condition], dim=1))
        tokens = self.first(own) + self.places + self.asked(condition)[:, None]
        for block in self.blocks:
            tokens = block(tokens, signal)
        tokens = self.norm(tokens)
        out = self.last(tokens).view(count, -1, self.numbers)[:, : self.window]
        if self.terms is not None:
            weights = self.terms(tokens.mean(1)).view(count, self.numbers, -1)
            out = out + torch.einsum("bnk,kl->bln", weights, self.waves)
        return cast(Tensor, out)


def _places(tokens: int, width: int) -> Tensor:
    """Sines of the tokens' places ``[tokens, width]`` (Vaswani et al., 2017, section 3.5)."""
    angles = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)[None]
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width].contiguous()


def _waves(window: int, trend: int, seasons: int) -> Tensor:
    """Functions of time that are added in learned amounts ``[K, window]``."""
    time = torch.linspace(0, 1, window)
    rows = [(2 * time - 1) ** power for power in range(trend + 1)]
    for number in range(1, seasons + 1):
        rows += [torch.sin(2 * math.pi * number * time), torch.cos(2 * math.pi * number * time)]
    return torch.stack(rows) if rows else torch.zeros((0, window))
