"""Diffusion of series: windows are denoised whole, with any of their values given.

Karras et al., "Elucidating the design space of diffusion-based generative models" (NeurIPS 2022), cited as *EDM*:
preconditioning eq. 7, weight eq. 8, noise levels eq. 5, Heun's method algorithm 1 without churn. Values that are given are
shown to the network without noise (Tashiro et al., "CSDI", NeurIPS 2021, section 4.1): filling gaps and forecasting are
learned, and a series longer than a window is forecast window by window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from visynth.tabular.columns import Floats
from visynth.tabular.diffusion import RHO, SIGMA_DATA, SIGMA_MAX, SIGMA_MIN
from visynth.tabular.timeseries.base import BLOCK
from visynth.tabular.timeseries.fitted import Asked, first_rows
from visynth.tabular.timeseries.series import Series
from visynth.tabular.timeseries.training import TrainedSeries
from visynth.tabular.timeseries.transformer import SeriesTransformer
from visynth.tabular.training import Arrays, Batch

# Of the noise levels of training: what a series is, is settled at noise as large as its values.
LOG_MEAN, LOG_STD = 0.3, 1.4
GIVEN = 0.5  # share of the training windows of which a part is given
PATCH = 4  # steps of a token
MOST_TOKENS = 64


class SeriesDiffusion(TrainedSeries):
    """The diffusion transformer of series.

    Args:
        steps: optimiser steps.
        batch_size: windows of a step, over all processes.
        lr: peak learning rate.
        width: of a token.
        depth: blocks.
        heads: of the attention.
        patch: steps of a token; None: four, or as many as give 64 tokens.
        trend: degree of a polynomial that is added to the output; -1 for none.
        seasons: frequencies of a Fourier series that is added; 0 for none.
        sampling_steps: of a sample.
        ema: share of the old average that a step keeps.
        seed: of weights, batches and noise.
    """

    network = "diffusion"
    fits_by = "denoising"
    imputes = forecasts = lengthens = True

    def __init__(
        self,
        steps: int = 4000,
        batch_size: int = 64,
        lr: float = 2e-3,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        patch: int | None = None,
        trend: int = -1,
        seasons: int = 0,
        sampling_steps: int = 24,
        ema: float = 0.997,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def build(self) -> nn.Module:
        own, args = self.encoding, self.args
        patch = args.patch or min(max(PATCH, -(-own.window // MOST_TOKENS)), own.window)
        return SeriesTransformer(
            own.window,
            own.width,
            own.condition_width,
            args.width,
            args.depth,
            args.heads,
            patch,
            args.trend,
            args.seasons,
        )

    # -- training ----------------------------------------------------------------------------------------------------

    def noise(self, count: int, generator: np.random.Generator) -> Arrays:
        shape = (count, self.encoding.window, self.encoding.width)
        return {
            "noise": generator.standard_normal(shape).astype(np.float32),
            "level": generator.standard_normal(count).astype(np.float32),
            "given": np.stack([self._given(generator) for _ in range(count)]),
        }

    def _given(self, generator: np.random.Generator) -> Any:
        """What is given of a window, bool ``[L, width]``: nothing, its first steps, all but a stretch, or some channels."""
        window, width = self.encoding.window, self.encoding.width
        mask = np.zeros((window, width), bool)
        kind = generator.random()
        if kind > GIVEN:
            return mask
        cut = int(generator.integers(1, window)) if window > 1 else 0
        if kind < 0.4 * GIVEN:
            mask[:cut] = True
        elif kind < 0.8 * GIVEN:
            mask[:] = True
            first = int(generator.integers(0, window - cut + 1))
            columns = generator.random(len(self.encoding.channels)) < 0.5 + 0.5 * generator.integers(2)
            for hidden, channel in zip(columns, self.encoding.channels, strict=True):
                mask[first : first + cut, channel.span] = not hidden
        else:
            shown = generator.random((window, len(self.encoding.channels))) < generator.random()
            for place, channel in enumerate(self.encoding.channels):
                mask[:, channel.span] = shown[:, place, None]
        return mask

    def loss(self, batch: Batch) -> Tensor:
        x, known = batch["x"], batch["known"].float()
        given = batch["given"].float() * known
        sigma = (LOG_MEAN + LOG_STD * batch["level"]).exp().clamp(SIGMA_MIN, SIGMA_MAX)
        noisy = x + sigma[:, None, None] * batch["noise"]
        denoised = self._denoise(cast(SeriesTransformer, self.net), noisy, x * given, given, sigma, batch["condition"])
        asked = known * (1 - given)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        errors = ((denoised - x) ** 2 * asked).sum((1, 2)) / asked.sum((1, 2)).clamp_min(1)
        return (weight * errors).mean()

    def _denoise(
        self, net: SeriesTransformer, x: Tensor, given: Tensor, mask: Tensor, sigma: Tensor, condition: Tensor
    ) -> Tensor:
        """Denoised windows (EDM, eq. 7)."""
        sigma = sigma.expand(len(x))[:, None, None]
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        out = net(x / total, given, mask, sigma[:, 0, 0].log() / 4, condition)
        return cast(Tensor, SIGMA_DATA**2 / total**2 * x + sigma * SIGMA_DATA / total * out)

    # -- sampling ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _windows(self, noise: Floats, given: Floats, mask: Floats, condition: Tensor) -> Floats:
        """Windows ``[N, L, width]`` from noise, with some values given."""
        net, device = cast(SeriesTransformer, self.average), self.own_device
        steps = int(self.args.sampling_steps)
        ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
        sigmas = (
            torch.cat([(high + ramp * (low - high)) ** RHO, torch.zeros(1, dtype=torch.float64)]).float().to(device)
        )
        shown, seen = (torch.from_numpy(one.astype(np.float32)).to(device) for one in (given * mask, mask))
        x = torch.from_numpy(noise.astype(np.float32)).to(device) * sigmas[0]
        for now, then in pairwise(sigmas):
            slope = (x - self._denoise(net, x, shown, seen, now, condition)) / now
            moved = x + (then - now) * slope
            if then > 0:
                second = (moved - self._denoise(net, moved, shown, seen, then, condition)) / then
                moved = x + (then - now) * (slope + second) / 2
            x = moved
        out = x.double().cpu().numpy()
        return np.where(mask > 0, given, out)

    def _noise_of(self, asked: Asked, stream: str) -> Floats:
        shape = (self.encoding.window, self.encoding.width)
        return np.stack([asked.rng(k, stream).standard_normal(shape) for k in range(len(asked.numbers))])

    def _draw(self, asked: Asked) -> list[Floats]:
        noise = self._noise_of(asked, "diffusion/0")
        nothing = np.zeros_like(noise)
        first = self._windows(noise, nothing, nothing, self.condition(asked))
        drawn = []
        for place, rows in enumerate(asked.lengths.tolist()):
            more = self._after(asked.take(np.array([place])), first[place], 1)  # computes nothing until it is asked
            drawn.append(first_rows(chain([first[place]], more), rows))
        return drawn

    def _pieces(self, asked: Asked, given: Series | None) -> Iterator[Floats]:
        if given is None:
            whole = asked.take(np.zeros(BLOCK, np.int64))  # as many at once as in a sample, to the same bits
            first = self._draw(replace(whole, lengths=np.full(BLOCK, self.encoding.window)))[0]
            yield first
            yield from self._after(asked, first, 1)
            return
        x, known = self.encoding.encode(given)
        yield from self._after(asked, x.astype(np.float64), 1, known)

    def _after(self, asked: Asked, rows: Floats, number: int, known: Any = None) -> Iterator[Floats]:
        """What follows rows, half a window at a time."""
        window = self.encoding.window
        seen = np.ones(rows.shape, bool) if known is None else known
        keep = max(window // 2, 1)
        # A window that does not begin a series is told so, if the model ever met one.
        condition = self.condition(asked, first=bool(self.fitted.lengths.max() <= window))
        while True:
            had = min(keep, len(rows))
            given, mask = np.zeros((1, window, rows.shape[1])), np.zeros((1, window, rows.shape[1]))
            given[0, :had], mask[0, :had] = rows[-had:], seen[-had:]
            whole = self._windows(self._noise_of(asked, f"diffusion/{number}"), given, mask, condition)[0]
            new = whole[had:]
            yield new
            rows, seen = self._as_given(new)
            number += 1

    def _as_given(self, rows: Floats) -> tuple[Floats, Any]:
        """Drawn rows as training shows rows that are given: codes of 1 and -1, and nothing where a value is missing."""
        own, seen = rows.copy(), np.ones(rows.shape, bool)
        for channel in self.encoding.channels:
            if channel.categories:
                codes = rows[:, channel.span].argmax(1)
                own[:, channel.span] = np.where(codes[:, None] == np.arange(channel.categories), 1.0, -1.0)
            elif channel.nullable:
                gone = rows[:, channel.first + 1] < 0
                own[:, channel.first + 1] = np.where(gone, -1.0, 1.0)
                own[gone, channel.first], seen[gone, channel.first] = 0.0, False
        return own, seen

    def _filled(self, series: Series, seed: int) -> list[Floats]:
        """Gaps are drawn window after window, each with what was drawn before it as given."""
        x, known = self.encoding.encode(series)
        window, filled = self.encoding.window, []
        for number in range(len(series)):
            rows = series.rows(number)
            own, seen = x[rows].astype(np.float64), known[rows].copy()
            for channel in self.encoding.channels:  # training hides a value and whether it is there together
                if channel.nullable and not channel.categories:
                    seen[:, channel.first + 1] &= seen[:, channel.first]
                elif channel.nullable:
                    gone = own[:, channel.span].argmax(1) == channel.categories - 1
                    seen[gone, channel.span] = False
            asked = Asked(np.array([number]), seed, series.take([number]).statics, np.array([len(own)]))
            stride = max(window // 2, 1)
            for start in range(0, max(len(own) - window, 0) + stride, stride):
                start = max(min(start, len(own) - window), 0)
                piece = slice(start, start + window)
                if seen[piece].all():
                    continue
                given, mask = np.zeros((1, window, own.shape[1])), np.zeros((1, window, own.shape[1]))
                count = len(own[piece])
                given[0, :count], mask[0, :count] = own[piece], seen[piece]
                noise = self._noise_of(asked, f"diffusion/fill/{start}")
                condition = self.condition(asked, first=start == 0)
                own[piece] = self._windows(noise, given, mask, condition)[0, :count]
                seen[piece] = True
            for channel in self.encoding.channels:  # never "missing"
                if channel.nullable and channel.categories:
                    own[:, channel.span.stop - 1] = -np.inf
                elif channel.nullable:
                    own[:, channel.first + 1] = 1.0
            filled.append(own)
        return filled
