"""Variational autoencoder of series: a level with trend, seasons and a residual, and noise that has a memory.

Desai et al., "TimeVAE: a variational auto-encoder for multivariate time series generation" (2021): convolutional encoder,
decoder of polynomial trend, seasons of given lengths and a residual by transposed convolutions, reconstruction weighted 3.
Latents have a prior for each condition (Sohn, Lee and Yan, "Learning structured output representation using deep conditional
generative models", NeurIPS 2015, eq. 4): else the class hides in them, and one that is asked for is not what comes.
Theirs samples the mean of the decoder, which is smoother than any real series. Here the decoder's error is an
autoregressive process of order one with learned deviation and memory, and samples have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from visynth.tabular.columns import Floats
from visynth.tabular.timeseries.encoding import Channel
from visynth.tabular.timeseries.fitted import Asked
from visynth.tabular.timeseries.training import TrainedSeries
from visynth.tabular.training import Arrays, Batch

SIGMA = (0.02, 1.0)  # limits of the error's deviation, of a channel of unit variance
WIDTHS = (50, 100, 200)  # of the encoder's convolutions (TimeVAE's)


class VAENet(nn.Module):
    """Encoder and decoder of windows.

    Args:
        window: steps.
        width: numbers of a step.
        condition: numbers of the condition.
        latent: dimensions.
        trend: degree of the polynomial, 0 for a level alone.
        seasons: lengths of seasons in steps.
    """

    powers: Tensor

    def __init__(
        self, window: int, width: int, condition: int, latent: int, trend: int, seasons: Sequence[int]
    ) -> None:
        super().__init__()
        self.window, self.width, self.seasons = window, width, tuple(seasons)
        layers: list[nn.Module] = []
        before, steps = 2 * width, window
        for own in WIDTHS:
            layers += [nn.Conv1d(before, own, 3, stride=2, padding=1), nn.ReLU()]
            before, steps = own, (steps + 1) // 2
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.moments = nn.Linear(before * steps + condition, 2 * latent)
        powers = torch.linspace(0, 1, window)[None] ** torch.arange(trend + 1)[:, None]
        self.register_buffer("powers", powers, persistent=False)
        self.prior = nn.Linear(condition, 2 * latent)
        nn.init.zeros_(self.prior.weight)
        nn.init.zeros_(self.prior.bias)
        inputs = latent + condition
        self.trend = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, width * (trend + 1)))
        self.season = nn.ModuleList([nn.Linear(inputs, width * own) for own in self.seasons])
        self.steps = steps
        self.start = nn.Sequential(nn.Linear(inputs, WIDTHS[-1] * steps), nn.ReLU())
        back: list[nn.Module] = []
        for one, two in zip(WIDTHS[::-1], [*WIDTHS[-2::-1], WIDTHS[0]], strict=True):
            back += [nn.ConvTranspose1d(one, two, 4, stride=2, padding=1), nn.ReLU()]
        self.residual = nn.Sequential(*back, nn.Conv1d(WIDTHS[0], width, 3, padding=1))
        self.log_sigma = nn.Parameter(torch.full((width,), -1.0))
        self.memory = nn.Parameter(torch.zeros(width))

    def encode(self, x: Tensor, known: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents ``[B, latent]`` of windows ``[B, L, width]``."""
        seen = torch.cat([x * known, known], dim=2).transpose(1, 2)
        mean, log_variance = self.moments(torch.cat([self.encoder(seen), condition], dim=1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    def expected(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of a condition ``[B, latent]``."""
        mean, log_variance = self.prior(condition).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """Means of windows, or logits of categories, ``[B, L, width]``."""
        inputs = torch.cat([z, condition], dim=1)
        count = len(inputs)
        out = torch.einsum("bwp,pl->blw", self.trend(inputs).view(count, self.width, -1), self.powers)
        for length, layer in zip(self.seasons, self.season, strict=True):
            one = layer(inputs).view(count, length, self.width)
            out = out + one.repeat(1, -(-self.window // length), 1)[:, : self.window]
        rest = self.residual(self.start(inputs).view(count, WIDTHS[-1], self.steps))
        return cast(Tensor, out + rest[:, :, : self.window].transpose(1, 2))

    @property
    def sigma(self) -> Tensor:
        return self.log_sigma.exp().clamp(*SIGMA)

    @property
    def rho(self) -> Tensor:
        return 0.98 * torch.tanh(self.memory)


class TimeVAE(TrainedSeries):
    """The variational autoencoder of series. It draws whole windows.

    Args:
        steps: optimiser steps.
        batch_size: windows of a step, over all processes.
        lr: peak learning rate.
        latent: dimensions.
        trend: degree of the trend's polynomial.
        seasons: lengths of seasons in steps, e.g. 24 of hourly values.
        weight: of the reconstruction.
        ema: share of the old average that a step keeps.
        seed: of weights, batches and noise.
    """

    network = "vae"
    fits_by = "a variational bound"
    weight_decay = 1e-5

    def __init__(
        self,
        steps: int = 3000,
        batch_size: int = 32,
        lr: float = 1e-3,
        latent: int = 8,
        trend: int = 2,
        seasons: Sequence[int] = (),
        weight: float = 3.0,
        ema: float = 0.995,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def build(self) -> nn.Module:
        own, args = self.encoding, self.args
        return VAENet(own.window, own.width, own.condition_width, args.latent, args.trend, args.seasons)

    def noise(self, count: int, generator: np.random.Generator) -> Arrays:
        return {"z": generator.standard_normal((count, self.args.latent)).astype(np.float32)}

    def loss(self, batch: Batch) -> Tensor:
        net = cast(VAENet, self.net)
        x, known = batch["x"], batch["known"].float()
        mean, log_variance = net.encode(x, known, batch["condition"])
        predicted = net.decode(mean + batch["z"] * (log_variance / 2).exp(), batch["condition"])
        center, spread = net.expected(batch["condition"])
        ratio = (log_variance.exp() + (mean - center) ** 2) / spread.exp()
        divergence = 0.5 * (spread - log_variance + ratio - 1).sum(1)
        return cast(Tensor, (self.args.weight * self._misfit(net, x, known, predicted) + divergence).mean())

    def _misfit(self, net: VAENet, x: Tensor, known: Tensor, predicted: Tensor) -> Tensor:
        """Negative log likelihood of windows ``[B]``, per number of a step and window length as one."""
        total = x.new_zeros(len(x))
        for channel in self.encoding.channels:
            if channel.categories:
                own = nn.functional.cross_entropy(
                    predicted[:, :, channel.span].flatten(0, 1),
                    x[:, :, channel.span].argmax(2).flatten(),
                    reduction="none",
                ).view(len(x), -1)
                total = total + (own * known[:, :, channel.first]).sum(1)
                continue
            total = total + self._number_misfit(net, x, known, predicted, channel)
        return total

    def _number_misfit(self, net: VAENet, x: Tensor, known: Tensor, predicted: Tensor, channel: Channel) -> Tensor:
        place, shown = channel.first, known[:, :, channel.first]
        sigma, rho = net.sigma[place].clamp_min(channel.noise), net.rho[place]
        error = (x[:, :, place] - predicted[:, :, place]) * shown
        before = nn.functional.pad(error[:, :-1], (1, 0))
        both = nn.functional.pad(shown[:, :-1], (1, 0)) * shown
        # The first known value of a stretch has the process's own deviation, the others that of its steps.
        fresh = sigma / (1 - rho**2).sqrt()
        scale = torch.where(both > 0, sigma, fresh)
        normal = (((error - rho * before * both) / scale) ** 2 / 2 + scale.log()) * shown
        total = normal.sum(1)
        if channel.nullable:
            present = (x[:, :, place + 1] > 0).float()
            seen = known[:, :, place + 1]
            total = total + (
                nn.functional.binary_cross_entropy_with_logits(predicted[:, :, place + 1], present, reduction="none")
                * seen
            ).sum(1)
        return total

    @torch.no_grad()
    def _draw(self, asked: Asked) -> list[Floats]:
        net = cast(VAENet, self.average)
        window, width, latent = self.encoding.window, self.encoding.width, int(self.args.latent)
        noise = np.stack(
            [asked.rng(k, "vae").standard_normal(latent + 2 * window * width) for k in range(len(asked.numbers))]
        )
        condition = self.condition(asked)
        center, spread = net.expected(condition)
        z = center + (spread / 2).exp() * torch.from_numpy(noise[:, :latent].astype(np.float32)).to(self.own_device)
        out = net.decode(z, condition).double().cpu().numpy()
        normal, other = noise[:, latent:].reshape(len(noise), 2, window, width).swapaxes(0, 1)
        return [own[:rows] for own, rows in zip(self._sampled(net, out, normal, other), asked.lengths, strict=True)]

    def _sampled(self, net: VAENet, out: Floats, normal: Floats, other: Floats) -> Floats:
        """Values of the decoder's distributions."""
        sigma, rho = net.sigma.double().cpu().numpy(), net.rho.double().cpu().numpy()
        for channel in self.encoding.channels:
            place = channel.first
            if channel.categories:  # the largest of logits with Gumbel noise has their probabilities
                uniform = _normal_share(other[:, :, channel.span])
                out[:, :, channel.span] -= np.log(-np.log(uniform))
                continue
            scale, memory = max(sigma[place], channel.noise), rho[place]
            error = normal[:, 0, place] * scale / np.sqrt(1 - memory**2)
            out[:, 0, place] += error
            for step in range(1, out.shape[1]):
                error = memory * error + scale * normal[:, step, place]
                out[:, step, place] += error
            if channel.nullable:
                present = _normal_share(other[:, :, place + 1]) < 1 / (1 + np.exp(-out[:, :, place + 1]))
                out[:, :, place + 1] = np.where(present, 1.0, -1.0)
        return out


def _normal_share(values: Any) -> Floats:
    """Uniform numbers of normal ones."""
    from scipy.special import ndtr

    return np.asarray(np.clip(ndtr(values), 1e-12, 1 - 1e-12), np.float64)
