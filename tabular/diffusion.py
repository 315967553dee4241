"""Diffusion over mixed columns: real numbers are noised and categories are hidden, by one network and one clock.

Numbers: Karras et al., "Elucidating the design space of diffusion-based generative models" (NeurIPS 2022), cited as *EDM*:
preconditioning eq. 7 and table 1, weight eq. 8, Heun's method algorithm 1 without churn. Categories: absorbing states with
a linear schedule, Shi et al., "Simplified and generalized masked diffusion" (NeurIPS 2024), eq. 5, weight 1 / t. Both
together as in Shi et al., "TabDiff" (ICLR 2025), with fixed schedules. ``objective="flow"`` replaces EDM by straight paths:
Lipman et al., "Flow matching for generative modeling" (ICLR 2023).
"""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from visynth.core import seeds as seeding
from visynth.tabular.columns import Floats
from visynth.tabular.conditions import Conditions
from visynth.tabular.draws import Draw
from visynth.tabular.layers import CodeEmbedding, ResidualBlocks, cross_entropies, illegal_codes, parted, pick
from visynth.tabular.schema import Table
from visynth.tabular.spans import OnMixed
from visynth.tabular.training import Arrays, Batch

SIGMA_MIN, SIGMA_MAX, RHO, SIGMA_DATA = 0.002, 80.0, 7.0, 1.0  # EDM, table 1, for data of unit variance
LEAST_T = 1e-3
ATTACK_TIMES = 10
CLOCK = 64  # frequencies that stand for the time


