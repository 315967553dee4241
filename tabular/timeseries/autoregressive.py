"""Autoregressive model of series: every step given those before it, without end if wanted.

It takes numbers and categories, regular and irregular times (the gap is the first channel of a step), missing values, and
series of other lengths: whether a series ends is drawn after each step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from visynth.tabular.columns import Floats
from visynth.tabular.timeseries.base import BLOCK
from visynth.tabular.timeseries.encoding import Channel
from visynth.tabular.timeseries.fitted import Asked
from visynth.tabular.timeseries.recurrent import SeriesRNN
from visynth.tabular.timeseries.series import Series
from visynth.tabular.timeseries.training import TrainedSeries
from visynth.tabular.training import Arrays, Batch

LOG_ROOT = 0.5 * math.log(2 * math.pi)
PIECE = 64  # steps of a stream that are computed together
LONGEST = 4  # times the longest real series, where a drawn one ends in any case


class SeriesAR(TrainedSeries):
    """The autoregressive model of series.

    Args:
        steps: optimiser steps.
        batch_size: windows of a step, over all processes.
        lr: peak learning rate.
        width: of the memory.
        depth: layers of the memory.
        mixture: normal distributions of a number.
        jitter: deviation of noise on the steps before, in deviations of a channel, so that the model meets in training what
            it meets when its own errors add up.
        dropout: share of the memory that is hidden in training.
        ema: share of the old average that a step keeps.
        seed: of weights, batches and noise.
    """

    network = "ar"
    fits_by = "likelihood, step by step"
    forecasts = lengthens = ends = True

    def __init__(
        self,
        steps: int = 2000,
        batch_size: int = 32,
        lr: float = 2e-3,
        width: int = 96,
        depth: int = 1,
        mixture: int = 4,
        jitter: float = 0.02,
        dropout: float = 0.1,
        ema: float = 0.995,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def build(self) -> nn.Module:
        own, args = self.encoding, self.args
        return SeriesRNN(own.channels, own.condition_width, args.width, args.depth, args.mixture, self.fitted.varies)

    def noise(self, count: int, generator: np.random.Generator) -> Arrays:
        shape = (count, self.encoding.window, self.encoding.width)
        return {
            "jitter": generator.standard_normal(shape).astype(np.float32),
            "drop": generator.random((count, int(self.args.width))).astype(np.float32),
        }

    def loss(self, batch: Batch) -> Tensor:
        net = cast(SeriesRNN, self.net)
        x, known = batch["x"], batch["known"].float()
        shown = (x + float(self.args.jitter) * batch["jitter"]) * known
        before = one_later(shown)
        had = one_later(known)
        memory, _ = net.remember(before, had, batch["condition"], net.begin(batch["condition"]))
        share = float(self.args.dropout)
        memory = memory * ((batch["drop"] >= share).float() / (1 - share))[:, None]
        steps = torch.arange(x.shape[1], device=x.device)[None] < batch["steps"][:, None]
        contexts = net.context(memory, x * known)
        total = x.new_zeros(x.shape[:2])
        for place, channel in enumerate(net.channels):
            out = net.heads[place](contexts[:, :, place])
            total = total + self._misfit(net, channel, out, x, before, known)
        weight = batch["weight"]  # rows in many overlapping windows count once; 0 behind a series' end
        total = total * weight
        if net.end is not None:
            last = (steps & ~nn.functional.pad(steps[:, 1:], (0, 1))).float() * batch["ends"].float()[:, None]
            ended = nn.functional.binary_cross_entropy_with_logits(net.end(memory)[:, :, 0], last, reduction="none")
            total = total + ended * weight
        return total.sum() / weight.sum() / len(net.channels)

    def _misfit(
        self, net: SeriesRNN, channel: Channel, out: Tensor, x: Tensor, before: Tensor, known: Tensor
    ) -> Tensor:
        """Negative log likelihood of a channel at each step ``[B, T]``."""
        if channel.categories:
            code = x[:, :, channel.span].argmax(2)
            loss = nn.functional.cross_entropy(out.flatten(0, 1), code.flatten(), reduction="none")
            return loss.view(code.shape) * known[:, :, channel.first]
        place = channel.first
        log_weights, means, deviations = net.mixtures(out, before[:, :, place], channel.noise)
        z = (x[:, :, place, None] - means) / deviations
        density = torch.logsumexp(log_weights - z**2 / 2 - deviations.log() - LOG_ROOT, dim=2)
        loss = -density * known[:, :, place]
        if channel.nullable:
            present = (x[:, :, place + 1] > 0).float()
            loss = loss + nn.functional.binary_cross_entropy_with_logits(out[:, :, -1], present, reduction="none")
        return loss

    # -- sampling ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _draw(self, asked: Asked) -> list[Floats]:
        walk = _Walk(self, asked)
        most = int(asked.lengths.max()) or LONGEST * int(self.fitted.lengths.max())
        rows: list[Floats] = []
        ended = np.where(asked.lengths > 0, asked.lengths, most)
        for step in range(most):
            values, end = walk.step()
            rows.append(values)
            now = (asked.lengths == 0) & end & (ended == most)
            ended[now] = step + 1
            if (ended <= step + 1).all():
                break
        whole = np.stack(rows, 1)
        return [own[:count] for own, count in zip(whole, ended.tolist(), strict=True)]

    @torch.no_grad()
    def _pieces(self, asked: Asked, given: Series | None) -> Iterator[Floats]:
        walk = _Walk(self, asked.take(np.zeros(BLOCK, np.int64)))  # as many at once as in a sample, to the same bits
        if given is not None:
            walk.follow(*self.encoding.encode(given))
        while True:
            yield np.stack([walk.step()[0][0] for _ in range(PIECE)])


def one_later(steps: Tensor) -> Tensor:
    """For each of the steps ``[B, T, ...]`` the one before it, zeros before the first."""
    return nn.functional.pad(steps[:, :-1], (0, 0, 1, 0))


class _Walk:
    """Series that are drawn step by step.

    Args:
        model: that draws.
        asked: the series.
    """

    def __init__(self, model: SeriesAR, asked: Asked) -> None:
        self.model, self.net = model, cast(SeriesRNN, model.average)
        self.rngs = self._generators(asked)
        self.condition = model.condition(asked)
        self.state = self.net.begin(self.condition)
        count, width = len(asked.numbers), model.encoding.width
        self.before = torch.zeros((count, width), device=model.own_device)
        self.known = torch.zeros_like(self.before)
        self.first = True

    def _generators(self, asked: Asked) -> list[np.random.Generator]:
        """One for each series; padding shares that of the series it repeats, and its numbers are not used."""
        made: dict[int, np.random.Generator] = {}
        return [made.setdefault(int(n), asked.rng(k, "ar")) for k, n in enumerate(asked.numbers)]

    def _uniforms(self) -> Floats:
        """Two numbers for each place of a step, and one for the end, ``[N, 2 width + 1]``."""
        drawn: dict[int, Floats] = {}
        for generator in self.rngs:
            if id(generator) not in drawn:
                drawn[id(generator)] = generator.random(2 * self.before.shape[1] + 1)
        return np.stack([drawn[id(generator)] for generator in self.rngs])

    def follow(self, x: Any, known: Any) -> None:
        """Walk along one given series: the memory of all is that of it."""
        count = len(self.before)
        rows = torch.from_numpy(np.asarray(x * known, np.float32)).to(self.before.device)[None].expand(count, -1, -1)
        seen = torch.from_numpy(known.astype(np.float32)).to(self.before.device)[None].expand(count, -1, -1)
        before = one_later(rows)
        had = one_later(seen)
        _, self.state = self.net.remember(before, had, self.condition, self.state)
        self.before, self.known, self.first = rows[:, -1], seen[:, -1], False

    @torch.no_grad()
    def step(self) -> tuple[Floats, Any]:
        """The next step ``[N, width]``, and which series end with it, bool ``[N]``."""
        net, uniforms = self.net, self._uniforms()
        memory, self.state = net.remember(self.before[:, None], self.known[:, None], self.condition, self.state)
        now, seen = torch.zeros_like(self.before), torch.ones_like(self.before)
        for place, channel in enumerate(net.channels):
            out = net.heads[place](net.one_context(memory[:, 0], now, place)).double()
            u = uniforms[:, 2 * channel.first : 2 * channel.span.stop]
            values = self._values(channel, out, u)
            now[:, channel.span] = torch.from_numpy(values.astype(np.float32)).to(now.device)
            if channel.nullable and not channel.categories:
                gone = torch.from_numpy(values[:, 1] < 0).to(now.device)
                now[gone, channel.first], seen[gone, channel.first] = 0.0, 0.0
            elif channel.first == 0 and self.model.encoding.irregular and self.first:
                now[:, 0], seen[:, 0] = 0.0, 0.0  # as in training: a series' first row follows none
        ends = np.zeros(len(uniforms), bool)
        if net.end is not None:
            ends = uniforms[:, -1] < torch.sigmoid(net.end(memory[:, 0])[:, 0].double()).cpu().numpy()
        self.before, self.known, self.first = now, seen, False
        return now.double().cpu().numpy(), ends

    def _values(self, channel: Channel, out: Tensor, u: Floats) -> Floats:
        """Values of a channel's distributions ``[N, places]``."""
        from scipy.special import ndtri

        if channel.categories:
            share = out.softmax(1).cumsum(1).cpu().numpy()
            code = np.minimum((share < u[:, :1]).sum(1), channel.categories - 1)
            return np.where(code[:, None] == np.arange(channel.categories), 1.0, -1.0)
        log_weights, means, deviations = (
            one.cpu().numpy() for one in self.net.mixtures(out, self.before[:, channel.first].double(), channel.noise)
        )
        own = np.minimum((np.exp(log_weights).cumsum(1) < u[:, :1]).sum(1), means.shape[1] - 1)
        rows = np.arange(len(u))
        values = means[rows, own] + deviations[rows, own] * ndtri(np.clip(u[:, 1], 1e-12, 1 - 1e-12))
        # What leaves the real range would be clipped anyway, and must not be built upon.
        low, high = ((edge - channel.mean) / channel.scale for edge in (channel.low, channel.high))
        values = np.clip(values, low, high)
        if not channel.nullable:
            return np.asarray(values[:, None], np.float64)
        present = u[:, 2] < torch.sigmoid(out[:, -1]).cpu().numpy()
        return np.stack([values, np.where(present, 1.0, -1.0)], 1)