class DenoiserNet(nn.Module):
    """Noisy numbers, codes (some hidden) and time -> denoised numbers and logits of the codes.

    Args:
        places: number of real numbers.
        sizes: codes of each field.
        embedding: numbers that stand for a code.
        width: of the hidden layers.
        depth: residual blocks.
    """

    clock: Tensor

    def __init__(self, places: int, sizes: list[int], embedding: int, width: int, depth: int) -> None:
        super().__init__()
        self.places = places
        self.register_buffer("clock", torch.exp(torch.linspace(-3, 5, CLOCK // 2)), persistent=False)
        self.embedding = CodeEmbedding(sizes, embedding)
        self.first = nn.Linear(places + len(sizes) * embedding, width)
        self.time = nn.Sequential(nn.Linear(CLOCK, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = ResidualBlocks(width, depth)
        self.last = nn.Linear(width, places + sum(sizes))

    def forward(self, x: Tensor, codes: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Args:
        x: scaled noisy numbers ``[B, places]``.
        codes: int64 ``[B, fields]``, -1 where hidden.
        time: ``[B]``.
        """
        waves = time[:, None] * self.clock[None]
        hidden = self.first(torch.cat([x, self.embedding(codes)], dim=1))
        hidden = hidden + self.time(torch.cat([waves.sin(), waves.cos()], dim=1))
        out = self.last(self.blocks(hidden))
        return out[:, : self.places], out[:, self.places :]


class Diffusion(OnMixed):
    """Diffusion of numbers and categories together.

    Args:
        steps: optimiser steps.
        batch_size: rows of a step, over all processes.
        lr: peak learning rate.
        width: of the hidden layers.
        depth: residual blocks.
        embedding: numbers that stand for a code.
        objective: ``"edm"`` or ``"flow"``, of the numbers.
        sampling_steps: of a sample.
        ema: share of the old average that a step keeps.
        rare_below: rows that a category needs.
        seed: of weights, batches and noise.
    """

    network = "diffusion"
    fits_by = "denoising"
    scaling = "quantiles"

    def __init__(
        self,
        steps: int = 4000,
        batch_size: int = 1024,
        lr: float = 2e-3,
        width: int = 384,
        depth: int = 4,
        embedding: int = 8,
        objective: Literal["edm", "flow"] = "edm",
        sampling_steps: int = 50,
        ema: float = 0.997,
        rare_below: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def build(self) -> nn.Module:
        args = self.args
        return DenoiserNet(len(self.mixed.numbers), self.sizes, args.embedding, args.width, args.depth)

    def noise(self, count: int, generator: np.random.Generator) -> Arrays:
        places, fields = len(self.mixed.numbers), len(self.sizes)
        # One stratum of the clock a row: all times are met in every batch.
        t = (generator.permutation(count) + generator.random(count)) / count
        return {
            "t": t.astype(np.float32),
            "noise": generator.standard_normal((count, places)).astype(np.float32),
            "chance": generator.random((count, fields)).astype(np.float32),
        }

    def loss(self, batch: Batch) -> Tensor:
        return self._row_losses(cast(DenoiserNet, self.net), batch).mean()

    @torch.no_grad()
    def losses(self, frame: Any, *, seed: int = 0) -> Floats | None:
        """Loss of each row ``[N]``, over times and noise that are the same for all rows."""
        net = cast(DenoiserNet, self.average)
        codes, places = self.mixed.encode(self.schema.table(frame), int(self.args.seed))
        total = np.zeros(len(codes))
        generator = seeding.rng(seed, "tabular/losses")
        for t in (np.arange(ATTACK_TIMES) + 0.5) / ATTACK_TIMES:
            one = self.noise(1, generator)
            arrays = {name: np.repeat(values, len(codes), axis=0) for name, values in one.items()}
            arrays |= {"codes": codes, "places": places, "t": np.full(len(codes), t, np.float32)}
            batch = {name: torch.from_numpy(values).to(net.last.weight.device) for name, values in arrays.items()}
            total += self._row_losses(net, batch).double().cpu().numpy() / ATTACK_TIMES
        return total

    def _row_losses(self, net: DenoiserNet, batch: Batch) -> Tensor:
        t, x0, codes = batch["t"].clamp_min(LEAST_T), batch["places"], batch["codes"].long()
        hidden = batch["chance"] < t[:, None]
        seen = codes.masked_fill(hidden, -1)
        noisy, sigma = self._noised(x0, batch["noise"], t)
        denoised, logits = self._denoise(net, noisy, seen, t)
        numbers = ((denoised - x0) ** 2 * self._weight(sigma, t)[:, None]).mean(1) if x0.shape[1] else 0.0
        words = cross_entropies(logits, codes, self.sizes)
        return numbers + (words * hidden / t[:, None]).mean(1)

    def _noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self._sigma(t)
        if self.args.objective == "flow":
            return (1 - sigma)[:, None] * x0 + sigma[:, None] * noise, sigma
        return x0 + sigma[:, None] * noise, sigma

    def _sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t in [0, 1]; of straight paths it is the time itself."""
        if self.args.objective == "flow":
            return t
        low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
        return cast(Tensor, (low + t * (high - low)) ** RHO)

    def _weight(self, sigma: Tensor, t: Tensor) -> Tensor:
        """Weight of the squared error of the denoised numbers (EDM, eq. 8; of the velocity: 1 / t^2)."""
        if self.args.objective == "flow":
            return 1 / t.clamp_min(0.05) ** 2
        return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2

    def _denoise(self, net: DenoiserNet, x: Tensor, codes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Denoised numbers and logits (EDM, eq. 7)."""
        sigma = self._sigma(t)[:, None]
        if self.args.objective == "flow":
            out, logits = net(x, codes, t)
            return x - sigma * out, logits
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        out, logits = net(x / total, codes, sigma[:, 0].log() / 4)
        return SIGMA_DATA**2 / total**2 * x + sigma * SIGMA_DATA / total * out, logits

    # -- sampling ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _draw(self, draw: Draw, conditions: Conditions) -> Table:
        net = cast(DenoiserNet, self.average)
        device, count, steps = net.last.weight.device, len(draw.keys), int(self.args.sampling_steps)
        codes = torch.from_numpy(self.given_codes(conditions, draw)).to(device)
        start = torch.from_numpy(draw.normals(len(self.mixed.numbers), "diffusion").astype(np.float32)).to(device)
        times = torch.linspace(1, 0, steps + 1, device=device)
        x = start if self.args.objective == "flow" else start * SIGMA_MAX
        for number in range(steps):
            now, then = times[number].expand(count), times[number + 1].expand(count)
            denoised, logits = self._denoise(net, x, codes, now.clamp_min(LEAST_T))
            x = self._moved(net, x, codes, denoised, now, then)
            u = torch.from_numpy(draw.uniforms(2 * len(self.sizes), f"diffusion/{number}")).to(device)
            shown = u[:, : len(self.sizes)] * now[0] < now[0] - then[0]  # of the hidden, by the schedule
            codes = self._shown(codes, logits, shown, u[:, len(self.sizes) :])
        return self.mixed.decode(self._drawn_in(codes.cpu().numpy()), x.double().cpu().numpy())

    def _moved(self, net: DenoiserNet, x: Tensor, codes: Tensor, denoised: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """Numbers one step on: Heun's method, the last step Euler's (EDM, algorithm 1)."""
        s, r = self._sigma(now)[:, None], self._sigma(then)[:, None]
        last = float(then[0]) <= 0
        if last:
            return denoised
        slope = (x - denoised) / s
        moved = x + (r - s) * slope
        again, _ = self._denoise(net, moved, codes, then)
        return x + (r - s) * (slope + (moved - again) / r) / 2

    def _shown(self, codes: Tensor, logits: Tensor, shown: Tensor, u: Tensor) -> Tensor:
        """Some hidden codes drawn."""
        new = codes.clone()
        for field, part in enumerate(parted(logits, self.sizes)):
            rows = (codes[:, field] < 0) & shown[:, field]
            if bool(rows.any()):
                part = part.masked_fill(illegal_codes(self.mixed.fields[field], None, part.device), -torch.inf)
                new[:, field] = torch.where(rows, pick(part, u[:, field]), codes[:, field])
        return new

    def _drawn_in(
        self, codes: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    ) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        for field in range(codes.shape[1]):
            codes[:, field] = self.mixed.legal(codes, field)
        return codes
